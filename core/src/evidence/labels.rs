//! The confusion matrix: which label of Green became which of Blue (J2, mode `Label`).
//!
//! Invariant: memory is bounded, and what is lumped together does not depend on the order of
//! events: the first labels by name stay, all others are one.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits::EVIDENCE_LABELS_MAX;

/// Counts of pairs of labels. `None` stands for all labels beyond the bound.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Confusion {
    labels: BTreeSet<String>,
    cells: BTreeMap<(Option<String>, Option<String>), u64>,
}

impl Confusion {
    /// Counts a pair.
    pub(super) fn count(&mut self, green: String, blue: String) {
        self.labels.insert(green.clone());
        self.labels.insert(blue.clone());
        *self.cells.entry((Some(green), Some(blue))).or_default() += 1;
        while self.labels.len() > EVIDENCE_LABELS_MAX {
            let last = self.labels.pop_last();
            let touched =
                |(green, blue): &(Option<String>, Option<String>)| *green == last || *blue == last;
            let cells: Vec<_> = self
                .cells
                .keys()
                .filter(|cell| touched(cell))
                .cloned()
                .collect();
            for cell in cells {
                let count = self.cells.remove(&cell).unwrap_or(0);
                let lumped = |label: Option<String>| if label == last { None } else { label };
                let cell = (lumped(cell.0), lumped(cell.1));
                *self.cells.entry(cell).or_default() += count;
            }
        }
    }

    /// The pairs: the most frequent first, equally frequent ones by name.
    pub(super) fn cells(&self) -> Vec<(Option<&str>, Option<&str>, u64)> {
        let mut cells: Vec<_> = self
            .cells
            .iter()
            .map(|((green, blue), count)| (green.as_deref(), blue.as_deref(), *count))
            .collect();
        cells.sort_by(|a, b| b.2.cmp(&a.2).then(a.cmp(b)));
        cells
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(pairs: &[(u8, u8)]) -> Confusion {
        let mut confusion = Confusion::default();
        for (green, blue) in pairs {
            confusion.count(format!("{green:03}"), format!("{blue:03}"));
        }
        confusion
    }

    #[test]
    fn j2_the_matrix_counts_pairs_and_lumps_labels_beyond_its_bound() {
        let confusion = of(&[(1, 1), (1, 2), (1, 1)]);
        assert_eq!(
            confusion.cells(),
            [(Some("001"), Some("001"), 2), (Some("001"), Some("002"), 1)]
        );
        let many: Vec<_> = (0..=40).rev().map(|label| (label, label)).collect();
        let cells = of(&many);
        let cells = cells.cells();
        assert_eq!(cells.len(), EVIDENCE_LABELS_MAX + 1);
        assert_eq!(cells[0], (None, None, 41 - EVIDENCE_LABELS_MAX as u64));
    }

    proptest! {
        #[test]
        fn j2_the_matrix_does_not_depend_on_the_order(pairs in prop::collection::vec((0..60_u8, 0..60_u8), 0..300)) {
            let once = of(&pairs);
            let mut other = pairs.clone();
            other.reverse();
            prop_assert_eq!(&of(&other), &once);
            other.sort_unstable();
            prop_assert_eq!(&of(&other), &once);
            prop_assert_eq!(once.cells().iter().map(|cell| cell.2).sum::<u64>(), pairs.len() as u64);
            prop_assert!(once.labels.len() <= EVIDENCE_LABELS_MAX);
        }
    }
}
