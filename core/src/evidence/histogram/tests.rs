//! Histograms against sorted lists of the same numbers.

use proptest::prelude::*;

use super::*;

fn of(green: &[f64], blue: &[f64]) -> Histogram {
    let mut histogram = Histogram::default();
    green
        .iter()
        .for_each(|value| histogram.add(Whose::Green, *value));
    blue.iter()
        .for_each(|value| histogram.add(Whose::Blue, *value));
    histogram
}

#[test]
fn j5_a_percentile_is_the_nearest_rank() {
    let numbers: Vec<f64> = (1..=100).map(f64::from).collect();
    let check = |n: usize, percent, expect| {
        assert_eq!(
            of(&[], &numbers[..n]).percentile(Whose::Blue, percent),
            expect
        );
    };
    check(100, 95, Some(95.0));
    check(100, 100, Some(100.0));
    check(100, 0, Some(1.0));
    check(1, 95, Some(1.0));
    check(20, 95, Some(19.0));
    check(21, 95, Some(20.0));
    check(0, 95, None);
}

#[test]
fn j5_quantile_parts_are_cut_by_green_and_leave_room_outside() {
    let check = |green: &[f64], blue: &[f64], parts, expect: &[[u64; 2]]| {
        assert_eq!(of(green, blue).by_green_quantiles(parts), expect);
    };
    let four = [1.0, 2.0, 3.0, 4.0];
    check(&four, &four, 4, &[[1, 1], [1, 1], [1, 1], [1, 1]]);
    check(&four, &four, 2, &[[2, 2], [2, 2]]);
    check(
        &four,
        &[0.0, 5.0, 9.0],
        2,
        &[[0, 1], [2, 0], [2, 0], [0, 2]],
    );
    check(&four, &[2.5, 3.5], 2, &[[2, 0], [2, 2]]);
    // One number fills all parts: whatever else Blue says lies outside.
    check(&[7.0; 9], &[7.0, 8.0, -1.0], 20, &[[0, 1], [9, 1], [0, 1]]);
    check(&[0.0, 0.0, 1.0, 1.0], &[0.5], 20, &[[2, 0], [2, 1]]);
    check(&[], &[1.0], 20, &[[0, 1]]);
    check(&[], &[], 20, &[]);
}

#[test]
fn j5_a_histogram_is_exact_up_to_its_bound_and_merges_one_bit_beyond() {
    let numbers: Vec<f64> = (0..EVIDENCE_BINS_MAX).map(|i| i as f64).collect();
    let exact = of(&numbers, &[]);
    assert_eq!(
        (exact.dropped_bits, exact.bins.len()),
        (0, EVIDENCE_BINS_MAX)
    );
    let beyond = of(&numbers, &[-1.0]);
    assert!(beyond.dropped_bits > 0 && beyond.bins.len() <= EVIDENCE_BINS_MAX);
    assert_eq!(
        (beyond.total(Whose::Green), beyond.total(Whose::Blue)),
        (EVIDENCE_BINS_MAX as u64, 1)
    );
}

proptest! {
    #[test]
    fn j5_keys_rise_with_numbers_and_read_back(a in any::<f64>(), b in any::<f64>()) {
        prop_assume!(a.is_finite() && b.is_finite());
        prop_assert_eq!(value(key(a)), a);
        prop_assert_eq!(key(a).cmp(&key(b)), a.partial_cmp(&b).unwrap());
        prop_assert_eq!(key(-0.0), key(0.0));
    }

    #[test]
    fn j5_the_order_of_arrival_does_not_matter(
        numbers in prop::collection::vec((any::<bool>(), -1e6..1e6_f64), 0..4_000), turn in any::<prop::sample::Index>()
    ) {
        let build = |numbers: &[(bool, f64)]| {
            let mut histogram = Histogram::default();
            for (green, number) in numbers {
                histogram.add(if *green { Whose::Green } else { Whose::Blue }, *number);
            }
            histogram
        };
        let once = build(&numbers);
        let mut turned = numbers.clone();
        if !turned.is_empty() {
            turned.rotate_left(turn.index(numbers.len()));
        }
        prop_assert_eq!(&build(&turned), &once);
        turned.reverse();
        prop_assert_eq!(&build(&turned), &once);
        turned.sort_by(|a, b| a.1.total_cmp(&b.1));
        prop_assert_eq!(&build(&turned), &once);
        prop_assert!(once.bins.len() <= EVIDENCE_BINS_MAX);
    }

    #[test]
    fn j5_percentiles_of_many_latencies_are_within_one_percent(
        seed in any::<u64>(), percent in 1..=100_u64
    ) {
        // 1 ms to 1 s, evenly on a logarithmic scale: ten octaves.
        let mut state = seed | 1;
        let mut numbers: Vec<f64> = (0..20_000).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let part = (state >> 33) as f64 / f64::from(1_u32 << 31);
            (1e3 * 1e3_f64.powf(part)).round()
        }).collect();
        let found = of(&numbers, &[]).percentile(Whose::Green, percent).unwrap();
        numbers.sort_by(f64::total_cmp);
        let rank = (numbers.len() * usize::try_from(percent).unwrap()).div_ceil(100);
        let expect = numbers[rank - 1];
        prop_assert!((found / expect - 1.0).abs() < 0.01, "{found} {expect}");
    }
}
