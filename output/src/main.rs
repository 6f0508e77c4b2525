//! `millrace-output BLOCK`: the output proxy as a process.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use millrace_core::contract::block::Block;
use millrace_core::contract::block::agogosml::{self, Direction, Profile};
use millrace_output::Environment;
use millrace_service::shutdown::Shutdown;
use millrace_service::{config, telemetry};
use tokio::sync::oneshot;

/// The output proxy of a Millrace block: stores results and dead letters.
#[derive(Parser, Debug)]
#[command(name = "millrace-output", version)]
struct Options {
    /// The block document; without one the environment of an agogosml deployment decides
    #[arg(value_name = "FILE")]
    block: Option<PathBuf>,
    /// Which release of the app this is; needed with a block document
    #[arg(long, env = "MILLRACE_RELEASE", value_name = "ID")]
    release: Option<String>,
    /// Which pod this is
    #[arg(
        long,
        env = "MILLRACE_POD",
        value_name = "NAME",
        default_value = "local"
    )]
    pod: String,
}

const NO_RELEASE: &str = "set MILLRACE_RELEASE, or --release: the release id of the app";

fn main() -> ExitCode {
    let options = Options::parse();
    let variables = config::environment();
    let start = config::of_proxy(options.block.as_deref(), Direction::Output, &variables);
    let (code, error) = match start {
        Err(error) => (error.exit_code(), error.into()),
        Ok((block, profile)) => match (options.release, &profile) {
            (None, None) => (2, anyhow::anyhow!(NO_RELEASE)),
            (release, _) => {
                let release = release.unwrap_or_else(|| agogosml::RELEASE.to_owned());
                match run(&block, profile, release, options.pod, variables) {
                    Ok(()) => return ExitCode::SUCCESS,
                    Err(error) => (1, error),
                }
            }
        },
    };
    // Logs may not run yet, so this goes to stderr by itself.
    drop(writeln!(std::io::stderr(), "millrace-output: {error:#}"));
    ExitCode::from(code)
}

#[tokio::main(flavor = "current_thread")]
async fn run(
    block: &Block,
    profile: Option<Profile>,
    release: String,
    pod: String,
    variables: config::Environment,
) -> anyhow::Result<()> {
    let logs = Some(telemetry::start_logs(&block.telemetry)?);
    let environment = Environment {
        release,
        pod,
        variables,
        logs,
        // Each half of that profile knows its own topic only.
        any_block: profile.is_some(),
    };
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    if let Some(profile) = profile {
        shutdown.obey(&profile);
    }
    let (bound, _) = oneshot::channel();
    Ok(millrace_output::run(block, environment, shutdown, bound).await?)
}
