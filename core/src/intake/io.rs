//! What goes into the intake machine and what comes out of it.
//!
//! The driver feeds every [`Input`] in the order it happened and starts every [`Effect`] in the
//! order given. No effect waits: its end comes back as an input.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::contract::publish::{self, GroupMetadata};
use crate::event::Event;
use crate::identity::EventId;
use crate::lanes::LaneHash;
use crate::outcome::Outcome;
use crate::position::{Partition, Position};
use crate::time::Time;
use crate::token::Stamp;

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// The group gave us these partitions. Nothing is dispatched before `TokensRead` (D-G3).
    Assigned {
        /// What was added.
        partitions: Vec<Partition>,
        /// Who we are in the group now.
        membership: Membership,
    },
    /// The group wants these back; they stay ours until `Effect::Unassign` (D-G4).
    Revoking(Vec<Partition>),
    /// These are gone already: session timeout or fenced (D-G5).
    Lost(Vec<Partition>),
    /// Answer to `Effect::ReadTokens` (R2).
    TokensRead {
        /// Whose.
        partition: Partition,
        /// What was read, or why it could not be; a failure is read again after a while.
        read: Result<TokensRead, String>,
    },
    /// Records of one or more partitions, in position order per partition; may be none.
    Fetched {
        /// At most `limits::FETCH_RECORDS_MAX` together.
        batches: Vec<Fetched>,
    },
    /// The position to read next is not in the log any more (D-G10).
    OutOfRange {
        /// Where.
        partition: Partition,
        /// The first position that the log still has.
        log_start: Position,
        /// The end of the log.
        log_end: Position,
    },
    /// Answers of the app.
    Answered(Vec<(CallId, Outcome)>),
    /// Answer to `Effect::ProbeApp`.
    AppProbed {
        /// Whether the health endpoint answered 2xx.
        ready: bool,
    },
    /// The publish connection came up (a new session) or went down (P-6).
    Link(Link),
    /// Frames of the output, in order.
    Replies(Vec<publish::Reply>),
    /// A commit ended (its own callback, never a guess).
    Committed {
        /// Which.
        commit: CommitId,
        /// How.
        outcome: CommitOutcome,
    },
    /// Answer to `Effect::ReadGroupMetadata` (R4b).
    GroupMetadata {
        /// For which commit.
        commit: CommitId,
        /// Who we are in the group, or why the commit cannot be ours.
        read: Result<GroupMetadata, String>,
    },
    /// The client was destroyed completely on `Effect::Rejoin`: whatever was unknown about its
    /// commits is decided now, and all partitions are gone (R4c).
    Rejoined,
    /// Ends of the logs that are read, as far as records go; told every second. `None`: the
    /// brokers cannot be reached.
    LogEnds(Option<Vec<(Partition, Position)>>),
    /// An operator pauses or resumes every partition.
    Operator(Operator),
    /// Stop taking events, finish what is open, then `Effect::Stop` (D-S4).
    Drain {
        /// Stop even if something is still open then.
        deadline: Time,
    },
    /// Only time has passed.
    Tick,
}

/// Where the reading of a partition starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartAt {
    /// Which.
    pub partition: Partition,
    /// The first record to read.
    pub position: Position,
    /// Epoch of the leader that took the records before it, where that is known: what the log
    /// holds of this epoch must reach up to the position, else the position is out of range
    /// (D-G10).
    pub leader_epoch: Option<i32>,
}

impl StartAt {
    /// A start of which nothing more is known than the position.
    #[must_use]
    pub fn position(partition: Partition, position: Position) -> Self {
        Self {
            partition,
            position,
            leader_epoch: None,
        }
    }
}

/// One partition's part of a fetch.
#[derive(Debug)]
pub struct Fetched {
    /// Whose records.
    pub partition: Partition,
    /// Epoch of the leader that took the last of these records, where the log tells.
    pub leader_epoch: Option<i32>,
    /// In position order.
    pub events: Vec<Event>,
}

/// Who we are in the consumer group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The group's generation.
    pub generation: i32,
    /// First four bytes of the SHA-256 of the member id (E1, key `m`).
    pub member: u32,
}

