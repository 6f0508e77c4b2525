//! What a Kafka client is made of, and the properties it gets.
//!
//! Invariant: no property that a delivery rule rests on can be changed from outside (B-K5).
//! Invariant: a password is never printed; `Debug` shows dots.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::auth_tokens::AuthTokens;
use super::secrets::{Password, Remakes};

/// A way to a Kafka cluster, and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port` each; at least one.
    pub bootstrap: Vec<String>,
    /// What brokers write into their logs, and what tells our members from foreign ones (F-26).
    pub client_id: String,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// Who we are; `None`: nobody in particular.
    pub sasl: Option<Sasl>,
    /// Who we are by a token of an endpoint; one of these is shared by all clients.
    pub auth_tokens: Option<AuthTokens>,
    /// How often clients had to be made anew.
    pub remakes: Remakes,
    /// Further librdkafka properties, applied last; see [`refusal`].
    pub properties: Vec<(String, String)>,
}

impl Settings {
    /// Plain text, no authentication: the embedded broker, and most tests.
    pub fn plain(bootstrap: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            bootstrap: vec![bootstrap.into()],
            client_id: client_id.into(),
            tls: Tls::Off,
            sasl: None,
            auth_tokens: None,
            remakes: Remakes::default(),
            properties: Vec::new(),
        }
    }
}

impl Tls {
    /// The files that it is made of.
    pub fn files(&self) -> Vec<PathBuf> {
        let Self::Files { ca, pair } = self else {
            return Vec::new();
        };
        let pair = pair
            .iter()
            .flat_map(|(certificate, key)| [certificate, key]);
        ca.iter().chain(pair).cloned().collect()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of properties may be secrets (B-K5).
        let properties: Vec<&str> = self
            .properties
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        f.debug_struct("Settings")
            .field("bootstrap", &self.bootstrap)
            .field("client_id", &self.client_id)
            .field("tls", &self.tls)
            .field("sasl", &self.sasl)
            .field("auth_tokens", &self.auth_tokens)
            .field("properties", &properties)
            .finish()
    }
}

/// How a connection is encrypted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tls {
    /// Plain text.
    Off,
    /// Encrypted; the system's roots decide whom we trust.
    System,
    /// Encrypted, with files of our own.
    Files {
        /// Whom we trust; `None`: the system's roots.
        ca: Option<PathBuf>,
        /// Our certificate and its key.
        pair: Option<(PathBuf, PathBuf)>,
    },
}

/// Name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    /// Which dance.
    pub mechanism: Mechanism,
    /// The user.
    pub username: String,
    /// The password.
    pub password: Password,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .field("password", &"…")
            .finish()
    }
}

/// SASL mechanisms that need only a name and a password (D-P1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// PLAIN.
    Plain,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
}

impl Mechanism {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// A client cannot be made from these settings.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// A property that a rule rests on.
    #[error("property {property:?} cannot be set: {reason}")]
    Refused {
        /// Which.
        property: String,
        /// The rule behind it.
        reason: &'static str,
    },
    /// librdkafka does not take them.
    #[error("the Kafka client cannot be made: {0}")]
    Client(String),
}

/// The group that a source joins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSettings {
    /// The release's group.
    pub group: String,
    /// The registry's group, which nobody joins.
    pub registry: String,
    /// What to read.
    pub topics: Vec<String>,
    /// After which silence the brokers give our partitions away (D-G2).
    pub session_timeout: Duration,
}

/// How records are appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerSettings {
    /// Of record batches.
    pub compression: Compression,
    /// How long a batch waits for company.
    pub linger: Duration,
    /// How long a record may take from `append` to its end (R4).
    pub message_timeout: Duration,
    /// The smallest `max.message.bytes` of the topics that are written. A batch never grows
    /// beyond it, because brokers refuse a large batch although each of its records fits.
    pub batch_bytes_max: Option<u64>,
    /// Exactly-once: what the producer is called among its kind (D-E2, D-E3).
    pub transactions: Option<TransactionSettings>,
}

/// How a transactional producer is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionSettings {
    /// A newer producer with this id fences the older one, and ends what it left open.
    pub id: String,
    /// After which brokers abort a transaction that nobody ends.
    pub timeout: Duration,
}

/// Compression of record batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

