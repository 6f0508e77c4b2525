//! One partition while it is ours: from the assignment until it is released or lost.
//!
//! Invariant: an event is in exactly one place at a time: waiting in its lane, in a call, in
//! back-off, suspected, blocked, held, in the outbox, or at the output.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::io::Committed;
use super::lag::Behind;
use super::parking::Held;
use super::pod_crash::PodCrashes;
use crate::contract::commit::{Attempted, LedgerImage, Metadata, Parked};
use crate::contract::result::{Reason, Stage};
use crate::event::Event;
use crate::fate::Attempts;
use crate::identity::{EventId, PartitionIdentity};
use crate::lanes::{LaneId, Lanes};
use crate::lease::Lease;
use crate::ledger::{Ledger, Number};
use crate::limits;
use crate::outcome::Output;
use crate::position::{Partition, Position};
use crate::time::Time;
use crate::token::Token;

/// Names one tenure; never used twice, so that late answers of an earlier tenure find nothing.
pub(super) type TenureId = u32;

/// Names one event of one tenure. Ordered by age within a tenure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct EventRef {
    pub(super) tenure: TenureId,
    pub(super) number: Number,
}

/// One partition while it is ours.
#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) partition: Partition,
    pub(super) identity: PartitionIdentity,
    pub(super) phase: Phase,
    pub(super) ledger: Ledger<Work>,
    pub(super) lanes: Lanes,
    /// Answered events in the order in which their lanes were answered, to be published.
    pub(super) outbox: VecDeque<Number>,
    /// Published events that were not stored; they go again before the outbox (D-L3).
    pub(super) resend: BTreeSet<Number>,
    /// Nothing is published before then.
    pub(super) resend_at: Option<Time>,
    /// Refusals by the output in a row.
    pub(super) store_failures: u32,
    /// Events that the output has and did not answer yet.
    pub(super) at_output: usize,
    /// Exactly-once: events whose results are in the output's open transaction.
    pub(super) staged: usize,
    pub(super) lease: Lease,
    /// The generation in which the lease was obtained.
    pub(super) lease_generation: i32,
    /// The last acknowledged commit.
    pub(super) committed: Position,
    /// Epoch of the leader that took the newest record read; a commit carries it, so that the next
    /// owner notices if the log was cut meanwhile (D-G10).
    pub(super) leader_epoch: Option<i32>,
    /// Terminal events since the last commit was cut.
    pub(super) since_commit: u64,
    pub(super) commit_failures: u32,
    /// A commit ended without anybody knowing how (R4c).
    pub(super) in_doubt: bool,
    /// Events that their lanes gave and that lie at or beyond committed + window (D-W9).
    pub(super) beyond_window: Vec<(LaneId, Number)>,
    pub(super) paused: Option<Pause>,
    /// Attempts of a previous owner, by position, until the events are delivered (D-W5).
    pub(super) inherited: Vec<(Position, Attempts)>,
    /// Bytes of its events in flight.
    pub(super) in_flight_bytes: usize,
    /// Size of the metadata of its last commit.
    pub(super) ledger_bytes: usize,
    /// How far behind the end of its log it is.
    pub(super) behind: Behind,
    /// Lanes whose events are dead-lettered (D-L5).
    pub(super) parked: Vec<Parked>,
    /// Dead letters whose lanes find no room among the parked ones, in order.
    pub(super) held: VecDeque<Held>,
    /// How its owners ended (D-B7).
    pub(super) crashes: PodCrashes,
    pub(super) counters: Counters,
}

/// Where a tenure stands.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Phase {
    /// Position and token are being read (R2); again at this time if that failed.
    Reading { again_at: Option<Time> },
    /// The token permits live answers. Without a lease nothing is sent.
    Live { token: Token, topic: Option<u32> },
    /// Stopped, with the reason; read again at this time (R9).
    Halted { reason: String, again_at: Time },
    /// The log lost its position; an operator decides (D-G10). Whether it still is the same
    /// topic is looked at again at this time (R9).
    DataLost { reason: String, again_at: Time },
    /// The group wants it back (D-G4).
    Revoking { token: Token, topic: Option<u32> },
}

