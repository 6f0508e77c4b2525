//! What the probes answer (D-H1).
//!
//! `/livez` asks only whether the loop of the process moves; `/readyz` whether it can do its
//! work; `/startupz` whether it has come up, and must not wait for the app (D-S2).
//!
//! Invariant: once ready, an outage outside the process makes it degraded, never unready: a
//! restart or another address would not help.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::time::clock;

/// Without progress for this long a process is dead (D-H1).
pub const PROGRESS_WITHIN: Duration = Duration::from_secs(60);

/// Health of a process. All clones are one.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    progressed_ms: AtomicU64,
    started: AtomicBool,
    was_ready: AtomicBool,
    readiness: Mutex<Readiness>,
}

/// Whether a process can do its work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// It waits for this, such as "waiting for the app".
    Waiting(String),
    /// It can.
    Ready,
    /// It could, and this is missing now, such as "no broker is reachable".
    Degraded(String),
}

/// What a probe answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// 200 or 503.
    pub ok: bool,
    /// One word.
    pub status: &'static str,
    /// Why, where there is more to say.
    pub reason: Option<String>,
}

impl Answer {
    fn new(ok: bool, status: &'static str, reason: Option<String>) -> Self {
        Self { ok, status, reason }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// A process that has just begun.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            progressed_ms: AtomicU64::new(boot_ms()),
            started: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
            readiness: Mutex::new(Readiness::Waiting("starting".to_owned())),
        }))
    }

    /// The loop has come round. Cheap; call it each time.
    pub fn progressed(&self) {
        self.0.progressed_ms.store(boot_ms(), Ordering::Relaxed);
    }

    /// The process has come up: configuration read, ports open.
    pub fn has_started(&self) {
        self.0.started.store(true, Ordering::Relaxed);
    }

    /// Tells whether it can do its work now.
    pub fn set(&self, readiness: Readiness) {
        if readiness == Readiness::Ready {
            self.0.was_ready.store(true, Ordering::Relaxed);
        }
        *self
            .0
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = readiness;
    }

    /// What was told last.
    pub fn readiness(&self) -> Readiness {
        self.0
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// `/livez`.
    pub fn live(&self) -> Answer {
        self.live_at(boot_ms())
    }

    fn live_at(&self, now_ms: u64) -> Answer {
        let still = Duration::from_millis(
            now_ms.saturating_sub(self.0.progressed_ms.load(Ordering::Relaxed)),
        );
        if still < PROGRESS_WITHIN {
            Answer::new(true, "live", None)
        } else {
            Answer::new(
                false,
                "stuck",
                Some(format!("no progress for {} s", still.as_secs())),
            )
        }
    }

    /// `/readyz`.
    pub fn ready(&self) -> Answer {
        let was_ready = self.0.was_ready.load(Ordering::Relaxed);
        match self.readiness() {
            Readiness::Ready => Answer::new(true, "ready", None),
            Readiness::Waiting(reason) if was_ready => {
                Answer::new(false, "not ready", Some(reason))
            }
            Readiness::Degraded(reason) if was_ready => Answer::new(true, "degraded", Some(reason)),
            Readiness::Waiting(reason) | Readiness::Degraded(reason) => {
                Answer::new(false, "starting", Some(reason))
            }
        }
    }

    /// `/startupz`.
    pub fn started(&self) -> Answer {
        if self.0.started.load(Ordering::Relaxed) {
            Answer::new(true, "started", None)
        } else {
            Answer::new(false, "starting", None)
        }
    }
}

fn boot_ms() -> u64 {
    u64::try_from(clock().boot.as_millis()).expect("a node does not run for 500 million years")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_h1_a_process_without_progress_for_a_minute_is_dead() {
        let health = Health::new();
        assert!(health.live_at(boot_ms() + 59_000).ok);
        assert!(!health.live_at(boot_ms() + 61_000).ok);
    }

    #[test]
    fn d_h1_an_outage_after_the_first_readiness_is_degraded_not_unready() {
        let health = Health::new();
        let outage = Readiness::Degraded("no broker is reachable".to_owned());
        health.set(outage.clone());
        assert!(!health.ready().ok, "it was never ready");
        health.set(Readiness::Ready);
        assert!(health.ready().ok);
        health.set(outage);
        assert_eq!(
            (health.ready().ok, health.ready().status),
            (true, "degraded")
        );
        health.set(Readiness::Waiting("the app is not ready".to_owned()));
        assert!(!health.ready().ok);
    }

    #[test]
    fn d_s2_starting_up_does_not_wait_for_readiness() {
        let health = Health::new();
        assert!(!health.started().ok);
        health.has_started();
        assert!(health.started().ok && !health.ready().ok);
    }
}
