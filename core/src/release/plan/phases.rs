//! The transitions of section 6: from what is observed to the status that follows.
//!
//! Invariant: one look changes the phase at most once, and only as section 6 allows.

use super::super::name::Name;
use super::decisions::end;
use super::observed::{Observed, Verdict};
use super::policy::{APPROVAL_TIMEOUT, PREPARE_TIMEOUT, PROMOTE_TIMEOUT, Policy, passed};
use super::readiness;
use super::status::{Ending, Phase, Status, Wanted};
use crate::contract::block::{NewRelease, PromotionMode, Strategy};
use crate::limits::GUARD_PAUSES_MAX;
use crate::token::ReleaseId;

/// Notes what Git asks for.
pub(super) fn note_wanted(status: &mut Status, observed: &Observed) {
    let known = status.wanted.as_ref().map(|wanted| &wanted.hash8);
    if known != Some(&observed.spec.hash8) {
        status.wanted = Some(Wanted {
            generation: observed.spec.generation,
            hash8: observed.spec.hash8.clone(),
            attempts: 0,
        });
    }
}

/// Lets time, facts and Git take effect.
pub(super) fn advance(status: &mut Status, observed: &Observed, policy: &Policy, now_ms: i64) {
    if status.phase.is_before_promotion() && status.blue.is_some() && superseded(status, now_ms) {
        return;
    }
    if matches!(status.phase, Phase::Shadowing | Phase::Verified) {
        status.suspended = observed.guard.suspended;
    }
    match status.phase {
        Phase::New => first(status, observed, now_ms),
        Phase::Stable => stable(status, observed, now_ms),
        Phase::Preparing => preparing(status, observed, policy, now_ms),
        Phase::Shadowing => shadowing(status, observed, now_ms),
        Phase::Verified | Phase::Inconclusive => awaiting(status, observed, policy, now_ms),
        Phase::Failed => {
            if status.ending == Some(Ending::GateFailed) {
                status.enter(Phase::Aborting, now_ms);
            }
        }
        Phase::Promoting => promoting(status, observed, policy, now_ms),
        Phase::RollbackWindow => window(status, observed, policy, now_ms),
        Phase::RollingBack => rolling_back(status, observed, now_ms),
        Phase::Aborting => aborting(status, observed, now_ms),
    }
}

fn superseded(status: &mut Status, now_ms: i64) -> bool {
    if status.wants(status.blue.as_ref()) {
        return false;
    }
    // G2: Git back at what answers gives the candidate up; anything else comes first.
    let back = status.wants(status.green.as_ref());
    let ending = if back {
        Ending::Aborted
    } else {
        Ending::Superseded
    };
    end(status, ending, now_ms);
    true
}

fn first(status: &mut Status, observed: &Observed, now_ms: i64) {
    // Section 8: a status that was lost is rebuilt from what the brokers know.
    let holder = observed.registry.values().map(|grant| &grant.root).next();
    if let Some(root) = holder {
        let live = |release: &ReleaseId| {
            observed
                .fresh()
                .filter(|p| observed.live(release, p).is_some())
                .count()
        };
        let most = observed.groups.keys().max_by_key(|release| live(release));
        status.green = Some(most.filter(|r| live(r) > 0).unwrap_or(root).clone());
        status.enter(Phase::Stable, now_ms);
        return;
    }
    status.green = candidate(status, observed);
    status.enter(Phase::Preparing, now_ms);
}

fn stable(status: &mut Status, observed: &Observed, now_ms: i64) {
    let retired = |release: &ReleaseId| {
        !observed.groups.contains_key(release) && !observed.pods.contains_key(release)
    };
    if status.retiring.as_ref().is_some_and(retired) {
        status.retiring = None;
        return;
    }
    let wanted = !status.wants(status.green.as_ref()) && !status.wants_rejected();
    if wanted && status.retiring.is_none() {
        status.blue = candidate(status, observed);
        status.enter(Phase::Preparing, now_ms);
    }
}

/// The next attempt at what Git asks for; groups are never used again (T1).
fn candidate(status: &mut Status, observed: &Observed) -> Option<ReleaseId> {
    let wanted = status.wanted.as_mut()?;
    loop {
        wanted.attempts += 1;
        let id = Name {
            generation: wanted.generation,
            hash8: wanted.hash8.clone(),
            attempt: wanted.attempts,
        }
        .id();
        if !observed.groups.contains_key(&id) && !observed.pods.contains_key(&id) {
            return Some(id);
        }
    }
}

fn preparing(status: &mut Status, observed: &Observed, policy: &Policy, now_ms: i64) {
    let Some(blue) = &status.blue else {
        let green = status.green.as_ref();
        if green.is_some_and(|green| readiness::of(green, observed, now_ms).is_ok()) {
            status.enter(Phase::Stable, now_ms);
        }
        return;
    };
    let next = match policy.release.strategy {
        Strategy::BlueGreen => readiness::of(blue, observed, now_ms)
            .is_ok()
            .then_some(Phase::Shadowing),
        Strategy::Recreate => readiness::has_tokens(blue, observed).then_some(Phase::Promoting),
    };
    if let Some(next) = next {
        status.enter(next, now_ms);
    } else if passed(status.since_ms, PREPARE_TIMEOUT, now_ms) {
        status.ending = Some(Ending::NotReady);
        status.enter(Phase::Failed, now_ms);
    }
}