/// What stands in the broker about one partition (R2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokensRead {
    /// This release's committed offset and metadata; `None`: never committed.
    pub own: Option<Committed>,
    /// The registry's metadata for this partition (E4); `None`: no registry.
    pub registry: Option<Committed>,
    /// The registry's metadata for partition 0 of the same topic, which tells how far the
    /// starter seeded (D-G12).
    pub seeding: Option<Committed>,
    /// First position of the log.
    pub log_start: Position,
    /// End of the log at a moment after the assignment (R6).
    pub log_end: Position,
    /// First four bytes of SHA-256(cluster id `/` topic id), where the broker tells (E1, key `t`).
    pub topic_identity: Option<u32>,
}

/// A committed offset with its metadata string.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The offset.
    pub position: Position,
    /// The metadata, not yet decoded.
    pub metadata: String,
}

/// State of the publish connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Link {
    /// Connected, Hello sent, Ready received.
    Up {
        /// Bytes that may be sent.
        credit: u64,
    },
    /// Lost: every unanswered event is unknown and is sent again (P-6).
    Down,
}

/// What an operator asks of the whole proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operator {
    /// Take no new events.
    Pause,
    /// Go on, and close the breaker.
    Resume {
        /// Until when the storm guard is off (D-B3).
        storm_guard_off_until: Option<Time>,
    },
    /// Make the client anew, because files that only a new one reads have changed (C-3).
    Renew {
        /// Which files.
        reason: String,
    },
    /// Make one event terminal although it was not answered; it is dead-lettered.
    Skip {
        /// Whose.
        partition: Partition,
        /// Which.
        position: Position,
        /// Why; goes into the dead letter.
        reason: String,
    },
    /// Let parked lanes go on (D-L5).
    Unpark {
        /// Whose; `None`: of every partition.
        partition: Option<Partition>,
        /// Which; `None`: all of them.
        lane: Option<LaneHash>,
    },
}

/// Names a call to the app.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CallId(pub u64);

/// Names a commit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct CommitId(pub u64);

/// How a commit ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommitOutcome {
    /// Stored.
    Done,
    /// Refused for now (loading, not coordinator, in progress): try again (D-W3).
    Retriable(String),
    /// Illegal generation, unknown member, fenced: discard it and rejoin (D-G6).
    NotOwner(String),
    /// It may still be applied: the partitions are in doubt (R4c).
    Unknown(String),
}

/// Something to do.
#[derive(Debug)]
pub enum Effect {
    /// Read offset, token, registry and log ends of a partition (R2).
    ReadTokens(Partition),
    /// Start reading these partitions. `incremental_assign` with explicit positions.
    Assign(Vec<StartAt>),
    /// Let go of these partitions; completes the rebalance (D-G4 e).
    Unassign(Vec<Partition>),
    /// Move a started partition.
    Seek {
        /// Which.
        partition: Partition,
        /// Where to read on.
        position: Position,
    },
    /// Hand over no more events of this partition until `Resume` (D-C1).
    Pause(Partition),
    /// Go on handing over events.
    Resume(Partition),
    /// Call the app.
    Call(Call),
    /// Send this encoded frame to the output. Dropped without a word if the link is down.
    Publish(Bytes),
    /// Commit; ends as `Input::Committed`.
    Commit(Commit),
    /// Read who we are in the group, for a transaction that commits these partitions (R4b); ends
    /// as `Input::GroupMetadata`.
    ReadGroupMetadata {
        /// The commit.
        commit: CommitId,
        /// What it is about.
        partitions: Vec<Partition>,
    },
    /// Ask the app's health endpoint; ends as `Input::AppProbed`.
    ProbeApp,
    /// Destroy the client on its own thread, await it, create a new one (R4c, D-G6); ends as
    /// `Input::Rejoined`.
    Rejoin,
    /// Something worth a log line; never per event.
    Report(Fact),
    /// Everything is settled: leave the group and end.
    Stop,
}

