//! `millrace-publish/1`: the frames between input and output proxy (`publish.md`).
//!
//! A frame is `u32` length of the rest, `u8` kind, body; integers are little endian; byte
//! strings are a `u32` length and bytes. Requests go from input to output, replies back.
//!
//! Invariant: decoding accepts exactly what encoding writes, and nothing is left over.

use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use crate::identity::EventId;
use crate::position::{Partition, Position};
use crate::token::Stamp;

mod bodies;
mod results;
mod wire;

pub use results::{Events, Record, RecordHeaders, Records, ResultEvent, Results, ResultsFrame};
use wire::{Reader, put_bytes, put_numbers, put_partitions};

/// The protocol's name in the HTTP upgrade (P-1).
pub const PROTOCOL: &str = "millrace-publish/1";

/// The version in `Hello` and `Ready`.
pub const VERSION: u32 = 1;

const KIND_HELLO: u8 = 1;
const KIND_READY: u8 = 2;
const KIND_LEASE: u8 = 3;
const KIND_RESULTS: u8 = 4;
const KIND_STORED: u8 = 5;
const KIND_CREDIT: u8 = 6;
const KIND_ANNOUNCE: u8 = 7;
const KIND_ANSWERED: u8 = 8;
const KIND_WITHDRAW: u8 = 9;
const KIND_WITHDRAWN: u8 = 10;
const KIND_TRANSACTION: u8 = 11;
const KIND_ENDED: u8 = 12;
const KIND_REVOKED: u8 = 13;
const KIND_DRAIN: u8 = 14;
const KIND_DRAINED: u8 = 15;
const KIND_ERROR: u8 = 16;

/// What is wrong with a frame, for people.
type Malformed = &'static str;

/// Reads the body of one kind.
type Decode<T> = fn(&mut Reader<'_>) -> Result<T, Malformed>;

/// Why bytes are not a frame. The connection ends with [`Fault`] (P-2).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Above the cap of the reader.
    #[error("a frame of {length} bytes is above the limit of {max}")]
    TooLarge {
        /// What the frame claims.
        length: usize,
        /// The cap.
        max: usize,
    },
    /// A kind that this direction does not have.
    #[error("frame kind {kind} is unknown here")]
    UnknownKind {
        /// The kind's byte.
        kind: u8,
    },
    /// Something inside is wrong.
    #[error("a {frame} frame is malformed: {what}")]
    Malformed {
        /// The kind's name.
        frame: &'static str,
        /// What.
        what: &'static str,
    },
}

/// Takes the next complete frame (kind and body) off the front of `buffer`; `None`: read more.
pub fn next_frame(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, Error> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*head) as usize;
    if length > max {
        return Err(Error::TooLarge { length, max });
    }
    if length == 0 {
        return Err(Error::Malformed {
            frame: "nameless",
            what: "it has no kind",
        });
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Input to output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// The first frame; answered by `Ready` or `Error`.
    Hello(Hello),
    /// Until when live records of these partitions may be produced (R4).
    Lease(Lease),
    /// Results to store; answered by `Stored`. Written with [`ResultsFrame`].
    Results(Results),
    /// Push mode: a call that the app will answer by pushes.
    Announce(Announce),
    /// Push mode: later pushes for these calls are refused; answered by `Withdrawn`.
    Withdraw {
        /// The calls.
        calls: Vec<u64>,
    },
    /// Exactly-once: ends the transaction of all results since the last one; answered by `Ended`.
    Transaction(Transaction),
    /// Live records of these partitions that have not left are dropped (R4).
    Revoked(Revoked),
    /// Answer everything that was sent, flush, then say `Drained`.
    Drain,
    /// The last frame.
    Error(Fault),
}

/// How the input stores progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Commits after the results, under a lease.
    AtLeastOnce,
    /// One transaction for results and offsets.
    ExactlyOnce,
}

/// Who speaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The block's identity.
    pub block: String,
    /// The release that answers.
    pub release: String,
    /// The pod.
    pub pod: String,
    /// New for each connection; a newer one replaces an older one (P-1).
    pub session: u64,
    /// The delivery guarantee.
    pub mode: Mode,
}

