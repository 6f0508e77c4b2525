//! The input proxy: reads events, calls the app, gives results to the output proxy, commits.
//!
//! Start order (D-S1): the output is connected, the app is ready, then the group is joined.
//! Everything about an event is decided in `millrace_core::intake`; see [`driver`].
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_connectors::StoreError;
use millrace_connectors::kafka::{self, GroupSettings, KafkaSource, KafkaTokenStore, LogEnds};
use millrace_core::contract::app::{OFFER_PATH, Offer, Refusal};
use millrace_core::contract::block::{
    Block, Connection, Guarantee, HealthCheck, InputSource, KafkaInput, Secret, Transport,
};
use millrace_core::contract::publish::{self, Hello, Mode};
use millrace_core::intake::Intake;
use millrace_core::position::{Partition, Position};
use millrace_core::token::ReleaseId;
use millrace_service::admin::{self, Access, Admin, Health, Readiness};
use millrace_service::config::Environment;
use millrace_service::http::{Protocol, Server};
use millrace_service::schema::{self, Schemas};
use millrace_service::shutdown::{DRAIN_DEADLINE, Shutdown};
use millrace_service::telemetry::{Logs, Metrics, chain, usage};
use millrace_service::time::clock;
use millrace_service::{random, secret};
use tokio::sync::mpsc;
use tracing::{info, warn};

mod admin_pages;
mod app_client;
mod driver;
mod metrics;
mod publish_client;
mod secrets;
mod settings;
mod standalone;
mod tap;

use self::admin_pages::Desk;
use self::app_client::{AppClient, Around};
use self::driver::{Command, Driver};
pub use self::publish_client::Address;
use self::publish_client::Publisher;
use self::standalone::Starter;
use self::tap::Tap;

/// What the client ids of every member of ours begin with, whatever its version.
const OUR_CLIENTS: &str = "millrace-";

/// Pause between two looks at what has to be there before the start.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A start that waits says so this often.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What a process is told besides the block document.
#[derive(Clone, Debug)]
pub struct Config {
    /// The block, without embedded connections.
    pub block: Arc<Block>,
    /// The release of the app (`MILLRACE_RELEASE`).
    pub release: ReleaseId,
    /// `MILLRACE_POD`.
    pub pod: String,
    /// Where secrets by `{env: NAME}` are looked up.
    pub environment: Environment,
    /// Where the output proxy listens.
    pub output: Address,
    /// Where the app listens.
    pub app: Server,
    /// Its logs, if they can be changed while it runs.
    pub logs: Option<Logs>,
    /// Seed tokens: there is no controller (D-G12).
    pub standalone: bool,
}

impl Config {
    /// What the document alone says about addresses.
    pub fn new(
        block: Arc<Block>,
        release: ReleaseId,
        pod: String,
        environment: Environment,
    ) -> Self {
        let socket = block.publish.socket.clone();
        Self {
            output: socket.map_or(Address::Port(block.publish.port.number), |path: PathBuf| {
                Address::Socket(path)
            }),
            app: match block.app.contract.transport {
                Transport::Tcp | Transport::Http2 => Server::local(block.app.port.number),
                Transport::UnixSocket => Server::Socket(block.app.socket.clone()),
            },
            logs: None,
            standalone: false,
            block,
            release,
            pod,
            environment,
        }
    }
}

/// Why the input proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document asks for what this version does not have.
    #[error("this block needs what this version does not have:\n{0}")]
    NotInThisVersion(String),
    /// The connection cannot be used.
    #[error("connection `{0}` cannot be used")]
    Connection(String, #[source] kafka::DocumentError),
    /// librdkafka does not take the settings.
    #[error("the Kafka client of connection `{0}` cannot be made")]
    Client(String, #[source] kafka::Error),
    /// The admin port does not open.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The input topic is not there and may not be created.
    #[error(
        "topic `{0}` does not exist; create it, or set topics.create: Missing (the input waits for \
         nobody to create it while this is a typing error)"
    )]
    Topic(String),
    /// Tokens could not be seeded.
    #[error(transparent)]
    Seed(#[from] standalone::Error),
    /// Correlations of push mode cannot be made.
    #[error("the system gives no random bits")]
    Random(#[source] std::io::Error),
    /// The app's address cannot be used.
    #[error("the address of the app cannot be used")]
    App(#[source] millrace_service::http::Error),
    /// A schema cannot be used.
    #[error("{}", .0.iter().map(|error| chain(error).to_string()).collect::<Vec<_>>().join("\n"))]
    Schema(Vec<schema::Error>),
    /// The app says that it does not do what the block asks for.
    #[error(
        "the app does not fit this block: GET {OFFER_PATH} of the app says otherwise; change the \
         key or the app:\n{}",
        .0.iter().map(|refusal| format!("  {refusal}")).collect::<Vec<_>>().join("\n")
    )]
    Refused(Vec<Refusal>),
}

