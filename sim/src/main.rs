//! `millrace-sim`: searches seeds for a broken law, or shows what one seed does.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use millrace_core::rules::Rules;
use millrace_sim::event_log::{Regression, Trace};
use millrace_sim::scenario::{ONCE, Scenario};
use millrace_sim::search;

/// Runs seeded worlds around the real machines and checks the laws at every step.
#[derive(Parser, Debug)]
struct Arguments {
    /// How many seeds; every other one runs under exactly-once.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// With --trace: from this step on.
    #[arg(long, default_value_t = 0)]
    step: u64,
    /// Go on after a failure, and count by law.
    #[arg(long)]
    keep_going: bool,
    /// Where failing seeds are written.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions"))]
    regressions: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    let of = |number: u64| {
        let once = if number % 2 == 1 { ONCE } else { 0 };
        arguments.seed.unwrap_or(once + number / 2)
    };
    let (first, seeds) = match arguments.seed {
        Some(_) => (0, 1),
        None => (arguments.first, arguments.seeds),
    };
    let (mut steps, mut repeats) = (0, 0);
    let mut broken = BTreeMap::new();
    for (done, seed) in (1..).zip((first..first + seeds).map(of)) {
        let trace = if arguments.trace {
            Trace::from_step(arguments.step)
        } else {
            Trace::off()
        };
        if arguments.trace {
            writeln!(out, "{:#?}", Scenario::of(seed))?;
        }
        let (summary, lines) = search::traced(seed, Rules::ALL, trace);
        for line in lines {
            writeln!(out, "{line}")?;
        }
        match summary {
            Ok(summary) => {
                steps += summary.steps;
                repeats += summary.repeats;
            }
            Err(failure) if arguments.keep_going => {
                let broken = broken
                    .entry(failure.violation.law)
                    .or_insert((0_u64, failure.clone()));
                broken.0 += 1;
            }
            Err(failure) => {
                writeln!(
                    out,
                    "seed {seed} breaks {:?} at step {}: {}",
                    failure.violation.law, failure.step, failure.violation.message
                )?;
                let file = Regression::new(seed, failure.step, &failure.violation)
                    .write(&arguments.regressions)?;
                writeln!(out, "written to {}", file.display())?;
                writeln!(
                    out,
                    "replay: cargo run -p millrace-sim -- --seed {seed} --trace --step {}",
                    failure.step.saturating_sub(200)
                )?;
                return Ok(ExitCode::FAILURE);
            }
        }
        if done % 1_000 == 0 {
            writeln!(out, "{done} of {seeds} seeds hold all laws")?;
        }
    }
    for (law, (count, failure)) in &broken {
        writeln!(
            out,
            "{law:?}: {count} seeds, first {}, step {}: {}",
            failure.seed, failure.step, failure.violation.message
        )?;
    }
    if !broken.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    writeln!(
        out,
        "{seeds} seeds hold all laws: {steps} steps, {repeats} repeats"
    )?;
    Ok(ExitCode::SUCCESS)
}
