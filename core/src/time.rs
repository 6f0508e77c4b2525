//! Time as the machines see it: passed in, never read.
//!
//! Leases use `boot`, which all containers of a node share and which goes on during sleep
//! (`CLOCK_BOOTTIME`). Ages that survive a restart begin with `wall`, which may be wrong, and then go
//! on with `boot`.

use std::time::Duration;

/// One reading of both clocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time {
    /// Since the node started; never goes back.
    pub boot: Duration,
    /// Milliseconds since 1970; may jump.
    pub wall_ms: i64,
}

impl Time {
    /// The instant `after` later, on both clocks.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self {
            boot: self.boot + after,
            wall_ms: self
                .wall_ms
                .saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)),
        }
    }

    /// How long after `earlier` this is on the boot clock; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.boot.saturating_sub(earlier.boot)
    }
}
