//! Order by key, by partition or none: which events of one partition may be sent to the app now.
//!
//! Invariant: at most one event of a lane, or one batch in lane order, is at the app (D-L2).
//! Invariant: an event that comes back for another attempt stays in front of its lane, so a
//! retry blocks only its lane and reorders nothing (D-L2, D-L4).

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use siphasher::sip::SipHasher13;

use crate::ledger::Number;

/// What keeps its order (`delivery.ordering`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ordering {
    /// Events of one key; events without a key have no order (D-L1).
    Key,
    /// All events of the partition.
    Partition,
    /// None.
    None,
}

/// Names a lane of a partition; `NONE` for events that have no order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LaneId(u64);

impl LaneId {
    /// No lane.
    pub const NONE: Self = Self(0);

    /// The lane of an event. Two keys may share a lane: that costs speed, never order.
    pub fn of(ordering: Ordering, seed: u64, key: Option<&[u8]>) -> Self {
        match (ordering, key) {
            (Ordering::None, _) | (Ordering::Key, None) => Self::NONE,
            (Ordering::Partition, _) => Self(1),
            (Ordering::Key, Some(key)) => {
                let mut hasher = SipHasher13::new_with_keys(seed, seed.rotate_left(32));
                hasher.write(key);
                Self(hasher.finish().max(1))
            }
        }
    }

    /// As it goes into a publish frame.
    pub fn to_wire(self) -> u64 {
        self.0
    }
}

/// Names a lane for longer than a process lives: its hash has no seed (E1, key `l`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LaneHash(pub u64);

impl LaneHash {
    /// The lane of an event; `None` if it has no order.
    pub fn of(ordering: Ordering, key: Option<&[u8]>) -> Option<Self> {
        match (ordering, key) {
            (Ordering::None, _) | (Ordering::Key, None) => None,
            (Ordering::Partition, _) => Some(Self(1)),
            (Ordering::Key, Some(key)) => {
                let mut hasher = SipHasher13::new();
                hasher.write(key);
                Some(Self(hasher.finish()))
            }
        }
    }
}

/// The lanes of one partition.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: HashMap<u64, Lane, BuildHasherDefault<PassThrough>>,
    ready: VecDeque<Ready>,
    events_ready: usize,
}

#[derive(Debug, Default)]
struct Lane {
    /// Waiting events, in order.
    queue: VecDeque<Number>,
    /// An event of the lane is at the app or waits for its next attempt.
    busy: bool,
}

#[derive(Clone, Copy, Debug)]
enum Ready {
    Lane(u64),
    Alone(Number),
}

impl Lanes {
    /// No events yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an event behind all earlier ones of its lane.
    pub fn push(&mut self, lane: LaneId, number: Number) {
        if lane == LaneId::NONE {
            self.ready.push_back(Ready::Alone(number));
            self.events_ready += 1;
            return;
        }
        let entry = self.lanes.entry(lane.0).or_default();
        entry.queue.push_back(number);
        if !entry.busy && entry.queue.len() == 1 {
            self.ready.push_back(Ready::Lane(lane.0));
            self.events_ready += 1;
        }
    }

    /// Takes the next event that may be sent; its lane is busy until [`Self::release`].
    pub fn take(&mut self) -> Option<(LaneId, Number)> {
        let ready = self.ready.pop_front()?;
        self.events_ready -= 1;
        match ready {
            Ready::Alone(number) => Some((LaneId::NONE, number)),
            Ready::Lane(id) => {
                let lane = self.lanes.get_mut(&id).expect("a ready lane exists");
                lane.busy = true;
                let number = lane.queue.pop_front().expect("a ready lane has an event");
                Some((LaneId(id), number))
            }
        }
    }

    /// Lets the event that ranks first, of those that may be taken, be the next one. Looks at all
    /// of them.
    pub fn prefer<R: Ord>(&mut self, rank: impl Fn(Number) -> R) -> Option<Number> {
        let number = |ready: &Ready| match ready {
            Ready::Alone(number) => *number,
            Ready::Lane(id) => *self.lanes[id]
                .queue
                .front()
                .expect("a ready lane has an event"),
        };
        let numbers = self.ready.iter().map(number).enumerate();
        let (index, number) = numbers.min_by_key(|(_, number)| rank(*number))?;
        let ready = self.ready.remove(index).expect("it was just there");
        self.ready.push_front(ready);
        Some(number)
    }

    /// Takes one more event of a lane that this batch has already (`batch.maxPerLane`).
    pub fn take_more(&mut self, lane: LaneId) -> Option<Number> {
        self.lanes.get_mut(&lane.0)?.queue.pop_front()
    }

