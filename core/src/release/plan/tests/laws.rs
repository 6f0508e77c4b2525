//! The planner's laws, over everything that can be observed (V3).

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::contract::block::Strategy as ReleaseStrategy;

fn any_token() -> impl Strategy<Value = Token> {
    let to = prop::sample::select(vec![GREEN, BLUE, "-"]);
    (0..3_u8, 0..9_u64, to).prop_map(|(kind, epoch, to)| match kind {
        0 => shadow(epoch),
        1 => live(epoch, 7),
        _ => sealed(epoch, 7, to),
    })
}

prop_compose! {
    fn any_group()(
        tokens in proptest::collection::vec(proptest::option::of(any_token()), 0..4),
        members in 0..3_u8,
        offsets_stable in any::<bool>(),
        lag in 0..3_000_u64,
    ) -> Group {
        let commits: BTreeMap<_, _> = (0..).map(partition).zip(tokens).map(|(p, token)| {
            let mut commit = committed(token.clone().unwrap_or(shadow(0)));
            commit.lag = lag;
            if token.is_none() {
                commit.metadata = None;
            }
            (p, commit)
        }).collect();
        let assigned: BTreeSet<_> = commits.keys().cloned().collect();
        let members = match members {
            0 => Members::Empty,
            1 => Members::Moving,
            _ => Members::Stable { since_ms: NOW - 15_000, assigned },
        };
        Group { members, offsets_stable, commits }
    }
}

prop_compose! {
    fn any_status()(
        phase in prop::sample::select(Phase::EACH.to_vec()),
        green in any::<bool>(),
        blue in any::<bool>(),
        intent in proptest::option::of((1..9_u64, prop::sample::select(vec![GREEN, BLUE]))),
        targeted in proptest::option::of(1..9_u64),
        retiring in any::<bool>(),
        rejected in any::<bool>(),
        waived in any::<bool>(),
        deposed in proptest::option::of(prop::sample::select(vec![GREEN, BLUE])),
        ending in prop::sample::select(vec![
            None, Some(Ending::GateFailed), Some(Ending::Retry), Some(Ending::Superseded), Some(Ending::RolledBack),
        ]),
    ) -> Status {
        let mut status = observed(phase).status;
        if !green { status.green = None; }
        if !blue { status.blue = None; }
        status.intent = intent.map(|(epoch, target)| {
            super::super::super::sample::intent(epoch, target, Partitions::All)
        });
        status.targeted = targeted;
        status.retiring = retiring.then(|| release("r0-00000000"));
        if rejected { status.rejected.push(release(BLUE)); }
        status.waived = waived;
        status.deposed = deposed.map(release).into_iter().collect();
        status.ending = ending;
        status
    }
}

prop_compose! {
    fn any_observed()(
        status in any_status(),
        fresh in proptest::option::of(0..4_i32),
        green in proptest::option::of(any_group()),
        blue in proptest::option::of(any_group()),
        pods in (proptest::option::of((0..3_u32, 0..3_u32, 0..3_u32)), proptest::option::of((0..3_u32, 0..3_u32, 0..3_u32))),
        hash8 in prop::sample::select(vec!["aaaaaaaa", "bbbbbbbb", "cccccccc"]),
        verdict in prop::sample::select(vec![
            Verdict::Pending, Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::Error,
        ]),
        word in proptest::option::of(prop::sample::select(vec![
            DecisionAction::Approve, DecisionAction::Abort, DecisionAction::Rollback,
            DecisionAction::Depose, DecisionAction::Retry, DecisionAction::WaiveVerification,
            DecisionAction::Reject, DecisionAction::Promote { partitions: Some(1) },
        ])),
        about in prop::sample::select(vec![GREEN, BLUE]),
        suspended in (0..4_u32, any::<bool>()),
        held in any::<bool>(),
    ) -> Observed {
        let mut observed = observed(Phase::New);
        observed.status = status;
        observed.partitions = fresh.map(|n| (0..n).map(|n| (partition(n), at(0))).collect());
        observed.groups.clear();
        observed.groups.extend(green.map(|group| (release(GREEN), group)));
        observed.groups.extend(blue.map(|group| (release(BLUE), group)));
        let known = |(wanted, running, ready)| Pods { wanted, running, ready };
        observed.pods.clear();
        observed.pods.extend(pods.0.map(|pods| (release(GREEN), known(pods))));
        observed.pods.extend(pods.1.map(|pods| (release(BLUE), known(pods))));
        observed.spec.hash8 = hash8.to_owned();
        observed.evidence.verdict = verdict;
        observed.decisions.extend(word.map(|word| decision(word, about, "ada")));
        observed.guard.suspended = guard::Record { pauses: suspended.0, paused: suspended.1 };
        observed.evidence.held = held;
        observed
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn v3_plans_are_total_deterministic_and_legal(
        observed in any_observed(), recreate in any::<bool>(), later in 0..2_000_000_i64,
    ) {
        let policy = with(|release| if recreate { release.strategy = ReleaseStrategy::Recreate; });
        let mut observed = observed;
        let mut settled = false;
        for _ in 0..20 {
            let first = plan(&observed, &policy, NOW + later);
            prop_assert_eq!(&first, &plan(&observed, &policy, NOW + later));
            let from = observed.status.phase;
            prop_assert!(from == first.phase || from.may_become(first.phase), "{from:?} to {:?}", first.phase);
            let Some(Action::SetStatus(status)) = first.actions.last() else {
                settled = true;
                break;
            };
            let before = observed.status.intent.as_ref().map(|intent| intent.epoch);
            let after = status.intent.as_ref().map(|intent| intent.epoch);
            prop_assert!(before <= after, "an epoch never falls");
            observed.status = (**status).clone();
        }
        prop_assert!(settled, "the status comes to rest: {:?}", observed.status);
    }

    #[test]
    fn r11_r13_groups_with_members_are_never_written(observed in any_observed()) {
        for action in plan(&observed, &policy(), NOW).actions {
            if let Action::Seed { release, .. } | Action::CommitIfEmpty { release, .. } | Action::DeleteGroup(release) = action {
                prop_assert!(observed.is_empty(&release), "{release}");
            }
        }
    }
}
