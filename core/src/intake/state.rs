//! What metrics, the admin pages and the laws read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::tenure::Phase;
pub use super::tenure::{Counters, Pause};
use super::{App, Intake};
use crate::breaker::Cause;
use crate::contract::result::Reason;
use crate::lanes::LaneHash;
use crate::position::{Partition, Position};
use crate::skew::Skew;
use crate::time::Time;

/// One snapshot of the machine.
#[derive(Clone, Debug)]
pub struct State {
    /// Every partition that the process owns or owned.
    pub partitions: Vec<PartitionState>,
    /// Calls that may be open at the app.
    pub concurrency_limit: u32,
    /// Events that a call may have.
    pub batch_limit: usize,
    /// Calls that are open.
    pub calls_open: u32,
    /// Calls made so far.
    pub calls: u64,
    /// Attempts that were put off so far.
    pub retries: u64,
    /// Results that had to be sent again so far.
    pub resends: u64,
    /// Answers that came when nobody waited any more.
    pub stale_results: u64,
    /// Why the breaker is open; `None`: it is closed.
    pub breaker: Option<Cause>,
    /// Whether the app was reached last time.
    pub app_reachable: bool,
    /// Whether the publish connection is up.
    pub output_connected: bool,
    /// Commits that were stored, refused for now, and fenced.
    pub commits: [u64; 3],
    /// Rebalances that gave partitions, wanted some back, and took some without asking.
    pub rebalances: [u64; 3],
    /// Deaths of the app with requests in flight.
    pub app_crashes: u64,
    /// Stored dead letters by reason and stage.
    pub dead_letters: BTreeMap<(&'static str, &'static str), u64>,
    /// From the events' timestamps to the storing of their results.
    pub latency: Histogram,
    /// From taking an event to the storing of its results, without the time at the app.
    pub overhead: Histogram,
    /// How long revocations took.
    pub revoke_drain: Histogram,
    /// Replicas that these partitions want; `None` while that cannot be said (D-C4).
    pub desired_replicas: Option<u32>,
    /// Partitions that have work and do not move (D-H2).
    pub stalled: usize,
    /// How far events were stamped ahead of this host's wall clock.
    pub skew: Skew,
    /// A drain has ended everything.
    pub stopped: bool,
}

/// One partition.
#[derive(Clone, Debug)]
pub struct PartitionState {
    /// Which.
    pub partition: Partition,
    /// `reading`, `live`, `halted`, `revoking` or `former`.
    pub phase: &'static str,
    /// Why it is halted.
    pub reason: Option<String>,
    /// Why no events are taken.
    pub paused: Option<Pause>,
    /// Events in flight.
    pub in_flight: u64,
    /// Their bytes.
    pub in_flight_bytes: usize,
    /// Size of the metadata of the last commit.
    pub ledger_bytes: usize,
    /// The last acknowledged commit.
    pub committed: Position,
    /// The lowest position that is not terminal.
    pub watermark: Position,
    /// Behind the last event taken.
    pub end: Position,
    /// The timestamp of the oldest event in flight, if it has one.
    pub oldest_timestamp_ms: Option<i64>,
    /// How far behind the end of its log it is; `None` while that is not known.
    pub lag: Option<Lag>,
    /// Share of the waiting events in the fullest lane.
    pub hot_lane_share: f64,
    /// Whether a commit ended unknown (R4c).
    pub in_doubt: bool,
    /// Lanes whose events are dead-lettered (D-L5).
    pub parked: Vec<LaneHash>,
    /// What became of its events.
    pub counters: Counters,
}

impl PartitionState {
    /// Events that are not accounted for; anything but 0 is a defect (D-V1).
    pub fn conservation_gap(&self) -> i64 {
        let accounted = self.counters.accounted() + self.in_flight;
        self.counters.records.cast_signed() - accounted.cast_signed()
    }
}

/// How far behind a partition is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lag {
    /// Positions from the last commit to the end of the log.
    pub records: u64,
    pub(super) since: Option<Time>,
    pub(super) oldest_timestamp_ms: Option<i64>,
}

impl Lag {
    /// Age of the next uncommitted event, zero when there is none. An event that was not taken
    /// yet is at least as old as our knowledge of it.
    pub fn age(&self, now: Time) -> Duration {
        let known = self.since.map_or(Duration::ZERO, |since| now.since(since));
        let oldest = self.oldest_timestamp_ms.map_or(0, |ms| {
            u64::try_from(now.wall_ms.saturating_sub(ms)).unwrap_or(0)
        });
        known.max(Duration::from_millis(oldest))
    }
}

/// What the oldest event of a partition waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitsFor {
    /// Nothing is in flight: the client hands over nothing although the log has more.
    Events,
    /// A commit that brings the lease.
    Commit,
    /// The app's answer, or a call to it.
    App,
    /// The time of its next attempt.
    Retry,
    /// A person.
    Operator,
    /// The output's answer.
    Output,
}

impl WaitsFor {
    /// As logs and pages name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Commit => "commit",
            Self::App => "app",
            Self::Retry => "retry",
            Self::Operator => "operator",
            Self::Output => "output",
        }
    }
}

/// One event, for `/v1/records`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordState {
    /// `waiting`, `at_app`, `backoff`, `suspected`, `blocked`, `held`, `outbox` or `at_output`.
    pub place: &'static str,
    /// Attempts that count.
    pub attempts: u32,
    /// Epoch milliseconds of the first; 0 before it.
    pub first_attempt_ms: i64,
    /// What the last failed attempt said.
    pub error: Option<Arc<str>>,
}

/// Counts durations in buckets that double, from 1 ms to half an hour.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Histogram {
    buckets: [u64; Self::BUCKETS],
    sum_ms: u64,
}

