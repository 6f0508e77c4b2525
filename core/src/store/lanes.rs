//! Order within a lane on its way into the producer (P-3, D-L3).
//!
//! Invariant: while records of a lane are in the producer, nothing else of it enters, unless
//! it leaves with them as one train.
//! Invariant: while a lane owes an event, because it was answered as failed and will be sent
//! again, no later event of the lane enters.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::position::Position;
use crate::token::Stamp;

/// Number of an event in the store.
pub(super) type EventSlot = u32;

/// Number of a lane in the store.
pub(super) type LaneSlot = u32;

/// The pseudo-lane of events that have no order.
pub(super) const UNORDERED: LaneSlot = 0;

/// Names a lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct LaneKey {
    pub(super) lane: u64,
    pub(super) source: u32,
    pub(super) stamp: Stamp,
}

/// One lane.
#[derive(Debug)]
pub(super) struct Lane {
    key: Option<LaneKey>,
    /// Events with records that are not in the producer yet, in order.
    pub(super) waiting: VecDeque<EventSlot>,
    /// Records in the producer.
    pub(super) open: u32,
    /// Positions that were answered as failed and have to come again before any later one.
    pub(super) owed: BTreeSet<Position>,
    /// How many purges there had been when the records that are open entered.
    pub(super) purges_before: u64,
    queued: bool,
}

impl Lane {
    fn new(key: Option<LaneKey>) -> Self {
        Self {
            key,
            waiting: VecDeque::new(),
            open: 0,
            owed: BTreeSet::new(),
            purges_before: 0,
            queued: false,
        }
    }

    /// The topic-partition whose events it orders; the unordered pseudo-lane has none.
    pub(super) fn source(&self) -> Option<u32> {
        self.key.map(|key| key.source)
    }
}

/// All lanes of a session. A lane exists while it has something waiting, open or owed.
#[derive(Debug)]
pub(super) struct Lanes {
    slots: Vec<Lane>,
    free: Vec<LaneSlot>,
    by_key: HashMap<LaneKey, LaneSlot, BuildHasherDefault<Mixer>>,
    ready: VecDeque<LaneSlot>,
    broken: usize,
    /// Whether a lane waits for the acknowledgement of its records (P-3).
    trains: bool,
}

impl Lanes {
    pub(super) fn new(trains: bool) -> Self {
        Self {
            trains,
            slots: vec![Lane::new(None)],
            free: Vec::new(),
            by_key: HashMap::default(),
            ready: VecDeque::new(),
            broken: 0,
        }
    }

    pub(super) fn at(&mut self, slot: LaneSlot) -> &mut Lane {
        &mut self.slots[slot as usize]
    }

    /// The lane `key`, made if there is none.
    pub(super) fn open(&mut self, key: LaneKey) -> LaneSlot {
        if let Some(slot) = self.by_key.get(&key) {
            return *slot;
        }
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize].key = Some(key);
            slot
        } else {
            self.slots.push(Lane::new(Some(key)));
            u32::try_from(self.slots.len() - 1).expect("credit bounds the lanes far below 2^32")
        };
        self.by_key.insert(key, slot);
        slot
    }

    /// The lane `key` if it owes something.
    pub(super) fn find_broken(&self, key: LaneKey) -> Option<LaneSlot> {
        if self.broken == 0 {
            return None;
        }
        let slot = *self.by_key.get(&key)?;
        (!self.slots[slot as usize].owed.is_empty()).then_some(slot)
    }

    /// Notes that the event at `position` has to come again before any later one of its lane.
    pub(super) fn owe(&mut self, slot: LaneSlot, position: Position) {
        let lane = &mut self.slots[slot as usize];
        if lane.owed.is_empty() {
            self.broken += 1;
        }
        lane.owed.insert(position);
    }

    /// The event at `position` came again.
    pub(super) fn pay(&mut self, slot: LaneSlot, position: Position) {
        let lane = &mut self.slots[slot as usize];
        if lane.owed.remove(&position) && lane.owed.is_empty() {
            self.broken -= 1;
        }
    }

    /// Forgets what the lane owes.
    pub(super) fn forgive(&mut self, slot: LaneSlot) {
        let lane = &mut self.slots[slot as usize];
        if !lane.owed.is_empty() {
            lane.owed.clear();
            self.broken -= 1;
        }
    }

    /// Lets the lane send if it may, lets it go if it holds nothing.
    pub(super) fn settle(&mut self, slot: LaneSlot) {
        let lane = &mut self.slots[slot as usize];
        if !lane.waiting.is_empty() {
            if !lane.queued && (lane.open == 0 || slot == UNORDERED || !self.trains) {
                lane.queued = true;
                self.ready.push_back(slot);
            }
            return;
        }
        if lane.open == 0 && lane.owed.is_empty() && slot != UNORDERED {
            // `queued` may still be set: the slot stands in `ready` once more at most, and a
            // lane without waiting events is passed over there.
            if let Some(key) = lane.key.take() {
                self.by_key.remove(&key);
                self.free.push(slot);
            }
        }
    }

    /// The next lane that may send.
    pub(super) fn next_ready(&mut self) -> Option<LaneSlot> {
        while let Some(slot) = self.ready.pop_front() {
            let lane = &mut self.slots[slot as usize];
            lane.queued = false;
            if !lane.waiting.is_empty() && (lane.open == 0 || slot == UNORDERED || !self.trains) {
                return Some(slot);
            }
        }
        None
    }

    /// Lanes that hold something.
    #[cfg(test)]
    pub(super) fn living(&self) -> usize {
        self.by_key.len()
    }

    /// Every lane of the topic-partitions that `of` picks, and the pseudo-lane.
    pub(super) fn of_sources(&self, of: impl Fn(u32) -> bool) -> Vec<LaneSlot> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, lane)| lane.key.is_none_or(|key| of(key.source)))
            .map(|(slot, _)| slot)
            .collect()
    }
}

/// Lanes come as seeded hashes already: spreading them over the table is all that is left.
#[derive(Debug, Default)]
pub(super) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number.cast_unsigned() as u64);
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}
