//! Follows the secret files of the connection while the output runs (C-3).
//!
//! A new password goes to the running clients. For new certificates or a new secret of the token
//! endpoint the publisher makes a new producer as soon as the old one holds nothing.

use std::sync::Arc;

use millrace_connectors::kafka::{Renewal, Settings};
use millrace_core::contract::block::{Block, Connection, Secret};
use millrace_service::config::Environment;
use millrace_service::secret::{self, LOOK_EVERY, Watch};
use millrace_service::telemetry::chain;
use tokio::sync::Notify;
use tracing::{info, warn};

/// The secret of the output's connection.
pub(crate) fn of(block: &Block) -> Option<Secret> {
    match block.output_connection() {
        Connection::Kafka(kafka) => kafka.sasl.as_ref()?.secret().cloned(),
        Connection::Embedded(_) | Connection::EventHubs(_) => None,
    }
}

/// Runs until it is aborted; `remake` is told when the producer is outdated.
pub(crate) async fn follow(
    kafka: Settings,
    secret: Option<Secret>,
    environment: Environment,
    remake: Arc<Notify>,
) {
    let mut secrets = Watch::start(Watch::files(&secret), LOOK_EVERY);
    let mut files = Watch::start(kafka.tls.files(), LOOK_EVERY);
    loop {
        tokio::select! {
            () = secrets.changed() => match renewed(&kafka, secret.as_ref(), &environment) {
                Renewal::Remake => info!("the secret of the token endpoint has changed"),
                Renewal::Live | Renewal::Nothing => continue,
            },
            () = files.changed() => {
                kafka.remake();
                info!("the certificates of the connection have changed");
            }
        }
        remake.notify_one();
    }
}

fn renewed(kafka: &Settings, secret: Option<&Secret>, environment: &Environment) -> Renewal {
    let Some(secret) = secret else {
        return Renewal::Nothing;
    };
    match secret::read(secret, environment) {
        Ok(text) => {
            let renewal = kafka.renew(text.expose());
            if renewal == Renewal::Live {
                info!("the password of the connection has changed, the clients use it from now on");
            }
            renewal
        }
        Err(error) => {
            warn!(error = %chain(&error), "the changed secret cannot be read, going on with the old one");
            Renewal::Nothing
        }
    }
}
