//! From a checked document to a [`Block`]: one function per section, defaults filled in.
//!
//! Reading never fails: a value that was refused, or is required and missing, is read as
//! something empty, and the block is thrown away because there is a problem. That way the rules
//! across keys can run on what is right in a document that is partly wrong (C-1).

use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::keys::{self, Absent};
use super::problem::{Problem, Problems};
use super::values::{self, Port, Secret, Share, StartAt};
use super::walk::{self, Found, join};
use super::*;

mod apps;
mod connections;
mod releases;

const PIPELINE_BLOCK: &str = "PipelineBlock";

/// Parses a bare spec or a whole object.
pub(super) fn block(document: &Value) -> Result<Block, Problems> {
    let spec = spec(document)?;
    let mut found = walk::spec(spec);
    let block = draft(spec, &found);
    let broken = rules::problems(&block, &found);
    found.problems.extend(broken);
    let later = std::mem::take(&mut found.later);
    match Problems::some(found.problems) {
        Some(problems) => Err(problems),
        None => Ok(Block {
            later: used(&block, later),
            ..block
        }),
    }
}

/// The spec of a document that may be a whole Kubernetes object.
fn spec(document: &Value) -> Result<&Value, Problems> {
    let Some(kind) = document.get("kind").or_else(|| document.get("apiVersion")) else {
        return Ok(document);
    };
    let is = |key: &str, wanted: &dyn Fn(&str) -> bool| {
        document
            .get(key)
            .and_then(Value::as_str)
            .is_some_and(wanted)
    };
    if !is("kind", &|kind| kind == PIPELINE_BLOCK)
        || !is("apiVersion", &|version| {
            version.starts_with("millrace.dev/")
        })
    {
        let found = walk::shown(kind);
        return Err(Problem::new(
            "kind",
            found,
            "a millrace.dev/v1alpha1 PipelineBlock, or its bare spec",
        )
        .into());
    }
    document
        .get("spec")
        .ok_or_else(|| Problem::new("spec", "nothing", "the block document").into())
}

/// What is not in this version matters only where the block uses it.
fn used(block: &Block, later: Vec<Problem>) -> Vec<Problem> {
    let names = [
        block.input.source.connection(),
        block.output.sink.connection(),
    ];
    let unused = |path: &str| {
        path.strip_prefix("connections.").is_some_and(|rest| {
            !names
                .iter()
                .any(|name| rest.split('.').next() == Some(*name))
        })
    };
    later
        .into_iter()
        .filter(|problem| !unused(&problem.path))
        .collect()
}

/// Reads every key, whatever is wrong.
pub(super) fn draft(spec: &Value, found: &Found<'_>) -> Block {
    let top = Scope::top(found);
    let identity = Identity(top.text("identity"));
    let connections = connections::all(&top);
    let input = input(&top);
    let output = output(&top, identity.name(), &connections);
    let event_hubs = [input.source.connection(), output.sink.connection()]
        .iter()
        .any(|name| connections.get(*name).is_some_and(is_event_hubs));
    Block {
        identity,
        connections,
        input,
        output,
        topics: Topics {
            create: top.word("topics.create"),
            partitions: top.whole_32("topics.partitions"),
        },
        delivery: delivery(&top, event_hubs),
        flow: flow(&top),
        batch: batch(&top),
        retry: retry(&top),
        breaker: Breaker {
            failure_ratio: top.number("breaker.failureRatio"),
            window: top.duration("breaker.window"),
            min_requests: top.whole_32("breaker.minRequests"),
            open_min: top.duration("breaker.openMin"),
            open_max: top.duration("breaker.openMax"),
        },
        storm_guard: StormGuard {
            ratio: top.number("stormGuard.ratio"),
            window: top.duration("stormGuard.window"),
            min_records: top.whole("stormGuard.minRecords"),
        },
        dead_letter: DeadLetter {
            on_dead_letter: top
                .word("deadLetter.onDeadLetter")
                .unwrap_or(OnDeadLetter::Continue),
            park_ttl: top.duration("deadLetter.parkTtl"),
            oversized: top
                .word("deadLetter.oversized")
                .unwrap_or(OversizedDeadLetter::Block),
            max_redrives: top.whole_32("deadLetter.maxRedrives"),
        },
        replicas: top.whole_32("replicas"),
        proxies_version: top.filled("proxies.version"),
        app: apps::app(&top),
        release: releases::release(&top),
        notifications: releases::notifications(&top),
        admin: Admin {
            bind: top
                .text("admin.bind")
                .parse()
                .unwrap_or(std::net::Ipv4Addr::LOCALHOST.into()),
            input_port: top.port("admin.inputPort", 9400),
            output_port: top.port("admin.outputPort", 9401),
            token: top.secret("admin.token"),
            tap_payloads: top.flag("admin.tapPayloads"),
        },
        publish: Publish {
            socket: top.filled("publish.socket").map(PathBuf::from),
            port: top.port("publish.port", 9402),
        },
        telemetry: Telemetry {
            log_format: top.word("telemetry.logFormat").unwrap_or(LogFormat::Text),
            log_level: top.text("telemetry.logLevel"),
            otlp_endpoint: top.filled("telemetry.otlp.endpoint"),
        },
        document: spec.clone(),
        later: Vec::new(),
    }
}

