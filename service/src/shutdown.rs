//! Signal, drain, deadline: how a process ends (D-S4).
//!
//! The first SIGTERM or SIGINT asks for a drain; the second ends the process at once. A drain
//! that is not done at its deadline ends too: what is unfinished is read again (D-S5).

use std::future::Future;
use std::time::Duration;

use millrace_core::contract::block::agogosml::Profile;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Time for a drain: the grace period of a pod (60 s) less 5 s to end in (D-S4).
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(55);

/// How far the end has come. Only ever goes down this list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Running,
    Draining,
    Drained,
    AtOnce,
}

/// Asks for the end and waits for it. All clones are one.
#[derive(Clone, Debug)]
pub struct Shutdown {
    phase: watch::Sender<Phase>,
}

/// How work that may be drained ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended<T> {
    /// By itself.
    Done(T),
    /// The drain was asked for and took longer than it may.
    Late,
    /// A second signal.
    AtOnce,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// Nobody asks for the end yet.
    pub fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
        }
    }

    /// Listens to SIGTERM and SIGINT until the runtime ends.
    ///
    /// # Errors
    /// If the signal handlers cannot be installed.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let shutdown = self.clone();
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            tracing::info!("asked to end, draining; ask again to end at once");
            shutdown.request();
            either(&mut terminate, &mut interrupt).await;
            tracing::warn!("asked to end again, ending without drain");
            shutdown.at_once();
        });
        Ok(())
    }

    /// Does what the environment of an agogosml deployment asks of a process, and tells what
    /// of it does nothing.
    pub fn obey(&self, profile: &Profile) {
        if !profile.ignored.is_empty() {
            tracing::warn!(variables = ?profile.ignored, "these variables do nothing any more");
        }
        let Some(after) = profile.stop_after else {
            return;
        };
        let shutdown = self.clone();
        tokio::spawn(async move {
            // TIMEOUT: the process ends by itself.
            tokio::time::sleep(after).await;
            tracing::info!(?after, "the time is over, draining");
            shutdown.request();
        });
    }

    /// Asks for a drain.
    pub fn request(&self) {
        self.advance(Phase::Draining);
    }

    /// Asks for the end without a drain.
    pub fn at_once(&self) {
        self.advance(Phase::AtOnce);
    }

    /// Says that nothing is in flight any more; `/drain?wait=1` returns.
    pub fn drained(&self) {
        self.advance(Phase::Drained);
    }

    /// Whether somebody asked for the end.
    pub fn is_requested(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Waits until somebody asks for the end. Cancel-safe.
    pub async fn requested(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until somebody wants the end without a drain. Cancel-safe.
    pub async fn when_at_once(&self) {
        self.reached(Phase::AtOnce).await;
    }

    /// Waits until nothing is in flight any more. Cancel-safe.
    pub async fn when_drained(&self) {
        self.reached(Phase::Drained).await;
    }

    /// Runs `work`, which drains when [`Shutdown::requested`], until it is done, the deadline
    /// after the request has passed, or a second signal comes.
    pub async fn run<T>(&self, work: impl Future<Output = T>, deadline: Duration) -> Ended<T> {
        let late = async {
            self.requested().await;
            tokio::time::sleep(deadline).await;
        };
        tokio::select! {
            biased;
            () = self.reached(Phase::AtOnce) => Ended::AtOnce,
            done = work => Ended::Done(done),
            () = late => Ended::Late,
        }
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let further = to > *phase;
            *phase = to.max(*phase);
            further
        });
    }

    async fn reached(&self, wanted: Phase) {
        let mut phase = self.phase.subscribe();
        phase
            .wait_for(|phase| *phase >= wanted)
            .await
            .expect("self holds a sender for as long as this waits");
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn d_s4_a_drain_has_a_deadline_and_a_second_request_ends_at_once() {
        let shutdown = Shutdown::new();
        let never = || std::future::pending::<()>();
        assert_eq!(
            shutdown.run(async { 7 }, DRAIN_DEADLINE).await,
            Ended::Done(7)
        );
        let (ended, ()) = tokio::join!(shutdown.run(never(), DRAIN_DEADLINE), async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            shutdown.request();
        });
        assert_eq!(ended, Ended::Late);
        let (ended, ()) = tokio::join!(shutdown.run(never(), DRAIN_DEADLINE), async {
            shutdown.at_once()
        });
        assert_eq!(ended, Ended::AtOnce);
    }

    #[tokio::test]
    async fn the_end_never_goes_back() {
        let shutdown = Shutdown::new();
        shutdown.drained();
        shutdown.request();
        assert!(shutdown.is_requested());
        shutdown.when_drained().await;
    }

    #[tokio::test]
    async fn d_s3_sigterm_asks_for_a_drain_and_a_second_one_for_the_end() {
        let shutdown = Shutdown::new();
        shutdown.on_signals().unwrap();
        let pid = rustix::process::getpid();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        shutdown.requested().await;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        shutdown.reached(Phase::AtOnce).await;
    }
}