impl Compression {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Properties that cannot be passed through, each with the rule that rests on it (B-K5).
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", "it is `bootstrap` of the connection"),
    (
        "metadata.broker.list",
        "it is `bootstrap` of the connection",
    ),
    (
        "security.protocol",
        "it follows from `tls` and `sasl` of the connection",
    ),
    ("group.id", "a release and its group belong together (T3)"),
    (
        "group.instance.id",
        "static members are handed over without the session wait (R4)",
    ),
    (
        "group.protocol",
        "the fence of at-least-once is proven on the classic protocol only (R4)",
    ),
    (
        "group.remote.assignor",
        "partitions are handed over cooperatively (D-G2)",
    ),
    (
        "partition.assignment.strategy",
        "partitions are handed over cooperatively (D-G2)",
    ),
    ("session.timeout.ms", "it is `delivery.sessionTimeout` (R4)"),
    (
        "enable.auto.commit",
        "only the watermark is committed, with its token (D-W2)",
    ),
    (
        "auto.commit.interval.ms",
        "only the watermark is committed, with its token (D-W2)",
    ),
    (
        "auto.commit.enable",
        "only the watermark is committed, with its token (D-W2)",
    ),
    (
        "enable.auto.offset.store",
        "only the watermark is committed, with its token (D-W2)",
    ),
    (
        "auto.offset.reset",
        "a position is never reset silently (D-G9)",
    ),
    ("enable.partition.eof", "ends are taken from positions (R6)"),
    ("enable.idempotence", "a retry must not append twice (D-O1)"),
    ("acks", "stored means stored by all in-sync replicas (D-O1)"),
    (
        "request.required.acks",
        "stored means stored by all in-sync replicas (D-O1)",
    ),
    (
        "enable.gapless.guarantee",
        "one permanent error would end the producer (D-O1)",
    ),
    ("message.timeout.ms", "it is `delivery.messageTimeout` (R4)"),
    (
        "delivery.timeout.ms",
        "it is `delivery.messageTimeout` (R4)",
    ),
    ("transactional.id", "it belongs to exactly-once (D-E2)"),
    (
        "transaction.timeout.ms",
        "it is `delivery.transaction.timeout` (D-E3)",
    ),
    (
        "partitioner",
        "a key's partition is the one that Java clients choose (D-O7)",
    ),
    ("linger.ms", "it is `output.kafka.linger`"),
    ("queue.buffering.max.ms", "it is `output.kafka.linger`"),
    ("compression.type", "it is `output.kafka.compression`"),
    ("compression.codec", "it is `output.kafka.compression`"),
    ("batch.size", "it follows from the topics' limits (D-O3)"),
    (
        "message.max.bytes",
        "it follows from the topics' limits (D-O3)",
    ),
    (
        "statistics.interval.ms",
        "it is fixed by what reads the statistics (R6)",
    ),
    ("client.id", "it tells our members from foreign ones (F-26)"),
];

/// Why `property` cannot be passed through, if it cannot.
pub fn refusal(property: &str) -> Option<&'static str> {
    REFUSED
        .iter()
        .find(|(name, _)| *name == property)
        .map(|(_, reason)| *reason)
}

const RETRY_BACKOFF: &str = "retry.backoff.ms";

