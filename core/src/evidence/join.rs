//! Pairs what two releases made of the same event, from one topic that both write (J1).
//!
//! The first copy of each side counts. A side waits in a room of its partition until the other
//! comes; if the room is full, the event at the lowest position leaves unpaired. Green's answer
//! waits longer where Green is asked again (J4): which events these are, everybody can compute.
//!
//! Invariant: what comes out depends, for each source partition, only on the order of that
//! partition's own records. All of them stand in one partition of the topic, so a replay from the
//! start gives the same pairs and counts.
//! Invariant: as long as nobody had to leave, even that order does not matter.
//! Invariant: no event is paired twice.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::record::{Answer, Record, Source};
use crate::limits::{
    EVIDENCE_PARTITIONS_MAX, EVIDENCE_WAITING_BYTES_MAX, EVIDENCE_WAITING_EVENTS_MAX,
};
use crate::position::Partition;
use crate::token::{ReleaseId, Stamp};

mod room;

use room::Room;

/// Whether Green is asked again about an event, so that its noise is known (J4): a fixed share of
/// all events, chosen by where they stand. The input asks by it, the join waits by it.
pub fn is_asked_again(source: &Source, share: f64) -> bool {
    let mut hash = SipHasher13::new_with_keys(0x6d69_6c6c, 0x7261_6365);
    hash.write(source.partition.topic().as_bytes());
    hash.write_i32(source.partition.number().to_be());
    hash.write_i64(source.position.offset().to_be());
    #[expect(
        clippy::cast_precision_loss,
        reason = "a share of all events; its last digits do not matter"
    )]
    let part = hash.finish() as f64 / (u64::MAX as f64);
    part < share || share >= 1.0
}

/// Which answer of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Green,
    Blue,
    Baseline,
}

/// How much room the unpaired events of one partition have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoomSize {
    /// Events.
    pub events: usize,
    /// Bytes of their answers. One larger event may wait alone.
    pub bytes: usize,
}

impl RoomSize {
    /// An even share for each of so many source partitions.
    pub fn for_partitions(partitions: usize) -> Self {
        Self {
            events: EVIDENCE_WAITING_EVENTS_MAX,
            bytes: EVIDENCE_WAITING_BYTES_MAX / partitions.clamp(1, EVIDENCE_PARTITIONS_MAX),
        }
    }
}

/// What was seen and did not become evidence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Events of which both answers came.
    pub paired: u64,
    /// Events of which Green's answer and its second one came.
    pub asked_again: u64,
    /// Copies of what was there before.
    pub repeats: u64,
    /// Records of an event that had left, or that is older than any that is remembered.
    pub late: u64,
    /// Events that left the room with Green's answer only.
    pub left_with_green: u64,
    /// Events that left the room with Blue's answer only.
    pub left_with_blue: u64,
    /// Events that left the room without Green's second answer, or with nothing else.
    pub left_without_baseline: u64,
    /// Events that wait for Blue's answer.
    pub waiting_for_blue: u64,
    /// Events that wait for Green's answer.
    pub waiting_for_green: u64,
    /// Positions between the lowest and the highest of which no record came. Logs have gaps.
    pub gaps: u64,
    /// Records of other releases or in other modes, such as Blue's own live ones.
    pub foreign: u64,
    /// Second answers to events that Green was not to be asked again.
    pub unasked: u64,
    /// Records of partitions beyond `EVIDENCE_PARTITIONS_MAX`.
    pub beyond: u64,
}

/// What a record completed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Completed {
    /// Green's answer and Blue's.
    pub pair: Option<(Arc<Answer>, Arc<Answer>)>,
    /// Green's answer and its second one.
    pub noise: Option<(Arc<Answer>, Arc<Answer>)>,
}

/// Pairs the records of a candidate and of the release that it shadows.
#[derive(Clone, Debug)]
pub struct Join {
    green: ReleaseId,
    blue: ReleaseId,
    asked_again: f64,
    size: RoomSize,
    rooms: BTreeMap<Partition, Room>,
    foreign: u64,
    unasked: u64,
    beyond: u64,
}

impl Join {
    /// Of these two releases; `asked_again` is `compare.noiseBaseline`.
    pub fn new(green: ReleaseId, blue: ReleaseId, asked_again: f64, size: RoomSize) -> Self {
        Self {
            green,
            blue,
            asked_again,
            size,
            rooms: BTreeMap::new(),
            foreign: 0,
            unasked: 0,
            beyond: 0,
        }
    }

    /// Takes the next record of the topic.
    pub fn take(&mut self, record: Record) -> Completed {
        let side = match record.mode {
            Stamp::Live if record.release == self.green => Side::Green,
            Stamp::Shadow if record.release == self.blue => Side::Blue,
            Stamp::Baseline if record.release == self.green => Side::Baseline,
            Stamp::Live | Stamp::Shadow | Stamp::Baseline => {
                self.foreign += 1;
                return Completed::default();
            }
        };
        let again = is_asked_again(&record.source, self.asked_again);
        if side == Side::Baseline && !again {
            self.unasked += 1;
            return Completed::default();
        }
        let Source {
            partition,
            position,
        } = record.source;
        if self.rooms.len() >= EVIDENCE_PARTITIONS_MAX && !self.rooms.contains_key(&partition) {
            self.beyond += 1;
            return Completed::default();
        }
        let size = self.size;
        let room = self.rooms.entry(partition);
        let room = room.or_insert_with(|| Room::new(position));
        room.take(size, position, side, again, Arc::new(record.answer))
    }

    /// Partitions of which at least one event was paired.
    pub fn partitions(&self) -> usize {
        self.rooms
            .values()
            .filter(|room| room.counts().paired > 0)
            .count()
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts {
            foreign: self.foreign,
            unasked: self.unasked,
            beyond: self.beyond,
            ..Counts::default()
        };
        for counts in self.rooms.values().map(Room::counts) {
            sum.paired += counts.paired;
            sum.asked_again += counts.asked_again;
            sum.repeats += counts.repeats;
            sum.late += counts.late;
            sum.left_with_green += counts.left_with_green;
            sum.left_with_blue += counts.left_with_blue;
            sum.left_without_baseline += counts.left_without_baseline;
            sum.waiting_for_blue += counts.waiting_for_blue;
            sum.waiting_for_green += counts.waiting_for_green;
            sum.gaps += counts.gaps;
        }
        sum
    }
}

#[cfg(test)]
mod tests;
