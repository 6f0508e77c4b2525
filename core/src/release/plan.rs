//! What a controller does next: one pure function from everything observed (section 6).
//!
//! It first decides whether the status changes (Git, decisions, phases, the intent); if so,
//! writing the status is the whole plan, because everything else follows from what is written.
//! Otherwise it lists what the phase still has to get done. The one who carries it out needs no
//! memory: it gathers, plans, acts, and gathers again.
//!
//! Invariant: it is total, deterministic, and reads neither clock nor dice.
//! Invariant: phases change only as section 6 says ([`Phase::may_become`]).
//! Invariant: it asks for nothing only when something is waited for, or the block is Stable.

pub use self::actions::{
    Action, Condition, Plan, Reason, RecordResult, Seed, SeedKind, Start, Subject, Wait,
};
use self::decisions::apply;
use self::duties::Duties;
pub use self::observed::{
    Committed, Decision, DecisionAction, Evidence, Group, Guard, Members, Observed, Pods, Spec,
    Verdict,
};
pub use self::policy::{APPROVAL_TIMEOUT, GROUP_STABLE, PREPARE_TIMEOUT, PROMOTE_TIMEOUT, Policy};
pub use self::status::{Ending, Phase, Promotion, Status, Wanted};
use crate::contract::block::NotifyOn;
use crate::token::{ReleaseId, Token};

mod actions;
mod decisions;
mod duties;
mod intents;
mod observed;
mod phases;
mod policy;
mod readiness;
mod registry;
mod status;

/// What to do next.
pub fn plan(observed: &Observed, policy: &Policy, now_ms: i64) -> Plan {
    let mut plan = match next_status(observed, policy, now_ms) {
        Next::Status(status, answer) => changed(observed, *status, answer),
        Next::Same(answer) => same(observed, policy, now_ms, answer),
    };
    let moving = plan.phase != Phase::Stable || !plan.waiting_on.is_empty();
    if moving {
        plan.conditions.push(Condition::Reconciling);
    }
    plan
}

/// What became of the status, and a decision that is to be refused.
enum Next {
    Status(Box<Status>, Option<Action>),
    Same(Option<Action>),
}

fn next_status(observed: &Observed, policy: &Policy, now_ms: i64) -> Next {
    let mut status = observed.status.clone();
    phases::note_wanted(&mut status, observed);
    let mut refusal = None;
    let open =
        |decision: &&Decision| !decision.answered && !status.applied.contains(&decision.name);
    if observed.partitions.is_some() {
        if let Some(decision) = observed.decisions.iter().find(open) {
            let mut decided = status.clone();
            match apply(decision, &mut decided, observed, policy, now_ms) {
                Ok(()) => {
                    decided.applied.insert(decision.name.clone());
                    status = decided;
                }
                Err(message) => {
                    refusal = Some(Action::Answer {
                        decision: decision.name.clone(),
                        accepted: false,
                        message,
                    });
                }
            }
        }
        if status.phase == observed.status.phase {
            phases::advance(&mut status, observed, policy, now_ms);
        }
        intents::step(&mut status, observed, policy, now_ms);
        intents::settle(&mut status, observed, policy, now_ms);
        let exists = |name: &String| {
            observed
                .decisions
                .iter()
                .any(|d| d.name == *name && !d.answered)
        };
        status.applied.retain(|name| exists(name));
    }
    if status == observed.status {
        Next::Same(refusal)
    } else {
        Next::Status(Box::new(status), refusal)
    }
}

/// The plan of a status that changes: write it, and before, what would otherwise be forgotten.
fn changed(observed: &Observed, status: Status, refusal: Option<Action>) -> Plan {
    let before = &observed.status;
    let mut actions: Vec<Action> = refusal.into_iter().collect();
    let notify = |on, release: &ReleaseId| Action::Notify {
        on,
        release: release.clone(),
    };
    let record = |release: &ReleaseId, result| Action::Record {
        release: release.clone(),
        result,
    };
    if let (Some(blue), true) = (&before.blue, before.phase != status.phase) {
        match status.phase {
            Phase::Verified => actions.push(notify(NotifyOn::Verified, blue)),
            Phase::Failed => actions.push(notify(NotifyOn::Failed, blue)),
            Phase::RollbackWindow => actions.push(record(blue, RecordResult::Promoted)),
            Phase::Stable | Phase::Preparing if before.phase == Phase::Aborting => {
                let ending = before.ending.unwrap_or(Ending::Aborted);
                actions.push(record(blue, RecordResult::of(ending)));
            }
            Phase::New
            | Phase::Preparing
            | Phase::Shadowing
            | Phase::Inconclusive
            | Phase::Promoting
            | Phase::RollingBack
            | Phase::Aborting
            | Phase::Stable => {}
        }
    }
    if let (Some(blue), true) = (&status.blue, status.stalled && !before.stalled) {
        actions.push(notify(NotifyOn::Stalled, blue));
    }
    let (phase, conditions) = (status.phase, conditions(observed, &status));
    actions.push(Action::SetStatus(Box::new(status)));
    Plan {
        actions,
        waiting_on: Vec::new(),
        phase,
        conditions,
    }
}

