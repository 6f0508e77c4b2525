//! Stops calling an app that fails as a whole, and holds events back when too many of them
//! would be dead-lettered (D-B1 to D-B3).
//!
//! Invariant: while it is open, one call at a time goes out, as a probe; nothing is
//! dead-lettered on the word of a probe.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

/// `breaker` and `stormGuard` of the block document.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Share of failed requests that opens it.
    pub failure_ratio: f64,
    /// Over this long.
    pub window: Duration,
    /// And at least this many requests.
    pub requests_min: u32,
    /// First pause before a probe.
    pub open_min: Duration,
    /// Longest pause before a probe.
    pub open_max: Duration,
    /// Share of events that would be dead-lettered which opens it (storm guard).
    pub storm_ratio: f64,
    /// Over this long.
    pub storm_window: Duration,
    /// And at least this many dead letters.
    pub storm_records_min: u32,
}

/// Why the breaker is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// Too many transient failures (D-B1).
    Failures,
    /// The app or the platform is set up wrongly (D-B2).
    Misconfigured,
    /// Too many dead letters (D-B3).
    Storm,
}

impl Cause {
    /// As the metric `millrace_breaker_state` and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Misconfigured => "misconfigured",
            Self::Storm => "storm",
        }
    }
}

/// What may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Everything.
    Closed,
    /// One call, the oldest event.
    Probe(Cause),
    /// Nothing before then; the probe is out if `None`.
    Open(Cause, Option<Time>),
}

/// The breaker and the storm guard of one app.
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    state: State,
    requests: Rolling,
    records: Rolling,
    storm_guard_off_until: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open {
        cause: Cause,
        probe_at: Time,
        pause: Duration,
    },
    Probing {
        cause: Cause,
        pause: Duration,
    },
}

impl Breaker {
    /// Closed.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::Closed,
            requests: Rolling::new(settings.window),
            records: Rolling::new(settings.storm_window),
            storm_guard_off_until: None,
        }
    }

    /// What may be sent now.
    pub fn gate(&self, now: Time) -> Gate {
        match self.state {
            State::Closed => Gate::Closed,
            State::Open {
                cause, probe_at, ..
            } if now.boot >= probe_at.boot => Gate::Probe(cause),
            State::Open {
                cause, probe_at, ..
            } => Gate::Open(cause, Some(probe_at)),
            State::Probing { cause, .. } => Gate::Open(cause, None),
        }
    }

    /// Why it is not closed.
    pub fn cause(&self) -> Option<Cause> {
        match self.state {
            State::Closed => None,
            State::Open { cause, .. } | State::Probing { cause, .. } => Some(cause),
        }
    }

    /// The call that just went out is the probe.
    pub fn probing(&mut self) {
        if let State::Open { cause, pause, .. } = self.state {
            self.state = State::Probing { cause, pause };
        }
    }

    /// Whether a probe is out; its outcome belongs to [`Self::probe_succeeded`] or
    /// [`Self::probe_failed`].
    pub fn is_probing(&self) -> bool {
        matches!(self.state, State::Probing { .. })
    }

    /// The probe was answered: everything may go.
    pub fn probe_succeeded(&mut self) {
        self.close();
    }

    /// The probe failed: wait twice as long.
    pub fn probe_failed(&mut self, now: Time) {
        if let State::Probing { cause, pause } = self.state {
            let pause = (pause * 2).min(self.settings.open_max);
            self.state = State::Open {
                cause,
                probe_at: now.plus(pause),
                pause,
            };
        }
    }

    /// The probe could not be sent or nobody waits for it: try again at once.
    pub fn probe_abandoned(&mut self, now: Time) {
        if let State::Probing { cause, pause } = self.state {
            self.state = State::Open {
                cause,
                probe_at: now,
                pause,
            };
        }
    }

    /// A request ended; opens on too many failures. True if it opened just now.
    pub fn request_ended(&mut self, failed: bool, now: Time) -> bool {
        self.requests.add(failed, now);
        let (failures, all) = self.requests.sums(now);
        let too_many = all >= self.settings.requests_min
            && f64::from(failures) >= self.settings.failure_ratio * f64::from(all);
        failed && too_many && self.open(Cause::Failures, now)
    }

    /// The app or the platform is set up wrongly. True if it opened just now.
    pub fn misconfigured(&mut self, now: Time) -> bool {
        self.open(Cause::Misconfigured, now)
    }

    /// An event became terminal without a dead letter.
    pub fn record_ended(&mut self, now: Time) {
        self.records.add(false, now);
    }

    /// May this event be dead-lettered? If not, the breaker is open and the event is held.
    pub fn may_dead_letter(&mut self, now: Time) -> bool {
        let off = self
            .storm_guard_off_until
            .is_some_and(|until| now.boot < until.boot);
        let (dead, all) = self.records.sums(now);
        let storm = self.cause() == Some(Cause::Storm)
            || dead >= self.settings.storm_records_min
                && f64::from(dead) > self.settings.storm_ratio * f64::from(all);
        if storm && !off {
            self.open(Cause::Storm, now);
            return false;
        }
        self.records.add(true, now);
        true
    }

    /// An operator says that all is well.
    pub fn resume(&mut self, storm_guard_off_until: Option<Time>) {
        self.storm_guard_off_until = storm_guard_off_until;
        self.close();
    }

    fn open(&mut self, cause: Cause, now: Time) -> bool {
        if !matches!(self.state, State::Closed) {
            return false;
        }
        self.state = State::Open {
            cause,
            probe_at: now.plus(self.settings.open_min),
            pause: self.settings.open_min,
        };
        true
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.requests.clear();
        self.records.clear();
    }
}

