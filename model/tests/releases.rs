//! The planner in a whole block: stories first, then every order of events (V1, L1 to L3).

#![expect(clippy::print_stdout, reason = "state counts are part of the result")]

#[path = "common/worlds.rs"]
mod common;

use common::{STATES_MAX, check, is_full, policy, shared};
use millrace_core::contract::block::{PromotionMode, PromotionStep, Strategy};
use millrace_core::position::Partition;
use millrace_core::release::plan::{DecisionAction, Ending, Phase, Policy, Verdict, plan};
use millrace_core::token::{ReleaseId, Token};
use millrace_model::cluster::{Block, Budget, Cluster, Lists, Step, Word};
use millrace_model::explore::{Graph, World};
use std::time::Duration;

fn id(name: &str) -> ReleaseId {
    ReleaseId::new(name).expect("a plain name")
}

const FIRST: &str = "r1-aaaaaaaa";
const SECOND: &str = "r2-bbbbbbbb";

/// The first release answers everywhere.
fn serving(partitions: i32, policy: Policy) -> Block {
    let mut block = Block {
        cluster: Cluster::new(partitions, "aaaaaaaa"),
        policy: shared(policy),
    };
    block.settle(20);
    assert_eq!(phase(&block), Phase::Stable);
    block
}

/// The second one reads along.
fn shadowing(partitions: i32, policy: Policy) -> Block {
    let mut block = serving(partitions, policy);
    block.cluster.ask_for("bbbbbbbb");
    block.settle(20);
    assert_eq!(phase(&block), Phase::Shadowing);
    block
}

fn promoted(partitions: i32, policy: Policy) -> Block {
    let mut block = shadowing(partitions, policy);
    block.cluster.observed.evidence.verdict = Verdict::Pass;
    block.settle(60);
    assert_eq!(phase(&block), Phase::RollbackWindow);
    block
}

fn phase(block: &Block) -> Phase {
    block.cluster.observed.status.phase
}

fn holders(block: &Block) -> Vec<String> {
    let mut holders = Vec::new();
    for partition in block.cluster.observed.fresh() {
        let names: Vec<_> = block
            .cluster
            .holders(partition)
            .map(ToString::to_string)
            .collect();
        holders.push(names.join("+"));
    }
    holders
}

fn decide(block: &mut Block, action: DecisionAction, release: &str) {
    block.cluster.decide(action, &id(release), "ada");
    block.settle(60);
    assert_eq!(block.cluster.broken, None);
}

#[test]
fn a_first_release_gets_its_roots_then_its_tokens_then_its_pods() {
    let block = serving(3, policy(Strategy::BlueGreen));
    assert_eq!(holders(&block), [FIRST; 3]);
    let observed = &block.cluster.observed;
    assert!(
        observed
            .registry
            .values()
            .all(|grant| grant.root == id(FIRST))
    );
    assert_eq!(observed.pods[&id(FIRST)].wanted, 2);
}

#[test]
fn a_release_that_passes_takes_over_and_the_old_one_goes_when_the_window_is_over() {
    let mut block = promoted(3, policy(Strategy::BlueGreen));
    assert_eq!(holders(&block), [SECOND; 3]);
    block.cluster.now_ms += 1_800_000;
    block.settle(60);
    let observed = &block.cluster.observed;
    assert_eq!(phase(&block), Phase::Stable);
    assert_eq!(observed.status.green, Some(id(SECOND)));
    assert!(!observed.groups.contains_key(&id(FIRST)) && !observed.pods.contains_key(&id(FIRST)));
    assert!(
        observed
            .registry
            .values()
            .all(|grant| grant.root == id(SECOND))
    );
}

