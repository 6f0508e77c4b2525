//! Adaptive concurrency: how many calls may be open at the app (D-C2).
//!
//! Invariant: the limit grows only while it is what holds calls back, and shrinks at most once
//! per round, so that one slow moment does not undo a minute of learning.

use std::time::Duration;

/// How many calls may be open (`flow.concurrency`, `app.contract.maxInFlight`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Concurrency {
    /// Learn it, between 1 and this.
    Adaptive {
        /// `app.contract.maxInFlight`.
        max: u32,
    },
    /// Always this many.
    Fixed(u32),
}

/// Where learning starts.
const START: f64 = 4.0;
const SHRINK: f64 = 0.75;
/// A recent latency above this many baselines is a sign of overload.
const OVERLOAD: f64 = 2.0;

/// The learned limit and the open calls.
#[derive(Debug)]
pub struct Window {
    concurrency: Concurrency,
    limit: f64,
    open: u32,
    /// Calls that ended well since the limit last changed while it was binding.
    successes: u32,
    /// Calls that ended since the limit last shrank.
    since_shrink: u32,
    baseline_s: f64,
    recent_s: f64,
}

impl Window {
    /// No calls open.
    pub fn new(concurrency: Concurrency) -> Self {
        let limit = match concurrency {
            Concurrency::Adaptive { max } => START.min(f64::from(max)),
            Concurrency::Fixed(n) => f64::from(n),
        };
        Self {
            concurrency,
            limit: limit.max(1.0),
            open: 0,
            successes: 0,
            since_shrink: 0,
            baseline_s: 0.0,
            recent_s: 0.0,
        }
    }

    /// Calls that may be open now.
    pub fn limit(&self) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the limit lies between 1 and a u32"
        )]
        let limit = self.limit as u32;
        limit
    }

    /// Calls that are open.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Whether one more call may be opened.
    pub fn has_room(&self) -> bool {
        self.open < self.limit()
    }

    /// A call was opened.
    pub fn opened(&mut self) {
        self.open += 1;
    }

    /// A call ended well after this long.
    pub fn succeeded(&mut self, latency: Duration) {
        let binding = self.open >= self.limit();
        self.closed();
        let Concurrency::Adaptive { max } = self.concurrency else {
            return;
        };
        let latency = latency.as_secs_f64();
        if self.baseline_s == 0.0 {
            self.baseline_s = latency;
            self.recent_s = latency;
        }
        self.recent_s += (latency - self.recent_s) * 0.1;
        self.baseline_s += (latency - self.baseline_s) * 0.01;
        if self.recent_s > OVERLOAD * self.baseline_s {
            self.shrink();
        } else if binding {
            self.successes += 1;
            if self.successes >= self.limit() {
                self.successes = 0;
                self.limit = (self.limit + 1.0).min(f64::from(max.max(1)));
            }
        }
    }

    /// A call timed out or failed in passing.
    pub fn failed(&mut self) {
        self.closed();
        self.shrink();
    }

    /// A call ended in a way that says nothing about load.
    pub fn closed(&mut self) {
        assert!(self.open > 0, "a call ended that was not open");
        self.open -= 1;
        self.since_shrink += 1;
    }

    fn shrink(&mut self) {
        if matches!(self.concurrency, Concurrency::Fixed(_)) || self.since_shrink < self.limit() {
            return;
        }
        self.limit = (self.limit * SHRINK).max(1.0);
        self.successes = 0;
        self.since_shrink = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(1);
    const SLOW: Duration = Duration::from_millis(100);

    fn round(window: &mut Window, latency: Duration) {
        while window.has_room() {
            window.opened();
        }
        for _ in 0..window.open() {
            window.succeeded(latency);
            window.opened();
        }
        for _ in 0..window.open() {
            window.closed();
        }
    }

    #[test]
    fn d_c2_it_grows_while_the_limit_is_binding_up_to_the_maximum() {
        let mut window = Window::new(Concurrency::Adaptive { max: 8 });
        assert_eq!(window.limit(), 4);
        for _ in 0..20 {
            round(&mut window, FAST);
        }
        assert_eq!(window.limit(), 8);
    }

    #[test]
    fn d_c2_it_does_not_grow_while_calls_are_few() {
        let mut window = Window::new(Concurrency::Adaptive { max: 8 });
        for _ in 0..100 {
            window.opened();
            window.succeeded(FAST);
        }
        assert_eq!(window.limit(), 4);
    }

    #[test]
    fn d_c2_it_shrinks_on_failure_and_on_overload_but_never_below_one() {
        let mut window = Window::new(Concurrency::Adaptive { max: 8 });
        for _ in 0..20 {
            round(&mut window, FAST);
        }
        for _ in 0..10 {
            round(&mut window, SLOW);
        }
        assert!(window.limit() < 8, "{}", window.limit());
        for _ in 0..100 {
            window.opened();
            window.failed();
        }
        assert_eq!(window.limit(), 1);
    }

    #[test]
    fn d_c2_a_number_fixes_it() {
        let mut window = Window::new(Concurrency::Fixed(3));
        for _ in 0..10 {
            round(&mut window, FAST);
        }
        for _ in 0..3 {
            window.opened();
        }
        assert!(!window.has_room());
        window.failed();
        assert_eq!(window.limit(), 3);
    }
}
