//! Events on their way, the topic-partitions they come from, and the names of their records.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::answers::FrameSlot;
use super::lanes::{EventSlot, LaneSlot};
use super::{Failed, Record};
use crate::contract::publish::{ResultEvent, StoreClass, StoreFailure};
use crate::position::Partition;

/// One event that has records to store, or in the producer.
#[derive(Debug)]
pub(super) struct Event {
    /// With the records that were not taken off yet.
    pub(super) view: ResultEvent,
    /// With all records, if there are several.
    pub(super) whole: Option<ResultEvent>,
    /// `None`: its session is over, nobody waits for an answer.
    pub(super) frame: Option<FrameSlot>,
    pub(super) lane: LaneSlot,
    pub(super) source: u32,
    /// Records in the producer.
    pub(super) open: u32,
    /// Records that were taken off `view`.
    pub(super) taken: u32,
    /// Whether it stands in its lane's queue.
    pub(super) waiting: bool,
    /// A bit per record that is stored, for the first 64.
    pub(super) stored: u64,
    /// Records that an earlier attempt has stored (D-O2).
    pub(super) skip: u64,
    pub(super) since: Duration,
    pub(super) held: Option<Box<Record>>,
    pub(super) failed: Option<Box<Failed>>,
}

impl Event {
    pub(super) fn fail(&mut self, failed: Failed) {
        self.held = None;
        if self
            .failed
            .as_ref()
            .is_none_or(|known| failed.rank() > known.rank())
        {
            self.failed = Some(Box::new(failed));
        }
    }
}

/// The records of an event that a failed attempt has stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partly {
    pub(super) digest: u64,
    pub(super) stored: u64,
}

/// The topic-partitions that the input reads.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) by_partition: HashMap<Partition, u32, BuildHasherDefault<SipHasher13>>,
    pub(super) list: Vec<Source>,
}

#[derive(Debug)]
pub(super) struct Source {
    pub(super) partition: Partition,
    pub(super) lease: Option<(i32, Duration)>,
    /// The newest generation that is gone.
    pub(super) revoked: Option<i32>,
}

impl Sources {
    pub(super) fn of(&mut self, partition: &Partition) -> u32 {
        if let Some(source) = self.by_partition.get(partition) {
            return *source;
        }
        let source = u32::try_from(self.list.len()).expect("partitions are far fewer than 2^32");
        self.by_partition.insert(partition.clone(), source);
        self.list.push(Source {
            partition: partition.clone(),
            lease: None,
            revoked: None,
        });
        source
    }

    pub(super) fn at(&mut self, source: u32) -> &mut Source {
        &mut self.list[source as usize]
    }
}

const SLOT_BITS: u32 = 28;

const RECORD_BITS: u32 = 24;

pub(super) fn ticket(slot: EventSlot, record: u32, topic: u16) -> u64 {
    assert!(
        slot < 1 << SLOT_BITS && record < 1 << RECORD_BITS,
        "credit bounds events and records"
    );
    u64::from(slot) | u64::from(record) << SLOT_BITS | u64::from(topic) << (SLOT_BITS + RECORD_BITS)
}

pub(super) fn split(ticket: u64) -> (EventSlot, u32, u16) {
    let low = |number: u64, bits: u32| {
        u32::try_from(number & ((1 << bits) - 1)).expect("fewer than 32 bits")
    };
    (
        low(ticket, SLOT_BITS),
        low(ticket >> SLOT_BITS, RECORD_BITS),
        u16::try_from(ticket >> (SLOT_BITS + RECORD_BITS)).expect("12 bits are left"),
    )
}

/// Tells answers of the app apart: an event that the app was asked again about may have others.
pub(super) fn digest(view: &ResultEvent) -> u64 {
    let mut hasher = SipHasher13::new();
    for record in view.records() {
        hasher.write(record.key.unwrap_or_default());
        hasher.write(record.value.unwrap_or_default());
        hasher.write_u64(record.value.map_or(u64::MAX, |value| value.len() as u64));
    }
    hasher.finish()
}

pub(super) fn failure(event: u32, failed: Failed) -> StoreFailure {
    StoreFailure {
        event,
        record: failed.record,
        class: failed.class,
        code: failed.code,
        message: failed.message,
    }
}

pub(super) fn held_back() -> Failed {
    Failed::new(
        StoreClass::Transient,
        "LaneHeld",
        "an earlier event of its lane was not stored and has to come first",
    )
}

pub(super) fn revoked_failure() -> Failed {
    Failed::new(
        StoreClass::Revoked,
        "Revoked",
        "the partition was revoked before the record left",
    )
}
