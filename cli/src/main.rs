//! `millrace`: the binary people type.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use millrace_cli::commands::{Arguments, run};
use millrace_cli::screen::Screen;
use millrace_cli::{Ending, chain, is_closed_pipe};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = Screen::new();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            screen.complain(&format!("cannot start: {error}"));
            return Ending::Failed.into();
        }
    };
    let ending = runtime.block_on(run(arguments, screen));
    // A task that hangs in a client library must not keep the process.
    runtime.shutdown_background();
    match ending {
        Ok(ending) => ending.into(),
        // Whoever read our output has seen enough, as with `| head`.
        Err(error) if is_closed_pipe(&error) => Ending::Ok.into(),
        Err(error) => {
            screen.complain(&chain(error.as_ref()));
            Ending::Failed.into()
        }
    }
}
