//! `millrace-input`: the input proxy as a process of its own.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use millrace_core::contract::block::agogosml::{self, Direction};
use millrace_core::token::ReleaseId;
use millrace_input::Config;
use millrace_service::config;
use millrace_service::shutdown::Shutdown;
use millrace_service::telemetry::{chain, start_logs};

/// The input proxy of a Millrace block: reads events, calls the app, hands results to the output
/// proxy, and commits what is stored.
///
/// Needs MILLRACE_RELEASE (the release id of the app). Any key of the document can be
/// overridden, for example MILLRACE__FLOW__MAX_IN_FLIGHT=2048.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  MILLRACE_RELEASE=r1-00000000 millrace-input --standalone block.yaml\n  MESSAGING_TYPE=kafka KAFKA_ADDRESS=broker:9092 KAFKA_TOPIC=in KAFKA_CONSUMER_GROUP=g millrace-input"
)]
struct Options {
    /// The block document; without one the environment of an agogosml deployment decides.
    block: Option<PathBuf>,
    /// Seed the first tokens: there is no controller.
    #[arg(long)]
    standalone: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    match start(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            // Logs may not have started yet.
            #[expect(clippy::print_stderr, reason = "the last word of a process that ends")]
            {
                eprintln!("millrace-input: {message}");
            }
            ExitCode::from(code)
        }
    }
}

async fn start(options: &Options) -> Result<(), (u8, String)> {
    let failed = |error: &dyn std::error::Error| (1, chain(error).to_string());
    let environment = config::environment();
    let (block, profile) =
        config::of_proxy(options.block.as_deref(), Direction::Input, &environment)
            .map_err(|e| (e.exit_code(), chain(&e).to_string()))?;
    let logs = start_logs(&block.telemetry).map_err(|e| failed(&e))?;
    let first = profile.as_ref().map_or("", |_| agogosml::RELEASE);
    let release = environment
        .get("MILLRACE_RELEASE")
        .map_or(first, String::as_str);
    let release = ReleaseId::new(release).map_err(|e| (2, format!("MILLRACE_RELEASE: {e}")))?;
    let pod = environment
        .get("MILLRACE_POD")
        .cloned()
        .unwrap_or_else(|| "local".to_owned());
    let mut config = Config::new(Arc::new(block), release, pod, environment);
    config.logs = Some(logs);
    // No controller knows blocks of that profile.
    config.standalone = options.standalone || profile.is_some();
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|e| failed(&e))?;
    if let Some(profile) = profile {
        shutdown.obey(&profile);
    }
    let told = |address| tracing::info!(%address, "the admin port is open");
    millrace_input::run(config, shutdown, told)
        .await
        .map_err(|e| failed(&e))
}
