//! When a batch is full or due, and how large it may be (D-C3).
//!
//! Invariant: the batcher lingers only while calls are open; an idle app never waits for it.
//! Invariant: batches grow only after a round of full ones that were all answered in time, and
//! shrink at most once for calls that were open together.

use std::time::Duration;

use crate::time::Time;

/// `batch` and `app.contract.request` of the block document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Events of one call at most; 1 for single requests.
    pub records_max: usize,
    /// Bytes of keys, values and headers of one call at most; one larger event goes alone.
    pub bytes_max: usize,
    /// How long the first event waits for company.
    pub linger: Duration,
    /// Consecutive events of one lane in one batch.
    pub per_lane_max: usize,
    /// `batch.targetP99`, if the number of events follows it (`batch.adaptive`).
    pub target_p99: Option<Duration>,
}

impl Settings {
    /// One event per call.
    pub const SINGLE: Self = Self {
        records_max: 1,
        bytes_max: usize::MAX,
        linger: Duration::ZERO,
        per_lane_max: 1,
        target_p99: None,
    };
}

/// Events of a call where `batch.adaptive` begins.
const START: f64 = 10.0;
const GROW: f64 = 1.5;
/// Full calls that have to be answered in time before batches grow: the 99th percentile of so
/// few is the slowest.
const ROUND: u32 = 20;

/// How many events a call may have.
#[derive(Debug)]
pub struct Size {
    target_p99: Option<Duration>,
    max: f64,
    limit: f64,
    /// Full calls of this round that were answered in time.
    in_time: u32,
    /// Calls that were sent before this have shrunk the batches already.
    shrunk_at: Option<Time>,
}

impl Size {
    /// As large as allowed, or where learning begins.
    pub fn new(settings: &Settings) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        let max = settings.records_max.max(1) as f64;
        Self {
            target_p99: settings.target_p99,
            max,
            limit: settings.target_p99.map_or(max, |_| START.min(max)),
            in_time: 0,
            shrunk_at: None,
        }
    }

    /// Events of one call at most, now.
    pub fn limit(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the limit lies between 1 and records_max"
        )]
        let limit = self.limit as usize;
        limit
    }

    /// A call with so many events was answered after this long.
    pub fn answered(&mut self, events: usize, took: Duration) {
        let Some(target) = self.target_p99 else {
            return;
        };
        if took >= target {
            self.in_time = 0;
        } else if events >= self.limit() {
            self.in_time += 1;
            if self.in_time >= ROUND {
                self.in_time = 0;
                self.limit = (self.limit * GROW).min(self.max);
            }
        }
    }

    /// A call was too large for the app, or not answered in time.
    pub fn too_large(&mut self, sent: Time, now: Time) {
        let known = self.shrunk_at.is_some_and(|at| sent.boot < at.boot);
        if self.target_p99.is_none() || known {
            return;
        }
        self.limit = (self.limit / 2.0).max(1.0);
        self.in_time = 0;
        self.shrunk_at = Some(now);
    }
}

/// What waits to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Events that may be sent now.
    pub events: usize,
    /// Since when the first of them waits, on the driver's clock.
    pub since: Time,
    /// Calls that are open at the app.
    pub open_calls: u32,
}

/// What to do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Send a call now.
    Now,
    /// Wait for more until then.
    At(Time),
    /// There is nothing to send.
    Nothing,
}

/// Decides whether a call is cut from what waits.
pub fn cut(settings: &Settings, waiting: Waiting, now: Time) -> Cut {
    let due = waiting.since.plus(settings.linger);
    if waiting.events == 0 {
        Cut::Nothing
    } else if waiting.open_calls == 0
        || waiting.events >= settings.records_max
        || now.boot >= due.boot
    {
        Cut::Now
    } else {
        Cut::At(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time {
            boot: Duration::from_millis(ms),
            wall_ms: 0,
        }
    }

    #[test]
    fn d_c3_a_batch_goes_when_it_is_full_or_due_or_the_app_is_idle() {
        let settings = Settings {
            records_max: 100,
            bytes_max: 1 << 20,
            linger: Duration::from_millis(5),
            per_lane_max: 1,
            target_p99: None,
        };
        let check = |events, open_calls, now, expected: Cut| {
            let waiting = Waiting {
                events,
                since: at(10),
                open_calls,
            };
            let cut = match cut(&settings, waiting, at(now)) {
                Cut::At(time) => Cut::At(Time { wall_ms: 0, ..time }),
                other => other,
            };
            assert_eq!(
                cut, expected,
                "{events} events, {open_calls} calls, at {now}"
            );
        };
        check(0, 0, 20, Cut::Nothing);
        check(1, 0, 10, Cut::Now);
        check(99, 1, 14, Cut::At(at(15)));
        check(99, 1, 15, Cut::Now);
        check(100, 1, 10, Cut::Now);
    }
}
