//! `millrace demo`: a real model answers a stream of real events on this machine, and the audit
//! proves what became of each.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use millrace_connectors::kafka::{Reader, Settings, Start, Until};
use millrace_core::contract::block::{InputSource, OutputSink};
use millrace_core::position::Partition;
use millrace_local::block::{Laptop, Options};
use millrace_local::process::Line;
use millrace_service::config;
use millrace_service::http::{Client, Request};
use millrace_service::telemetry::usage;
use millrace_service::time::clock;
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::asked_to_stop;
use super::dev::{Counts, admin_client, counts};
use crate::Ending;
use crate::console::Console;
use crate::screen::{Screen, human_bytes};

/// Lines that wait to be shown.
const LINES_QUEUED_MAX: usize = 1024;
/// The demo gives up when nothing has changed for this long.
const STANDSTILL: Duration = Duration::from_secs(120);
/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Run the block of a template on a stream of its own events, then audit it
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace demo app-template/python-sklearn/block.yaml
  millrace demo app-template/python-sklearn/block.yaml --events 100000 --rate 5000 --keep

Beside the document lies events.py, which prints the events (`millrace send --json` reads them).
The last line is `demo: events=N …`; exit code 1 if anything was lost, doubled or reordered.")]
pub struct Arguments {
    /// The template's block document
    #[arg(value_name = "BLOCK")]
    block: PathBuf,
    /// How many events
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    events: u64,
    /// How many of them cannot be answered
    #[arg(long, default_value_t = 20, value_name = "N")]
    bad: u64,
    /// Events per second
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    rate: u64,
    /// Go on running afterwards
    #[arg(long)]
    keep: bool,
}

pub async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let log = folder.path().join("demo.log");
    let console = Console::new(Some(std::fs::File::create(&log)?));
    console.take_logs("info,librdkafka=warn,rdkafka=warn");
    let ended = tokio::select! {
        ended = demo(&arguments, &console, folder.path()) => ended,
        asked = asked_to_stop() => { asked?; bail!("stopped before its end") }
    };
    console.status("");
    match ended {
        Ok(ending) => Ok(ending),
        Err(error) => {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                screen.remark(line);
            }
            Err(error)
        }
    }
}

async fn demo(arguments: &Arguments, console: &Console, folder: &Path) -> anyhow::Result<Ending> {
    let (sender, mut lines) = mpsc::channel::<Line>(LINES_QUEUED_MAX);
    let shown = console.clone();
    tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            shown.line(line.component, &line.text);
            if line.component == "app" {
                shown.status(&format!(
                    "app: {}",
                    line.text.chars().take(100).collect::<String>()
                ));
            }
        }
    });
    console.say("demo: starting broker, scikit-learn app, input and output proxy (the first start installs the app's requirements)");
    let options = Options {
        document: arguments.block.clone(),
        environment: config::environment(),
        processes: true,
        broker_port: Some(0),
        broker_folder: Some(folder.join("broker")),
    };
    let laptop = Laptop::start(options, sender).await?;
    let result = show(arguments, console, folder, &laptop).await;
    if let (Ok(_), true) = (&result, arguments.keep) {
        console.say("demo: still running; Ctrl-C ends it");
        asked_to_stop().await?;
    }
    console.status("");
    let troubles = laptop.stop().await;
    for trouble in &troubles {
        console.say(trouble);
    }
    let shown = result?;
    console.say(&shown.table);
    screen_last(&shown.last)?;
    Ok(if shown.ok && troubles.is_empty() {
        Ending::Ok
    } else {
        Ending::Failed
    })
}

/// What the demo ends with.
struct Shown {
    table: String,
    last: String,
    ok: bool,
}

/// The last line goes to standard output, alone.
fn screen_last(line: &str) -> anyhow::Result<()> {
    Ok(Screen::new().print(&format!("{line}\n"))?)
}

