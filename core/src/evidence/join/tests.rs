//! Pairing (J1, J4): what pairs, what is counted, and that order and restarts do not matter.

use proptest::prelude::*;

use super::*;
use crate::evidence::record::{Class, ResultBody, Results};
use crate::position::Position;

const SMALL: RoomSize = RoomSize {
    events: 4,
    bytes: 1 << 20,
};

fn release(id: &str) -> ReleaseId {
    ReleaseId::new(id).unwrap()
}

fn join(asked_again: f64, size: RoomSize) -> Join {
    Join::new(release("green"), release("blue"), asked_again, size)
}

/// A record whose latency tells copies apart.
fn record(mode: Stamp, release_id: &str, partition: i32, offset: i64, copy: u64) -> Record {
    Record {
        source: Source {
            partition: Partition::new("orders", partition),
            position: Position::new(offset),
        },
        release: release(release_id),
        mode,
        answer: Answer {
            class: Class::Filtered,
            latency_us: Some(copy),
            results: Results::Whole(vec![]),
        },
    }
}

fn green(offset: i64, copy: u64) -> Record {
    record(Stamp::Live, "green", 0, offset, copy)
}

fn blue(offset: i64, copy: u64) -> Record {
    record(Stamp::Shadow, "blue", 0, offset, copy)
}

fn again(offset: i64, copy: u64) -> Record {
    record(Stamp::Baseline, "green", 0, offset, copy)
}

fn copies(pair: Option<(Arc<Answer>, Arc<Answer>)>) -> Option<(u64, u64)> {
    pair.map(|(a, b)| (a.latency_us.unwrap(), b.latency_us.unwrap()))
}

#[test]
fn j1_the_first_copy_of_each_side_counts() {
    for order in [
        [green(7, 1), green(7, 2), blue(7, 3)],
        [blue(7, 3), green(7, 1), green(7, 2)],
    ] {
        let mut join = join(0.0, SMALL);
        let pairs: Vec<_> = order
            .into_iter()
            .filter_map(|r| copies(join.take(r).pair))
            .collect();
        assert_eq!(pairs, [(1, 3)]);
        assert_eq!((join.counts().paired, join.counts().repeats), (1, 1));
        assert_eq!(copies(join.take(blue(7, 4)).pair), None);
        assert_eq!((join.counts().repeats, join.partitions()), (2, 1));
    }
}

#[test]
fn j1_the_oldest_leaves_a_full_room_and_is_counted() {
    let mut join = join(0.0, SMALL);
    for offset in [5, 1, 3, 2] {
        join.take(green(offset, 0));
    }
    join.take(blue(9, 0));
    assert_eq!(join.counts().left_with_green, 1, "position 1 left");
    assert_eq!(copies(join.take(blue(1, 0)).pair), None);
    assert_eq!(join.counts().late, 1);
    assert!(join.take(blue(2, 0)).pair.is_some());
    join.take(blue(10, 0));
    join.take(blue(11, 0));
    assert_eq!(
        (join.counts().left_with_green, join.counts().left_with_blue),
        (2, 0)
    );
    for offset in 12..16 {
        join.take(blue(offset, 0));
    }
    let counts = join.counts();
    assert_eq!((counts.left_with_green, counts.left_with_blue), (3, 3));
    assert_eq!((counts.waiting_for_blue, counts.waiting_for_green), (0, 4));
    assert_eq!(counts.repeats, 0);
}

#[test]
fn j1_bytes_bound_the_room_but_one_event_may_be_larger() {
    let size = RoomSize {
        events: 100,
        bytes: 10_000,
    };
    let large = |offset, bytes| {
        let mut record = green(offset, 0);
        record.answer.class = Class::Emitted;
        record.answer.results = Results::Whole(vec![ResultBody {
            value: Some(vec![0; bytes].into()),
            ..ResultBody::default()
        }]);
        record
    };
    let mut join = join(0.0, size);
    join.take(large(1, 50_000));
    assert_eq!(join.counts().waiting_for_blue, 1);
    join.take(large(2, 5_000));
    assert_eq!(
        (
            join.counts().waiting_for_blue,
            join.counts().left_with_green
        ),
        (1, 1)
    );
    join.take(large(3, 4_000));
    assert_eq!(
        join.counts().left_with_green,
        2,
        "with what an event costs besides, two are too much"
    );
    // What is paired gives its bytes back.
    for offset in 10..1_000 {
        join.take(large(offset, 4_000));
        assert!(join.take(blue(offset, 0)).pair.is_some(), "{offset}");
    }
}

#[test]
fn j1_gaps_between_the_positions_are_counted_but_mean_nothing() {
    let mut join = join(0.0, SMALL);
    for offset in [10, 12, 13, 20] {
        join.take(green(offset, 0));
        join.take(blue(offset, 0));
    }
    assert_eq!((join.counts().paired, join.counts().gaps), (4, 7));
}

#[test]
fn j1_records_of_others_do_not_count() {
    let mut join = join(0.0, SMALL);
    for (mode, id) in [
        (Stamp::Live, "blue"),
        (Stamp::Shadow, "green"),
        (Stamp::Live, "older"),
        (Stamp::Baseline, "blue"),
    ] {
        assert_eq!(join.take(record(mode, id, 0, 1, 0)), Completed::default());
    }
    let expect = Counts {
        foreign: 4,
        ..Counts::default()
    };
    assert_eq!((join.counts(), join.partitions()), (expect, 0));
}