/// Runs until somebody asks for the end and everything open has ended. `listening` is told where
/// the admin port is.
///
/// # Errors
/// Only for what a person has to change; brokers, app and output that are away are waited for.
pub async fn run(
    config: Config,
    shutdown: Shutdown,
    listening: impl FnOnce(SocketAddr) + Send,
) -> Result<(), Error> {
    let block = Arc::clone(&config.block);
    refuse_what_is_later(&block)?;
    let schemas = Arc::new(Schemas::load(&block).map_err(Error::Schema)?);
    let InputSource::Kafka(input) = &block.input.source else {
        unreachable!("refused above: this version reads over the Kafka protocol");
    };
    let kafka = connection(&config, input)?;
    let metrics = Metrics::new(block.identity.name(), config.release.as_str(), "input");
    let health = Health::new();
    let (commands, receiver) = mpsc::channel(driver::COMMANDS_QUEUED_MAX);
    let tap = Tap::new();
    let desk = Desk {
        driver: commands.clone(),
        document: block.redacted(),
        shutdown: shutdown.clone(),
        tap: tap.clone(),
        tap_payloads: block.admin.tap_payloads,
        ordering: settings::ordering(&block),
    };
    let state = Arc::new(std::sync::Mutex::new(None));
    let latest = Arc::clone(&state);
    metrics.on_scrape(move |scrape| {
        if let Some(state) = &*latest.lock().expect("no holder panics") {
            metrics::read(state, clock(), scrape);
        }
    });
    if let Some(tokens) = kafka.auth_tokens.clone() {
        metrics.show_auth_token(&input.connection, move || tokens.left());
    }
    let calls = metrics::CallMetrics::new(&metrics);
    let bind = block.admin.bind;
    let listener = admin::bind(bind, block.admin.input_port.number).await?;
    if let Ok(address) = listener.local_addr() {
        listening(address);
    }
    let pages = Admin {
        access: Access {
            bind,
            token: block.admin.token.clone(),
            environment: config.environment.clone(),
            drain_token: drain_token(&config.environment),
        },
        health: health.clone(),
        metrics,
        shutdown: shutdown.clone(),
        logs: config.logs.clone(),
        v1: admin_pages::routes(desk.clone()),
    };
    let ended = shutdown.clone();
    let pages = tokio::spawn(admin::serve(listener, pages, async move {
        ended.when_drained().await
    }));
    health.has_started();
    info!(
        event = "input.lifecycle.start",
        "the input proxy has started"
    );
    let snapshots = tokio::spawn(keep_snapshots(desk, state));
    let secret = input_secret(&block);
    let environment = config.environment.clone();
    let following = secrets::follow(kafka.clone(), secret, environment, commands.clone());
    let following = tokio::spawn(following);
    let drain = tokio::spawn(pass_on_drain(shutdown.clone(), commands));
    let work = Work {
        config: &config,
        input,
        kafka,
        health: health.clone(),
        calls,
        schemas,
        tap,
    };
    let result = tokio::select! {
        result = work.run(receiver, &shutdown) => result,
        () = shutdown.when_at_once() => Ok(()),
    };
    shutdown.drained();
    snapshots.abort();
    following.abort();
    drain.abort();
    // Its last answers belong to whoever asked.
    let _served = pages.await;
    info!(event = "input.lifecycle.stop", "the input proxy has ended");
    result
}

/// What has to be there before the group is joined.
struct Prepared {
    publisher: Publisher,
    app: AppClient,
    offer: Option<Offer>,
    cluster: String,
}

