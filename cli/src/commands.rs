//! The commands, one file each.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::Ending;
use crate::connect::Document;
use crate::screen::Screen;

pub mod audit;
pub mod bench;
pub mod broker;
pub mod check;
pub mod check_app;
pub mod completions;
pub mod demo;
pub mod dev;
pub mod dlq;
pub mod echo_app;
pub mod man;
pub mod schema;
pub mod send;
pub mod tail;
pub mod tap;

/// Events in, your app's answers out, and proof that none was lost, doubled or reordered.
#[derive(Parser, Debug)]
#[command(
    name = "millrace",
    version,
    max_term_width = 100,
    after_help = "\
Start here:
  millrace dev block.yaml              a whole block on this machine
  millrace broker                      a Kafka broker on this machine
  millrace send orders --file FILE     events from a file
  millrace tail orders-scored          what came out
  millrace audit block.yaml            whether every event was answered, once, in order
  millrace check-app http://127.0.0.1:8080    whether your app keeps the contract

Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong document."
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Dev(dev::Arguments),
    Demo(demo::Arguments),
    Broker(broker::Arguments),
    Send(send::Arguments),
    Tail(tail::Arguments),
    Tap(tap::Arguments),
    Dlq(dlq::Arguments),
    Audit(audit::Arguments),
    Check(check::Arguments),
    CheckApp(check_app::Arguments),
    Schema(schema::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
    Bench(bench::Arguments),
    EchoApp(echo_app::Arguments),
}

/// Runs the command that was asked for.
pub async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    match arguments.command {
        Command::Dev(arguments) => dev::run(arguments, screen).await,
        Command::Demo(arguments) => demo::run(arguments, screen).await,
        Command::Broker(arguments) => broker::run(arguments, screen).await,
        Command::Send(arguments) => send::run(arguments, screen).await,
        Command::Tail(arguments) => tail::run(arguments, screen).await,
        Command::Tap(arguments) => tap::run(arguments, screen).await,
        Command::Dlq(arguments) => dlq::run(arguments, screen).await,
        Command::Audit(arguments) => audit::run(arguments, screen).await,
        Command::Check(arguments) => check::run(arguments, screen).await,
        Command::CheckApp(arguments) => check_app::run(arguments, screen).await,
        Command::Bench(arguments) => bench::run(arguments, screen).await,
        Command::Schema(arguments) => schema::run(&arguments, screen),
        Command::Completions(arguments) => completions::run(&arguments, screen),
        Command::Man(arguments) => man::run(&arguments, screen),
        Command::EchoApp(arguments) => echo_app::run(arguments, screen).await,
    }
}

/// Ends when somebody presses Ctrl-C or a supervisor asks us to stop.
async fn asked_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.context("cannot listen for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}

/// Reads a block document; what is wrong with it is said here, all of it (C-1).
fn document_or_complaint(file: &Path, screen: Screen) -> anyhow::Result<Result<Document, Ending>> {
    match Document::load(file) {
        Ok(document) => Ok(Ok(document)),
        Err(error) if error.exit_code() == 2 => {
            screen.complain(&crate::chain(&error));
            Ok(Err(Ending::Wrong))
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens a file, or standard input for `-`.
fn open_source(file: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(io::stdin()));
    }
    let opened = File::open(file);
    Ok(Box::new(opened.with_context(|| {
        format!("cannot open {}", file.display())
    })?))
}

/// The bytes of a file, or of standard input for `-`.
fn read_source(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_source(file)?
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", file.display()))?;
    Ok(bytes)
}

/// Parses a duration option, such as `250ms`, `10s`, `5m`.
fn seconds(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 250ms or 10s"))
}

/// Parses a size option, such as `1000000`, `64Ki`, `512Mi`, `2Gi`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err("write it as 1000000, 64Ki, 512Mi or 2Gi".to_owned()),
    };
    let number = digits.parse::<u64>().map_err(|error| error.to_string())?;
    number
        .checked_mul(unit)
        .ok_or_else(|| "that is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_the_block_document_writes_them() {
        assert_eq!(bytes("512Mi"), Ok(512 << 20));
        assert_eq!(bytes("10"), Ok(10));
        for wrong in ["", "Mi", "1MB", "-1", "99999999999999Gi"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(seconds("250ms"), Ok(Duration::from_millis(250)));
        assert!(seconds("10").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        fn visit(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                if sub.has_subcommands() {
                    visit(sub, &path);
                    continue;
                }
                let help = sub.get_after_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                assert!(help.contains("Example"), "`{path}` shows no example");
                assert!(
                    help.contains(&path[1..]),
                    "the examples of `{path}` do not use it"
                );
                assert!(
                    sub.get_about().is_some(),
                    "`{path}` does not say what it does"
                );
            }
        }
        visit(&Arguments::command(), " millrace");
    }
}