impl Histogram {
    /// Bounds: 1 ms, 2 ms, 4 ms and so on; the last one has no bound.
    pub const BUCKETS: usize = 22;

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let index = (u64::BITS - ms.saturating_sub(1).leading_zeros()) as usize;
        let index = if ms == 0 {
            0
        } else {
            index.min(Self::BUCKETS - 1)
        };
        self.buckets[index] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }

    /// Upper bound in seconds and count of each bucket; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        (0..Self::BUCKETS).map(|i| {
            let bound = if i + 1 == Self::BUCKETS {
                f64::INFINITY
            } else {
                (1u64 << i) as f64 / 1000.0
            };
            (bound, self.buckets[i])
        })
    }

    /// Sum of all durations in seconds.
    pub fn sum(&self) -> f64 {
        self.sum_ms as f64 / 1000.0
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Numbers that belong to no partition.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) calls: u64,
    pub(super) retries: u64,
    pub(super) resends: u64,
    pub(super) frames: u64,
    pub(super) stale_results: u64,
    pub(super) rebalances: [u64; 3],
    pub(super) app_crashes: u64,
    pub(super) dead_letters: BTreeMap<(&'static str, &'static str), u64>,
    pub(super) latency: Histogram,
    pub(super) overhead: Histogram,
    pub(super) revoke_drain: Histogram,
    pub(super) last_failure: Option<Arc<str>>,
    pub(super) storm_reported: bool,
    reported: BTreeMap<&'static str, Time>,
}

/// Dead letters of one reason are reported at most this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);

impl Tally {
    /// Whether a dead letter of this reason deserves a log line now.
    pub(super) fn worth_reporting(&mut self, reason: Reason, now: Time) -> bool {
        let last = self.reported.get(reason.as_str());
        if last.is_some_and(|last| now.since(*last) < REPORT_EVERY) {
            return false;
        }
        self.reported.insert(reason.as_str(), now);
        true
    }
}

impl Intake {
    /// One snapshot.
    pub fn state(&self) -> State {
        let owned = self.tenures.values().map(|tenure| {
            let (phase, reason) = match &tenure.phase {
                Phase::Reading { .. } => ("reading", None),
                Phase::Live { .. } => ("live", None),
                Phase::Halted { reason, .. } => ("halted", Some(reason.clone())),
                Phase::DataLost { reason, .. } => ("halted", Some(reason.clone())),
                Phase::Revoking { .. } => ("revoking", None),
            };
            PartitionState {
                partition: tenure.partition.clone(),
                phase,
                reason,
                paused: tenure.paused,
                in_flight: tenure.ledger.in_flight() as u64,
                in_flight_bytes: tenure.in_flight_bytes,
                ledger_bytes: tenure.ledger_bytes,
                committed: tenure.committed,
                watermark: tenure.ledger.watermark(),
                end: tenure.ledger.end(),
                oldest_timestamp_ms: tenure.oldest_timestamp_ms(),
                lag: tenure.lag(),
                hot_lane_share: tenure.lanes.hottest().0,
                in_doubt: tenure.in_doubt,
                parked: tenure.parked.iter().map(|parked| parked.lane).collect(),
                counters: tenure.counters,
            }
        });
        let former = self
            .former
            .iter()
            .map(|(partition, counters)| PartitionState {
                partition: partition.clone(),
                phase: "former",
                reason: None,
                paused: None,
                in_flight: 0,
                in_flight_bytes: 0,
                ledger_bytes: 0,
                committed: Position::START,
                watermark: Position::START,
                end: Position::START,
                oldest_timestamp_ms: None,
                lag: None,
                hot_lane_share: 0.0,
                in_doubt: false,
                parked: Vec::new(),
                counters: *counters,
            });
        State {
            partitions: owned.chain(former).collect(),
            concurrency_limit: self.window.limit(),
            batch_limit: self.batch_size.limit(),
            calls_open: self.window.open(),
            calls: self.tally.calls,
            retries: self.tally.retries,
            resends: self.tally.resends,
            stale_results: self.tally.stale_results,
            breaker: self.breaker.cause(),
            app_reachable: !matches!(self.app, App::Away { told: true, .. }),
            output_connected: self.link.is_up(),
            commits: [
                self.commits.done,
                self.commits.retriable,
                self.commits.fenced,
            ],
            rebalances: self.tally.rebalances,
            app_crashes: self.tally.app_crashes,
            dead_letters: self.tally.dead_letters.clone(),
            latency: self.tally.latency.clone(),
            overhead: self.tally.overhead.clone(),
            revoke_drain: self.tally.revoke_drain.clone(),
            desired_replicas: self.desired_replicas(),
            stalled: self.stalled(),
            skew: self.skew,
            stopped: self.drain.as_ref().is_some_and(|drain| drain.stopped),
        }
    }

    /// Where one event in flight is.
    pub fn record(&self, partition: &Partition, position: Position) -> Option<RecordState> {
        let tenure = self.tenures.get(self.by_partition.get(partition)?)?;
        let work = tenure.ledger.get(tenure.ledger.find(position)?)?;
        Some(RecordState {
            place: work.place.as_str(),
            attempts: work.attempts.counted,
            first_attempt_ms: work.attempts.first_ms,
            error: work.failure.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_below_the_bound_of_their_bucket() {
        for (ms, bound) in [
            (0, 0.001),
            (1, 0.001),
            (2, 0.002),
            (3, 0.004),
            (1024, 1.024),
            (1025, 2.048),
        ] {
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_millis(ms));
            let hit = histogram.buckets().find(|(_, count)| *count == 1);
            assert_eq!(hit.map(|(bound, _)| bound), Some(bound), "{ms} ms");
        }
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX);
        assert_eq!(histogram.buckets().last(), Some((f64::INFINITY, 1)));
    }
}
