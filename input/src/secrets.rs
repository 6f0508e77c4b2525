//! Follows the secret files of the connection while the input runs (C-3).
//!
//! A new password goes to the running clients, a new secret of the token endpoint to whoever asks
//! there. For new certificates the client is made anew: it leaves the group and joins it again.

use millrace_connectors::kafka::Settings;
use millrace_core::contract::block::Secret;
use millrace_core::intake::io::Operator;
use millrace_service::config::Environment;
use millrace_service::secret::{self, LOOK_EVERY, Watch};
use tokio::sync::mpsc;
use tracing::info;

use crate::driver::Command;

/// Runs until it is aborted.
pub(crate) async fn follow(
    kafka: Settings,
    secret: Option<Secret>,
    environment: Environment,
    commands: mpsc::Sender<Command>,
) {
    let mut secrets = Watch::start(Watch::files(&secret), LOOK_EVERY);
    let mut files = Watch::start(kafka.tls.files(), LOOK_EVERY);
    loop {
        tokio::select! {
            () = secrets.changed() => {
                if let Some(text) = secret::read_again(secret.as_ref(), &environment) {
                    kafka.renew(text.expose());
                }
                continue;
            }
            () = files.changed() => kafka.remake(),
        }
        let reason = "the certificates of the connection have changed";
        info!("{reason}");
        let renew = Operator::Renew {
            reason: reason.to_owned(),
        };
        if commands.send(Command::Operate(renew)).await.is_err() {
            return;
        }
    }
}