async fn show(
    arguments: &Arguments,
    console: &Console,
    folder: &Path,
    laptop: &Laptop,
) -> anyhow::Result<Shown> {
    let (InputSource::Kafka(input), OutputSink::Kafka(output)) =
        (&laptop.block().input.source, &laptop.block().output.sink)
    else {
        bail!("the demo needs a block that reads and writes Kafka");
    };
    let bootstrap = laptop
        .addresses()
        .bootstrap
        .clone()
        .context("the demo needs an embedded connection")?;
    let admin = admin_client(laptop.addresses().input_admin)?;
    let events = make_events(arguments, folder, laptop, console).await?;
    ready(&admin, console).await?;
    let partitions = i32::try_from(laptop.block().topics.partitions)?;
    let latencies = tokio::spawn(read_latencies(
        bootstrap.clone(),
        output.topic.clone(),
        partitions,
        arguments.events - arguments.bad,
    ));
    console.say(&format!(
        "demo: streaming {} events into {}, {} of them bad, {}/s",
        arguments.events, input.topics[0], arguments.bad, arguments.rate
    ));
    let started = Instant::now();
    let mut send = own_binary()?
        .args([
            "send",
            &input.topics[0],
            "--json",
            "--bootstrap",
            &bootstrap,
            "--rate",
            &arguments.rate.to_string(),
            "--file",
        ])
        .arg(&events)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run millrace send")?;
    let done = watch(&admin, arguments.events, console).await?;
    let took = started.elapsed();
    if !send.wait().await?.success() {
        bail!("not all events could be sent");
    }
    let memory = memory(laptop);
    let audit = audit(arguments, &bootstrap).await?;
    let mut latencies = latencies.await.context("reading results")??;
    latencies.sort_unstable();
    let number = |key: &str| audit.get(key).and_then(Value::as_u64).unwrap_or(u64::MAX);
    let (lost, duplicated, out_of_order) =
        (number("lost"), number("duplicated"), number("out_of_order"));
    let last = format!(
        "demo: events={} answered={} filtered={} dead_lettered={} lost={lost} duplicated={duplicated} out_of_order={out_of_order}",
        number("events"),
        number("answered"),
        number("filtered"),
        number("dead_lettered"),
    );
    let complete = number("events") == arguments.events && number("pending") == 0;
    Ok(Shown {
        table: table(&done, took, &latencies, &memory),
        last,
        ok: complete && lost == 0 && duplicated == 0 && out_of_order == 0,
    })
}

/// Has the template print its events.
async fn make_events(
    arguments: &Arguments,
    folder: &Path,
    laptop: &Laptop,
    console: &Console,
) -> anyhow::Result<PathBuf> {
    let home = arguments
        .block
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let script = home.join("events.py");
    let python = laptop
        .python()
        .context("the demo needs a template with app.local.python")?;
    console.status("making events from the data set");
    let made = Command::new(python)
        .arg(&script)
        .args([
            "--count",
            &arguments.events.to_string(),
            "--bad",
            &arguments.bad.to_string(),
            "--seed",
            "1",
        ])
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !made.status.success() {
        bail!(
            "{} failed: {}",
            script.display(),
            String::from_utf8_lossy(&made.stderr)
        );
    }
    let path = folder.join("events.jsonl");
    std::fs::write(&path, made.stdout)?;
    Ok(path)
}

