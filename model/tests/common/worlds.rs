//! What the explorations share: policies, the bridge to the model checker, the printed counts.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use millrace_core::contract::block::{
    Approvals, AutoRollback, Compare, CompareMode, DeletionPolicy, Guard, NewRelease, Promotion,
    PromotionMode, PromotionStep, Release, Rollback, Shadow, Strategy, Verification,
};
use millrace_core::release::plan::Policy;
use millrace_model::explore::World;
use stateright::{Checker, Model, Property};

/// Blue-green, promoted by a pass, all partitions in one step.
pub(crate) fn policy(strategy: Strategy) -> Policy {
    Policy {
        replicas: 2,
        release: Release {
            strategy,
            shadow: Shadow {
                replicas: 1,
                partitions: 0.25,
                max_bytes_per_second: 1,
                replay_from_ms: None,
            },
            guard: Guard {
                lag_growth: Duration::from_secs(300),
                latency_ratio: 1.2,
            },
            verification: Verification {
                min_events: 0,
                min_duration: Duration::ZERO,
                max_duration: Duration::from_secs(3_600),
                min_partitions: 1,
                compare: Compare {
                    mode: CompareMode::Bytes,
                    ignore: vec![],
                    numeric_abs: 0.0,
                    numeric_rel: 0.0,
                    fields: vec![],
                    noise_baseline: 0.0,
                    redact_keep: vec![],
                },
                gates: vec![],
            },
            promotion: Promotion {
                mode: PromotionMode::Auto,
                approvals: Approvals {
                    required: 1,
                    forbid_author: true,
                },
                approved_release: None,
                max_cutover_lag: 1_000,
                max_unadopted: 4,
                steps: vec![PromotionStep {
                    partitions: 1.0,
                    pause: Duration::ZERO,
                }],
            },
            rollback: Rollback {
                window: Duration::from_secs(1_800),
                retain_replicas: 1,
                auto: Some(AutoRollback {
                    error_rate: 0.02,
                    during: Duration::from_secs(120),
                }),
            },
            on_new_release: NewRelease::Settle,
            deletion_policy: DeletionPolicy::DeleteGroups,
            history_limit: 20,
        },
    }
}

/// A world as the model checker wants it.
pub(crate) struct Checked<W> {
    first: W,
    broken: fn(&W) -> bool,
}

impl<W> Model for Checked<W>
where
    W: World + std::fmt::Debug + Send + Sync + 'static,
    W::Step: PartialEq + Send + Sync + 'static,
{
    type State = W;
    type Action = W::Step;

    fn init_states(&self) -> Vec<W> {
        vec![self.first.clone()]
    }

    fn actions(&self, state: &W, actions: &mut Vec<W::Step>) {
        actions.extend(state.steps());
    }

    fn next_state(&self, state: &W, step: W::Step) -> Option<W> {
        state.after(&step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("no rule is broken", |model, state| {
            !(model.broken)(state)
        })]
    }
}

/// More states than any world has, also with `MODEL=full`.
pub(crate) const STATES_MAX: usize = 6_000_000;

/// Whether the larger worlds are to be walked (`make model`).
pub(crate) fn is_full() -> bool {
    match std::env::var("MODEL").as_deref() {
        Ok("full") => true,
        Ok("" | "small") | Err(_) => false,
        Ok(other) => panic!("MODEL is small or full, not {other}"),
    }
}

/// The states that were seen, and a shortest way to a broken one.
pub(crate) struct Found<S> {
    pub(crate) states: usize,
    pub(crate) way: Option<Vec<S>>,
}

/// Looks at every reachable state, and prints how many there are.
pub(crate) fn check<W>(name: &str, first: W, broken: fn(&W) -> bool) -> Found<W::Step>
where
    W: World + std::fmt::Debug + Send + Sync + Hash + 'static,
    W::Step: PartialEq + Send + Sync + 'static,
{
    check_with(2, name, first, broken)
}

/// The same with one thread, whose way to a broken state is a shortest one, always the same.
pub(crate) fn check_shortest<W>(name: &str, first: W, broken: fn(&W) -> bool) -> Found<W::Step>
where
    W: World + std::fmt::Debug + Send + Sync + Hash + 'static,
    W::Step: PartialEq + Send + Sync + 'static,
{
    check_with(1, name, first, broken)
}

fn check_with<W>(threads: usize, name: &str, first: W, broken: fn(&W) -> bool) -> Found<W::Step>
where
    W: World + std::fmt::Debug + Send + Sync + Hash + 'static,
    W::Step: PartialEq + Send + Sync + 'static,
{
    let model = Checked { first, broken };
    let checker = model.checker().threads(threads).spawn_bfs().join();
    let states = checker.unique_state_count();
    let way = checker
        .discovery("no rule is broken")
        .map(|path| path.into_actions());
    println!("{name}: {states} states, depth {}", checker.max_depth());
    Found { states, way }
}

pub(crate) fn shared(policy: Policy) -> Arc<Policy> {
    Arc::new(policy)
}