    /// The lane's event is answered: the next one may go.
    pub fn release(&mut self, lane: LaneId) {
        if lane == LaneId::NONE {
            return;
        }
        let entry = self.lanes.get_mut(&lane.0).expect("a busy lane exists");
        entry.busy = false;
        if entry.queue.is_empty() {
            self.lanes.remove(&lane.0);
        } else {
            self.ready.push_back(Ready::Lane(lane.0));
            self.events_ready += 1;
        }
    }

    /// An event that was taken goes back in front of its lane and may be taken again at once.
    /// Of several events of one lane the last one goes first.
    pub fn put_back(&mut self, lane: LaneId, number: Number) {
        if lane == LaneId::NONE {
            self.ready.push_front(Ready::Alone(number));
            self.events_ready += 1;
            return;
        }
        let entry = self.lanes.entry(lane.0).or_default();
        entry.queue.push_front(number);
        if entry.busy || entry.queue.len() == 1 {
            entry.busy = false;
            self.ready.push_front(Ready::Lane(lane.0));
            self.events_ready += 1;
        }
    }

    /// An event that was taken goes back to the front of its lane, which stays busy.
    pub fn queue_front(&mut self, lane: LaneId, number: Number) {
        let entry = self.lanes.get_mut(&lane.0).expect("a busy lane exists");
        assert!(entry.busy, "only a busy lane can wait");
        entry.queue.push_front(number);
    }

    /// How many events could be taken now, one per lane.
    pub fn ready(&self) -> usize {
        self.events_ready
    }

    /// Share of the waiting events that stand in the fullest lane, 0 to 1, and how many wait.
    pub fn hottest(&self) -> (f64, usize) {
        let waiting: usize = self.lanes.values().map(|lane| lane.queue.len()).sum();
        let fullest = self.lanes.values().map(|lane| lane.queue.len()).max();
        match fullest {
            Some(fullest) if waiting > 0 => (fullest as f64 / waiting as f64, waiting),
            _ => (0.0, waiting),
        }
    }
}

/// Lane ids are hashes already.
#[derive(Default)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("lane ids are u64")
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LaneId = LaneId(7);
    const B: LaneId = LaneId(8);

    #[test]
    fn d_l1_lanes_follow_the_ordering() {
        let of = |ordering, key| LaneId::of(ordering, 1, key);
        assert_eq!(of(Ordering::Key, None), LaneId::NONE);
        assert_ne!(of(Ordering::Key, Some(b"")), LaneId::NONE);
        assert_eq!(of(Ordering::Key, Some(b"x")), of(Ordering::Key, Some(b"x")));
        assert_ne!(of(Ordering::Key, Some(b"x")), of(Ordering::Key, Some(b"y")));
        assert_eq!(
            of(Ordering::Partition, None),
            of(Ordering::Partition, Some(b"x"))
        );
        assert_eq!(of(Ordering::None, Some(b"x")), LaneId::NONE);
    }

    #[test]
    fn d_l2_one_event_of_a_lane_at_a_time_and_others_pass() {
        let mut lanes = Lanes::new();
        lanes.push(A, 0);
        lanes.push(A, 1);
        lanes.push(B, 2);
        lanes.push(LaneId::NONE, 3);
        assert_eq!(lanes.ready(), 3);
        assert_eq!(lanes.take(), Some((A, 0)));
        assert_eq!(lanes.take(), Some((B, 2)));
        assert_eq!(lanes.take(), Some((LaneId::NONE, 3)));
        assert_eq!(lanes.take(), None);
        lanes.release(A);
        assert_eq!(lanes.take(), Some((A, 1)));
    }

    #[test]
    fn d_l2_a_retry_stays_in_front_of_its_lane() {
        let mut lanes = Lanes::new();
        lanes.push(A, 0);
        lanes.push(A, 1);
        lanes.push(A, 2);
        assert_eq!(lanes.take(), Some((A, 0)));
        assert_eq!(lanes.take_more(A), Some(1));
        lanes.put_back(A, 1);
        lanes.put_back(A, 0);
        assert_eq!(lanes.ready(), 1);
        assert_eq!(lanes.take(), Some((A, 0)));
        assert_eq!(lanes.take(), None);
        lanes.release(A);
        assert_eq!(lanes.take(), Some((A, 1)));
        lanes.release(A);
        assert_eq!(lanes.take(), Some((A, 2)));
        lanes.release(A);
        assert!(lanes.lanes.is_empty(), "idle lanes cost nothing");
    }
}
