//! What `millrace check --connect` asks brokers and app before a block starts there.
//!
//! Every question is asked, so that one run shows everything that is missing.

use std::time::Duration;

use millrace_connectors::TokenStore as _;
use millrace_core::contract::block::{
    Block, InputSource, KafkaInput, KafkaOutput, OutputSink, Transport,
};
use millrace_core::intake::io::{CommitOutcome, Committed};
use millrace_core::limits::COMMIT_METADATA_BYTES_MAX;
use millrace_core::position::{Partition, Position};
use millrace_service::http::{
    Client, Error as HttpError, Protocol, Request, Response, Server, Settings,
};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::chain;
use crate::connect::{Brokers, Cluster, Document};
use crate::http::Address;

/// How long the app may take to say that it is ready (app-contract.md, limits).
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a coordinator may be loading.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How the client ids of our own members begin (F-26).
const OURS: &str = "millrace";

/// The answer to one question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What was asked.
    pub name: &'static str,
    /// How it looks.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub detail: String,
}

/// How something looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// The block would start, but somebody should know.
    Warned,
    /// The block would not start, or not run as it should.
    Failed,
}

/// Asks everything. `app`: `None` asks no app, `Some(None)` the one of the document.
pub async fn run(
    document: &Document,
    brokers: &Brokers,
    app: Option<Option<Address>>,
) -> anyhow::Result<Vec<Check>> {
    let block = &document.block;
    let (InputSource::Kafka(input), OutputSink::Kafka(output)) =
        (&block.input.source, &block.output.sink)
    else {
        anyhow::bail!("this version checks connections to Kafka only");
    };
    let mut preflight = Preflight {
        from: brokers.open(Some((document, block.input_connection())))?,
        to: brokers.open(Some((document, block.output_connection())))?,
        release: document.release().map(str::to_owned),
        block,
        input,
        output,
        checks: Vec::new(),
    };
    if preflight.reachable().await {
        let partitions = preflight.topics().await;
        preflight.sizes().await;
        preflight.members().await;
        if let Some(first) = partitions.first() {
            preflight.metadata(first).await;
        }
    }
    if let Some(address) = app {
        preflight.app(address).await;
    }
    Ok(preflight.checks)
}

struct Preflight<'a> {
    from: Cluster,
    to: Cluster,
    release: Option<String>,
    block: &'a Block,
    input: &'a KafkaInput,
    output: &'a KafkaOutput,
    checks: Vec<Check>,
}

