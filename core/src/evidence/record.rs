//! One record of the verification topic: what one release made of one event (J1).
//!
//! Headers say where the event stands, who answered, in which mode, of which class and how long
//! the app took. The value is a JSON array of the results, each with its key and value as text
//! where they are UTF-8, else in base64 (`key_base64`, `value_base64`, as A-S5 and A-B5 spell
//! bytes), and the topic if the app named one. An answer that is too large for one record is
//! written as its fingerprint: an object `{"results":…,"bytes":…,"sha256":…}` (decision 0024).
//!
//! Invariant: what is written reads back as it was, byte by byte.
//! Invariant: reading is strict: a record that differs from what is written in anything but
//! further headers is refused with the reason, and counted, never guessed at.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::position::{Partition, Position};
use crate::token::{ReleaseId, Stamp};

mod value;

pub use crate::contract::result::{RELEASE, SRC};

/// The mode in which the app was asked: `live`, `shadow` or `baseline`.
pub const MODE: &[u8] = b"millrace-mode";
/// What came of it.
pub const CLASS: &[u8] = b"millrace-class";
/// How long the app took, in microseconds; absent if it was not asked.
pub const LATENCY_US: &[u8] = b"millrace-latency-us";

/// Where an event stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source {
    /// In which partition.
    pub partition: Partition,
    /// At which position.
    pub position: Position,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.position)
    }
}

/// What came of an event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Results.
    Emitted,
    /// No result, because the app said so.
    Filtered,
    /// No answer; a live release stores, or would store, it as a dead letter.
    DeadLettered,
    /// No answer; the policy drops it.
    Dropped,
    /// No answer, where a live release would still try: only of shadow and baseline calls.
    Failed,
}

impl Class {
    const ALL: [Self; 5] = [
        Self::Emitted,
        Self::Filtered,
        Self::DeadLettered,
        Self::Dropped,
        Self::Failed,
    ];

    /// As `millrace-class` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Emitted => "emitted",
            Self::Filtered => "filtered",
            Self::DeadLettered => "dead_lettered",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }

    /// Whether the app gave an answer.
    pub fn is_answered(self) -> bool {
        match self {
            Self::Emitted | Self::Filtered => true,
            Self::DeadLettered | Self::Dropped | Self::Failed => false,
        }
    }
}

/// One result.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResultBody {
    /// The topic, if the app named one.
    pub topic: Option<String>,
    /// The key as it is stored.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
}

/// The results of an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Results {
    /// All of them, in the app's order.
    Whole(Vec<ResultBody>),
    /// Too large for a record.
    Cut(Fingerprint),
}

/// Tells two answers apart without holding them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint {
    /// How many results.
    pub results: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// SHA-256 over topics, keys and values, each with its length.
    pub sha256: [u8; 32],
}

impl Fingerprint {
    /// Of all results of one event.
    pub fn of(results: &[ResultBody]) -> Self {
        let mut hash = Sha256::new();
        let mut bytes = 0;
        for result in results {
            let topic = result.topic.as_deref().map(str::as_bytes);
            for part in [topic, result.key.as_deref(), result.value.as_deref()] {
                let length = part.map_or(u64::MAX, |part| part.len() as u64);
                hash.update(length.to_be_bytes());
                hash.update(part.unwrap_or_default());
            }
            let length = |part: &Option<Bytes>| part.as_ref().map_or(0, |part| part.len() as u64);
            bytes += length(&result.key) + length(&result.value);
        }
        Self {
            results: results.len() as u64,
            bytes,
            sha256: hash.finalize().into(),
        }
    }
}

/// What one release made of one event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What came of it.
    pub class: Class,
    /// How long the app took, microseconds; `None` if it was not asked.
    pub latency_us: Option<u64>,
    /// Results; none unless emitted.
    pub results: Results,
}

/// One record of the verification topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Which event.
    pub source: Source,
    /// Who answered.
    pub release: ReleaseId,
    /// In which mode.
    pub mode: Stamp,
    /// What.
    pub answer: Answer,
}

/// Why a record cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// A header that every record has is not there.
    #[error("the verification record has no header `{header}`")]
    Missing {
        /// Its name.
        header: &'static str,
    },
    /// A header stands there twice.
    #[error("the verification record has the header `{header}` more than once")]
    Repeated {
        /// Its name.
        header: &'static str,
    },
    /// A header says what it cannot say.
    #[error("the verification record's header `{header}` is {found:?}, but should be {wants}")]
    Header {
        /// Its name.
        header: &'static str,
        /// What it says; its beginning.
        found: String,
        /// What it may say.
        wants: &'static str,
    },
    /// Larger than any that is written.
    #[error("the verification record's value of {bytes} bytes is above the limit of {max}")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// How many it may have.
        max: usize,
    },
    /// The value is not an array of results or a fingerprint.
    #[error("the verification record's value is wrong: {problem}")]
    Value {
        /// What is wrong, and where.
        problem: String,
    },
    /// Emitted without results, or results of an event that is not emitted.
    #[error("the verification record says `{}`, but holds {results} results", class.as_str())]
    Count {
        /// What it says.
        class: Class,
        /// What it holds.
        results: u64,
    },
}

