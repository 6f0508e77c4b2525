//! What the answer to a batch means (A-B1, A-B2).
//!
//! Invariant: an id that the call does not have, or one too many, makes the whole answer
//! malformed; an event without an item is tried again.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::answer::{
    AnswerHead, AppError, Meaning, accepted, is_filter, item_of, kept, meaning, refused,
    unknown_status,
};
use super::json::{Member, OutputList, Outputs, Source, once};
use super::{CallContext, ContentMode, RequestMode, cloud_events};
use crate::identity::EventId;
use crate::intake::io::{Call, Called};
use crate::limits::RETRY_AFTER_SECONDS_MAX;
use crate::outcome::{Class, Failure, FailureKind, Item, Outcome, RetryAfter, RetryScope};

/// What the answer to a batch means: one item per event of the call, in the call's order.
pub fn read_batch(
    c: &CallContext,
    call: &Call,
    head: &AnswerHead<'_>,
    body: Bytes,
    now_wall_ms: i64,
) -> Outcome {
    match meaning(head.status, RequestMode::Batch) {
        Meaning::Body if body.len() > c.max_response_bytes => {
            Outcome::TooLarge(Failure::response_too_large(c.max_response_bytes))
        }
        Meaning::Body => match success(c, call, head, &body) {
            Ok(items) => Outcome::Items(items),
            Err(message) => Outcome::Failed(Failure::malformed(&message, &body)),
        },
        Meaning::Nothing => Outcome::Items(filter_all(call)),
        Meaning::Accepted => Outcome::Failed(accepted(&body)),
        Meaning::Refused if head.status == 413 => {
            Outcome::TooLarge(refused(head, &body, now_wall_ms))
        }
        Meaning::Refused => Outcome::Failed(refused(head, &body, now_wall_ms)),
        Meaning::Malformed => Outcome::Failed(unknown_status(head.status, &body)),
    }
}

fn filter_all(call: &Call) -> Vec<Item> {
    call.events.iter().map(|_| Item::Filter).collect()
}

fn success(
    c: &CallContext,
    call: &Call,
    head: &AnswerHead<'_>,
    body: &Bytes,
) -> Result<Vec<Item>, String> {
    if head.too_many_headers {
        return Err("it has too many headers".to_owned());
    }
    if is_filter(head)? {
        return Ok(filter_all(call));
    }
    if c.content != ContentMode::Raw && head.is_type(cloud_events::BATCH) {
        return cloud_events::answer::batch(call, body);
    }
    let mut reading = Reading {
        source: Source::new(body),
        matching: Matching::new(&call.events),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    BatchAnswer(&mut reading)
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|error| error.to_string())?;
    let items = reading.matching.items.into_iter();
    Ok(items.map(|item| item.unwrap_or_else(missing)).collect())
}

/// An event that the answer leaves out is tried again, counted (A-B1).
pub(super) fn missing() -> Item {
    Item::Failed(failure(
        Class::Transient,
        "missing",
        "the answer has no item for this event",
    ))
}

pub(super) fn failure(class: Class, code: &str, message: &str) -> Failure {
    Failure {
        class,
        kind: FailureKind::Refused,
        code: code.to_owned(),
        message: message.to_owned(),
        body: Bytes::new(),
        attempted: true,
        retry_after: None,
    }
}

/// Finds the event of an id. Answers in the order of the call need no index.
pub(super) struct Matching<'c> {
    events: &'c [Called],
    pub(super) items: Vec<Option<Item>>,
    expected: usize,
    by_id: Vec<(EventId, usize)>,
}

impl<'c> Matching<'c> {
    pub(super) fn new(events: &'c [Called]) -> Self {
        Self {
            events,
            items: events.iter().map(|_| None).collect(),
            expected: 0,
            by_id: Vec::new(),
        }
    }

    /// Stores an item. A call may hold one id twice, when a dead letter was replayed twice; its
    /// items then belong to its events in order.
    fn put(&mut self, id: EventId, item: Item) -> Result<(), &'static str> {
        let expected = self.expected;
        let index = if self
            .events
            .get(expected)
            .is_some_and(|called| called.id == id)
            && self.items[expected].is_none()
        {
            expected
        } else {
            self.find(id)?
        };
        self.items[index] = Some(item);
        self.expected = index + 1;
        Ok(())
    }

    /// Stores an item of a form in which several results may name one event (A-C3).
    pub(super) fn add(&mut self, id: EventId, item: Item) -> Result<(), &'static str> {
        let known = self.events.iter().position(|called| called.id == id);
        let index = known.ok_or("an id is not in the request")?;
        let slot = &mut self.items[index];
        *slot = Some(match (slot.take(), item) {
            (None, item) => item,
            (Some(Item::Emit(first)), Item::Emit(next)) => Item::EmitMany(vec![first, next]),
            (Some(Item::EmitMany(mut results)), Item::Emit(next)) => {
                results.push(next);
                Item::EmitMany(results)
            }
            (Some(_), _) => return Err("an id comes twice, and not with results alone"),
        });
        Ok(())
    }

    fn find(&mut self, id: EventId) -> Result<usize, &'static str> {
        if self.by_id.is_empty() {
            let ids = self
                .events
                .iter()
                .enumerate()
                .map(|(index, called)| (called.id, index));
            self.by_id = ids.collect();
            self.by_id.sort_unstable();
        }
        let first = self.by_id.partition_point(|(known, _)| *known < id);
        let mut same = self.by_id[first..]
            .iter()
            .take_while(|(known, _)| *known == id)
            .peekable();
        if same.peek().is_none() {
            return Err("an id is not in the request");
        }
        let free = same.find(|(_, index)| self.items[*index].is_none());
        free.map(|(_, index)| *index).ok_or("an id comes twice")
    }
}

