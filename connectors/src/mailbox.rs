//! What a poll thread has for its driver, and the bell that wakes the poll thread.
//!
//! Control happenings keep their order and are never held up by records. Records wait per
//! partition, so that a pause, a seek or a loss takes effect on the very next `next`.
//!
//! Invariant: no record of a paused, sought or released partition is handed over.
//! Invariant: a partition holds at most [`LANE_BYTES_MAX`] or two fetches, all partitions that
//! are not paused at most [`WAITING_BYTES_MAX`]; control happenings are bounded by the protocol
//! (one commit, one rebalance, one answer per question).

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_core::event::Event;
use millrace_core::intake::io::Fetched;
use millrace_core::limits::{FETCH_BYTES_MAX, FETCH_RECORDS_MAX, SOURCE_HAPPENINGS_QUEUED_MAX};
use millrace_core::position::Partition;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Happening;

/// Bytes of one partition that wait for the driver.
const LANE_BYTES_MAX: usize = FETCH_BYTES_MAX;

/// Bytes of all partitions that are not paused.
const WAITING_BYTES_MAX: usize = 8 * FETCH_BYTES_MAX;

/// Wakes a thread. A ring before the wait is not lost.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    waiting: Condvar,
}

impl Bell {
    /// Wakes the thread that waits, or the next one that will.
    pub(crate) fn ring(&self) {
        let mut rung = lock(&self.rung);
        if !*rung {
            *rung = true;
            self.waiting.notify_one();
        }
    }

    /// Waits for a ring, at most this long.
    pub(crate) fn wait(&self, at_most: Duration) {
        let rung = lock(&self.rung);
        let (mut rung, _) = self
            .waiting
            .wait_timeout_while(rung, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One fetch's records of one partition, or what comes behind the last of them.
#[derive(Debug)]
enum Item {
    Events {
        leader_epoch: Option<i32>,
        events: Vec<Event>,
        bytes: usize,
    },
    /// Boxed happening that must not overtake the records before it.
    Behind(Box<Happening>),
}

/// One stay of a partition with us. An answer to a question from an earlier stay must not reach
/// the driver: others may have committed in between (R2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tenure(u64);

#[derive(Debug, Default)]
struct Lane {
    tenure: Option<Tenure>,
    items: VecDeque<Item>,
    bytes: usize,
    paused_since: Option<Instant>,
    /// Seeks that the poll thread has not done yet.
    seeks: u32,
}

impl Lane {
    fn open(&self) -> bool {
        self.paused_since.is_none() && self.seeks == 0
    }

    fn full(&self) -> bool {
        self.bytes >= LANE_BYTES_MAX || self.items.len() >= 2
    }
}

#[derive(Debug, Default)]
struct Inner {
    control: VecDeque<Happening>,
    lanes: HashMap<Partition, Lane>,
    /// Partitions with items, each once, whose turn comes from the front.
    turns: VecDeque<Partition>,
    tenures: u64,
    /// Until the poll thread has destroyed the client, no record is handed over.
    rejoining: bool,
    /// The poll thread found records without room for them.
    starved: bool,
}

/// The state of a partition as the driver wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// Read on.
    Read,
    /// Records wait already; read when there is room again.
    Full,
    /// Paused since then.
    Paused(Instant),
    /// A seek comes first.
    Seek,
}

/// What waits for the driver of a source.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    filled: Notify,
    pub(crate) bell: Bell,
}

impl Mailbox {
    /// The next happening. Cancel-safe: nothing is taken before it is returned.
    pub(crate) async fn next(&self) -> Happening {
        loop {
            if let Some(happening) = self.take() {
                return happening;
            }
            self.filled().await;
        }
    }

    /// Ends when something may have been added since the last time.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Makes [`Mailbox::filled`] end.
    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    /// The next happening, if there is one.
    pub(crate) fn take(&self) -> Option<Happening> {
        let mut inner = lock(&self.inner);
        if let Some(happening) = inner.control.pop_front() {
            return Some(happening);
        }
        if inner.rejoining {
            return None;
        }
        let taken = inner.take_fetched();
        if taken.is_some() && inner.starved {
            inner.starved = false;
            drop(inner);
            self.bell.ring();
        }
        taken
    }

    /// Adds a control happening.
    pub(crate) fn push(&self, happening: Happening) {
        lock(&self.inner).control.push_back(happening);
        self.filled.notify_one();
    }

    /// Adds a control happening unless the same kind waits already.
    pub(crate) fn push_once(&self, happening: Happening) {
        let mut inner = lock(&self.inner);
        let kind = std::mem::discriminant(&happening);
        inner
            .control
            .retain(|waiting| std::mem::discriminant(waiting) != kind);
        inner.control.push_back(happening);
        drop(inner);
        self.filled.notify_one();
    }