/// Waits until the input proxy has joined its group.
async fn ready(admin: &Client, console: &Console) -> anyhow::Result<()> {
    let until = Instant::now() + STANDSTILL;
    loop {
        let why = match admin.send(Request::get("/readyz"), LOOK).await {
            Ok(response) if response.status == 200 => return Ok(()),
            Ok(response) => String::from_utf8_lossy(&response.body).into_owned(),
            Err(error) => error.to_string(),
        };
        console.status(&format!("waiting for the block: {why}"));
        if Instant::now() >= until {
            bail!(
                "the block is not ready after {} s: {why}",
                STANDSTILL.as_secs()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Shows progress until every event has its outcome.
async fn watch(admin: &Client, events: u64, console: &Console) -> anyhow::Result<Counts> {
    let mut before = Counts::default();
    let mut changed = Instant::now();
    loop {
        if let Some(now) = counts(admin).await {
            let terminal = now.answered + now.filtered + now.dead_lettered;
            let was = before.answered + before.filtered + before.dead_lettered;
            console.status(&format!(
                "{:>3} % | {} of {events} answered, {} dead-lettered, {} in flight",
                terminal * 100 / events.max(1),
                now.answered,
                now.dead_lettered,
                now.in_flight
            ));
            if terminal >= events {
                return Ok(now);
            }
            if terminal != was {
                changed = Instant::now();
            }
            before = now;
        }
        if changed.elapsed() >= STANDSTILL {
            bail!("nothing has been answered for {} s", STANDSTILL.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Reads results as they come; a result carries its event's timestamp, so its age is the latency.
async fn read_latencies(
    bootstrap: String,
    topic: String,
    partitions: i32,
    expected: u64,
) -> anyhow::Result<Vec<u64>> {
    let starts = (0..partitions)
        .map(|p| (Partition::new(topic.as_str(), p), Start::Earliest))
        .collect();
    let mut reader = Reader::open(
        Settings::plain(bootstrap, "millrace-demo"),
        starts,
        Until::Forever,
    );
    let mut latencies = Vec::new();
    while (latencies.len() as u64) < expected {
        let next = tokio::time::timeout(STANDSTILL, reader.next())
            .await
            .context("no more results came")?;
        let now = clock().wall_ms;
        for fetched in next.context("the reader ended")?? {
            let age = |e: &millrace_core::event::Event| {
                now.saturating_sub(e.timestamp().ms).max(0).unsigned_abs()
            };
            latencies.extend(fetched.events.iter().map(age));
        }
    }
    Ok(latencies)
}

fn memory(laptop: &Laptop) -> Vec<(&'static str, Option<u64>)> {
    let of = |pid: Option<u32>| Some(usage::of(pid?)?.resident_bytes);
    let mut all: Vec<_> = laptop
        .pids()
        .into_iter()
        .map(|(name, pid)| (name, of(pid)))
        .collect();
    all.push((
        "broker and demo",
        usage::own().map(|own| own.resident_bytes),
    ));
    all
}

/// Runs the audit until nothing is pending: the last commit may be a second away.
async fn audit(arguments: &Arguments, bootstrap: &str) -> anyhow::Result<Value> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let output = own_binary()?
            .arg("audit")
            .arg(&arguments.block)
            .args(["--bootstrap", bootstrap, "--no-filter", "-o", "json"])
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run millrace audit")?;
        let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "the audit failed: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        let pending = report.get("pending").and_then(Value::as_u64);
        if pending == Some(0) || Instant::now() >= until {
            return Ok(report);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn own_binary() -> anyhow::Result<Command> {
    Ok(Command::new(
        std::env::current_exe().context("where is this program?")?,
    ))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn table(
    done: &Counts,
    took: Duration,
    latencies: &[u64],
    memory: &[(&str, Option<u64>)],
) -> String {
    let quantile = |q: usize| {
        latencies
            .get((latencies.len() * q / 100).min(latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    };
    let total = done.answered + done.filtered + done.dead_lettered;
    let mut rows = vec![
        (
            "events".to_owned(),
            format!("{total} in {:.1} s", took.as_secs_f64()),
        ),
        (
            "throughput".to_owned(),
            format!("{:.0} events/s", total as f64 / took.as_secs_f64()),
        ),
        (
            "latency p50".to_owned(),
            format!(
                "{} ms, from the event's timestamp to its result at a reader",
                quantile(50)
            ),
        ),
        ("latency p99".to_owned(), format!("{} ms", quantile(99))),
    ];
    for (name, bytes) in memory {
        let bytes = bytes.map_or_else(|| "gone".to_owned(), human_bytes);
        rows.push((format!("memory {name}"), bytes));
    }
    let mut text = String::new();
    for (name, value) in rows {
        text.push_str(&format!("  {name:<24} {value}\n"));
    }
    text
}
