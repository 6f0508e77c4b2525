//! What the input proxy measures: the table of delivery.md as far as it applies.
//!
//! Counters of events live in the machine and are read once per scrape; only calls to the app
//! are counted as they end, one observation per call, never per event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_core::breaker::Cause;
use millrace_core::intake::state::{PartitionState, Pause, State};
use millrace_core::outcome::{Class, Outcome};
use millrace_core::time::Time;
use millrace_service::telemetry::{Histogram, Metrics, Scrape};

/// Upper bounds of request times, in seconds.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
];
/// Upper bounds of batch sizes.
const RECORDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// Counts calls to the app.
#[derive(Clone)]
pub(crate) struct CallMetrics {
    seconds: [Histogram; 6],
    records: Histogram,
    requests: Arc<Mutex<HashMap<(usize, u16), u64>>>,
}

/// How a call ended; the index of its histogram.
const CLASSES: [&str; 6] = [
    "ok",
    "transient",
    "permanent",
    "misconfigured",
    "infra",
    "abandoned",
];

impl CallMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let seconds = metrics.histograms(
            "millrace_app_request_seconds",
            "Time from a request to the app to its whole answer.",
            &["class"],
            SECONDS,
        );
        let calls = Self {
            seconds: CLASSES.map(|class| seconds.with_label_values(&[class])),
            records: metrics.histogram(
                "millrace_app_batch_records",
                "Events per request to the app.",
                RECORDS,
            ),
            requests: Arc::default(),
        };
        let requests = Arc::clone(&calls.requests);
        metrics.on_scrape(move |scrape| {
            for ((class, code), total) in requests.lock().expect("no holder panics").iter() {
                let labels = [("class", CLASSES[*class]), ("code", &code.to_string())];
                let help = "Requests to the app; code 0: no answer.";
                scrape.counter("millrace_app_requests_total", help, &labels, *total);
            }
        });
        calls
    }

    /// A call ended with this HTTP status; 0: without an answer.
    pub(crate) fn call_ended(&self, outcome: &Outcome, status: u16, events: usize, took: Duration) {
        let class = match outcome {
            Outcome::Items(_) => 0,
            Outcome::Failed(failure) | Outcome::TooLarge(failure) => match failure.class {
                Class::Transient => 1,
                Class::Permanent => 2,
                Class::Misconfigured => 3,
                Class::Infra => 4,
            },
            Outcome::Abandoned => 5,
        };
        *self
            .requests
            .lock()
            .expect("no holder panics")
            .entry((class, status))
            .or_default() += 1;
        self.seconds[class].observe(took.as_secs_f64());
        self.records
            .observe(f64::from(u32::try_from(events).unwrap_or(u32::MAX)));
    }
}

/// Adds what the machine counted.
pub(crate) fn read(state: &State, now: Time, scrape: &mut Scrape<'_>) {
    for partition in &state.partitions {
        let number = partition.partition.number().to_string();
        let labels = [
            ("topic", partition.partition.topic()),
            ("partition", number.as_str()),
        ];
        counters(partition, &labels, scrape);
        if partition.phase != "former" {
            gauges(partition, &labels, now.wall_ms, scrape);
            lag(partition, &labels, now, scrape);
        }
    }
    process(state, now, scrape);
}

/// Absent, not 0, while the ends of the logs are not known (D-C4).
#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn lag(partition: &PartitionState, labels: &Labels<'_>, now: Time, scrape: &mut Scrape<'_>) {
    let Some(lag) = partition.lag else { return };
    let help = "Positions from the last commit to the end of the log.";
    scrape.gauge("millrace_lag_records", help, labels, lag.records as f64);
    let help = "Age of the next uncommitted event; 0 when caught up.";
    let age = lag.age(now).as_secs_f64();
    scrape.gauge("millrace_lag_seconds", help, labels, age);
}

type Labels<'a> = [(&'a str, &'a str); 2];

fn with<'a>(labels: &Labels<'a>, name: &'a str, value: &'a str) -> [(&'a str, &'a str); 3] {
    [labels[0], labels[1], (name, value)]
}