    /// Adds records of partitions; those that were given away meanwhile are dropped.
    pub(crate) fn push_fetched(&self, fetched: Vec<Fetched>) {
        let mut inner = lock(&self.inner);
        for Fetched {
            partition,
            leader_epoch,
            events,
        } in fetched
        {
            let bytes = events.iter().map(Event::bytes).sum();
            let item = Item::Events {
                leader_epoch,
                events,
                bytes,
            };
            inner.add(partition, item, bytes);
        }
        drop(inner);
        self.filled.notify_one();
    }

    /// Adds a happening behind the records of its partition, unless that was given away since.
    pub(crate) fn push_behind(&self, partition: Partition, tenure: Tenure, happening: Happening) {
        let mut inner = lock(&self.inner);
        if inner.tenure(&partition) == Some(tenure) {
            inner.add(partition, Item::Behind(Box::new(happening)), 0);
            drop(inner);
            self.filled.notify_one();
        }
    }

    /// Adds a control happening about a partition, unless that was given away since.
    pub(crate) fn push_about(&self, partition: &Partition, tenure: Tenure, happening: Happening) {
        let mut inner = lock(&self.inner);
        if inner.tenure(partition) == Some(tenure) {
            inner.control.push_back(happening);
            drop(inner);
            self.filled.notify_one();
        }
    }

    /// A partition was granted: records may come.
    pub(crate) fn open(&self, partition: Partition) {
        let mut inner = lock(&self.inner);
        inner.tenures += 1;
        let tenure = Tenure(inner.tenures);
        inner.lanes.entry(partition).or_default().tenure = Some(tenure);
    }

    /// The tenure of a partition that is ours.
    pub(crate) fn tenure(&self, partition: &Partition) -> Option<Tenure> {
        lock(&self.inner).tenure(partition)
    }

    /// The partitions that are ours.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let inner = lock(&self.inner);
        let ours = |(_, lane): &(&Partition, &Lane)| lane.tenure.is_some();
        let partitions = inner.lanes.iter().filter(ours);
        partitions.map(|(partition, _)| partition.clone()).collect()
    }

    /// Partitions are gone, and their records with them.
    pub(crate) fn drop_lanes(&self, partitions: &[Partition]) {
        let mut inner = lock(&self.inner);
        for partition in partitions {
            inner.lanes.remove(partition);
            inner.turns.retain(|waiting| waiting != partition);
        }
    }

    /// Nothing is handed over until [`Mailbox::rejoined`].
    pub(crate) fn rejoin(&self) {
        lock(&self.inner).rejoining = true;
    }

    /// All partitions are gone; tells the driver.
    pub(crate) fn rejoined(&self) {
        let mut inner = lock(&self.inner);
        inner.lanes.clear();
        inner.turns.clear();
        inner.rejoining = false;
        inner.control.push_back(Happening::Rejoined);
        drop(inner);
        self.filled.notify_one();
    }

    /// Hands over no more records of a partition.
    pub(crate) fn pause(&self, partition: Partition) {
        let mut inner = lock(&self.inner);
        let lane = inner.lanes.entry(partition).or_default();
        lane.paused_since.get_or_insert_with(Instant::now);
    }

    /// Hands them over again.
    pub(crate) fn resume(&self, partition: &Partition) {
        let mut inner = lock(&self.inner);
        if let Some(lane) = inner.lanes.get_mut(partition) {
            lane.paused_since = None;
        }
        drop(inner);
        self.filled.notify_one();
        self.bell.ring();
    }

    /// Drops a partition's records and hands over none until [`Mailbox::sought`].
    pub(crate) fn seek(&self, partition: Partition) {
        let mut inner = lock(&self.inner);
        let lane = inner.lanes.entry(partition).or_default();
        lane.items.clear();
        lane.bytes = 0;
        lane.seeks += 1;
    }

    /// One seek is done: records from now on are of the new position.
    pub(crate) fn sought(&self, partition: &Partition) {
        if let Some(lane) = lock(&self.inner).lanes.get_mut(partition) {
            lane.items.clear();
            lane.bytes = 0;
            lane.seeks = lane.seeks.saturating_sub(1);
        }
    }

