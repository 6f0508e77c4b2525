//! What the controller asks for: which release shall answer which partitions (E3, R8, A1).
//!
//! An intent is never a licence: tokens are. It travels as canonical JSON with the SHA-256 of
//! itself, by push, by file and in `.status.intent`.
//!
//! Invariant: decoding is strict: an accepted text is what encoding writes, and its digest fits.
//! Invariant: of two intents with one epoch and different digests neither may be obeyed (R8).

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use super::canonical;
use crate::position::Partition;
use crate::token::ReleaseId;

/// One wish of the controller (E3).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Intent {
    /// Allotted before it is written anywhere; a higher one wins (R8).
    pub epoch: u64,
    /// Who shall answer live.
    pub target: ReleaseId,
    /// Who did when it was written; for people.
    pub from: Option<ReleaseId>,
    /// Where; other partitions stay where they are.
    pub partitions: Partitions,
    /// Who reads along, and where.
    pub shadow: Option<ShadowSample>,
    /// Why, in one word.
    pub reason: String,
    /// The decision behind it.
    pub decision: Option<String>,
}

/// The partitions that a candidate reads in shadow (R7).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ShadowSample {
    /// The candidate.
    pub release: ReleaseId,
    /// What it dispatches; it is assigned all.
    pub partitions: Partitions,
}

/// Partitions of several topics.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Partitions {
    /// Every partition, also those that do not exist yet.
    All,
    /// These.
    Some(BTreeMap<String, Ranges>),
}

/// Numbers of partitions: ascending inclusive ranges that do not touch, never none.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ranges(Vec<(i32, i32)>);

/// What became of an intent that was received (A1, R8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// It is newer, and obeyed from now on: 202.
    Accepted,
    /// It is the known one: 202.
    Known,
    /// It is older than the known one, and ignored: 409.
    Lower {
        /// Of the known one.
        epoch: u64,
    },
    /// The known one has its epoch and another digest: 422, and no dispatch any more (R8, R9).
    DigestClash,
}

/// Why a text is no intent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON.
    #[error("the intent is not JSON: {why}")]
    Json {
        /// What the parser says.
        why: String,
    },
    /// A member is missing, of the wrong kind, or unknown.
    #[error("the intent's `{member}` is missing or wrong")]
    Member {
        /// Its name.
        member: String,
    },
    /// Changed on its way, or not by us.
    #[error("the intent's digest is {found}, but it says {claimed}")]
    Digest {
        /// What it says.
        claimed: String,
        /// What it is.
        found: String,
    },
    /// The same content, written in another way.
    #[error("the intent is not in canonical form (RFC 8785)")]
    Form,
}

impl Intent {
    /// Whether it speaks about a partition.
    pub fn covers(&self, partition: &Partition) -> bool {
        self.partitions.contain(partition)
    }

    /// Whether it asks for a seal of `partition` in the release `this`.
    pub fn takes_from(&self, this: &ReleaseId, partition: &Partition) -> bool {
        self.target != *this && self.covers(partition)
    }

    /// SHA-256 of its canonical JSON without the digest.
    pub fn digest(&self) -> String {
        canonical::digest(&self.text(None))
    }

    /// Its canonical JSON.
    ///
    /// # Panics
    /// If its epoch is above 2^53, which no JSON number can tell from its neighbours: our mistake.
    pub fn encode(&self) -> String {
        self.text(Some(self.digest()))
    }

    /// Reads canonical JSON, and checks its digest.
    pub fn decode(text: &str) -> Result<Self, Error> {
        let value: Value = serde_json::from_str(text).map_err(|error| Error::Json {
            why: error.to_string(),
        })?;
        let mut members = Members::of(value, "intent")?;
        let shadow = match members.take("shadow") {
            None => None,
            Some(value) => {
                let mut members = Members::of(value, "shadow")?;
                let shadow = ShadowSample {
                    release: members.release("release")?,
                    partitions: members.partitions("partitions")?,
                };
                members.end()?;
                Some(shadow)
            }
        };
        let intent = Self {
            epoch: members.whole("epoch")?,
            target: members.release("target")?,
            from: members.optional("from", Members::release)?,
            partitions: members.partitions("partitions")?,
            shadow,
            reason: members.text("reason")?,
            decision: members.optional("decision", Members::text)?,
        };
        let claimed = members.text("digest")?;
        members.end()?;
        let found = intent.digest();
        if claimed != found {
            return Err(Error::Digest { claimed, found });
        }
        if intent.text(Some(found)) != text {
            return Err(Error::Form);
        }
        Ok(intent)
    }

    /// What a receiver that obeys `known` does with this one (R8, A1).
    pub fn received(&self, known: Option<&Self>) -> Received {
        match known {
            Some(known) if known.epoch > self.epoch => Received::Lower { epoch: known.epoch },
            // Equal content is equal canonical JSON, hence an equal digest.
            Some(known) if known.epoch == self.epoch && known == self => Received::Known,
            Some(known) if known.epoch == self.epoch => Received::DigestClash,
            Some(_) | None => Received::Accepted,
        }
    }

