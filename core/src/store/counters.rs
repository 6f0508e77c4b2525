//! What the output counts; read per scrape, so that nothing is looked up per event.

use std::sync::Arc;
use std::time::Duration;

/// Upper bounds of the buckets of a [`Histogram`], in seconds.
pub const BUCKET_SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

const BUCKET_MICROS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Durations by bucket.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Observations per bucket of [`BUCKET_SECONDS`], not cumulative.
    pub buckets: [u64; 14],
    /// All observations, those above the last bucket too.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl Histogram {
    /// Adds one.
    pub fn observe(&mut self, duration: Duration) {
        let micros = duration.as_micros();
        if let Some(bucket) = BUCKET_MICROS
            .iter()
            .position(|bound| micros <= u128::from(*bound))
        {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum += duration;
    }
}

/// Size classes of records that are too large.
pub const OVERSIZED_BUCKETS: [&str; 5] = ["le_1Mi", "le_4Mi", "le_16Mi", "le_64Mi", "gt_64Mi"];

/// The class of a record of `bytes`.
pub(super) fn oversized_bucket(bytes: u64) -> usize {
    [1 << 20, 4 << 20, 16 << 20, 64 << 20]
        .iter()
        .position(|bound| bytes <= *bound)
        .unwrap_or(4)
}

/// Counts of one destination topic.
#[derive(Clone, Debug)]
pub struct TopicCounters {
    /// Which.
    pub topic: Arc<str>,
    /// Records that are stored.
    pub records: u64,
    /// Records that failed so that the input has to send them again.
    pub resends: u64,
    /// Records that failed in any way.
    pub failures: u64,
    /// From entering the producer to the acknowledgement.
    pub seconds: Histogram,
}

/// Everything that the store counts.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Frames received.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// Events in them.
    pub events: u64,
    /// Events answered as stored.
    pub stored: u64,
    /// Events answered as failed.
    pub failed: u64,
    /// From a frame's arrival to its last answer (P-9).
    pub seconds: Histogram,
    /// Records above the limit of their destination, by [`OVERSIZED_BUCKETS`].
    pub oversized: [u64; 5],
    /// Results that the app pushed and that are stored.
    pub pushes_stored: u64,
    /// Pushed results that were refused or not stored.
    pub pushes_refused: u64,
    /// Pushed results that were stored although they belong to no event (A-P5).
    pub uncorrelated: u64,
    /// Purges after failed deliveries.
    pub purges: u64,
    /// Producers made anew after a fatal error.
    pub rebuilds: u64,
    /// Exactly-once: transactions that are committed.
    pub committed: u64,
    /// Transactions that were aborted, or ended unknown.
    pub aborted: u64,
    /// Sessions of the publish connection.
    pub sessions: u64,
    /// How often the producer's queue was full.
    pub queue_full: u64,
    /// Per destination topic; first output, dead letter and verification.
    pub topics: Vec<TopicCounters>,
}
