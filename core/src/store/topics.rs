//! Where records go: destination topics, their size limits (P-8, D-O3) and counts.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::counters::{Histogram, TopicCounters};
use super::{Failed, Record};
use crate::contract::publish::{self, Destination, Fault, ResultEvent, StoreClass};
use crate::limits::NAMED_TOPICS_MAX;
use crate::token::Stamp;

const OUTPUT: u16 = 0;
const DEAD_LETTER: u16 = 1;
const VERIFICATION: u16 = 2;

/// A batch header, and a record's own framing: what the broker counts besides the contents.
const BATCH_OVERHEAD: usize = 61;
const RECORD_OVERHEAD: usize = 31;
const HEADER_OVERHEAD: usize = 10;

/// What the broker allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest record of the output topic, and of topics that the app names.
    pub output: u64,
    /// Largest record of the dead-letter topic.
    pub dead_letter: u64,
    /// Largest record of the verification topic.
    pub verification: u64,
    /// Partitions of the verification topic (D-O7); 0: not known.
    pub verification_partitions: i32,
}

/// Why an event or a whole frame is refused on arrival.
pub(super) enum Refusal {
    Event {
        failed: Failed,
        oversized: Option<u64>,
    },
    Frame(Fault),
}

impl Refusal {
    fn of_record(self, record: u32) -> Self {
        match self {
            Self::Event { failed, oversized } => Self::Event {
                failed: failed.of_record(record),
                oversized,
            },
            Self::Frame(fault) => Self::Frame(fault),
        }
    }
}

/// All destination topics.
#[derive(Debug)]
pub(super) struct Topics {
    list: Vec<TopicCounters>,
    named: HashMap<Arc<str>, u16, BuildHasherDefault<SipHasher13>>,
    limits: Limits,
}

impl Topics {
    /// Output, dead letter, verification.
    pub(super) fn new(configured: [Arc<str>; 3]) -> Self {
        let mut topics = Self {
            list: Vec::new(),
            named: HashMap::default(),
            limits: Limits {
                output: u64::MAX,
                dead_letter: u64::MAX,
                verification: u64::MAX,
                verification_partitions: 0,
            },
        };
        for topic in configured {
            topics.add(topic);
        }
        topics
    }

