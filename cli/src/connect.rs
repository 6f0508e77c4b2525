//! From options and block documents to a cluster: who it is, what is in it, and ways to read
//! and append.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Args;
use millrace_connectors::StoreError;
use millrace_connectors::kafka::{
    Admin, Compression, KafkaSink, KafkaTokenStore, ProducerSettings, Reader, Settings, Start,
    Until,
};
use millrace_core::contract::block::{self, Block};
use millrace_core::position::{Partition, Position};
use millrace_service::config::{self, Environment};
use millrace_service::secret;
use millrace_service::time::clock;

/// Where a broker is if nobody says so: `millrace broker` and `millrace dev` listen there.
const USUAL: &str = "127.0.0.1:9092";

/// A file beside the block document in which `millrace dev` leaves its broker's address.
pub const ADDRESS_FILE: &str = ".millrace/bootstrap";

/// What our clients call themselves.
const CLIENT_ID: &str = "millrace-cli";

/// Options that say where the brokers are.
#[derive(Args, Clone, Debug, Default)]
pub struct Brokers {
    /// Brokers [default: those of the block document, else 127.0.0.1:9092]
    #[arg(
        short,
        long,
        env = "MILLRACE_BOOTSTRAP",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    bootstrap: Vec<String>,
    /// Any property of librdkafka, such as ssl.ca.location=ca.pem
    #[arg(short = 'X', long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
}

/// Options for commands that need one connection and nothing else of a block.
#[derive(Args, Clone, Debug, Default)]
pub struct Connect {
    #[command(flatten)]
    brokers: Brokers,
    /// Take brokers and credentials from this block document
    #[arg(long, value_name = "FILE")]
    block: Option<PathBuf>,
    /// Which of its connections, if it has several
    #[arg(long, value_name = "NAME", requires = "block")]
    connection: Option<String>,
}

impl Connect {
    /// Makes the clients. Nothing is asked yet.
    pub fn open(&self) -> anyhow::Result<Cluster> {
        let Some(file) = &self.block else {
            return self.brokers.open(None);
        };
        let document = Document::load(file)?;
        let connections = &document.block.connections;
        let name = match (&self.connection, connections.len()) {
            (Some(name), _) => name,
            (None, 1) => connections.keys().next().context("there is one")?,
            (None, _) => {
                let names: Vec<&str> = connections.keys().map(String::as_str).collect();
                bail!("choose one with --connection: {}", names.join(", "));
            }
        };
        let Some(connection) = connections.get(name) else {
            bail!("{} has no connection `{name}`", file.display());
        };
        self.brokers.open(Some((&document, connection)))
    }
}

impl Brokers {
    /// Whether the options say where the brokers are.
    pub fn named(&self) -> bool {
        !self.bootstrap.is_empty()
    }

    /// Makes the clients for brokers at an address.
    pub fn open_at(&self, address: &str) -> anyhow::Result<Cluster> {
        let mut settings = Settings::plain(address, CLIENT_ID);
        settings.properties.clone_from(&self.properties);
        Cluster::new(settings)
    }

    /// Makes the clients for a connection of a document, or for the options alone.
    pub fn open(&self, of: Option<(&Document, &block::Connection)>) -> anyhow::Result<Cluster> {
        let mut settings = match of {
            None => Settings::plain(USUAL, CLIENT_ID),
            Some((document, connection)) => document.settings(connection)?,
        };
        if !self.bootstrap.is_empty() {
            settings.bootstrap.clone_from(&self.bootstrap);
        }
        settings.properties.extend(self.properties.iter().cloned());
        Cluster::new(settings)
    }
}

/// A block document with what belongs to it.
#[derive(Debug)]
pub struct Document {
    /// What it says.
    pub block: Block,
    folder: PathBuf,
    environment: Environment,
}

impl Document {
    /// Reads it, with the overrides of the environment.
    pub fn load(file: &Path) -> Result<Self, config::Error> {
        let environment = config::environment();
        Ok(Self {
            block: config::load(file, &environment)?,
            folder: file.parent().unwrap_or(Path::new("")).to_owned(),
            environment,
        })
    }

    /// The release that the environment names.
    pub fn release(&self) -> Option<&str> {
        self.environment.get("MILLRACE_RELEASE").map(String::as_str)
    }

    fn settings(&self, connection: &block::Connection) -> anyhow::Result<Settings> {
        if matches!(connection, block::Connection::Embedded(_)) {
            return Ok(Settings::plain(embedded_address(&self.folder), CLIENT_ID));
        }
        let password = |secret: &block::Secret| {
            secret::read(secret, &self.environment).map(|text| text.expose().to_owned())
        };
        Ok(Settings::of(connection, CLIENT_ID, clock, password)?)
    }
}

