//! What really became of each event, whoever believes what.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::fate::OnExhausted;
use millrace_core::identity::ResultId;
use millrace_core::intake::Settings;
use millrace_core::lanes::Ordering;
use millrace_core::position::Position;

use super::{Lawful, require};
use crate::world::log::{Log, Nature};
use crate::world::output::Place;

/// Why an event may be dead-lettered.
pub(super) const TRANSIENT: u8 = 1;
pub(super) const PERMANENT: u8 = 2;
pub(super) const LOST: u8 = 4;
pub(super) const REJECTED: u8 = 8;
pub(super) const SKIPPED: u8 = 16;

/// The event that a stored record answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    pub(crate) partition: usize,
    pub(crate) index: usize,
    /// Which of its results.
    pub(crate) part: usize,
    pub(crate) dead: bool,
}

#[derive(Debug)]
pub(super) struct Truth {
    calm: bool,
    /// Exhausted events are dropped by policy.
    drops: bool,
    events: Vec<Vec<Fate>>,
    /// The last event of a lane that was delivered to a place for the first time.
    order: BTreeMap<(usize, u32, Place), usize>,
    /// Exactly-once: the events of a lane in one place, in the order of the log.
    log: BTreeMap<(usize, u32, Place), BTreeMap<u64, usize>>,
    /// All events below this index are finished, by partition.
    finished: Vec<usize>,
    /// Partitions whose log was cut: they halt until somebody decides.
    cut: BTreeSet<usize>,
    repeats: u64,
}

#[derive(Debug)]
struct Fate {
    position: Position,
    lane: u32,
    /// How often each of its results was stored.
    stored: Vec<u32>,
    dead: u32,
    filtered: bool,
    causes: u8,
    oversized: bool,
    /// Push mode: a call for it ended badly, perhaps after a post.
    asked_again: bool,
}

impl Fate {
    /// How often this record was counted.
    fn count(&mut self, source: &Source) -> &mut u32 {
        if source.dead {
            &mut self.dead
        } else {
            &mut self.stored[source.part]
        }
    }

    fn is_finished(&self, drops: bool) -> bool {
        let dropped = drops && self.causes & (TRANSIENT | LOST) != 0;
        self.dead > 0 || self.filtered || dropped || self.stored.iter().all(|n| *n > 0)
    }
}

impl Truth {
    pub(super) fn new(calm: bool, settings: &Settings, logs: &[Log]) -> Self {
        let mut keys: BTreeMap<&[u8], u32> = BTreeMap::new();
        let mut events = Vec::new();
        for log in logs {
            let mut fates = Vec::new();
            for record in &log.records {
                let lane = match (settings.ordering, &record.key) {
                    (Ordering::None, _) | (Ordering::Key, None) => 0,
                    (Ordering::Partition, _) => 1,
                    (Ordering::Key, Some(key)) => {
                        let next = u32::try_from(keys.len() + 1).expect("few keys");
                        *keys.entry(key).or_insert(next)
                    }
                };
                let parts = match record.nature {
                    Nature::Many(n) => usize::from(n),
                    _ => 1,
                };
                fates.push(Fate {
                    position: record.position,
                    lane,
                    stored: vec![0; parts],
                    dead: 0,
                    filtered: false,
                    causes: 0,
                    oversized: record.nature == Nature::Oversized,
                    asked_again: false,
                });
            }
            events.push(fates);
        }
        let drops = matches!(settings.retry.on_exhausted, OnExhausted::Drop { .. });
        let finished = vec![0; logs.len()];
        Self {
            calm,
            drops,
            events,
            order: BTreeMap::new(),
            log: BTreeMap::new(),
            finished,
            cut: BTreeSet::new(),
            repeats: 0,
        }
    }

    /// The lane of an event; 0 is none.
    pub(super) fn lane(&self, partition: usize, index: usize) -> u32 {
        self.events[partition][index].lane
    }

    pub(super) fn filtered(&mut self, partition: usize, index: usize) {
        self.events[partition][index].filtered = true;
    }

    pub(super) fn failed(&mut self, partition: usize, index: usize, cause: u8) {
        self.events[partition][index].causes |= cause;
    }

    pub(super) fn asked_again(&mut self, partition: usize, index: usize) {
        self.events[partition][index].asked_again = true;
    }

    pub(super) fn may_be_dead(&self, partition: usize, index: usize) -> bool {
        let fate = &self.events[partition][index];
        fate.oversized || fate.causes != 0
    }

    pub(super) fn position(&self, partition: usize, index: usize) -> Position {
        self.events[partition][index].position
    }

    /// How many results the event has.
    pub(super) fn parts(&self, partition: usize, index: usize) -> usize {
        self.events[partition][index].stored.len()
    }

