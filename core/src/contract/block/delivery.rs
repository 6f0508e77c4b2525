//! `delivery`, `flow`, `batch`, `retry`, `breaker`, `stormGuard`, `deadLetter`: what is promised
//! about events, and how much may be open or go wrong meanwhile.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::Share;

/// `delivery`.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// What a crash may do.
    pub guarantee: Guarantee,
    /// What keeps its order.
    pub ordering: Ordering,
    /// W, in positions (R5).
    pub window: u64,
    /// Longest time between commits.
    pub commit_interval: Duration,
    /// Most terminal events between commits.
    pub commit_records: u64,
    /// After which silence the group gives a member's partitions away.
    pub session_timeout: Duration,
    /// L: how long a commit permits live answers (R4); at-least-once only.
    pub lease: Duration,
    /// How long the producer tries one record.
    pub message_timeout: Duration,
    /// How long a revoke waits (D-G4).
    pub drain_revoke: DrainRevoke,
    /// Exactly-once only.
    pub transaction: Transaction,
}

/// `delivery.guarantee`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Guarantee {
    /// A crash may repeat results.
    AtLeastOnce,
    /// It may not.
    ExactlyOnce,
}

/// `delivery.ordering` (D-L1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ordering {
    /// Events of one key, within a partition.
    Key,
    /// All events of a partition.
    Partition,
    /// Nothing.
    None,
}

/// `delivery.drainRevoke` (D-G4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrainRevoke {
    /// min(2 × app p99 + 2 s, half the session time-out).
    Auto,
    /// This long.
    After(Duration),
}

/// `delivery.transaction` (D-E3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// Longest time a transaction stays open.
    pub interval: Duration,
    /// Most records in one.
    pub records: u64,
    /// After which the broker aborts it.
    pub timeout: Duration,
}

/// `flow` (D-C1, D-C2).
#[derive(Clone, PartialEq, Debug)]
pub struct Flow {
    /// Events read and not yet terminal.
    pub max_in_flight: u64,
    /// Their bytes.
    pub max_in_flight_bytes: Share,
    /// Requests that are open at the app.
    pub concurrency: Concurrency,
}

/// `flow.concurrency`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Concurrency {
    /// Found by trying, up to `app.contract.maxInFlight`.
    Adaptive,
    /// Always this many.
    Fixed(u32),
}

/// `batch` (D-C3).
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Events of one batch.
    pub max_records: u64,
    /// Bytes of their values.
    pub max_bytes: u64,
    /// How long the first event waits for company.
    pub linger: Duration,
    /// Events of one lane in a batch.
    pub max_per_lane: u64,
    /// Whether the size adapts.
    pub adaptive: bool,
    /// What it adapts to.
    pub target_p99: Duration,
    /// What happens to a lane's later results after a `retry` item (A-B4).
    pub ordered_results: OrderedResults,
}

/// `batch.orderedResults` (A-B4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OrderedResults {
    /// Discarded, and asked for again.
    Strict,
    /// Kept.
    Tolerate,
}

/// `retry`.
#[derive(Clone, PartialEq, Debug)]
pub struct Retry {
    /// `None`: unlimited.
    pub max_attempts: Option<u32>,
    /// From the first attempt.
    pub max_age: Duration,
    /// First wait.
    pub backoff_initial: Duration,
    /// From one wait to the next.
    pub backoff_multiplier: f64,
    /// Longest wait.
    pub backoff_max: Duration,
    /// Whether the app's `Retry-After` counts.
    pub respect_retry_after: bool,
    /// What then.
    pub on_exhausted: OnExhausted,
}

/// `retry.onExhausted`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OnExhausted {
    /// Store the event with the reason.
    DeadLetter,
    /// Forget it, for this stated reason (D-R3).
    Drop(String),
    /// Hold its lane and alert.
    Block,
}

/// `breaker` (D-B1).
#[derive(Clone, PartialEq, Debug)]
pub struct Breaker {
    /// Share of failures that opens it, 0 to 1.
    pub failure_ratio: f64,
    /// Over which time.
    pub window: Duration,
    /// Below which number of requests it stays closed.
    pub min_requests: u32,
    /// First wait before a probe.
    pub open_min: Duration,
    /// Longest wait.
    pub open_max: Duration,
}

/// `stormGuard` (D-B3).
#[derive(Clone, PartialEq, Debug)]
pub struct StormGuard {
    /// Share of events, 0 to 1.
    pub ratio: f64,
    /// Over which time.
    pub window: Duration,
    /// Below which number of would-be dead letters it stays quiet.
    pub min_records: u64,
}

/// `deadLetter`.
#[derive(Clone, PartialEq, Debug)]
pub struct DeadLetter {
    /// What its lane does (D-L5).
    pub on_dead_letter: OnDeadLetter,
    /// How long a key stays parked.
    pub park_ttl: Duration,
    /// When the event does not fit even without the error (D-D5).
    pub oversized: OversizedDeadLetter,
    /// How often an event may be sent again (D-D6).
    pub max_redrives: u32,
}

/// `deadLetter.onDeadLetter` (D-L5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OnDeadLetter {
    /// The lane goes on.
    Continue,
    /// Its later events are dead-lettered too.
    ParkKey,
}

/// `deadLetter.oversized` (D-D5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OversizedDeadLetter {
    /// Hold the partition and alert.
    Block,
    /// Cut the value.
    Truncate,
}
