//! Waiting for conditions: the only clock of the stories.
//!
//! Invariant: no story waits for an amount of time, and none waits without a bound.

use std::time::Duration;

use tokio::time::Instant;

/// How long a story waits for what must happen; only broken things take longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A moment after which waiting is over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    began: Instant,
    length: Duration,
}

impl Deadline {
    /// So long from now.
    pub fn after(length: Duration) -> Self {
        Self {
            began: Instant::now(),
            length,
        }
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.elapsed() >= self.length
    }

    /// Since it was made.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// The usual bound.
pub fn patience() -> Deadline {
    Deadline::after(PATIENCE)
}

/// Looks again and again until there is something.
///
/// # Panics
/// If it takes longer than [`PATIENCE`].
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    let found = look_for(PATIENCE, look);
    found.unwrap_or_else(|| panic!("{what}: not within {} s", PATIENCE.as_secs()))
}

/// Waits for a condition.
///
/// # Panics
/// If it takes longer than [`PATIENCE`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// Looks for so long.
pub fn look_for<T>(length: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Deadline::after(length);
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if deadline.is_over() {
            return None;
        }
        between_looks(LOOK);
    }
}

/// Lets so much time pass where time itself is the story: a frozen process, a pace of load.
pub fn let_pass(length: Duration) {
    between_looks(length);
}

#[expect(
    clippy::disallowed_methods,
    reason = "stories look at processes and brokers from outside, which cannot wake them"
)]
fn between_looks(length: Duration) {
    // Between two looks at a condition, not instead of one.
    std::thread::sleep(length);
}
