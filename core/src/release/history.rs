//! Who answered a position: the chain of adoptions of each partition (I2, I3).
//!
//! Invariant: it is total: where no adoption tells, the root answered.
//! Invariant: a carried seal splits positions above its cut: those that were answered before stay
//! with the earlier release, the others go to the receiver.

use std::collections::BTreeMap;

use crate::contract::commit::LedgerImage;
use crate::position::{Partition, Position};
use crate::token::ReleaseId;

/// One adoption (section 3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The cut.
    pub from: Position,
    /// Of the seal and of the adopted token.
    pub epoch: u64,
    /// Who adopted.
    pub release: ReleaseId,
    /// Positions at or above the cut that were answered earlier.
    pub carried: Carried,
}

/// Positions that a carried seal or a depose found answered above its cut.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Carried(Option<(Position, LedgerImage)>);

impl Carried {
    /// What the ledger of a seal at `cut` says.
    pub fn of(cut: Position, ledger: LedgerImage) -> Self {
        Self((!ledger.terminal.is_empty()).then_some((cut, ledger)))
    }

    /// Whether a position is one of them.
    pub fn contains(&self, position: Position) -> bool {
        self.0.as_ref().is_some_and(|(cut, ledger)| {
            position >= *cut && ledger.is_terminal(position.since(*cut))
        })
    }
}

/// Every adoption of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    root: ReleaseId,
    chains: BTreeMap<Partition, Vec<Segment>>,
}

impl History {
    /// Nobody has adopted anything: all was answered by `root`.
    pub fn new(root: ReleaseId) -> Self {
        Self {
            root,
            chains: BTreeMap::new(),
        }
    }

    /// Adds an adoption; the same one may be reported again, in any order. An epoch has one
    /// receiver (R8), so what was reported first stays.
    pub fn adopted(&mut self, partition: &Partition, segment: Segment) {
        let chain = self.chains.entry(partition.clone()).or_default();
        if let Err(place) = chain.binary_search_by_key(&segment.epoch, |known| known.epoch) {
            chain.insert(place, segment);
        }
    }

    /// The adoptions of a partition, by rising epoch.
    pub fn chain(&self, partition: &Partition) -> &[Segment] {
        self.chains.get(partition).map_or(&[], Vec::as_slice)
    }

    /// The release that all earlier positions belong to.
    pub fn root(&self) -> &ReleaseId {
        &self.root
    }
}

/// The release that answers, or answered, `position`.
pub fn owner<'a>(partition: &Partition, position: Position, history: &'a History) -> &'a ReleaseId {
    history
        .chain(partition)
        .iter()
        .rev()
        .find(|segment| segment.from <= position && !segment.carried.contains(position))
        .map_or(&history.root, |segment| &segment.release)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sample::{at, partition, release};
    use super::*;

    fn segment(from: i64, epoch: u64, name: &str, carried: &[u64]) -> Segment {
        let mut ledger = LedgerImage::default();
        for delta in carried {
            ledger.set_terminal(*delta);
        }
        Segment {
            from: at(from),
            epoch,
            release: release(name),
            carried: Carried::of(at(from), ledger),
        }
    }

    fn history(segments: &[Segment]) -> History {
        let mut history = History::new(release("x"));
        for segment in segments {
            history.adopted(&partition(0), segment.clone());
        }
        history
    }

    fn check(history: &History, expect: &[(i64, &str)]) {
        for (offset, name) in expect {
            let found = owner(&partition(0), at(*offset), history);
            assert_eq!(found.as_str(), *name, "{offset}");
        }
    }

    #[test]
    fn i2_each_position_has_one_owner_whatever_the_order_of_reports() {
        let expect = [
            (0, "x"),
            (9, "x"),
            (10, "y"),
            (14, "y"),
            (15, "x"),
            (99, "x"),
        ];
        let there = segment(10, 2, "y", &[]);
        let back = segment(15, 3, "x", &[]);
        check(&history(&[there.clone(), back.clone()]), &expect);
        check(&history(&[back.clone(), there.clone(), back]), &expect);
    }

    #[test]
    fn i3_what_a_seal_carries_stays_with_the_earlier_release() {
        let history = history(&[segment(10, 2, "y", &[1, 3]), segment(12, 3, "z", &[])]);
        check(
            &history,
            &[(9, "x"), (10, "y"), (11, "x"), (12, "z"), (13, "z")],
        );
    }

    #[test]
    fn i2_a_cut_that_was_never_used_leaves_nothing_to_its_receiver() {
        // y adopted at 10 and gave back at 10 without answering.
        let history = history(&[segment(10, 2, "y", &[]), segment(10, 3, "x", &[])]);
        check(&history, &[(9, "x"), (10, "x"), (11, "x")]);
    }

    #[test]
    fn i2_partitions_do_not_touch_each_other() {
        let history = history(&[segment(0, 2, "y", &[])]);
        assert_eq!(owner(&partition(1), at(5), &history).as_str(), "x");
    }

    proptest! {
        #[test]
        fn v3_owner_is_total_and_names_a_release_of_the_chain(
            cuts in proptest::collection::vec((0..40_i64, 0..9_u64, 0..3_u8, any::<u8>()), 0..6),
            offset in 0..60_i64,
        ) {
            let segments: Vec<_> = cuts.iter().map(|(from, epoch, name, bits)| {
                let carried: Vec<u64> = (0..8).filter(|bit| bits >> bit & 1 == 1).collect();
                segment(*from, *epoch, ["x", "y", "z"][usize::from(*name)], &carried)
            }).collect();
            let history = history(&segments);
            let found = owner(&partition(0), at(offset), &history);
            let known = history.chain(&partition(0)).iter().any(|segment| segment.release == *found);
            prop_assert!(known || *found == *history.root());
        }
    }
}
