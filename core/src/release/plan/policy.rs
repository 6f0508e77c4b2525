//! How releases shall go, and the times of section 9 that have no keys.

use std::time::Duration;

use crate::contract::block::{Block, Release};

/// How releases shall go.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// Section `release` of the block document.
    pub release: Release,
    /// `replicas`: pods of the live release.
    pub replicas: u32,
}

impl Policy {
    /// What a block document says.
    pub fn of(block: &Block) -> Self {
        Self {
            release: block.release.clone(),
            replicas: block.replicas,
        }
    }
}

/// How long a release may take to become ready.
pub const PREPARE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How long a hand-over may take before people are told.
pub const PROMOTE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How long an approval may take.
pub const APPROVAL_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long a group must not have changed.
pub const GROUP_STABLE: Duration = Duration::from_secs(15);

/// Whether `after` has passed since `since_ms`.
pub(super) fn passed(since_ms: i64, after: Duration, now_ms: i64) -> bool {
    left(since_ms, after, now_ms).is_zero()
}

/// How much of `after` is left.
pub(super) fn left(since_ms: i64, after: Duration, now_ms: i64) -> Duration {
    let gone = u64::try_from(now_ms.saturating_sub(since_ms)).unwrap_or(0);
    after.saturating_sub(Duration::from_millis(gone))
}
