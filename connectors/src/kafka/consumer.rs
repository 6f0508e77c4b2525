//! A member of a consumer group as a [`Source`].
//!
//! The client lives on a thread of its own (`poll_thread.rs`); this is the handle. No call here
//! waits for a broker.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use millrace_core::intake::io::{Commit, CommitId, StartAt};
use millrace_core::limits::SOURCE_COMMANDS_QUEUED_MAX;
use millrace_core::position::{Partition, Position};
use tokio::sync::oneshot;

use super::ends::{Ends, LogEnds};
use super::poll_thread::{self, Command};
use super::session::Surroundings;
use super::settings::{Error, GroupSettings, Settings};
use super::token_reader::TokenReader;
use crate::mailbox::Mailbox;
use crate::{Happening, Source};

/// Reads topics as a member of a consumer group.
#[derive(Debug)]
pub struct KafkaSource {
    commands: SyncSender<Command>,
    mailbox: Arc<Mailbox>,
    tokens: TokenReader,
    turns: Arc<AtomicU64>,
    ends: Ends,
}

impl KafkaSource {
    /// Makes the client and starts to join the group. Fails only if the settings are unusable;
    /// brokers that cannot be reached are a happening.
    pub fn new(settings: Settings, group: GroupSettings) -> Result<Self, Error> {
        let mailbox = Arc::new(Mailbox::default());
        let turns = Arc::new(AtomicU64::new(0));
        let ends = Ends::default();
        let tokens =
            TokenReader::start(settings.clone(), &group, Arc::clone(&mailbox), ends.clone());
        let (commands, receiver) = sync_channel(SOURCE_COMMANDS_QUEUED_MAX);
        let around = Surroundings {
            commands: receiver,
            mailbox: Arc::clone(&mailbox),
            tokens: tokens.clone(),
            turns: Arc::clone(&turns),
            ends: ends.clone(),
            silence_max: silence_max(&settings),
            unreachable: Cell::new(false),
            settings: settings.clone(),
            unauthenticated: Cell::new(false),
        };
        poll_thread::start(settings, group, around)?;
        Ok(Self {
            commands,
            mailbox,
            tokens,
            turns,
            ends,
        })
    }

    /// Counts the turns of the poll thread, for liveness (D-H1): it grows at least once a second
    /// unless the client is being destroyed.
    pub fn turns(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.turns)
    }

    /// Ends of the logs of the partitions that are ours; for lag.
    pub fn log_ends(&self) -> LogEnds {
        LogEnds {
            ends: self.ends.clone(),
        }
    }

    fn command(&self, command: Command) {
        // The thread takes commands every turn; it is gone only after `close`.
        if self.commands.send(command).is_ok() {
            self.mailbox.bell.ring();
        }
    }
}

impl Source for KafkaSource {
    async fn next(&mut self) -> Happening {
        self.mailbox.next().await
    }

    fn read_tokens(&mut self, partition: Partition) {
        self.tokens.read(partition);
    }

    fn assign(&mut self, starts: Vec<StartAt>) {
        self.command(Command::Assign(starts));
    }

    fn unassign(&mut self, partitions: Vec<Partition>) {
        self.command(Command::Unassign(partitions));
    }

    fn seek(&mut self, partition: Partition, position: Position) {
        self.mailbox.seek(partition.clone());
        self.command(Command::Seek(partition, position));
    }

    fn pause(&mut self, partition: Partition) {
        self.mailbox.pause(partition);
    }

    fn resume(&mut self, partition: Partition) {
        self.mailbox.resume(&partition);
    }

    fn commit(&mut self, commit: Commit) {
        self.command(Command::Commit(commit));
    }

    fn read_group_metadata(&mut self, commit: CommitId, partitions: Vec<Partition>) {
        self.command(Command::ReadGroupMetadata(commit, partitions));
    }

    fn rejoin(&mut self) {
        self.mailbox.rejoin();
        self.command(Command::Rejoin);
    }

    async fn close(&mut self) {
        let (closed, wait) = oneshot::channel();
        self.command(Command::Close(Some(closed)));
        // An error means that the thread has ended already.
        let _ended = wait.await;
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        // The thread leaves the group by itself; nobody waits for it here.
        self.command(Command::Close(None));
    }
}

/// D-G7: 0.8 of `max.poll.interval.ms`.
fn silence_max(settings: &Settings) -> Duration {
    settings
        .properties
        .iter()
        .filter(|(property, _)| property == "max.poll.interval.ms")
        .find_map(|(_, value)| value.parse().ok())
        .map_or(Duration::from_secs(300), Duration::from_millis)
        .mul_f64(0.8)
}
