//! All laws hold for many seeds, for every seed that broke one once, and a run is the same
//! every time.

use std::path::Path;

use millrace_core::rules::Rules;
use millrace_sim::event_log::{Regression, Trace};
use millrace_sim::scenario::ONCE;
use millrace_sim::search;

/// How many seeds every test run checks; `SEEDS` in the environment asks for more.
const SEEDS: u64 = 500;

#[test]
fn every_law_holds_for_many_seeds() {
    let seeds = std::env::var("SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(SEEDS);
    let (mut steps, mut repeats) = (0, 0);
    for seed in (0..seeds).chain(ONCE..ONCE + 4 * seeds) {
        match search::run(seed, Rules::ALL) {
            Ok(summary) => {
                steps += summary.steps;
                repeats += summary.repeats;
            }
            Err(failure) => panic!(
                "seed {seed} breaks {:?} at step {}: {}\nreplay: cargo run -p millrace-sim -- --seed {seed} --trace",
                failure.violation.law, failure.step, failure.violation.message
            ),
        }
    }
    println!("{seeds} seeds, {steps} steps, {repeats} repeats");
    assert!(
        repeats > 0,
        "faults that permit repeats were not met: the world is too kind"
    );
}

#[test]
fn seeds_that_once_broke_a_law_hold_all_laws_now() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let regressions = Regression::read_all(&folder).expect("the folder of regressions can be read");
    assert!(!regressions.is_empty(), "{} holds none", folder.display());
    for regression in regressions {
        if let Err(failure) = search::run(regression.seed, Rules::ALL) {
            panic!(
                "seed {} broke {} once, and breaks a law again: {failure:?}",
                regression.seed, regression.law
            );
        }
    }
}

#[test]
fn a_seed_plays_the_same_every_time() {
    for seed in [3, 35, ONCE + 3] {
        let first = search::traced(seed, Rules::ALL, Trace::from_step(0));
        let second = search::traced(seed, Rules::ALL, Trace::from_step(0));
        assert!(
            first.1.len() > 100,
            "seed {seed} leaves {} lines",
            first.1.len()
        );
        assert_eq!(first, second);
    }
}

#[test]
fn a_calm_world_stores_every_record_once() {
    let calm = (0..2_000)
        .filter(|seed| millrace_sim::scenario::Scenario::of(*seed).calm)
        .take(50);
    for seed in calm {
        let summary = search::run(seed, Rules::ALL).unwrap_or_else(|failure| panic!("{failure:?}"));
        assert_eq!(summary.repeats, 0, "seed {seed}");
    }
}

#[test]
fn a_regression_survives_its_file() {
    let folder = std::env::temp_dir().join(format!("millrace-sim-{}", std::process::id()));
    let regression = Regression {
        seed: 7,
        law: "Order".into(),
        message: "\"x\" / y".into(),
        step: 12,
    };
    regression
        .write(&folder)
        .expect("the temporary folder can be written");
    let read = Regression::read_all(&folder).expect("and read");
    std::fs::remove_dir_all(&folder).expect("and removed");
    assert_eq!(read, [regression]);
}

/// What the world has to do to the machines, as the trace tells it.
const TROUBLE: [&str; 44] = [
    "<- Lost(",
    "<- Revoking(",
    "<- Rejoined",
    "<- Link(Down)",
    "<- Drain",
    "<- Operator(Pause)",
    "<- Operator(Skip",
    "outcome: Unknown(",
    "outcome: NotOwner(",
    "outcome: Retriable(",
    "read: Err(",
    "-> Rejoin",
    "-> Stop",
    "-> Unassign(",
    "-> ProbeApp",
    "Halted {",
    "state: \"half-open\", cause: \"failures\"",
    "state: \"half-open\", cause: \"misconfigured\"",
    "state: \"half-open\", cause: \"storm\"",
    "remembered: 1,",
    ":Transient:purged",
    ":Transient:LaneHeld",
    ":Transient:message timed out",
    ":Unknown:",
    ":Misconfigured:",
    ":Rejected:MessageSizeTooLarge",
    ":Rejected:InvalidRecord",
    ":Lease:",
    ":Revoked:",
    "too large",
    "abandoned",
    "the app of pod",
    "dies of a call",
    "PodCrashes {",
    "the pod ended uncleanly",
    "ParkingFull {",
    "reason: \"app_crash\"",
    "reason: \"retries_exhausted\"",
    "reason: \"max_age\"",
    "reason: \"oversized\"",
    "reason: \"ttl\"",
    "thaws",
    "the session of pod",
    "the broker stores a commit",
];

#[test]
fn the_world_is_unkind_enough() {
    let mut missing = TROUBLE.to_vec();
    for seed in 0..400 {
        let (_, lines) = search::traced(seed, Rules::ALL, Trace::from_step(0));
        missing.retain(|trouble| !lines.iter().any(|line| line.contains(trouble)));
        if missing.is_empty() {
            return;
        }
    }
    panic!("400 seeds never meet {missing:?}");
}