struct Reading<'b, 'c> {
    source: Source<'b>,
    matching: Matching<'c>,
}

/// Reads `{"results":[…]}`.
struct BatchAnswer<'r, 'b, 'c>(&'r mut Reading<'b, 'c>);

impl<'de> DeserializeSeed<'de> for BatchAnswer<'_, 'de, '_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for BatchAnswer<'_, 'de, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `results`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut results = None;
        while let Some(member) = map.next_key_seed(Member)? {
            if member == "results" {
                map.next_value_seed(BatchItems(&mut *self.0))?;
                once("results", &mut results, ())?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        results.ok_or_else(|| de::Error::missing_field("results"))
    }
}

struct BatchItems<'r, 'b, 'c>(&'r mut Reading<'b, 'c>);

impl<'de> DeserializeSeed<'de> for BatchItems<'_, 'de, '_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for BatchItems<'_, 'de, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some((id, item)) = items.next_element_seed(BatchItem(&mut self.0.source))? {
            self.0.matching.put(id, item).map_err(de::Error::custom)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Status {
    Ok,
    Filter,
    Retry,
    Fail,
}

struct BatchItem<'s, 'b>(&'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for BatchItem<'_, 'de> {
    type Value = (EventId, Item);

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for BatchItem<'_, 'de> {
    type Value = (EventId, Item);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an item with `id` and `status`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut id = None;
        let mut status = None;
        let mut outputs: Option<Option<OutputList>> = None;
        let mut wait: Option<Option<f64>> = None;
        let mut error: Option<&'de RawValue> = None;
        while let Some(member) = map.next_key_seed(Member)? {
            match member {
                "id" => once("id", &mut id, map.next_value_seed(Id)?)?,
                "status" => once("status", &mut status, map.next_value_seed(StatusWord)?)?,
                "outputs" => {
                    let list = map.next_value_seed(NullableOutputs(&mut *self.0))?;
                    once("outputs", &mut outputs, list)?;
                }
                "retry_after_ms" => once("retry_after_ms", &mut wait, map.next_value()?)?,
                "error" => once("error", &mut error, map.next_value()?)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let id = id.ok_or_else(|| de::Error::missing_field("id"))?;
        let status = status.ok_or_else(|| de::Error::missing_field("status"))?;
        let item = match (status, outputs.flatten()) {
            (Status::Ok, Some(outputs)) => item_of(outputs),
            (Status::Ok, None) => Item::Failed(failure(
                Class::Transient,
                "missing",
                "the item is ok but has no outputs",
            )),
            (Status::Filter, _) => Item::Filter,
            (Status::Retry, _) => {
                let mut failure = refused_item(Class::Transient, "retry", error);
                failure.retry_after = wait.flatten().map(retry_after);
                Item::Failed(failure)
            }
            (Status::Fail, _) => Item::Failed(refused_item(Class::Permanent, "fail", error)),
        };
        Ok((id, item))
    }
}

fn retry_after(ms: f64) -> RetryAfter {
    let cap = Duration::from_secs(RETRY_AFTER_SECONDS_MAX);
    let delay =
        Duration::try_from_secs_f64(ms.max(0.0) / 1_000.0).map_or(cap, |delay| delay.min(cap));
    RetryAfter {
        delay,
        scope: RetryScope::Event,
    }
}

/// The status of an item says its class; `retryable` only speaks where there is no item.
fn refused_item(class: Class, word: &str, error: Option<&RawValue>) -> Failure {
    let object = error
        .and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default();
    let told = AppError::of(&object);
    let mut failure = failure(class, word, "");
    failure.message = told
        .message
        .unwrap_or_else(|| format!("the app answered `{word}` for this event"));
    failure.body = error.map_or_else(Bytes::new, |raw| kept(raw.get().as_bytes()));
    if let Some(code) = told.code {
        failure.code = code;
    }
    failure
}

struct Id;

impl<'de> DeserializeSeed<'de> for Id {
    type Value = EventId;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<EventId, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Id {
    type Value = EventId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id of the request")
    }

    fn visit_str<E: de::Error>(self, id: &str) -> Result<EventId, E> {
        EventId::parse(id.as_bytes()).ok_or_else(|| E::custom("an id is not in the request"))
    }
}

struct StatusWord;

impl<'de> DeserializeSeed<'de> for StatusWord {
    type Value = Status;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Status, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for StatusWord {
    type Value = Status;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`ok`, `filter`, `retry` or `fail`")
    }

    fn visit_str<E: de::Error>(self, status: &str) -> Result<Status, E> {
        match status {
            "ok" => Ok(Status::Ok),
            "filter" => Ok(Status::Filter),
            "retry" => Ok(Status::Retry),
            "fail" => Ok(Status::Fail),
            _ => Err(E::invalid_value(de::Unexpected::Str(status), &self)),
        }
    }
}

/// A list of outputs, or null.
struct NullableOutputs<'s, 'b>(&'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for NullableOutputs<'_, 'de> {
    type Value = Option<OutputList>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for NullableOutputs<'_, 'de> {
    type Value = Option<OutputList>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of outputs or null")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        Outputs(self.0).deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests;
