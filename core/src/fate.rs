//! From a failure to what happens to the event: the class table of delivery.md, section Retry.
//!
//! Two questions are kept apart: "might the app have started on it?" decides whether an attempt
//! counts, "is it worth another try?" decides what follows.

use std::time::Duration;

use crate::contract::result::{Reason, Stage};
use crate::outcome::{Class, Failure, FailureKind, RetryScope};
use crate::time::Time;

/// `retry` of the block document.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Attempts before the event is exhausted; 0: unlimited.
    pub attempts_max: u32,
    /// Age since the first attempt after which it is exhausted.
    pub age_max: Duration,
    /// First wait between attempts.
    pub backoff_initial: Duration,
    /// Each wait is this many times the one before.
    pub backoff_multiplier: f64,
    /// Longest wait between attempts.
    pub backoff_max: Duration,
    /// Whether the app's `Retry-After` counts.
    pub respect_retry_after: bool,
    /// What becomes of exhausted events.
    pub on_exhausted: OnExhausted,
    /// What becomes of events above `app.maxRequestBytes`.
    pub oversized: Oversized,
}

/// `retry.onExhausted`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OnExhausted {
    /// Dead letter.
    DeadLetter,
    /// Gone, metered, with this reason (D-R3).
    Drop {
        /// `retry.dropReason`.
        reason: String,
    },
    /// Hold the lane until an operator acts.
    Block,
}

/// `app.oversized`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Oversized {
    /// Dead letter.
    DeadLetter,
    /// Hold the lane until an operator acts.
    Block,
}

/// How often an event was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attempts {
    /// Attempts that count.
    pub counted: u32,
    /// Epoch milliseconds of the first one; 0 before it.
    pub first_ms: i64,
    /// The first one on this host's boot clock, in milliseconds, negative if it was before the
    /// node started; `None` as long as this process has not tried.
    pub first_boot_ms: Option<i64>,
}

impl Attempts {
    /// An attempt begins. What a previous owner tried is as old as the two wall clocks say, but
    /// never of the future; from now on the boot clock counts, which nobody sets.
    pub fn begin(&mut self, now: Time) {
        if self.first_ms == 0 {
            self.first_ms = now.wall_ms;
        }
        self.first_boot_ms = Some(self.first_boot_ms(now));
    }

    /// Since the first attempt.
    pub fn age(self, now: Time) -> Duration {
        let age_ms = boot_ms(now).saturating_sub(self.first_boot_ms(now));
        Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
    }

    fn first_boot_ms(self, now: Time) -> i64 {
        self.first_boot_ms.unwrap_or_else(|| {
            let age_ms = now.wall_ms.saturating_sub(self.first_ms).max(0);
            boot_ms(now).saturating_sub(age_ms)
        })
    }
}

fn boot_ms(now: Time) -> i64 {
    i64::try_from(now.boot.as_millis()).unwrap_or(i64::MAX)
}

/// What happens to an event whose call failed.
#[derive(Clone, PartialEq, Debug)]
pub enum Fate {
    /// Another attempt, then.
    Retry {
        /// Not before.
        at: Time,
        /// Whether everything has to wait that long (D-B5).
        all: bool,
    },
    /// The app or the platform is at fault, not the event: back to the front of the lane,
    /// uncounted, until a probe succeeds.
    Hold,
    /// A dead letter.
    DeadLetter(Reason, Stage),
    /// Gone by policy (D-R3).
    Drop,
    /// The lane stops until an operator acts.
    Block,
}

/// Counts the attempt and decides. `jitter` lies in 0..1 (full jitter).
pub fn decide(
    settings: &Settings,
    failure: &Failure,
    attempts: &mut Attempts,
    jitter: f64,
    now: Time,
) -> Fate {
    let counts = match failure.class {
        Class::Transient | Class::Permanent => failure.attempted,
        Class::Misconfigured | Class::Infra => false,
    };
    if counts {
        attempts.counted = attempts.counted.saturating_add(1);
    }
    match failure.class {
        Class::Misconfigured | Class::Infra => Fate::Hold,
        Class::Permanent => permanent(settings, failure),
        Class::Transient => transient(settings, failure, *attempts, jitter, now),
    }
}

