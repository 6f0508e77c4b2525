//! Walks through two JSON values side by side and finds where they differ (J2).
//!
//! Invariant: missing is not null, another type is another value; `1` and `1.0` are one number.
//! Invariant: what `ignore` covers is not looked at, on either side.

use std::collections::BTreeSet;

use super::{Comparator, Severity, Tolerance};
use crate::evidence::json::Json;
use crate::evidence::path::{At, Place};

/// One place where two values differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference<'v> {
    pub(super) severity: Severity,
    /// What stands there; `None`: nothing.
    pub(super) green: Option<&'v Json>,
    pub(super) blue: Option<&'v Json>,
}

/// Is told where two values differ.
type Each<'f, 'v> = &'f mut dyn FnMut(&Place<'v>, Difference<'v>);

impl Comparator {
    /// Tells each place where the two differ, in the order of names and indexes.
    pub(super) fn differences<'v>(&self, green: &'v Json, blue: &'v Json, each: Each<'_, 'v>) {
        let mut place = Place::default();
        self.walk(&mut place, Some(green), Some(blue), each);
    }

    fn walk<'v>(
        &self,
        place: &mut Place<'v>,
        green: Option<&'v Json>,
        blue: Option<&'v Json>,
        each: Each<'_, 'v>,
    ) {
        if self.is_ignored(place) {
            return;
        }
        let severity = match (green, blue) {
            (None, None) => None,
            (Some(Json::List(greens)), Some(Json::List(blues))) => {
                for i in 0..greens.len().max(blues.len()) {
                    place.enter(At::Index(i));
                    self.walk(place, greens.get(i), blues.get(i), each);
                    place.leave();
                }
                return;
            }
            (Some(Json::Map(greens)), Some(Json::Map(blues))) => {
                let names: BTreeSet<_> = greens.keys().chain(blues.keys()).collect();
                for name in names {
                    place.enter(At::Name(name));
                    self.walk(place, greens.get(name), blues.get(name), each);
                    place.leave();
                }
                return;
            }
            (Some(Json::Number(green)), Some(Json::Number(blue))) => {
                let excess = self.tolerance(place).excess(*green, *blue);
                excess.map(Severity::Number)
            }
            (Some(green), Some(blue)) => (!equal(green, blue)).then_some(Severity::Value),
            _ => Some(Severity::Value),
        };
        if let Some(severity) = severity {
            let difference = Difference {
                severity,
                green,
                blue,
            };
            each(place, difference);
        }
    }

    /// Of several rules that cover a field the last one counts.
    fn tolerance(&self, place: &Place<'_>) -> Tolerance {
        let mut rules = self.fields.iter().rev();
        let rule = rules.find(|(path, _)| path.covers(place));
        rule.map_or(self.general, |(_, tolerance)| *tolerance)
    }
}

/// Equal without any tolerance.
pub(super) fn equal(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Null, Json::Null) => true,
        (Json::Flag(a), Json::Flag(b)) => a == b,
        (Json::Number(a), Json::Number(b)) => Tolerance::NONE.excess(*a, *b).is_none(),
        (Json::Text(a), Json::Text(b)) => a == b,
        (Json::List(a), Json::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Json::Map(a), Json::Map(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|((name, a), (other, b))| name == other && equal(a, b))
        }
        _ => false,
    }
}