#[test]
fn a_release_that_fails_is_removed_and_not_tried_again() {
    let mut block = shadowing(2, policy(Strategy::BlueGreen));
    block.cluster.observed.evidence.verdict = Verdict::Fail;
    block.settle(60);
    assert_eq!(phase(&block), Phase::Stable);
    assert_eq!(block.cluster.observed.status.rejected, [id(SECOND)]);
    assert_eq!(holders(&block), [FIRST; 2]);
    assert!(!block.cluster.observed.groups.contains_key(&id(SECOND)));
    decide(&mut block, DecisionAction::Retry, SECOND);
    assert_eq!(phase(&block), Phase::Shadowing);
    assert_eq!(
        block.cluster.observed.status.blue,
        Some(id("r2-bbbbbbbb-2"))
    );
}

#[test]
fn a_rollback_moves_everything_back() {
    let mut block = promoted(3, policy(Strategy::BlueGreen));
    decide(&mut block, DecisionAction::Rollback, SECOND);
    assert_eq!(phase(&block), Phase::Stable);
    assert_eq!(holders(&block), [FIRST; 3]);
    assert_eq!(block.cluster.observed.status.rejected, [id(SECOND)]);
}

#[test]
fn g2_git_back_at_the_old_image_is_a_rollback_in_the_window() {
    let mut block = promoted(2, policy(Strategy::BlueGreen));
    block.cluster.ask_for("aaaaaaaa");
    block.settle(60);
    assert_eq!(phase(&block), Phase::Stable);
    assert_eq!(holders(&block), [FIRST; 2]);
}

#[test]
fn a_newer_release_ends_the_window_and_replaces_a_candidate_in_shadow() {
    let mut block = promoted(2, policy(Strategy::BlueGreen));
    block.cluster.ask_for("cccccccc");
    block.settle(80);
    assert_eq!(phase(&block), Phase::Shadowing);
    assert_eq!(block.cluster.observed.status.green, Some(id(SECOND)));
    assert_eq!(block.cluster.observed.status.blue, Some(id("r3-cccccccc")));
    block.cluster.ask_for("dddddddd");
    block.settle(80);
    assert_eq!(block.cluster.observed.status.blue, Some(id("r4-dddddddd")));
    assert_eq!(block.cluster.observed.status.rejected, []);
}

#[test]
fn manual_promotion_waits_for_a_person_and_stops_at_the_partitions_asked_for() {
    let mut manual = policy(Strategy::BlueGreen);
    manual.release.promotion.mode = PromotionMode::Manual;
    let mut block = shadowing(4, manual);
    block.cluster.observed.evidence.verdict = Verdict::Pass;
    block.settle(60);
    assert_eq!(phase(&block), Phase::Verified);
    let partitions = Some(1);
    decide(&mut block, DecisionAction::Promote { partitions }, SECOND);
    let there = |block: &Block| holders(block).iter().filter(|name| *name == SECOND).count();
    assert_eq!((phase(&block), there(&block)), (Phase::Promoting, 1));
    let partitions = None;
    decide(&mut block, DecisionAction::Promote { partitions }, SECOND);
    assert_eq!((phase(&block), there(&block)), (Phase::RollbackWindow, 4));
}

#[test]
fn a_canary_pauses_after_each_step() {
    let mut canary = policy(Strategy::BlueGreen);
    let step = |partitions, seconds| PromotionStep {
        partitions,
        pause: Duration::from_secs(seconds),
    };
    canary.release.promotion.steps = vec![step(0.25, 60), step(0.5, 60), step(1.0, 0)];
    let mut block = shadowing(8, canary);
    block.cluster.observed.evidence.verdict = Verdict::Pass;
    let there = |block: &Block| holders(block).iter().filter(|name| *name == SECOND).count();
    for expect in [2, 4, 8] {
        block.settle(80);
        assert_eq!(there(&block), expect);
        block.cluster.now_ms += 60_000;
    }
    assert_eq!(phase(&block), Phase::RollbackWindow);
}

