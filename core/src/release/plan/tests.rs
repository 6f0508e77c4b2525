//! The planner's rules one by one, and its laws over everything that can be observed. Whole
//! releases are played in `millrace-model`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::sample::{at, live, partition, release, sealed, shadow};
use super::*;
use crate::contract::block::{Block, PromotionMode, Release};
use crate::contract::commit::{LedgerImage, Metadata};
use crate::contract::intent::Partitions;
use crate::evidence::guard;
use crate::limits::GUARD_PAUSES_MAX;

const GREEN: &str = "r1-aaaaaaaa";
const BLUE: &str = "r2-bbbbbbbb";
const NOW: i64 = 1_000_000_000;

mod laws;
mod partitions;

/// The defaults of the block document.
fn policy() -> Policy {
    let document = serde_json::json!({
        "identity": "weu/scoring/fraud-score",
        "connections": {"main": {"kafka": {"bootstrap": ["b:9092"]}}},
        "input": {"kafka": {"connection": "main", "topics": ["tx"], "startAt": "Earliest"}},
        "output": {"kafka": {"connection": "main", "topic": "scored"}},
        "app": {"shadow": "Safe", "local": {"command": ["python"]}},
    });
    Policy::of(&Block::parse(&document).unwrap())
}

fn with(change: impl FnOnce(&mut Release)) -> Policy {
    let mut policy = policy();
    change(&mut policy.release);
    policy
}

fn committed(token: Token) -> Committed {
    Committed {
        at: at(7),
        metadata: Some(Metadata {
            generation: 3,
            member: Some(9),
            ..Metadata::of_outsider(token, None)
        }),
        lag: 0,
    }
}

fn group(tokens: &[Token]) -> Group {
    let numbers = 0..i32::try_from(tokens.len()).unwrap();
    let commits: BTreeMap<_, _> = numbers
        .map(partition)
        .zip(tokens.iter().cloned().map(committed))
        .collect();
    Group {
        members: Members::Stable {
            since_ms: 0,
            assigned: commits.keys().cloned().collect(),
        },
        offsets_stable: true,
        commits,
    }
}

/// Green answers on both partitions, Blue reads along, the phase is as given.
fn observed(phase: Phase) -> Observed {
    let mut status = Status::new(NOW);
    status.phase = phase;
    status.green = Some(release(GREEN));
    status.blue = Some(release(BLUE));
    status.wanted = Some(Wanted {
        generation: 2,
        hash8: "bbbbbbbb".to_owned(),
        attempts: 1,
    });
    let pods = |wanted| Pods {
        wanted,
        running: wanted,
        ready: wanted,
    };
    let grant = |number| {
        let root = release(GREEN);
        let (seeding, release) = (None, None);
        let grant = crate::contract::grant::Grant {
            root,
            seeding,
            release,
        };
        (partition(number), grant)
    };
    Observed {
        spec: Spec {
            generation: 2,
            hash8: "bbbbbbbb".to_owned(),
            author: Some("eve".to_owned()),
        },
        status,
        partitions: Some([(partition(0), at(0)), (partition(1), at(0))].into()),
        groups: [
            (release(GREEN), group(&[live(1, 0), live(1, 0)])),
            (release(BLUE), group(&[shadow(1), shadow(1)])),
        ]
        .into(),
        registry: [grant(0), grant(1)].into(),
        pods: [(release(GREEN), pods(1)), (release(BLUE), pods(1))].into(),
        decisions: Vec::new(),
        evidence: Evidence {
            verdict: Verdict::Pending,
            held: false,
            digest: Some("sha256:1".to_owned()),
        },
        guard: Guard {
            suspended: guard::Record::default(),
            failing_since_ms: None,
        },
        snapshot: BTreeMap::new(),
    }
}

fn decision(action: DecisionAction, of: &str, actor: &str) -> Decision {
    Decision {
        name: format!("{action:?}-{actor}"),
        action,
        release: release(of),
        evidence: None,
        actor: actor.to_owned(),
        answered: false,
    }
}

