//! `make outage`: the output cannot reach its broker while events wait (F-12). Prints the memory of
//! both proxies over time; the last line says what became of the events. It ends with a panic, and
//! another code than 0, if memory grew or an event was lost or dead-lettered.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the tests"
)]

use std::process::ExitCode;

use millrace_integration_tests::World;
use millrace_integration_tests::broker::{BrokerKind, minutes, variable};
use millrace_integration_tests::tales::outages::{Outage, output_away};

/// `flow.maxInFlight` of a block that does not name it.
const IN_FLIGHT_MAX: u32 = 1_024;

fn main() -> ExitCode {
    let (broker, outage) = match plan() {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("outage: {problem}");
            return ExitCode::from(2);
        }
    };
    let (curve, verdict) = output_away(World::on(broker), &outage);
    println!(
        "memory of the proxies while {} events wait, MiB",
        outage.events
    );
    println!("{:>8} {:>7} {:>7}", "seconds", "input", "output");
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    for memory in curve {
        println!(
            "{:>8.0} {:>7.1} {:>7.1}  {}",
            memory.at.as_secs_f64(),
            mebibytes(memory.input),
            mebibytes(memory.output),
            "#".repeat((memory.input + memory.output) >> 21),
        );
    }
    println!(
        "outage: events={} answered={} dead_lettered={} lost={} duplicated={} out_of_order={}",
        verdict.events,
        verdict.answered,
        verdict.dead_lettered,
        verdict.unanswered.len(),
        verdict.repeats,
        verdict.out_of_order.len(),
    );
    ExitCode::SUCCESS
}

/// Everything comes by environment, as `make` has it.
fn plan() -> Result<(BrokerKind, Outage), String> {
    let events = variable("EVENTS").unwrap_or("200000".into());
    let outage = Outage {
        events: events
            .parse()
            .map_err(|_| format!("EVENTS={events} is no number"))?,
        length: minutes()?,
        in_flight_max: IN_FLIGHT_MAX,
    };
    Ok((BrokerKind::wanted()?, outage))
}