/// A lease on partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The group generation that holds it.
    pub generation: i32,
    /// Its end on the boot clock, which both proxies share.
    pub until: Duration,
    /// What it covers; a partition that is not listed keeps what it had.
    pub partitions: Vec<Partition>,
}

/// A call that is about to be made (A-P1), with what its results inherit (D-F2) and are
/// checked by (P-3, P-4): the output sees no event otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announce {
    /// The call.
    pub call: u64,
    /// 128 random bits that the app echoes.
    pub correlation: [u8; 16],
    /// Who may see the results.
    pub stamp: Stamp,
    /// The group generation of the input when it made the call.
    pub generation: i32,
    /// Whose event.
    pub partition: Partition,
    /// Which event.
    pub position: Position,
    /// Seeded hash of the event's lane; 0 is no lane.
    pub lane: u64,
    /// The epoch of the partition's token (D-I3).
    pub epoch: u64,
    /// The event's id (D-I1, D-I4).
    pub id: EventId,
    /// The event's timestamp.
    pub timestamp_ms: Option<i64>,
    /// The event's key.
    pub key: Option<Bytes>,
    /// The event's headers.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// The end of a transaction (P-5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// The last `Results` that belongs to it; 0: the session has sent none.
    pub seq: u64,
    /// How it shall end.
    pub ending: TransactionEnding,
}

/// How the input wants a transaction to end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TransactionEnding {
    /// With its results and these offsets stored together.
    Commit {
        /// The consumer that has read what the offsets cover.
        group_metadata: GroupMetadata,
        /// What to commit.
        offsets: Vec<TransactionOffset>,
    },
    /// Without anything stored.
    Abort,
}

/// Consumer group metadata, serialized by librdkafka. Never empty: without it brokers could not
/// tell a zombie's offsets from an owner's (D-E2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupMetadata(Bytes);

/// There is no group metadata in nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the group metadata is empty")]
pub struct EmptyGroupMetadata;

impl GroupMetadata {
    /// Refuses empty bytes.
    pub fn new(bytes: Bytes) -> Result<Self, EmptyGroupMetadata> {
        if bytes.is_empty() {
            return Err(EmptyGroupMetadata);
        }
        Ok(Self(bytes))
    }

    /// As librdkafka reads them.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// One committed offset of a [`Transaction`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionOffset {
    /// Whose.
    pub partition: Partition,
    /// The watermark.
    pub position: Position,
    /// Token and ledger (E1).
    pub metadata: String,
}

/// Partitions that are not ours any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revoked {
    /// The generation that held them.
    pub generation: i32,
    /// Which.
    pub partitions: Vec<Partition>,
}

/// Output to input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Connected to the broker, topics checked.
    Ready(Ready),
    /// What became of the events of a `Results` frame; may come in parts, one answer per event.
    Stored(Stored),
    /// The input may send that many more bytes.
    Credit(u64),
    /// Push mode: what the app pushed for a call, after the acks.
    Answered(Answered),
    /// Push mode: the calls are closed.
    Withdrawn {
        /// Calls that nothing was pushed for.
        refused: Vec<u64>,
        /// Calls that were answered, at least in part.
        answered: Vec<u64>,
    },
    /// A transaction ended.
    Ended {
        /// The one of `Transaction`.
        seq: u64,
        /// How.
        outcome: TransactionOutcome,
    },
    /// Everything is answered and flushed.
    Drained,
    /// The last frame.
    Error(Fault),
}

/// The output is ready.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// [`VERSION`].
    pub version: u32,
    /// Bytes that may be sent now.
    pub credit: u64,
    /// Largest record per destination topic.
    pub limits: Vec<(String, u64)>,
}

/// Answers to events of one frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The frame.
    pub seq: u64,
    /// Indices of events whose records are all stored.
    pub stored: Vec<Range<u32>>,
    /// Events that are not stored.
    pub failures: Vec<StoreFailure>,
}

