//! What the comparison of a candidate with the live release showed, and what follows from it
//! (J1-J9).
//!
//! [`record`] is what both releases write to the verification topic. [`Evidence`] is a fold over
//! that topic: [`join`] pairs the answers, [`compare`] says whether they agree, and counters of
//! bounded size keep the rest. [`verdict`] holds the result against the gates, [`digest`] makes
//! the document that decisions bind to, and [`guard`] protects the live release meanwhile.
//!
//! Invariant: the same records give the same evidence to the last bit, after a restart, on
//! another machine, and in any order of the source partitions. Every counter is either whole or
//! adds without rounding.
//! Invariant: memory is bounded, however many events, fields, labels and partitions there are.

use std::sync::Arc;

use crate::contract::block::Verification;
use crate::token::ReleaseId;

pub mod agreement;
pub mod compare;
pub mod digest;
pub mod drift;
mod exact;
pub mod guard;
mod histogram;
pub mod join;
mod json;
mod labels;
pub mod path;
pub mod record;
pub mod verdict;
pub mod worst;

pub use histogram::Whose;

use agreement::{Interval, Tally, adjusted};
use compare::{Comparator, Comparison, Obstacle, Reading};
use drift::{Drift, FieldDrift, Latency, Rates};
use join::{Counts, Join, RoomSize};
use labels::Confusion;
use record::{Answer, Record, Source};
use worst::{Disagreement, Worst};

/// The fold over the verification topic.
#[derive(Clone, Debug)]
pub struct Evidence {
    green: ReleaseId,
    blue: ReleaseId,
    comparator: Comparator,
    join: Join,
    agreement: Tally,
    noise: Tally,
    too_large: u64,
    no_label: u64,
    unreadable: u64,
    latency: Latency,
    rates: Rates,
    drift: Drift,
    confusion: Confusion,
    worst: Worst,
}

/// All numbers of the evidence at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Summary {
    /// The live release.
    pub green: ReleaseId,
    /// The candidate.
    pub blue: ReleaseId,
    /// Events that could be compared, and those of them that agree.
    pub agreement: Tally,
    /// Events that Green answered twice, and those at which it agreed with itself.
    pub noise: Tally,
    /// Pairs that were too large to be compared.
    pub too_large: u64,
    /// Pairs without a label on either side.
    pub no_label: u64,
    /// Records of the topic that could not be read.
    pub unreadable: u64,
    /// Source partitions with at least one pair.
    pub partitions: usize,
    /// What came of the records.
    pub counts: Counts,
    /// p95 of the app time, microseconds, of Green and Blue, over paired events.
    pub latency_p95_us: [Option<f64>; 2],
    /// Blue's p95 over Green's.
    pub latency_ratio: Option<f64>,
    /// Paired events without an answer: Green's and Blue's.
    pub errors: [Tally; 2],
    /// Paired events that are dead letters: Green's and Blue's.
    pub dead_letters: [Tally; 2],
    /// How numeric fields moved, by path.
    pub fields: Vec<FieldDrift>,
    /// Whether there are more numeric fields than are followed.
    pub more_fields: bool,
    /// Pairs of labels, Green's first, most frequent first; `None` stands for all further labels.
    pub confusion: Vec<(Option<String>, Option<String>, u64)>,
    /// The worst disagreements.
    pub worst: Vec<Disagreement>,
}

impl Summary {
    /// Where the true agreement lies, noise not excused.
    pub fn interval(&self) -> Interval {
        self.agreement.interval()
    }

    /// What gates look at: the lower bound of the agreement, noise excused (J3, J4). Nothing
    /// before the first comparison.
    pub fn agreement_lower(&self) -> Option<f64> {
        (self.agreement.total > 0).then(|| adjusted(self.agreement, self.noise))
    }
}

impl Evidence {
    /// Nothing yet about the candidate `blue` of the live release `green`. The number of source
    /// partitions divides the memory for unpaired events; it must not change when the evidence
    /// is built again.
    pub fn new(
        green: ReleaseId,
        blue: ReleaseId,
        verification: &Verification,
        source_partitions: usize,
    ) -> Result<Self, compare::Error> {
        let compare = &verification.compare;
        let size = RoomSize::for_partitions(source_partitions);
        let join = Join::new(green.clone(), blue.clone(), compare.noise_baseline, size);
        Ok(Self {
            green,
            blue,
            comparator: Comparator::new(compare)?,
            join,
            agreement: Tally::default(),
            noise: Tally::default(),
            too_large: 0,
            no_label: 0,
            unreadable: 0,
            latency: Latency::default(),
            rates: Rates::default(),
            drift: Drift::default(),
            confusion: Confusion::default(),
            worst: Worst::default(),
        })
    }

    /// Takes the next record of the topic.
    pub fn take(&mut self, record: Record) {
        let source = record.source.clone();
        let completed = self.join.take(record);
        if let Some((green, blue)) = completed.pair {
            self.pair(&source, &green, &blue);
        }
        if let Some((green, again)) = completed.noise {
            let (green, again) = (Reading::of(&green), Reading::of(&again));
            match self.comparator.compare(&green, &again) {
                Comparison::Agree => self.noise.count(true),
                Comparison::Disagree(_) => self.noise.count(false),
                Comparison::Impossible(_) => {}
            }
        }
    }

    /// A record of the topic could not be read.
    pub fn unreadable(&mut self) {
        self.unreadable += 1;
    }

    fn pair(&mut self, source: &Source, green: &Arc<Answer>, blue: &Arc<Answer>) {
        self.latency.observe(green, blue);
        self.rates.observe(green.class, blue.class);
        let (green, blue) = (Reading::of(green), Reading::of(blue));
        self.drift.observe(&self.comparator, &green, &blue);
        let confusion = &mut self.confusion;
        self.comparator.labels(&green, &blue, &mut |green, blue| {
            confusion.count(green, blue)
        });
        match self.comparator.compare(&green, &blue) {
            Comparison::Agree => self.agreement.count(true),
            Comparison::Disagree(severity) => {
                self.agreement.count(false);
                let made = |of: &Reading<'_>| (of.class(), of.count());
                self.worst
                    .offer(severity, source, (made(&green), made(&blue)), || {
                        self.comparator.show(&green, &blue)
                    });
            }
            Comparison::Impossible(Obstacle::TooLarge) => self.too_large += 1,
            Comparison::Impossible(Obstacle::NoLabel) => self.no_label += 1,
        }
    }

    /// What is known now.
    pub fn summary(&self) -> Summary {
        let own = |label: Option<&str>| label.map(str::to_owned);
        Summary {
            green: self.green.clone(),
            blue: self.blue.clone(),
            agreement: self.agreement,
            noise: self.noise,
            too_large: self.too_large,
            no_label: self.no_label,
            unreadable: self.unreadable,
            partitions: self.join.partitions(),
            counts: self.join.counts(),
            latency_p95_us: [Whose::Green, Whose::Blue].map(|whose| self.latency.p95_us(whose)),
            latency_ratio: self.latency.ratio(),
            errors: self.rates.errors(),
            dead_letters: self.rates.dead_letters(),
            fields: self.drift.fields(),
            more_fields: self.drift.left_out(),
            confusion: self
                .confusion
                .cells()
                .into_iter()
                .map(|(green, blue, count)| (own(green), own(blue), count))
                .collect(),
            worst: self.worst.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests;