/// Counts over a rolling span, in ten buckets.
#[derive(Debug)]
struct Rolling {
    bucket: Duration,
    /// Bucket index on the boot clock, marked, all.
    buckets: VecDeque<(u64, u32, u32)>,
}

const BUCKETS: u32 = 10;

impl Rolling {
    fn new(span: Duration) -> Self {
        Self {
            bucket: (span / BUCKETS).max(Duration::from_millis(1)),
            buckets: VecDeque::new(),
        }
    }

    fn index(&self, now: Time) -> u64 {
        u64::try_from(now.boot.as_nanos() / self.bucket.as_nanos()).unwrap_or(u64::MAX)
    }

    fn add(&mut self, marked: bool, now: Time) {
        let index = self.index(now);
        if self.buckets.back().is_none_or(|(last, ..)| *last < index) {
            self.buckets.push_back((index, 0, 0));
            while self.buckets.len() > BUCKETS as usize {
                self.buckets.pop_front();
            }
        }
        let (_, some, all) = self.buckets.back_mut().expect("one was just pushed");
        *some = some.saturating_add(u32::from(marked));
        *all = all.saturating_add(1);
    }

    fn sums(&self, now: Time) -> (u32, u32) {
        let oldest = self.index(now).saturating_sub(u64::from(BUCKETS) - 1);
        self.buckets
            .iter()
            .filter(|(index, ..)| *index >= oldest)
            .fold((0, 0), |(some, all), (_, s, a)| (some + s, all + a))
    }

    fn clear(&mut self) {
        self.buckets.clear();
    }
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

    fn breaker() -> Breaker {
        Breaker::new(Settings {
            failure_ratio: 0.5,
            window: Duration::from_secs(20),
            requests_min: 20,
            open_min: Duration::from_secs(5),
            open_max: Duration::from_secs(15),
            storm_ratio: 0.1,
            storm_window: Duration::from_secs(60),
            storm_records_min: 100,
        })
    }

    fn fail(breaker: &mut Breaker, times: u32, now: Time) {
        for _ in 0..times {
            breaker.request_ended(true, now);
        }
    }

    #[test]
    fn d_b1_it_opens_at_half_failures_of_twenty_and_probes_with_doubling_pauses() {
        let mut breaker = breaker();
        fail(&mut breaker, 19, at(1));
        assert_eq!(breaker.gate(at(1)), Gate::Closed);
        fail(&mut breaker, 1, at(1));
        assert!(matches!(
            breaker.gate(at(5)),
            Gate::Open(Cause::Failures, Some(_))
        ));
        for (now, then) in [(6, 16), (16, 31), (31, 46)] {
            assert_eq!(breaker.gate(at(now)), Gate::Probe(Cause::Failures));
            breaker.probing();
            assert!(matches!(breaker.gate(at(now)), Gate::Open(_, None)));
            breaker.probe_failed(at(now));
            assert!(matches!(breaker.gate(at(then - 1)), Gate::Open(_, Some(_))));
        }
        breaker.probing();
        breaker.probe_succeeded();
        assert_eq!(breaker.gate(at(46)), Gate::Closed);
    }

    #[test]
    fn d_b1_old_failures_are_forgotten() {
        let mut breaker = breaker();
        fail(&mut breaker, 19, at(1));
        fail(&mut breaker, 19, at(30));
        assert_eq!(breaker.gate(at(30)), Gate::Closed);
    }

    #[test]
    fn d_b2_one_misconfigured_answer_opens_it() {
        let mut breaker = breaker();
        assert!(breaker.misconfigured(at(1)));
        assert!(!breaker.misconfigured(at(1)), "it opens once");
        assert!(matches!(
            breaker.gate(at(2)),
            Gate::Open(Cause::Misconfigured, Some(_))
        ));
    }

    #[test]
    fn d_b3_the_storm_guard_holds_events_back_after_a_hundred_dead_letters() {
        let mut breaker = breaker();
        let letters = (0..500).filter(|_| breaker.may_dead_letter(at(1))).count();
        assert_eq!(letters, 100);
        assert!(matches!(
            breaker.gate(at(1)),
            Gate::Open(Cause::Storm, Some(_))
        ));
        breaker.resume(Some(at(600)));
        let letters = (0..500).filter(|_| breaker.may_dead_letter(at(2))).count();
        assert_eq!(letters, 500, "an operator switched it off for ten minutes");
    }

    #[test]
    fn d_b3_a_few_bad_events_among_many_good_ones_are_no_storm() {
        let mut breaker = breaker();
        for i in 0..5_000 {
            if i % 20 == 0 {
                assert!(breaker.may_dead_letter(at(1)));
            } else {
                breaker.record_ended(at(1));
            }
        }
        assert_eq!(breaker.gate(at(1)), Gate::Closed);
    }
}