fn permanent(settings: &Settings, failure: &Failure) -> Fate {
    match (failure.kind, settings.oversized) {
        (FailureKind::Oversized, Oversized::Block) if !failure.attempted => Fate::Block,
        (FailureKind::Oversized, _) if failure.attempted => {
            Fate::DeadLetter(Reason::Oversized, Stage::App)
        }
        (FailureKind::Oversized, _) => Fate::DeadLetter(Reason::Oversized, Stage::Input),
        (FailureKind::EventSchema, _) => Fate::DeadLetter(Reason::Schema, Stage::Input),
        (FailureKind::ResultSchema, _) => Fate::DeadLetter(Reason::Schema, Stage::Output),
        (
            FailureKind::Refused
            | FailureKind::TimedOut
            | FailureKind::Malformed
            | FailureKind::ConnectionLost,
            _,
        ) => Fate::DeadLetter(Reason::Permanent, Stage::App),
    }
}

fn transient(
    settings: &Settings,
    failure: &Failure,
    attempts: Attempts,
    jitter: f64,
    now: Time,
) -> Fate {
    let exhausted = settings.attempts_max > 0 && attempts.counted >= settings.attempts_max;
    let too_old = attempts.age(now) >= settings.age_max;
    let reason = match (exhausted, failure.kind) {
        (true, FailureKind::Malformed) => Some(Reason::Permanent),
        (true, _) => Some(Reason::RetriesExhausted),
        (false, _) => too_old.then_some(Reason::MaxAge),
    };
    if let Some(reason) = reason {
        return match settings.on_exhausted {
            OnExhausted::DeadLetter => Fate::DeadLetter(reason, Stage::App),
            OnExhausted::Drop { .. } => Fate::Drop,
            OnExhausted::Block => Fate::Block,
        };
    }
    let asked = failure.retry_after.filter(|_| settings.respect_retry_after);
    match asked {
        Some(asked) => Fate::Retry {
            at: now.plus(asked.delay),
            all: asked.scope == RetryScope::All,
        },
        None => Fate::Retry {
            at: now.plus(backoff(settings, attempts.counted, jitter)),
            all: false,
        },
    }
}

