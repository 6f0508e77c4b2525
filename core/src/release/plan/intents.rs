//! Which intent a block should have, and its epoch (R8, R13, section 6).
//!
//! Invariant: an intent that changes gets a new epoch, above every epoch that any token or grant
//! carries.
//! Invariant: during a promotion the covered partitions only grow, so an owner that has not read
//! the previous intent is asked for the same by the next one.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::observed::Observed;
use super::policy::{Policy, passed};
use super::readiness;
use super::status::{Ending, Phase, Status};
use crate::contract::block::Strategy;
use crate::contract::intent::{Intent, Partitions, ShadowSample};
use crate::position::Partition;
use crate::token::{ReleaseId, Token};

/// Gives the status the intent of its phase.
pub(super) fn settle(status: &mut Status, observed: &Observed, policy: &Policy, now_ms: i64) {
    if observed.partitions.is_none() {
        return;
    }
    let newest = observed.newest_epoch();
    let known = status.intent.as_ref().map(|intent| intent.epoch);
    // First tokens carry epoch 1 and need no intent.
    let behind = newest > known.unwrap_or(1);
    let Some(wish) = wish(status, observed, policy, now_ms) else {
        return;
    };
    let same = status.intent.as_ref().is_some_and(|intent| {
        intent.target == wish.target
            && intent.partitions == wish.partitions
            && intent.shadow == wish.shadow
    });
    let unasked = status.intent.is_none() && status.phase == Phase::Stable;
    if !behind && (same || unasked) {
        return;
    }
    status.epoch_repaired = behind;
    let epoch = newest.max(known.unwrap_or(1)) + 1;
    if status.blue.as_ref() == Some(&wish.target) {
        status.targeted = Some(epoch);
    }
    status.intent = Some(Intent { epoch, ..wish });
}

fn wish(status: &Status, observed: &Observed, policy: &Policy, now_ms: i64) -> Option<Intent> {
    let green = status.green.as_ref()?;
    let intent = |target: &ReleaseId, partitions, reason: &str| Intent {
        epoch: 0,
        target: target.clone(),
        from: None,
        partitions,
        shadow: None,
        reason: reason.to_owned(),
        decision: None,
    };
    let stay = |reason| intent(green, settled(green, observed), reason);
    let Some(blue) = &status.blue else {
        return (status.phase == Phase::Stable).then(|| stay("settled"));
    };
    let shadow = shadow(status, blue, observed, policy);
    match status.phase {
        Phase::New | Phase::Stable => None,
        Phase::Preparing | Phase::Shadowing | Phase::Verified => Some(Intent {
            shadow,
            ..stay("shadow")
        }),
        Phase::Inconclusive | Phase::Failed => Some(stay("hold")),
        Phase::Promoting => Some(Intent {
            shadow,
            from: Some(green.clone()),
            ..intent(
                blue,
                covered(status, green, blue, observed, policy, now_ms),
                "promote",
            )
        }),
        Phase::RollbackWindow => Some(intent(blue, settled(blue, observed), "promoted")),
        Phase::RollingBack => Some(Intent {
            from: Some(blue.clone()),
            ..stay("rollback")
        }),
        Phase::Aborting => Some(stay(match status.ending {
            Some(Ending::RolledBack) => "rollback",
            Some(_) | None => "abort",
        })),
    }
}

/// Every partition that `target` can adopt or has: those with an open grant come later (R13), and
/// without a token it halts (R9), so a seal to it would leave the partition to nobody.
fn settled(target: &ReleaseId, observed: &Observed) -> Partitions {
    let waits = |partition: &&Partition| {
        let grant = observed.registry.get(*partition);
        grant.is_some_and(|grant| grant.release.is_some())
            || observed.token(target, partition).is_none()
    };
    if !observed.fresh().any(|partition| waits(&partition)) {
        return Partitions::All;
    }
    Partitions::of(observed.fresh().filter(|partition| !waits(partition)))
}

fn shadow(
    status: &Status,
    blue: &ReleaseId,
    observed: &Observed,
    policy: &Policy,
) -> Option<ShadowSample> {
    let reads_along = policy.release.strategy == Strategy::BlueGreen && !status.is_suspended();
    reads_along.then(|| ShadowSample {
        release: blue.clone(),
        partitions: Partitions::of(first_of(observed, policy.release.shadow.partitions)),
    })
}

/// All partitions, those with the lowest hashes first: the sample (R7) and the canary.
fn by_hash(observed: &Observed) -> Vec<&Partition> {
    let hash = |partition: &Partition| -> [u8; 32] {
        let text = format!("{}/{}", partition.topic(), partition.number());
        Sha256::digest(text.as_bytes()).into()
    };
    let mut all: Vec<_> = observed.fresh().collect();
    all.sort_by_cached_key(|partition| hash(partition));
    all
}

fn first_of(observed: &Observed, share: f64) -> Vec<&Partition> {
    let all = by_hash(observed);
    let n = count(all.len(), share);
    all.into_iter().take(n).collect()
}

