//! A machine with one partition, on a clock that the test turns.

use std::time::Duration;

use super::*;
use crate::batcher;
use crate::breaker;
use crate::contract::commit::{LedgerImage, Metadata};
use crate::contract::publish::{Reply, Stored};
use crate::event::{EventsBuilder, Timestamp};
use crate::fate;
use crate::intake::io::{
    Call, CommitOutcome, Committed, Fetched, Input, Link, Membership, Operator, TokensRead,
};
use crate::intake::settings::{Guarantee, Names, OnDataLoss, Settings};
use crate::outcome::{Item, Outcome, Output};
use crate::rules::Rules;
use crate::token::{ReleaseId, Token};
use crate::window::Concurrency;

const STALL_AFTER: Duration = Duration::from_secs(300);
const WALL_MS: i64 = 1_700_000_000_000;

fn settings() -> Settings {
    Settings {
        names: Names {
            release: ReleaseId::new("r1").unwrap(),
            block: "b".into(),
            pod: "p".into(),
            group: "g".into(),
            cluster: "c".into(),
            proxy_version: "0".into(),
        },
        guarantee: Guarantee::AtLeastOnce,
        ordering: Ordering::Key,
        window: 5_000,
        commit_interval: Duration::from_secs(1),
        commit_records: 2_500,
        lease: Duration::from_secs(8),
        drain_revoke: Duration::from_secs(10),
        in_flight_max: 1_024,
        in_flight_bytes_max: 1 << 20,
        concurrency: Concurrency::Fixed(4),
        batch: batcher::Settings::SINGLE,
        tolerate_reordering: false,
        parking: None,
        retry: fate::Settings {
            attempts_max: 0,
            age_max: Duration::from_secs(3600),
            backoff_initial: Duration::from_secs(3600),
            backoff_multiplier: 1.0,
            backoff_max: Duration::from_secs(3600),
            respect_retry_after: true,
            on_exhausted: fate::OnExhausted::Block,
            oversized: fate::Oversized::DeadLetter,
        },
        breaker: breaker::Settings {
            failure_ratio: 0.5,
            window: Duration::from_secs(20),
            requests_min: 20,
            open_min: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
            storm_ratio: 0.1,
            storm_window: Duration::from_secs(60),
            storm_records_min: 100,
        },
        call_timeout: Duration::from_secs(30),
        request_bytes_max: 1 << 20,
        ttl: None,
        on_data_loss: OnDataLoss::Stop,
        truncate_dead_letters: false,
        stall_after: STALL_AFTER,
        push: None,
        rules: Rules::ALL,
    }
}

struct Bench {
    intake: Intake,
    now: Time,
    effects: Vec<Effect>,
    /// Calls that nobody has answered.
    calls: Vec<Call>,
    /// Commits are answered at once.
    commits: bool,
    rejoins: usize,
    facts: Vec<Fact>,
}

fn partition() -> Partition {
    Partition::new("t", 0)
}

impl Bench {
    /// The partition is live from position 0 on.
    fn live() -> Self {
        let mut bench = Self {
            intake: Intake::new(settings(), 7),
            now: Time {
                boot: Duration::from_secs(1_000),
                wall_ms: WALL_MS,
            },
            effects: Vec::new(),
            calls: Vec::new(),
            commits: true,
            rejoins: 0,
            facts: Vec::new(),
        };
        bench.join();
        bench
    }

    fn join(&mut self) {
        self.on(Input::Link(Link::Up { credit: 1 << 20 }));
        self.on(Input::Assigned {
            partitions: vec![partition()],
            membership: Membership {
                generation: 1,
                member: 1,
            },
        });
        let token = Token::Live {
            epoch: 1,
            from: Position::START,
            peer: None,
        };
        let metadata = Metadata {
            token,
            leader_epoch: None,
            topic: None,
            generation: 1,
            member: None,
            ledger: LedgerImage::default(),
        };
        let own = Committed {
            position: Position::START,
            metadata: metadata.encode(),
        };
        self.on(Input::TokensRead {
            partition: partition(),
            read: Ok(TokensRead {
                own: Some(own),
                registry: None,
                seeding: None,
                log_start: Position::START,
                log_end: Position::START,
                topic_identity: None,
            }),
        });
    }

    fn on(&mut self, input: Input) {
        self.intake.on(self.now, input, &mut self.effects);
        let mut answers = Vec::new();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Commit(commit) if self.commits => answers.push(commit.id),
                Effect::Call(call) => self.calls.push(call),
                Effect::Rejoin => self.rejoins += 1,
                Effect::Report(fact @ Fact::Stalled { .. }) => self.facts.push(fact),
                _ => {}
            }
        }
        for commit in answers {
            self.on(Input::Committed {
                commit,
                outcome: CommitOutcome::Done,
            });
        }
    }

    /// Events at these positions, each a second younger than the one before.
    fn fetch(&mut self, positions: std::ops::Range<i64>) {
        self.fetch_stamped(positions, |position| Timestamp {
            ms: WALL_MS - 100_000 + 1_000 * position,
            kind: TimestampKind::Create,
        });
    }

    fn fetch_stamped(&mut self, positions: std::ops::Range<i64>, stamp: impl Fn(i64) -> Timestamp) {
        let mut events = EventsBuilder::default();
        for position in positions {
            let timestamp = stamp(position);
            let key = position.to_string();
            let no_headers = std::iter::empty::<(&[u8], Option<&[u8]>)>();
            let value = Some(&b"v"[..]);
            events.push(
                Position::new(position),
                timestamp,
                Some(key.as_bytes()),
                value,
                no_headers,
            );
        }
        let events = events.finish();
        self.on(Input::Fetched {
            batches: vec![Fetched {
                partition: partition(),
                events,
            }],
        });
    }

    /// Answers all calls that are open, and those that follow.
    fn answer(&mut self) {
        while let Some(call) = self.calls.pop() {
            let outcome = Outcome::Items(vec![Item::Filter]);
            self.on(Input::Answered(vec![(call.id, outcome)]));
        }
    }

    /// A second passes and the ends are told.
    fn second(&mut self, end: Option<i64>) {
        self.now = self.now.plus(Duration::from_secs(1));
        let ends = end.map(|end| vec![(partition(), Position::new(end))]);
        self.on(Input::LogEnds(ends));
    }

    fn seconds(&mut self, count: u64, end: Option<i64>) {
        (0..count).for_each(|_| self.second(end));
    }

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