fn is_event_hubs(connection: &Connection) -> bool {
    matches!(connection, Connection::Kafka(kafka) if kafka.preset == Preset::EventHubs)
}

fn start_at(scope: &Scope<'_>) -> StartAt {
    match scope.get("startAt") {
        Value::String(word) if word == "Earliest" => StartAt::Earliest,
        time => values::instant(&time).map_or(StartAt::Latest, |timestamp_ms| StartAt::Time {
            timestamp_ms,
        }),
    }
}

fn input(top: &Scope<'_>) -> Input {
    let scope = top.inside("input.eventHubs");
    let source = if scope.is_there() && !top.inside("input.kafka").is_there() {
        InputSource::EventHubs(EventHubsInput {
            connection: scope.text("connection"),
            hub: scope.text("hub"),
            consumer_groups: scope.texts("consumerGroups"),
            start_at: start_at(&scope),
            on_data_loss: scope.word("onDataLoss").unwrap_or(OnDataLoss::Stop),
        })
    } else {
        let scope = top.inside("input.kafka");
        InputSource::Kafka(KafkaInput {
            connection: scope.text("connection"),
            topics: scope.texts("topics"),
            start_at: start_at(&scope),
            adopt_group: scope.filled("adoptGroup"),
            on_data_loss: scope.word("onDataLoss").unwrap_or(OnDataLoss::Stop),
        })
    };
    Input {
        source,
        ttl: top.maybe_duration("input.ttl"),
        schema: top.filled("input.schema").map(PathBuf::from),
    }
}

fn output(top: &Scope<'_>, name: &str, connections: &BTreeMap<String, Connection>) -> Output {
    let scope = top.inside("output.eventHubs");
    let or_named = |scope: &Scope<'_>, key: &str, suffix: &str| {
        scope
            .filled(key)
            .unwrap_or_else(|| format!("{name}.{suffix}"))
    };
    let sink = if scope.is_there() && !top.inside("output.kafka").is_there() {
        OutputSink::EventHubs(EventHubsOutput {
            connection: scope.text("connection"),
            hub: scope.text("hub"),
            dead_letter: or_named(&scope, "deadLetter", "dlq"),
            verification: or_named(&scope, "verification", "verify"),
            max_bytes: scope.size("maxBytes").unwrap_or_default(),
        })
    } else {
        let scope = top.inside("output.kafka");
        let connection = scope.text("connection");
        let event_hubs = connections.get(&connection).is_some_and(is_event_hubs);
        OutputSink::Kafka(KafkaOutput {
            connection,
            topic: scope.text("topic"),
            dead_letter: or_named(&scope, "deadLetter", "dlq"),
            verification: or_named(&scope, "verification", "verify"),
            compression: scope.word("compression").unwrap_or(if event_hubs {
                Compression::None
            } else {
                Compression::Lz4
            }),
            linger: scope.duration("linger"),
            max_bytes: scope.size("maxBytes").or(event_hubs.then_some(1_000_000)),
        })
    };
    Output {
        sink,
        schema: top.filled("output.schema").map(PathBuf::from),
    }
}

fn delivery(top: &Scope<'_>, event_hubs: bool) -> Delivery {
    let scope = top.inside("delivery");
    let guarantee = scope.word("guarantee").unwrap_or(Guarantee::AtLeastOnce);
    let seconds = |event_hubs_s: u64, other_s: u64| {
        Duration::from_secs(if event_hubs { event_hubs_s } else { other_s })
    };
    let session = match guarantee {
        Guarantee::AtLeastOnce => seconds(30, 20),
        Guarantee::ExactlyOnce => seconds(30, 10),
    };
    Delivery {
        guarantee,
        ordering: scope.word("ordering").unwrap_or(Ordering::Key),
        window: scope.whole("window"),
        commit_interval: scope.duration("commitInterval"),
        commit_records: scope.whole("commitRecords"),
        session_timeout: scope.maybe_duration("sessionTimeout").unwrap_or(session),
        lease: scope.maybe_duration("lease").unwrap_or(seconds(10, 8)),
        message_timeout: scope
            .maybe_duration("messageTimeout")
            .unwrap_or(seconds(15, 7)),
        drain_revoke: scope
            .maybe_duration("drainRevoke")
            .map_or(DrainRevoke::Auto, DrainRevoke::After),
        transaction: Transaction {
            interval: scope.duration("transaction.interval"),
            records: scope.whole("transaction.records"),
            timeout: scope.duration("transaction.timeout"),
        },
    }
}

fn flow(top: &Scope<'_>) -> Flow {
    let bytes = top.get("flow.maxInFlightBytes");
    let share = values::percentage(&bytes).map(Share::Fraction);
    Flow {
        max_in_flight: top.whole("flow.maxInFlight"),
        max_in_flight_bytes: share
            .unwrap_or_else(|| Share::Bytes(values::size(&bytes).unwrap_or_default())),
        concurrency: match top.get("flow.concurrency").as_u64() {
            None => Concurrency::Adaptive,
            Some(_) => Concurrency::Fixed(top.whole_32("flow.concurrency")),
        },
    }
}

