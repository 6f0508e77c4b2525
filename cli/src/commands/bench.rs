//! `millrace bench`: how fast a block is on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;

use super::audit::{Commits, Scope, audit};
use super::seconds;
use crate::Ending;
use crate::audit::{Ordering, Repeats, Rules, Unanswered};
use crate::bench::children::Process;
use crate::bench::copy;
use crate::bench::drain::{App, Plan, Preload};
use crate::bench::report::{BATCH_MIN, ONCE_MIN, Report, Run, SINGLE_MIN, Target};
use crate::connect::{Brokers, Cluster};
use crate::screen::{Format, Screen};

/// Where the preloaded events are.
const FROM: &str = "bench-events";

/// Measure how fast a block is here, beside a plain copy and the app's own ceiling
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace bench
  millrace bench --request batch --events 1000000 --value-bytes 1000
  millrace bench --bootstrap broker:9092 --events 100000 -o json --no-report

It starts a broker (unless --bootstrap names one), an app that echoes, and both proxies as
processes of their own, preloads the events, and drains them through input, app and output, with
at-least-once and with exactly-once. The same run measures a plain copy from topic to topic by
librdkafka, and what the app takes from a load generator. Every drain is audited: no event lost,
doubled or out of order.

Exit codes: 0 done, 1 an audit failed, or with --require a target was missed.")]
pub struct Arguments {
    #[command(flatten)]
    brokers: Brokers,
    /// How to ask the app
    #[arg(long, value_enum, default_value_t = Requests::Both)]
    request: Requests,
    /// Events to preload
    #[arg(long, value_name = "N", default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Bytes of each event's value
    #[arg(long, value_name = "N", default_value_t = 200)]
    value_bytes: usize,
    /// Distinct keys
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Partitions of each topic
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// Events per batch
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch_records: u64,
    /// Requests at once, of the load generator and of the proxy
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// How long the load generator runs
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = seconds)]
    load: Duration,
    /// Keep the report in this folder, as text and JSON
    #[arg(long, value_name = "FOLDER", default_value = "bench/results")]
    report: PathBuf,
    /// Keep no report
    #[arg(long, conflicts_with = "report")]
    no_report: bool,
    /// Fail if a target is missed
    #[arg(long)]
    require: bool,
    /// How to print the report
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// How one run asks the app, and what it promises.
#[derive(Clone, Copy)]
struct Ways {
    request: &'static str,
    guarantee: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Requests {
    Single,
    Batch,
    Both,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let folder = Folder::new()?;
    let preload = Preload {
        events: arguments.events,
        value_bytes: arguments.value_bytes,
        keys: arguments.keys,
        partitions: arguments.partitions,
    };
    let (cluster, broker) = broker(&arguments.brokers, folder.path()).await?;
    let cluster_at = cluster.address();
    screen.remark(&format!(
        "broker at {cluster_at}, files in {}",
        folder.path().display()
    ));
    let stamp = stamp();
    let name = |what: &str| format!("{what}-{stamp}");
    let (from, to) = (name(FROM), name("bench-copy"));
    for topic in [&from, &to] {
        cluster.create_topic(topic, arguments.partitions).await?;
    }
    preload.append(&cluster, &from, screen).await?;
    screen.remark("plain copy …");
    let copying = (
        cluster_at.clone(),
        from.clone(),
        arguments.partitions,
        arguments.events,
    );
    let copy = tokio::task::spawn_blocking(move || {
        let (at, from, partitions, events) = copying;
        copy::run(&at, &from, &to, partitions, events)
    })
    .await??;

    let mut runs = Vec::new();
    let mut ratios = BTreeMap::new();
    for batch in arguments.batches() {
        let request = if batch.is_some() { "batch" } else { "single" };
        let mut before = None;
        for once in [false, true] {
            let guarantee = if once {
                "exactly-once"
            } else {
                "at-least-once"
            };
            let to = name(&format!("bench-{request}-{guarantee}"));
            let plan = Plan {
                cluster: &cluster,
                broker: broker.as_ref().map_or(0, Process::pid),
                from: &from,
                to: &to,
                batch,
                once,
                connections: usize::from(arguments.connections),
                preload,
                folder: folder.path(),
            };
            let ways = Ways { request, guarantee };
            let mut run = arguments
                .measure(&plan, ways, copy.per_second, screen)
                .await?;
            let per_second = run.drain.per_second;
            if let Some(at_least_once) = before.replace(per_second) {
                let reached = per_second / at_least_once;
                ratios.insert(request, reached);
                run.target = Target {
                    of: "rate of at-least-once",
                    reached,
                    wanted: ONCE_MIN,
                };
            }
            runs.push(run);
        }
    }
    let report = Report {
        when: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        },
        processor: processor(),
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        events: arguments.events,
        value_bytes: arguments.value_bytes,
        keys: arguments.keys,
        partitions: arguments.partitions,
        copy,
        runs,
        exactly_once_to_at_least_once: ratios,
    };
    if !arguments.no_report {
        keep(&report, &arguments.report, &stamp)?;
    }
    match arguments.output {
        Format::Json => screen.print_json(&report)?,
        Format::Text => screen.print(&report.to_string())?,
    }
    let fine = report.correct() && (report.fast_enough() || !arguments.require);
    if fine {
        folder.remove();
    }
    Ok(if fine { Ending::Ok } else { Ending::Failed })
}