/// How many a share of `all` is: rounded up, so that no share but 0 % is nothing.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of 0 to 1 of a number of partitions"
)]
pub(super) fn count(all: usize, share: f64) -> usize {
    // The share was a percentage in decimals: 30 % of 10 must not become 4.
    ((all as f64 * share - 1e-9).ceil().max(0.0) as usize).min(all)
}

/// What a promotion covers: what it covered, and as many more as may be on their way at once.
fn covered(
    status: &Status,
    green: &ReleaseId,
    blue: &ReleaseId,
    observed: &Observed,
    policy: &Policy,
    now_ms: i64,
) -> Partitions {
    let before = status
        .intent
        .as_ref()
        .filter(|intent| intent.target == *blue);
    let both =
        |p: &Partition| observed.token(green, p).is_some() && observed.token(blue, p).is_some();
    let was_covered = |p: &Partition| before.is_some_and(|intent| intent.covers(p));
    // A partition that was added and granted to the candidate is its own from the start.
    let is_there = |p: &Partition| observed.live(blue, p).is_some();
    let all = by_hash(observed);
    let mut covered: BTreeSet<&Partition> = all
        .iter()
        .copied()
        .filter(|p| was_covered(p) || is_there(p))
        .collect();
    let room = room(status, green, blue, &covered, observed, policy, now_ms);
    let more: Vec<_> = all
        .into_iter()
        .filter(|p| !covered.contains(p) && both(p))
        .take(room)
        .collect();
    covered.extend(more);
    Partitions::of(covered)
}

/// How many more partitions may be asked for now.
fn room(
    status: &Status,
    green: &ReleaseId,
    blue: &ReleaseId,
    covered: &BTreeSet<&Partition>,
    observed: &Observed,
    policy: &Policy,
    now_ms: i64,
) -> usize {
    let all = observed.fresh().count();
    let at_once = policy.release.strategy == Strategy::Recreate || status.deposed.contains(green);
    if at_once {
        return all;
    }
    let ready = readiness::of(blue, observed, now_ms).is_ok()
        && observed
            .pods
            .get(blue)
            .is_some_and(|pods| pods.wanted >= policy.replicas)
        && lag(blue, observed) <= policy.release.promotion.max_cutover_lag;
    if !ready {
        return 0;
    }
    let unadopted = covered
        .iter()
        .filter(|p| observed.live(blue, p).is_none())
        .count();
    let at_once_max = usize::try_from(policy.release.promotion.max_unadopted).unwrap_or(usize::MAX);
    let wanted = step_partitions(status, observed, policy);
    wanted
        .saturating_sub(covered.len())
        .min(at_once_max.saturating_sub(unadopted))
}

/// How far the candidate is behind, over all partitions.
pub(super) fn lag(release: &ReleaseId, observed: &Observed) -> u64 {
    let commits = observed.fresh().filter_map(|p| observed.commit(release, p));
    commits.map(|commit| commit.lag).sum()
}

/// How many partitions the present step hands over.
pub(super) fn step_partitions(status: &Status, observed: &Observed, policy: &Policy) -> usize {
    let all = observed.fresh().count();
    let steps = &policy.release.promotion.steps;
    let share = steps
        .get(status.promotion.step)
        .map_or(1.0, |step| step.partitions);
    let limit = status
        .promotion
        .limit
        .map_or(all, |limit| usize::try_from(limit).unwrap_or(all));
    count(all, share).min(limit)
}

/// Goes to the next step once the present one is done and its pause is over.
pub(super) fn step(status: &mut Status, observed: &Observed, policy: &Policy, now_ms: i64) {
    let Some(blue) = &status.blue else { return };
    let all = observed.fresh().count();
    let steps = &policy.release.promotion.steps;
    let Some(step) = steps.get(status.promotion.step) else {
        return;
    };
    let there = observed
        .fresh()
        .filter(|p| observed.live(blue, p).is_some())
        .count();
    if status.phase != Phase::Promoting || all == 0 || there < count(all, step.partitions) {
        status.promotion.step_done_ms = None;
        return;
    }
    let done = *status.promotion.step_done_ms.get_or_insert(now_ms);
    if passed(done, step.pause, now_ms) {
        status.promotion.step += 1;
        status.promotion.step_done_ms = None;
    }
}

/// Whether a release has sealed a partition to another that has not adopted it yet.
pub(super) fn unadopted<'a>(
    giver: &ReleaseId,
    receiver: &ReleaseId,
    partition: &Partition,
    observed: &'a Observed,
) -> Option<&'a Token> {
    let seal = observed.token(giver, partition)?;
    let tenure = observed.token(receiver, partition).and_then(Token::tenure);
    match seal {
        Token::Sealed { epoch, to, .. }
            if to.as_ref() == Some(receiver) && tenure < Some(*epoch) =>
        {
            Some(seal)
        }
        Token::Sealed { .. } | Token::Shadow { .. } | Token::Live { .. } => None,
    }
}