/// Writes statuses until they stay.
fn settle(observed: &mut Observed, policy: &Policy, now_ms: i64) -> Plan {
    for _ in 0..20 {
        let plan = plan(observed, policy, now_ms);
        match plan.actions.last() {
            Some(Action::SetStatus(status)) => observed.status = (**status).clone(),
            Some(_) | None => return plan,
        }
    }
    panic!("the status does not come to rest: {:?}", observed.status);
}

fn phase_after(mut observed: Observed, policy: &Policy, now_ms: i64) -> Phase {
    let plan = plan(&observed, policy, now_ms);
    if let Some(Action::SetStatus(status)) = plan.actions.last() {
        observed.status = (**status).clone();
    }
    observed.status.phase
}

fn after(duration: Duration) -> i64 {
    NOW + i64::try_from(duration.as_millis()).unwrap()
}

#[test]
fn section_6_has_these_transitions_and_no_others() {
    let count = Phase::EACH
        .iter()
        .flat_map(|from| Phase::EACH.iter().map(|to| from.may_become(*to)))
        .filter(|may| *may)
        .count();
    assert_eq!(count, 24);
    assert!(!Phase::Promoting.may_become(Phase::Aborting));
    assert!(!Phase::Failed.may_become(Phase::Promoting));
    assert!(!Phase::RollingBack.may_become(Phase::Promoting));
}

#[test]
fn a6_decisions_that_make_no_sense_are_refused_with_a_reason() {
    let check = |phase, word: Decision, expect: &str| {
        let mut observed = observed(phase);
        observed.status.rejected = vec![release("r9-cccccccc")];
        observed.decisions = vec![word];
        let plan = settle(&mut observed, &policy(), NOW);
        let refused = plan.actions.iter().find_map(|action| match action {
            Action::Answer {
                accepted: false,
                message,
                ..
            } => Some(message.as_str()),
            _ => None,
        });
        let refused = refused.unwrap_or_else(|| panic!("{plan:#?}"));
        assert!(refused.contains(expect), "{refused}");
    };
    use DecisionAction::{Approve, Depose, Reject, Retry, Rollback, WaiveVerification};
    check(
        Phase::Verified,
        decision(Approve, GREEN, "ada"),
        "r2-bbbbbbbb is",
    );
    check(
        Phase::Verified,
        decision(Approve, "r9-cccccccc", "ada"),
        "was rejected",
    );
    check(
        Phase::Verified,
        decision(Approve, BLUE, "eve"),
        "forbidAuthor",
    );
    check(
        Phase::Shadowing,
        decision(Approve, BLUE, "ada"),
        "not in phase Shadowing",
    );
    check(
        Phase::Verified,
        decision(WaiveVerification, BLUE, "ada"),
        "not in phase",
    );
    check(Phase::Promoting, decision(Reject, BLUE, "ada"), "roll back");
    check(
        Phase::Shadowing,
        decision(Rollback, BLUE, "ada"),
        "not in phase",
    );
    check(
        Phase::Shadowing,
        decision(Depose, GREEN, "ada"),
        "nothing is handed over",
    );
    check(
        Phase::Promoting,
        decision(Depose, BLUE, "ada"),
        "only r1-aaaaaaaa",
    );
    check(
        Phase::Shadowing,
        decision(Retry, BLUE, "ada"),
        "not in phase",
    );
    let stale = Decision {
        evidence: Some("sha256:0".to_owned()),
        ..decision(Approve, BLUE, "ada")
    };
    check(Phase::Verified, stale, "evidence has changed");
}

