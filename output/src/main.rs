//! `millrace-output BLOCK`: the output proxy as a process.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
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
    /// Where the broker of embedded connections runs (`millrace dev --processes`)
    #[arg(long, value_name = "HOST:PORT")]
    embedded: Option<SocketAddr>,
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
    drop(std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("millrace-output: {error:#}\n").as_bytes(),
    ));
    ExitCode::from(code)
}

fn run(block: &Block, options: Options, variables: config::Environment) -> anyhow::Result<()> {
    telemetry::start_logs(&block.telemetry)?;
    let environment = Environment {
        release: options.release,
        embedded: options.embedded,
        variables,
    };
    // The publisher has the main thread; one more serves the ports.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime
        .worker_threads(1)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown
            .on_signals()
            .context("failed to listen to signals")?;
        let (bound, _) = oneshot::channel();
        Ok(millrace_output::run(block, environment, shutdown, bound).await?)
    })
}
