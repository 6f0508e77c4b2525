//! When an auth token is asked for, how long it serves, and what is told about it (D-P2, F-17).
//!
//! An auth token shows brokers who we are (SASL OAUTHBEARER); it has nothing to do with the token
//! of a partition. [`answer`] reads one from what a token endpoint answers, [`Keeper`] decides
//! when the endpoint is asked. The driver asks, and hands the token to the clients.
//!
//! Invariant: a renewal is due at 80 % of a token's life, and a failed one takes nothing away:
//! the old token serves until its end.
//! Invariant: the endpoint is never asked twice within half of the first pause, whatever it
//! answers; only a changed secret is tried at once.
//! Invariant: no text of a token or secret is printed; `Debug` shows dots.

use std::fmt;
use std::time::Duration;

use crate::limits::AUTH_RETRY;
use crate::random::Random;
use crate::time::Time;

pub mod answer;

/// The part of its life that a token has when it is renewed (D-P2).
const RENEWED_AT: f64 = 0.8;

/// A token as the endpoint gave it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthToken {
    /// What brokers are shown.
    pub text: String,
    /// Whom it is about, for logs of the client.
    pub principal: String,
    /// From its arrival to its end.
    pub life: Duration,
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthToken")
            .field("text", &"…")
            .field("principal", &self.principal)
            .field("life", &self.life)
            .finish()
    }
}

/// What the driver does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask the endpoint, and tell how that ended.
    Ask,
    /// Wait so long, or until the secret changes.
    Wait(Duration),
}

/// A token that is in use, on the boot clock.
#[derive(Clone, Copy, Debug)]
struct Held {
    ends: Duration,
}

/// Keeps one connection's token.
#[derive(Debug)]
pub struct Keeper {
    held: Option<Held>,
    /// When to ask next, on the boot clock.
    due: Duration,
    /// Failures in a row.
    failures: u32,
    /// The last of them.
    reason: Option<String>,
    random: Random,
}

