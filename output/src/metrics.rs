//! What the output tells Prometheus: the table of delivery.md, and P-9.

use std::sync::{Arc, Mutex, PoisonError};

use millrace_core::store::{BUCKET_SECONDS, Counters, Histogram, OVERSIZED_BUCKETS};
use millrace_service::telemetry::{Metrics, Scrape};

/// The newest counts of the store; the publisher renews them, a scrape reads them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot(Arc<Mutex<Counters>>);

impl Snapshot {
    pub(crate) fn renew(&self, counters: Counters) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    fn read(&self) -> Counters {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Shows the counts at each scrape.
    pub(crate) fn show_on(&self, metrics: &Metrics, dead_letter: &str) {
        let (snapshot, dead_letter) = (self.clone(), dead_letter.to_owned());
        metrics.on_scrape(move |scrape| show(scrape, &snapshot.read(), &dead_letter));
    }
}

fn show(scrape: &mut Scrape<'_>, counters: &Counters, dead_letter: &str) {
    for topic in &counters.topics {
        let labels = [("topic", &*topic.topic)];
        scrape.counter(
            "millrace_output_records_total",
            "Records stored.",
            &labels,
            topic.records,
        );
        scrape.counter(
            "millrace_output_resends_total",
            "Records that were not stored and are sent again.",
            &labels,
            topic.resends,
        );
        histogram(
            scrape,
            "millrace_output_seconds",
            "Time from handing a record to the producer to its acknowledgement.",
            &labels,
            &topic.seconds,
        );
        if &*topic.topic == dead_letter {
            scrape.counter(
                "millrace_dlq_produce_failures_total",
                "Dead letters that could not be stored; they are sent again.",
                &labels,
                topic.failures,
            );
        }
    }
    for (bucket, count) in OVERSIZED_BUCKETS.iter().zip(counters.oversized) {
        scrape.counter(
            "millrace_oversized_records_total",
            "Results above the limit of their topic.",
            &[("stage", "output"), ("bucket", bucket)],
            count,
        );
    }
    scrape.counter(
        "millrace_publish_frames_total",
        "Frames of results received.",
        &[],
        counters.frames,
    );
    scrape.counter(
        "millrace_publish_bytes_total",
        "Bytes of these frames.",
        &[],
        counters.frame_bytes,
    );
    scrape.counter(
        "millrace_publish_events_total",
        "Events in these frames.",
        &[],
        counters.events,
    );
    for (result, count) in [("stored", counters.stored), ("failed", counters.failed)] {
        scrape.counter(
            "millrace_publish_answers_total",
            "Events answered.",
            &[("result", result)],
            count,
        );
    }
    histogram(
        scrape,
        "millrace_publish_seconds",
        "Time from the arrival of a frame of results to its last answer.",
        &[],
        &counters.seconds,
    );
    scrape.counter(
        "millrace_publish_sessions_total",
        "Connections of the input proxy.",
        &[],
        counters.sessions,
    );
    for (result, count) in [
        ("committed", counters.committed),
        ("aborted", counters.aborted),
    ] {
        scrape.counter(
            "millrace_transactions_total",
            "Exactly-once: transactions that ended.",
            &[("result", result)],
            count,
        );
    }
    for (result, count) in [
        ("stored", counters.pushes_stored),
        ("refused", counters.pushes_refused),
    ] {
        scrape.counter(
            "millrace_pushed_results_total",
            "Results that the app posted (push mode).",
            &[("result", result)],
            count,
        );
    }
    scrape.counter(
        "millrace_uncorrelated_results_total",
        "Posted results that belong to no event and were stored all the same.",
        &[],
        counters.uncorrelated,
    );
    scrape.counter(
        "millrace_producer_purges_total",
        "Purges after failed deliveries.",
        &[],
        counters.purges,
    );
    scrape.counter(
        "millrace_producer_rebuilds_total",
        "Producers made anew after a fatal error.",
        &[],
        counters.rebuilds,
    );
    scrape.counter(
        "millrace_producer_queue_full_total",
        "Times that the producer's queue was full.",
        &[],
        counters.queue_full,
    );
}

fn histogram(
    scrape: &mut Scrape<'_>,
    name: &'static str,
    help: &str,
    labels: &[(&str, &str)],
    of: &Histogram,
) {
    let counted: u64 = of.buckets.iter().sum();
    let buckets = BUCKET_SECONDS
        .into_iter()
        .zip(of.buckets)
        .chain([(f64::INFINITY, of.count - counted)]);
    scrape.histogram(name, help, labels, buckets, of.sum.as_secs_f64());
}