/// The plan of a status that stays: answers, the intent's way, the registry, the phase's duties.
fn same(observed: &Observed, policy: &Policy, now_ms: i64, refusal: Option<Action>) -> Plan {
    let status = &observed.status;
    let mut duties = Duties {
        observed,
        policy,
        now_ms,
        actions: refusal.into_iter().collect(),
        waiting_on: Vec::new(),
    };
    for decision in &observed.decisions {
        if status.applied.contains(&decision.name) && !decision.answered {
            duties.actions.push(Action::Answer {
                decision: decision.name.clone(),
                accepted: true,
                message: String::new(),
            });
        }
    }
    if observed.partitions.is_none() {
        duties.waiting_on.push(Wait {
            subject: Subject::Brokers,
            reason: Reason::Unreadable,
        });
    } else {
        if let Some(intent) = status.intent.as_ref().filter(|_| unacknowledged(observed)) {
            duties.actions.push(Action::PushIntent(intent.clone()));
        }
        duties.registry();
        // Tokens of a first release come after its roots (D-G12).
        let rooting = |action: &Action| matches!(action, Action::Register { .. });
        if !duties.actions.iter().any(rooting) {
            duties.of_phase();
        }
    }
    let mut plan = Plan {
        actions: duties.actions,
        waiting_on: duties.waiting_on,
        phase: status.phase,
        conditions: conditions(observed, status),
    };
    let lost = |wait: &Wait| wait.reason == Reason::TokenMissing;
    if plan.waiting_on.iter().any(lost) {
        plan.conditions.push(Condition::TokenMissing);
    }
    plan
}

/// Whether an owner has not taken note of the newest intent (R8): it is Live at a lower epoch, or
/// Live although it is asked to seal.
fn unacknowledged(observed: &Observed) -> bool {
    let status = &observed.status;
    let Some(intent) = &status.intent else {
        return false;
    };
    let lags = |release: &ReleaseId| {
        observed.fresh().any(|partition| {
            matches!(
                observed.token(release, partition),
                Some(Token::Live { epoch, .. }) if *epoch < intent.epoch
            )
        })
    };
    let is_there =
        |release: &&ReleaseId| observed.pods.get(*release).is_some_and(|p| p.running > 0);
    // Also one that a rebuilt status knows nothing of (section 8).
    observed.groups.keys().filter(is_there).any(lags)
}

fn conditions(observed: &Observed, status: &Status) -> Vec<Condition> {
    let phase = status.phase;
    let shadowing = phase == Phase::Shadowing;
    let wants_other = !status.wants(status.blue.as_ref()) && !status.wants(status.green.as_ref());
    let busy = matches!(phase, Phase::Promoting | Phase::RollingBack);
    let past_ready = !matches!(phase, Phase::New | Phase::Preparing | Phase::Aborting);
    [
        (
            Condition::CandidateReady,
            status.blue.is_some() && past_ready,
        ),
        (
            Condition::ShadowHealthy,
            shadowing && !status.is_suspended(),
        ),
        (Condition::ShadowSuspended, status.is_suspended()),
        (Condition::Verified, phase == Phase::Verified),
        (Condition::AwaitingApproval, phase == Phase::Verified),
        (Condition::Approved, phase == Phase::Promoting),
        (Condition::RollbackAvailable, phase == Phase::RollbackWindow),
        (Condition::Degraded, status.wants_rejected()),
        (Condition::Stalled, status.stalled),
        (Condition::EpochRepaired, status.epoch_repaired),
        (
            Condition::Queued,
            busy && (wants_other || !status.wants(status.blue.as_ref())),
        ),
    ]
    .into_iter()
    .filter_map(|(condition, holds)| (holds && observed.partitions.is_some()).then_some(condition))
    .collect()
}

#[cfg(test)]
mod tests;
