//! Laws of the lag, and of the watch over partitions that stand still.

use std::time::Duration;

use super::*;
use crate::contract::publish::{Reply, Stored};
use crate::event::Timestamp;
use crate::intake::bench::{Bench, STALL_AFTER, WALL_MS, partition};
use crate::intake::io::{Input, Operator};
use crate::outcome::{Item, Outcome, Output};

impl Bench {
    fn lag(&self) -> Option<(u64, u64)> {
        let lag = self.intake.state().partitions[0].lag?;
        Some((lag.records, lag.age(self.now).as_secs()))
    }
}

#[test]
fn d_c4_lag_is_unknown_before_the_ends_are_known_and_while_the_brokers_are_away() {
    let mut bench = Bench::live();
    let desired = |bench: &Bench| bench.intake.state().desired_replicas;
    assert_eq!((bench.lag(), desired(&bench)), (None, None));
    bench.second(Some(10));
    assert_eq!(
        (bench.lag(), desired(&bench)),
        (Some((10, 0)), Some(1)),
        "work, at an unknown rate"
    );
    bench.second(None);
    assert_eq!((bench.lag(), desired(&bench)), (None, None), "never 0");
    bench.second(Some(0));
    assert_eq!((bench.lag(), desired(&bench)), (Some((0, 0)), Some(0)));
}

#[test]
fn lag_has_the_age_of_the_next_uncommitted_event_and_is_zero_when_caught_up() {
    let mut bench = Bench::live();
    bench.fetch(0..3);
    bench.second(Some(50));
    assert_eq!(bench.lag(), Some((50, 101)), "the timestamp of position 0");
    bench.answer();
    bench.second(Some(50));
    bench.second(Some(50));
    // Nothing is in flight, so the age counts from when position 3 was seen to wait.
    assert_eq!(bench.lag(), Some((47, 0)));
    bench.seconds(9, Some(50));
    assert_eq!(bench.lag(), Some((47, 9)));
    bench.fetch(3..50);
    assert_eq!(bench.lag(), Some((47, 109)), "the timestamp of position 3");
    bench.answer();
    bench.second(Some(50));
    bench.second(Some(50));
    assert_eq!(bench.lag(), Some((0, 0)));
    // A clock that is behind the producer's makes no negative age.
    bench.now.wall_ms = WALL_MS - 1_000_000;
    bench.fetch(50..51);
    bench.second(Some(51));
    let (records, age) = bench.lag().unwrap();
    assert!(records == 1 && age < 5, "{age}");
}

#[test]
fn f_18_an_event_without_a_timestamp_has_no_age_but_that_of_its_wait() {
    let mut bench = Bench::live();
    // What stands in its place is a moment of 1970.
    bench.fetch_stamped(0..1, |_| Timestamp {
        ms: -1,
        kind: TimestampKind::None,
    });
    bench.seconds(5, Some(1));
    let state = bench.intake.state();
    assert_eq!(state.partitions[0].oldest_timestamp_ms, None);
    assert_eq!(bench.lag(), Some((1, 4)), "since its wait was first seen");
}

#[test]
fn f_18_a_wall_clock_that_is_behind_is_told_and_makes_no_negative_age() {
    const DAY: Duration = Duration::from_secs(86_400);
    let mut bench = Bench::live();
    let skew = |bench: &Bench| bench.intake.state().skew.lead(bench.now);
    bench.fetch(0..1);
    assert_eq!(skew(&bench), Duration::ZERO);
    bench.answer();
    bench.seconds(2, Some(1));
    let tomorrow = bench.now.plus(DAY).wall_ms;
    bench.fetch_stamped(1..2, |_| Timestamp {
        ms: tomorrow,
        kind: TimestampKind::Append,
    });
    assert_eq!(skew(&bench), DAY);
    bench.seconds(3, Some(2));
    assert_eq!(skew(&bench), DAY);
    assert_eq!(bench.lag(), Some((1, 2)), "since its wait was first seen");
}

#[test]
fn f_18_a_jump_of_the_wall_clock_makes_no_retry_too_old() {
    let mut bench = Bench::live();
    bench.fetch(0..1);
    let call = bench.calls.pop().expect("the event is at the app");
    // `retry.maxAge` is an hour.
    bench.now.wall_ms += 86_400_000;
    bench.second(Some(1));
    let busy = crate::outcome::Failure::timeout();
    bench.on(Input::Answered(vec![(call.id, Outcome::Failed(busy))]));
    let record = bench.intake.record(&partition(), Position::START);
    let record = record.expect("it is in flight");
    assert_eq!((record.place, record.attempts), ("backoff", 1));
}

