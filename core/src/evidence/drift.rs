//! Did the numbers themselves move? Per numeric field: mean difference, deviations and the
//! stability index; over the paired events: latency and rates of errors and dead letters (J5).
//!
//! Invariant: memory is bounded, and what is left out does not depend on the order of events: of
//! too many fields those stay that field rules name, then those outside of lists, then by name.

use std::collections::BTreeMap;

use super::agreement::Tally;
use super::compare::{Comparator, Reading, leaves};
use super::exact::{Moments, natural_log};
use super::histogram::{Histogram, Whose};
use super::json::Json;
use super::path::Place;
use super::record::{Answer, Class};
use crate::limits::{EVIDENCE_FIELDS_MAX, EVIDENCE_PATH_BYTES_MAX};

/// Bins of the stability index.
const QUANTILES: u64 = 20;

/// Which field, in the order in which fields stay: named ones, then outside of lists, then by
/// name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rank {
    unnamed: bool,
    in_a_list: bool,
    path: String,
}

/// The numbers of both at one field.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Numbers {
    moments: [Moments; 2],
    histogram: Histogram,
    odd: [u64; 2],
}

/// Follows all numeric fields of paired events.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Drift {
    fields: BTreeMap<Rank, Numbers>,
    left_out: bool,
}

/// How one field moved.
#[derive(Clone, PartialEq, Debug)]
pub struct FieldDrift {
    /// Where it stands.
    pub path: String,
    /// Green's numbers.
    pub green: Spread,
    /// Blue's numbers.
    pub blue: Spread,
    /// Blue's mean minus Green's.
    pub mean_difference: Option<f64>,
    /// The stability index; nothing unless both said numbers. Below 0.1 nothing moved; above
    /// 0.25 much did.
    pub stability: Option<f64>,
}

/// The numbers that one release said at a field.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: Option<f64>,
    /// Their standard deviation.
    pub deviation: Option<f64>,
    /// NaN, infinities and numbers beyond 1e140, which count nowhere else.
    pub odd: u64,
}

impl Drift {
    /// Counts the numbers of both answers to one event.
    pub fn observe(&mut self, comparator: &Comparator, green: &Reading<'_>, blue: &Reading<'_>) {
        for (whose, reading) in [(Whose::Green, green), (Whose::Blue, blue)] {
            for value in reading.values() {
                leaves(value, &mut Place::default(), &mut |place, leaf| {
                    if let Json::Number(number) = leaf
                        && !comparator.is_ignored(place)
                    {
                        self.count(comparator, place, whose, number.float);
                    }
                    true
                });
            }
        }
    }

    fn count(&mut self, comparator: &Comparator, place: &Place<'_>, whose: Whose, number: f64) {
        let rank = Rank {
            unnamed: !comparator.is_named(place),
            in_a_list: place.in_a_list(),
            path: place.to_string(),
        };
        let full = self.fields.len() >= EVIDENCE_FIELDS_MAX && !self.fields.contains_key(&rank);
        let last = self.fields.last_key_value().map(|(last, _)| last);
        let beyond = full && last.is_some_and(|last| *last < rank);
        if beyond || rank.path.len() > EVIDENCE_PATH_BYTES_MAX {
            self.left_out = true;
            return;
        }
        if full {
            // What leaves was never among the first of all fields, what stays always was.
            self.fields.pop_last();
            self.left_out = true;
        }
        let numbers = self.fields.entry(rank).or_insert_with(|| Numbers {
            moments: [Moments::new(), Moments::new()],
            histogram: Histogram::default(),
            odd: [0, 0],
        });
        let i = usize::from(whose == Whose::Blue);
        if Moments::takes(number) {
            numbers.moments[i].add(number);
            numbers.histogram.add(whose, number);
        } else {
            numbers.odd[i] += 1;
        }
    }

    /// Whether there are more fields than are followed.
    pub fn left_out(&self) -> bool {
        self.left_out
    }