#[test]
fn a6_one_person_approves_once_and_as_many_as_required_must() {
    let policy = with(|release| release.promotion.approvals.required = 2);
    let mut observed = observed(Phase::Verified);
    let approve = |actor| decision(DecisionAction::Approve, BLUE, actor);
    observed.decisions = vec![approve("ada")];
    let plan = settle(&mut observed, &policy, NOW);
    let accepted = |plan: &Plan| {
        plan.actions
            .iter()
            .filter(|action| matches!(action, Action::Answer { accepted: true, .. }))
            .count()
    };
    assert_eq!((plan.phase, accepted(&plan)), (Phase::Verified, 1));
    observed.decisions[0].answered = true;
    let again = Decision {
        name: "again".to_owned(),
        ..approve("ada")
    };
    observed.decisions.push(again);
    let plan = settle(&mut observed, &policy, NOW);
    assert_eq!((plan.phase, accepted(&plan)), (Phase::Verified, 0));
    observed.decisions.push(approve("bob"));
    observed.decisions[1].answered = true;
    assert_eq!(settle(&mut observed, &policy, NOW).phase, Phase::Promoting);
}

#[test]
fn g3_a_release_can_be_approved_in_advance_by_its_hash() {
    let policy = |hash: &str| with(|r| r.promotion.approved_release = Some(hash.to_owned()));
    let verified = || observed(Phase::Verified);
    assert_eq!(
        phase_after(verified(), &policy("bbbbbbbb"), NOW),
        Phase::Promoting
    );
    assert_eq!(
        phase_after(verified(), &policy("aaaaaaaa"), NOW),
        Phase::Verified
    );
}

#[test]
fn j7_the_verdict_decides_and_inconclusive_is_never_promoted_by_itself() {
    let auto = with(|release| release.promotion.mode = PromotionMode::Auto);
    let check = |verdict, expect| {
        let mut observed = observed(Phase::Shadowing);
        observed.evidence.verdict = verdict;
        assert_eq!(phase_after(observed, &auto, NOW), expect);
    };
    check(Verdict::Pending, Phase::Shadowing);
    check(Verdict::Error, Phase::Shadowing);
    check(Verdict::Pass, Phase::Verified);
    check(Verdict::Fail, Phase::Failed);
    check(Verdict::Inconclusive, Phase::Inconclusive);
    assert_eq!(
        phase_after(observed(Phase::Verified), &auto, NOW),
        Phase::Promoting
    );
    let mut held = observed(Phase::Verified);
    held.evidence.held = true;
    assert_eq!(phase_after(held.clone(), &auto, NOW), Phase::Verified);
    held.decisions = vec![decision(DecisionAction::Approve, BLUE, "ada")];
    assert_eq!(settle(&mut held, &auto, NOW).phase, Phase::Promoting);
    let mut observed = observed(Phase::Inconclusive);
    assert_eq!(
        phase_after(observed.clone(), &auto, NOW),
        Phase::Inconclusive
    );
    observed.decisions = vec![decision(DecisionAction::WaiveVerification, BLUE, "ada")];
    assert_eq!(
        settle(&mut observed, &policy(), NOW).phase,
        Phase::Inconclusive
    );
    observed
        .decisions
        .push(decision(DecisionAction::Approve, BLUE, "ada"));
    assert_eq!(
        settle(&mut observed, &policy(), NOW).phase,
        Phase::Promoting
    );
}

#[test]
fn section_9_times_end_phases() {
    let check = |phase, after_ms, expect| {
        let mut observed = observed(phase);
        observed.pods.remove(&release(BLUE));
        assert_eq!(phase_after(observed, &policy(), after_ms), expect);
    };
    check(
        Phase::Preparing,
        after(PREPARE_TIMEOUT) - 1,
        Phase::Preparing,
    );
    check(Phase::Preparing, after(PREPARE_TIMEOUT), Phase::Failed);
    check(
        Phase::Verified,
        after(APPROVAL_TIMEOUT) - 1,
        Phase::Verified,
    );
    check(Phase::Verified, after(APPROVAL_TIMEOUT), Phase::Aborting);
    let window = policy().release.rollback.window;
    check(
        Phase::RollbackWindow,
        after(window) - 1,
        Phase::RollbackWindow,
    );
    check(Phase::RollbackWindow, after(window), Phase::Stable);
    check(Phase::Promoting, after(PROMOTE_TIMEOUT), Phase::Promoting);
}

