//! What the intake machine is told once, at its start.

use std::sync::Arc;
use std::time::Duration;

pub use crate::contract::block::Correlate;
use crate::lanes::Ordering;
use crate::rules::Rules;
use crate::token::ReleaseId;
use crate::window::Concurrency;
use crate::{batcher, breaker, fate};

/// The part of the block document that decides about events, parsed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who we are; goes into every record.
    pub names: Names,
    /// `delivery.guarantee`.
    pub guarantee: Guarantee,
    /// `delivery.ordering`.
    pub ordering: Ordering,
    /// `delivery.window`, in positions.
    pub window: u64,
    /// `delivery.commitInterval`.
    pub commit_interval: Duration,
    /// `delivery.commitRecords`.
    pub commit_records: u64,
    /// `delivery.lease`; at-least-once only.
    pub lease: Duration,
    /// `delivery.drainRevoke`; for `Auto` half the session time-out, which bounds
    /// twice the app's p99 plus 2 s from above.
    pub drain_revoke: Duration,
    /// `flow.maxInFlight`.
    pub in_flight_max: usize,
    /// `flow.maxInFlightBytes`, resolved.
    pub in_flight_bytes_max: usize,
    /// `flow.concurrency` with `app.contract.maxInFlight`.
    pub concurrency: Concurrency,
    /// `batch`, or [`batcher::Settings::SINGLE`].
    pub batch: batcher::Settings,
    /// `batch.orderedResults: Tolerate`: keep results behind a retried event of their lane.
    pub tolerate_reordering: bool,
    /// `retry`.
    pub retry: fate::Settings,
    /// `breaker` and `stormGuard`.
    pub breaker: breaker::Settings,
    /// `app.contract.timeout`.
    pub call_timeout: Duration,
    /// `app.maxRequestBytes`.
    pub request_bytes_max: usize,
    /// `input.ttl`.
    pub ttl: Option<Duration>,
    /// `input.kafka.onDataLoss`.
    pub on_data_loss: OnDataLoss,
    /// `deadLetter.onDeadLetter: ParkKey`; `None`: lanes go on.
    pub parking: Option<Parking>,
    /// `deadLetter.oversized: Truncate`.
    pub truncate_dead_letters: bool,
    /// How long a watermark may stand still although there is work until that is told (D-H2).
    pub stall_after: Duration,
    /// `app.contract.mode: Push`; `None`: results come in the answer.
    pub push: Option<Push>,
    /// All of them, in every shipped process.
    pub rules: Rules,
}

/// What a crash may do (D-E1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guarantee {
    /// Results may come again.
    AtLeastOnce,
    /// They may not, for readers of what is committed.
    ExactlyOnce {
        /// `delivery.transaction.interval`.
        interval: Duration,
        /// `delivery.transaction.records`.
        records: u64,
    },
}

/// How lanes are parked (D-L5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parking {
    /// `deadLetter.parkTtl`.
    pub ttl: Duration,
    /// Parked lanes of a partition at most: `limits::LEDGER_PARKED_MAX`, or fewer in a test.
    pub lanes_max: usize,
}

/// How push mode works.
#[derive(Clone)]
pub struct Push {
    /// `app.push.correlate`.
    pub correlate: Correlate,
    /// 128 random bits, from which correlations are made; nobody else may know them.
    pub secret: [u8; 16],
}

impl std::fmt::Debug for Push {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Push")
            .field("correlate", &self.correlate)
            .finish_non_exhaustive()
    }
}

/// Names that records and dead letters carry.
#[derive(Clone, Debug)]
pub struct Names {
    /// The release that answers.
    pub release: ReleaseId,
    /// The block's name.
    pub block: Arc<str>,
    /// `MILLRACE_POD`.
    pub pod: Arc<str>,
    /// The consumer group.
    pub group: Arc<str>,
    /// The cluster's id; part of every event id (D-I1).
    pub cluster: Arc<str>,
    /// Version of the proxies.
    pub proxy_version: Arc<str>,
}

/// What to do when the log lost positions that were not read (D-G10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDataLoss {
    /// Halt the partition until an operator decides.
    Stop,
    /// Go on at the first position of the log.
    Earliest,
    /// Go on at its end.
    Latest,
}
