//! Follows the secret files of the connection while the output runs (C-3).
//!
//! A new password goes to the running clients, a new secret of the token endpoint to whoever asks
//! there. For new certificates the publisher makes a new producer as soon as the old one holds
//! nothing.

use std::sync::Arc;

use millrace_connectors::kafka::Settings;
use millrace_core::contract::block::{Block, Connection, Secret};
use millrace_service::config::Environment;
use millrace_service::secret::{self, LOOK_EVERY, Watch};
use tokio::sync::Notify;
use tracing::info;

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
            () = secrets.changed() => {
                if let Some(text) = secret::read_again(secret.as_ref(), &environment) {
                    kafka.renew(text.expose());
                }
            }
            () = files.changed() => {
                kafka.remake();
                info!("the certificates of the connection have changed");
                remake.notify_one();
            }
        }
    }
}
