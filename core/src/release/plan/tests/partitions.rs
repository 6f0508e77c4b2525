//! Partitions that were added, and partitions whose tokens are gone (R9, R12, R13).

use super::*;
use crate::contract::grant::{Grant, Granted, Grants};

fn intent_of(observed: &Observed) -> (ReleaseId, Partitions) {
    let intent = observed.status.intent.clone().unwrap();
    (intent.target, intent.partitions)
}

fn grants(plan: &Plan, number: i32) -> Option<Grant> {
    plan.actions.iter().find_map(|action| match action {
        Action::Register {
            partition: found,
            grant,
        } if *found == partition(number) => Some(grant.clone()),
        _ => None,
    })
}

fn seeds(plan: &Plan) -> usize {
    let seeds = |action: &Action| match action {
        Action::Seed { seeds, .. } => seeds.len(),
        _ => 0,
    };
    plan.actions.iter().map(seeds).sum()
}

/// Blue answers on both partitions, and Green has sealed them to it.
fn handed_over(phase: Phase) -> Observed {
    let mut observed = observed(phase);
    observed.status.targeted = Some(2);
    let seals = group(&[sealed(2, 7, BLUE), sealed(2, 7, BLUE)]);
    observed.groups.insert(release(GREEN), seals);
    let lives = group(&[live(2, 7), live(2, 7)]);
    observed.groups.insert(release(BLUE), lives);
    observed
}

#[test]
fn r9_nothing_is_sealed_to_a_release_that_could_not_adopt_it() {
    let mut observed = handed_over(Phase::RollbackWindow);
    observed.decisions = vec![decision(DecisionAction::Rollback, BLUE, "ada")];
    let green = observed.groups.get_mut(&release(GREEN)).unwrap();
    green.commits.remove(&partition(1));
    let plan = settle(&mut observed, &policy(), NOW);
    assert_eq!(plan.phase, Phase::RollingBack);
    let only = Partitions::of(&[partition(0)]);
    assert_eq!(intent_of(&observed), (release(GREEN), only));
    // It gets a token beside the one that answers, and then the partition.
    let grant = grants(&plan, 1).unwrap();
    let granted = grant.release.clone().unwrap().first;
    assert_eq!(granted.release, release(GREEN));
    assert!(matches!(granted.token, Token::Shadow { .. }), "{granted:?}");
    let green = observed.groups.get_mut(&release(GREEN)).unwrap();
    green.commits.insert(partition(1), committed(granted.token));
    settle(&mut observed, &policy(), NOW);
    assert_eq!(intent_of(&observed), (release(GREEN), Partitions::All));
}

#[test]
fn r9_a_first_release_that_was_started_is_never_seeded_again() {
    let mut observed = observed(Phase::Preparing);
    observed.status.blue = None;
    observed.groups.remove(&release(BLUE));
    let green = observed.groups.get_mut(&release(GREEN)).unwrap();
    green.members = Members::Empty;
    green.commits.remove(&partition(1));
    let mut unborn = observed.clone();
    unborn.pods.clear();
    assert_eq!(seeds(&settle(&mut unborn, &policy(), NOW)), 1);
    observed.pods.get_mut(&release(GREEN)).unwrap().running = 0;
    let plan = settle(&mut observed, &policy(), NOW);
    assert_eq!(seeds(&plan), 0);
    assert!(plan.conditions.contains(&Condition::TokenMissing));
}

#[test]
fn r13_a_partition_that_is_added_while_a_first_release_starts_is_granted_to_it() {
    let mut observed = observed(Phase::Preparing);
    observed.status.blue = None;
    observed.groups.remove(&release(BLUE));
    observed.pods.get_mut(&release(GREEN)).unwrap().ready = 0;
    let added = (partition(2), at(5));
    observed.partitions.as_mut().unwrap().extend([added]);
    let grant = grants(&settle(&mut observed, &policy(), NOW), 2).unwrap();
    let granted = grant.release.unwrap().first;
    let expect = (release(GREEN), live(1, 5));
    assert_eq!((granted.release, granted.token), expect);
}

