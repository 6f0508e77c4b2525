//! What the planner asks for, and what it waits for.
//!
//! Invariant: every action is idempotent: carrying it out again, or after a crash in the middle,
//! changes nothing more. They are carried out in order; after [`Action::SetStatus`] the world is
//! looked at anew.

use std::fmt;
use std::time::Duration;

use super::status::{Ending, Phase, Status};
use crate::contract::block::NotifyOn;
use crate::contract::commit::Metadata;
use crate::contract::grant::Grant;
use crate::contract::intent::Intent;
use crate::position::{Partition, Position};
use crate::token::{ReleaseId, Token};

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Write the status, by compare-and-set; a new intent is part of it (R8).
    SetStatus(Box<Status>),
    /// Give the intent to every pod that can be reached, and write the file (A1).
    PushIntent(Intent),
    /// Write the registry of a partition.
    Register {
        /// Which.
        partition: Partition,
        /// What; its root, and no or some grants (E4, R12, R13).
        grant: Grant,
    },
    /// Commit first tokens into a group without members.
    Seed {
        /// Whose group.
        release: ReleaseId,
        /// What.
        seeds: Vec<Seed>,
    },
    /// Commit into a group without members (R11). Whoever does it reads the group again first (K2):
    /// what was committed there since this was planned must not be overwritten.
    CommitIfEmpty {
        /// Whose group.
        release: ReleaseId,
        /// Where.
        partition: Partition,
        /// The offset.
        at: Position,
        /// What stands beside it.
        metadata: Metadata,
    },
    /// Make the release's deployment, without pods.
    CreateRelease(ReleaseId),
    /// Ask for this many pods.
    Scale {
        /// Of which release.
        release: ReleaseId,
        /// How many.
        pods: u32,
    },
    /// Remove its deployment.
    DeleteRelease(ReleaseId),
    /// Remove its group.
    DeleteGroup(ReleaseId),
    /// Write all positions and tokens down (E5).
    Snapshot,
    /// Write what became of a release into its record.
    Record {
        /// Which.
        release: ReleaseId,
        /// What became of it.
        result: RecordResult,
    },
    /// Answer a decision.
    Answer {
        /// Its name.
        decision: String,
        /// Whether it took effect.
        accepted: bool,
        /// Why not.
        message: String,
    },
    /// Tell those whom `notifications` name.
    Notify {
        /// About what.
        on: NotifyOn,
        /// About which release.
        release: ReleaseId,
    },
}

/// The first token of a partition in a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Seed {
    /// Which.
    pub partition: Partition,
    /// Where to start.
    pub start: Start,
    /// Live or Shadow.
    pub kind: SeedKind,
    /// Of the token.
    pub epoch: u64,
}

/// Where a seeded partition starts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Start {
    /// Where `input.startAt` or `input.kafka.adoptGroup` says.
    Configured,
    /// Here.
    At(Position),
    /// At the first event that is not older (epoch ms).
    Time {
        /// Epoch ms.
        timestamp_ms: i64,
    },
}

/// The kind of a first token.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SeedKind {
    /// Of the first release.
    Live,
    /// Of a candidate.
    Shadow {
        /// The release that answers.
        peer: ReleaseId,
    },
}

impl Seed {
    /// The token, once its position is known.
    pub fn token(&self, at: Position) -> Token {
        match &self.kind {
            SeedKind::Live => Token::Live {
                epoch: self.epoch,
                from: at,
                peer: None,
            },
            SeedKind::Shadow { peer } => Token::Shadow {
                epoch: self.epoch,
                at,
                peer: Some(peer.clone()),
            },
        }
    }
}

/// What became of a release.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RecordResult {
    /// It answers.
    Promoted,
    /// It was refused, by a gate, by a person or by time.
    Rejected,
    /// It answered, and no longer does.
    RolledBack,
    /// Somebody gave it up.
    Aborted,
    /// A newer one came first.
    Superseded,
}

impl RecordResult {
    pub(super) fn of(ending: Ending) -> Self {
        match ending {
            Ending::GateFailed | Ending::NotReady | Ending::Rejected | Ending::ApprovalExpired => {
                Self::Rejected
            }
            Ending::RolledBack => Self::RolledBack,
            Ending::Aborted => Self::Aborted,
            Ending::Superseded | Ending::Retry => Self::Superseded,
        }
    }
}