/// A call to the app: one event, or a batch.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its name.
    pub id: CallId,
    /// What the app is told in `Millrace-Mode` (A-S3).
    pub stamp: Stamp,
    /// When it is given up, on the boot clock; also told to the app as wall time.
    pub deadline: Time,
    /// Push mode: what the app's results have to carry (A-P1); the output knows it already.
    pub correlation: Option<[u8; 16]>,
    /// In lane order; exactly one unless the block asks for batches.
    pub events: Vec<Called>,
}

/// One event of a call.
#[derive(Clone, Debug)]
pub struct Called {
    /// Whose event.
    pub partition: Partition,
    /// The event.
    pub event: Event,
    /// Its id (D-I1), or that of the event it re-drives (D-I4).
    pub id: EventId,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// Epoch milliseconds of the first attempt.
    pub first_attempt_ms: i64,
}

/// One commit of offsets with their metadata (D-W2, E1). One is outstanding at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Its name.
    pub id: CommitId,
    /// What to store, per partition.
    pub offsets: Vec<(Partition, Committed)>,
}

/// What operators want to read in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// A partition is ours and starts at this position.
    Started {
        /// Which.
        partition: Partition,
        /// Where.
        position: Position,
        /// Terminal positions above it that the ledger remembers.
        remembered: u64,
        /// It was added to its topic after the block was set up (D-G11).
        added: bool,
    },
    /// A partition stops although it is ours (R9, D-G10).
    Halted {
        /// Which.
        partition: Partition,
        /// Why, and what to do.
        reason: String,
    },
    /// A partition is gone after a revocation, with this much left unfinished.
    Released {
        /// Which.
        partition: Partition,
        /// Events that the next owner reads again.
        unfinished: u64,
    },
    /// A partition was lost without a commit.
    Lost {
        /// Which.
        partition: Partition,
        /// Events that the next owner reads again.
        unfinished: u64,
    },
    /// Positions that the log no longer has were skipped by policy (D-G10).
    DataLoss {
        /// Which.
        partition: Partition,
        /// First lost position.
        from: Position,
        /// First position after the loss.
        to: Position,
    },
    /// The breaker changed.
    Breaker {
        /// `closed`, `half-open` or `open`.
        state: &'static str,
        /// `failures`, `misconfigured` or `storm`.
        cause: &'static str,
        /// The last failure, for people.
        message: Arc<str>,
    },
    /// The app cannot be reached; probing.
    AppUnreachable {
        /// The last failure.
        message: Arc<str>,
    },
    /// The app answers again.
    AppReachable,
    /// Commits of a partition fail again and again (D-W3).
    CommitsFail {
        /// How often in a row.
        times: u32,
        /// The last error.
        message: String,
    },
    /// Commits are in doubt; the client is destroyed and made anew (R4c).
    Rejoining {
        /// Why.
        reason: String,
    },
    /// A partition has work, is not paused, and its watermark does not move (D-H2).
    Stalled {
        /// Which.
        partition: Partition,
        /// For how long.
        unmoved: Duration,
        /// What its oldest event waits for, as [`super::state::WaitsFor`] names it.
        waits_for: &'static str,
        /// What each part of the work waits for; no keys, no payloads.
        details: String,
    },
    /// The output could not store results; they are sent again.
    StoreFailed {
        /// Which partition.
        partition: Partition,
        /// The error.
        message: String,
    },
    /// Owners of this partition end uncleanly again and again: until this position its events
    /// are answered one at a time (D-B7).
    PodCrashes {
        /// Which.
        partition: Partition,
        /// How often.
        times: u32,
        /// To where.
        until: Position,
    },
    /// As many lanes are parked as a commit can name: this event's dead letter, and its lane,
    /// wait until one goes on (D-L5).
    ParkingFull {
        /// Which partition.
        partition: Partition,
        /// Which event.
        position: Position,
    },
    /// An event was dead-lettered for a new reason, or the first in a while (not per event).
    DeadLettered {
        /// Which partition.
        partition: Partition,
        /// Which event.
        position: Position,
        /// `millrace-dlq-reason`.
        reason: &'static str,
        /// `millrace-dlq-error-message`.
        message: String,
    },
}
