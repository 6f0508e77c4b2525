//! The block document: what one block is, does and may use, as one parsed value.
//!
//! [`Block::parse`] takes the document as JSON (whoever reads YAML and the environment layers
//! them first) and gives either a block whose every value is typed, checked and filled in, or
//! *all* problems of the document together (C-1). Nothing here does IO.
//!
//! Invariant: the table in [`keys`] is the only list of keys. The checks of unknown keys, types
//! and ranges, the JSON Schema (C-5) and the reference page (C-4) all come from it.
//! Invariant: a parsed block holds references to secrets, never a secret (C-3).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::app::{
    App, AppContract, AppState, Content, ContentType, ContractMode, Correlate, EmptyBody,
    EnvironmentValue, EnvironmentVariable, HealthCheck, LocalApp, OversizedRequest, Push,
    RequestKind, ShadowSafety, Transport,
};
pub use self::connection::{
    BlobStore, ClientSecret, Connection, EmbeddedConnection, Entra, EventHubsAuth,
    EventHubsConnection, KafkaConnection, Mechanism, OAuth, Preset, Sasl, Tls,
};
pub use self::delivery::{
    Batch, Breaker, Concurrency, DeadLetter, Delivery, DrainRevoke, Flow, Guarantee, OnDeadLetter,
    OnExhausted, OrderedResults, Ordering, OversizedDeadLetter, Retry, StormGuard, Transaction,
};
pub use self::problem::{Problem, Problems};
pub use self::release::{
    Approvals, AutoRollback, Compare, CompareMode, DeletionPolicy, FieldRule, Gate, GateSource,
    Guard, NewRelease, Notification, NotifyOn, OnFail, Promotion, PromotionMode, PromotionStep,
    Release, Rollback, Shadow, Strategy, Verification,
};
pub use self::values::{Port, Secret, Share, StartAt, parse_duration};

pub mod agogosml;
mod app;
mod connection;
mod delivery;
pub mod keys;
mod overrides;
mod problem;
mod properties;
mod read;
mod reference;
mod release;
mod rules;
mod schema;
mod values;
mod walk;

pub use self::overrides::{Place, place};
pub use self::reference::reference;
pub use self::schema::schema;

/// A whole block document: checked, typed, every default filled in.
#[derive(Clone, PartialEq, Debug)]
pub struct Block {
    /// Who this block is, for ever.
    pub identity: Identity,
    /// Named ways to logs.
    pub connections: BTreeMap<String, Connection>,
    /// Where events come from.
    pub input: Input,
    /// Where results go.
    pub output: Output,
    /// What to do about topics that are missing.
    pub topics: Topics,
    /// Guarantees, and the times that uphold them.
    pub delivery: Delivery,
    /// How much may be open at once.
    pub flow: Flow,
    /// How batches are put together.
    pub batch: Batch,
    /// When a failed event is tried again.
    pub retry: Retry,
    /// When to stop calling the app for a while.
    pub breaker: Breaker,
    /// When too many events at once would be dead-lettered.
    pub storm_guard: StormGuard,
    /// What becomes of events that could not be answered.
    pub dead_letter: DeadLetter,
    /// Pods of the live release.
    pub replicas: u32,
    /// Image tag of the proxies; `None`: that of the controller.
    pub proxies_version: Option<String>,
    /// The customer's container; the only section that is released.
    pub app: App,
    /// How a new version of the app takes over.
    pub release: Release,
    /// Whom to tell.
    pub notifications: Vec<Notification>,
    /// Probes, metrics and operators' calls.
    pub admin: Admin,
    /// Between input and output.
    pub publish: Publish,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// The document, secrets as references; for `GET /v1/config`.
    document: Value,
    later: Vec<Problem>,
}

impl Block {
    /// Parses a bare spec or a whole `PipelineBlock` object.
    ///
    /// # Errors
    /// Every problem of the document, in the order of the reference page.
    pub fn parse(document: &Value) -> Result<Self, Problems> {
        read::block(document)
    }

    /// The connection that events come over.
    pub fn input_connection(&self) -> &Connection {
        self.connection(self.input.source.connection())
    }

    /// The connection that results, dead letters and shadow results go over.
    pub fn output_connection(&self) -> &Connection {
        self.connection(self.output.sink.connection())
    }

    fn connection(&self, name: &str) -> &Connection {
        self.connections
            .get(name)
            .expect("parsing refuses a block that names an unknown connection")
    }

    /// Whether missing topics of `connection` are created (`topics.create`, D-S1).
    pub fn creates_topics(&self, connection: &Connection) -> bool {
        match self.topics.create {
            Some(create) => create == TopicCreation::Missing,
            None => matches!(connection, Connection::Embedded(_)),
        }
    }

    /// What this version cannot do yet although the document asks for it. A starter refuses
    /// the block with these; `millrace check` shows them.
    pub fn not_in_this_version(&self) -> &[Problem] {
        &self.later
    }

    /// What a cluster demands beyond a valid document: an image (C-6), no embedded broker (C-2).
    pub fn problems_on_a_cluster(&self) -> Vec<Problem> {
        rules::on_a_cluster(self)
    }

    /// What `millrace dev` demands beyond a valid document: a command to start (C-6).
    pub fn problems_on_a_laptop(&self) -> Vec<Problem> {
        rules::on_a_laptop(self)
    }

    /// The document as it was given, with the values of secret properties blanked (D-P4).
    pub fn redacted(&self) -> Value {
        properties::redacted(&self.document)
    }
}

/// `identity`: who a block is, for ever.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identity(String);