impl Preflight<'_> {
    fn add(&mut self, name: &'static str, verdict: Verdict, detail: impl Into<String>) {
        self.checks.push(Check {
            name,
            verdict,
            detail: detail.into(),
        });
    }

    async fn reachable(&mut self) -> bool {
        let mut all = true;
        for (name, cluster) in [("input brokers", &self.from), ("output brokers", &self.to)] {
            let (verdict, detail) = match cluster.id().await {
                Ok(id) => (
                    Verdict::Passed,
                    format!("cluster {id} at {}", cluster.address()),
                ),
                Err(error) => {
                    all = false;
                    (Verdict::Failed, chain(error.as_ref()))
                }
            };
            self.checks.push(Check {
                name,
                verdict,
                detail,
            });
        }
        all
    }

    /// Gives back the partitions of the first input topic.
    async fn topics(&mut self) -> Vec<Partition> {
        let mut first = Vec::new();
        let mut most = 0;
        for topic in &self.input.topics {
            let found = self.topic("input topic", topic, true).await;
            most = most.max(found.len());
            if first.is_empty() {
                first = found;
            }
        }
        let (output, dead_letter) = (self.output.topic.clone(), self.output.dead_letter.clone());
        self.topic("output topic", &output, false).await;
        let dead = self.topic("dead-letter topic", &dead_letter, false).await;
        if !dead.is_empty() && dead.len() < most {
            let detail = format!(
                "`{dead_letter}` has {} partitions, the input {most}; dead letters of different \
                 partitions share one",
                dead.len()
            );
            self.add("dead-letter partitions", Verdict::Warned, detail);
        }
        first
    }

    async fn topic(&mut self, name: &'static str, topic: &str, of_input: bool) -> Vec<Partition> {
        let (cluster, connection) = if of_input {
            (&self.from, self.block.input_connection())
        } else {
            (&self.to, self.block.output_connection())
        };
        let created = self.block.creates_topics(connection);
        match cluster.partitions(topic).await {
            Ok(Some(partitions)) => {
                let detail = format!("`{topic}` has {} partitions", partitions.len());
                self.add(name, Verdict::Passed, detail);
                return partitions;
            }
            Ok(None) if created => {
                let detail = format!(
                    "`{topic}` does not exist yet; it is created with {} partitions",
                    self.block.topics.partitions
                );
                self.add(name, Verdict::Passed, detail);
            }
            Ok(None) => {
                let detail = format!(
                    "`{topic}` does not exist at {}; create it, or set topics.create: Missing",
                    cluster.address()
                );
                self.add(name, Verdict::Failed, detail);
            }
            Err(error) => {
                let detail = format!("`{topic}`: {}", chain(error.as_ref()));
                self.add(name, Verdict::Failed, detail);
            }
        }
        Vec::new()
    }

    /// An event that fits into its topic has to fit into the dead-letter topic (D-D4).
    async fn sizes(&mut self) {
        let topics: Vec<&str> = self.input.topics.iter().map(String::as_str).collect();
        let outputs = [self.output.topic.as_str(), self.output.dead_letter.as_str()];
        let from = self.from.admin().max_message_bytes(&topics).await;
        let to = self.to.admin().max_message_bytes(&outputs).await;
        let (Ok(from), Ok(to)) = (from, to) else {
            let detail = "the brokers do not tell max.message.bytes";
            self.add("size limits", Verdict::Warned, detail);
            return;
        };
        let largest = from.values().max();
        let dead_letter = to.get(&self.output.dead_letter);
        match (largest, dead_letter) {
            (Some(largest), Some(dead_letter)) if dead_letter < largest => {
                let detail = format!(
                    "max.message.bytes of `{}` is {dead_letter}; events of up to {largest} bytes \
                     may become dead letters and hold their partitions then",
                    self.output.dead_letter
                );
                self.add("size limits", Verdict::Warned, detail);
            }
            _ => {
                let told = |topic: &str, bytes: Option<&u64>| {
                    let bytes = bytes.map_or_else(|| "unknown".to_owned(), u64::to_string);
                    format!("`{topic}` {bytes}")
                };
                let output = told(&self.output.topic, to.get(&self.output.topic));
                let dead_letter = told(&self.output.dead_letter, dead_letter);
                let detail = format!("max.message.bytes: {output}, {dead_letter}");
                self.add("size limits", Verdict::Passed, detail);
            }
        }
        if let (Some(configured), Some(limit)) = (self.output.max_bytes, to.get(&self.output.topic))
            && configured > *limit
        {
            let detail = format!(
                "output.kafka.maxBytes is {configured}, but `{}` takes {limit}",
                self.output.topic
            );
            self.add("size limits", Verdict::Failed, detail);
        }
    }

    /// A foreign member would take partitions away without a word (D-P5, F-26).
    async fn members(&mut self) {
        let Some(release) = self.release.clone() else {
            return;
        };
        let group = self.block.identity.group(&release);
        match self.from.admin().members(&group).await {
            Ok(members) => {
                let foreign = |id: &&String| !id.starts_with(OURS);
                let clients: Vec<String> = members.into_iter().map(|m| m.client_id).collect();
                let strangers: Vec<&String> = clients.iter().filter(foreign).collect();
                if strangers.is_empty() {
                    let detail = format!("`{group}` has {} members, all ours", clients.len());
                    self.add("group members", Verdict::Passed, detail);
                } else {
                    let detail = format!("`{group}` is used by others: {strangers:?}; stop them");
                    self.add("group members", Verdict::Failed, detail);
                }
            }
            Err(error) => {
                let detail = chain(self.from.explain(error).as_ref());
                self.add("group members", Verdict::Failed, detail);
            }
        }
    }

    /// Tokens and ledgers live in commit metadata, so it has to come back unchanged (E2, D-W8).
    async fn metadata(&mut self, partition: &Partition) {
        const NAME: &str = "commit metadata";
        let group = self.block.identity.group("probe");
        let written = Committed {
            position: Position::START,
            metadata: "m".repeat(COMMIT_METADATA_BYTES_MAX),
        };
        let (verdict, detail) = match self.round_trip(&group, partition, &written).await {
            Ok(Some(read)) if read == written => (
                Verdict::Passed,
                format!("{COMMIT_METADATA_BYTES_MAX} bytes come back unchanged"),
            ),
            Ok(_) => (
                Verdict::Failed,
                format!("the brokers do not keep the metadata of commits (group `{group}`)"),
            ),
            Err(why) => (
                Verdict::Failed,
                format!(
                    "{COMMIT_METADATA_BYTES_MAX} bytes were not committed to `{group}`: {why}; \
                     see offset.metadata.max.bytes of the brokers"
                ),
            ),
        };
        self.add(NAME, verdict, detail);
    }

    async fn round_trip(
        &self,
        group: &str,
        partition: &Partition,
        written: &Committed,
    ) -> Result<Option<Committed>, String> {
        let store = self.from.store().map_err(|error| chain(error.as_ref()))?;
        let deadline = Instant::now() + COMMIT_TIMEOUT;
        loop {
            let offsets = vec![(partition.clone(), written.clone())];
            let outcome = store.commit_if_empty(group, offsets).await;
            match outcome.map_err(|error| error.to_string())? {
                CommitOutcome::Done => break,
                CommitOutcome::Retriable(_) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(200)).await;
                }
                CommitOutcome::Retriable(why)
                | CommitOutcome::NotOwner(why)
                | CommitOutcome::Unknown(why) => return Err(why),
            }
        }
        let read = store.fetch(group, partition).await;
        read.map_err(|error| error.to_string())
    }

    async fn app(&mut self, address: Option<Address>) {
        let app = &self.block.app;
        let (own, protocol) = match app.contract.transport {
            Transport::Tcp => (Server::local(app.port.number), Protocol::Http1),
            Transport::Http2 => (Server::local(app.port.number), Protocol::Http2),
            Transport::UnixSocket => (Server::Socket(app.socket.clone()), Protocol::Http1),
        };
        let server = address.map_or(own, |address| address.server());
        let health = &app.health;
        let place = match &server {
            Server::Tcp { .. } => format!("http://{server}{health}"),
            Server::Socket(path) => format!("{health} at {}", path.display()),
        };
        let ask = async || -> Result<Response, HttpError> {
            let client = Client::new(Settings::new(server.clone(), 1, 1 << 20).with(protocol))?;
            client
                .send(Request::get(health.clone()), HEALTH_TIMEOUT)
                .await
        };
        let (verdict, detail) = match ask().await {
            Ok(answer) if (200..300).contains(&answer.status) => {
                (Verdict::Passed, format!("{place} answers"))
            }
            Ok(answer) => (
                Verdict::Failed,
                format!("{place} answers {}", answer.status),
            ),
            Err(error) => (
                Verdict::Failed,
                format!(
                    "{place}: {}; start the app, or leave it out with --no-app",
                    chain(&error)
                ),
            ),
        };
        self.add("app health", verdict, detail);
    }
}