#[test]
fn no_more_partitions_than_allowed_are_on_their_way_at_once() {
    let mut block = shadowing(8, policy(Strategy::BlueGreen));
    block.cluster.observed.evidence.verdict = Verdict::Pass;
    let policy = std::sync::Arc::clone(&block.policy);
    for _ in 0..200 {
        let plan = plan(&block.cluster.observed, &policy, block.cluster.now_ms);
        for action in plan.actions {
            block.cluster.carry_out(action);
        }
        // Only the giver does anything, so that nothing is adopted.
        for step in block.cluster_steps() {
            let of_blue = matches!(&step, Step::Own(release, _) if *release == id(SECOND));
            if !of_blue && matches!(step, Step::Own(..) | Step::Hear(..) | Step::Pods(_)) {
                block = block.after(&step).unwrap_or(block);
            }
        }
    }
    let sealed = |p: &&Partition| {
        matches!(
            block.cluster.observed.token(&id(FIRST), p),
            Some(Token::Sealed { .. })
        )
    };
    assert_eq!(block.cluster.observed.fresh().filter(sealed).count(), 4);
}

#[test]
fn r11_a_release_that_is_gone_is_deposed_by_a_decision() {
    let mut block = shadowing(2, policy(Strategy::BlueGreen));
    block.cluster.dead.insert(id(FIRST));
    block.cluster.observed.evidence.verdict = Verdict::Pass;
    block.settle(60);
    assert_eq!(
        (phase(&block), holders(&block)),
        (Phase::Promoting, vec![FIRST.to_owned(); 2])
    );
    decide(&mut block, DecisionAction::Depose, FIRST);
    assert_eq!(
        (phase(&block), holders(&block)),
        (Phase::RollbackWindow, vec![SECOND.to_owned(); 2])
    );
}

#[test]
fn r13_added_partitions_are_granted_to_the_target() {
    let mut block = promoted(2, policy(Strategy::BlueGreen));
    block.cluster.budget.partitions = 1;
    block = block.after(&Step::Add).unwrap();
    block.settle(60);
    assert_eq!(holders(&block), [SECOND; 3]);
    let observed = &block.cluster.observed;
    assert!(
        observed
            .registry
            .values()
            .all(|grant| grant.release.is_none())
    );
    let third = Partition::new("tx", 2);
    assert!(matches!(
        observed.token(&id(FIRST), &third),
        Some(Token::Shadow { .. })
    ));
}

#[test]
fn r13_a_partition_that_was_granted_to_a_dead_release_goes_back_with_the_others() {
    let mut block = shadowing(2, policy(Strategy::BlueGreen));
    block.cluster.observed.evidence.verdict = Verdict::Pass;
    while phase(&block) != Phase::Promoting {
        block.round();
    }
    block.cluster.dead.insert(id(SECOND));
    block.cluster.budget.partitions = 1;
    block = block.after(&Step::Add).unwrap();
    block.settle(60);
    assert_eq!(holders(&block)[2], "");
    decide(&mut block, DecisionAction::Abort, SECOND);
    assert_eq!(phase(&block), Phase::RollingBack);
    decide(&mut block, DecisionAction::Depose, SECOND);
    assert_eq!(phase(&block), Phase::Stable);
    assert_eq!(holders(&block), [FIRST; 3]);
}

#[test]
fn r9_a_token_that_was_lost_is_never_granted_again() {
    let mut block = serving(2, policy(Strategy::BlueGreen));
    let lost = Partition::new("tx", 0);
    let group = block.cluster.observed.groups.get_mut(&id(FIRST)).unwrap();
    group.commits.remove(&lost);
    block.settle(60);
    assert_eq!(holders(&block), ["", FIRST]);
    let plan = plan(&block.cluster.observed, &block.policy, block.cluster.now_ms);
    assert_eq!(plan.actions, []);
    assert!(plan.waiting_on[0].to_string().contains("token is gone"));
}

