//! How far behind the partitions are, and which of them have stopped moving (D-C4, D-H2).
//!
//! Invariant: while the ends of the logs are not known there is no lag, which is not a lag of 0.
//! Invariant: the age of a lag is never more than the age of the next uncommitted event.

use std::collections::{BTreeMap, BTreeSet};

use super::io::{Effect, Fact};
use super::state::{Lag, WaitsFor};
use super::tenure::{Pause, Place, Tenure};
use super::{App, Intake};
use crate::event::TimestampKind;
use crate::lanes::{LaneId, Ordering};
use crate::position::{Partition, Position};
use crate::scaling::{self, Rate};
use crate::time::Time;

/// Lanes that a report names.
const LANES_REPORTED_MAX: usize = 16;

/// What is known about the load of all partitions.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Whether the brokers can be reached.
    known: bool,
    rate: Rate,
    /// Partitions whose watermark stands still although there is work, with that watermark. They
    /// stay here while the client is made anew, until they move.
    stalled: BTreeMap<Partition, Position>,
}

/// What is known about the end of a partition's log.
#[derive(Debug, Default)]
pub(super) struct Behind {
    end: Option<Position>,
    /// The commit that is behind the end, and since when at least.
    since: Option<(Position, Time)>,
    /// Events that another replica could work on.
    waiting: u64,
    /// The watermark that has not moved, and since when.
    unmoved: Option<(Position, Time)>,
}

impl Intake {
    /// Takes the ends of the logs; `None` if the brokers cannot be reached.
    pub(super) fn log_ends(
        &mut self,
        ends: Option<Vec<(Partition, Position)>>,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        self.load.known = ends.is_some();
        let ends: BTreeMap<_, _> = ends.into_iter().flatten().collect();
        let ordering = self.settings.ordering;
        for tenure in self.tenures.values_mut() {
            let end = ends.get(&tenure.partition).copied();
            tenure.behind.end = end.filter(|_| tenure.is_live());
            let behind = tenure.lag_records().is_some_and(|records| records > 0);
            let since = tenure
                .behind
                .since
                .filter(|(at, _)| *at == tenure.committed);
            tenure.behind.since = behind.then(|| since.unwrap_or((tenure.committed, now)));
            tenure.behind.waiting = tenure.shareable(ordering);
        }
        self.observe_rate(now);
        self.watch(now, effects);
    }

    fn observe_rate(&mut self, now: Time) {
        let owned = self.tenures.values().map(|tenure| &tenure.counters);
        let finished = owned
            .chain(self.former.values())
            .map(|c| c.emitted + c.filtered + c.dead_lettered + c.dropped)
            .sum();
        let waiting = self.tenures.values().map(|t| t.behind.waiting).sum();
        let able = self.load.known
            && !self.operator_paused
            && self.drain.is_none()
            && !self.rejoining
            && self.link.is_up()
            && self.breaker.cause().is_none()
            && matches!(self.app, App::Reachable);
        self.load.rate.observe(now, finished, waiting, able);
    }

    /// The replicas that this replica's partitions want; `None` while that cannot be said (D-C4).
    pub(super) fn desired_replicas(&self) -> Option<u32> {
        if !self.load.known {
            return None;
        }
        let live = || self.tenures.values().filter(|tenure| tenure.is_live());
        if live().any(|tenure| tenure.behind.end.is_none()) {
            return None;
        }
        let waiting = live().map(|tenure| tenure.behind.waiting);
        Some(scaling::desired_replicas(waiting, &self.load.rate))
    }

    /// Partitions of ours that stand still (D-H2).
    pub(super) fn stalled(&self) -> usize {
        let ours = |p: &Partition| self.rejoining || self.by_partition.contains_key(p);
        self.load.stalled.keys().filter(|p| ours(p)).count()
    }

