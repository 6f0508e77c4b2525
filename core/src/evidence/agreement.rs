//! How sure can one be of a share? Wilson's interval at 95 % (J3), and what the live release's
//! own noise allows (J4).
//!
//! Invariant: the lower bound rises with each agreement and falls with each disagreement; few
//! events never look like certainty.

/// The normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.96;

/// How many of so many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Of so many.
    pub total: u64,
    /// So many.
    pub hits: u64,
}

/// Where the true share lies, with 95 % confidence.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Interval {
    /// At least here.
    pub lower: f64,
    /// At most here.
    pub upper: f64,
}

impl Tally {
    /// Counts one more.
    pub fn count(&mut self, hit: bool) {
        self.total += 1;
        self.hits += u64::from(hit);
    }

    /// Those that were not hit.
    pub fn misses(self) -> Self {
        Self {
            total: self.total,
            hits: self.total - self.hits,
        }
    }

    /// The share that was found; nothing without events.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of events are far below 2^53"
    )]
    pub fn share(self) -> Option<f64> {
        (self.total > 0).then(|| self.hits as f64 / self.total as f64)
    }

    /// Wilson's interval of the true share (J3); from 0 to 1 without events.
    #[expect(
        clippy::cast_precision_loss,
        reason = "counts of events are far below 2^53"
    )]
    pub fn interval(self) -> Interval {
        let Some(share) = self.share() else {
            return Interval {
                lower: 0.0,
                upper: 1.0,
            };
        };
        let n = self.total as f64;
        let centre = share + Z * Z / (2.0 * n);
        let reach = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        Interval {
            lower: ((centre - reach) / scale).max(0.0),
            upper: ((centre + reach) / scale).min(1.0),
        }
    }
}

/// The lower bound of agreement, raised by what the live release surely disagrees with itself
/// (J4). Without a baseline nothing is added.
pub fn adjusted(agreement: Tally, noise: Tally) -> f64 {
    let excused = noise.misses().interval().lower;
    (agreement.interval().lower + excused).min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally(hits: u64, total: u64) -> Tally {
        Tally { total, hits }
    }

    #[test]
    fn j3_the_vectors_of_the_design_hold() {
        let check = |hits, total, expect: &str| {
            assert_eq!(
                format!("{:.5}", tally(hits, total).interval().lower),
                expect
            );
        };
        check(297, 300, "0.97102");
        check(380, 380, "0.98999");
        check(381, 381, "0.99002");
        let passes = |hits, total| tally(hits, total).interval().lower >= 0.99;
        assert!(!passes(380, 380) && passes(381, 381));
        assert!(!passes(4_963, 5_000) && passes(4_964, 5_000));
    }

    /// Computed with 40 decimal digits by Python's `decimal`.
    #[test]
    fn j3_the_interval_is_wilsons_to_twelve_digits() {
        for (hits, total, lower, upper) in [
            (297, 300, 0.971015995365, 0.996593443237),
            (4_963, 5_000, 0.989817198669, 0.994626433599),
            (4_964, 5_000, 0.990048690389, 0.994794634787),
            (0, 10, 0.0, 0.277540168767),
            (1, 1, 0.206543291474, 1.0),
            (5, 10, 0.236589593615, 0.763410406385),
            (999_999, 1_000_000, 0.999994334942, 0.999999823480),
            (12, 100, 0.069993373653, 0.198122680029),
            (3, 50, 0.020614596365, 0.162173433709),
        ] {
            let found = tally(hits, total).interval();
            assert!(
                (found.lower - lower).abs() < 1e-12,
                "{hits}/{total} {found:?}"
            );
            assert!(
                (found.upper - upper).abs() < 1e-12,
                "{hits}/{total} {found:?}"
            );
        }
    }

    #[test]
    fn j3_and_j4_the_worked_example_of_the_documentation_holds() {
        let percent = |share: f64| format!("{:.2}", share * 100.0);
        let check = |hits, total, lower: &str, upper: &str| {
            let found = tally(hits, total).interval();
            assert_eq!(
                (percent(found.lower), percent(found.upper)),
                (lower.into(), upper.into())
            );
        };
        check(4_970, 5_000, "99.14", "99.58");
        check(4_955, 5_000, "98.80", "99.33");
        check(49_700, 50_000, "99.33", "99.46");
        check(4, 52, "3.03", "18.17");
        assert_eq!(adjusted(tally(4_955, 5_000), tally(48, 52)), 1.0);
        assert_eq!(
            percent(adjusted(tally(4_970, 5_000), tally(52, 52))),
            "99.14"
        );
    }

    #[test]
    fn j3_without_events_nothing_is_known() {
        let found = tally(0, 0).interval();
        assert_eq!((found.lower, found.upper), (0.0, 1.0));
        assert_eq!(tally(0, 0).share(), None);
    }

    #[test]
    fn j4_a_release_that_disagrees_with_itself_is_excused_by_what_is_sure() {
        // Agreement 4,900 of 5,000; Green disagrees with itself on 12 of 100: surely on 7.0 %.
        let found = adjusted(tally(4_900, 5_000), tally(88, 100));
        let expect = tally(4_900, 5_000).interval().lower + 0.069993373653;
        assert!((found - expect.min(1.0)).abs() < 1e-9);
        assert_eq!(found, 1.0, "never above 1");
        // 9,000 of 10,000 with the same noise stays below 1.
        let lower = tally(9_000, 10_000).interval().lower;
        let found = adjusted(tally(9_000, 10_000), tally(88, 100));
        assert!((found - lower - 0.069993373653).abs() < 1e-9);
    }

    #[test]
    fn j4_no_noise_and_no_baseline_excuse_nothing() {
        let lower = tally(4_964, 5_000).interval().lower;
        assert_eq!(adjusted(tally(4_964, 5_000), tally(0, 0)), lower);
        assert_eq!(adjusted(tally(4_964, 5_000), tally(50, 50)), lower);
    }

    proptest! {
        #[test]
        fn j3_the_interval_holds_the_share_and_moves_with_it(total in 1..1_000_000_u64, permille in 0..=1_000_u64) {
            let hits = total * permille / 1_000;
            let found = tally(hits, total).interval();
            let share = hits as f64 / total as f64;
            prop_assert!(0.0 <= found.lower && found.lower <= share + 1e-12);
            prop_assert!(share <= found.upper + 1e-12 && found.upper <= 1.0);
            let better = tally(hits + 1, total + 1).interval().lower;
            let worse = tally(hits, total + 1).interval().lower;
            prop_assert!(better >= found.lower - 1e-15 && worse <= found.lower + 1e-15);
            // The share of misses is the mirror image.
            let mirror = tally(hits, total).misses().interval();
            prop_assert!((mirror.lower - (1.0 - found.upper)).abs() < 1e-9);
        }
    }
}
