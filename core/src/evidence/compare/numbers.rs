//! When are two numbers equal? `|a−b| ≤ max(abs, rel·max(|a|,|b|))`, and NaN equals NaN (J2).
//!
//! Invariant: the answer does not depend on which number comes first.
//! Invariant: infinity equals itself only. The formula alone would call it close to everything,
//! because its tolerance is infinite.

use crate::evidence::json::Number;

/// How far two numbers may lie apart. Both parts are finite and not negative.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Absolute.
    pub abs: f64,
    /// Relative to the larger magnitude.
    pub rel: f64,
}

impl Tolerance {
    /// None at all.
    pub(super) const NONE: Self = Self { abs: 0.0, rel: 0.0 };

    /// Nothing if the numbers are equal, else by which factor their distance exceeds the
    /// tolerance: above 1 and finite.
    pub(in crate::evidence) fn excess(self, a: Number, b: Number) -> Option<f64> {
        if a.float.is_nan() && b.float.is_nan() {
            return None;
        }
        if !a.float.is_finite() || !b.float.is_finite() {
            let same = a.float == b.float && a.whole == b.whole;
            return (!same).then_some(f64::MAX);
        }
        let distance = distance(a, b);
        if distance == 0.0 {
            return None;
        }
        let allowed = self.abs.max(self.rel * a.float.abs().max(b.float.abs()));
        if distance <= allowed {
            return None;
        }
        let factor = distance / allowed;
        Some(if factor.is_finite() { factor } else { f64::MAX })
    }
}

/// Whole numbers are subtracted as such: two long ids may be the same float.
#[expect(
    clippy::cast_precision_loss,
    reason = "a distance that is not zero stays above zero, and its last digits do not matter"
)]
fn distance(a: Number, b: Number) -> f64 {
    match (a.whole, b.whole) {
        (Some(a), Some(b)) => a.abs_diff(b) as f64,
        _ => (a.float - b.float).abs(),
    }
}
