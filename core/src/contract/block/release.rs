//! `release` and `notifications`: how a new version of the app takes over, and whom to tell.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::Secret;

/// `release`.
#[derive(Clone, PartialEq, Debug)]
pub struct Release {
    /// How a new release takes over.
    pub strategy: Strategy,
    /// How the candidate reads along.
    pub shadow: Shadow,
    /// When the candidate hurts the live release (J9).
    pub guard: Guard,
    /// What must be shown before a promotion.
    pub verification: Verification,
    /// How traffic moves.
    pub promotion: Promotion,
    /// How it moves back.
    pub rollback: Rollback,
    /// A newer release during a rollback window.
    pub on_new_release: NewRelease,
    /// What remains when the block is deleted.
    pub deletion_policy: DeletionPolicy,
    /// Release records that are kept.
    pub history_limit: u32,
}

/// `release.strategy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Strategy {
    /// The candidate shadows, then takes over partition by partition.
    BlueGreen,
    /// Stop the old one, start the new one.
    Recreate,
}

/// `release.shadow`.
#[derive(Clone, PartialEq, Debug)]
pub struct Shadow {
    /// Pods of the candidate.
    pub replicas: u32,
    /// Share of the partitions, 0 to 1.
    pub partitions: f64,
    /// What it may read.
    pub max_bytes_per_second: u64,
    /// Read old events instead of live ones, from this time (epoch ms) on.
    pub replay_from_ms: Option<i64>,
}

/// `release.guard` (J9).
#[derive(Clone, PartialEq, Debug)]
pub struct Guard {
    /// How long the live release's lag may grow.
    pub lag_growth: Duration,
    /// How much slower it may answer.
    pub latency_ratio: f64,
}

/// `release.verification`.
#[derive(Clone, PartialEq, Debug)]
pub struct Verification {
    /// Paired events needed.
    pub min_events: u64,
    /// Time needed.
    pub min_duration: Duration,
    /// Time after which it is inconclusive (J7).
    pub max_duration: Duration,
    /// Partitions that must have been seen.
    pub min_partitions: u32,
    /// When two answers agree.
    pub compare: Compare,
    /// What decides the verdict.
    pub gates: Vec<Gate>,
}

/// `release.verification.compare` (J2).
#[derive(Clone, PartialEq, Debug)]
pub struct Compare {
    /// How.
    pub mode: CompareMode,
    /// Paths that do not count.
    pub ignore: Vec<String>,
    /// Absolute tolerance of numbers.
    pub numeric_abs: f64,
    /// Relative tolerance of numbers.
    pub numeric_rel: f64,
    /// Exceptions per field.
    pub fields: Vec<FieldRule>,
    /// Share of events that the live release is asked twice, 0 to 1 (J4).
    pub noise_baseline: f64,
    /// Paths that stay in stored disagreements (J6).
    pub redact_keep: Vec<String>,
}

/// `release.verification.compare.mode` (J2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareMode {
    /// Byte by byte.
    Bytes,
    /// As JSON.
    Json,
    /// One value at this path.
    Label(String),
}

/// One of `release.verification.compare.fields`.
#[derive(Clone, PartialEq, Debug)]
pub struct FieldRule {
    /// Which field.
    pub path: String,
    /// Absolute tolerance; `None`: the general one.
    pub abs: Option<f64>,
    /// Relative tolerance; `None`: the general one.
    pub rel: Option<f64>,
}

/// One of `release.verification.gates` (J7).
#[derive(Clone, PartialEq, Debug)]
pub struct Gate {
    /// What it looks at.
    pub source: GateSource,
    /// Lower bound.
    pub min: Option<f64>,
    /// Upper bound.
    pub max: Option<f64>,
    /// Upper bound of candidate minus live.
    pub max_delta: Option<f64>,
    /// What a miss means.
    pub on_fail: OnFail,
    /// Shown only.
    pub dry_run: bool,
}

impl Gate {
    /// A gate without bounds.
    pub(crate) fn without_bounds(source: GateSource, on_fail: OnFail) -> Self {
        Self {
            source,
            min: None,
            max: None,
            max_delta: None,
            on_fail,
            dry_run: false,
        }
    }
}

/// What a [`Gate`] looks at.
#[derive(Clone, PartialEq, Debug)]
pub enum GateSource {
    /// A number of our own evidence.
    Metric(String),
    /// A query.
    Prometheus {
        /// Shown to people.
        name: String,
        /// Server.
        url: String,
        /// Query.
        query: String,
        /// Upper bound of its answer.
        max: f64,
    },
    /// Somebody else decides.
    Webhook {
        /// Shown to people.
        name: String,
        /// Whom to ask.
        url: String,
        /// For how long.
        timeout: Duration,
    },
}

/// `onFail` of a gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OnFail {
    /// The candidate has failed.
    Reject,
    /// A person decides.
    Hold,
}

/// `release.promotion`.
#[derive(Clone, PartialEq, Debug)]
pub struct Promotion {
    /// Who starts it.
    pub mode: PromotionMode,
    /// Who must agree.
    pub approvals: Approvals,
    /// A release that is approved in advance.
    pub approved_release: Option<String>,
    /// Lag above which no hand-over starts.
    pub max_cutover_lag: u64,
    /// Partitions sealed and not yet adopted.
    pub max_unadopted: u32,
    /// How many partitions at a time.
    pub steps: Vec<PromotionStep>,
}

/// `release.promotion.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PromotionMode {
    /// A person.
    Manual,
    /// A passed verification.
    Auto,
}

/// `release.promotion.approvals`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Approvals {
    /// How many people.
    pub required: u32,
    /// Whether the author may not be one of them.
    pub forbid_author: bool,
}

/// One of `release.promotion.steps`.
#[derive(Clone, PartialEq, Debug)]
pub struct PromotionStep {
    /// Share of the partitions, 0 to 1.
    pub partitions: f64,
    /// Then wait.
    pub pause: Duration,
}

/// `release.rollback`.
#[derive(Clone, PartialEq, Debug)]
pub struct Rollback {
    /// How long the old release stays ready.
    pub window: Duration,
    /// With how many pods.
    pub retain_replicas: u32,
    /// When to go back without asking.
    pub auto: Option<AutoRollback>,
}

/// `release.rollback.auto`.
#[derive(Clone, PartialEq, Debug)]
pub struct AutoRollback {
    /// Share of failed events, 0 to 1.
    pub error_rate: f64,
    /// For how long.
    pub during: Duration,
}

/// `release.onNewRelease`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NewRelease {
    /// End the window and go on.
    Settle,
    /// Wait for its end.
    Wait,
}

/// `release.deletionPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// Consumer groups go too.
    DeleteGroups,
    /// They stay.
    KeepOffsets,
}

/// One of `notifications`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notification {
    /// About what.
    pub on: Vec<NotifyOn>,
    /// Where to.
    pub url: String,
    /// What signs it.
    pub secret: Option<Secret>,
}

/// One of `notifications[].on`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum NotifyOn {
    /// The candidate passed.
    Verified,
    /// It failed.
    Failed,
    /// Nothing moves.
    Stalled,
}
