//! What people and CI may decide, when, and what follows (A6, J8, section 12).
//!
//! Invariant: a decision takes effect once: its name enters the status together with the effect,
//! and only then it is answered.
//! Invariant: whoever decides names the release, and if evidence, then the present one.

use super::super::name::Name;
use super::observed::{Decision, DecisionAction, Observed};
use super::policy::Policy;
use super::status::{Ending, Phase, Status};
use crate::token::ReleaseId;

/// Why a decision has no effect.
type Refusal = String;

/// Lets a decision take effect on a status.
pub(super) fn apply(
    decision: &Decision,
    status: &mut Status,
    observed: &Observed,
    policy: &Policy,
    now_ms: i64,
) -> Result<(), Refusal> {
    match decision.action {
        DecisionAction::Approve => approve(decision, status, observed, policy),
        DecisionAction::Promote { partitions } => {
            if status.phase == Phase::Promoting {
                of_candidate(decision, status)?;
            } else {
                may_approve(decision, status, observed, policy)?;
                status.approvals.insert(decision.actor.clone());
            }
            status.promotion.limit = partitions;
            Ok(())
        }
        DecisionAction::WaiveVerification => {
            of_candidate(decision, status)?;
            fresh_evidence(decision, observed)?;
            within(status, &[Phase::Inconclusive])?;
            status.waived = true;
            Ok(())
        }
        DecisionAction::Reject => {
            of_candidate(decision, status)?;
            before_promotion(status)?;
            end(status, Ending::Rejected, now_ms);
            Ok(())
        }
        DecisionAction::Abort => {
            of_candidate(decision, status)?;
            if status.phase.is_before_promotion() {
                end(status, Ending::Aborted, now_ms);
                return Ok(());
            }
            roll_back(status, now_ms)
        }
        DecisionAction::Rollback => {
            of_candidate(decision, status)?;
            roll_back(status, now_ms)
        }
        DecisionAction::Retry => retry(decision, status, now_ms),
        DecisionAction::Depose => depose(decision, status),
    }
}

/// Begins the end of a candidate that has answered nothing.
pub(super) fn end(status: &mut Status, ending: Ending, now_ms: i64) {
    status.ending = Some(ending);
    status.enter(Phase::Aborting, now_ms);
}

fn roll_back(status: &mut Status, now_ms: i64) -> Result<(), Refusal> {
    within(status, &[Phase::Promoting, Phase::RollbackWindow])?;
    status.ending = Some(Ending::RolledBack);
    // What was deposed to promote would now be the receiver.
    status.deposed.clear();
    status.enter(Phase::RollingBack, now_ms);
    Ok(())
}

fn approve(
    decision: &Decision,
    status: &mut Status,
    observed: &Observed,
    policy: &Policy,
) -> Result<(), Refusal> {
    may_approve(decision, status, observed, policy)?;
    if !status.approvals.insert(decision.actor.clone()) {
        return Err(format!(
            "{} has already approved {}",
            decision.actor, decision.release
        ));
    }
    Ok(())
}

fn may_approve(
    decision: &Decision,
    status: &Status,
    observed: &Observed,
    policy: &Policy,
) -> Result<(), Refusal> {
    of_candidate(decision, status)?;
    within(status, &[Phase::Verified, Phase::Inconclusive])?;
    fresh_evidence(decision, observed)?;
    let by_author = observed.spec.author.as_deref() == Some(decision.actor.as_str());
    if policy.release.promotion.approvals.forbid_author && by_author {
        return Err(format!(
            "{} asked for {} and cannot approve it (release.promotion.approvals.forbidAuthor)",
            decision.actor, decision.release
        ));
    }
    Ok(())
}

fn retry(decision: &Decision, status: &mut Status, now_ms: i64) -> Result<(), Refusal> {
    if matches!(status.phase, Phase::Failed | Phase::Inconclusive) {
        of_candidate(decision, status)?;
        end(status, Ending::Retry, now_ms);
        return Ok(());
    }
    within(status, &[Phase::Stable])?;
    let wanted = status.wants(Some(&decision.release));
    if !wanted || !status.rejected.contains(&decision.release) {
        return Err(format!(
            "{} is not the rejected release that Git asks for",
            decision.release
        ));
    }
    let same = |id: &ReleaseId| match (Name::read(id), Name::read(&decision.release)) {
        (Some(a), Some(b)) => (a.generation, a.hash8) == (b.generation, b.hash8),
        (Some(_) | None, None) | (None, Some(_)) => false,
    };
    status.rejected.retain(|id| !same(id));
    Ok(())
}

fn depose(decision: &Decision, status: &mut Status) -> Result<(), Refusal> {
    let giver = match status.phase {
        Phase::Promoting => status.green.as_ref(),
        Phase::RollingBack => status.blue.as_ref(),
        Phase::New
        | Phase::Preparing
        | Phase::Shadowing
        | Phase::Verified
        | Phase::Inconclusive
        | Phase::Failed
        | Phase::RollbackWindow
        | Phase::Aborting
        | Phase::Stable => None,
    };
    match giver {
        Some(giver) if *giver == decision.release => {
            status.deposed.insert(decision.release.clone());
            Ok(())
        }
        Some(giver) => Err(format!("only {giver} gives partitions away now")),
        None => Err(format!(
            "nothing is handed over in phase {:?}; promote or roll back first",
            status.phase
        )),
    }
}

fn of_candidate(decision: &Decision, status: &Status) -> Result<(), Refusal> {
    if status.blue.as_ref() == Some(&decision.release) {
        return Ok(());
    }
    if status.rejected.contains(&decision.release) {
        return Err(format!("{} was rejected", decision.release));
    }
    Err(match &status.blue {
        Some(blue) => format!("{} is not the candidate; {blue} is", decision.release),
        None => format!("{} is not the candidate; there is none", decision.release),
    })
}

fn fresh_evidence(decision: &Decision, observed: &Observed) -> Result<(), Refusal> {
    let stale = decision
        .evidence
        .as_ref()
        .is_some_and(|digest| observed.evidence.digest.as_ref() != Some(digest));
    if stale {
        return Err("the evidence has changed since; look at it again".to_owned());
    }
    Ok(())
}

fn before_promotion(status: &Status) -> Result<(), Refusal> {
    if status.phase.is_before_promotion() {
        return Ok(());
    }
    Err(format!("too late in phase {:?}; roll back", status.phase))
}

fn within(status: &Status, phases: &[Phase]) -> Result<(), Refusal> {
    if phases.contains(&status.phase) {
        return Ok(());
    }
    Err(format!("not in phase {:?}", status.phase))
}