    fn text(&self, digest: Option<String>) -> String {
        let mut map = Map::new();
        let mut put = |name: &str, value: Value| {
            map.insert(name.to_owned(), value);
        };
        put("epoch", json!(self.epoch));
        put("target", json!(self.target.as_str()));
        put("partitions", self.partitions.value());
        put("reason", json!(self.reason));
        if let Some(from) = &self.from {
            put("from", json!(from.as_str()));
        }
        if let Some(shadow) = &self.shadow {
            put(
                "shadow",
                json!({"release": shadow.release.as_str(), "partitions": shadow.partitions.value()}),
            );
        }
        if let Some(decision) = &self.decision {
            put("decision", json!(decision));
        }
        if let Some(digest) = digest {
            put("digest", json!(digest));
        }
        canonical::text(&Value::Object(map)).expect("epochs are counted one by one")
    }
}

impl Partitions {
    /// Exactly these.
    pub fn of<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> Self {
        let mut numbers: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for partition in partitions {
            numbers
                .entry(partition.topic().to_owned())
                .or_default()
                .push(partition.number());
        }
        let ranges = |(topic, numbers)| Some((topic, Ranges::of(numbers)?));
        Self::Some(numbers.into_iter().filter_map(ranges).collect())
    }

    /// Whether `partition` is one of them.
    pub fn contain(&self, partition: &Partition) -> bool {
        match self {
            Self::All => true,
            Self::Some(topics) => topics
                .get(partition.topic())
                .is_some_and(|ranges| ranges.contain(partition.number())),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::All => json!("all"),
            Self::Some(topics) => topics
                .iter()
                .map(|(topic, ranges)| (topic.clone(), json!(ranges.to_string())))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(all) if all == "all" => Some(Self::All),
            Value::Object(map) => map
                .iter()
                .map(|(topic, ranges)| Some((topic.clone(), Ranges::read(ranges.as_str()?)?)))
                .collect::<Option<_>>()
                .map(Self::Some),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => None,
        }
    }
}

impl Ranges {
    /// Of these numbers; `None` of none.
    pub fn of(mut numbers: Vec<i32>) -> Option<Self> {
        numbers.sort_unstable();
        let mut ranges: Vec<(i32, i32)> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some((_, end)) if number <= end.saturating_add(1) => *end = number,
                Some(_) | None => ranges.push((number, number)),
            }
        }
        (!ranges.is_empty()).then_some(Self(ranges))
    }

    fn contain(&self, number: i32) -> bool {
        self.0
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// Reads `0-3,7`, in this form only: ascending, and two ranges that touch are one.
    fn read(text: &str) -> Option<Self> {
        let number = |text: &str| text.parse().ok().filter(|number: &i32| *number >= 0);
        let mut ranges: Vec<(i32, i32)> = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (number(first)?, number(last)?);
            let apart = ranges
                .last()
                .is_none_or(|(_, end)| range.0 > end.saturating_add(1));
            if !apart || range.0 > range.1 {
                return None;
            }
            ranges.push(range);
        }
        let ranges = Self(ranges);
        (ranges.to_string() == text).then_some(ranges)
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

/// The members of a JSON object that have not been read yet.
struct Members(Map<String, Value>);

impl Members {
    fn of(value: Value, name: &str) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Err(wrong(name)),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    fn read<T>(&mut self, name: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T, Error> {
        self.take(name)
            .as_ref()
            .and_then(read)
            .ok_or_else(|| wrong(name))
    }

    fn optional<T>(
        &mut self,
        name: &str,
        read: impl Fn(&mut Self, &str) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.0
            .contains_key(name)
            .then(|| read(self, name))
            .transpose()
    }

    fn whole(&mut self, name: &str) -> Result<u64, Error> {
        let whole = |value: &Value| value.as_u64().filter(|n| *n <= canonical::WHOLE_MAX);
        self.read(name, whole)
    }

    fn text(&mut self, name: &str) -> Result<String, Error> {
        self.read(name, |value| value.as_str().map(str::to_owned))
    }

    fn release(&mut self, name: &str) -> Result<ReleaseId, Error> {
        self.read(name, |value| ReleaseId::new(value.as_str()?).ok())
    }

    fn partitions(&mut self, name: &str) -> Result<Partitions, Error> {
        self.read(name, Partitions::read)
    }

    fn end(self) -> Result<(), Error> {
        self.0.keys().next().map_or(Ok(()), |name| Err(wrong(name)))
    }
}

fn wrong(member: &str) -> Error {
    Error::Member {
        member: member.to_owned(),
    }
}

#[cfg(test)]
mod tests;