    /// What the driver wants of each of these partitions now.
    pub(crate) fn wishes<'a>(&self, partitions: impl Iterator<Item = &'a Partition>) -> Vec<Wish> {
        let mut inner = lock(&self.inner);
        let (mut bytes, mut fetches) = (0, 0);
        for lane in inner.lanes.values().filter(|lane| lane.open()) {
            bytes += lane.bytes;
            fetches += lane.items.len();
        }
        let crowded = bytes >= WAITING_BYTES_MAX || fetches >= SOURCE_HAPPENINGS_QUEUED_MAX;
        let mut starved = false;
        let wishes = partitions
            .map(|partition| {
                let Some(lane) = inner.lanes.get(partition) else {
                    return Wish::Full;
                };
                if lane.seeks > 0 {
                    Wish::Seek
                } else if let Some(since) = lane.paused_since {
                    Wish::Paused(since)
                } else if crowded || lane.full() {
                    starved = true;
                    Wish::Full
                } else {
                    Wish::Read
                }
            })
            .collect();
        inner.starved |= starved;
        wishes
    }
}

impl Inner {
    fn tenure(&self, partition: &Partition) -> Option<Tenure> {
        self.lanes.get(partition)?.tenure
    }

    fn add(&mut self, partition: Partition, item: Item, bytes: usize) {
        let Some(lane) = self.lanes.get_mut(&partition) else {
            return;
        };
        lane.items.push_back(item);
        lane.bytes += bytes;
        if !self.turns.contains(&partition) {
            self.turns.push_back(partition);
        }
    }

    /// One turn around the partitions: the first happening behind records, or records of as
    /// many partitions as one fetch may hold.
    fn take_fetched(&mut self) -> Option<Happening> {
        let mut fetched = Vec::new();
        let (mut records, mut bytes) = (0, 0);
        for _ in 0..self.turns.len() {
            let partition = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&partition) else {
                continue;
            };
            if lane.items.is_empty() {
                continue;
            }
            if !lane.open() {
                self.turns.push_back(partition);
                continue;
            }
            match lane.items.front() {
                Some(Item::Behind(_)) if !fetched.is_empty() => {
                    self.turns.push_front(partition);
                    break;
                }
                Some(Item::Events {
                    events,
                    bytes: more,
                    ..
                }) if !fetched.is_empty()
                    && (records + events.len() > FETCH_RECORDS_MAX
                        || bytes + more > FETCH_BYTES_MAX) =>
                {
                    self.turns.push_front(partition);
                    break;
                }
                Some(Item::Behind(_) | Item::Events { .. }) | None => {}
            }
            let item = lane.items.pop_front();
            if !lane.items.is_empty() {
                self.turns.push_back(partition.clone());
            }
            match item {
                Some(Item::Events {
                    leader_epoch,
                    events,
                    bytes: more,
                }) => {
                    lane.bytes -= more;
                    records += events.len();
                    bytes += more;
                    fetched.push(Fetched {
                        partition,
                        leader_epoch,
                        events,
                    });
                }
                Some(Item::Behind(happening)) => return Some(*happening),
                None => {}
            }
        }
        (!fetched.is_empty()).then_some(Happening::Fetched(fetched))
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::event::{EventsBuilder, Timestamp, TimestampKind};
    use millrace_core::position::Position;

    use super::*;

    fn events(from: i64, count: i64) -> Vec<Event> {
        let mut builder = EventsBuilder::default();
        let at = Timestamp {
            ms: 0,
            kind: TimestampKind::None,
        };
        for offset in from..from + count {
            builder.push(Position::new(offset), at, None, Some(b"value"), []);
        }
        builder.finish()
    }

    fn partition(number: i32) -> Partition {
        Partition::new("t", number)
    }

    fn fetched(partition: Partition, events: Vec<Event>) -> Fetched {
        Fetched {
            partition,
            leader_epoch: None,
            events,
        }
    }

    fn mailbox(partitions: i32) -> Mailbox {
        let mailbox = Mailbox::default();
        for number in 0..partitions {
            mailbox.open(partition(number));
        }
        mailbox
    }

    fn wish(mailbox: &Mailbox, number: i32) -> Wish {
        mailbox.wishes([&partition(number)].into_iter())[0]
    }

