//! `millrace dev`: a whole block on this machine.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use millrace_core::contract::block::{InputSource, OutputSink};
use millrace_local::block::{Error, Laptop, Options};
use millrace_local::process::Line;
use millrace_service::config;
use millrace_service::http::{Client, Request, Settings};
use millrace_service::secret::{LOOK_EVERY, Watch};
use serde_json::Value;
use tokio::sync::mpsc;

use super::asked_to_stop;
use crate::console::Console;
use crate::screen::Screen;
use crate::{Ending, chain};

/// Lines that wait to be shown.
const LINES_QUEUED_MAX: usize = 1024;
/// How often the status line changes.
const STATUS: Duration = Duration::from_secs(1);

/// Run a block on this machine: broker, app, input and output proxy
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace dev app-template/python-sklearn/block.yaml
  millrace dev block.yaml --port 0 --processes
  millrace send TOPIC --file events.txt      in another terminal
  millrace audit block.yaml                  whether every event was answered

The embedded broker keeps its files in .millrace/broker/ beside the document, and the app its
virtual environment in .millrace/BLOCK/. The app gets HOST, PORT and MILLRACE_RELEASE. A changed
document or app takes effect after a restart. Ctrl-C ends everything in good order: what is open is
finished and committed; a second one ends at once.

Exit codes: 0 ended as asked, 1 something broke, 2 a wrong document.")]
pub struct Arguments {
    /// The block document
    #[arg(value_name = "BLOCK")]
    block: PathBuf,
    /// Port of the embedded broker; 0 is any free one [default: 9092 if it is free]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Run the real proxies, millrace-input and millrace-output, as processes of their own
    #[arg(long)]
    processes: bool,
}

pub async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let environment = config::environment();
    let console = Console::new(None);
    let (sender, mut lines) = mpsc::channel::<Line>(LINES_QUEUED_MAX);
    let shown = console.clone();
    let showing = tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            shown.line(line.component, &line.text);
        }
    });
    console.take_logs("info,librdkafka=warn,rdkafka=warn");
    let options = Options {
        document: arguments.block.clone(),
        environment,
        processes: arguments.processes,
        broker_port: arguments.port,
        broker_folder: None,
    };
    let started = tokio::select! {
        started = Laptop::start(options, sender) => started,
        asked = asked_to_stop() => {
            asked?;
            return Ok(Ending::Ok);
        }
    };
    let mut laptop = match started {
        Ok(laptop) => laptop,
        Err(error) => {
            let wrong = matches!(&error, Error::Document(e) if e.exit_code() == 2)
                || matches!(error, Error::NotHere { .. });
            screen.complain(&chain(&error));
            return Ok(if wrong { Ending::Wrong } else { Ending::Failed });
        }
    };
    welcome(&console, &laptop, &arguments.block);
    let status = tokio::spawn(keep_status(console.clone(), laptop.addresses().input_admin));
    let changes = tokio::spawn(tell_of_changes(console.clone(), arguments.block.clone()));
    let broken = tokio::select! {
        asked = asked_to_stop() => { asked?; None }
        broken = laptop.broken() => Some(broken),
    };
    status.abort();
    changes.abort();
    console.status("");
    if let Some(broken) = &broken {
        console.line("dev", broken);
        screen.complain(broken);
        return Ok(Ending::Failed);
    }
    console.line(
        "dev",
        "ending: open events are finished and committed; Ctrl-C again ends at once",
    );
    let troubles = tokio::select! {
        troubles = laptop.stop() => troubles,
        asked = asked_to_stop() => {
            asked?;
            return Ok(Ending::Failed);
        }
    };
    for trouble in &troubles {
        console.line("dev", trouble);
    }
    drop(showing);
    Ok(if troubles.is_empty() {
        Ending::Ok
    } else {
        Ending::Failed
    })
}

/// C-3: only secret files are taken while a block runs.
async fn tell_of_changes(console: Console, document: PathBuf) {
    let mut watch = Watch::start(vec![document.clone()], LOOK_EVERY);
    loop {
        watch.changed().await;
        let name = document.display();
        console.line("dev", &format!("{name} has changed; restart to apply"));
    }
}

/// What to type next.
fn welcome(console: &Console, laptop: &Laptop, document: &std::path::Path) {
    let block = laptop.block();
    let (InputSource::Kafka(input), OutputSink::Kafka(output)) =
        (&block.input.source, &block.output.sink)
    else {
        return;
    };
    let addresses = laptop.addresses();
    let bootstrap = addresses
        .bootstrap
        .as_deref()
        .unwrap_or("the brokers of the document");
    console.line(
        "dev",
        &format!(
            "block {} is starting; Kafka at {bootstrap}",
            block.identity.as_str()
        ),
    );
    console.line(
        "dev",
        &format!(
            "  in   {:<24} millrace send {} --file FILE",
            input.topics.join(", "),
            input.topics[0]
        ),
    );
    console.line(
        "dev",
        &format!("  out  {:<24} millrace tail {}", output.topic, output.topic),
    );
    console.line(
        "dev",
        &format!(
            "  bad  {:<24} millrace dlq ls --block {}",
            output.dead_letter,
            document.display()
        ),
    );
    console.line("dev", &format!("  app  http://127.0.0.1:{}", addresses.app));
    console.line(
        "dev",
        &format!(
            "  metrics  http://127.0.0.1:{}/metrics and http://127.0.0.1:{}/metrics",
            addresses.input_admin, addresses.output_admin
        ),
    );
}

/// What the input counted, once.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) records: u64,
    pub(super) answered: u64,
    pub(super) filtered: u64,
    pub(super) dead_lettered: u64,
    pub(super) in_flight: u64,
    pub(super) halted: u64,
}

/// Asks the input's admin port; `None` while it does not answer.
pub(super) async fn counts(client: &Client) -> Option<Counts> {
    let response = client
        .send(Request::get("/v1/partitions"), STATUS)
        .await
        .ok()?;
    let state: Value = serde_json::from_slice(&response.body).ok()?;
    let mut counts = Counts::default();
    for partition in state.get("partitions")?.as_array()? {
        let number = |key: &str| partition.get(key).and_then(Value::as_u64).unwrap_or(0);
        counts.records += number("records");
        counts.answered += number("emitted");
        counts.filtered += number("filtered");
        counts.dead_lettered += number("deadLettered");
        counts.in_flight += number("inFlight");
        counts.halted +=
            u64::from(partition.get("phase").and_then(Value::as_str) == Some("halted"));
    }
    Some(counts)
}

/// A client for an admin port of this machine.
pub(super) fn admin_client(port: u16) -> anyhow::Result<Client> {
    Ok(Client::new(Settings::local(port, 1, 1 << 20))?)
}

async fn keep_status(console: Console, port: u16) {
    let Ok(client) = admin_client(port) else {
        return;
    };
    let mut every = tokio::time::interval(STATUS);
    let mut before = Counts::default();
    loop {
        every.tick().await;
        let Some(now) = counts(&client).await else {
            console.status("waiting for the input proxy");
            continue;
        };
        let rate = now.answered.saturating_sub(before.answered);
        let halted = match now.halted {
            0 => String::new(),
            n => format!(", {n} partitions halted"),
        };
        console.status(&format!(
            "{rate} answered/s | {} events, {} answered, {} filtered, {} dead-lettered, {} in flight{halted}",
            now.records, now.answered, now.filtered, now.dead_lettered, now.in_flight
        ));
        before = now;
    }
}
