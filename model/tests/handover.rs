//! The hand-over of one partition in every order of events: with all rules nothing breaks, and
//! without any one of them something does (V1, V2, L1 to L3).
//!
//! Not here, because they need real times or more than one partition: the sizes and times of R4,
//! lanes and attempts (`millrace-sim`), and R13 (`releases.rs`).

#![expect(clippy::print_stdout, reason = "state counts are part of the result")]

#[path = "common/worlds.rs"]
mod common;

use common::{STATES_MAX, check, check_shortest, is_full};
use millrace_model::explore::{Graph, World};
use millrace_model::owners::{Faults, Guarantee, Off, Owners, Setup};

const ONCE: Setup = Setup {
    guarantee: Guarantee::AtLeastOnce,
    pods: [2, 1],
    intents: 1,
    discard: false,
    depose: false,
    off: None,
};

const EXACTLY: Setup = Setup {
    guarantee: Guarantee::ExactlyOnce,
    ..ONCE
};

const NONE: Faults = Faults {
    crashes: 0,
    evictions: 0,
    moves: 0,
    unknown: 0,
    failures: 0,
    expiries: 0,
};

fn broken(owners: &Owners) -> bool {
    owners.broken.is_some()
}

/// Nothing breaks, and the hand-over can be completed from everywhere; with `MODEL=full` in the
/// larger of both worlds.
fn holds(name: &str, small: (Setup, Faults), full: (Setup, Faults)) {
    let (setup, faults) = if is_full() { full } else { small };
    let first = Owners::new(setup, faults);
    let found = check(name, first.clone(), broken);
    if let Some(way) = found.way {
        panic!("{name}: {:?} after {way:#?}", end(first, &way).broken);
    }
    let graph = Graph::of(first, STATES_MAX);
    assert_eq!(graph.len(), found.states, "two walks of one world");
    println!("{name}: {} edges", graph.edges());
    let there = |owners: &Owners| owners.issued == 1 && owners.is_handed_over();
    assert!(graph.states().iter().any(there), "{name}: no hand-over");
    let back = graph.states().iter().any(Owners::is_rolled_back);
    assert!(back, "{name}: no rollback");
    // Expired offsets wait for a person (R9).
    let done = |owners: &Owners| {
        let lost = (0..2).any(|r| owners.groups[r].is_some() && owners.token(r).is_none());
        owners.is_handed_over() || lost
    };
    if let Some((way, stuck)) = graph.stuck(done) {
        panic!("{name}: stuck after {way:#?}\n{stuck:#?}");
    }
}

fn end<W: World>(first: W, way: &[W::Step]) -> W {
    way.iter().fold(first, |world, step| {
        world.after(step).expect("it was a step")
    })
}

/// Without the rule, something breaks; returns what, and in how many steps.
fn breaks(off: Off, setup: Setup, faults: Faults) -> (&'static str, usize) {
    let first = Owners::new(
        Setup {
            off: Some(off),
            ..setup
        },
        faults,
    );
    let found = check_shortest(&format!("without {off:?}"), first.clone(), broken);
    let way = found
        .way
        .unwrap_or_else(|| panic!("nothing breaks without {off:?}"));
    let broken = end(first.clone(), &way).broken.expect("it is a broken one");
    // With the rule the same bounds hold, so it is this rule that was missed.
    let with = check_shortest(&format!("with {off:?}"), Owners::new(setup, faults), |o| {
        o.broken.is_some()
    });
    assert!(with.way.is_none(), "{off:?}");
    println!("without {off:?}: {broken}, in {} steps: {way:?}", way.len());
    (broken, way.len())
}

/// There and back, one pod of each release.
const BACK: Setup = Setup {
    intents: 2,
    pods: [1, 1],
    ..ONCE
};

/// There and back, with a second pod of the old release.
const WIDE: Setup = Setup {
    pods: [2, 1],
    ..BACK
};

fn exactly(setup: Setup) -> Setup {
    let guarantee = Guarantee::ExactlyOnce;
    Setup { guarantee, ..setup }
}

const CRASH: Faults = Faults { crashes: 1, ..NONE };
const EVICTION: Faults = Faults {
    evictions: 1,
    ..NONE
};
const DEATHS: Faults = Faults {
    crashes: 1,
    ..EVICTION
};
const UNKNOWN: Faults = Faults { unknown: 1, ..NONE };
const DOUBT: Faults = Faults {
    moves: 1,
    ..UNKNOWN
};
const FAILURE: Faults = Faults {
    failures: 1,
    ..NONE
};
const HOLES: Faults = Faults {
    crashes: 1,
    ..FAILURE
};
// Offsets expire where there are no members any more.
const EXPIRY: Faults = Faults {
    expiries: 1,
    ..CRASH
};

#[test]
fn v1_l1_l2_pods_die_and_are_evicted() {
    holds("at-least-once: deaths", (BACK, EVICTION), (WIDE, DEATHS));
    let (small, full) = (exactly(BACK), exactly(WIDE));
    holds("exactly-once: deaths", (small, DEATHS), (full, DEATHS));
}

#[test]
fn v1_l1_l2_commits_with_unknown_outcome_and_moved_partitions() {
    holds("at-least-once: doubt", (BACK, UNKNOWN), (WIDE, DOUBT));
    let (small, full) = (exactly(BACK), exactly(WIDE));
    holds("exactly-once: doubt", (small, DOUBT), (full, DOUBT));
}

