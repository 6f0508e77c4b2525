//! The output proxy: takes results from the input proxy, stores them, and says what is stored.
//!
//! It owns every producer (D-O7) and holds no release state: it obeys the stamp, the generation
//! and the lease that come with the results (R10). All decisions are in
//! `millrace_core::store`.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_connectors::kafka::{self, Admin, KafkaSink, TransactionSettings};
use millrace_core::contract::block::{Block, Content, ContractMode, Guarantee};
use millrace_core::contract::publish::Mode;
use millrace_core::limits::PUBLISH_CREDIT_BYTES;
use millrace_core::store::{Push, Settings, Store};
use millrace_service::admin::{self, Access, Health, Readiness};
use millrace_service::config;
use millrace_service::shutdown::{DRAIN_DEADLINE, Ended, Shutdown};
use millrace_service::telemetry::{Logs, Metrics, chain};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{info, warn};

mod connection;
mod fencing;
mod metrics;
mod preflight;
mod publisher;
mod push;
mod secrets;
mod server;

pub use connection::Error as ConnectionError;
pub use push::Error as PushError;
pub use server::{Address, Error as ServerError};

/// Sessions that wait to be admitted; the newest wins.
const ARRIVALS_QUEUED_MAX: usize = 4;

/// How much longer than usual a transaction waits for its input, before it is given up.
const PATIENCE: Duration = Duration::from_secs(3);
/// Posts of the app that wait for one turn of the publisher.
const POSTS_QUEUED_MAX: usize = 64;

/// What comes from around the process, not from the block document.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `MILLRACE_RELEASE`.
    pub release: String,
    /// `MILLRACE_POD`; a transactional producer fences its predecessor of the same name.
    pub pod: String,
    /// Variables that secrets may name.
    pub variables: config::Environment,
    /// The logs, if they can be changed while it runs.
    pub logs: Option<Logs>,
    /// Takes results of any block: whoever reaches this pod's own port or socket (D-P5).
    pub any_block: bool,
}

/// Where the output listens; ports that were 0 are known now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bound {
    /// For the input proxy.
    pub publish: Address,
    /// For the app, in push mode.
    pub push: Option<SocketAddr>,
    /// `/livez`, `/readyz`, `/startupz`, `/metrics`.
    pub admin: SocketAddr,
}

/// Why the output cannot run at all. What can mend itself is waited for instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document asks for what cannot be done, or a secret is missing.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The publish listener.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The push listener.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The admin listener.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// A listener does not tell its address.
    #[error("failed to read the address of a listener")]
    Address(#[source] std::io::Error),
    /// librdkafka does not take the settings.
    #[error("connections.{connection} is not usable")]
    Client {
        /// Which.
        connection: String,
        /// Why.
        #[source]
        source: kafka::Error,
    },
}