    fn taken(mailbox: &Mailbox) -> Vec<(i32, i64, usize)> {
        match mailbox.take() {
            Some(Happening::Fetched(fetched)) => fetched
                .iter()
                .map(|f| {
                    let first = f.events[0].position().offset();
                    (f.partition.number(), first, f.events.len())
                })
                .collect(),
            None => Vec::new(),
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn d_c1_a_paused_partition_hands_over_nothing_and_loses_nothing() {
        let mailbox = mailbox(2);
        mailbox.push_fetched(vec![
            fetched(partition(0), events(0, 3)),
            fetched(partition(1), events(5, 2)),
        ]);
        mailbox.pause(partition(0));
        assert_eq!(taken(&mailbox), [(1, 5, 2)]);
        assert_eq!(taken(&mailbox), []);
        mailbox.resume(&partition(0));
        assert_eq!(taken(&mailbox), [(0, 0, 3)]);
    }

    #[test]
    fn a_seek_drops_what_was_fetched_before_it_and_what_comes_until_it_is_done() {
        let mailbox = mailbox(1);
        mailbox.push_fetched(vec![fetched(partition(0), events(0, 3))]);
        mailbox.seek(partition(0));
        mailbox.push_fetched(vec![fetched(partition(0), events(3, 3))]);
        assert_eq!(taken(&mailbox), []);
        assert_eq!(wish(&mailbox, 0), Wish::Seek);
        mailbox.sought(&partition(0));
        mailbox.push_fetched(vec![fetched(partition(0), events(100, 1))]);
        assert_eq!(taken(&mailbox), [(0, 100, 1)]);
    }

    #[test]
    fn r4b_a_lost_partition_hands_over_nothing_more() {
        let mailbox = mailbox(2);
        mailbox.push_fetched(vec![
            fetched(partition(0), events(0, 3)),
            fetched(partition(1), events(5, 2)),
        ]);
        mailbox.drop_lanes(&[partition(0)]);
        mailbox.push(Happening::Lost(vec![partition(0)]));
        mailbox.push_fetched(vec![fetched(partition(0), events(3, 3))]);
        assert!(matches!(mailbox.take(), Some(Happening::Lost(_))));
        assert_eq!(taken(&mailbox), [(1, 5, 2)]);
        assert_eq!(taken(&mailbox), []);
    }

    #[test]
    fn r2_an_answer_from_an_earlier_stay_is_dropped() {
        let mailbox = mailbox(1);
        let earlier = mailbox.tenure(&partition(0)).unwrap();
        mailbox.drop_lanes(&[partition(0)]);
        mailbox.open(partition(0));
        let answer = || Happening::TokensRead {
            partition: partition(0),
            read: Err(String::new()),
        };
        mailbox.push_about(&partition(0), earlier, answer());
        mailbox.push_behind(partition(0), earlier, answer());
        assert!(mailbox.take().is_none());
        let now = mailbox.tenure(&partition(0)).unwrap();
        mailbox.push_about(&partition(0), now, answer());
        assert!(mailbox.take().is_some());
    }

    #[test]
    fn one_fetch_holds_a_bounded_number_of_records() {
        let mailbox = mailbox(3);
        let many = i64::try_from(FETCH_RECORDS_MAX).unwrap();
        mailbox.push_fetched(vec![
            fetched(partition(0), events(0, many)),
            fetched(partition(1), events(0, 1)),
            fetched(partition(2), events(0, 2)),
        ]);
        assert_eq!(taken(&mailbox), [(0, 0, FETCH_RECORDS_MAX)]);
        assert_eq!(taken(&mailbox), [(1, 0, 1), (2, 0, 2)]);
    }

    #[test]
    fn d_g10_out_of_range_comes_behind_the_records_before_it() {
        let mailbox = mailbox(1);
        mailbox.push_fetched(vec![fetched(partition(0), events(0, 3))]);
        let out = Happening::OutOfRange {
            partition: partition(0),
            log_start: Position::new(9),
            log_end: Position::new(10),
        };
        let tenure = mailbox.tenure(&partition(0)).unwrap();
        mailbox.push_behind(partition(0), tenure, out);
        assert_eq!(taken(&mailbox), [(0, 0, 3)]);
        assert!(matches!(mailbox.take(), Some(Happening::OutOfRange { .. })));
    }

    #[test]
    fn a_full_partition_is_not_read_and_a_paused_one_takes_no_room_from_others() {
        let mailbox = mailbox(2);
        for from in 0..2 {
            mailbox.push_fetched(vec![fetched(partition(0), events(from, 1))]);
        }
        assert_eq!(wish(&mailbox, 0), Wish::Full);
        assert_eq!(wish(&mailbox, 1), Wish::Read);
        taken(&mailbox);
        assert_eq!(wish(&mailbox, 0), Wish::Read);
    }

    #[test]
    fn r4c_nothing_is_handed_over_between_a_rejoin_and_its_end_but_control() {
        let mailbox = mailbox(1);
        mailbox.push_fetched(vec![fetched(partition(0), events(0, 3))]);
        mailbox.rejoin();
        assert_eq!(taken(&mailbox), []);
        mailbox.rejoined();
        assert!(matches!(mailbox.take(), Some(Happening::Rejoined)));
        assert_eq!(taken(&mailbox), []);
    }
}
