//! The worst disagreements, for people to look at (J6).
//!
//! Invariant: of all disagreements the 50 worst stay: class, then value, then numbers by how far
//! they exceed their tolerance; of equally bad ones those at the earlier positions. The order of
//! arrival does not matter.
//! Invariant: only what may be stored comes in: fields are redacted before.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::compare::{Field, Severity};
use super::record::{Class, Source};
use crate::limits::EVIDENCE_WORST_MAX;

/// One disagreement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// How bad.
    pub severity: Severity,
    /// Which event.
    pub source: Source,
    /// What Green made of it, and how many results.
    pub green: (Class, u64),
    /// What Blue made of it, and how many results.
    pub blue: (Class, u64),
    /// What may be shown.
    pub fields: Vec<Field>,
}

/// The worst comes first.
impl Ord for Disagreement {
    fn cmp(&self, other: &Self) -> Ordering {
        let severity = other.severity.cmp(&self.severity);
        severity.then_with(|| self.source.cmp(&other.source))
    }
}

impl PartialOrd for Disagreement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The worst of all that came in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Worst {
    kept: BTreeSet<Disagreement>,
}

impl Worst {
    /// Takes a disagreement, if it is among the worst; only then its fields are asked for.
    pub fn offer(
        &mut self,
        severity: Severity,
        source: &Source,
        (green, blue): ((Class, u64), (Class, u64)),
        fields: impl FnOnce() -> Vec<Field>,
    ) {
        let mut offered = Disagreement {
            severity,
            source: source.clone(),
            green,
            blue,
            fields: Vec::new(),
        };
        let full = self.kept.len() >= EVIDENCE_WORST_MAX;
        if full && self.kept.last().is_some_and(|last| *last < offered) {
            return;
        }
        offered.fields = fields();
        self.kept.insert(offered);
        while self.kept.len() > EVIDENCE_WORST_MAX {
            self.kept.pop_last();
        }
    }

    /// The worst first.
    pub fn iter(&self) -> impl Iterator<Item = &Disagreement> {
        self.kept.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::position::{Partition, Position};

    fn source(partition: i32, offset: i64) -> Source {
        Source {
            partition: Partition::new("orders", partition),
            position: Position::new(offset),
        }
    }

    fn of(offers: &[(Severity, i32, i64)]) -> Worst {
        let mut worst = Worst::default();
        for (severity, partition, offset) in offers {
            let classes = ((Class::Emitted, 1), (Class::Emitted, 1));
            worst.offer(*severity, &source(*partition, *offset), classes, Vec::new);
        }
        worst
    }

    #[test]
    fn j6_class_comes_before_label_before_excess_and_ties_go_by_position() {
        use Severity::{Class, Number, Value};
        let worst = of(&[
            (Number(2.0), 0, 1),
            (Value, 1, 7),
            (Number(f64::MAX), 0, 9),
            (Value, 0, 70),
            (Class, 3, 3),
            (Value, 0, 8),
        ]);
        let order: Vec<_> = worst
            .iter()
            .map(|d| (d.severity, d.source.to_string()))
            .collect();
        let expect = [
            (Class, "orders/3/3"),
            (Value, "orders/0/8"),
            (Value, "orders/0/70"),
            (Value, "orders/1/7"),
            (Number(f64::MAX), "orders/0/9"),
            (Number(2.0), "orders/0/1"),
        ];
        assert_eq!(
            order,
            expect.map(|(severity, source)| (severity, source.to_owned()))
        );
    }

    #[test]
    fn j6_fields_of_what_does_not_stay_are_never_asked_for() {
        let mut worst = of(&(0..50).map(|i| (Severity::Value, 0, i)).collect::<Vec<_>>());
        let classes = ((Class::Emitted, 1), (Class::Emitted, 1));
        worst.offer(Severity::Value, &source(0, 50), classes, || {
            panic!("not among the worst")
        });
        worst.offer(Severity::Number(9.0), &source(0, 0), classes, || {
            panic!("not among the worst")
        });
        worst.offer(Severity::Class, &source(0, 51), classes, Vec::new);
        assert_eq!(worst.iter().count(), 50);
        assert_eq!(worst.iter().next().unwrap().source, source(0, 51));
    }

    proptest! {
        #[test]
        fn j6_the_worst_stay_in_whatever_order_they_come(
            offers in prop::collection::btree_map((0..4_i32, 0..100_i64), prop_oneof![
                Just(Severity::Class), Just(Severity::Value), (1.0..4.0_f64).prop_map(Severity::Number)
            ], 0..150),
            turn in any::<prop::sample::Index>(),
        ) {
            let mut offers: Vec<_> = offers.into_iter().map(|((p, o), s)| (s, p, o)).collect();
            let once = of(&offers);
            if !offers.is_empty() {
                let turn = turn.index(offers.len());
                offers.rotate_left(turn);
            }
            offers.reverse();
            prop_assert_eq!(&of(&offers), &once);
            // A plain sort finds the same.
            offers.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            let expect: Vec<_> = offers.iter().take(50).map(|(_, p, o)| source(*p, *o)).collect();
            let found: Vec<_> = once.iter().map(|d| d.source.clone()).collect();
            prop_assert_eq!(found, expect);
        }
    }
}