/// Why no events of a partition are taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pause {
    /// A bound of flow control (D-C1).
    Window,
    /// The breaker is open (D-B1).
    Breaker,
    /// Lost data (D-G10).
    DataLoss,
    /// The token does not permit live answers (R9).
    Token,
    /// An operator, or the drain.
    Operator,
}

impl Pause {
    /// As the metric `millrace_partition_paused` names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Breaker => "breaker",
            Self::DataLoss => "data_loss",
            Self::Token => "token",
            Self::Operator => "operator",
        }
    }
}

/// What is kept of an event in flight.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) event: Event,
    pub(super) lane: LaneId,
    pub(super) id: Option<EventId>,
    pub(super) attempts: Attempts,
    pub(super) last_attempt_ms: i64,
    /// When it would have been taken had the app needed no time, on the boot clock.
    pub(super) own_since: Duration,
    /// Connections that died with it at the app (D-B6).
    pub(super) crashes: u8,
    /// Those of them at which it was alone at the app.
    pub(super) crashes_alone: u8,
    pub(super) place: Place,
    pub(super) answer: Option<Answer>,
    /// An operator wants it dead-lettered, with this reason.
    pub(super) skip: Option<String>,
    /// What the last failed attempt said, for `/v1/records`.
    pub(super) failure: Option<std::sync::Arc<str>>,
}

/// The connection may die this often with an event at the app before it goes alone (D-B6).
const CRASHES_BEFORE_SUSPICION: u8 = 2;

/// An event that was alone at the app at so many crashes is dead-lettered: once may be chance,
/// because apps die of other things too (D-B6).
pub(super) const CRASHES_ALONE: u8 = 2;

impl Work {
    /// Whether it may be what crashes the app.
    pub(super) fn is_suspect(&self) -> bool {
        self.crashes >= CRASHES_BEFORE_SUSPICION
    }
}

/// Where an event in flight is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In its lane.
    Waiting,
    /// In an open call, or in the half of one that was too large.
    AtApp,
    /// Until its next attempt.
    Backoff,
    /// It may crash the app: it goes alone.
    Suspected,
    /// Until an operator acts.
    Blocked,
    /// Its dead letter waits for room among the parked lanes (D-L5).
    Held,
    /// In the outbox or among the resends.
    Outbox,
    /// Published and not answered.
    AtOutput,
    /// Exactly-once: in a transaction that has not ended.
    Staged,
}

impl Place {
    /// As the admin pages name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::AtApp => "at_app",
            Self::Backoff => "backoff",
            Self::Suspected => "suspected",
            Self::Blocked => "blocked",
            Self::Held => "held",
            Self::Outbox => "outbox",
            Self::AtOutput | Self::Staged => "at_output",
        }
    }
}

/// What is published for an event.
#[derive(Debug)]
pub(super) enum Answer {
    One(Output),
    Many(Vec<Output>),
    DeadLetter(Box<Letter>),
}

/// Why an event is dead-lettered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Letter {
    pub(super) reason: Reason,
    pub(super) stage: Stage,
    pub(super) code: String,
    pub(super) message: String,
    pub(super) body: bytes::Bytes,
    pub(super) output_index: Option<u32>,
    /// How much was left out because the dead-letter topic refused it (D-D5).
    pub(super) shortened: Shortened,
    /// The dead-letter topic refused the event's timestamp, so the current one is written (D-D1).
    pub(super) stamped_now: bool,
}

/// Steps of D-D5.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Shortened {
    Nothing,
    Body,
    Message,
    Value,
}

/// What became of the events of one partition since the process took it first (D-V1).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Events taken.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Answered with results.
    pub emitted: u64,
    /// Answered with nothing.
    pub filtered: u64,
    /// Stored in the dead-letter topic.
    pub dead_lettered: u64,
    /// Gone by policy (D-R3).
    pub dropped: u64,
    /// Finished by a previous owner (D-W5).
    pub ledger_skipped: u64,
    /// Unfinished when the partition was revoked.
    pub stale_revoked: u64,
    /// Unfinished when the partition was lost.
    pub stale_lost: u64,
    /// Unfinished when the process stopped.
    pub stale_stop: u64,
    /// Answers that came when nobody waited any more.
    pub stale_results: u64,
    /// Positions that the log lost before they were read (D-G10).
    pub data_loss: u64,
}

