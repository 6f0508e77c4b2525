//! Talks to logs: reads events, commits positions with tokens, appends records.
//!
//! The traits below have two users each: Kafka (`kafka`) and a log in memory with faults
//! (`memory`). They promise less than a client library could: a command never waits, and its
//! end comes back as a happening, in the order in which things really happened.
#![deny(unsafe_code)]

pub mod kafka;

pub mod memory;

pub mod conformance;

mod mailbox;

use std::future::Future;

use bytes::Bytes;
use millrace_core::contract::publish::GroupMetadata;
use millrace_core::intake::io::{
    Commit, CommitId, CommitOutcome, Committed, Fetched, Membership, StartAt, TokensRead,
};
use millrace_core::position::{Partition, Position};

/// Something that a source tells its driver.
#[derive(Debug)]
pub enum Happening {
    /// A rebalance gave us these; nothing is assigned in the client until [`Source::assign`].
    Assigned {
        /// What was added.
        partitions: Vec<Partition>,
        /// Who we are now.
        membership: Membership,
    },
    /// A rebalance wants these back; nothing is unassigned until [`Source::unassign`].
    Revoking(Vec<Partition>),
    /// These are gone already, and are unassigned.
    Lost(Vec<Partition>),
    /// Records.
    Fetched(Vec<Fetched>),
    /// The position to read next is not in the log (D-G10).
    OutOfRange {
        /// Where.
        partition: Partition,
        /// First position of the log.
        log_start: Position,
        /// End of the log.
        log_end: Position,
    },
    /// Answer to [`Source::read_tokens`].
    TokensRead {
        /// Whose.
        partition: Partition,
        /// What was read, or why not.
        read: Result<TokensRead, String>,
    },
    /// A commit ended: by its own callback, or by the destruction of the client.
    Committed {
        /// Which.
        commit: CommitId,
        /// How.
        outcome: CommitOutcome,
    },
    /// Answer to [`Source::read_group_metadata`].
    GroupMetadata {
        /// For which commit.
        commit: CommitId,
        /// Who we are in the group, or why we may not commit now.
        read: Result<GroupMetadata, String>,
    },
    /// Answer to [`Source::rejoin`]: the old client is destroyed, a new one joins.
    Rejoined,
    /// The brokers cannot be reached, or can be again; for health and logs only.
    Brokers {
        /// Whether at least one is connected.
        reachable: bool,
        /// The last error.
        message: String,
    },
    /// Nothing will work until somebody changes something: credentials, authorization,
    /// a missing topic. Reported again while it lasts; the client goes on trying.
    Misconfigured(String),
}

/// Reads a log as a member of a consumer group.
pub trait Source: Send {
    /// The next thing that happened. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Happening> + Send;
    /// Reads offset, token, registry, log ends and topic identity (R2).
    fn read_tokens(&mut self, partition: Partition);
    /// Starts reading at explicit positions, on top of what is assigned already. With a leader's
    /// epoch, a log that holds less of it than up to the position is out of range there (D-G10).
    fn assign(&mut self, starts: Vec<StartAt>);
    /// Stops reading and completes the rebalance that asked for it.
    fn unassign(&mut self, partitions: Vec<Partition>);
    /// Moves a started partition; fetched records of it that were not handed over are dropped.
    fn seek(&mut self, partition: Partition, position: Position);
    /// Hands over no more records of it. Short stops leave the queue unread, longer ones pause
    /// the fetching too (D-G1).
    fn pause(&mut self, partition: Partition);
    /// Goes on.
    fn resume(&mut self, partition: Partition);
    /// Commits offsets with metadata, generation-checked; at most one is outstanding.
    fn commit(&mut self, commit: Commit);
    /// Reads who we are in the group, for somebody else to commit these partitions on our behalf
    /// in a transaction; refused when [`Source::commit`] would be (R4b). The partitions must not
    /// be let go before that transaction has ended.
    fn read_group_metadata(&mut self, commit: CommitId, partitions: Vec<Partition>);
    /// Destroys the client completely on its own thread, then makes a new one (R4c).
    fn rejoin(&mut self);
    /// Leaves the group and destroys the client. Nothing else may be called afterwards.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// A record to append.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where to.
    pub topic: std::sync::Arc<str>,
    /// `None`: by the key, as the Java client does (murmur2), or sticky without one.
    pub partition: Option<i32>,
    /// Epoch milliseconds; `None`: now.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// In order, duplicates included.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Why a record could not be appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AppendClass {
    /// Worth another try: not enough replicas, no leader, time-out, throttled, purged.
    Transient,
    /// This record will never be taken: too large, invalid (D-O4).
    Rejected,
    /// Authorization, unknown topic, policy.
    Misconfigured,
    /// The producer is unusable; make a new one and send again what is unresolved (D-O1).
    Fatal,
}

/// One record's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// Acknowledged by all in-sync replicas.
    Stored {
        /// Partition it went to.
        partition: i32,
        /// Its offset.
        position: Position,
    },
    /// Not stored, as far as the client knows.
    Failed {
        /// What follows.
        class: AppendClass,
        /// The broker's error name, such as `MessageSizeTooLarge`.
        code: String,
        /// For people.
        message: String,
    },
}

/// Appends records.
pub trait Sink: Send {
    /// Enqueues one record, to be reported under `ticket`. `Err(record)`: the queue is full;
    /// wait for one delivery and send again (B-K4).
    #[expect(clippy::result_large_err, reason = "the record goes back to its owner")]
    fn append(&mut self, ticket: u64, record: Record) -> Result<(), Record>;
    /// Deliveries since the last call, in the order of their reports; waits for at least one.
    /// Cancel-safe.
    fn deliveries(&mut self, into: &mut Vec<(u64, Delivery)>) -> impl Future<Output = ()> + Send;
    /// Purges what has not left and what is in flight; each ends as a delivery (D-L3).
    fn purge(&mut self);
    /// Waits until everything enqueued has ended.
    fn flush(&mut self) -> impl Future<Output = ()> + Send;
}

/// Reads and writes tokens of groups nobody of this process has joined (release.md E6).
pub trait TokenStore: Send + Sync {
    /// What `group` committed for `partition`.
    fn fetch(
        &self,
        group: &str,
        partition: &Partition,
    ) -> impl Future<Output = Result<Option<Committed>, StoreError>> + Send;
    /// Commits while the group has no members; refused otherwise.
    fn commit_if_empty(
        &self,
        group: &str,
        offsets: Vec<(Partition, Committed)>,
    ) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send;
    /// First and end position of the log (last stable offset under read_committed).
    fn log_range(
        &self,
        partition: &Partition,
    ) -> impl Future<Output = Result<(Position, Position), StoreError>> + Send;
    /// The first position whose record is not older than `timestamp_ms`, else the end.
    fn position_at(
        &self,
        partition: &Partition,
        timestamp_ms: i64,
    ) -> impl Future<Output = Result<Position, StoreError>> + Send;
}

/// Why a token store could not answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// Worth another try.
    #[error("the broker did not answer: {0}")]
    Unavailable(String),
    /// Somebody has to change something first.
    #[error("the broker refused: {0}")]
    Refused(String),
}
