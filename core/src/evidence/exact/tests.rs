//! Expected values come from Python's `fractions` and `decimal`, which do not round.

use proptest::prelude::*;

use super::*;

fn moments(numbers: &[f64]) -> Moments {
    let mut moments = Moments::new();
    numbers.iter().for_each(|number| moments.add(*number));
    moments
}

#[test]
fn j5_mean_and_deviation_are_exact_where_floats_cancel() {
    let mut tenths = [0.1; 13];
    tenths[10..].fill(0.2);
    for (numbers, mean, deviation) in [
        (
            &[1.7e9, 1.7e9 + 1.0, 1.7e9 + 2.0, 1.7e9 + 5.0][..],
            1700000002.0,
            1.8708286933869707,
        ),
        (&tenths, 0.12307692307692308, 0.04213250442347432),
        (&[1e100, 1.0, -1e100, 1.0], 0.5, 7.071067811865475e+99),
        (
            &[1e-300, 1e140, -3.5, 2.25e-10],
            2.5e139,
            4.3301270189221935e139,
        ),
        (&[-1.5, -2.5, -9.75], -4.583333333333333, 3.676124166685463),
        (
            &[1767225600000.123, 1767225600000.25, 1767225600000.5],
            1767225600000.291,
            0.15659954391679407,
        ),
        (&[5e-324, 5e-324], 5e-324, 0.0),
        (&[0.0, -0.0], 0.0, 0.0),
    ] {
        let found = moments(numbers);
        assert_eq!(found.mean(), Some(mean), "{numbers:?}");
        let close = (found.deviation().unwrap() - deviation).abs() <= deviation * 1e-15;
        assert!(close, "{numbers:?} {:?}", found.deviation());
    }
    assert_eq!(
        (moments(&[]).mean(), moments(&[]).deviation()),
        (None, None)
    );
}

#[test]
fn j5_carries_keep_the_sum() {
    let mut sum = Sum::new();
    for i in 0..100_000 {
        sum.add(if i % 2 == 0 {
            3.0 * 2_f64.powi(60)
        } else {
            -(2_f64.powi(61))
        });
        if i % 1_000 == 0 {
            sum.carry();
        }
    }
    assert_eq!(sum.pair().high, 50_000.0 * 2_f64.powi(60));
    let mut negative = Sum::new();
    (0..100).for_each(|_| negative.add(-0.25));
    assert_eq!(negative.pair().high, -25.0);
}

#[test]
fn j5_logarithms_are_right_to_the_last_digits() {
    for value in [
        1e-300, 0.001, 0.5, 0.999_999, 1.0, 1.000_001, 1.414, 1.415, 2.0, 10.0, 1e300,
    ] {
        let (found, expect) = (natural_log(value), f64::ln(value));
        assert!(
            (found - expect).abs() <= 4e-16 * expect.abs().max(1e-6),
            "{value} {found} {expect}"
        );
    }
    assert_eq!(natural_log(1.0), 0.0);
}

proptest! {
    #[test]
    fn j5_no_order_changes_a_bit(
        numbers in prop::collection::vec(prop_oneof![-1e140..1e140_f64, -1.0..1.0_f64, -1e-300..1e-300_f64], 1..50),
        turn in any::<prop::sample::Index>()
    ) {
        let once = moments(&numbers);
        let mut turned = numbers.clone();
        turned.rotate_left(turn.index(numbers.len()));
        turned.reverse();
        let other = moments(&turned);
        prop_assert_eq!(once.mean().map(f64::to_bits), other.mean().map(f64::to_bits));
        prop_assert_eq!(once.deviation().map(f64::to_bits), other.deviation().map(f64::to_bits));
    }

    #[test]
    fn j5_whole_numbers_sum_as_integers_do(numbers in prop::collection::vec(-(1_i64 << 50)..1 << 50, 1..50)) {
        let found = moments(&numbers.iter().map(|n| *n as f64).collect::<Vec<_>>());
        let sum: i128 = numbers.iter().map(|n| i128::from(*n)).sum();
        prop_assert_eq!(found.sum.pair().high, sum as f64);
        let squares: i128 = numbers.iter().map(|n| i128::from(*n) * i128::from(*n)).sum();
        prop_assert_eq!(found.squares.pair().high, squares as f64);
    }
}