#[test]
fn v1_l1_l2_events_without_an_answer_are_carried() {
    holds("at-least-once: holes", (BACK, FAILURE), (WIDE, HOLES));
    let (small, full) = (exactly(BACK), exactly(WIDE));
    holds("exactly-once: holes", (small, HOLES), (full, HOLES));
}

#[test]
fn v1_l2_there_and_back_and_there_with_late_intents() {
    let again = |setup| Setup {
        intents: 3,
        ..setup
    };
    let (small, full) = (again(BACK), again(WIDE));
    holds("at-least-once: again", (small, NONE), (full, CRASH));
    let (small, full) = (exactly(small), exactly(full));
    holds("exactly-once: again", (small, UNKNOWN), (full, UNKNOWN));
}

#[test]
fn v1_l2_a_candidate_that_was_given_up_is_removed() {
    let discard = |setup| Setup {
        discard: true,
        ..setup
    };
    let (small, full) = (discard(BACK), discard(WIDE));
    holds("at-least-once: discard", (small, NONE), (full, CRASH));
}

#[test]
fn v1_l3_a_release_whose_pods_are_gone_is_deposed() {
    let depose = |setup| Setup {
        depose: true,
        ..setup
    };
    let (small, full) = (depose(BACK), depose(BACK));
    holds("at-least-once: depose", (small, CRASH), (full, DEATHS));
    let (small, full) = (exactly(small), exactly(full));
    holds("exactly-once: depose", (small, DEATHS), (full, DEATHS));
}

#[test]
fn v1_r9_offsets_expire() {
    let both = ((BACK, EXPIRY), (WIDE, EXPIRY));
    holds("at-least-once: expiry", both.0, both.1);
}

#[test]
fn v2_without_seals_both_answer() {
    let (broken, steps) = breaks(
        Off::Seal,
        Setup {
            pods: [1, 1],
            ..ONCE
        },
        NONE,
    );
    assert!(
        broken.starts_with("I2") || broken.starts_with("I3"),
        "{broken}"
    );
    assert!(steps <= 9, "{steps}");
}

#[test]
fn v2_without_the_floor_what_a_dead_pod_published_is_answered_again() {
    let faults = Faults { crashes: 1, ..NONE };
    let setup = Setup {
        pods: [1, 1],
        ..ONCE
    };
    let (broken, _) = breaks(Off::Floor, setup, faults);
    assert!(
        broken.starts_with("I2") || broken.starts_with("I3"),
        "{broken}"
    );
    let (broken, _) = breaks(Off::FloorKept, setup, faults);
    assert!(
        broken.starts_with("I2") || broken.starts_with("I3"),
        "{broken}"
    );
}

#[test]
fn v2_without_the_lease_an_old_owner_publishes_after_the_cut() {
    let faults = Faults {
        evictions: 1,
        ..NONE
    };
    let (broken, _) = breaks(Off::Lease, ONCE, faults);
    assert!(
        broken.starts_with("I5") || broken.starts_with("I2"),
        "{broken}"
    );
}

#[test]
fn v2_without_exclusion_an_event_is_committed_twice() {
    let faults = Faults {
        moves: 1,
        unknown: 1,
        ..NONE
    };
    let setup = Setup {
        intents: 0,
        ..EXACTLY
    };
    let (broken, _) = breaks(Off::Exclusion, setup, faults);
    assert!(broken.starts_with("I2"), "{broken}");
}

#[test]
fn v2_without_doubt_a_late_seal_makes_two_holders() {
    let setup = Setup {
        intents: 2,
        pods: [1, 1],
        ..ONCE
    };
    let faults = Faults { unknown: 1, ..NONE };
    let (broken, _) = breaks(Off::Doubt, setup, faults);
    assert!(broken.starts_with('I'), "{broken}");
}

#[test]
fn v2_a_carried_seal_without_its_ledger_lets_both_answer() {
    let faults = Faults {
        failures: 1,
        ..NONE
    };
    let (broken, _) = breaks(
        Off::Carried,
        Setup {
            pods: [1, 1],
            ..EXACTLY
        },
        faults,
    );
    assert!(broken.starts_with("I2"), "{broken}");
}

#[test]
fn v2_without_stamps_a_late_promote_seals_to_nobody() {
    let setup = Setup {
        intents: 2,
        discard: true,
        pods: [1, 1],
        ..ONCE
    };
    let (broken, _) = breaks(Off::Stamp, setup, NONE);
    assert!(broken.starts_with("L2"), "{broken}");
}

#[test]
fn v2_a_depose_without_the_ledger_doubles_under_exactly_once() {
    let faults = Faults { crashes: 1, ..NONE };
    let setup = Setup {
        depose: true,
        pods: [1, 1],
        ..EXACTLY
    };
    let (broken, _) = breaks(Off::DeposeLedger, setup, faults);
    assert!(broken.starts_with("I2"), "{broken}");
}

#[test]
fn v2_a_missing_token_read_as_live_makes_two_holders() {
    let faults = Faults {
        expiries: 1,
        ..NONE
    };
    let (broken, _) = breaks(
        Off::Missing,
        Setup {
            pods: [1, 1],
            ..ONCE
        },
        faults,
    );
    assert!(broken.starts_with('I'), "{broken}");
}
