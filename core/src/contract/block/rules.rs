//! Rules across keys (C-2), each with its reason.
//!
//! A rule is quiet when one of its keys was refused already: one mistake, one problem.

use std::time::Duration;

use super::problem::Problem;
use super::values::{Secret, duration_text};
use super::walk::{Found, shown};
use super::*;

mod connections;
mod releases;

/// What R4 leaves between the last possible produce and the earliest hand-over.
const R4_MARGIN: Duration = Duration::from_secs(5);

/// Longest `app.contract.timeout`.
const APP_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Collects what is wrong, unless its keys were refused before.
#[derive(Debug)]
pub(super) struct Checker<'f> {
    found: &'f Found<'f>,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    /// Reports `problem` if `broken`, and none of `keys` was refused.
    fn refuse_if(&mut self, broken: bool, keys: &[&str], problem: impl FnOnce() -> Problem) {
        let within = |inner: &str, outer: &str| {
            let rest = inner.strip_prefix(outer);
            outer.is_empty()
                || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let known = |path: &str| {
            !self
                .found
                .refused
                .iter()
                .any(|refused| within(refused, path) || within(path, refused))
        };
        if broken && keys.iter().all(|key| known(key)) {
            self.problems.push(problem());
        }
    }

    /// Whether the document has a value at this path.
    fn has(&self, path: &str) -> bool {
        self.found.values.contains_key(path)
    }

    /// What the document has there, for a problem.
    fn shown(&self, path: &str) -> String {
        match self.found.values.get(path) {
            Some(value) if value.is_object() => "a section".to_owned(),
            Some(value) => shown(value),
            None => "nothing".to_owned(),
        }
    }

    /// Exactly one of `names` must stand in the section `path`.
    fn exactly_one(&mut self, path: &str, names: &[&str]) {
        let paths: Vec<_> = names.iter().map(|name| format!("{path}.{name}")).collect();
        let there: Vec<_> = names
            .iter()
            .zip(&paths)
            .filter(|(_, path)| self.has(path))
            .collect();
        let found = if there.is_empty() {
            "none of them".to_owned()
        } else {
            there
                .iter()
                .map(|(name, _)| **name)
                .collect::<Vec<_>>()
                .join(" and ")
        };
        let broken = there.len() != 1;
        let keys: Vec<_> = paths.iter().map(String::as_str).collect();
        self.refuse_if(broken && self.has(path), &keys, || {
            Problem::new(path, found, format!("exactly one of {}", names.join(", ")))
        });
    }

    /// A list must hold something, and nothing twice.
    fn distinct(&mut self, path: &str, list: &[String]) {
        let twice = list
            .iter()
            .enumerate()
            .find(|(i, item)| list[..*i].contains(item));
        self.refuse_if(self.has(path) && list.is_empty(), &[path], || {
            Problem::new(path, "an empty list", "at least one")
        });
        self.refuse_if(twice.is_some(), &[path], || {
            Problem::new(
                path,
                format!("{:?} twice", twice.map_or("", |(_, item)| item)),
                "each once",
            )
        });
    }
}

/// Everything that breaks a rule across keys.
pub(super) fn problems(block: &Block, found: &Found<'_>) -> Vec<Problem> {
    let mut check = Checker {
        found,
        problems: Vec::new(),
    };
    connections::check(&mut check, block);
    topics(&mut check, block);
    fence(&mut check, block);
    exactly_once(&mut check, block);
    isolation(&mut check, block);
    failures(&mut check, block);
    app(&mut check, block);
    releases::check(&mut check, block);
    check.problems
}

/// Input and output topics differ, also those for dead letters and shadow results (D-O6).
fn topics(check: &mut Checker<'_>, block: &Block) {
    let (section, topic, names) = match &block.output.sink {
        OutputSink::Kafka(output) => (
            "output.kafka",
            "topic",
            [&output.topic, &output.dead_letter, &output.verification],
        ),
        OutputSink::EventHubs(output) => (
            "output.eventHubs",
            "hub",
            [&output.hub, &output.dead_letter, &output.verification],
        ),
    };
    let keys = [topic, "deadLetter", "verification"].map(|key| format!("{section}.{key}"));
    let inputs: Vec<&String> = match &block.input.source {
        InputSource::Kafka(input) => input.topics.iter().collect(),
        InputSource::EventHubs(input) => vec![&input.hub],
    };
    let one_log = same_log(block);
    for (i, (key, name)) in keys.iter().zip(names).enumerate() {
        let read = one_log && !name.is_empty() && inputs.contains(&name);
        check.refuse_if(read, &[key, "input"], || {
            Problem::new(
                key,
                format!("{name:?}, which is an input topic"),
                "a topic that this block does not read",
            )
            .because("D-O6: it would read its own results")
        });
        let earlier = names[..i]
            .iter()
            .position(|other| *other == name && !name.is_empty());
        check.refuse_if(earlier.is_some(), &[key], || {
            Problem::new(
                key,
                format!("{name:?}"),
                format!("another topic than {}", earlier.map_or("", |at| &keys[at])),
            )
            .because("D-O6")
        });
    }
}