impl Identity {
    /// All of it, such as `weu/scoring/fraud-score`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The block's name: the last segment.
    pub fn name(&self) -> &str {
        self.0
            .rsplit('/')
            .next()
            .expect("rsplit gives at least one part")
    }

    /// The consumer group of a release of this block (release.md T3).
    pub fn group(&self, release: &str) -> String {
        format!("millrace.{}.{release}", self.0)
    }

    /// The group that nobody joins and that keeps the grants (release.md T3, E4).
    pub fn registry_group(&self) -> String {
        self.group("registry")
    }
}

/// `input`.
#[derive(Clone, PartialEq, Debug)]
pub struct Input {
    /// Which log.
    pub source: InputSource,
    /// Events older than this are dead-lettered.
    pub ttl: Option<Duration>,
    /// JSON Schema that values must follow.
    pub schema: Option<PathBuf>,
}

/// `input.kafka` or `input.eventHubs`.
#[derive(Clone, PartialEq, Debug)]
pub enum InputSource {
    /// Over the Kafka protocol, the embedded broker included.
    Kafka(KafkaInput),
    /// Over AMQP.
    EventHubs(EventHubsInput),
}

impl InputSource {
    /// The name of its connection.
    pub fn connection(&self) -> &str {
        match self {
            Self::Kafka(input) => &input.connection,
            Self::EventHubs(input) => &input.connection,
        }
    }
}

/// `input.kafka`.
#[derive(Clone, PartialEq, Debug)]
pub struct KafkaInput {
    /// The name of its connection.
    pub connection: String,
    /// What to read; at least one, no repeats.
    pub topics: Vec<String>,
    /// Where a new group begins (D-G9).
    pub start_at: StartAt,
    /// Take over the positions of this group instead (D-G9).
    pub adopt_group: Option<String>,
    /// What to do when positions are gone from the log (D-G10).
    pub on_data_loss: OnDataLoss,
}

/// `input.eventHubs`.
#[derive(Clone, PartialEq, Debug)]
pub struct EventHubsInput {
    /// The name of its connection.
    pub connection: String,
    /// Event hub.
    pub hub: String,
    /// The groups that releases alternate between.
    pub consumer_groups: Vec<String>,
    /// Where a new release begins.
    pub start_at: StartAt,
    /// What to do when positions are gone from the log.
    pub on_data_loss: OnDataLoss,
}

/// `onDataLoss` (D-G10).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OnDataLoss {
    /// Stop the partition until an operator seeks.
    Stop,
    /// Go on at the first position of the log, and raise an alarm.
    EarliestWithAlarm,
    /// Go on at its end, and raise an alarm.
    LatestWithAlarm,
}

/// `output`.
#[derive(Clone, PartialEq, Debug)]
pub struct Output {
    /// Which log.
    pub sink: OutputSink,
    /// JSON Schema that results must follow.
    pub schema: Option<PathBuf>,
}

/// `output.kafka` or `output.eventHubs`.
#[derive(Clone, PartialEq, Debug)]
pub enum OutputSink {
    /// Over the Kafka protocol, the embedded broker included.
    Kafka(KafkaOutput),
    /// Over AMQP.
    EventHubs(EventHubsOutput),
}

impl OutputSink {
    /// The name of its connection.
    pub fn connection(&self) -> &str {
        match self {
            Self::Kafka(output) => &output.connection,
            Self::EventHubs(output) => &output.connection,
        }
    }
}

/// `output.kafka`.
#[derive(Clone, PartialEq, Debug)]
pub struct KafkaOutput {
    /// The name of its connection.
    pub connection: String,
    /// Where results go.
    pub topic: String,
    /// Where dead letters go; never empty.
    pub dead_letter: String,
    /// Where shadow results go; never empty.
    pub verification: String,
    /// Of record batches.
    pub compression: Compression,
    /// How long the producer waits for company.
    pub linger: Duration,
    /// Largest record; `None`: what the broker allows (D-O3).
    pub max_bytes: Option<u64>,
}

/// `output.eventHubs`.
#[derive(Clone, PartialEq, Debug)]
pub struct EventHubsOutput {
    /// The name of its connection.
    pub connection: String,
    /// Where results go.
    pub hub: String,
    /// Where dead letters go; never empty.
    pub dead_letter: String,
    /// Where shadow results go; never empty.
    pub verification: String,
    /// Largest event.
    pub max_bytes: u64,
}

/// `output.kafka.compression`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// `topics`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topics {
    /// `None`: it depends on the connection; ask [`Block::creates_topics`].
    pub create: Option<TopicCreation>,
    /// Partitions of a topic that is created.
    pub partitions: u32,
}

/// `topics.create`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TopicCreation {
    /// A missing topic stops the start.
    Never,
    /// Create what is missing.
    Missing,
}

/// `admin`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    /// Address of both admin ports.
    pub bind: std::net::IpAddr,
    /// Of the input proxy.
    pub input_port: Port,
    /// Of the output proxy.
    pub output_port: Port,
    /// What `/v1/*` asks for; `None` only on loopback.
    pub token: Option<Secret>,
    /// Whether `/v1/tap` may show keys and values.
    pub tap_payloads: bool,
}

/// `publish`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Wins over the port.
    pub socket: Option<PathBuf>,
    /// On 127.0.0.1.
    pub port: Port,
}

/// `telemetry`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Telemetry {
    /// Of log lines.
    pub log_format: LogFormat,
    /// A level, or directives such as `info,millrace_input=debug`.
    pub log_level: String,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
}

/// `telemetry.logFormat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[cfg(test)]
mod tests;