impl Counters {
    /// Everything that has left the books, without what is in flight (D-V1).
    pub fn accounted(&self) -> u64 {
        self.emitted
            + self.filtered
            + self.dead_lettered
            + self.dropped
            + self.ledger_skipped
            + self.stale_revoked
            + self.stale_lost
            + self.stale_stop
    }
}

impl Tenure {
    /// A tenure whose position and token are still to be read.
    pub(super) fn opening(
        partition: Partition,
        identity: PartitionIdentity,
        lease: Option<Duration>,
        counters: Counters,
        rules: crate::rules::Rules,
    ) -> Self {
        Self {
            partition,
            identity,
            phase: Phase::Reading { again_at: None },
            ledger: Ledger::new(Position::START, &[], rules),
            lanes: Lanes::new(),
            outbox: VecDeque::new(),
            resend: BTreeSet::new(),
            resend_at: None,
            store_failures: 0,
            at_output: 0,
            staged: 0,
            lease: Lease::new(lease),
            lease_generation: -1,
            committed: Position::START,
            leader_epoch: None,
            since_commit: 0,
            commit_failures: 0,
            in_doubt: false,
            beyond_window: Vec::new(),
            paused: None,
            inherited: Vec::new(),
            in_flight_bytes: 0,
            ledger_bytes: 0,
            behind: Behind::default(),
            parked: Vec::new(),
            held: VecDeque::new(),
            crashes: PodCrashes::none(),
            counters,
        }
    }

    /// Whether live answers may be produced for it, given a lease.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    /// A commit has moved the window: what waited for that goes back in front of its lane.
    pub(super) fn enter_window(&mut self) {
        for (lane, number) in std::mem::take(&mut self.beyond_window).into_iter().rev() {
            self.lanes.put_back(lane, number);
        }
    }

    /// Whether there is anything that the last commit does not say.
    pub(super) fn is_dirty(&self) -> bool {
        self.since_commit > 0 || self.staged > 0 || self.ledger.watermark() > self.committed
    }

    /// Whether a bound on the span of uncommitted positions is reached (D-C1).
    pub(super) fn span(&self) -> u64 {
        self.ledger.end().since(self.committed)
    }

    /// The one function that builds a commit: watermark, token and progress (E1, invariant 4).
    /// Events that are `done` count as terminal; exactly-once makes them so with the same
    /// transaction (D-E4). `clean` tells whether the owner leaves in order, if that is told at
    /// all (D-B7).
    pub(super) fn commit(
        &mut self,
        generation: i32,
        member: Option<u32>,
        clean: Option<bool>,
        done: impl Fn(&Work) -> bool,
    ) -> Option<Committed> {
        let (Phase::Live { token, topic } | Phase::Revoking { token, topic }) = &self.phase else {
            return None;
        };
        let (token, topic) = (token.clone(), *topic);
        let position = self.ledger.watermark_as_if(&done);
        let crash = clean.and_then(|clean| self.cut_crash_state(clean, position));
        let metadata = Metadata {
            token,
            leader_epoch: self.leader_epoch,
            topic,
            generation,
            member,
            ledger: LedgerImage {
                terminal: self.ledger.terminal_bitmap_as_if(&done),
                attempts: self.attempts(position, &done),
                crash,
                parked: self.parked.clone(),
            },
        };
        Some(Committed {
            position,
            metadata: metadata.encode(),
        })
    }

    /// Attempts of the oldest events that were tried (D-W4).
    fn attempts(&self, watermark: Position, done: impl Fn(&Work) -> bool) -> Vec<Attempted> {
        self.ledger
            .iter()
            .filter(|(_, position, work)| {
                work.attempts.counted > 0
                    && !done(work)
                    && position.since(watermark) < limits::WINDOW_POSITIONS_MAX
            })
            .take(limits::LEDGER_ATTEMPTS_MAX)
            .map(|(_, position, work)| Attempted {
                delta: position.since(watermark),
                attempts: work.attempts.counted,
                first_attempt_s: work.attempts.first_ms / 1000,
            })
            .collect()
    }
}