    /// How each field moved, by name.
    pub fn fields(&self) -> Vec<FieldDrift> {
        let mut fields: Vec<_> = self
            .fields
            .iter()
            .map(|(rank, n)| n.drift(&rank.path))
            .collect();
        fields.sort_by(|a, b| a.path.cmp(&b.path));
        fields
    }
}

impl Numbers {
    fn drift(&self, path: &str) -> FieldDrift {
        let [green, blue] = [0, 1].map(|i| Spread {
            count: self.moments[i].count(),
            mean: self.moments[i].mean(),
            deviation: self.moments[i].deviation(),
            odd: self.odd[i],
        });
        let difference = |green: Option<f64>, blue: Option<f64>| Some(blue? - green?);
        FieldDrift {
            path: path.to_owned(),
            green,
            blue,
            mean_difference: difference(green.mean, blue.mean),
            stability: stability(&self.histogram),
        }
    }
}

/// The population stability index: Σ (b−g)·ln(b/g) over the shares of both in Green's quantile
/// bins. Half an event is added to each count, so that an empty bin has a logarithm.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of events are far below 2^53"
)]
fn stability(histogram: &Histogram) -> Option<f64> {
    let totals = [Whose::Green, Whose::Blue].map(|whose| histogram.total(whose));
    if totals.contains(&0) {
        return None;
    }
    let parts = histogram.by_green_quantiles(QUANTILES);
    let n = parts.len() as f64;
    let share = |count: u64, total: u64| (count as f64 + 0.5) / (total as f64 + 0.5 * n);
    let index = parts.iter().map(|[green, blue]| {
        let (green, blue) = (share(*green, totals[0]), share(*blue, totals[1]));
        (blue - green) * natural_log(blue / green)
    });
    Some(index.sum())
}

/// App times of paired events, microseconds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Latency {
    histogram: Histogram,
}

impl Latency {
    /// Counts an event for which both apps were asked.
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a call are far below 2^53"
    )]
    pub fn observe(&mut self, green: &Answer, blue: &Answer) {
        if let (Some(green), Some(blue)) = (green.latency_us, blue.latency_us) {
            self.histogram.add(Whose::Green, green as f64);
            self.histogram.add(Whose::Blue, blue as f64);
        }
    }

    /// The time that 95 % of the calls did not exceed.
    pub fn p95_us(&self, whose: Whose) -> Option<f64> {
        self.histogram.percentile(whose, 95)
    }

    /// Blue's p95 over Green's; a p95 below one microsecond counts as one.
    pub fn ratio(&self) -> Option<f64> {
        let [green, blue] = [Whose::Green, Whose::Blue].map(|whose| self.p95_us(whose));
        Some(blue?.max(1.0) / green?.max(1.0))
    }
}

/// Events without an answer, among the paired ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    errors: [Tally; 2],
    dead_letters: [Tally; 2],
}

impl Rates {
    /// Counts a paired event.
    pub fn observe(&mut self, green: Class, blue: Class) {
        for (i, class) in [green, blue].into_iter().enumerate() {
            self.errors[i].count(!class.is_answered());
            self.dead_letters[i].count(class == Class::DeadLettered);
        }
    }

    /// Events without an answer: dead-lettered, dropped or failed; Green's and Blue's.
    pub fn errors(&self) -> [Tally; 2] {
        self.errors
    }

    /// Dead letters; Green's and Blue's.
    pub fn dead_letters(&self) -> [Tally; 2] {
        self.dead_letters
    }
}

/// Blue's share minus Green's, percentage points; nothing without events.
pub fn delta_points([green, blue]: [Tally; 2]) -> Option<f64> {
    // The counts are subtracted, not the shares: equal counts must give zero.
    let difference = i128::from(blue.hits) * i128::from(green.total)
        - i128::from(green.hits) * i128::from(blue.total);
    let whole = i128::from(green.total) * i128::from(blue.total);
    #[expect(
        clippy::cast_precision_loss,
        reason = "the quotient of two counts; its last digits do not matter"
    )]
    (whole > 0).then(|| difference as f64 * 100.0 / whole as f64)
}

#[cfg(test)]
mod tests;