#[test]
fn a_status_that_was_lost_is_rebuilt_with_an_epoch_above_every_token() {
    let mut block = promoted(2, policy(Strategy::BlueGreen));
    let newest = block.cluster.observed.newest_epoch();
    block.cluster.observed.status = millrace_core::release::plan::Status::new(0);
    block.cluster.todo.clear();
    block.settle(80);
    let status = &block.cluster.observed.status;
    assert!(status.intent.as_ref().unwrap().epoch > newest);
    assert_eq!(status.green, Some(id(SECOND)));
    assert_eq!(holders(&block), [SECOND; 2]);
}

#[test]
fn recreate_never_runs_both_releases_and_goes_back_when_the_new_one_does_not_start() {
    let mut block = serving(2, policy(Strategy::Recreate));
    block.cluster.ask_for("bbbbbbbb");
    for _ in 0..60 {
        block.round();
        let running = block
            .cluster
            .observed
            .pods
            .values()
            .filter(|pods| pods.running > 0);
        assert!(running.count() <= 1);
    }
    assert_eq!(
        (phase(&block), holders(&block)),
        (Phase::RollbackWindow, vec![SECOND.to_owned(); 2])
    );
    decide(&mut block, DecisionAction::Rollback, SECOND);
    assert_eq!(holders(&block), [FIRST; 2]);
    block.cluster.ask_for("cccccccc");
    block.cluster.dead.insert(id("r3-cccccccc"));
    block.settle(60);
    assert_eq!(holders(&block), ["", ""]);
    block.cluster.now_ms += 900_000;
    block.settle(80);
    assert_eq!(
        (phase(&block), holders(&block)),
        (Phase::Stable, vec![FIRST.to_owned(); 2])
    );
}

fn broken(block: &Block) -> bool {
    block.cluster.broken.is_some()
}

/// People or time must speak, or nothing is to be done.
fn at_rest(block: &Block) -> bool {
    let status = &block.cluster.observed.status;
    let plan = plan(&block.cluster.observed, &block.policy, block.cluster.now_ms);
    let rests = match status.phase {
        Phase::Stable => status.retiring.is_none(),
        Phase::Verified | Phase::Inconclusive | Phase::Failed | Phase::RollbackWindow => true,
        Phase::New
        | Phase::Preparing
        | Phase::Shadowing
        | Phase::Promoting
        | Phase::RollingBack
        | Phase::Aborting => false,
    };
    rests && plan.actions.is_empty()
}

/// Every order of events: nothing breaks (always), and rest can be reached from everywhere (L).
fn explore(name: &str, block: Block, is_goal: impl Fn(&Block) -> bool) {
    let found = check(name, block.clone(), broken);
    if let Some(way) = found.way {
        let end = way.iter().fold(block, |block, step| {
            block.after(step).expect("it was a step")
        });
        panic!("{name}: {:?} after {way:#?}", end.cluster.broken);
    }
    let graph = Graph::of(block, STATES_MAX);
    println!("{name}: {} edges", graph.edges());
    assert_eq!(graph.len(), found.states, "two walks of one world");
    let any = |is: fn(&Block) -> bool| graph.states().iter().any(is);
    let there = |block: &Block| phase(block) == Phase::RollbackWindow;
    assert!(any(there), "{name}: no hand-over");
    // Before, the old release holds everything again.
    let back = |block: &Block| {
        let ending = block.cluster.observed.status.ending;
        phase(block) == Phase::Aborting && ending == Some(Ending::RolledBack)
    };
    assert!(any(back), "{name}: no rollback");
    if let Some((way, end)) = graph.stuck(is_goal) {
        let plan = plan(&end.cluster.observed, &end.policy, end.cluster.now_ms);
        let waits: Vec<_> = plan.waiting_on.iter().map(ToString::to_string).collect();
        panic!(
            "{name}: stuck after {way:#?}\n{waits:#?}\n{:#?}",
            end.cluster
        );
    }
}