    /// A record is in the log now.
    pub(super) fn appended(&mut self, place: Place, source: Source) -> Lawful {
        let fate = &mut self.events[source.partition][source.index];
        let name = format!("{}/{}", source.partition, fate.position);
        let count = fate.count(&source);
        *count += 1;
        if *count > 1 {
            // What was posted before a call ended badly is posted again, however calm it is.
            let posted_again = fate.asked_again && !source.dead;
            self.repeats += u64::from(!self.calm || !posted_again);
            require!(
                Repeats,
                !self.calm || posted_again,
                "{name} is stored twice although nothing was lost"
            );
            return Ok(());
        }
        let lane = fate.lane;
        // A dead letter, or the decision to drop it, was its first delivery: the result repeats.
        let dropped = self.drops && fate.causes & (TRANSIENT | LOST) != 0;
        if lane == 0 || source.dead || fate.dead > 0 || dropped {
            return Ok(());
        }
        let last = self
            .order
            .entry((source.partition, lane, place))
            .or_insert(source.index);
        require!(
            Order,
            *last <= source.index,
            "{name} is stored behind a later event of its lane"
        );
        *last = source.index;
        Ok(())
    }

    /// A record that stands at `at` in its log is committed.
    pub(super) fn committed(&mut self, at: u64, place: Place, source: Source) -> Lawful {
        let fate = &mut self.events[source.partition][source.index];
        let name = format!("{}/{}", source.partition, fate.position);
        let count = fate.count(&source);
        *count += 1;
        let count = *count;
        require!(Once, count == 1, "{name} is committed {count} times");
        let both = fate.dead > 0 && fate.stored.iter().any(|n| *n > 0);
        require!(Once, !both, "{name} has a result and a dead letter");
        if fate.lane == 0 || source.dead {
            return Ok(());
        }
        let lane = self
            .log
            .entry((source.partition, fate.lane, place))
            .or_default();
        let before = lane.range(..at).next_back().map(|(_, index)| *index);
        let after = lane.range(at..).next().map(|(_, index)| *index);
        require!(
            Order,
            before <= Some(source.index) && after.is_none_or(|after| after >= source.index),
            "{name} stands out of its lane's order in the log"
        );
        lane.insert(at, source.index);
        Ok(())
    }

    /// The first event below a position that is not finished.
    pub(super) fn unfinished_below(
        &mut self,
        partition: usize,
        position: Position,
    ) -> Option<Position> {
        let events = &self.events[partition];
        let from = &mut self.finished[partition];
        while events
            .get(*from)
            .is_some_and(|fate| fate.position < position)
        {
            if !events[*from].is_finished(self.drops) {
                return Some(events[*from].position);
            }
            *from += 1;
        }
        None
    }

    /// Whether the event at a position is finished; `None`: there is none.
    pub(super) fn is_finished_at(&self, partition: usize, position: Position) -> Option<bool> {
        let events = &self.events[partition];
        let index = events
            .binary_search_by_key(&position, |fate| fate.position)
            .ok()?;
        Some(events[index].is_finished(self.drops))
    }

    /// Whether every event is finished and committed.
    pub(super) fn settled(&mut self, committed: &[Option<Position>]) -> bool {
        (0..self.events.len()).all(|partition| {
            if self.cut.contains(&partition) {
                return true;
            }
            let Some(last) = self.events[partition].last() else {
                return true;
            };
            let end = last.position.next();
            committed[partition].is_some_and(|at| at >= end)
                && self.unfinished_below(partition, end).is_none()
        })
    }

    pub(super) fn open(&self, committed: &[Option<Position>]) -> u64 {
        let mut open = 0;
        for (partition, (fates, at)) in self.events.iter().zip(committed).enumerate() {
            if self.cut.contains(&partition) {
                continue;
            }
            open += fates
                .iter()
                .filter(|fate| !fate.is_finished(self.drops))
                .count() as u64;
            let end = fates
                .last()
                .map_or(Position::START, |fate| fate.position.next());
            open += end.since(at.unwrap_or(Position::START));
        }
        open
    }

    pub(super) fn unsettled(&self, committed: &[Option<Position>]) -> String {
        let mut text = self.without_outcome();
        for (partition, at) in committed.iter().enumerate() {
            let end = self.events[partition]
                .last()
                .map(|fate| fate.position.next());
            if end.is_some() && *at < end {
                text += &format!("partition {partition} is committed to {at:?} of {end:?}; ");
            }
        }
        text
    }

    /// Events that nobody has finished, for people; empty if there are none.
    pub(super) fn without_outcome(&self) -> String {
        let mut text = String::new();
        for (partition, fates) in self.events.iter().enumerate() {
            if self.cut.contains(&partition) {
                continue;
            }
            let open = fates.iter().filter(|fate| !fate.is_finished(self.drops));
            let open: Vec<_> = open.map(|fate| fate.position.offset()).collect();
            if !open.is_empty() {
                let shown = &open[..open.len().min(8)];
                text += &format!(
                    "partition {partition}: {} events, first {shown:?}; ",
                    open.len()
                );
            }
        }
        text
    }

    pub(super) fn cut(&mut self, partition: usize) {
        self.cut.insert(partition);
    }

    pub(super) fn repeats(&self) -> u64 {
        self.repeats
    }
}

/// Which result of an event has this id.
pub(super) fn part_of(log: &Log, index: usize, parts: usize, id: &[u8]) -> Option<usize> {
    (0..parts).find(|part| {
        let part = u32::try_from(*part).expect("few results");
        ResultId::of(&log.records[index].id, part)
            .as_str()
            .as_bytes()
            == id
    })
}
