//! What an answer in CloudEvents means (A-C2, A-C3).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{BATCH, OURS, REQUIRED, STRUCTURED, members};
use crate::contract::app::answer::{AnswerHead, kept};
use crate::contract::app::batch::{Matching, failure, missing};
use crate::contract::app::json::put_text;
use crate::contract::beginning;
use crate::identity::EventId;
use crate::intake::io::Call;
use crate::limits::{DEAD_LETTER_MESSAGE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX};
use crate::outcome::{Class, Item, Output, RetryAfter, RetryScope};

/// Reads the answer to one event: a structured CloudEvent, or a binary one.
pub(in crate::contract::app) fn single(
    head: &AnswerHead<'_>,
    body: &Bytes,
) -> Result<Item, Cow<'static, str>> {
    result(head, body).map(Item::Emit)
}

/// The result that such an answer is, or a post of push mode.
pub(in crate::contract::app) fn result(
    head: &AnswerHead<'_>,
    body: &Bytes,
) -> Result<Output, Cow<'static, str>> {
    if head.is_type(BATCH) {
        return Err("a batch of CloudEvents answers a batch only".into());
    }
    let mut output = head.output((!head.out_tombstone).then(|| body.clone()))?;
    let mut headers = Vec::with_capacity(head.cloud_event.len() + 1 + output.headers.len());
    if head.is_type(STRUCTURED) {
        let members = members(body).ok_or("the CloudEvent is no JSON object")?;
        check(|name| attribute(&members, name))?;
    } else if head.cloud_event.is_empty() {
        return Err(format!(
            "it is no CloudEvent: neither ce-* headers nor Content-Type: {STRUCTURED}"
        )
        .into());
    } else {
        let attributes = || head.cloud_event.iter();
        check(|name| {
            let named = attributes().find(|(own, _)| own.eq_ignore_ascii_case(name));
            named.map(|(_, value)| decoded(value))
        })?;
        for (name, value) in attributes() {
            let name = format!("ce_{}", name.to_ascii_lowercase());
            headers.push((name.into(), Some(decoded(value).into_owned().into())));
        }
    }
    if let Some(kind) = head.content_type {
        headers.push(content_type(kind.to_owned()));
    }
    headers.append(&mut output.headers);
    Ok(Output {
        headers,
        cloud_event: true,
        ..output
    })
}

fn content_type(kind: impl Into<Bytes>) -> (Bytes, Option<Bytes>) {
    (Bytes::from_static(b"content-type"), Some(kind.into()))
}

/// Whether the event has what every CloudEvent has.
fn check<'v>(attribute: impl Fn(&str) -> Option<Cow<'v, str>>) -> Result<(), Cow<'static, str>> {
    for name in REQUIRED {
        if attribute(name).is_none_or(|value| value.is_empty()) {
            return Err(format!("the CloudEvent has no `{name}`").into());
        }
    }
    Ok(())
}

fn attribute<'b>(members: &[(Cow<'b, str>, &'b RawValue)], name: &str) -> Option<Cow<'b, str>> {
    let (_, raw) = members.iter().find(|(own, _)| own == name)?;
    serde_json::from_str::<String>(raw.get())
        .ok()
        .map(Cow::from)
}

/// A header's value without percent-encoding; what is none stays.
pub(super) fn decoded(value: &[u8]) -> Cow<'_, str> {
    if !value.contains(&b'%') {
        return String::from_utf8_lossy(value);
    }
    let digit = |at: usize| {
        let c = value.get(at).copied().map(char::from)?;
        u8::try_from(c.to_digit(16)?).ok()
    };
    let mut bytes = Vec::with_capacity(value.len());
    let mut at = 0;
    while let Some(byte) = value.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4) | low);
                at += 3;
            }
            _ => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// Reads the answer to a batch: one item per event of the call, in the call's order.
pub(in crate::contract::app) fn batch(call: &Call, body: &Bytes) -> Result<Vec<Item>, String> {
    let events: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut matching = Matching::new(&call.events);
    for event in events {
        let (parent, item) = one_of_batch(event)?;
        matching.add(parent, item)?;
    }
    let items = matching.items.into_iter();
    Ok(items.map(|item| item.unwrap_or_else(missing)).collect())
}

fn one_of_batch(event: &RawValue) -> Result<(EventId, Item), Cow<'static, str>> {
    let members = members(event.get().as_bytes()).ok_or("an element is no JSON object")?;
    let parent = attribute(&members, "millraceparent").ok_or("an element has no millraceparent")?;
    let parent = EventId::parse(parent.as_bytes()).ok_or("an id is not in the request")?;
    let status = attribute(&members, "millracestatus");
    let item = match status.as_deref().unwrap_or("ok") {
        "ok" => {
            check(|name| attribute(&members, name))?;
            Item::Emit(Output {
                value: Some(without_ours(&members).into()),
                headers: vec![content_type(Bytes::from_static(STRUCTURED.as_bytes()))],
                cloud_event: true,
                ..Output::default()
            })
        }
        "filter" => Item::Filter,
        "retry" => refused(&members, Class::Transient, "retry"),
        "fail" => refused(&members, Class::Permanent, "fail"),
        other => return Err(format!("`millracestatus` is {other:?}").into()),
    };
    Ok((parent, item))
}

/// The event as it is published.
fn without_ours(members: &[(Cow<'_, str>, &RawValue)]) -> Vec<u8> {
    let mut value = vec![b'{'];
    for (name, raw) in members.iter().filter(|(name, _)| !name.starts_with(OURS)) {
        if value.len() > 1 {
            value.push(b',');
        }
        put_text(&mut value, name);
        value.push(b':');
        value.extend_from_slice(raw.get().as_bytes());
    }
    value.push(b'}');
    value
}

/// An item that is no result: `millraceerrorcode`, `millraceerrormessage` and, for `retry`,
/// `millraceretryafterms` may say more.
fn refused(members: &[(Cow<'_, str>, &RawValue)], class: Class, word: &str) -> Item {
    let said = |name: &str| attribute(members, name).filter(|said| !said.is_empty());
    let code = said("millraceerrorcode").unwrap_or(word.into());
    let message = said("millraceerrormessage")
        .unwrap_or_else(|| format!("the app answered `{word}` for this event").into());
    let mut failure = failure(
        class,
        beginning(&code, DEAD_LETTER_MESSAGE_BYTES_MAX),
        beginning(&message, DEAD_LETTER_MESSAGE_BYTES_MAX),
    );
    failure.body = kept(&without_ours(members));
    if class == Class::Transient {
        let wait = members
            .iter()
            .find(|(name, _)| name == "millraceretryafterms");
        let ms = wait.and_then(|(_, raw)| serde_json::from_str::<u64>(raw.get()).ok());
        failure.retry_after = ms.map(|ms| RetryAfter {
            delay: Duration::from_millis(ms).min(Duration::from_secs(RETRY_AFTER_SECONDS_MAX)),
            scope: RetryScope::Event,
        });
    }
    Item::Failed(failure)
}
