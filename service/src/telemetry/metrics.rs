//! The metrics of a process, as Prometheus reads them.
//!
//! Two ways in: histograms are registered and fed as things happen; counters and gauges of the
//! machines are read when somebody scrapes ([`Metrics::on_scrape`]), so events cost nothing.
//!
//! Invariant: every series carries `block`, `release` and `role`; none carries a key or an id.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{HistogramOpts, HistogramVec, Registry, TextEncoder};

type Reader = Box<dyn Fn(&mut Scrape) + Send + Sync>;

/// Metrics of one process. All clones are one.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    labels: Arc<Vec<(&'static str, String)>>,
    readers: Arc<Mutex<Vec<Reader>>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics")
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics of a process of this block, release and role (`input`, `output`).
    pub fn new(block: &str, release: &str, role: &str) -> Self {
        let labels = vec![
            ("block", block.to_owned()),
            ("release", release.to_owned()),
            ("role", role.to_owned()),
        ];
        let common: HashMap<String, String> = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let registry = Registry::new_custom(None, Some(common)).expect("the label names are valid");
        let metrics = Self {
            registry,
            labels: Arc::new(labels),
            readers: Arc::default(),
        };
        metrics.on_scrape(|scrape| {
            let version = [
                ("version", env!("CARGO_PKG_VERSION")),
                ("revision", revision()),
            ];
            scrape.gauge(
                "millrace_build_info",
                "Which build this is; always 1.",
                &version,
                1.0,
            );
        });
        metrics
    }

    /// A histogram without labels of its own.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histogram = prometheus::Histogram::with_opts(options)
            .expect("names and buckets are constants of ours");
        self.register(Box::new(histogram.clone()));
        histogram
    }

    /// A histogram with labels. Keep what `with_label_values` returns: looking it up costs.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histograms =
            HistogramVec::new(options, labels).expect("names and buckets are constants of ours");
        self.register(Box::new(histograms.clone()));
        histograms
    }

    fn register(&self, collector: Box<dyn prometheus::core::Collector>) {
        self.registry
            .register(collector)
            .expect("each metric is made once per process");
    }

    /// Has `read` called at each scrape, to add what the machines counted.
    pub fn on_scrape(&self, read: impl Fn(&mut Scrape) + Send + Sync + 'static) {
        self.readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(read));
    }

    /// Shows at each scrape how long the auth token of a connection still serves; 0 without one
    /// (D-P2).
    pub fn show_auth_token(
        &self,
        connection: &str,
        left: impl Fn() -> Duration + Send + Sync + 'static,
    ) {
        let connection = connection.to_owned();
        self.on_scrape(move |scrape| {
            scrape.gauge(
                "millrace_auth_token_expiry_seconds",
                "Time until the auth token in use ends; 0 without one.",
                &[("connection", &connection)],
                left().as_secs_f64(),
            );
        });
    }

    /// Everything, in the text format of Prometheus.
    pub fn text(&self) -> String {
        let mut scrape = Scrape {
            labels: &self.labels,
            families: BTreeMap::new(),
        };
        for read in self
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            read(&mut scrape);
        }
        let mut families = self.registry.gather();
        families.extend(scrape.families.into_values());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("a family is added together with its first value")
    }
}

fn revision() -> &'static str {
    option_env!("MILLRACE_REVISION").unwrap_or("unknown")
}

/// One scrape: add values to it.
#[derive(Debug)]
pub struct Scrape<'m> {
    labels: &'m [(&'static str, String)],
    families: BTreeMap<&'static str, MetricFamily>,
}

impl Scrape<'_> {
    /// A number that only grows.
    pub fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(as_f64(value));
        let mut metric = self.metric(labels);
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, metric);
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = self.metric(labels);
        metric.set_gauge(gauge);
        self.add(name, help, MetricType::GAUGE, metric);
    }

    /// Counts by size: `buckets` are upper bounds, rising, with the count of each bucket alone;
    /// the last bound is infinite.
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (f64, u64)>,
        sum: f64,
    ) {
        let mut total = 0;
        let buckets = buckets.map(|(bound, count)| {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(total);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(total);
        histogram.set_sample_sum(sum);
        let mut metric = self.metric(labels);
        metric.set_histogram(histogram);
        self.add(name, help, MetricType::HISTOGRAM, metric);
    }

    fn metric(&self, labels: &[(&str, &str)]) -> Metric {
        let common = self
            .labels
            .iter()
            .map(|(name, value)| (*name, value.as_str()));
        let pairs = common.chain(labels.iter().copied()).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        Metric::from_label(pairs.collect())
    }

    fn add(&mut self, name: &'static str, help: &str, kind: MetricType, metric: Metric) {
        let family = self.families.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        assert_eq!(family.get_field_type(), kind, "{name} is of one kind");
        family.mut_metric().push(metric);
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "metrics are f64; a counter above 2^53 may be off by one"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_carries_block_release_and_role() {
        let metrics = Metrics::new("score", "r1-0a", "input");
        let seconds = metrics.histograms(
            "millrace_app_request_seconds",
            "Time of app calls.",
            &["class"],
            &[0.1, 1.0],
        );
        seconds.with_label_values(&["ok"]).observe(0.5);
        metrics.on_scrape(|scrape| {
            for partition in ["0", "1"] {
                let labels = [("topic", "tx"), ("partition", partition)];
                scrape.counter("millrace_input_records_total", "Events read.", &labels, 7);
            }
            scrape.gauge("millrace_in_flight", "Events in flight.", &[], 2.0);
        });
        let text = metrics.text();
        let common = r#"block="score",release="r1-0a",role="input""#;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            for pair in common.split(',') {
                assert!(line.contains(pair), "{line}");
            }
        }
        assert!(
            text.contains("# TYPE millrace_input_records_total counter"),
            "{text}"
        );
        assert_eq!(
            text.matches("# HELP millrace_input_records_total").count(),
            1
        );
        assert!(
            text.contains(&format!(
                r#"millrace_input_records_total{{{common},topic="tx",partition="1"}} 7"#
            )),
            "{text}"
        );
        assert!(
            text.contains("millrace_app_request_seconds_count"),
            "{text}"
        );
        assert!(text.contains("millrace_build_info"), "{text}");
    }
}