fn same_log(block: &Block) -> bool {
    let (input, output) = (
        block.input.source.connection(),
        block.output.sink.connection(),
    );
    let brokers = |name: &str| match block.connections.get(name) {
        Some(Connection::Kafka(kafka)) => Some(kafka.bootstrap.clone()),
        _ => None,
    };
    input == output || (brokers(input).is_some() && brokers(input) == brokers(output))
}

/// R4: the old owner's last produce call must end before anybody else may be assigned.
fn fence(check: &mut Checker<'_>, block: &Block) {
    let delivery = &block.delivery;
    if delivery.guarantee == Guarantee::ExactlyOnce {
        return;
    }
    let name = block.input.source.connection();
    let (session_key, session, poll) = match block.connections.get(name) {
        Some(Connection::EventHubs(hubs)) => (
            format!("connections.{name}.eventHubs.ownershipExpiry"),
            hubs.ownership_expiry,
            None,
        ),
        Some(Connection::Kafka(kafka)) => (
            "delivery.sessionTimeout".to_owned(),
            delivery.session_timeout,
            Some(kafka.max_poll_interval()),
        ),
        Some(Connection::Embedded(_)) | None => (
            "delivery.sessionTimeout".to_owned(),
            delivery.session_timeout,
            None,
        ),
    };
    let poll_key = format!("connections.{name}.kafka.properties.max.poll.interval.ms");
    let poll = poll.unwrap_or(Duration::from_secs(300));
    let needed = delivery.lease + delivery.message_timeout + R4_MARGIN;
    let keys = [
        "delivery.lease",
        "delivery.messageTimeout",
        &session_key,
        &poll_key,
    ];
    check.refuse_if(needed > session.min(poll), &keys, || {
        let [lease, message, session, poll] =
            [delivery.lease, delivery.message_timeout, session, poll].map(duration_text);
        Problem::new(
            "delivery.lease",
            format!(
                "delivery.lease {lease} + delivery.messageTimeout {message} + 5s = {}",
                duration_text(needed)
            ),
            format!("at most the smaller of {session_key} {session} and {poll_key} {poll}"),
        )
        .because("R4: a late answer of the old owner could follow the first of the new one")
    });
}

/// D-E1.
fn exactly_once(check: &mut Checker<'_>, block: &Block) {
    if block.delivery.guarantee != Guarantee::ExactlyOnce {
        return;
    }
    let key = "delivery.guarantee";
    let mut refuse = |broken: bool, with: &str, allowed: &str| {
        check.refuse_if(broken, &[key, with], || {
            Problem::new(key, "ExactlyOnce", allowed).because("D-E1")
        });
    };
    let (input, output) = (
        block.input.source.connection(),
        block.output.sink.connection(),
    );
    let kafka = matches!(block.input.source, InputSource::Kafka(_))
        && matches!(block.output.sink, OutputSink::Kafka(_));
    refuse(
        !kafka,
        "input",
        "AtLeastOnce unless input and output are both kafka",
    );
    refuse(
        kafka && input != output,
        "input",
        "AtLeastOnce unless input and output use one connection",
    );
    refuse(
        block.app.contract.mode == ContractMode::Push,
        "app.contract.mode",
        "AtLeastOnce unless app.contract.mode is Reply",
    );
    let transactions = match block.connections.get(output) {
        Some(Connection::Kafka(kafka)) => kafka.transactions,
        _ => true,
    };
    refuse(
        !transactions,
        &format!("connections.{output}"),
        "AtLeastOnce unless the connection has transactions: true (Event Hubs: Premium and Dedicated only)",
    );
    // Or the brokers end a transaction while the producer still tries a record of it.
    at_most(
        check,
        ("delivery.messageTimeout", block.delivery.message_timeout),
        (
            "delivery.transaction.timeout",
            block.delivery.transaction.timeout,
        ),
    );
}

/// D-E3: an input that sees aborted records would answer what never happened.
fn isolation(check: &mut Checker<'_>, block: &Block) {
    if block.delivery.guarantee != Guarantee::ExactlyOnce {
        return;
    }
    let name = block.input.source.connection();
    let Some(Connection::Kafka(kafka)) = block.connections.get(name) else {
        return;
    };
    let level = kafka.properties.get("isolation.level");
    let path = format!("connections.{name}.kafka.properties.isolation.level");
    check.refuse_if(
        level.is_some_and(|level| level != "read_committed"),
        &[&path],
        || {
            Problem::new(
                &path,
                format!("{:?}", level.map_or("", String::as_str)),
                "read_committed",
            )
            .because("D-E3: exactly-once reads what is committed only")
        },
    );
}