/// What the app pushed for a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// The call.
    pub call: u64,
    /// Records that are stored.
    pub stored: u32,
    /// Records that are not; `event` counts the call's pushes.
    pub failures: Vec<StoreFailure>,
}

/// Why an event could not be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreFailure {
    /// Its index in the frame.
    pub event: u32,
    /// Which of its records was refused, where one is to blame: the output index of a result.
    pub record: Option<u32>,
    /// What follows from it.
    pub class: StoreClass,
    /// The broker's error code, or a word of ours.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What follows from a failed store (D-O4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StoreClass {
    /// Send it again, without limit.
    Transient,
    /// The broker will never take it: dead letter, stage `output`.
    Rejected,
    /// Authorization, unknown topic, policy: hold and alert.
    Misconfigured,
    /// The lease lapsed before it left (P-4).
    Lease,
    /// The partition was revoked before it left.
    Revoked,
    /// Nobody knows whether it was stored: send it again in lane order.
    Unknown,
}

/// The code of an event that failed only because its transaction was aborted.
pub const ABORTED: &str = "TransactionAborted";

/// How a transaction ended (P-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionOutcome {
    /// Results and offsets are stored.
    Committed,
    /// Nothing is stored.
    Aborted,
    /// R4c decides.
    Unknown,
}

/// The last words of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What the input decided about an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FateCode {
    /// It has results.
    Emitted,
    /// It has none, because the app said so.
    Filtered,
    /// It has a dead letter.
    DeadLettered,
    /// It failed in shadow; the verification topic hears of it (D-B4).
    FailedInShadow,
}

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Destination<'a> {
    /// `output.kafka.topic`.
    Output,
    /// `output.kafka.deadLetter`.
    DeadLetter,
    /// `output.kafka.verification`.
    Verification,
    /// A topic that the app named (A-S4).
    Topic(&'a str),
}

impl Request {
    /// Appends the complete frame, its length included.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let kind = match self {
            Self::Hello(_) => KIND_HELLO,
            Self::Lease(_) => KIND_LEASE,
            Self::Results(results) => {
                put_bytes(into, Some(results.frame()));
                return;
            }
            Self::Announce(_) => KIND_ANNOUNCE,
            Self::Withdraw { .. } => KIND_WITHDRAW,
            Self::Transaction(_) => KIND_TRANSACTION,
            Self::Revoked(_) => KIND_REVOKED,
            Self::Drain => KIND_DRAIN,
            Self::Error(_) => KIND_ERROR,
        };
        frame(into, kind, |into| match self {
            Self::Hello(hello) => hello.encode(into),
            Self::Lease(lease) => lease.encode(into),
            Self::Announce(announce) => announce.encode(into),
            Self::Withdraw { calls } => put_numbers(into, calls),
            Self::Transaction(transaction) => transaction.encode(into),
            Self::Revoked(revoked) => {
                into.extend_from_slice(&revoked.generation.to_le_bytes());
                put_partitions(into, &revoked.partitions);
            }
            Self::Error(fault) => fault.encode(into),
            Self::Results(_) | Self::Drain => {}
        });
    }

    /// Reads a frame that [`next_frame`] gave.
    pub fn decode(frame: Bytes) -> Result<Self, Error> {
        let (name, body): (_, Decode<Self>) = match first(&frame)? {
            KIND_HELLO => ("Hello", |r| Hello::decode(r).map(Self::Hello)),
            KIND_LEASE => ("Lease", |r| Lease::decode(r).map(Self::Lease)),
            KIND_RESULTS => return Results::decode(frame).map(Self::Results),
            KIND_ANNOUNCE => ("Announce", |r| Announce::decode(r).map(Self::Announce)),
            KIND_WITHDRAW => ("Withdraw", |r| {
                Ok(Self::Withdraw {
                    calls: r.list(Reader::u64)?,
                })
            }),
            KIND_TRANSACTION => ("Transaction", |r| {
                Transaction::decode(r).map(Self::Transaction)
            }),
            KIND_REVOKED => ("Revoked", |r| {
                Ok(Self::Revoked(Revoked {
                    generation: r.i32()?,
                    partitions: r.list(Reader::partition)?,
                }))
            }),
            KIND_DRAIN => ("Drain", |_| Ok(Self::Drain)),
            KIND_ERROR => ("Error", |r| Fault::decode(r).map(Self::Error)),
            kind => return Err(Error::UnknownKind { kind }),
        };
        whole(&frame, name, body)
    }
}