#[test]
fn a_hand_over_that_takes_too_long_is_told_once() {
    let mut observed = observed(Phase::Promoting);
    let late = after(PROMOTE_TIMEOUT);
    let mut told = 0;
    for _ in 0..10 {
        let plan = plan(&observed, &policy(), late);
        told += plan
            .actions
            .iter()
            .filter(|action| {
                matches!(
                    action,
                    Action::Notify {
                        on: NotifyOn::Stalled,
                        ..
                    }
                )
            })
            .count();
        if let Some(Action::SetStatus(status)) = plan.actions.last() {
            observed.status = (**status).clone();
        }
    }
    assert_eq!(told, 1);
    let plan = plan(&observed, &policy(), late);
    assert!(plan.conditions.contains(&Condition::Stalled), "{plan:#?}");
}

#[test]
fn j9_blue_is_paused_while_the_guard_says_so_and_given_up_the_third_time() {
    let shadow = |observed: &Observed| {
        let intent = observed.status.intent.clone().unwrap();
        intent.shadow.is_some()
    };
    for phase in [Phase::Shadowing, Phase::Verified] {
        let mut observed = observed(phase);
        for paused in [false, true, false] {
            observed.guard.suspended = guard::Record { pauses: 1, paused };
            let plan = settle(&mut observed, &policy(), NOW);
            assert_eq!((plan.phase, shadow(&observed)), (phase, !paused));
            let told = plan.conditions.contains(&Condition::ShadowSuspended);
            assert_eq!(told, paused);
        }
    }
    let mut observed = observed(Phase::Shadowing);
    observed.guard.suspended = guard::Record {
        pauses: GUARD_PAUSES_MAX,
        paused: true,
    };
    let plan = settle(&mut observed, &policy(), NOW);
    assert_eq!(
        (plan.phase, shadow(&observed)),
        (Phase::Inconclusive, false)
    );
}

#[test]
fn j9_a_promotion_ends_the_pause_because_blue_must_catch_up() {
    let mut observed = observed(Phase::Promoting);
    observed.status.suspended = guard::Record {
        pauses: 1,
        paused: true,
    };
    let plan = settle(&mut observed, &policy(), NOW);
    assert!(observed.status.intent.unwrap().shadow.is_some());
    assert!(!plan.conditions.contains(&Condition::ShadowSuspended));
}

#[test]
fn a_release_that_fails_its_events_goes_back_by_itself() {
    let policy = with(|release| {
        release.rollback.auto = Some(crate::contract::block::AutoRollback {
            error_rate: 0.02,
            during: Duration::from_secs(120),
        });
    });
    for phase in [Phase::Promoting, Phase::RollbackWindow] {
        let mut observed = observed(phase);
        observed.guard.failing_since_ms = Some(NOW);
        let soon = after(Duration::from_secs(119));
        assert_eq!(phase_after(observed.clone(), &policy, soon), phase);
        let late = after(Duration::from_secs(120));
        assert_eq!(phase_after(observed, &policy, late), Phase::RollingBack);
    }
}

#[test]
fn r8_a_new_intent_has_an_epoch_above_every_token() {
    let mut observed = observed(Phase::Shadowing);
    observed
        .groups
        .insert(release(BLUE), group(&[sealed(41, 3, "-"), shadow(1)]));
    let plan = settle(&mut observed, &policy(), NOW);
    let intent = observed.status.intent.clone().unwrap();
    assert_eq!((intent.epoch, intent.target), (42, release(GREEN)));
    assert!(plan.conditions.contains(&Condition::EpochRepaired));
    assert!(
        plan.actions
            .iter()
            .any(|action| matches!(action, Action::PushIntent(_)))
    );
}