    /// D-H2: a partition with work, not paused, whose watermark has not moved for too long is
    /// reported; if that may be the client's doing, the client is made anew.
    fn watch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.rejoining || self.drain.is_some() {
            return;
        }
        let mut silent = None;
        let mut found = Vec::new();
        for (id, tenure) in &mut self.tenures {
            let watermark = tenure.ledger.watermark();
            // A last position that nobody hands over may be the marker of a transaction.
            let seen = tenure.ledger.in_flight() > 0;
            let handed_over = if seen { watermark } else { watermark.next() };
            let work = tenure.behind.end.is_some_and(|end| end > handed_over);
            let watched = work && tenure.paused.is_none() && tenure.is_live();
            if tenure.is_live() && tenure.behind.end.is_some() {
                let same = |at: &mut Position| *at == watermark;
                let still = self
                    .load
                    .stalled
                    .get_mut(&tenure.partition)
                    .is_some_and(same);
                if !watched || !still {
                    self.load.stalled.remove(&tenure.partition);
                }
            }
            let unmoved = tenure.behind.unmoved.filter(|(at, _)| *at == watermark);
            tenure.behind.unmoved = watched.then(|| unmoved.unwrap_or((watermark, now)));
            let Some((_, since)) = tenure.behind.unmoved else {
                continue;
            };
            if now.since(since) >= self.settings.stall_after {
                // Told again after as long.
                tenure.behind.unmoved = Some((watermark, now));
                self.load
                    .stalled
                    .insert(tenure.partition.clone(), watermark);
                found.push((*id, now.since(since)));
            }
        }
        for (id, unmoved) in found {
            let tenure = &self.tenures[&id];
            let waits_for = self.waits_for(tenure, now);
            if matches!(waits_for, WaitsFor::Events | WaitsFor::Commit) {
                silent.get_or_insert_with(|| tenure.partition.clone());
            }
            effects.push(Effect::Report(Fact::Stalled {
                partition: tenure.partition.clone(),
                unmoved,
                waits_for: waits_for.as_str(),
                details: self.diagnosis(tenure, now),
            }));
        }
        if let Some(partition) = silent {
            self.rejoin(format!("{partition} stands still"), effects);
        }
    }

    /// What the oldest event of a partition waits for: that is what keeps the watermark.
    fn waits_for(&self, tenure: &Tenure, now: Time) -> WaitsFor {
        let Some((.., work)) = tenure.ledger.iter().next() else {
            return WaitsFor::Events;
        };
        let leased = tenure.lease.holds(now) && !tenure.in_doubt;
        match work.place {
            Place::AtApp | Place::Suspected => WaitsFor::App,
            Place::Backoff => WaitsFor::Retry,
            Place::Blocked | Place::Held => WaitsFor::Operator,
            Place::Waiting | Place::Outbox if !leased => WaitsFor::Commit,
            Place::AtOutput | Place::Staged | Place::Outbox => WaitsFor::Output,
            Place::Waiting => WaitsFor::App,
        }
    }

    /// What a person wants to know about a partition that stands still; no keys, no payloads.
    fn diagnosis(&self, tenure: &Tenure, now: Time) -> String {
        use std::fmt::Write as _;
        let mut places = BTreeMap::<&str, u64>::new();
        let mut heads = BTreeMap::<LaneId, (Position, Place, u64)>::new();
        for (_, position, work) in tenure.ledger.iter() {
            *places.entry(work.place.as_str()).or_default() += 1;
            let head = heads.entry(work.lane).or_insert((position, work.place, 0));
            head.2 += 1;
        }
        let commit = match (&self.commits.open_since(), tenure.in_doubt) {
            (Some(since), _) => format!("out for {:?}", now.since(*since)),
            (None, true) => "in doubt".to_owned(),
            (None, false) => "none out".to_owned(),
        };
        let mut text = format!(
            "committed {}, watermark {}, taken until {}, log end {}; lease {}; commit {commit}; \
             {} calls open of {}; app {}; output {}; in flight {places:?}",
            tenure.committed,
            tenure.ledger.watermark(),
            tenure.ledger.end(),
            tenure.behind.end.map_or(-1, Position::offset),
            if tenure.lease.holds(now) {
                "held"
            } else {
                "not held"
            },
            self.window.open(),
            self.window.limit(),
            if matches!(self.app, App::Reachable) {
                "reachable"
            } else {
                "unreachable"
            },
            if self.link.is_up() {
                "connected"
            } else {
                "not connected"
            },
        );
        let mut heads: Vec<_> = heads.into_values().collect();
        heads.sort_by_key(|(position, ..)| *position);
        for (position, place, events) in heads.iter().take(LANES_REPORTED_MAX) {
            let place = place.as_str();
            write!(text, "; lane of {position}: {place}, {events} in flight")
                .expect("writing to a String never fails");
        }
        if heads.len() > LANES_REPORTED_MAX {
            let more = heads.len() - LANES_REPORTED_MAX;
            write!(text, "; and {more} lanes more").expect("writing to a String never fails");
        }
        text
    }
}

impl Tenure {
    /// Positions from the last commit to the end of the log.
    fn lag_records(&self) -> Option<u64> {
        // What we have taken was in the log, however old our knowledge of its end is.
        let end = self.behind.end?.max(self.ledger.end());
        Some(end.since(self.committed))
    }

    /// How far behind it is.
    pub(super) fn lag(&self) -> Option<Lag> {
        let records = self.lag_records()?;
        let (_, since) = self.behind.since.filter(|_| records > 0).unzip();
        Some(Lag {
            records,
            since,
            oldest_timestamp_ms: self.oldest_timestamp_ms().filter(|_| records > 0),
        })
    }

    /// Epoch milliseconds of the oldest event in flight; an event without a timestamp has no age.
    pub(super) fn oldest_timestamp_ms(&self) -> Option<i64> {
        let (.., work) = self.ledger.iter().next()?;
        let timestamp = work.event.timestamp();
        (timestamp.kind != TimestampKind::None).then_some(timestamp.ms)
    }

    /// Events of it that another replica could work on: not those that wait for their next
    /// attempt or for a person, nor what stands behind them.
    fn shareable(&self, ordering: Ordering) -> u64 {
        let Some(end) = self.behind.end else {
            return 0;
        };
        let held = |place| matches!(place, Place::Backoff | Place::Suspected | Place::Blocked);
        let lanes: BTreeSet<LaneId> = self
            .ledger
            .iter()
            .filter(|(.., work)| held(work.place) && work.lane != LaneId::NONE)
            .map(|(.., work)| work.lane)
            .collect();
        let free = |(_, _, work): &(_, _, &super::Work)| {
            let behind = work.place == Place::Waiting && lanes.contains(&work.lane);
            !(held(work.place) || behind)
        };
        let taken = self.ledger.iter().filter(free).count() as u64;
        let head_held = self
            .ledger
            .iter()
            .next()
            .is_some_and(|(.., w)| held(w.place));
        let blocked = match ordering {
            Ordering::Partition => !lanes.is_empty(),
            Ordering::Key | Ordering::None => head_held && self.paused == Some(Pause::Window),
        };
        if blocked {
            return taken;
        }
        taken + end.since(self.ledger.end())
    }
}

#[cfg(test)]
mod tests;