#[test]
fn r13_what_was_granted_to_a_release_without_members_is_sealed_to_the_one_that_goes_on() {
    let mut observed = handed_over(Phase::RollingBack);
    observed.status.deposed = [release(BLUE)].into();
    let added = (partition(2), at(5));
    observed.partitions.as_mut().unwrap().extend([added]);
    let green = observed.groups.get_mut(&release(GREEN)).unwrap();
    green.commits.insert(partition(2), committed(shadow(2)));
    let first = Granted {
        release: release(BLUE),
        token: live(2, 5),
    };
    let grant = Grant {
        root: release(GREEN),
        seeding: None,
        release: Some(Grants {
            first,
            second: None,
        }),
    };
    observed.registry.insert(partition(2), grant);
    let seal = |plan: &Plan| {
        plan.actions.iter().find_map(|action| match action {
            Action::CommitIfEmpty {
                release: giver,
                partition: found,
                at,
                metadata,
            } if *found == partition(2) => Some((giver.clone(), *at, metadata.token.clone())),
            _ => None,
        })
    };
    // Its owner may still take it.
    assert_eq!(seal(&settle(&mut observed.clone(), &policy(), NOW)), None);
    let blue = observed.groups.get_mut(&release(BLUE)).unwrap();
    blue.members = Members::Empty;
    observed.pods.get_mut(&release(BLUE)).unwrap().running = 0;
    let plan = settle(&mut observed, &policy(), NOW);
    let epoch = observed.status.intent.as_ref().unwrap().epoch;
    let expect = (release(BLUE), at(5), sealed(epoch, 5, GREEN));
    assert_eq!(seal(&plan), Some(expect.clone()));
    // It is the grant's token, so the grant is cleared.
    let blue = observed.groups.get_mut(&release(BLUE)).unwrap();
    blue.commits.insert(partition(2), committed(expect.2));
    let plan = settle(&mut observed, &policy(), NOW);
    assert_eq!(grants(&plan, 2).unwrap().release, None);
}

#[test]
fn r12_the_root_is_the_release_that_stays_whoever_it_was_before() {
    let mut observed = handed_over(Phase::Stable);
    observed.status.green = Some(release(BLUE));
    observed.status.blue = None;
    observed.status.retiring = Some(release(GREEN));
    for grant in observed.registry.values_mut() {
        grant.root = release("r0-00000000");
    }
    settle(&mut observed, &policy(), NOW);
    let tokens = |group: &Group| {
        let commits = group.commits.iter();
        let token = |(p, c): (&_, &Committed)| (Clone::clone(p), c.metadata.clone().unwrap().token);
        commits.map(token).collect()
    };
    let saved = tokens(&observed.groups[&release(BLUE)]);
    observed.snapshot.insert(release(BLUE), saved);
    let plan = settle(&mut observed, &policy(), NOW);
    assert_eq!(grants(&plan, 0).unwrap().root, release(BLUE));
}

#[test]
fn section_8_an_owner_that_a_rebuilt_status_does_not_know_hears_the_intent() {
    let mut observed = observed(Phase::Stable);
    observed.status.blue = None;
    observed.status.wanted.as_mut().unwrap().hash8 = "aaaaaaaa".to_owned();
    observed.spec.hash8 = "aaaaaaaa".to_owned();
    let mixed = group(&[shadow(1), live(3, 7)]);
    observed.groups.insert(release(BLUE), mixed);
    let stamped = group(&[live(4, 0), sealed(3, 7, BLUE)]);
    observed.groups.insert(release(GREEN), stamped);
    settle(&mut observed, &policy(), NOW);
    let epoch = observed.status.intent.as_ref().unwrap().epoch;
    let stamped = group(&[live(epoch, 0), sealed(3, 7, BLUE)]);
    observed.groups.insert(release(GREEN), stamped);
    let plan = settle(&mut observed, &policy(), NOW);
    let pushed = |action: &Action| matches!(action, Action::PushIntent(_));
    assert!(plan.actions.iter().any(pushed), "{plan:#?}");
}