/// What stands in the way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Wait {
    /// Of what.
    pub subject: Subject,
    /// Which way.
    pub reason: Reason,
}

/// What is waited for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// The brokers.
    Brokers,
    /// A release.
    Release(ReleaseId),
    /// A partition.
    Partition(Partition),
}

/// Why it is waited for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The partitions could not be read.
    Unreadable,
    /// Pods are not ready.
    Pods {
        /// How many are.
        ready: u32,
        /// How many shall be.
        wanted: u32,
    },
    /// Pods or members are still there.
    Leaving,
    /// The group rebalances, or has just done so.
    Moving,
    /// Partitions have no owner.
    Unassigned {
        /// How many.
        partitions: usize,
    },
    /// The comparison goes on.
    Evidence,
    /// People have not spoken.
    Approvals {
        /// How many have.
        given: usize,
        /// How many must.
        required: u32,
    },
    /// A person must decide what becomes of it.
    Decision,
    /// Too far behind to take over.
    Lag {
        /// Events.
        events: u64,
        /// `release.promotion.maxCutoverLag`.
        max: u64,
    },
    /// Its holder has not sealed it, or not taken note of the newest intent.
    NotSealed,
    /// Sealed, and not yet adopted.
    NotAdopted,
    /// `promote --partitions` is reached.
    Limit,
    /// A pause or window goes on.
    Time {
        /// For so long.
        left: Duration,
    },
    /// A grant was not taken.
    Granted,
    /// A token is gone that only a person may replace (R9).
    TokenMissing,
    /// A transaction is open.
    OffsetsUnstable,
    /// An old release must go first.
    Retiring(ReleaseId),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Brokers => write!(f, "brokers: ")?,
            Subject::Release(release) => write!(f, "{release}: ")?,
            Subject::Partition(partition) => write!(f, "{partition}: ")?,
        }
        match &self.reason {
            Reason::Unreadable => write!(f, "the partitions could not be read"),
            Reason::Pods { ready, wanted } => write!(f, "{ready} of {wanted} pods are ready"),
            Reason::Leaving => write!(f, "its pods have not all left"),
            Reason::Moving => write!(f, "its group is not stable for long enough"),
            Reason::Unassigned { partitions } => write!(f, "{partitions} partitions have no owner"),
            Reason::Evidence => write!(f, "the verification goes on"),
            Reason::Approvals { given, required } => {
                write!(f, "{given} of {required} approvals are given")
            }
            Reason::Decision => write!(f, "somebody must decide: retry, waive, or reject"),
            Reason::Lag { events, max } => write!(
                f,
                "{events} events behind, release.promotion.maxCutoverLag is {max}"
            ),
            Reason::NotSealed => write!(f, "its holder has not sealed it yet"),
            Reason::NotAdopted => write!(f, "sealed, and not yet adopted"),
            Reason::Limit => write!(f, "as many partitions as were asked for are handed over"),
            Reason::Time { left } => write!(f, "{} s to go", left.as_secs()),
            Reason::Granted => write!(f, "its owner has not taken the grant yet"),
            Reason::TokenMissing => {
                write!(
                    f,
                    "its token is gone; see `millrace seek` for how to give it one"
                )
            }
            Reason::OffsetsUnstable => write!(f, "a transaction of it is still open"),
            Reason::Retiring(release) => write!(f, "{release} must be gone first"),
        }
    }
}

/// One condition of the block's status (section 12).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// The candidate has its pods and partitions.
    CandidateReady,
    /// It answers in silence.
    ShadowHealthy,
    /// It is paused, because Green suffered (J9).
    ShadowSuspended,
    /// It passed.
    Verified,
    /// People must speak.
    AwaitingApproval,
    /// They have.
    Approved,
    /// The old release can take over at once.
    RollbackAvailable,
    /// The wanted release was rejected (G2).
    Degraded,
    /// Nothing has moved for too long.
    Stalled,
    /// A token is gone (R9).
    TokenMissing,
    /// The status was behind the tokens (section 8).
    EpochRepaired,
    /// A newer release waits.
    Queued,
    /// Something is going on.
    Reconciling,
}

/// The result of planning.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Plan {
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What stands in the way of more.
    pub waiting_on: Vec<Wait>,
    /// Where the block stands after the actions.
    pub phase: Phase,
    /// The conditions that are true.
    pub conditions: Vec<Condition>,
}