impl Arguments {
    fn batches(&self) -> Vec<Option<u64>> {
        let batch = Some(self.batch_records);
        match self.request {
            Requests::Single => vec![None],
            Requests::Batch => vec![batch],
            Requests::Both => vec![None, batch],
        }
    }

    async fn measure(
        &self,
        plan: &Plan<'_>,
        Ways { request, guarantee }: Ways,
        copy_per_second: f64,
        screen: Screen,
    ) -> anyhow::Result<Run> {
        let app = App::start(plan.folder).await?;
        screen.remark(&format!("{request}, {guarantee}: the app alone …"));
        let ceiling = || app.ceiling(plan.batch, &plan.preload, plan.connections, self.load);
        let before = ceiling().await?;
        screen.remark(&format!("{request}, {guarantee}: input, app, output …"));
        let block = plan.write_block(&app)?;
        let drain = plan.run(&app, &block, screen).await?;
        screen.remark(&format!("{request}, {guarantee}: the app alone again …"));
        let app_alone = [before, ceiling().await?];
        let per_request = plan.batch.unwrap_or(1);
        let requests_per_second = f64::midpoint(app_alone[0].per_second, app_alone[1].per_second);
        let app_events_per_second = requests_per_second * per_request as f64;
        let report = audit(&scope(plan)?, screen).await?;
        for offender in &report.offenders {
            screen.complain(&format!("{}: {}", offender.offence, offender.event));
        }
        let of_copy = drain.per_second / copy_per_second;
        let of_app = drain.per_second / app_events_per_second;
        Ok(Run {
            request,
            guarantee,
            batch_records: per_request,
            app_alone,
            app_events_per_second,
            drain,
            of_copy,
            of_app,
            target: match plan.batch {
                None => Target {
                    of: "app's ceiling",
                    reached: of_app,
                    wanted: SINGLE_MIN,
                },
                Some(_) => Target {
                    of: "plain copy",
                    reached: of_copy,
                    wanted: BATCH_MIN,
                },
            },
            audit: report.counts,
            audit_ok: report.ok && report.counts.pending == 0,
        })
    }
}

/// Every event has to be answered, once and in order.
fn scope(plan: &Plan<'_>) -> anyhow::Result<Scope> {
    Ok(Scope {
        input: plan.cluster.again()?,
        output: plan.cluster.again()?,
        events: vec![plan.from.to_owned()],
        results: vec![plan.to.to_owned()],
        dead_letters: vec![format!("{}.dlq", plan.to)],
        commits: Commits::Everything,
        rules: Rules {
            ordering: Ordering::Key,
            unanswered: Unanswered::Expected(0),
            repeats: Repeats::Forbidden,
            window: 5_000,
        },
    })
}

async fn broker(brokers: &Brokers, folder: &Path) -> anyhow::Result<(Cluster, Option<Process>)> {
    if brokers.named() {
        return Ok((brokers.open(None)?, None));
    }
    let arguments = ["broker", "--port", "0", "--memory", "16Gi"];
    let mut process = Process::start("millrace", &arguments, folder)?;
    let address = process.first_line().await?;
    Ok((brokers.open_at(&address)?, Some(process)))
}

/// Files of one bench; kept if it fails.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("millrace-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).context("cannot create a folder for the bench")?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn remove(self) {
        // What cannot be removed is left to the system.
        drop(std::fs::remove_dir_all(self.0));
    }
}

fn keep(report: &Report, folder: &Path, stamp: &str) -> anyhow::Result<()> {
    let keep = || format!("cannot keep the report in {}", folder.display());
    std::fs::create_dir_all(folder).with_context(keep)?;
    std::fs::write(folder.join(format!("{stamp}.txt")), report.to_string()).with_context(keep)?;
    let json = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(folder.join(format!("{stamp}.json")), json).with_context(keep)
}

/// Tells runs apart: `2026-01-31t120000z`.
fn stamp() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.replace(':', "").to_lowercase()
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|rest| rest.split_once(':'));
    name.map_or_else(
        || "unknown processor".to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}
