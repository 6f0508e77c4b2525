//! The guard under steady, rising and sawing lags and slow answers (J9).

use proptest::prelude::*;

use super::*;

const BASE: Duration = Duration::from_millis(100);

fn guard(record: Record) -> Guard {
    let settings = block::Guard {
        lag_growth: Duration::from_secs(300),
        latency_ratio: 1.2,
    };
    Guard::new(&settings, Some(BASE), record)
}

fn at(seconds: u64) -> Time {
    Time {
        boot: Duration::from_secs(1_000 + seconds),
        wall_ms: 0,
    }
}

fn p95(ms: u64) -> Sample {
    Sample {
        lag: Some(10),
        p95: Some(Duration::from_millis(ms)),
    }
}

fn lag(lag: u64) -> Sample {
    Sample {
        lag: Some(lag),
        p95: Some(BASE),
    }
}

/// Samples every `step` seconds; the orders and when they came.
fn run(
    guard: &mut Guard,
    seconds: std::ops::Range<u64>,
    step: usize,
    sample: impl Fn(u64) -> Sample,
) -> Vec<(u64, Order)> {
    seconds
        .step_by(step)
        .filter_map(|second| Some((second, guard.on(at(second), sample(second))?)))
        .collect()
}

#[test]
fn j9_a_slow_live_release_pauses_the_candidate_after_a_minute() {
    let slow = [(60, Order::Pause(Harm::Slow))];
    assert_eq!(
        run(&mut guard(Record::default()), 0..61, 5, |_| p95(121)),
        slow
    );
    assert_eq!(
        run(&mut guard(Record::default()), 0..60, 5, |_| p95(121)),
        []
    );
    assert_eq!(
        run(&mut guard(Record::default()), 0..600, 5, |_| p95(120)),
        [],
        "at the bound is not above"
    );
}

#[test]
fn j9_one_good_sample_in_a_minute_is_enough() {
    let sample = |second| p95(if second % 60 == 55 { 120 } else { 500 });
    assert_eq!(run(&mut guard(Record::default()), 0..3_600, 5, sample), []);
    let silent = |second| Sample {
        p95: (second % 60 != 55).then_some(BASE * 5),
        ..p95(0)
    };
    assert_eq!(
        run(&mut guard(Record::default()), 0..3_600, 5, silent),
        [],
        "no answers are no slow answers"
    );
}

#[test]
fn j9_without_a_baseline_only_the_lag_is_watched() {
    let settings = block::Guard {
        lag_growth: Duration::from_secs(300),
        latency_ratio: 1.2,
    };
    let mut guard = Guard::new(&settings, None, Record::default());
    assert_eq!(run(&mut guard, 0..600, 5, |_| p95(9_999)), []);
    let orders = run(&mut guard, 600..1_000, 5, lag);
    assert!(
        matches!(orders[..], [(_, Order::Pause(Harm::FallingBehind))]),
        "{orders:?}"
    );
}

#[test]
fn j9_a_lag_that_grows_without_a_break_pauses_the_candidate() {
    for (step, slope) in [(1, 1), (5, 3), (10, 100), (30, 1)] {
        let orders = run(&mut guard(Record::default()), 0..400, step, |second| {
            lag(1_000 + second * slope)
        });
        assert_eq!(orders.len(), 1, "{step}");
        let (when, order) = orders[0];
        assert_eq!(order, Order::Pause(Harm::FallingBehind));
        assert!((300..=330).contains(&when), "{step} {when}");
    }
    assert_eq!(
        run(&mut guard(Record::default()), 0..300, 1, lag),
        [],
        "299 seconds are too few"
    );
}

#[test]
fn j9_a_high_but_steady_or_sawing_lag_does_not_grow() {
    let check = |sample: &dyn Fn(u64) -> Sample| {
        assert_eq!(run(&mut guard(Record::default()), 0..7_200, 5, sample), []);
    };
    check(&|_| lag(1_000_000));
    check(&|second| lag(100 + (second % 60) * 50));
    check(&|second| lag(if second < 100 { 10 } else { 5_000 }));
    check(&|second| lag(10_000 - second));
    // It grows for 290 s, catches up, and grows again.
    check(&|second| lag((second % 290) * 7));
}

#[test]
fn j9_a_growing_lag_with_commits_in_between_still_grows() {
    let orders = run(&mut guard(Record::default()), 0..400, 1, |second| {
        lag(second * 20 + (second % 7) * 30)
    });
    assert!(
        matches!(orders[..], [(_, Order::Pause(Harm::FallingBehind))]),
        "{orders:?}"
    );
}

