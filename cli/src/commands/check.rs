//! `millrace check`: is a block document right, and does the world match it?

use std::path::PathBuf;

use clap::Args;
use millrace_core::contract::block::Problem;
use millrace_service::config;
use millrace_service::schema::{self, Schemas};
use serde_json::{Value, json};

use crate::connect::{Brokers, Document};
use crate::preflight::{self, Check, Verdict};
use crate::screen::{Format, Screen};
use crate::{Ending, chain};

/// Check a block document: every mistake at once, and with --connect the world around it
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace check block.yaml
  millrace check block.yaml --for cluster -o json
  millrace check block.yaml --connect
  millrace check block.yaml --connect --no-app --bootstrap broker:9092

With --connect it asks the brokers for topics, partitions, size limits, foreign members of the
group and whether commits keep their metadata, and the app for its health.

Exit codes: 0 all right, 1 the world does not match, 2 the document is wrong.")]
pub struct Arguments {
    /// The block document
    file: PathBuf,
    /// Ask brokers and app too
    #[arg(long)]
    connect: bool,
    /// Do not ask the app
    #[arg(long, requires = "connect")]
    no_app: bool,
    /// Where the app is, instead of app.port on this machine
    #[arg(
        long,
        value_name = "URL",
        requires = "connect",
        conflicts_with = "no_app"
    )]
    app: Option<crate::http::Address>,
    #[command(flatten)]
    brokers: Brokers,
    /// Where the block shall run
    #[arg(id = "where", long = "for", value_enum, default_value_t = Where::Anywhere)]
    place: Where,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Where {
    /// Only what holds everywhere
    Anywhere,
    /// `millrace dev`: needs a command to start
    Laptop,
    /// Kubernetes: needs an image, and no embedded broker
    Cluster,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let document = match Document::load(&arguments.file) {
        Ok(document) => document,
        Err(error) if error.exit_code() == 2 => return wrong(&arguments, &error, screen),
        Err(error) => return Err(error.into()),
    };
    let block = &document.block;
    let problems = match arguments.place {
        Where::Anywhere => Vec::new(),
        Where::Laptop => block.problems_on_a_laptop(),
        Where::Cluster => block.problems_on_a_cluster(),
    };
    let schemas = Schemas::load(block).err().unwrap_or_default();
    let later = block.not_in_this_version();
    let right = problems.is_empty() && schemas.is_empty();
    let checks = if arguments.connect && right {
        let app = (!arguments.no_app).then(|| arguments.app.clone());
        preflight::run(&document, &arguments.brokers, app).await?
    } else {
        Vec::new()
    };
    let failed = checks.iter().any(|check| check.verdict == Verdict::Failed);
    match arguments.output {
        Format::Json => screen.print_json(&json!({
            "ok": right && !failed,
            "problems": problems.iter().map(problem).chain(schemas.iter().map(broken)).collect::<Vec<_>>(),
            "not_in_this_version": later.iter().map(problem).collect::<Vec<_>>(),
            "checks": checks,
        }))?,
        Format::Text => {
            let schemas: Vec<String> = schemas.iter().map(|error| chain(error)).collect();
            screen.print(&text(&arguments, &problems, &schemas, later, &checks, screen))?;
        }
    }
    Ok(if !right {
        Ending::Wrong
    } else if failed {
        Ending::Failed
    } else {
        Ending::Ok
    })
}

fn wrong(arguments: &Arguments, error: &config::Error, screen: Screen) -> anyhow::Result<Ending> {
    match arguments.output {
        Format::Json => {
            let problems: Vec<Value> = match error.problems() {
                Some(problems) => problems.iter().map(problem).collect(),
                None => vec![json!({"path": "", "message": chain(error)})],
            };
            screen.print_json(&json!({
                "ok": false,
                "problems": problems,
                "not_in_this_version": [],
                "checks": [],
            }))?;
        }
        Format::Text => screen.print(&format!("{}\n", screen.bad(&chain(error))))?,
    }
    Ok(Ending::Wrong)
}

/// A schema that the document names and that cannot be used.
fn broken(error: &schema::Error) -> Value {
    json!({"path": error.key(), "message": chain(error)})
}

fn problem(problem: &Problem) -> Value {
    json!({
        "path": problem.path,
        "found": problem.found,
        "allowed": problem.allowed,
        "nearest": problem.nearest,
        "reason": problem.reason,
        "message": problem.to_string(),
    })
}

fn text(
    arguments: &Arguments,
    problems: &[Problem],
    schemas: &[String],
    later: &[Problem],
    checks: &[Check],
    screen: Screen,
) -> String {
    let mut lines = Vec::new();
    for problem in problems {
        lines.push(screen.bad(&problem.to_string()));
    }
    for schema in schemas {
        lines.push(screen.bad(schema));
    }
    for problem in later {
        lines.push(format!("not in this version: {problem}"));
    }
    for check in checks {
        let mark = match check.verdict {
            Verdict::Passed => screen.good("passed "),
            Verdict::Warned => "warning".to_owned(),
            Verdict::Failed => screen.bad("FAILED "),
        };
        lines.push(format!("{mark} {}: {}", check.name, check.detail));
    }
    if problems.is_empty() && schemas.is_empty() {
        lines.push(format!(
            "{}: the document is right",
            arguments.file.display()
        ));
    }
    lines.join("\n") + "\n"
}