const HEADERS: [&[u8]; 5] = [SRC, RELEASE, MODE, CLASS, LATENCY_US];

impl Record {
    /// Gives each header to `each`, in their fixed order.
    pub fn headers(&self, each: &mut dyn FnMut(&'static [u8], &[u8])) {
        each(SRC, self.source.to_string().as_bytes());
        each(RELEASE, self.release.as_str().as_bytes());
        each(MODE, self.mode.as_str().as_bytes());
        each(CLASS, self.answer.class.as_str().as_bytes());
        if let Some(latency) = self.answer.latency_us {
            each(LATENCY_US, itoa::Buffer::new().format(latency).as_bytes());
        }
    }

    /// Writes the value with at most `bytes_max` bytes: what the topic takes, at most
    /// `EVIDENCE_RECORD_BYTES_MAX`. Larger answers are written as their fingerprint.
    pub fn value(&self, bytes_max: usize) -> Vec<u8> {
        value::write(&self.answer.results, bytes_max)
    }

    /// Reads a record of the topic. Headers of other names do not matter.
    pub fn decode<'a>(
        headers: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        value: Option<&[u8]>,
    ) -> Result<Self, Error> {
        let mut found = [None; HEADERS.len()];
        for (name, value) in headers {
            if let Some(i) = HEADERS.iter().position(|header| *header == name)
                && found[i].replace(value.unwrap_or_default()).is_some()
            {
                return Err(Error::Repeated { header: text(i) });
            }
        }
        let source = source(needed(&found, 0)?)?;
        let release = header(needed(&found, 1)?, 1, "a release id", |text| {
            ReleaseId::new(text).ok()
        })?;
        let mode = header(needed(&found, 2)?, 2, "live, shadow or baseline", |text| {
            let modes = [Stamp::Live, Stamp::Shadow, Stamp::Baseline];
            modes.into_iter().find(|mode| mode.as_str() == text)
        })?;
        let class = header(
            needed(&found, 3)?,
            3,
            "emitted, filtered, dead_lettered, dropped or failed",
            |text| Class::ALL.into_iter().find(|class| class.as_str() == text),
        )?;
        let latency_us = match found[4] {
            Some(bytes) => Some(header(bytes, 4, "whole microseconds", whole)?),
            // The app was asked for every answer that it gave.
            None if class.is_answered() => return Err(Error::Missing { header: text(4) }),
            None => None,
        };
        let results = value::read(value.unwrap_or_default())?;
        let count = match &results {
            Results::Whole(results) => results.len() as u64,
            Results::Cut(fingerprint) => fingerprint.results,
        };
        if (count > 0) != (class == Class::Emitted) {
            return Err(Error::Count {
                class,
                results: count,
            });
        }
        Ok(Self {
            source,
            release,
            mode,
            answer: Answer {
                class,
                latency_us,
                results,
            },
        })
    }
}

fn text(header: usize) -> &'static str {
    std::str::from_utf8(HEADERS[header]).expect("our header names are ASCII")
}

fn needed<'a>(found: &[Option<&'a [u8]>], header: usize) -> Result<&'a [u8], Error> {
    found[header].ok_or(Error::Missing {
        header: text(header),
    })
}

fn header<T>(
    bytes: &[u8],
    header: usize,
    wants: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, Error> {
    let value = std::str::from_utf8(bytes).ok().and_then(read);
    value.ok_or_else(|| Error::Header {
        header: text(header),
        found: String::from_utf8_lossy(bytes).chars().take(100).collect(),
        wants,
    })
}

/// `topic/partition/offset`; a topic's name holds no `/`.
fn source(bytes: &[u8]) -> Result<Source, Error> {
    header(bytes, 0, "topic/partition/offset", |text| {
        let mut parts = text.split('/');
        let topic = parts.next().filter(|topic| !topic.is_empty())?;
        let number = i32::try_from(whole(parts.next()?)?).ok()?;
        let offset = i64::try_from(whole(parts.next()?)?).ok()?;
        parts.next().is_none().then(|| Source {
            partition: Partition::new(topic, number),
            position: Position::new(offset),
        })
    })
}

/// Digits as they are written: no sign, no leading zero.
fn whole(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| digits && canonical)
}

#[cfg(test)]
mod tests;