fn shadowing(status: &mut Status, observed: &Observed, now_ms: i64) {
    match observed.evidence.verdict {
        Verdict::Pass => return status.enter(Phase::Verified, now_ms),
        Verdict::Fail => {
            status.ending = Some(Ending::GateFailed);
            return status.enter(Phase::Failed, now_ms);
        }
        Verdict::Inconclusive => return status.enter(Phase::Inconclusive, now_ms),
        Verdict::Pending | Verdict::Error => {}
    }
    if status.suspended.pauses >= GUARD_PAUSES_MAX {
        status.enter(Phase::Inconclusive, now_ms);
    }
}

fn awaiting(status: &mut Status, observed: &Observed, policy: &Policy, now_ms: i64) {
    let promotion = &policy.release.promotion;
    let hash8 = status
        .blue
        .as_ref()
        .and_then(Name::read)
        .map(|name| name.hash8);
    let in_advance = promotion.approved_release.is_some() && promotion.approved_release == hash8;
    let approved = in_advance || status.approvals.len() >= approvals_needed(policy);
    let verified = status.phase == Phase::Verified;
    // J7: what is inconclusive, or held by a gate, is never promoted by itself.
    let unasked = verified && !observed.evidence.held;
    let auto = unasked && promotion.mode == PromotionMode::Auto;
    if auto || approved && (verified || status.waived) {
        status.enter(Phase::Promoting, now_ms);
    } else if verified && passed(status.since_ms, APPROVAL_TIMEOUT, now_ms) {
        end(status, Ending::ApprovalExpired, now_ms);
    }
}

/// How many people must speak: one at least, for Manual means that a person starts it.
pub(super) fn approvals_needed(policy: &Policy) -> usize {
    let required = policy.release.promotion.approvals.required.max(1);
    usize::try_from(required).unwrap_or(usize::MAX)
}

fn promoting(status: &mut Status, observed: &Observed, policy: &Policy, now_ms: i64) {
    if failing(observed, policy, now_ms) {
        status.ending = Some(Ending::RolledBack);
        return status.enter(Phase::RollingBack, now_ms);
    }
    let (Some(blue), Some(targeted)) = (&status.blue, status.targeted) else {
        return;
    };
    if observed.all_live(blue, targeted) {
        return status.enter(Phase::RollbackWindow, now_ms);
    }
    let late = passed(status.since_ms, PREPARE_TIMEOUT, now_ms);
    let hung = policy.release.strategy == Strategy::Recreate
        && late
        && readiness::of(blue, observed, now_ms).is_err();
    if hung {
        // Recreate: a candidate that does not start hands back what it never adopted (R11).
        status.ending = Some(Ending::NotReady);
        status.deposed = [blue.clone()].into();
        return status.enter(Phase::RollingBack, now_ms);
    }
    status.stalled |= passed(status.since_ms, PROMOTE_TIMEOUT, now_ms);
}

fn window(status: &mut Status, observed: &Observed, policy: &Policy, now_ms: i64) {
    let rollback = &policy.release.rollback;
    if failing(observed, policy, now_ms) || status.wants(status.green.as_ref()) {
        status.ending = Some(Ending::RolledBack);
        return status.enter(Phase::RollingBack, now_ms);
    }
    let newer = !status.wants(status.blue.as_ref());
    let settle = newer && policy.release.on_new_release == NewRelease::Settle;
    if settle || passed(status.since_ms, rollback.window, now_ms) {
        status.retiring = status.green.take();
        status.green = status.blue.take();
        status.clear();
        status.enter(Phase::Stable, now_ms);
    }
}

/// `release.rollback.auto`.
fn failing(observed: &Observed, policy: &Policy, now_ms: i64) -> bool {
    let auto = policy.release.rollback.auto.as_ref();
    let since = observed.guard.failing_since_ms;
    matches!((auto, since), (Some(auto), Some(since)) if passed(since, auto.during, now_ms))
}

fn rolling_back(status: &mut Status, observed: &Observed, now_ms: i64) {
    let (Some(green), Some(intent)) = (&status.green, &status.intent) else {
        return;
    };
    if intent.target == *green && observed.all_live(green, intent.epoch) {
        return status.enter(Phase::Aborting, now_ms);
    }
    status.stalled |= passed(status.since_ms, PROMOTE_TIMEOUT, now_ms);
}

fn aborting(status: &mut Status, observed: &Observed, now_ms: i64) {
    let (Some(green), Some(blue)) = (status.green.clone(), status.blue.clone()) else {
        return;
    };
    let gone = !observed.groups.contains_key(&blue) && !observed.pods.contains_key(&blue);
    if !gone || !may_discard(status, &green, observed) {
        return;
    }
    let ending = status.ending.unwrap_or(Ending::Aborted);
    status.clear();
    match ending {
        Ending::Retry if status.wants(Some(&blue)) => {
            status.blue = candidate(status, observed);
            return status.enter(Phase::Preparing, now_ms);
        }
        Ending::Superseded | Ending::Retry => {}
        Ending::GateFailed
        | Ending::NotReady
        | Ending::Rejected
        | Ending::ApprovalExpired
        | Ending::Aborted
        | Ending::RolledBack => status.rejected.push(blue),
    }
    status.enter(Phase::Stable, now_ms);
}

/// Whether no intent that still travels could give the candidate a partition (R8, section 6).
pub(super) fn may_discard(status: &Status, green: &ReleaseId, observed: &Observed) -> bool {
    observed.all_live(green, status.targeted.map_or(0, |epoch| epoch + 1))
}