fn counters(partition: &PartitionState, labels: &Labels<'_>, scrape: &mut Scrape<'_>) {
    let c = &partition.counters;
    scrape.counter(
        "millrace_input_records_total",
        "Events taken from the log.",
        labels,
        c.records,
    );
    scrape.counter(
        "millrace_input_bytes_total",
        "Their bytes: keys, values, headers.",
        labels,
        c.bytes,
    );
    scrape.counter(
        "millrace_ledger_skipped_total",
        "Events that a previous owner had finished.",
        labels,
        c.ledger_skipped,
    );
    scrape.counter(
        "millrace_data_loss_records_total",
        "Positions that the log lost before they were read.",
        labels,
        c.data_loss,
    );
    for (outcome, total) in [
        ("emitted", c.emitted),
        ("filtered", c.filtered),
        ("dead_lettered", c.dead_lettered),
        ("dropped", c.dropped),
    ] {
        let labels = with(labels, "outcome", outcome);
        scrape.counter(
            "millrace_terminal_total",
            "Events whose outcome is final.",
            &labels,
            total,
        );
    }
    for (reason, total) in [
        ("revoked", c.stale_revoked),
        ("lost", c.stale_lost),
        ("stop", c.stale_stop),
    ] {
        let labels = with(labels, "reason", reason);
        let help = "Events left unfinished; their next owner reads them again.";
        scrape.counter("millrace_stale_records_total", help, &labels, total);
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn gauges(partition: &PartitionState, labels: &Labels<'_>, now_ms: i64, scrape: &mut Scrape<'_>) {
    let span = partition.end.since(partition.committed);
    let age_ms = partition
        .oldest_timestamp_ms
        .map_or(0, |ms| now_ms.saturating_sub(ms).max(0));
    for (name, help, value) in [
        (
            "millrace_watermark_offset",
            "The lowest position that is not terminal.",
            partition.watermark.offset() as f64,
        ),
        (
            "millrace_uncommitted_span",
            "Positions from the last commit to the last event taken.",
            span as f64,
        ),
        (
            "millrace_in_flight",
            "Events taken and not yet terminal.",
            partition.in_flight as f64,
        ),
        (
            "millrace_in_flight_bytes",
            "Their bytes: keys, values, headers.",
            partition.in_flight_bytes as f64,
        ),
        (
            "millrace_ledger_bytes",
            "Size of the metadata of the last commit.",
            partition.ledger_bytes as f64,
        ),
        (
            "millrace_conservation_gap_records",
            "Events that nobody accounts for; anything but 0 is a defect.",
            partition.conservation_gap() as f64,
        ),
        (
            "millrace_oldest_in_flight_seconds",
            "Age of the oldest event in flight.",
            age_ms as f64 / 1000.0,
        ),
        (
            "millrace_hot_lane_share",
            "Share of the waiting events in the fullest lane, 0 to 1.",
            partition.hot_lane_share,
        ),
        (
            "millrace_parked_lanes",
            "Keys whose events are dead-lettered (deadLetter.onDeadLetter: ParkKey).",
            partition.parked.len() as f64,
        ),
    ] {
        scrape.gauge(name, help, labels, value);
    }
    for reason in [
        Pause::Window,
        Pause::Breaker,
        Pause::DataLoss,
        Pause::Token,
        Pause::Operator,
    ] {
        let paused = f64::from(u8::from(partition.paused == Some(reason)));
        let labels = with(labels, "reason", reason.as_str());
        scrape.gauge(
            "millrace_partition_paused",
            "1 while no events are taken.",
            &labels,
            paused,
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn process(state: &State, now: Time, scrape: &mut Scrape<'_>) {
    if let Some(replicas) = state.desired_replicas {
        let help = "Replicas that the backlog of these partitions wants.";
        scrape.gauge("millrace_desired_replicas", help, &[], f64::from(replicas));
    }
    let stalled = u32::try_from(state.stalled).unwrap_or(u32::MAX);
    let help = "Partitions with work whose watermark does not move.";
    scrape.gauge("millrace_stalled_partitions", help, &[], f64::from(stalled));
    let help = "How far events of the last minute were stamped ahead of this host's wall clock.";
    let lead = state.skew.lead(now).as_secs_f64();
    scrape.gauge("millrace_clock_skew_seconds", help, &[], lead);
    let limit = f64::from(state.concurrency_limit);
    scrape.gauge(
        "millrace_app_concurrency_limit",
        "Requests that may be open at the app.",
        &[],
        limit,
    );
    scrape.gauge(
        "millrace_app_batch_limit_records",
        "Events that a request to the app may have.",
        &[],
        state.batch_limit as f64,
    );
    for cause in [Cause::Failures, Cause::Misconfigured, Cause::Storm] {
        let open = if state.breaker == Some(cause) {
            2.0
        } else {
            0.0
        };
        let help = "0 closed, 2 open or probing.";
        scrape.gauge(
            "millrace_breaker_state",
            help,
            &[("cause", cause.as_str())],
            open,
        );
    }
    for (result, total) in ["ok", "retriable", "fenced"].into_iter().zip(state.commits) {
        scrape.counter(
            "millrace_commits_total",
            "Commits by how they ended.",
            &[("result", result)],
            total,
        );
    }
    for (kind, total) in ["assign", "revoke", "lost"]
        .into_iter()
        .zip(state.rebalances)
    {
        scrape.counter(
            "millrace_rebalances_total",
            "Rebalances that gave or took partitions.",
            &[("kind", kind)],
            total,
        );
    }
    scrape.counter(
        "millrace_app_crashes_total",
        "Deaths of the app with requests in flight.",
        &[],
        state.app_crashes,
    );
    for ((reason, stage), total) in &state.dead_letters {
        scrape.counter(
            "millrace_dead_letters_total",
            "Events stored in the dead-letter topic.",
            &[("reason", reason), ("stage", stage)],
            *total,
        );
    }
    scrape.counter(
        "millrace_retries_total",
        "Attempts that were put off.",
        &[("class", "transient")],
        state.retries,
    );
    scrape.counter(
        "millrace_stale_results_total",
        "Answers that nobody waited for any more.",
        &[],
        state.stale_results,
    );
    let e2e = &state.latency;
    scrape.histogram(
        "millrace_e2e_seconds",
        "From an event's timestamp to its stored result.",
        &[],
        e2e.buckets(),
        e2e.sum(),
    );
    let overhead = &state.overhead;
    scrape.histogram(
        "millrace_proxy_overhead_seconds",
        "From taking an event to its stored result, without the time at the app.",
        &[],
        overhead.buckets(),
        overhead.sum(),
    );
    let drain = &state.revoke_drain;
    scrape.histogram(
        "millrace_revoke_drain_seconds",
        "How long partitions took to be given back.",
        &[],
        drain.buckets(),
        drain.sum(),
    );
}