fn batch(top: &Scope<'_>) -> Batch {
    let scope = top.inside("batch");
    Batch {
        max_records: scope.whole("maxRecords"),
        max_bytes: scope.size("maxBytes").unwrap_or_default(),
        linger: scope.duration("linger"),
        max_per_lane: scope.whole("maxPerLane"),
        adaptive: scope.flag("adaptive"),
        target_p99: scope.duration("targetP99"),
        ordered_results: scope
            .word("orderedResults")
            .unwrap_or(OrderedResults::Strict),
    }
}

fn retry(top: &Scope<'_>) -> Retry {
    let scope = top.inside("retry");
    Retry {
        max_attempts: Some(scope.whole_32("maxAttempts")).filter(|attempts| *attempts > 0),
        max_age: scope.duration("maxAge"),
        backoff_initial: scope.duration("backoff.initial"),
        backoff_multiplier: scope.number("backoff.multiplier"),
        backoff_max: scope.duration("backoff.max"),
        respect_retry_after: scope.flag("respectRetryAfter"),
        on_exhausted: match scope.get("onExhausted").as_str() {
            Some("Drop") => OnExhausted::Drop(scope.text("dropReason")),
            Some("Block") => OnExhausted::Block,
            _ => OnExhausted::DeadLetter,
        },
    }
}

/// A section of a checked document, and the table's keys for it.
#[derive(Debug)]
pub(super) struct Scope<'f> {
    found: &'f Found<'f>,
    pattern: String,
    path: String,
}

impl<'f> Scope<'f> {
    fn top(found: &'f Found<'f>) -> Self {
        Self {
            found,
            pattern: String::new(),
            path: String::new(),
        }
    }

    /// A section of this one; `name` may have dots.
    fn inside(&self, name: &str) -> Self {
        Self {
            found: self.found,
            pattern: join(&self.pattern, name),
            path: join(&self.path, name),
        }
    }

    /// A section that people named.
    fn named(&self, name: &str) -> Self {
        Self {
            found: self.found,
            pattern: join(&self.pattern, "<name>"),
            path: join(&self.path, name),
        }
    }

    /// The sections of a list; `None`: the document has none.
    fn items(&self, name: &str) -> Option<Vec<Self>> {
        let path = join(&self.path, name);
        let items = self.found.values.get(&path)?.as_array()?;
        let pattern = join(&self.pattern, &format!("{name}[]"));
        let item = |i| Self {
            found: self.found,
            pattern: pattern.clone(),
            path: format!("{path}[{i}]"),
        };
        Some((0..items.len()).map(item).collect())
    }

    /// Whether the document has this section.
    fn is_there(&self) -> bool {
        self.found.values.contains_key(&self.path)
    }

    /// What stands there, or the default, or null.
    fn get(&self, name: &str) -> Value {
        if let Some(value) = self.found.values.get(&join(&self.path, name)) {
            return (*value).clone();
        }
        let pattern = join(&self.pattern, name);
        match keys::find(&pattern).map(|key| key.default) {
            Some(Absent::Json(text)) => {
                serde_json::from_str(text).expect("a test parses every default of the table")
            }
            Some(Absent::Required | Absent::Nothing | Absent::Depends(_)) => Value::Null,
            None => panic!("{pattern} is not in the table of keys"),
        }
    }

    fn filled(&self, name: &str) -> Option<String> {
        self.get(name)
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    }

    fn text(&self, name: &str) -> String {
        self.filled(name).unwrap_or_default()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let list = self.get(name);
        let items = list.as_array().into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    fn word<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.get(name)).ok()
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).as_bool().unwrap_or_default()
    }

    fn whole(&self, name: &str) -> u64 {
        self.get(name).as_u64().unwrap_or_default()
    }

    fn whole_32(&self, name: &str) -> u32 {
        u32::try_from(self.whole(name)).expect("the table bounds it")
    }

    fn number(&self, name: &str) -> f64 {
        self.maybe_number(name).unwrap_or_default()
    }

    fn maybe_number(&self, name: &str) -> Option<f64> {
        self.get(name).as_f64()
    }

    fn percentage(&self, name: &str) -> f64 {
        values::percentage(&self.get(name)).unwrap_or_default()
    }

    fn maybe_duration(&self, name: &str) -> Option<Duration> {
        values::duration(&self.get(name))
    }

    fn duration(&self, name: &str) -> Duration {
        self.maybe_duration(name).unwrap_or_default()
    }

    fn size(&self, name: &str) -> Option<u64> {
        values::size(&self.get(name))
    }

    fn secret(&self, name: &str) -> Option<Secret> {
        values::secret(&self.get(name))
    }

    fn port(&self, name: &str, otherwise: u16) -> Port {
        match self.get(name).as_u64() {
            None => Port {
                number: otherwise,
                chosen: false,
            },
            Some(number) => Port {
                number: u16::try_from(number).expect("the table bounds it"),
                chosen: true,
            },
        }
    }
}
