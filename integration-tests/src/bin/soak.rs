//! `make soak`: kills at random under load, then counts. The last line is the result; the exit
//! code is 0 if nothing was lost, doubled against the guarantee, or out of order.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the tests"
)]

use std::process::ExitCode;

use millrace_integration_tests::broker::{BrokerKind, minutes, variable};
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
    let seed = match variable("SEED") {
        None => Dice::any_seed(),
        Some(text) => text
            .parse()
            .map_err(|_| format!("SEED={text} is no seed"))?,
    };
    let guarantee = variable("GUARANTEE").unwrap_or("AtLeastOnce".into());
    if !["AtLeastOnce", "ExactlyOnce"].contains(&guarantee.as_str()) {
        return Err(format!(
            "GUARANTEE={guarantee}; there are AtLeastOnce and ExactlyOnce"
        ));
    }
    Ok(Plan {
        length: minutes()?,
        broker: BrokerKind::wanted()?,
        guarantee,
        seed,
    })
}