impl Reply {
    /// Appends the complete frame, its length included.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let kind = match self {
            Self::Ready(_) => KIND_READY,
            Self::Stored(_) => KIND_STORED,
            Self::Credit(_) => KIND_CREDIT,
            Self::Answered(_) => KIND_ANSWERED,
            Self::Withdrawn { .. } => KIND_WITHDRAWN,
            Self::Ended { .. } => KIND_ENDED,
            Self::Drained => KIND_DRAINED,
            Self::Error(_) => KIND_ERROR,
        };
        frame(into, kind, |into| match self {
            Self::Ready(ready) => ready.encode(into),
            Self::Stored(stored) => stored.encode(into),
            Self::Credit(bytes) => into.extend_from_slice(&bytes.to_le_bytes()),
            Self::Answered(answered) => answered.encode(into),
            Self::Withdrawn { refused, answered } => {
                put_numbers(into, refused);
                put_numbers(into, answered);
            }
            Self::Ended { seq, outcome } => {
                into.extend_from_slice(&seq.to_le_bytes());
                into.push(match outcome {
                    TransactionOutcome::Committed => 0,
                    TransactionOutcome::Aborted => 1,
                    TransactionOutcome::Unknown => 2,
                });
            }
            Self::Drained => {}
            Self::Error(fault) => fault.encode(into),
        });
    }

    /// Reads a frame that [`next_frame`] gave.
    pub fn decode(frame: Bytes) -> Result<Self, Error> {
        let (name, body): (_, Decode<Self>) = match first(&frame)? {
            KIND_READY => ("Ready", |r| Ready::decode(r).map(Self::Ready)),
            KIND_STORED => ("Stored", |r| Stored::decode(r).map(Self::Stored)),
            KIND_CREDIT => ("Credit", |r| r.u64().map(Self::Credit)),
            KIND_ANSWERED => ("Answered", |r| Answered::decode(r).map(Self::Answered)),
            KIND_WITHDRAWN => ("Withdrawn", |r| {
                Ok(Self::Withdrawn {
                    refused: r.list(Reader::u64)?,
                    answered: r.list(Reader::u64)?,
                })
            }),
            KIND_ENDED => ("Ended", |r| {
                Ok(Self::Ended {
                    seq: r.u64()?,
                    outcome: match r.u8()? {
                        0 => TransactionOutcome::Committed,
                        1 => TransactionOutcome::Aborted,
                        2 => TransactionOutcome::Unknown,
                        _ => return Err("the outcome is unknown"),
                    },
                })
            }),
            KIND_DRAINED => ("Drained", |_| Ok(Self::Drained)),
            KIND_ERROR => ("Error", |r| Fault::decode(r).map(Self::Error)),
            kind => return Err(Error::UnknownKind { kind }),
        };
        whole(&frame, name, body)
    }
}

fn frame(into: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = into.len();
    into.extend_from_slice(&[0, 0, 0, 0, kind]);
    body(into);
    let length = u32::try_from(into.len() - start - 4).expect("these frames are small");
    into[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn first(frame: &[u8]) -> Result<u8, Error> {
    frame.first().copied().ok_or(Error::Malformed {
        frame: "nameless",
        what: "it has no kind",
    })
}

fn whole<T>(frame: &Bytes, name: &'static str, body: Decode<T>) -> Result<T, Error> {
    let mut reader = Reader::new(&frame[1..]);
    body(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|what| Error::Malformed { frame: name, what })
}

#[cfg(test)]
mod tests;
