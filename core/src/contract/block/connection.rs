//! `connections`: named ways to logs, and who we are there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::Secret;

/// One of `connections`.
#[derive(Clone, PartialEq, Debug)]
pub enum Connection {
    /// Kafka, or the Kafka endpoint of Event Hubs.
    Kafka(KafkaConnection),
    /// Event Hubs over AMQP.
    EventHubs(EventHubsConnection),
    /// The broker that `millrace dev` starts.
    Embedded(EmbeddedConnection),
}

/// `connections.<name>.kafka`.
#[derive(Clone, PartialEq, Debug)]
pub struct KafkaConnection {
    /// `host:port` each; at least one.
    pub bootstrap: Vec<String>,
    /// Settings that the other side needs.
    pub preset: Preset,
    /// Whether it has transactions.
    pub transactions: bool,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// Who we are.
    pub sasl: Option<Sasl>,
    /// Further librdkafka properties; none that breaks a rule (B-K5).
    pub properties: BTreeMap<String, String>,
}

impl KafkaConnection {
    /// librdkafka's `max.poll.interval.ms` (R4, D-G7), which only `properties` changes.
    pub fn max_poll_interval(&self) -> Duration {
        let ms = self
            .properties
            .get("max.poll.interval.ms")
            .and_then(|value| value.parse().ok());
        Duration::from_millis(ms.unwrap_or(300_000))
    }
}

/// `connections.<name>.kafka.preset`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Preset {
    /// Apache Kafka.
    None,
    /// The Kafka endpoint of Azure Event Hubs (D-C5).
    EventHubs,
}

/// `connections.<name>.kafka.tls`.
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

/// `connections.<name>.kafka.sasl`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sasl {
    /// Which dance.
    pub mechanism: Mechanism,
    /// User, for Plain and Scram.
    pub username: Option<String>,
    /// Password, for Plain and Scram.
    pub password: Option<Secret>,
    /// For OAuthBearer.
    pub oauth: Option<OAuth>,
    /// For OAuthBearer at Azure.
    pub entra: Entra,
}

/// `connections.<name>.kafka.sasl.mechanism`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mechanism {
    /// PLAIN.
    Plain,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
    /// OAUTHBEARER.
    OAuthBearer,
}

/// `connections.<name>.kafka.sasl.oauth`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OAuth {
    /// Where tokens come from.
    pub token_url: String,
    /// Who asks.
    pub client_id: String,
    /// With what.
    pub client_secret: Secret,
    /// For what.
    pub scope: Option<String>,
}

impl Sasl {
    /// Where the password or the client's secret stands.
    pub fn secret(&self) -> Option<&Secret> {
        let oauth = self.oauth.as_ref().map(|oauth| &oauth.client_secret);
        self.password.as_ref().or(oauth)
    }
}

/// `connections.<name>.kafka.sasl.entra`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entra {
    /// Not Azure.
    None,
    /// Workload identity (D-P3).
    WorkloadIdentity,
    /// Managed identity.
    ManagedIdentity,
}

/// `connections.<name>.eventHubs`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventHubsConnection {
    /// `NAMESPACE.servicebus.windows.net`; empty only with an endpoint or a connection string.
    pub namespace: String,
    /// Who we are.
    pub auth: EventHubsAuth,
    /// Local emulator.
    pub endpoint: Option<String>,
    /// Where positions and tokens are kept.
    pub checkpoints: Option<BlobStore>,
    /// Stands for the session time-out in R4.
    pub ownership_expiry: Duration,
}

/// `connections.<name>.eventHubs.auth`, with what it needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventHubsAuth {
    /// A shared access signature.
    ConnectionString(Secret),
    /// Managed identity.
    ManagedIdentity,
    /// Workload identity.
    WorkloadIdentity,
    /// An application's secret.
    ClientSecret(ClientSecret),
    /// Whoever is logged in.
    AzureCli,
}

/// `connections.<name>.eventHubs.clientSecret`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientSecret {
    /// Tenant.
    pub tenant_id: String,
    /// Application.
    pub client_id: String,
    /// Its secret.
    pub secret: Secret,
}

/// `connections.<name>.eventHubs.checkpoints`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlobStore {
    /// `az://account/container/prefix` or `file:///…`.
    pub url: String,
    /// Absent: the credential of `auth`.
    pub sas: Option<Secret>,
}

/// `connections.<name>.embedded`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmbeddedConnection {
    /// `None`: in memory.
    pub path: Option<PathBuf>,
    /// Bytes of records in memory; more are refused.
    pub memory_max: u64,
}
