//! Whether a release can do what it is there for.

use super::actions::{Reason, Subject, Wait};
use super::observed::{Members, Observed};
use super::policy::{GROUP_STABLE, passed};
use crate::token::ReleaseId;

/// Pods ready, group stable, every partition assigned; else what is missing.
pub(super) fn of(release: &ReleaseId, observed: &Observed, now_ms: i64) -> Result<(), Wait> {
    let pods = observed.pods.get(release);
    let (ready, wanted) = pods.map_or((0, 0), |pods| (pods.ready, pods.wanted));
    if wanted == 0 || ready < wanted {
        return Err(wait(release, Reason::Pods { ready, wanted }));
    }
    match observed.groups.get(release).map(|group| &group.members) {
        Some(Members::Stable { since_ms, assigned }) => {
            let missing = observed.fresh().filter(|p| !assigned.contains(p)).count();
            if missing > 0 {
                let partitions = missing;
                return Err(wait(release, Reason::Unassigned { partitions }));
            }
            if !passed(*since_ms, GROUP_STABLE, now_ms) {
                return Err(wait(release, Reason::Moving));
            }
            Ok(())
        }
        Some(Members::Empty | Members::Moving) | None => Err(wait(release, Reason::Moving)),
    }
}

/// Every partition has a token in the release's group.
pub(super) fn has_tokens(release: &ReleaseId, observed: &Observed) -> bool {
    observed.partitions.is_some()
        && observed
            .fresh()
            .all(|p| observed.token(release, p).is_some())
}

pub(super) fn wait(release: &ReleaseId, reason: Reason) -> Wait {
    Wait {
        subject: Subject::Release(release.clone()),
        reason,
    }
}