    fn add(&mut self, topic: Arc<str>) -> u16 {
        self.list.push(TopicCounters {
            topic,
            records: 0,
            resends: 0,
            failures: 0,
            seconds: Histogram::default(),
        });
        u16::try_from(self.list.len() - 1).expect("NAMED_TOPICS_MAX is far below 65,536")
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// As `Ready` tells them.
    pub(super) fn limits(&self) -> Vec<(String, u64)> {
        [
            (OUTPUT, self.limits.output),
            (DEAD_LETTER, self.limits.dead_letter),
            (VERIFICATION, self.limits.verification),
        ]
        .map(|(topic, limit)| (self.list[usize::from(topic)].topic.to_string(), limit))
        .to_vec()
    }

    pub(super) fn counters(&self) -> &[TopicCounters] {
        &self.list
    }

    pub(super) fn stored(&mut self, topic: u16, took: Duration) {
        let it = &mut self.list[usize::from(topic)];
        it.records += 1;
        it.seconds.observe(took);
    }

    pub(super) fn failed(&mut self, topic: u16, comes_again: bool) {
        let it = &mut self.list[usize::from(topic)];
        it.failures += 1;
        it.resends += u64::from(comes_again);
    }

    /// Whether every record of an event may go where it says, before any of them does (D-O3).
    pub(super) fn check(&mut self, stamp: Stamp, event: &ResultEvent) -> Result<(), Refusal> {
        for (number, record) in (0u32..).zip(event.records()) {
            if stamp != Stamp::Live && record.destination != Destination::Verification {
                // R10: the output obeys the stamp; an input that asks for more is broken.
                return Err(Refusal::Frame(Fault {
                    code: "Stamp".to_owned(),
                    message: format!(
                        "results with stamp {stamp:?} may go to the verification topic only, not to {:?}",
                        record.destination
                    ),
                }));
            }
            let topic = self
                .index(record.destination)
                .map_err(|r| r.of_record(number))?;
            let limit = match topic {
                DEAD_LETTER => self.limits.dead_letter,
                VERIFICATION => self.limits.verification,
                _ => self.limits.output,
            };
            let bytes = (BATCH_OVERHEAD + framed_bytes(&record)) as u64;
            if bytes > limit {
                return Err(Refusal::Event {
                    oversized: Some(bytes),
                    failed: Failed::new(
                        StoreClass::Rejected,
                        "MessageSizeTooLarge",
                        format!(
                            "a record of {bytes} bytes is above the limit of topic {}, {limit} bytes",
                            self.list[usize::from(topic)].topic
                        ),
                    )
                    .of_record(number),
                });
            }
        }
        Ok(())
    }

    fn index(&mut self, destination: Destination<'_>) -> Result<u16, Refusal> {
        let refused = |class, code, message| {
            Err(Refusal::Event {
                failed: Failed::new(class, code, message),
                oversized: None,
            })
        };
        let name = match destination {
            Destination::Output => return Ok(OUTPUT),
            Destination::DeadLetter => return Ok(DEAD_LETTER),
            Destination::Verification => return Ok(VERIFICATION),
            Destination::Topic(name) => name,
        };
        if let Some(topic) = self.named.get(name) {
            return Ok(*topic);
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty()
            || name.len() > 249
            || name == "."
            || name == ".."
            || !name.chars().all(legal)
        {
            return refused(
                StoreClass::Rejected,
                "InvalidTopic",
                format!("the app named a topic that no broker accepts: {name:?}"),
            );
        }
        if self.named.len() >= NAMED_TOPICS_MAX {
            return refused(
                StoreClass::Rejected,
                "TooManyTopics",
                format!("the app named more than {NAMED_TOPICS_MAX} different topics"),
            );
        }
        let shared: Arc<str> = Arc::from(name);
        let topic = self.add(Arc::clone(&shared));
        self.named.insert(shared, topic);
        Ok(topic)
    }

    /// The record as the producer gets it, sharing the frame's memory.
    pub(super) fn record(
        &self,
        event: &ResultEvent,
        record: &publish::Record<'_>,
        source: i32,
        ticket: impl FnOnce(u16) -> u64,
    ) -> Record {
        let share = |part: Option<&[u8]>| part.map(|part| event.share(part));
        let topic = match record.destination {
            Destination::Output => OUTPUT,
            Destination::DeadLetter => DEAD_LETTER,
            Destination::Verification => VERIFICATION,
            Destination::Topic(name) => *self
                .named
                .get(name)
                .expect("check() has seen every record of the event"),
        };
        let partitions = self.limits.verification_partitions;
        let partition = match record.partition {
            None if topic == VERIFICATION && partitions > 0 => Some(source % partitions),
            partition => partition,
        };
        Record {
            ticket: ticket(topic),
            topic: Arc::clone(&self.list[usize::from(topic)].topic),
            partition,
            timestamp_ms: record.timestamp_ms,
            key: share(record.key),
            value: share(record.value),
            headers: record
                .headers
                .clone()
                .map(|(name, value)| (event.share(name), share(value)))
                .collect(),
        }
    }
}

fn framed_bytes(record: &publish::Record<'_>) -> usize {
    let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let headers: usize = record
        .headers
        .clone()
        .map(|(name, value)| HEADER_OVERHEAD + name.len() + length(value))
        .sum();
    RECORD_OVERHEAD + length(record.key) + length(record.value) + headers
}

/// Bytes that a record takes in a batch, at most.
pub(super) fn record_bytes(record: &Record) -> usize {
    let length = |part: &Option<bytes::Bytes>| part.as_ref().map_or(0, bytes::Bytes::len);
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| HEADER_OVERHEAD + name.len() + length(value))
        .sum();
    RECORD_OVERHEAD + length(&record.key) + length(&record.value) + headers
}
