//! `make soak`: kills at random under load, then counts. The last line is the result; the exit
//! code is 0 if nothing was lost, doubled against the guarantee, or out of order.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the tests"
)]

use std::process::ExitCode;
use std::time::Duration;

use millrace_integration_tests::broker::{BrokerKind, KAFKA};
use millrace_integration_tests::dice::Dice;
use millrace_integration_tests::soak::{Plan, soak};

fn main() -> ExitCode {
    let plan = match plan() {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("soak: {problem}");
            return ExitCode::from(2);
        }
    };
    let tally = soak(&plan);
    println!("soak: {tally}");
    ExitCode::from(u8::from(!tally.is_good(&plan.guarantee)))
}

/// Everything comes by environment, as `make` has it.
fn plan() -> Result<Plan, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let minutes = variable("MINUTES").unwrap_or("5".into());
    let length = minutes
        .parse()
        .ok()
        .filter(|m| (0.1..=10_000.0).contains(m));
    let length: f64 = length.ok_or(format!("MINUTES={minutes} is no length of time"))?;
    let seed = match variable("SEED") {
        None => Dice::any_seed(),
        Some(text) => text
            .parse()
            .map_err(|_| format!("SEED={text} is no seed"))?,
    };
    let broker = match variable("BROKER").as_deref() {
        None | Some("kafka") => {
            let bootstrap = variable(KAFKA).ok_or(format!("{KAFKA} does not name a Kafka"))?;
            BrokerKind::Kafka(bootstrap)
        }
        Some("embedded") => BrokerKind::Files,
        Some(other) => return Err(format!("BROKER={other}; there are kafka and embedded")),
    };
    let guarantee = variable("GUARANTEE").unwrap_or("AtLeastOnce".into());
    if !["AtLeastOnce", "ExactlyOnce"].contains(&guarantee.as_str()) {
        return Err(format!(
            "GUARANTEE={guarantee}; there are AtLeastOnce and ExactlyOnce"
        ));
    }
    Ok(Plan {
        length: Duration::from_secs_f64(60.0 * length),
        broker,
        guarantee,
        seed,
    })
}