/// Full jitter: anywhere between zero and the bound, which grows with each attempt.
pub fn backoff(settings: &Settings, attempts: u32, jitter: f64) -> Duration {
    let exponent = i32::try_from(attempts.saturating_sub(1).min(64)).expect("at most 64");
    let bound = settings.backoff_initial.as_secs_f64() * settings.backoff_multiplier.powi(exponent);
    Duration::from_secs_f64(bound.min(settings.backoff_max.as_secs_f64()) * jitter)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::outcome::RetryAfter;

    fn settings() -> Settings {
        Settings {
            attempts_max: 3,
            age_max: Duration::from_secs(600),
            backoff_initial: Duration::from_millis(200),
            backoff_multiplier: 2.0,
            backoff_max: Duration::from_secs(30),
            respect_retry_after: true,
            on_exhausted: OnExhausted::DeadLetter,
            oversized: Oversized::DeadLetter,
        }
    }

    fn failure(class: Class) -> Failure {
        Failure {
            class,
            kind: FailureKind::Refused,
            code: String::new(),
            message: String::new(),
            body: Bytes::new(),
            attempted: true,
            retry_after: None,
        }
    }

    const NOW: Time = Time {
        boot: Duration::from_secs(100),
        wall_ms: 1_000_000,
    };

    fn tried(at: Time) -> Attempts {
        let mut attempts = Attempts::default();
        attempts.begin(at);
        attempts
    }

    fn check(failure: &Failure, counted: u32, expect: &Fate, counted_after: u32) {
        let mut attempts = Attempts {
            counted,
            ..tried(NOW)
        };
        let fate = decide(&settings(), failure, &mut attempts, 1.0, NOW);
        assert_eq!(
            (&fate, attempts.counted),
            (expect, counted_after),
            "{failure:?}"
        );
    }

    #[test]
    fn the_class_decides_and_only_attempts_count() {
        let retry = |ms| Fate::Retry {
            at: NOW.plus(Duration::from_millis(ms)),
            all: false,
        };
        check(&failure(Class::Transient), 0, &retry(200), 1);
        check(&failure(Class::Transient), 1, &retry(400), 2);
        let exhausted = Fate::DeadLetter(Reason::RetriesExhausted, Stage::App);
        check(&failure(Class::Transient), 2, &exhausted, 3);
        let permanent = Fate::DeadLetter(Reason::Permanent, Stage::App);
        check(&failure(Class::Permanent), 0, &permanent, 1);
        check(&failure(Class::Misconfigured), 0, &Fate::Hold, 0);
        check(&failure(Class::Infra), 0, &Fate::Hold, 0);
    }

    #[test]
    fn d_f4_what_breaks_a_schema_is_dead_at_once_and_says_on_which_side() {
        let check_side = |failure: Failure, stage, counted| {
            let expect = Fate::DeadLetter(Reason::Schema, stage);
            check(&failure, 0, &expect, counted);
        };
        check_side(Failure::event_breaks_schema("x"), Stage::Input, 0);
        check_side(Failure::result_breaks_schema("x"), Stage::Output, 1);
    }

    #[test]
    fn d_r2_a_malformed_answer_is_transient_until_the_attempts_are_used_up() {
        let malformed = Failure {
            kind: FailureKind::Malformed,
            ..failure(Class::Transient)
        };
        let permanent = Fate::DeadLetter(Reason::Permanent, Stage::App);
        check(&malformed, 2, &permanent, 3);
    }

    #[test]
    fn d_b5_retry_after_waits_and_does_not_count_an_attempt() {
        let mut busy = failure(Class::Transient);
        busy.attempted = false;
        busy.retry_after = Some(RetryAfter {
            delay: Duration::from_secs(120),
            scope: RetryScope::All,
        });
        let wait = Fate::Retry {
            at: NOW.plus(Duration::from_secs(120)),
            all: true,
        };
        check(&busy, 2, &wait, 2);
    }

    #[test]
    fn the_age_counts_from_the_first_attempt_even_when_attempts_do_not() {
        let mut attempts = Attempts {
            first_ms: NOW.wall_ms - 600_000,
            ..Attempts::default()
        };
        let fate = decide(
            &settings(),
            &failure(Class::Transient),
            &mut attempts,
            0.0,
            NOW,
        );
        assert_eq!(fate, Fate::DeadLetter(Reason::MaxAge, Stage::App));
    }

    #[test]
    fn f_18_the_age_of_own_attempts_ignores_jumps_of_the_wall_clock() {
        let mut attempts = tried(NOW);
        let later = NOW.plus(Duration::from_secs(7));
        for wall_ms in [i64::MIN, 0, NOW.wall_ms + 86_400_000, i64::MAX] {
            let jumped = Time { wall_ms, ..later };
            attempts.begin(jumped);
            assert_eq!(attempts.age(jumped), Duration::from_secs(7), "{wall_ms}");
            assert_eq!(attempts.first_ms, NOW.wall_ms);
        }
    }

    #[test]
    fn f_18_an_attempt_of_a_previous_owner_in_the_future_ages_from_now_on() {
        for (ahead_ms, age_s) in [(86_400_000, 0), (-60_000, 60), (-200_000, 200)] {
            let mut attempts = Attempts {
                counted: 1,
                first_ms: NOW.wall_ms + ahead_ms,
                first_boot_ms: None,
            };
            attempts.begin(NOW);
            for seconds in [0, 30] {
                let age = attempts.age(NOW.plus(Duration::from_secs(seconds)));
                assert_eq!(age.as_secs(), age_s + seconds, "{ahead_ms}");
            }
        }
    }

    #[test]
    fn exhausted_events_follow_the_policy() {
        let mut settings = settings();
        settings.attempts_max = 1;
        for (policy, expect) in [
            (OnExhausted::Block, Fate::Block),
            (
                OnExhausted::Drop {
                    reason: "test".into(),
                },
                Fate::Drop,
            ),
        ] {
            settings.on_exhausted = policy;
            let fate = decide(
                &settings,
                &failure(Class::Transient),
                &mut tried(NOW),
                0.0,
                NOW,
            );
            assert_eq!(fate, expect);
        }
    }

    #[test]
    fn back_off_grows_to_its_maximum() {
        let settings = settings();
        assert_eq!(backoff(&settings, 1, 0.5), Duration::from_millis(100));
        assert_eq!(backoff(&settings, 4, 1.0), Duration::from_millis(1_600));
        assert_eq!(backoff(&settings, u32::MAX, 1.0), Duration::from_secs(30));
    }
}