/// A promotion of one partition has just begun, and lists are carried out at once; in the small
/// worlds every release always has one pod, and intents arrive at once too.
fn promoting() -> Block {
    let mut policy = policy(Strategy::BlueGreen);
    if !is_full() {
        policy.replicas = 1;
    }
    let mut block = shadowing(1, policy);
    block.cluster.observed.evidence.verdict = Verdict::Pass;
    while phase(&block) != Phase::Promoting {
        block.round();
    }
    block.cluster.lists = if is_full() {
        Lists::AtOnce
    } else {
        Lists::Heard
    };
    block
}

fn with(mut block: Block, budget: Budget, words: &[Word]) -> Block {
    block.cluster.budget = budget;
    block.cluster.words = words.to_vec();
    block
}

const GIVE_UP: [Word; 2] = [
    Word::Blue(DecisionAction::Abort),
    Word::Blue(DecisionAction::Rollback),
];

#[test]
fn v1_l2_promote_abort_and_rollback_with_late_intents_and_restarted_pods() {
    let budget = Budget {
        decisions: 1,
        stale: 1,
        restarts: 1,
        ..Budget::default()
    };
    let block = with(shadowing(1, policy(Strategy::BlueGreen)), budget, &GIVE_UP);
    explore("one partition, late intents", block, at_rest);
}

#[test]
fn v1_l2_two_partitions_and_a_controller_that_is_restarted() {
    let budget = Budget {
        decisions: 1,
        crashes: 1,
        ..Budget::default()
    };
    let block = with(
        shadowing(2, policy(Strategy::BlueGreen)),
        budget,
        &GIVE_UP[..1],
    );
    explore("two partitions, controller restarts", block, at_rest);
}

#[test]
fn v1_r13_a_partition_is_added_at_any_time_of_a_promotion() {
    let budget = Budget {
        partitions: 1,
        decisions: 1,
        ..Budget::default()
    };
    let block = with(promoting(), budget, &GIVE_UP[..1]);
    explore("a partition is added", block, at_rest);
}

#[test]
fn v1_git_changes_at_any_time() {
    let budget = Budget {
        changes: 1,
        ticks: 1,
        ..Budget::default()
    };
    let block = with(shadowing(1, policy(Strategy::BlueGreen)), budget, &[]);
    explore("Git changes", block, |block| {
        at_rest(block) || phase(block) == Phase::Shadowing
    });
}

/// Hand-overs end with a holder that lives. A rollback to pods that are all dead cannot: they must
/// be started again.
fn is_served(block: &Block) -> bool {
    let cluster = &block.cluster;
    let lives = |release: &ReleaseId| !cluster.dead.contains(release);
    let status = &cluster.observed.status;
    let served = cluster
        .observed
        .fresh()
        .all(|partition| cluster.holders(partition).next().is_some_and(lives));
    let hands_over = matches!(status.phase, Phase::Promoting | Phase::RollingBack);
    let nobody_to_go_back_to =
        status.phase == Phase::RollingBack && !status.green.as_ref().is_some_and(lives);
    served || !hands_over || nobody_to_go_back_to
}

const DEPOSE: [Word; 3] = [
    Word::Blue(DecisionAction::Abort),
    Word::Blue(DecisionAction::Depose),
    Word::Green(DecisionAction::Depose),
];

#[test]
fn v1_l3_a_dead_release_is_deposed() {
    let budget = Budget {
        decisions: 1,
        deaths: 1,
        ..Budget::default()
    };
    let block = if is_full() {
        shadowing(1, policy(Strategy::BlueGreen))
    } else {
        promoting()
    };
    explore("a release dies", with(block, budget, &DEPOSE), is_served);
}

#[test]
fn v1_l2_recreate_with_time() {
    let budget = Budget {
        decisions: 1,
        ticks: 1,
        ..Budget::default()
    };
    let mut block = serving(1, policy(Strategy::Recreate));
    block.cluster.ask_for("bbbbbbbb");
    let block = with(block, budget, &GIVE_UP[..1]);
    explore("Recreate", block, at_rest);
}
