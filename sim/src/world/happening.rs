//! What waits in the world's queue, and whom it happens to.

use std::time::Duration;

use bytes::Bytes;
use millrace_core::contract::publish::Reply;
use millrace_core::intake::io::{CallId, CommitId, CommitOutcome, Committed, TokensRead};
use millrace_core::position::Partition;
use millrace_core::store::{self, TransactionEnded};

use super::commits::OnTheWire;
use super::faults::Fault;
use super::group::{Assignment, MemberId};
use super::output::Batch;
use super::transactions::Ending;

/// A life of a pod's input process: what was meant for an earlier one is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Who {
    pub(crate) pod: usize,
    pub(crate) life: u32,
}

/// Names a consumer client; never used twice.
pub(crate) type ClientId = u64;

/// What waits in the queue.
#[derive(Debug)]
pub(crate) enum Happening {
    Fault(Fault),
    Quiesce,
    Check,
    Seeded,
    Start(usize),
    Thaw(usize),
    Mend(Who, ClientId),
    Expire(MemberId, u64),
    Complete(u64),

    Wake(Who),
    Fetch(Who, ClientId),
    ReadTokens(Who, ClientId, usize),
    TokensRead(Who, ClientId, usize, Box<Result<TokensRead, String>>),
    CommitSend(Who, ClientId, CommitId),
    CommitArrive(Box<OnTheWire>),
    CommitAnswer(Who, ClientId, CommitId, CommitOutcome),
    LateSend(Who, ClientId, Vec<(usize, Committed)>),
    Destroyed(Who, ClientId),
    Join(Who, ClientId),
    Notice(Who, ClientId),
    Sync(Who, ClientId, Box<Assignment>),
    AssignCallback(Who, ClientId, Vec<usize>),
    LoseNotice(Who, ClientId, MemberId),

    AppAnswer(Who, CallId),
    GivenUp(Who, CallId),
    AppWork(Who, CallId),
    AppPost(Who, CallId),
    PostAnswered(Who, CallId, store::PushAnswer),
    AppCrash(Who, CallId),
    ConnectionLost(Who, CallId, u64),
    PodDies(Who, CallId),
    FlushAnswers(Who),
    AppProbed(Who),

    Connect(Who),
    ToInput(Who, u64, Reply),
    LinkLost(Who, u64),
    ToOutput(usize, u64, Bytes),
    OutputClose(usize, u64),
    SendBatches(usize, u32),
    BatchArrive(Box<Batch>),
    BatchEnd(usize, u32, Vec<(u64, store::Ended)>),
    Rebuilt(usize, u32),

    MetadataRead(Who, ClientId, CommitId, Vec<Partition>),
    OutputReady(usize, u32),
    OutputWakes(usize, u32),
    OffsetsArrive(Ending, Bytes, Vec<(usize, Committed)>),
    EndSend(Ending),
    EndArrive(Ending, bool),
    AbortArrive(Ending),
    TransactionExpires(usize, u64),
    TransactionTold(Ending, TransactionEnded),
}

/// Which half of a pod something happens to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    Input,
    Output,
}

impl Happening {
    /// The process that has to be awake for it.
    pub(super) fn half(&self) -> Option<(usize, Half)> {
        match self {
            Self::Fault(_)
            | Self::Quiesce
            | Self::Check
            | Self::Seeded
            | Self::Start(_)
            | Self::Thaw(_)
            | Self::Expire(..)
            | Self::Complete(_)
            | Self::CommitArrive(_)
            | Self::BatchArrive(_)
            | Self::OffsetsArrive(..)
            | Self::EndArrive(..)
            | Self::AbortArrive(_)
            | Self::TransactionExpires(..) => None,
            Self::Wake(who)
            | Self::Mend(who, _)
            | Self::Fetch(who, _)
            | Self::ReadTokens(who, ..)
            | Self::TokensRead(who, ..)
            | Self::CommitSend(who, ..)
            | Self::CommitAnswer(who, ..)
            | Self::LateSend(who, ..)
            | Self::Destroyed(who, _)
            | Self::Join(who, _)
            | Self::Notice(who, _)
            | Self::Sync(who, ..)
            | Self::AssignCallback(who, ..)
            | Self::LoseNotice(who, ..)
            | Self::AppAnswer(who, _)
            | Self::GivenUp(who, _)
            | Self::AppWork(who, _)
            | Self::PostAnswered(who, ..)
            | Self::AppCrash(who, _)
            | Self::ConnectionLost(who, ..)
            | Self::PodDies(who, _)
            | Self::FlushAnswers(who)
            | Self::AppProbed(who)
            | Self::MetadataRead(who, ..)
            | Self::Connect(who)
            | Self::ToInput(who, ..)
            | Self::LinkLost(who, _) => Some((who.pod, Half::Input)),
            Self::AppPost(who, _) => Some((who.pod, Half::Output)),
            Self::ToOutput(pod, ..)
            | Self::OutputClose(pod, _)
            | Self::SendBatches(pod, _)
            | Self::BatchEnd(pod, ..)
            | Self::OutputReady(pod, _)
            | Self::OutputWakes(pod, _)
            | Self::Rebuilt(pod, _) => Some((*pod, Half::Output)),
            Self::EndSend(ending) | Self::TransactionTold(ending, _) => {
                Some((ending.pod, Half::Output))
            }
        }
    }
}

pub(super) struct Scheduled {
    pub(super) at: Duration,
    pub(super) order: u64,
    pub(super) happening: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
