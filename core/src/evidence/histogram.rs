//! How often two releases said which number, in bounded memory (J5).
//!
//! A float's bits, with the negative ones turned over, rise with the float. A bin holds all
//! floats that share the first bits; while there are few different values each has its own bin,
//! and when there are too many, one bit less is looked at and neighbours merge. So a histogram of
//! few values is exact, and one of many is as fine as its bound allows, wherever they lie.
//!
//! Invariant: the same values give the same histogram, in whatever order they come: bins merge if
//! and only if the set of values does not fit, which adding values never undoes.

use std::collections::BTreeMap;

use crate::limits::EVIDENCE_BINS_MAX;

/// Whose number it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Whose {
    /// The live release's.
    Green,
    /// The candidate's.
    Blue,
}

impl Whose {
    fn index(self) -> usize {
        match self {
            Self::Green => 0,
            Self::Blue => 1,
        }
    }
}

/// Counts of the numbers of both.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Histogram {
    /// How many of the last bits are not looked at.
    dropped_bits: u32,
    bins: BTreeMap<u64, [u64; 2]>,
    totals: [u64; 2],
}

impl Histogram {
    /// Counts a finite number.
    pub(super) fn add(&mut self, whose: Whose, value: f64) {
        assert!(value.is_finite(), "{value} has no bin");
        let bin = self
            .bins
            .entry(key(value) >> self.dropped_bits)
            .or_default();
        bin[whose.index()] += 1;
        self.totals[whose.index()] += 1;
        while self.bins.len() > EVIDENCE_BINS_MAX {
            self.dropped_bits += 1;
            let finer = std::mem::take(&mut self.bins);
            for (bin, [green, blue]) in finer {
                let bin = self.bins.entry(bin >> 1).or_default();
                bin[0] += green;
                bin[1] += blue;
            }
        }
    }

    /// How many numbers were counted.
    pub(super) fn total(&self, whose: Whose) -> u64 {
        self.totals[whose.index()]
    }

    /// The smallest number that at least so many percent do not exceed; nothing without numbers.
    pub(super) fn percentile(&self, whose: Whose, percent: u64) -> Option<f64> {
        let rank = (self.total(whose) * percent).div_ceil(100).max(1);
        let mut below = 0;
        let bin = self.bins.iter().find(|(_, counts)| {
            below += counts[whose.index()];
            below >= rank
        });
        bin.map(|(bin, _)| self.middle(*bin))
    }

    /// The numbers of a bin lie around here; exactly here while no bit is dropped.
    fn middle(&self, bin: u64) -> f64 {
        let first = bin << self.dropped_bits;
        let half = (1_u64 << self.dropped_bits) >> 1;
        value(first + half)
    }

    /// Counts of both, Green's and Blue's, per part of neighbouring bins. Green's numbers are cut
    /// into `parts` of about equal size; a number that fills several of them makes one. What lies
    /// below and above everything that Green said makes one part each.
    pub(super) fn by_green_quantiles(&self, parts: u64) -> Vec<[u64; 2]> {
        let total = self.total(Whose::Green);
        let mut counts: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
        let mut green_below = 0;
        for [green, blue] in self.bins.values() {
            let part = if green_below == total {
                parts + 1
            } else if green_below == 0 && *green == 0 {
                0
            } else {
                1 + green_below * parts / total
            };
            let part = counts.entry(part).or_default();
            part[0] += green;
            part[1] += blue;
            green_below += green;
        }
        counts.into_values().collect()
    }
}

/// Rises with the number; `-0.0` is `0.0`.
fn key(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}

fn value(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 {
        key & !(1 << 63)
    } else {
        !key
    })
}

#[cfg(test)]
mod tests;