impl Keeper {
    /// A keeper without a token, which wants one at once. The seed decides jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            held: None,
            due: Duration::ZERO,
            failures: 0,
            reason: None,
            random: Random(seed),
        }
    }

    /// What to do now.
    pub fn step(&self, now: Time) -> Step {
        match self.due.checked_sub(now.boot) {
            None | Some(Duration::ZERO) => Step::Ask,
            Some(wait) => Step::Wait(wait),
        }
    }

    /// The endpoint gave a token with this life.
    pub fn given(&mut self, now: Time, life: Duration) {
        self.held = Some(Held {
            ends: now.boot + life,
        });
        // An endpoint that gives tokens without a life is not asked without a pause.
        self.due = now.boot + life.mul_f64(RENEWED_AT).max(AUTH_RETRY.0);
        self.failures = 0;
        self.reason = None;
    }

    /// The endpoint gave none.
    pub fn failed(&mut self, now: Time, reason: String) {
        let (first, last) = AUTH_RETRY;
        let bound = first
            .saturating_mul(2u32.saturating_pow(self.failures.min(16)))
            .min(last);
        self.due = now.boot + bound.mul_f64(0.5 + self.random.unit() / 2.0);
        self.failures = self.failures.saturating_add(1);
        self.reason = Some(reason);
    }

    /// What the endpoint wants to know has changed: it is asked at once.
    pub fn secret_changed(&mut self, now: Time) {
        self.due = now.boot;
        self.failures = 0;
    }

    /// Until the end of the token in use; zero without one.
    pub fn left(&self, now: Time) -> Duration {
        self.held
            .map_or(Duration::ZERO, |held| held.ends.saturating_sub(now.boot))
    }

    /// Why brokers let nobody in: there is no token that has not ended, and the endpoint gave no
    /// other. `None` while the first answer is awaited.
    pub fn missing(&self, now: Time) -> Option<&str> {
        match &self.reason {
            Some(reason) if self.left(now).is_zero() => Some(reason),
            Some(_) | None => None,
        }
    }

    /// How often the endpoint has failed since it last gave a token, or was told another secret.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(100);

    fn at(seconds: f64) -> Time {
        Time {
            boot: Duration::from_secs_f64(1_000.0 + seconds),
            wall_ms: 0,
        }
    }

    fn wait(keeper: &Keeper, now: Time) -> Duration {
        match keeper.step(now) {
            Step::Wait(wait) => wait,
            Step::Ask => panic!("nothing is due: {keeper:?}"),
        }
    }

    #[test]
    fn d_p2_a_token_is_renewed_at_80_percent_of_its_life() {
        let mut keeper = Keeper::new(1);
        assert_eq!(keeper.step(at(0.0)), Step::Ask);
        keeper.given(at(0.0), LIFE);
        assert_eq!(wait(&keeper, at(0.0)), Duration::from_secs(80));
        assert_eq!(wait(&keeper, at(79.0)), Duration::from_secs(1));
        assert_eq!(keeper.step(at(80.0)), Step::Ask);
        keeper.given(at(80.0), LIFE);
        assert_eq!(keeper.left(at(80.0)), LIFE);
        assert_eq!(wait(&keeper, at(80.0)), Duration::from_secs(80));
    }

    #[test]
    fn f_17_the_old_token_serves_until_its_end_while_renewals_fail() {
        let mut keeper = Keeper::new(1);
        keeper.given(at(0.0), LIFE);
        keeper.failed(at(80.0), "refused".to_owned());
        assert_eq!(keeper.left(at(80.0)), Duration::from_secs(20));
        assert_eq!(keeper.missing(at(99.9)), None);
        assert_eq!(keeper.left(at(100.0)), Duration::ZERO);
        assert_eq!(keeper.missing(at(100.0)), Some("refused"));
        assert_eq!(
            keeper.left(at(500.0)),
            Duration::ZERO,
            "it never goes below"
        );
        keeper.given(at(500.0), LIFE);
        assert_eq!(keeper.missing(at(500.0)), None);
        assert_eq!(keeper.failures(), 0);
    }

    #[test]
    fn d_p2_retries_have_jitter_and_a_bound() {
        let mut pauses = Vec::new();
        for seed in 0..50 {
            let mut keeper = Keeper::new(seed);
            let (mut bound, last) = AUTH_RETRY;
            for _ in 0..70 {
                keeper.failed(at(0.0), String::new());
                let pause = wait(&keeper, at(0.0));
                assert!(pause >= bound / 2 && pause <= bound, "{pause:?} {bound:?}");
                bound = (bound * 2).min(last);
            }
            pauses.push(wait(&keeper, at(0.0)));
        }
        pauses.sort();
        pauses.dedup();
        assert!(pauses.len() > 40, "proxies ask at different moments");
    }

    #[test]
    fn c3_a_changed_secret_is_tried_at_once() {
        let mut keeper = Keeper::new(1);
        for _ in 0..9 {
            keeper.failed(at(0.0), "unknown client".to_owned());
        }
        keeper.secret_changed(at(0.0));
        assert_eq!(keeper.step(at(0.0)), Step::Ask);
        assert_eq!(keeper.missing(at(0.0)), Some("unknown client"));
        keeper.failed(at(0.0), "unknown client".to_owned());
        assert!(wait(&keeper, at(0.0)) <= AUTH_RETRY.0);
    }

    #[test]
    fn before_the_first_answer_nothing_is_missing_yet() {
        let mut keeper = Keeper::new(1);
        assert_eq!(keeper.missing(at(0.0)), None);
        assert_eq!(keeper.left(at(0.0)), Duration::ZERO);
        keeper.failed(at(0.0), "away".to_owned());
        assert_eq!(keeper.missing(at(0.0)), Some("away"));
    }

    #[test]
    fn a_token_without_a_life_is_not_asked_for_without_a_pause() {
        let mut keeper = Keeper::new(1);
        keeper.given(at(0.0), Duration::from_millis(1));
        assert_eq!(wait(&keeper, at(0.0)), AUTH_RETRY.0);
    }

    #[test]
    fn d_p4_a_token_is_never_printed() {
        let token = AuthToken {
            text: "geheim".to_owned(),
            principal: "me".to_owned(),
            life: LIFE,
        };
        let printed = format!("{token:?}");
        assert!(!printed.contains("geheim") && printed.contains("me"));
    }
}
