//! How many replicas a backlog wants (D-C4).
//!
//! Each replica speaks for its own partitions; the sum over the replicas is what the block wants.
//!
//! Invariant: work that waits for something that no replica can hasten is not counted.

use std::time::Duration;

use crate::time::Time;

/// A backlog shall be gone within this time.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// How far back the rate remembers.
const MEMORY: Duration = Duration::from_secs(30);

/// Looks that are closer together than this say too little.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How many events a second this replica finishes when it has enough to do.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    per_second: Option<f64>,
    last: Option<Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Time,
    finished: u64,
    waiting: u64,
}

impl Rate {
    /// Takes what is finished so far and what waits now. `able`: nothing kept the replica from
    /// working.
    pub fn observe(&mut self, now: Time, finished: u64, waiting: u64, able: bool) {
        let look = Look {
            at: now,
            finished,
            waiting,
        };
        let Some(last) = self.last.filter(|_| able) else {
            self.last = able.then_some(look);
            return;
        };
        let took = now.since(last.at);
        if took < LOOK_EVERY {
            return;
        }
        self.last = Some(look);
        let done = finished.saturating_sub(last.finished);
        // With less waiting than it does in this time, it does what comes, not what it could.
        if last.waiting < done.max(1) || waiting < done.max(1) {
            return;
        }
        let now_per_second = as_f64(done) / took.as_secs_f64();
        self.per_second = Some(match self.per_second {
            None => now_per_second,
            Some(before) => {
                let kept = (-took.as_secs_f64() / MEMORY.as_secs_f64()).exp();
                before * kept + now_per_second * (1.0 - kept)
            }
        });
    }

    /// The rate; `None` until it was seen under load.
    pub fn per_second(&self) -> Option<f64> {
        self.per_second
    }
}

/// The replicas that work off what waits in each partition within 30 s, at most one per
/// partition that has a backlog, at least one if any has.
pub fn desired_replicas(waiting: impl Iterator<Item = u64>, rate: &Rate) -> u32 {
    let (mut total, mut partitions) = (0_u64, 0_u32);
    for waiting in waiting.filter(|waiting| *waiting > 0) {
        total = total.saturating_add(waiting);
        partitions += 1;
    }
    let Some(per_second) = rate.per_second().filter(|_| partitions > 0) else {
        return partitions.min(1);
    };
    let wanted = (as_f64(total) / (GONE_WITHIN.as_secs_f64() * per_second)).ceil();
    (1..partitions)
        .find(|replicas| f64::from(*replicas) >= wanted)
        .unwrap_or(partitions)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate; counts above 2^53 may be off by one"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Time {
        Time {
            boot: Duration::from_secs(s),
            wall_ms: 0,
        }
    }

    /// A replica that finishes so many events a second, with enough to do.
    fn busy(per_second: u64) -> Rate {
        let mut rate = Rate::default();
        for s in 0..3 {
            rate.observe(at(s), s * per_second, 1 << 40, true);
        }
        rate
    }

    #[test]
    fn d_c4_a_backlog_wants_the_replicas_that_work_it_off_in_30_s() {
        for (waiting, per_second, expect) in [
            (&[0_u64, 0][..], 10, 0),
            (&[1, 0], 10, 1),
            (&[300, 0], 10, 1),
            (&[301, 0], 10, 1), // one partition with a backlog: a second replica has no work
            (&[200, 101], 10, 2),
            (&[10_000, 1, 1], 10, 3),
            (&[100, 100, 100, 1], 10, 2),
        ] {
            let wanted = desired_replicas(waiting.iter().copied(), &busy(per_second));
            assert_eq!(wanted, expect, "{waiting:?}");
        }
    }

    #[test]
    fn d_c4_a_backlog_without_a_known_rate_wants_one_replica_and_one_without_progress_wants_all() {
        let backlog = || [70_u64, 50, 0].into_iter();
        assert_eq!(desired_replicas(backlog(), &Rate::default()), 1);
        assert_eq!(desired_replicas(backlog(), &busy(0)), 2);
    }

    #[test]
    fn d_c4_an_idle_replica_does_not_pass_for_a_slow_one() {
        let mut rate = busy(100);
        for s in 3..100 {
            rate.observe(at(s), 200 + s, 0, true);
        }
        assert_eq!(rate.per_second(), Some(100.0));
        for s in 100..200 {
            rate.observe(at(s), 300, 5_000, false);
        }
        assert_eq!(rate.per_second(), Some(100.0), "a pause is no slowness");
        for s in 200..400 {
            rate.observe(at(s), 300 + (s - 200) * 50, 5_000, true);
        }
        let slower = rate.per_second().unwrap();
        assert!((49.0..51.0).contains(&slower), "{slower}");
    }
}