/// Runs the output proxy of `block` until `shutdown`, then stores what is still coming and
/// returns. `bound` hears where it listens, before anything waits for the broker.
///
/// # Errors
/// See [`Error`]; an unreachable broker or a missing topic is none.
pub async fn run(
    block: &Block,
    environment: Environment,
    shutdown: Shutdown,
    bound: oneshot::Sender<Bound>,
) -> Result<(), Error> {
    let broker = connection::broker(block, &environment.variables)?;
    let client = |source| Error::Client {
        connection: broker.name.clone(),
        source,
    };
    let asking = Admin::connect(&broker.settings).map_err(client)?;
    let publish = &block.publish;
    let listener = server::Listener::bind(publish.socket.as_deref(), publish.port.number).await?;
    let push_listener = match block.app.contract.mode {
        ContractMode::Push => Some(push::bind(block.app.push.port.number).await?),
        ContractMode::Reply => None,
    };
    let admin_listener = admin::bind(block.admin.bind, block.admin.output_port.number).await?;
    let addresses = Bound {
        publish: listener.address().map_err(Error::Address)?,
        push: push_listener
            .as_ref()
            .map(tokio::net::TcpListener::local_addr)
            .transpose()
            .map_err(Error::Address)?,
        admin: admin_listener.local_addr().map_err(Error::Address)?,
    };
    info!(
        event = "output.lifecycle.start",
        publish = ?addresses.publish,
        push = ?addresses.push,
        admin = %addresses.admin,
        "the output proxy listens"
    );

    let health = Health::new();
    let metrics = Metrics::new(block.identity.name(), &environment.release, "output");
    let snapshot = metrics::Snapshot::default();
    snapshot.show_on(&metrics, &broker.output.dead_letter);
    if let Some(tokens) = broker.settings.auth_tokens.clone() {
        metrics.show_auth_token(&broker.name, move || tokens.left());
    }
    let ports = admin::Admin {
        access: Access {
            bind: block.admin.bind,
            token: block.admin.token.clone(),
            environment: environment.variables.clone(),
            // `/drain` is the input's (D-S3).
            drain_token: None,
        },
        health: health.clone(),
        metrics,
        shutdown: shutdown.clone(),
        logs: environment.logs.clone(),
        v1: axum::Router::new(),
    };
    let (end, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(admin::serve(admin_listener, ports, async {
        // The sender ends with `run`, whichever way that ends.
        drop(ended.await);
    }));
    health.has_started();
    // Whoever does not want to know has dropped the receiver.
    drop(bound.send(addresses));

    let (arrivals, arriving) = mpsc::channel(ARRIVALS_QUEUED_MAX);
    let accepting = tokio::spawn(server::serve(listener, arrivals));
    let remake = Arc::new(Notify::new());
    let following = tokio::spawn(secrets::follow(
        broker.settings.clone(),
        secrets::of(block),
        environment.variables.clone(),
        Arc::clone(&remake),
    ));
    let work = async {
        let limits = tokio::select! {
            limits = preflight::wait(&asking, block, &broker, &health) => limits,
            () = shutdown.requested() => return Ok(()),
        };
        drop(asking);
        let mut producer = broker.producer.clone();
        producer.transactions = transactions(block, &environment);
        if let Some(transactions) = &producer.transactions {
            tokio::select! {
                () = fencing::proved(block, &broker, transactions, &health) => {}
                () = shutdown.requested() => return Ok(()),
            }
        }
        let mode = match producer.transactions {
            Some(_) => Mode::ExactlyOnce,
            None => Mode::AtLeastOnce,
        };
        producer.batch_bytes_max = Some(
            limits
                .output
                .min(limits.dead_letter)
                .min(limits.verification),
        );
        let mut store = Store::new(Settings {
            mode,
            transaction_open_max: block.delivery.transaction.interval * 2 + PATIENCE,
            block: (!environment.any_block).then(|| block.identity.as_str().to_owned()),
            release: environment.release.clone(),
            output: broker.output.topic.as_str().into(),
            dead_letter: broker.output.dead_letter.as_str().into(),
            verification: broker.output.verification.as_str().into(),
            credit: PUBLISH_CREDIT_BYTES,
            push: push_listener.is_some().then_some(Push {
                correlate: block.app.push.correlate,
                allow_uncorrelated: block.app.push.allow_uncorrelated,
                copies: block.app.push.copies.clone(),
            }),
        });
        let largest = limits.output;
        store.connected(limits);
        let make = || KafkaSink::new(&broker.settings, &producer);
        let mut publisher =
            publisher::Publisher::new(store, make, health.clone(), snapshot, remake)
                .map_err(client)?
                .with_tokens(broker.settings.auth_tokens.clone());
        tokio::select! {
            () = publisher.prepare() => {}
            () = shutdown.requested() => return Ok(()),
        }
        health.set(Readiness::Ready);
        let (posts, posted) = mpsc::channel(POSTS_QUEUED_MAX);
        let takes = push::Takes {
            value_bytes_max: usize::try_from(largest).unwrap_or(usize::MAX),
            cloud_events: block.app.contract.content == Content::CloudEvents,
        };
        let posting =
            push_listener.map(|listener| tokio::spawn(push::serve(listener, takes, posts)));
        publisher.run(arriving, posted, &shutdown).await;
        if let Some(posting) = posting {
            posting.abort();
        }
        Ok(())
    };
    let result = match shutdown.run(Box::pin(work), DRAIN_DEADLINE).await {
        Ended::Done(result) => result,
        Ended::Late => {
            warn!(
                "the drain took too long; results that are not stored are made again from their events"
            );
            Ok(())
        }
        Ended::AtOnce => Ok(()),
    };
    shutdown.drained();
    accepting.abort();
    following.abort();
    drop(end);
    if let Ok(Err(error)) = serving.await {
        warn!(error = %chain(&error), "the admin port broke");
    }
    info!(
        event = "output.lifecycle.stop",
        "the output proxy has ended"
    );
    result
}

/// How the producer is known, with exactly-once (D-E2): one per pod, block and release.
fn transactions(block: &Block, environment: &Environment) -> Option<TransactionSettings> {
    match block.delivery.guarantee {
        Guarantee::AtLeastOnce => None,
        Guarantee::ExactlyOnce => Some(TransactionSettings {
            id: format!(
                "{}.{}",
                block.identity.group(&environment.release),
                environment.pod
            ),
            timeout: block.delivery.transaction.timeout,
        }),
    }
}
