//! What a bench found, as it is kept in `bench/results/`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::copy::Copy;
use super::load::Load;

/// What single requests have to reach of the app's own ceiling.
pub const SINGLE_MIN: f64 = 0.4;

/// What batches have to reach of the plain copy.
pub const BATCH_MIN: f64 = 0.25;

/// What exactly-once has to reach of at-least-once.
pub const ONCE_MIN: f64 = 0.5;

/// A whole bench.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// RFC 3339.
    pub when: String,
    /// Of this program.
    pub version: String,
    /// `dev` or `release`.
    pub build: &'static str,
    /// Processor, as it calls itself.
    pub processor: String,
    /// How many processors this program may use.
    pub processors: usize,
    /// Events that were preloaded.
    pub events: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Distinct keys.
    pub keys: u64,
    /// Partitions of each topic.
    pub partitions: i32,
    /// The plain copy.
    pub copy: Copy,
    /// Each way of asking the app, with each guarantee.
    pub runs: Vec<Run>,
    /// What exactly-once reaches of at-least-once, by the way of asking.
    pub exactly_once_to_at_least_once: BTreeMap<&'static str, f64>,
}

/// One drain of the preloaded events.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// `single` or `batch`.
    pub request: &'static str,
    /// `at-least-once` or `exactly-once`.
    pub guarantee: &'static str,
    /// Events per request, at most.
    pub batch_records: u64,
    /// The app alone, under the load generator, before and after the drain; in requests.
    pub app_alone: [Load; 2],
    /// Events a second that the app takes at most: the mean of both, as a machine that others
    /// use too changes its pace.
    pub app_events_per_second: f64,
    /// Through input, app and output.
    pub drain: Drain,
    /// `drain` by the plain copy.
    pub of_copy: f64,
    /// `drain` by the app's ceiling.
    pub of_app: f64,
    /// The one of both that counts, and what it has to reach.
    pub target: Target,
    /// Whether the audit of the topics holds.
    pub audit: crate::audit::Counts,
    /// The same, in a word.
    pub audit_ok: bool,
}

/// How long the drain took, and what it cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drain {
    /// Events between the two looks.
    pub events: u64,
    /// Time between them.
    pub seconds: f64,
    /// Events a second.
    pub per_second: f64,
    /// Processor time of the input proxy.
    pub input_us_per_event: f64,
    /// Processor time of the output proxy.
    pub output_us_per_event: f64,
    /// Processor time of the app.
    pub app_us_per_event: f64,
    /// Processor time of the broker.
    pub broker_us_per_event: f64,
    /// Memory of the input proxy at the end.
    pub input_resident_bytes: u64,
    /// Memory of the output proxy at the end.
    pub output_resident_bytes: u64,
}

/// A ratio that has to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Target {
    /// What it is a ratio of.
    pub of: &'static str,
    /// What was reached.
    pub reached: f64,
    /// What has to be.
    pub wanted: f64,
}

impl Target {
    /// Whether it is reached.
    pub fn met(&self) -> bool {
        self.reached >= self.wanted
    }
}

impl Report {
    /// Whether every audit holds.
    pub fn correct(&self) -> bool {
        self.runs.iter().all(|run| run.audit_ok)
    }

    /// Whether every target is reached.
    pub fn fast_enough(&self) -> bool {
        self.runs.iter().all(|run| run.target.met())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} millrace {} ({} build)",
            self.when, self.version, self.build
        )?;
        writeln!(f, "{} x {}", self.processors, self.processor)?;
        writeln!(
            f,
            "{} events of {} bytes, {} keys, {} partitions",
            self.events, self.value_bytes, self.keys, self.partitions
        )?;
        writeln!(f, "plain copy: {:.0} events/s", self.copy.per_second)?;
        for run in &self.runs {
            let drain = &run.drain;
            writeln!(f)?;
            writeln!(
                f,
                "{}, {} (up to {} events a request): {:.0} events/s",
                run.request, run.guarantee, run.batch_records, drain.per_second
            )?;
            writeln!(
                f,
                "  {:.2} of the plain copy, {:.2} of what the app takes ({:.0} events/s)",
                run.of_copy, run.of_app, run.app_events_per_second
            )?;
            writeln!(
                f,
                "  processor time, us/event: input {:.1}, output {:.1}, both {:.1}; app {:.1}, broker {:.1}",
                drain.input_us_per_event,
                drain.output_us_per_event,
                drain.input_us_per_event + drain.output_us_per_event,
                drain.app_us_per_event,
                drain.broker_us_per_event
            )?;
            writeln!(
                f,
                "  memory: input {}, output {}",
                crate::screen::human_bytes(drain.input_resident_bytes),
                crate::screen::human_bytes(drain.output_resident_bytes)
            )?;
            let verdict = if run.target.met() { "met" } else { "MISSED" };
            writeln!(
                f,
                "  target {:.2} of the {}: {verdict} ({:.2})",
                run.target.wanted, run.target.of, run.target.reached
            )?;
            let verdict = if run.audit_ok { "holds" } else { "FAILS" };
            writeln!(f, "  audit {verdict}: {}", run.audit)?;
        }
        for (request, ratio) in &self.exactly_once_to_at_least_once {
            writeln!(f)?;
            writeln!(f, "{request}: exactly_once_to_at_least_once {ratio:.2}")?;
        }
        Ok(())
    }
}