#[test]
fn d_c4_events_that_wait_for_a_retry_want_no_replicas() {
    let mut bench = Bench::live();
    bench.fetch(0..4);
    bench.second(Some(4));
    assert_eq!(bench.intake.state().desired_replicas, Some(1));
    for call in std::mem::take(&mut bench.calls) {
        let busy = crate::outcome::Failure::timeout();
        bench.on(Input::Answered(vec![(call.id, Outcome::Failed(busy))]));
    }
    bench.second(Some(4));
    assert_eq!(bench.lag().map(|(records, _)| records), Some(4));
    assert_eq!(bench.intake.state().desired_replicas, Some(0));
}

#[test]
fn d_h2_a_client_that_hands_over_nothing_is_made_anew_after_the_time() {
    let mut bench = Bench::live();
    bench.seconds(STALL_AFTER.as_secs(), Some(9));
    assert_eq!((bench.rejoins, bench.intake.state().stalled), (0, 0));
    bench.second(Some(9));
    assert_eq!((bench.rejoins, bench.intake.state().stalled), (1, 1));
    let [
        Fact::Stalled {
            waits_for, unmoved, ..
        },
    ] = &bench.facts[..]
    else {
        panic!("{:?}", bench.facts)
    };
    assert_eq!((*waits_for, *unmoved), ("events", STALL_AFTER));
    bench.on(Input::Rejoined);
    bench.join();
    bench.second(Some(9));
    assert_eq!(bench.intake.state().stalled, 1, "it has not moved yet");
    bench.fetch(0..9);
    bench.answer();
    bench.second(Some(9));
    assert_eq!(bench.intake.state().stalled, 0);
    bench.seconds(STALL_AFTER.as_secs() * 2, Some(9));
    assert_eq!(bench.rejoins, 1, "caught up");
}

#[test]
fn d_h2_the_time_counts_only_while_there_is_work_no_pause_and_the_brokers_are_there() {
    let mut bench = Bench::live();
    for _ in 0..5 {
        bench.seconds(STALL_AFTER.as_secs() - 10, Some(9));
        bench.second(None);
        bench.seconds(STALL_AFTER.as_secs() - 10, Some(9));
        bench.on(Input::Operator(Operator::Pause));
        bench.seconds(STALL_AFTER.as_secs() * 2, Some(9));
        bench.on(Input::Operator(Operator::Resume {
            storm_guard_off_until: None,
        }));
        bench.seconds(STALL_AFTER.as_secs() - 10, Some(9));
        bench.second(Some(0));
    }
    assert_eq!((bench.rejoins, bench.facts.len()), (0, 0));
}

#[test]
fn d_h2_what_waits_for_a_retry_is_told_and_the_client_stays() {
    let mut bench = Bench::live();
    bench.fetch(0..3);
    let call = bench.calls.remove(0);
    let busy = crate::outcome::Failure::timeout();
    bench.on(Input::Answered(vec![(call.id, Outcome::Failed(busy))]));
    bench.answer();
    bench.seconds(STALL_AFTER.as_secs() + 2, Some(3));
    assert_eq!((bench.rejoins, bench.intake.state().stalled), (0, 1));
    let [
        Fact::Stalled {
            waits_for, details, ..
        },
    ] = &bench.facts[..]
    else {
        panic!("{:?}", bench.facts)
    };
    assert_eq!(*waits_for, "retry");
    assert!(
        details.contains("lane of 0: backoff, 1 in flight"),
        "{details}"
    );
}

#[test]
fn d_h2_a_lease_that_does_not_come_is_the_clients_doing() {
    let mut bench = Bench::live();
    bench.commits = false;
    bench.seconds(10, Some(0));
    bench.fetch(0..1);
    bench.seconds(STALL_AFTER.as_secs() + 1, Some(1));
    assert_eq!(bench.rejoins, 1);
    let [Fact::Stalled { waits_for, .. }] = &bench.facts[..] else {
        panic!("{:?}", bench.facts)
    };
    assert_eq!(*waits_for, "commit");
}

#[test]
fn the_overhead_of_the_proxies_leaves_out_the_time_at_the_app() {
    let mut bench = Bench::live();
    bench.seconds(3, Some(0));
    bench.fetch(0..1);
    let call = bench.calls.pop().expect("the event is at the app");
    bench.seconds(4, Some(1));
    let outcome = Outcome::Items(vec![Item::Emit(Output::default())]);
    bench.on(Input::Answered(vec![(call.id, outcome)]));
    bench.seconds(2, Some(1));
    bench.on(Input::Replies(vec![Reply::Stored(Stored {
        seq: 1,
        stored: std::iter::once(0..1).collect(),
        failures: Vec::new(),
    })]));
    let overhead = bench.intake.state().overhead;
    assert_eq!((overhead.count(), overhead.sum()), (1, 2.0));
}