#[test]
fn j9_five_quiet_minutes_resume_and_a_third_time_is_inconclusive() {
    let mut guard = guard(Record::default());
    let sample = |second: u64| p95(if second % 1_000 < 100 { 500 } else { 100 });
    let orders = run(&mut guard, 0..9_000, 5, sample);
    assert_eq!(
        orders,
        [
            (60, Order::Pause(Harm::Slow)),
            (400, Order::Resume),
            (1_060, Order::Pause(Harm::Slow)),
            (1_400, Order::Resume),
            (2_060, Order::GiveUp(Harm::Slow)),
        ]
    );
    assert!(guard.gave_up());
    assert_eq!(
        guard.record(),
        Record {
            pauses: 3,
            paused: true
        }
    );
}

#[test]
fn j9_quiet_must_last_without_a_break() {
    let mut guard = guard(Record {
        pauses: 1,
        paused: true,
    });
    assert_eq!(run(&mut guard, 0..300, 5, |_| p95(100)), []);
    assert_eq!(guard.on(at(300), p95(500)), None);
    assert_eq!(
        run(&mut guard, 305..900, 5, |_| p95(100)),
        [(605, Order::Resume)]
    );
}

#[test]
fn j9_a_lag_that_goes_on_growing_is_not_quiet() {
    let mut guard = guard(Record {
        pauses: 1,
        paused: true,
    });
    assert_eq!(run(&mut guard, 0..3_000, 5, lag), []);
    let orders = run(&mut guard, 3_000..4_000, 5, |_| lag(3_000));
    assert!(
        matches!(orders[..], [(3_300..=3_400, Order::Resume)]),
        "{orders:?}"
    );
}

#[test]
fn j9_without_samples_nothing_is_concluded() {
    // Slow before and after a hole: nobody knows about the time between.
    let mut slow = guard(Record::default());
    assert_eq!(slow.on(at(0), p95(500)), None);
    assert_eq!(slow.on(at(61), p95(500)), None);
    assert_eq!(slow.on(at(121), p95(500)), Some(Order::Pause(Harm::Slow)));
    let mut paused = guard(Record {
        pauses: 1,
        paused: true,
    });
    assert_eq!(paused.on(at(0), p95(100)), None);
    assert_eq!(paused.on(at(400), p95(100)), None, "silence is not quiet");
    let unknown = Sample {
        lag: None,
        p95: Some(BASE),
    };
    assert_eq!(
        run(&mut paused, 405..2_000, 5, |_| unknown),
        [],
        "nor is a lag that nobody knows"
    );
}

#[test]
fn j9_a_restart_forgives_nothing() {
    let mut guard = guard(Record {
        pauses: 2,
        paused: false,
    });
    assert_eq!(
        run(&mut guard, 0..100, 5, |_| p95(500)),
        [(60, Order::GiveUp(Harm::Slow))]
    );
    let mut after = self::guard(guard.record());
    assert!(after.gave_up());
    assert_eq!(run(&mut after, 0..3_000, 5, |_| p95(100)), []);
}

proptest! {
    #[test]
    fn j9_orders_alternate_and_end_with_giving_up(
        samples in prop::collection::vec((1..40_u64, 0..2_000_u64, 80..160_u64), 0..600)
    ) {
        let mut guard = guard(Record::default());
        let (mut now, mut pauses, mut paused, mut over) = (0, 0, false, false);
        for (step, waiting, ms) in samples {
            now += step;
            let sample = Sample { lag: Some(waiting), p95: Some(Duration::from_millis(ms)) };
            let order = guard.on(at(now), sample);
            prop_assert!(!over || order.is_none());
            match order {
                None => {}
                Some(Order::Pause(_)) => {
                    prop_assert!(!paused);
                    (pauses, paused) = (pauses + 1, true);
                }
                Some(Order::Resume) => {
                    prop_assert!(paused);
                    paused = false;
                }
                Some(Order::GiveUp(_)) => {
                    prop_assert!(!paused && pauses == 2);
                    (pauses, paused, over) = (3, true, true);
                }
            }
            prop_assert_eq!(guard.record(), Record { pauses, paused });
            prop_assert_eq!(guard.gave_up(), over);
        }
    }

    #[test]
    fn j9_noise_around_a_steady_lag_does_not_pause(seed in any::<u64>()) {
        let mut guard = guard(Record::default());
        let noise = |second: u64| {
            let mixed = (second ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            lag(500 + (mixed ^ (mixed >> 29)) % 100)
        };
        prop_assert_eq!(run(&mut guard, 0..20_000, 5, noise), []);
    }
}
