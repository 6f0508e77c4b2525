//! Looks for seeds that break a law.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millrace_core::rules::Rules;

use crate::event_log::Trace;
use crate::laws::{Law, Violation};
use crate::scenario::Scenario;
use crate::world::{Summary, World};

/// A run that broke a law.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// At which step.
    pub step: u64,
    /// Which law, and how.
    pub violation: Violation,
}

/// Runs one seed.
pub fn run(seed: u64, rules: Rules) -> Result<Summary, Failure> {
    traced(seed, rules, Trace::off()).0
}

/// Runs one seed and gives what the trace kept.
pub fn traced(seed: u64, rules: Rules, trace: Trace) -> (Result<Summary, Failure>, Vec<String>) {
    play(Scenario::of(seed), rules, trace)
}

/// Runs a scenario and gives what the trace kept.
pub fn play(
    scenario: Scenario,
    rules: Rules,
    trace: Trace,
) -> (Result<Summary, Failure>, Vec<String>) {
    let seed = scenario.seed;
    let mut world = World::new(scenario, rules, trace);
    let violation = match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(Ok(summary)) => return (Ok(summary), world.into_trace()),
        Ok(Err(violation)) => violation,
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("without words");
            Violation {
                law: Law::Panic,
                message: format!("a machine panics: {message}"),
            }
        }
    };
    let failure = Failure {
        seed,
        step: world.steps(),
        violation,
    };
    (Err(failure), world.into_trace())
}

/// The first of these seeds that breaks a law.
pub fn first_failure(seeds: impl IntoIterator<Item = u64>, rules: Rules) -> Option<Failure> {
    seeds.into_iter().find_map(|seed| run(seed, rules).err())
}
