//! Do no harm: watches the live release while a candidate shadows it, and pauses the candidate
//! if the live one suffers (J9).
//!
//! Two signs of harm. Slow: Green's p95 lies above the one from before the shadow, times
//! `guard.latencyRatio`, in every sample for 60 s. Falling behind: Green's lag grows for
//! `guard.lagGrowth`: the time is cut into ten parts, and each has a higher lowest lag than the
//! part before. A lag that stands still, high as it may be, or that saws up and down with the
//! commits, does not grow.
//!
//! Invariant: without fresh samples nothing is concluded, neither harm nor quiet.
//! Invariant: at most two pauses; where a third would be, the comparison is inconclusive and the
//! candidate stays paused.

use std::time::Duration;

use crate::contract::block;
use crate::limits::{GUARD_PAUSES_MAX, GUARD_QUIET_FOR, GUARD_SAMPLE_GAP_MAX, GUARD_SLOW_FOR};
use crate::time::Time;

/// Parts of `guard.lagGrowth`. Ten rising lows by accident are one case in millions.
const PARTS: u32 = 10;
/// With fewer samples per growth than parts, so many rising lows must do.
const RISING_MIN: u32 = 5;

/// What was measured of the live release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Events that wait, over all partitions; `None`: not known.
    pub lag: Option<u64>,
    /// p95 of the app's answers over about the last minute; `None`: there were none.
    pub p95: Option<Duration>,
}

/// What hurts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Harm {
    /// The live release answers too slowly.
    Slow,
    /// Its lag grows.
    FallingBehind,
}

impl Harm {
    /// One sentence for people.
    pub fn says(self) -> &'static str {
        match self {
            Self::Slow => "the live release answers slower than before the shadow began",
            Self::FallingBehind => "the live release falls behind",
        }
    }
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Order {
    /// Pause the candidate.
    Pause(Harm),
    /// It was quiet: go on.
    Resume,
    /// It hurt too often: the candidate stays paused, the comparison is inconclusive.
    GiveUp(Harm),
}

/// What outlives a restart of the controller.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Record {
    /// Pauses so far; the last one counts where the guard gave up.
    pub pauses: u32,
    /// Whether the candidate is paused now.
    pub paused: bool,
}

/// The guard of one candidate.
#[derive(Clone, Debug)]
pub struct Guard {
    lag_growth: Duration,
    slow_above: Option<Duration>,
    record: Record,
    last: Option<Time>,
    slow_since: Option<Time>,
    quiet_since: Option<Time>,
    rise: Option<Rise>,
}

/// Parts of time with ever higher lows.
#[derive(Clone, Copy, Debug)]
struct Rise {
    since: Time,
    part_since: Time,
    /// Parts that rose, the open one not counted.
    parts: u32,
    /// The low of the last closed part.
    closed_low: Option<u64>,
    /// The low of the open part, and when it was.
    low: u64,
    low_at: Time,
}

impl Guard {
    /// Watches from now on. `baseline` is Green's p95 before the shadow began; without one only
    /// the lag is watched. `record` is what an earlier guard of this candidate left.
    pub fn new(guard: &block::Guard, baseline: Option<Duration>, record: Record) -> Self {
        Self {
            lag_growth: guard.lag_growth,
            slow_above: baseline.map(|p95| p95.mul_f64(guard.latency_ratio)),
            record,
            last: None,
            slow_since: None,
            quiet_since: None,
            rise: None,
        }
    }

    /// What must be stored, so that a restart forgives nothing.
    pub fn record(&self) -> Record {
        self.record
    }

    /// Whether it gave up.
    pub fn gave_up(&self) -> bool {
        self.record.pauses >= GUARD_PAUSES_MAX
    }

    /// Takes a sample; samples come in the order of time.
    pub fn on(&mut self, now: Time, sample: Sample) -> Option<Order> {
        let gap = self.last.replace(now).map(|last| now.since(last));
        if gap.is_some_and(|gap| gap > GUARD_SAMPLE_GAP_MAX) {
            self.forget();
        }
        let slow = match (sample.p95, self.slow_above) {
            (Some(p95), Some(above)) => p95 > above,
            _ => false,
        };
        self.slow_since = slow.then(|| self.slow_since.unwrap_or(now));
        self.follow(now, sample.lag);
        if self.gave_up() {
            return None;
        }
        let lasts = |since: Option<Time>, at_least| since.is_some_and(|s| now.since(s) >= at_least);
        let rising = self.rise.filter(|rise| rise.rising_parts() >= RISING_MIN);
        if self.record.paused {
            let unknown = sample.lag.is_none();
            let quiet = !slow && rising.is_none() && !unknown;
            self.quiet_since = quiet.then(|| self.quiet_since.unwrap_or(now));
            if lasts(self.quiet_since, GUARD_QUIET_FOR) {
                self.record.paused = false;
                self.forget();
                return Some(Order::Resume);
            }
            return None;
        }
        let harm = if lasts(self.slow_since, GUARD_SLOW_FOR) {
            Harm::Slow
        } else if lasts(rising.map(|rise| rise.since), self.lag_growth) {
            Harm::FallingBehind
        } else {
            return None;
        };
        self.forget();
        self.record.pauses += 1;
        self.record.paused = true;
        Some(if self.gave_up() {
            Order::GiveUp(harm)
        } else {
            Order::Pause(harm)
        })
    }

    fn forget(&mut self) {
        self.slow_since = None;
        self.quiet_since = None;
        self.rise = None;
    }

    /// Follows the lows of the lag, part by part.
    fn follow(&mut self, now: Time, lag: Option<u64>) {
        let Some(lag) = lag else {
            self.rise = None;
            return;
        };
        let Some(mut rise) = self.rise else {
            self.rise = Some(Rise {
                since: now,
                part_since: now,
                parts: 0,
                closed_low: None,
                low: lag,
                low_at: now,
            });
            return;
        };
        if now.since(rise.part_since) < self.lag_growth / PARTS {
            if lag < rise.low {
                (rise.low, rise.low_at) = (lag, now);
            }
        } else {
            // The part is over. It either rose above the one before, or a new rise begins at its low.
            rise = if rise.open_part_rises() {
                Rise {
                    parts: rise.parts + 1,
                    ..rise
                }
            } else {
                Rise {
                    since: rise.low_at,
                    parts: 1,
                    ..rise
                }
            };
            rise.closed_low = Some(rise.low);
            (rise.low, rise.low_at) = (lag, now);
            rise.part_since = now;
        }
        self.rise = Some(rise);
    }
}

impl Rise {
    fn open_part_rises(&self) -> bool {
        self.closed_low.is_none_or(|low| self.low > low)
    }

    /// Rising parts in a row up to now; none if the open one fell back.
    fn rising_parts(&self) -> u32 {
        if self.open_part_rises() {
            self.parts + 1
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests;
