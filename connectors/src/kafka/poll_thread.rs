//! The thread of a source: one client after the other, and the back-off between them.
//!
//! Nothing else runs on it, because commit callbacks and rebalances arrive there, and because
//! the destruction of a client may take as long as a session (R4c).

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use millrace_core::intake::io::{Commit, CommitId, StartAt};
use millrace_core::position::{Partition, Position};
use rdkafka::consumer::Consumer;
use tokio::sync::oneshot;

use super::rebalance::{Client, MemberContext, SharedClient};
use super::session::{Ending, Session, Surroundings};
use super::settings::{self, Error, GroupSettings, Role, Settings};
use crate::Happening;

/// How soon the making of a client is tried again.
const REMAKE: Duration = Duration::from_secs(1);

/// What a source asks of its thread.
#[derive(Debug)]
pub(super) enum Command {
    Assign(Vec<StartAt>),
    Unassign(Vec<Partition>),
    Seek(Partition, Position),
    Commit(Commit),
    ReadGroupMetadata(CommitId, Vec<Partition>),
    Rejoin,
    Close(Option<oneshot::Sender<()>>),
}

/// Makes the first client and starts the thread, which ends on [`Command::Close`].
pub(super) fn start(
    settings: Settings,
    group: GroupSettings,
    around: Surroundings,
) -> Result<(), Error> {
    let client = join(&settings, &group, &around)?;
    std::thread::Builder::new()
        .name("millrace-poll".to_owned())
        .spawn(move || run(&settings, &group, &around, client))
        .map_err(|error| Error::Client(format!("no thread can be started: {error}")))?;
    Ok(())
}

fn run(settings: &Settings, group: &GroupSettings, around: &Surroundings, first: SharedClient) {
    let mut client = first;
    loop {
        let closed = match Session::new(around, client).run() {
            Ending::Close(closed) => closed,
            Ending::Rejoin => match join_again(settings, group, around) {
                Ok(next) => {
                    around.mailbox.rejoined();
                    client = next;
                    continue;
                }
                Err(closed) => closed,
            },
        };
        if let Some(closed) = closed {
            // The driver may have stopped waiting.
            let _gone = closed.send(());
        }
        return;
    }
}

/// Makes clients until one can be made, or until the driver is done.
fn join_again(
    settings: &Settings,
    group: &GroupSettings,
    around: &Surroundings,
) -> Result<SharedClient, Option<oneshot::Sender<()>>> {
    loop {
        match join(settings, group, around) {
            Ok(client) => return Ok(client),
            // It was made from the same settings before; a file of theirs may be missing now.
            Err(error) => around
                .mailbox
                .push_once(Happening::Misconfigured(error.to_string())),
        }
        around.mailbox.bell.wait(REMAKE);
        loop {
            match around.commands.try_recv() {
                Ok(Command::Close(closed)) => return Err(closed),
                Err(TryRecvError::Disconnected) => return Err(None),
                Err(TryRecvError::Empty) => break,
                // There is nothing that they could be about.
                Ok(
                    Command::Assign(_)
                    | Command::Unassign(_)
                    | Command::Seek(..)
                    | Command::Commit(_)
                    | Command::ReadGroupMetadata(..)
                    | Command::Rejoin,
                ) => {}
            }
        }
    }
}

fn join(
    settings: &Settings,
    group: &GroupSettings,
    around: &Surroundings,
) -> Result<SharedClient, Error> {
    let context = MemberContext::new(settings);
    let config = settings::client_config(settings, Role::Member(group))?;
    let mut client: Client = config
        .create_with_context(context)
        .map_err(|error| Error::Client(error.to_string()))?;
    let bell = Arc::clone(&around.mailbox);
    client.set_nonempty_callback(move || bell.bell.ring());
    let topics: Vec<&str> = group.topics.iter().map(String::as_str).collect();
    client
        .subscribe(&topics)
        .map_err(|error| Error::Client(error.to_string()))?;
    Ok(Arc::new(client))
}