fn failures(check: &mut Checker<'_>, block: &Block) {
    let no_reason =
        matches!(&block.retry.on_exhausted, OnExhausted::Drop(reason) if reason.trim().is_empty());
    check.refuse_if(
        no_reason,
        &["retry.onExhausted", "retry.dropReason"],
        || {
            Problem::new(
                "retry.dropReason",
                "nothing",
                "text, required with retry.onExhausted: Drop",
            )
            .because("D-R3")
        },
    );
    at_most(
        check,
        ("retry.backoff.initial", block.retry.backoff_initial),
        ("retry.backoff.max", block.retry.backoff_max),
    );
    at_most(
        check,
        ("breaker.openMin", block.breaker.open_min),
        ("breaker.openMax", block.breaker.open_max),
    );
}

/// A first duration that may not be above a second one.
fn at_most(check: &mut Checker<'_>, (key, low): (&str, Duration), (other, high): (&str, Duration)) {
    check.refuse_if(low > high, &[key, other], || {
        Problem::new(
            key,
            duration_text(low),
            format!("at most {other}, which is {}", duration_text(high)),
        )
    });
}

fn app(check: &mut Checker<'_>, block: &Block) {
    let app = &block.app;
    check.refuse_if(
        app.contract.timeout > APP_TIMEOUT_MAX,
        &["app.contract.timeout"],
        || {
            Problem::new(
                "app.contract.timeout",
                duration_text(app.contract.timeout),
                "at most 24h",
            )
        },
    );
    let push = app.contract.mode == ContractMode::Push;
    let keys = ["app.contract.mode", "app.contract.request"];
    check.refuse_if(
        push && app.contract.request == RequestKind::Batch,
        &keys,
        || {
            Problem::new(
                "app.contract.request",
                "Batch",
                "Single, with app.contract.mode: Push",
            )
            .because("C-2: a pushed result is matched to one event")
        },
    );
    // The output takes pushes at their word; schemas are known to the input only.
    let keys = ["app.contract.mode", "output.schema"];
    check.refuse_if(push && block.output.schema.is_some(), &keys, || {
        Problem::new(
            "output.schema",
            "a file",
            "nothing, with app.contract.mode: Push",
        )
        .because("D-F4: results are checked in the app's answer")
    });
    let raw = app.contract.content == Content::Raw;
    let keys = ["app.contract.content", "app.contract.structured"];
    check.refuse_if(raw && app.contract.structured, &keys, || {
        Problem::new(
            "app.contract.structured",
            "true",
            "false, or app.contract.content: CloudEvents",
        )
        .because("A-C2: only a CloudEvent has a structured form")
    });
    let command = app.local.as_ref().map_or(&[][..], |local| &local.command);
    check.refuse_if(
        check.has("app.local.command") && command.is_empty(),
        &["app.local.command"],
        || {
            Problem::new(
                "app.local.command",
                "an empty list",
                "the program and its arguments",
            )
        },
    );
    for (i, variable) in app.env.iter().enumerate() {
        let path = format!("app.env[{i}]");
        check.exactly_one(&path, &["value", "valueFrom"]);
        let twice = app.env[..i].iter().any(|other| other.name == variable.name);
        check.refuse_if(twice, &[&path], || {
            Problem::new(
                format!("{path}.name"),
                format!("{:?} again", variable.name),
                "each variable once",
            )
        });
    }
}

/// What a cluster demands beyond a valid document.
pub(super) fn on_a_cluster(block: &Block) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, connection) in &block.connections {
        if matches!(connection, Connection::Embedded(_)) {
            problems.push(
                Problem::new(
                    format!("connections.{name}"),
                    "embedded",
                    "kafka, eventHubs",
                )
                .because("C-2: the embedded broker is for one machine"),
            );
        }
    }
    if block.app.image.is_none() {
        problems.push(
            Problem::new("app.image", "nothing", "an image (required on clusters)").because("C-6"),
        );
    }
    problems
}

/// What `millrace dev` demands beyond a valid document.
pub(super) fn on_a_laptop(block: &Block) -> Vec<Problem> {
    let mut problems = Vec::new();
    if block.app.local.is_none() {
        problems.push(
            Problem::new(
                "app.local",
                "nothing",
                "a section with command (required by millrace dev)",
            )
            .because("C-6"),
        );
    }
    for (i, variable) in block.app.env.iter().enumerate() {
        if let EnvironmentValue::Reference(reference) = &variable.value {
            problems.push(
                Problem::new(
                    format!("app.env[{i}].valueFrom"),
                    shown(reference),
                    "value: there is no cluster to ask",
                )
                .because("C-3"),
            );
        }
    }
    problems
}

fn is_missing(secret: &Secret) -> bool {
    matches!(secret, Secret::Env(name) if name.is_empty())
}