/// Where `millrace dev` in this folder has its broker.
fn embedded_address(folder: &Path) -> String {
    let left = std::fs::read_to_string(folder.join(ADDRESS_FILE));
    left.map_or_else(|_| USUAL.to_owned(), |text| text.trim().to_owned())
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("write a property as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A Kafka cluster.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    admin: Admin,
}

impl Cluster {
    /// Makes the clients. Nothing is asked yet.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        Ok(Self {
            admin: Admin::connect(&settings)?,
            settings,
        })
    }

    /// Other clients to the same cluster.
    pub fn again(&self) -> anyhow::Result<Self> {
        Self::new(self.settings.clone())
    }

    /// Where it is, for people.
    pub fn address(&self) -> String {
        self.settings.bootstrap.join(",")
    }

    /// Questions to it.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Committed offsets and log ends.
    pub fn store(&self) -> anyhow::Result<KafkaTokenStore> {
        Ok(KafkaTokenStore::new(self.settings.clone())?)
    }

    /// Says what the trouble is with, and what helps.
    pub fn explain(&self, error: StoreError) -> anyhow::Error {
        let address = self.address();
        match error {
            StoreError::Unavailable(_) => anyhow::Error::new(error).context(format!(
                "the brokers at {address} do not answer; is the address right (--bootstrap), and \
                 does one run? `millrace broker` starts one here"
            )),
            StoreError::Refused(_) => {
                anyhow::Error::new(error).context(format!("the brokers at {address} refuse"))
            }
        }
    }

    /// Its id.
    pub async fn id(&self) -> anyhow::Result<String> {
        let id = self.admin.cluster_id().await;
        id.map_err(|error| self.explain(error))
    }

    /// The partitions of a topic; `None` if it does not exist.
    pub async fn partitions(&self, topic: &str) -> anyhow::Result<Option<Vec<Partition>>> {
        let topics = self.admin.topics(&[topic]).await;
        let topics = topics.map_err(|error| self.explain(error))?;
        let shared: std::sync::Arc<str> = topic.into();
        Ok(topics.get(topic).map(|info| {
            (0..info.partitions)
                .map(|number| Partition::new(std::sync::Arc::clone(&shared), number))
                .collect()
        }))
    }

    /// The partitions of a topic that has to exist.
    pub async fn need_topic(&self, topic: &str) -> anyhow::Result<Vec<Partition>> {
        let partitions = self.partitions(topic).await?;
        partitions.with_context(|| {
            let address = self.address();
            format!("topic `{topic}` does not exist at {address}; is the name right?")
        })
    }

    /// Creates a topic.
    pub async fn create_topic(&self, topic: &str, partitions: i32) -> anyhow::Result<()> {
        let created = self.admin.create_topics(&[(topic, partitions)]).await;
        created.map_err(|error| self.explain(error))
    }

    /// First and end position of logs.
    pub async fn ranges(
        &self,
        partitions: Vec<Partition>,
    ) -> anyhow::Result<BTreeMap<Partition, (Position, Position)>> {
        let ranges = self.store()?.log_ranges(partitions).await;
        let ranges = ranges.map_err(|error| self.explain(error))?;
        Ok(ranges.into_iter().collect())
    }

    /// What a group has committed, stable positions only.
    pub async fn committed(
        &self,
        group: &str,
        partitions: Vec<Partition>,
    ) -> anyhow::Result<BTreeMap<Partition, Position>> {
        let committed = self.store()?.fetch_all(group, partitions).await;
        let committed = committed.map_err(|error| self.explain(error))?;
        let positions = committed.into_iter();
        Ok(positions.map(|(p, at)| (p, at.position)).collect())
    }

    /// Reads partitions.
    pub async fn read(
        &self,
        partitions: Vec<Partition>,
        from: From,
        until: Until,
    ) -> anyhow::Result<Reader> {
        let starts = match from {
            From::Earliest => partitions
                .into_iter()
                .map(|p| (p, Start::Earliest))
                .collect(),
            From::Latest => partitions.into_iter().map(|p| (p, Start::Latest)).collect(),
            From::Time(ms) => partitions
                .into_iter()
                .map(|p| (p, Start::Time(ms)))
                .collect(),
            From::Offset(offset) => {
                let start = Start::At(Position::new(offset));
                partitions.into_iter().map(|p| (p, start)).collect()
            }
            From::Last(count) => {
                let ranges = self.ranges(partitions).await?;
                let start = |(first, end): (Position, Position)| {
                    let back = end.offset().saturating_sub(count);
                    Start::At(Position::new(back).max(first))
                };
                ranges
                    .into_iter()
                    .map(|(p, range)| (p, start(range)))
                    .collect()
            }
        };
        Ok(Reader::open(self.settings.clone(), starts, until))
    }

    /// Appends records.
    pub fn sink(&self, message_timeout: Duration) -> anyhow::Result<KafkaSink> {
        let producer = ProducerSettings {
            compression: Compression::Lz4,
            linger: Duration::from_millis(2),
            message_timeout,
            batch_bytes_max: None,
            transactions: None,
        };
        Ok(KafkaSink::new(&self.settings, &producer)?)
    }
}

/// Where to begin in each partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// At the first event.
    Earliest,
    /// Behind the last.
    Latest,
    /// At an offset.
    Offset(i64),
    /// At the last so many.
    Last(i64),
    /// At the first event not older than this, epoch milliseconds.
    Time(i64),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = humantime::parse_rfc3339(text) {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            return Ok(Self::Time(
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            ));
        }
        match (text, text.parse::<i64>()) {
            ("earliest", _) => Ok(Self::Earliest),
            ("latest", _) => Ok(Self::Latest),
            (_, Ok(offset)) if offset >= 0 => Ok(Self::Offset(offset)),
            (_, Ok(back)) => Ok(Self::Last(back.saturating_neg())),
            _ => Err("give earliest, latest, an offset, -N or 2026-01-01T00:00:00Z".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!("earliest".parse(), Ok(From::Earliest));
        assert_eq!("latest".parse(), Ok(From::Latest));
        assert_eq!("0".parse(), Ok(From::Offset(0)));
        assert_eq!("-5".parse(), Ok(From::Last(5)));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(From::Time(1_000)));
        assert!("yesterday".parse::<From>().is_err());
        assert!("".parse::<From>().is_err());
    }

    #[test]
    fn an_embedded_broker_is_found_by_the_file_that_dev_leaves() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(embedded_address(folder.path()), USUAL);
        std::fs::create_dir(folder.path().join(".millrace")).unwrap();
        std::fs::write(folder.path().join(ADDRESS_FILE), "127.0.0.1:9192\n").unwrap();
        assert_eq!(embedded_address(folder.path()), "127.0.0.1:9192");
    }
}