/// Everything between the ports being open and the end.
struct Work<'a> {
    config: &'a Config,
    input: &'a KafkaInput,
    kafka: kafka::Settings,
    health: Health,
    calls: metrics::CallMetrics,
    schemas: Arc<Schemas>,
    tap: Tap,
}

impl Work<'_> {
    async fn run(
        self,
        commands: mpsc::Receiver<Command>,
        shutdown: &Shutdown,
    ) -> Result<(), Error> {
        let prepared = tokio::select! {
            prepared = self.prepare() => prepared?,
            () = shutdown.requested() => return Ok(()),
        };
        let Prepared {
            publisher,
            app,
            offer,
            cluster,
        } = prepared;
        let config = self.config;
        let block = &config.block;
        let names = settings::names(block, &config.release, &config.pod, &cluster);
        let bytes_max = block
            .flow
            .max_in_flight_bytes
            .of(usage::memory_limit_bytes());
        let seed = u64::try_from(clock().boot.as_nanos()).unwrap_or(u64::MAX)
            ^ u64::from(std::process::id());
        let batch_max = offer.and_then(|offer| offer.max_batch);
        let secret = random::bits().map_err(Error::Random)?;
        let told = settings::intake(block, names, bytes_max, batch_max, secret);
        let intake = Intake::new(told, seed);
        let group = GroupSettings {
            group: block.identity.group(config.release.as_str()),
            registry: block.identity.registry_group(),
            topics: self.input.topics.clone(),
            session_timeout: block.delivery.session_timeout,
        };
        info!(group = %group.group, topics = ?group.topics, "joining the group");
        let source = KafkaSource::new(self.kafka.clone(), group).map_err(|e| self.client(e))?;
        self.health.set(Readiness::Ready);
        let (turns, source_ends) = (source.turns(), source.log_ends());
        let driver = Driver {
            source,
            intake,
            app,
            publisher,
            commands,
            watch: Watch {
                health: self.health.clone(),
                log_ends: source_ends,
                turns,
                last: u64::MAX,
            },
            clock,
            reachable: true,
        };
        driver.run().await;
        Ok(())
    }

    fn client(&self, error: kafka::Error) -> Error {
        Error::Client(self.input.connection.clone(), error)
    }

    /// Waits for output, brokers, topics and app, in this order (D-S1).
    async fn prepare(&self) -> Result<Prepared, Error> {
        let config = self.config;
        let block = &config.block;
        let hello = Hello {
            version: publish::VERSION,
            block: block.identity.as_str().to_owned(),
            release: config.release.as_str().to_owned(),
            pod: config.pod.clone(),
            session: u64::try_from(clock().boot.as_micros()).unwrap_or(u64::MAX),
            mode: match block.delivery.guarantee {
                Guarantee::AtLeastOnce => Mode::AtLeastOnce,
                Guarantee::ExactlyOnce => Mode::ExactlyOnce,
            },
        };
        let mut publisher = Publisher::start(config.output.clone(), hello);
        self.wait("the output proxy");
        publisher.connected().await;
        let admin = kafka::Admin::connect(&self.kafka).map_err(|e| self.client(e))?;
        let brokers = format!("the brokers of connection `{}`", self.input.connection);
        let cluster = self.patiently(&brokers, || admin.cluster_id()).await?;
        let counts = self.topics(&admin, &brokers).await?;
        self.group_is_ours(&admin, &brokers).await?;
        if config.standalone {
            self.seed(&counts, &brokers).await?;
        }
        let contract = settings::calls(block, &config.release, &cluster);
        let connections = usize::try_from(block.app.contract.max_in_flight).unwrap_or(usize::MAX);
        let app = AppClient::new(
            &config.app,
            match block.app.contract.transport {
                Transport::Tcp | Transport::UnixSocket => Protocol::Http1,
                Transport::Http2 => Protocol::Http2,
            },
            &block.app,
            connections,
            contract,
            Around {
                metrics: self.calls.clone(),
                schemas: Arc::clone(&self.schemas),
                tap: self.tap.clone(),
            },
        )
        .map_err(Error::App)?;
        let offer = self.app_is_ready(&app).await?;
        Ok(Prepared {
            publisher,
            app,
            offer,
            cluster,
        })
    }

    /// Waits until the app is healthy, and compares what it says about itself with the block.
    async fn app_is_ready(&self, app: &AppClient) -> Result<Option<Offer>, Error> {
        let (app_at, health) = (&self.config.app, &self.config.block.app.health);
        // An app of which nothing but its port is known does not describe itself either.
        let describes = self.config.block.app.health_check == HealthCheck::Http;
        let ask = async || {
            app.healthy().await?;
            if describes {
                app.offer().await
            } else {
                Ok(None)
            }
        };
        let mut said = Said::default();
        let offer = loop {
            match ask().await {
                Ok(offer) => break offer,
                Err(message) => {
                    self.wait("the app");
                    if said.worth_saying(&message) {
                        warn!(app = %app_at, %health, error = %message, "waiting for the app to become healthy");
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        let refusals = offer
            .as_ref()
            .map(|offer| offer.refusals(&self.config.block.app.contract))
            .unwrap_or_default();
        if !refusals.is_empty() {
            return Err(Error::Refused(refusals));
        }
        info!(app = %app_at, described = offer.is_some(), "the app is healthy");
        Ok(offer)
    }

    fn wait(&self, what: &str) {
        self.health.progressed();
        self.health
            .set(Readiness::Waiting(format!("waiting for {what}")));
    }

    /// Asks until there is an answer; a refusal is told again and again, too: credentials and
    /// rights may be given at any time (D-H1).
    async fn patiently<T, F>(&self, whom: &str, ask: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut said = Said::default();
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    self.wait(whom);
                    let message = chain(&error).to_string();
                    if said.worth_saying(&message) {
                        warn!(error = %message, bootstrap = ?self.kafka.bootstrap, "waiting for {whom}");
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The input topics with their partitions; creates what is missing if it may (D-S1).
    async fn topics(
        &self,
        admin: &kafka::Admin,
        brokers: &str,
    ) -> Result<Vec<(String, i32)>, Error> {
        let block = &self.config.block;
        let names: Vec<&str> = self.input.topics.iter().map(String::as_str).collect();
        let mut said = Said::default();
        loop {
            let found = self.patiently(brokers, || admin.topics(&names)).await?;
            let missing: Vec<&str> = names
                .iter()
                .copied()
                .filter(|n| !found.contains_key(*n))
                .collect();
            if missing.is_empty() {
                return Ok(names
                    .iter()
                    .map(|n| ((*n).to_owned(), found[*n].partitions))
                    .collect());
            }
            self.wait(&format!("topic {}", missing.join(", ")));
            if block.creates_topics(block.input_connection()) {
                let partitions = i32::try_from(block.topics.partitions).unwrap_or(i32::MAX);
                let new: Vec<_> = missing.iter().map(|name| (*name, partitions)).collect();
                info!(topics = ?missing, partitions, "creating missing topics");
                self.patiently(brokers, || admin.create_topics(&new))
                    .await?;
            } else if said.worth_saying(&missing.join(",")) {
                let remedy = "create it, or set topics.create: Missing";
                warn!(topics = ?missing, remedy, "an input topic does not exist; waiting for it");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until no other program is a member of the group: it would be given partitions, and
    /// their events would be answered by nobody (D-P5).
    async fn group_is_ours(&self, admin: &kafka::Admin, brokers: &str) -> Result<(), Error> {
        let config = self.config;
        let group = config.block.identity.group(config.release.as_str());
        let mut said = Said::default();
        loop {
            let members = self.patiently(brokers, || admin.members(&group)).await?;
            let foreign: BTreeSet<String> = members
                .into_iter()
                .filter(|member| !member.client_id.starts_with(OUR_CLIENTS))
                .map(|member| format!("{} ({})", member.client_id, member.protocol))
                .collect();
            if foreign.is_empty() {
                return Ok(());
            }
            let who = foreign.into_iter().collect::<Vec<_>>().join(", ");
            self.wait(&format!(
                "group {group} to be ours alone (ForeignMembers: {who})"
            ));
            if said.worth_saying(&who) {
                let remedy = "stop them, or let them use a group of their own";
                warn!(%group, members = %who, remedy, "another program is a member of this block's group (ForeignMembers); waiting for it to leave");
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn seed(&self, topics: &[(String, i32)], brokers: &str) -> Result<(), Error> {
        let store = KafkaTokenStore::new(self.kafka.clone()).map_err(|e| self.client(e))?;
        let starter = Starter {
            store: &store,
            identity: &self.config.block.identity,
            release: &self.config.release,
            input: self.input,
        };
        for (topic, partitions) in topics {
            let mut said = Said::default();
            while let Err(error) = starter.seed(topic, *partitions).await {
                match error {
                    // A predecessor that was killed is a member until its session ends.
                    standalone::Error::Store { .. } | standalone::Error::Refused { .. } => {}
                    standalone::Error::Registry { .. } => return Err(error.into()),
                }
                self.wait(brokers);
                let message = chain(&error).to_string();
                if said.worth_saying(&message) {
                    warn!(error = %message, "seeding again");
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }
}

/// What was said last, so that a log repeats itself only now and then.
#[derive(Default)]
struct Said(Option<(String, Duration)>);

impl Said {
    fn worth_saying(&mut self, message: &str) -> bool {
        let now = clock().boot;
        let known = |(said, at): &(String, Duration)| said == message && now < *at + SAY_AGAIN;
        if self.0.as_ref().is_some_and(known) {
            return false;
        }
        self.0 = Some((message.to_owned(), now));
        true
    }
}

/// Tells the probes how the loop and the poll thread do.
struct Watch {
    health: Health,
    log_ends: LogEnds,
    turns: Arc<std::sync::atomic::AtomicU64>,
    last: u64,
}

impl driver::Watch for Watch {
    fn turned(&mut self) {
        let turns = self.turns.load(std::sync::atomic::Ordering::Relaxed);
        if turns != self.last {
            self.last = turns;
            self.health.progressed();
        }
    }

    fn log_ends(&self) -> Option<HashMap<Partition, Position>> {
        self.log_ends.get()
    }

    fn brokers(&mut self, reachable: bool, message: &str) {
        self.health.set(if reachable {
            Readiness::Ready
        } else {
            Readiness::Degraded(message.to_owned())
        });
    }
}

fn refuse_what_is_later(block: &Block) -> Result<(), Error> {
    let later = block.not_in_this_version();
    if later.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = later.iter().map(|problem| format!("  {problem}")).collect();
    Err(Error::NotInThisVersion(lines.join("\n")))
}

fn connection(config: &Config, input: &KafkaInput) -> Result<kafka::Settings, Error> {
    let client_id = format!("millrace-{}", config.block.identity.as_str());
    let password = |password: &Secret| {
        secret::read(password, &config.environment).map(|text| text.expose().to_owned())
    };
    kafka::Settings::of(config.block.input_connection(), &client_id, clock, password)
        .map_err(|error| Error::Connection(input.connection.clone(), error))
}

/// The secret of the input's connection.
fn input_secret(block: &Block) -> Option<Secret> {
    match block.input_connection() {
        Connection::Kafka(kafka) => kafka.sasl.as_ref()?.secret().cloned(),
        Connection::Embedded(_) | Connection::EventHubs(_) => None,
    }
}

/// The controller's random value per release (D-S3).
fn drain_token(environment: &Environment) -> Option<secret::SecretText> {
    let token = environment
        .get("MILLRACE_DRAIN_TOKEN")
        .filter(|token| !token.is_empty())?;
    Some(secret::SecretText::new(token.clone()))
}

/// Reads the machine's counters once a second, so that a scrape never waits for the driver.
async fn keep_snapshots(
    desk: Desk,
    latest: Arc<std::sync::Mutex<Option<millrace_core::intake::state::State>>>,
) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        match desk.state().await {
            Some(state) => *latest.lock().expect("no holder panics") = Some(state),
            None => return,
        }
    }
}

/// A request to end becomes a drain.
async fn pass_on_drain(shutdown: Shutdown, commands: mpsc::Sender<Command>) {
    shutdown.requested().await;
    // The driver has ended already if this fails.
    let _gone = commands
        .send(Command::Drain {
            deadline: DRAIN_DEADLINE,
        })
        .await;
}
