//! When a batch is full or due (D-C3).
//!
//! Invariant: the batcher lingers only while calls are open; an idle app never waits for it.

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
}

impl Settings {
    /// One event per call.
    pub const SINGLE: Self = Self {
        records_max: 1,
        bytes_max: usize::MAX,
        linger: Duration::ZERO,
        per_lane_max: 1,
    };
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
