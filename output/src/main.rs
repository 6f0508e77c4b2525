//! `millrace-output BLOCK`: the output proxy as a process.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use millrace_core::contract::block::Block;
use millrace_output::Environment;
use millrace_service::shutdown::Shutdown;
use millrace_service::{config, telemetry};
use tokio::sync::oneshot;

/// The output proxy of a Millrace block: stores results and dead letters.
#[derive(Parser, Debug)]
#[command(name = "millrace-output", version)]
struct Options {
    /// The block document
    #[arg(value_name = "FILE")]
    block: PathBuf,
    /// Which release of the app this is
    #[arg(long, env = "MILLRACE_RELEASE", value_name = "ID")]
    release: String,
    /// Which pod this is
    #[arg(
        long,
        env = "MILLRACE_POD",
        value_name = "NAME",
        default_value = "local"
    )]
    pod: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let variables = config::environment();
    let (code, error) = match config::load(&options.block, &variables) {
        Err(error) => (error.exit_code(), error.into()),
        Ok(block) => match run(&block, options, variables) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (1, error),
        },
    };
    // Logs may not run yet, so this goes to stderr by itself.
    drop(writeln!(std::io::stderr(), "millrace-output: {error:#}"));
    ExitCode::from(code)
}

#[tokio::main(worker_threads = 1)]
async fn run(
    block: &Block,
    options: Options,
    variables: config::Environment,
) -> anyhow::Result<()> {
    let logs = Some(telemetry::start_logs(&block.telemetry)?);
    let environment = Environment {
        release: options.release,
        pod: options.pod,
        variables,
        logs,
    };
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let (bound, _) = oneshot::channel();
    Ok(millrace_output::run(block, environment, shutdown, bound).await?)
}
