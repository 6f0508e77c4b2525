//! `millrace check-app`: does an app keep its side of the contract?

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use millrace_core::contract::app::EmptyBody;

use super::{read_source, seconds};
use crate::check_app::{Findings, Plan, Verdict, Wanted, WantedContent, check};
use crate::http::Address;
use crate::records::{Draft, parse_json};
use crate::screen::{Format, Screen};
use crate::{Ending, chain};

/// Samples that are asked with; more say nothing new.
const SAMPLES_MAX: usize = 50;

/// Check that an app keeps the contract: health, odd events, batches, limits, parallel calls
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace check-app http://127.0.0.1:8080 --sample events.jsonl
  python events.py --count 20 | millrace check-app http://127.0.0.1:8080 --sample -
  millrace check-app http://127.0.0.1:8080 --request batch --sample order.json -o json
  millrace check-app http://127.0.0.1:8080 --push 6000 --sample order.json

A sample is an event that the app answers well: any file, or with the ending .jsonl (and from
standard input) one JSON object a line, as `millrace send --json` reads them.

Exit codes: 0 the app passes, 1 it does not, 2 it cannot be reached or the usage is wrong.")]
pub struct Arguments {
    /// Where the app listens
    #[arg(value_name = "URL")]
    address: Address,
    /// Events that the app answers well
    #[arg(long, value_name = "FILE")]
    sample: Vec<PathBuf>,
    /// Kind of requests
    #[arg(long, value_enum, default_value_t = Wanted::Auto)]
    request: Wanted,
    /// How events look
    #[arg(long, value_enum, default_value_t = WantedContent::Auto)]
    content: WantedContent,
    /// `app.path`; batches go to this path with `-batch`
    #[arg(long, default_value = "/process")]
    path: String,
    /// `app.health`
    #[arg(long, default_value = "/healthz")]
    health: String,
    /// `app.contract.timeout`
    #[arg(long, default_value = "30s", value_parser = seconds)]
    timeout: Duration,
    /// `app.maxRequestBytes`; one byte more must be refused
    #[arg(long, default_value_t = 8 << 20)]
    max_request_bytes: usize,
    /// `app.maxResponseBytes`
    #[arg(long, default_value_t = 8 << 20)]
    max_response_bytes: usize,
    /// `batch.maxRecords`
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    batch_records: u16,
    /// The app is in push mode and posts its results to this port of 127.0.0.1 (`app.push.port`);
    /// start it with `OUTPUT_URL=http://127.0.0.1:PORT/`
    #[arg(long, value_name = "PORT")]
    push: Option<u16>,
    /// `app.contract.emptyBody`
    #[arg(long, value_enum, default_value_t = Empty::Error)]
    empty_body: Empty,
    /// How to print the findings
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Empty {
    Error,
    Filter,
    Emit,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let mut samples = Vec::new();
    for file in &arguments.sample {
        if let Err(error) = read_samples(file, &mut samples) {
            screen.complain(&chain(error.as_ref()));
            return Ok(Ending::Wrong);
        }
    }
    samples.truncate(SAMPLES_MAX);
    let plan = Plan {
        address: arguments.address,
        path: arguments.path,
        health: arguments.health,
        wanted: arguments.request,
        content: arguments.content,
        timeout: arguments.timeout,
        max_request_bytes: arguments.max_request_bytes,
        max_response_bytes: arguments.max_response_bytes,
        push: arguments.push,
        empty_body: match arguments.empty_body {
            Empty::Error => EmptyBody::Error,
            Empty::Filter => EmptyBody::Filter,
            Empty::Emit => EmptyBody::Emit,
        },
        batch_max: usize::from(arguments.batch_records),
        samples,
    };
    let findings = match check(plan).await {
        Ok(findings) => findings,
        Err(unreachable) => {
            screen.complain(&chain(&unreachable));
            return Ok(Ending::Wrong);
        }
    };
    match arguments.output {
        Format::Json => screen.print_json(&findings)?,
        Format::Text => screen.print(&text(&findings, screen))?,
    }
    Ok(if findings.ok {
        Ending::Ok
    } else {
        Ending::Failed
    })
}

fn read_samples(file: &Path, into: &mut Vec<Draft>) -> anyhow::Result<()> {
    let bytes = read_source(file)?;
    let lines = file.as_os_str() == "-" || file.extension().is_some_and(|end| end == "jsonl");
    if !lines {
        into.push(Draft {
            key: Some("sample".into()),
            value: Some(bytes.into()),
            ..Draft::default()
        });
        return Ok(());
    }
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let draft = parse_json(line);
        into.push(draft.with_context(|| format!("{} line {number}", file.display()))?);
    }
    Ok(())
}

fn text(findings: &Findings, screen: Screen) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for finding in &findings.points {
        let (mark, details) = match &finding.verdict {
            Verdict::Passed => (screen.good("passed "), Vec::new()),
            Verdict::Failed(failures) => (screen.bad("FAILED "), failures.clone()),
            Verdict::Skipped(why) => (screen.faint("skipped"), vec![why.clone()]),
        };
        line(&format!("{:>2} {mark} {}", finding.point, finding.name));
        for detail in details {
            line(&format!("             {detail}"));
        }
        for remark in &finding.remarks {
            line(&format!("             {}", screen.faint(remark)));
        }
    }
    line(if findings.ok {
        "check-app: the app keeps the contract"
    } else {
        "check-app: the app does not keep the contract"
    });
    text
}