#[test]
fn cut_over_waits_for_pods_lag_and_a_stable_group() {
    let ready = || {
        let mut observed = observed(Phase::Promoting);
        settle(&mut observed, &policy(), NOW);
        observed.status.intent.unwrap().partitions
    };
    assert_eq!(ready(), Partitions::of(&[partition(0), partition(1)]));
    let check = |spoil: fn(&mut Observed)| {
        let mut observed = observed(Phase::Promoting);
        spoil(&mut observed);
        settle(&mut observed, &policy(), NOW);
        let intent = observed.status.intent.unwrap();
        assert_eq!(intent.partitions, Partitions::of([]));
    };
    check(|observed| observed.pods.get_mut(&release(BLUE)).unwrap().ready = 0);
    check(|observed| observed.groups.get_mut(&release(BLUE)).unwrap().members = Members::Moving);
    check(|observed| {
        let blue = observed.groups.get_mut(&release(BLUE)).unwrap();
        blue.members = Members::Stable {
            since_ms: 0,
            assigned: [partition(0)].into(),
        };
    });
    check(|observed| {
        let blue = observed.groups.get_mut(&release(BLUE)).unwrap();
        blue.commits.get_mut(&partition(0)).unwrap().lag = 1_001;
    });
}

#[test]
fn r11_a_depose_keeps_the_ledger_and_waits_for_an_empty_group() {
    let mut observed = observed(Phase::Promoting);
    observed.status.deposed = [release(GREEN)].into();
    let bits = LedgerImage {
        terminal: vec![0b10],
        ..LedgerImage::default()
    };
    let green = observed.groups.get_mut(&release(GREEN)).unwrap();
    let commit = green.commits.get_mut(&partition(0)).unwrap();
    commit.metadata.as_mut().unwrap().ledger = bits.clone();
    let commits = |plan: &Plan| -> Vec<Metadata> {
        let commit = |action: &Action| match action {
            Action::CommitIfEmpty { metadata, .. } => Some(metadata.clone()),
            _ => None,
        };
        plan.actions.iter().filter_map(commit).collect()
    };
    let plan = settle(&mut observed, &policy(), NOW);
    assert_eq!(commits(&plan), []);
    observed.groups.get_mut(&release(GREEN)).unwrap().members = Members::Empty;
    observed.pods.get_mut(&release(GREEN)).unwrap().running = 0;
    observed
        .groups
        .get_mut(&release(GREEN))
        .unwrap()
        .offsets_stable = false;
    assert_eq!(commits(&settle(&mut observed, &policy(), NOW)), []);
    observed
        .groups
        .get_mut(&release(GREEN))
        .unwrap()
        .offsets_stable = true;
    let seals = commits(&settle(&mut observed, &policy(), NOW));
    let epoch = observed.status.intent.as_ref().unwrap().epoch;
    assert_eq!(seals.len(), 2);
    assert_eq!(seals[0].token, sealed(epoch, 7, BLUE));
    assert_eq!(
        (&seals[0].ledger, seals[0].generation, seals[0].member),
        (&bits, 0, None)
    );
}

#[test]
fn brokers_that_do_not_answer_change_nothing() {
    for phase in Phase::EACH {
        let mut observed = observed(phase);
        observed.partitions = None;
        let plan = plan(&observed, &policy(), NOW + 1_000_000_000_000);
        assert_eq!((plan.actions, plan.phase), (vec![], phase));
        assert_eq!(
            plan.waiting_on[0].to_string(),
            "brokers: the partitions could not be read"
        );
    }
}

#[test]
fn queued_releases_are_shown() {
    let mut observed = observed(Phase::Promoting);
    observed.spec.hash8 = "cccccccc".to_owned();
    let plan = settle(&mut observed, &policy(), NOW);
    assert_eq!(plan.phase, Phase::Promoting);
    assert!(plan.conditions.contains(&Condition::Queued));
}