#[test]
fn j1_repeats_are_recognised_as_far_back_as_a_crash_reaches() {
    let mut join = join(0.0, SMALL);
    let window = i64::try_from(crate::limits::WINDOW_POSITIONS_MAX).unwrap();
    for offset in 0..=window {
        join.take(green(offset, 0));
        join.take(blue(offset, 0));
    }
    for offset in [64, window] {
        join.take(green(offset, 0));
    }
    assert_eq!((join.counts().repeats, join.counts().late), (2, 0));
    join.take(green(0, 0));
    assert_eq!((join.counts().repeats, join.counts().late), (2, 1));
    assert_eq!(
        join.counts().paired,
        window as u64 + 1,
        "no event pairs twice"
    );
}

#[test]
fn j4_a_second_answer_pairs_with_the_first_whenever_it_comes() {
    let records = [green(1, 1), blue(1, 2), again(1, 3)];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut join = join(1.0, SMALL);
        let (mut pairs, mut noise) = (vec![], vec![]);
        for i in order {
            let completed = join.take(records[i].clone());
            pairs.extend(copies(completed.pair));
            noise.extend(copies(completed.noise));
        }
        assert_eq!((pairs, noise), (vec![(1, 2)], vec![(1, 3)]), "{order:?}");
        join.take(again(1, 4));
        assert_eq!(
            (join.counts().repeats, join.counts().waiting_for_blue),
            (1, 0)
        );
    }
}

#[test]
fn j4_a_second_answer_that_was_not_asked_for_does_not_count() {
    let mut join = join(0.0, SMALL);
    join.take(green(1, 0));
    assert_eq!(join.take(again(1, 0)), Completed::default());
    assert_eq!(join.counts().unasked, 1);
}

#[test]
fn j4_a_missing_second_answer_costs_no_pair() {
    let mut join = join(1.0, SMALL);
    for offset in 0..10 {
        join.take(green(offset, 0));
        assert!(join.take(blue(offset, 0)).pair.is_some());
    }
    assert_eq!(
        (join.counts().paired, join.counts().left_without_baseline),
        (10, 6)
    );
}

#[test]
fn j4_the_share_of_events_asked_again_is_kept_in_every_partition() {
    let source = |partition, offset| Source {
        partition: Partition::new("orders", partition),
        position: Position::new(offset),
    };
    for share in [0.01, 0.25] {
        for partition in 0..4 {
            let asked =
                (0..40_000).filter(|offset| is_asked_again(&source(partition, *offset), share));
            let found = asked.count() as f64 / 40_000.0;
            assert!((found / share - 1.0).abs() < 0.2, "{share} {found}");
        }
    }
    assert!((0..1_000).all(|offset| !is_asked_again(&source(0, offset), 0.0)));
    assert!((0..1_000).all(|offset| is_asked_again(&source(0, offset), 1.0)));
}

/// What a fold over the records finds: pairs and second answers, and all counts.
type Found = (Vec<(String, u64, u64)>, Vec<(String, u64, u64)>, Counts);

fn fold(records: &[Record], size: RoomSize) -> Found {
    let mut join = join(0.5, size);
    let (mut pairs, mut noise) = (vec![], vec![]);
    for record in records {
        let source = record.source.to_string();
        let completed = join.take(record.clone());
        pairs.extend(copies(completed.pair).map(|(a, b)| (source.clone(), a, b)));
        noise.extend(copies(completed.noise).map(|(a, b)| (source, a, b)));
    }
    pairs.sort();
    noise.sort();
    (pairs, noise, join.counts())
}

fn records(most: usize) -> impl Strategy<Value = Vec<Record>> {
    let record = (0..3_usize, 0..3_i32, 0..40_i64).prop_map(|(side, partition, offset)| {
        let (mode, id) = [
            (Stamp::Live, "green"),
            (Stamp::Shadow, "blue"),
            (Stamp::Baseline, "green"),
        ][side];
        record(mode, id, partition, offset, 1)
    });
    prop::collection::vec(record, 0..most)
}

proptest! {
    #[test]
    fn j1_the_order_of_arrival_does_not_matter_while_nobody_leaves(
        records in records(250).prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle()))
    ) {
        let (once, shuffled) = records;
        let roomy = RoomSize { events: 100, bytes: 1 << 20 };
        prop_assert_eq!(fold(&once, roomy), fold(&shuffled, roomy));
    }

    #[test]
    fn j1_a_replay_finds_the_same_however_partitions_interleave(records in records(250)) {
        let once = fold(&records, SMALL);
        prop_assert_eq!(&fold(&records, SMALL), &once);
        let mut by_partition = records.clone();
        by_partition.sort_by_key(|record| record.source.partition.number());
        prop_assert_eq!(&fold(&by_partition, SMALL), &once);
    }

    #[test]
    fn j1_every_record_is_accounted_for(records in records(250), events in 1..8_usize) {
        let (pairs, noise, c) = fold(&records, RoomSize { events, bytes: 1 << 20 });
        let mut once = pairs.clone();
        once.dedup_by(|a, b| a.0 == b.0);
        prop_assert_eq!(once.len(), pairs.len(), "no event pairs twice");
        prop_assert_eq!((c.paired, c.asked_again), (pairs.len() as u64, noise.len() as u64));
        let dropped = c.repeats + c.late + c.unasked + c.foreign;
        let kept = records.len() as u64 - dropped;
        prop_assert!(2 * c.paired + c.asked_again <= kept);
    }
}