/// What a client is for.
#[derive(Clone, Copy)]
pub(super) enum Role<'a> {
    /// A member of a group.
    Member(&'a GroupSettings),
    /// Reads and writes offsets of a group that it never joins, or of none.
    Outsider(Option<&'a str>),
    /// Reads partitions up to their ends.
    Reader,
    /// Appends.
    Producer(&'a ProducerSettings),
    /// Asks and changes the cluster.
    Admin,
}

/// The properties of a client with this role.
pub(super) fn client_config(settings: &Settings, role: Role<'_>) -> Result<ClientConfig, Error> {
    // The first use of OpenSSL decides whether `exit` frees what it holds. Threads of clients that
    // are still ending then free the same: the process aborts with status 134 instead of 0.
    openssl_sys::init();
    let mut config = ClientConfig::new();
    let debug = settings
        .properties
        .iter()
        .any(|(property, _)| property == "debug");
    config.set_log_level(if debug {
        RDKafkaLogLevel::Debug
    } else {
        RDKafkaLogLevel::Info
    });
    connection(settings, &mut config);
    match role {
        Role::Member(group) => member(group, &mut config),
        Role::Outsider(group) => {
            reads(&mut config);
            // A group's offsets are stable only under read_committed (E6).
            config.set("isolation.level", "read_committed");
            commits(&mut config);
            // How long a commit may wait for its coordinator.
            config.set("session.timeout.ms", "6000");
            if let Some(group) = group {
                config.set("group.id", group);
            }
        }
        Role::Reader => {
            reads(&mut config);
            prefetch(&mut config);
            // Positions need a group in librdkafka; nothing is ever committed to this one.
            config.set("group.id", "millrace.reader");
            // Below any `max.poll.interval.ms` that R4 permits: librdkafka compares the two.
            config.set("session.timeout.ms", "6000");
            config.set("enable.partition.eof", "true");
            // What was aborted never happened.
            config.set("isolation.level", "read_committed");
        }
        Role::Producer(producer) => append(producer, &mut config),
        Role::Admin => {}
    }
    for (property, value) in &settings.properties {
        if let Some(reason) = refusal(property) {
            return Err(Error::Refused {
                property: property.clone(),
                reason,
            });
        }
        let kept = match role {
            Role::Outsider(_) => ["isolation.level", RETRY_BACKOFF].contains(&property.as_str()),
            Role::Member(_) => property == RETRY_BACKOFF,
            Role::Reader => property == "isolation.level",
            Role::Producer(_) | Role::Admin => false,
        };
        if !kept {
            config.set(property, value);
        }
    }
    Ok(config)
}

fn connection(settings: &Settings, config: &mut ClientConfig) {
    config.set("bootstrap.servers", settings.bootstrap.join(","));
    config.set("client.id", &settings.client_id);
    config.set("socket.keepalive.enable", "true");
    config.set("socket.nagle.disable", "true");
    config.set("reconnect.backoff.max.ms", "2000");
    let encrypted = settings.tls != Tls::Off;
    let authenticated = settings.sasl.is_some()
        || settings.auth_tokens.is_some()
        || settings
            .properties
            .iter()
            .any(|(property, _)| property == "sasl.mechanism");
    let protocol = match (encrypted, authenticated) {
        (false, false) => "plaintext",
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Tls::Files {
        pair: Some((certificate, key)),
        ..
    } = &settings.tls
    {
        config.set("ssl.certificate.location", certificate.to_string_lossy());
        config.set("ssl.key.location", key.to_string_lossy());
    }
    if encrypted {
        // The vendored OpenSSL knows no default place of roots (B-K2).
        let ca = match &settings.tls {
            Tls::Files { ca: Some(ca), .. } => ca.to_string_lossy().into_owned(),
            Tls::Off | Tls::System | Tls::Files { ca: None, .. } => "probe".to_owned(),
        };
        config.set("ssl.ca.location", ca);
    }
    if let Some(sasl) = &settings.sasl {
        config.set("sasl.mechanism", sasl.mechanism.as_str());
        config.set("sasl.username", &sasl.username);
        config.set("sasl.password", sasl.password.text());
    }
    if settings.auth_tokens.is_some() {
        config.set("sasl.mechanism", "OAUTHBEARER");
    }
}

fn reads(config: &mut ClientConfig) {
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "error");
    config.set("allow.auto.create.topics", "false");
}

fn prefetch(config: &mut ClientConfig) {
    config.set("fetch.queue.backoff.ms", "5");
    config.set("queued.max.messages.kbytes", "8192");
    config.set("queued.min.messages", "10000");
}

/// A commit that loses its connection is retried by librdkafka. If that happens before the
/// coordinator was found again, the finding cuts the retry off, which starts the search anew,
/// and so on until the session has ended and the member is evicted. The search may wait behind
/// a fetch, so a retry has to wait longer than a fetch.
fn commits(config: &mut ClientConfig) {
    config.set(RETRY_BACKOFF, "1000");
}

fn member(group: &GroupSettings, config: &mut ClientConfig) {
    reads(config);
    prefetch(config);
    commits(config);
    config.set("fetch.wait.max.ms", "300");
    // D-E3; at-least-once may choose otherwise.
    config.set("isolation.level", "read_committed");
    config.set("statistics.interval.ms", "500");
    let session_ms = group.session_timeout.as_millis();
    config.set("group.id", &group.group);
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config.set("session.timeout.ms", session_ms.to_string());
    config.set(
        "heartbeat.interval.ms",
        (session_ms / 6).clamp(100, 3_000).to_string(),
    );
    config.set("max.poll.interval.ms", "300000");
    // New partitions are found within 60 s (D-G11).
    config.set("topic.metadata.refresh.interval.ms", "60000");
}

fn append(producer: &ProducerSettings, config: &mut ClientConfig) {
    config.set("enable.idempotence", "true");
    config.set("acks", "all");
    config.set("compression.type", producer.compression.as_str());
    // librdkafka takes fractions of a millisecond here, and only here.
    config.set(
        "linger.ms",
        (producer.linger.as_secs_f64() * 1_000.0).to_string(),
    );
    config.set(
        "message.timeout.ms",
        producer.message_timeout.as_millis().to_string(),
    );
    config.set("queue.buffering.max.kbytes", "16384");
    config.set("queue.buffering.max.messages", "100000");
    // The same partition for a key as Java clients choose; without a key, sticky.
    config.set("partitioner", "murmur2_random");
    // The broker decides what is too large, not the client (D-O3).
    config.set("message.max.bytes", "1000000000");
    let batch = producer
        .batch_bytes_max
        .unwrap_or(1_000_000)
        .clamp(1_024, 1_000_000);
    config.set("batch.size", batch.to_string());
    if let Some(transactions) = &producer.transactions {
        config.set("transactional.id", &transactions.id);
        config.set(
            "transaction.timeout.ms",
            transactions.timeout.as_millis().to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> GroupSettings {
        GroupSettings {
            group: "g".to_owned(),
            registry: "r".to_owned(),
            topics: vec!["t".to_owned()],
            session_timeout: Duration::from_secs(20),
        }
    }

    #[test]
    fn b_k5_a_property_that_a_rule_rests_on_is_refused_with_the_rule() {
        for (property, _) in REFUSED {
            let mut settings = Settings::plain("127.0.0.1:1", "test");
            settings.properties = vec![((*property).to_owned(), "x".to_owned())];
            let refused = client_config(&settings, Role::Member(&group())).unwrap_err();
            assert!(matches!(refused, Error::Refused { .. }), "{property}");
        }
    }

    #[test]
    fn b_k5_other_properties_are_passed_through() {
        let mut settings = Settings::plain("127.0.0.1:1", "test");
        settings.properties = vec![("fetch.wait.max.ms".to_owned(), "17".to_owned())];
        let config = client_config(&settings, Role::Member(&group())).unwrap();
        assert_eq!(config.get("fetch.wait.max.ms"), Some("17"));
    }

    #[test]
    fn e6_the_token_store_reads_stable_offsets_whatever_the_properties_say() {
        let mut settings = Settings::plain("127.0.0.1:1", "test");
        settings.properties = vec![("isolation.level".to_owned(), "read_uncommitted".to_owned())];
        let config = client_config(&settings, Role::Outsider(Some("g"))).unwrap();
        assert_eq!(config.get("isolation.level"), Some("read_committed"));
    }

    #[test]
    fn d_e3_an_audit_reads_what_is_committed_whatever_the_properties_say() {
        let mut settings = Settings::plain("127.0.0.1:1", "test");
        settings.properties = vec![("isolation.level".to_owned(), "read_uncommitted".to_owned())];
        let config = client_config(&settings, Role::Reader).unwrap();
        assert_eq!(config.get("isolation.level"), Some("read_committed"));
        settings.properties.clear();
        let config = client_config(&settings, Role::Member(&group())).unwrap();
        assert_eq!(config.get("isolation.level"), Some("read_committed"));
    }

    #[test]
    fn b_k2_roots_are_probed_unless_the_user_gave_some() {
        let mut settings = Settings::plain("127.0.0.1:1", "test");
        settings.tls = Tls::System;
        let config = client_config(&settings, Role::Admin).unwrap();
        assert_eq!(config.get("ssl.ca.location"), Some("probe"));
        assert_eq!(config.get("security.protocol"), Some("ssl"));
        settings.tls = Tls::Files {
            ca: Some("/ca.pem".into()),
            pair: None,
        };
        let config = client_config(&settings, Role::Admin).unwrap();
        assert_eq!(config.get("ssl.ca.location"), Some("/ca.pem"));
    }

    #[test]
    fn d_p1_sasl_over_tls_is_configured_and_its_password_is_not_printed() {
        let mut settings = Settings::plain("127.0.0.1:1", "test");
        settings.tls = Tls::System;
        settings.sasl = Some(Sasl {
            mechanism: Mechanism::ScramSha512,
            username: "u".to_owned(),
            password: "geheim".into(),
        });
        let config = client_config(&settings, Role::Admin).unwrap();
        assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(config.get("sasl.mechanism"), Some("SCRAM-SHA-512"));
        settings.properties = vec![("ssl.key.password".to_owned(), "topsecret".to_owned())];
        let printed = format!("{settings:?}");
        assert!(printed.contains("ssl.key.password"));
        assert!(
            !printed.contains("geheim") && !printed.contains("topsecret"),
            "{printed}"
        );
    }

    #[test]
    fn every_role_makes_a_client_configuration_that_librdkafka_takes() {
        let settings = Settings::plain("127.0.0.1:1", "test");
        let producer = ProducerSettings {
            compression: Compression::Zstd,
            linger: Duration::from_micros(500),
            message_timeout: Duration::from_secs(7),
            batch_bytes_max: Some(10_000),
            transactions: None,
        };
        let transactional = ProducerSettings {
            transactions: Some(TransactionSettings {
                id: "t".to_owned(),
                timeout: Duration::from_secs(30),
            }),
            ..producer.clone()
        };
        for role in [
            Role::Member(&group()),
            Role::Outsider(Some("g")),
            Role::Outsider(None),
            Role::Reader,
            Role::Producer(&producer),
            Role::Producer(&transactional),
            Role::Admin,
        ] {
            client_config(&settings, role)
                .unwrap()
                .create_native_config()
                .unwrap();
        }
    }
}
