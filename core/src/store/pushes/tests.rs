//! A call from its announcement to its count, post by post.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::contract::publish::{Hello, Lease, Mode, Revoked, VERSION};
use crate::identity::EventId;
use crate::position::Partition;
use crate::store::{Ended, Limits, Record, Settings};

struct World {
    store: Store,
    now: Time,
    /// Records that are in the producer.
    records: Vec<Record>,
    replies: Vec<Reply>,
    answers: Vec<(PushId, PushAnswer)>,
}

fn orders() -> Partition {
    Partition::new("orders", 0)
}

fn correlation(call: u64) -> [u8; 16] {
    [u8::try_from(call).unwrap(); 16]
}

fn result(call: Option<u64>, value: &'static str) -> Pushed {
    Pushed {
        correlation: call.map(correlation),
        output: Output {
            value: Some(Bytes::from_static(value.as_bytes())),
            ..Output::default()
        },
    }
}

impl World {
    fn new(push: Push) -> Self {
        let mut world = Self {
            store: Store::new(Settings {
                mode: Mode::AtLeastOnce,
                transaction_open_max: Duration::ZERO,
                block: Some("b".to_owned()),
                release: "r1".to_owned(),
                output: "out".into(),
                dead_letter: "dlq".into(),
                verification: "verify".into(),
                credit: 1_000,
                push: Some(push),
            }),
            now: Time {
                boot: Duration::from_secs(1),
                wall_ms: 0,
            },
            records: Vec::new(),
            replies: Vec::new(),
            answers: Vec::new(),
        };
        world.store.connected(Limits {
            output: 1_000,
            dead_letter: 1_000,
            verification: 1_000,
            verification_partitions: 1,
        });
        let hello = Hello {
            version: VERSION,
            block: "b".to_owned(),
            release: "r1".to_owned(),
            pod: "p".to_owned(),
            session: 1,
            mode: Mode::AtLeastOnce,
        };
        world.store.admit(&hello).unwrap();
        world.turn();
        world.request(Request::Lease(Lease {
            generation: 1,
            until: Duration::from_secs(100),
            partitions: vec![orders()],
        }));
        world
    }

    fn echo() -> Self {
        Self::new(Push {
            correlate: Correlate::Echo,
            allow_uncorrelated: false,
            copies: Vec::new(),
        })
    }

    fn request(&mut self, request: Request) {
        self.store.request(self.now, request).unwrap();
        self.turn();
    }

    fn announce(&mut self, call: u64, offset: i64) {
        self.request(Request::Announce(Announce {
            call,
            correlation: correlation(call),
            stamp: Stamp::Live,
            generation: 1,
            partition: orders(),
            position: Position::new(offset),
            lane: 7,
            epoch: 1,
            id: EventId::parse(b"stiywp5rs45zgqavk6csdpztk2").unwrap(),
            timestamp_ms: Some(5),
            key: Some(Bytes::from_static(b"key")),
            headers: vec![(Bytes::from_static(b"source"), None)],
        }));
    }

    fn push(&mut self, pushed: &Pushed) -> PushId {
        let push = self.store.push(self.now, pushed);
        self.turn();
        push
    }

    fn withdraw(&mut self, call: u64) {
        self.request(Request::Withdraw { calls: vec![call] });
    }

    fn turn(&mut self) {
        let mut effects = Vec::new();
        self.store.settle(self.now, &mut effects);
        self.records
            .extend(std::iter::from_fn(|| self.store.take(self.now)));
        self.store.settle(self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Reply(reply) => self.replies.push(reply),
                Effect::Pushed { push, answer } => self.answers.push((push, answer)),
                Effect::Purge | Effect::Rebuild => {}
                Effect::Commit { .. } | Effect::Abort => {
                    unreachable!("at-least-once has no transactions")
                }
            }
        }
    }

    /// The oldest record in the producer ends.
    fn end(&mut self, end: Ended) -> Record {
        let record = self.records.remove(0);
        self.store.ended(self.now, [(record.ticket, end)]);
        self.turn();
        record
    }

    fn fails(&mut self) -> Record {
        let failed = Failed::new(StoreClass::Transient, "NotEnoughReplicas", "no");
        self.end(Ended::Failed(failed))
    }

    /// What is told about a call, and whether it is over.
    fn count(&self, call: u64) -> (u32, usize, bool) {
        let of = |reply: &Reply| match reply {
            Reply::Answered(answered) if answered.call == call => {
                Some((answered.stored, answered.failures.len()))
            }
            _ => None,
        };
        let (stored, failures) = self.replies.iter().rev().find_map(of).unwrap_or((0, 0));
        let over = self.replies.iter().any(|reply| match reply {
            Reply::Withdrawn { refused, answered } => {
                refused.contains(&call) || answered.contains(&call)
            }
            _ => false,
        });
        (stored, failures, over)
    }

    fn answer_to(&self, push: PushId) -> Option<PushAnswer> {
        let answer = self.answers.iter().find(|(known, _)| *known == push);
        answer.map(|(_, answer)| *answer)
    }
}

#[test]
fn a_p2_the_app_hears_of_its_result_after_the_acknowledgement() {
    let mut world = World::echo();
    world.announce(1, 4);
    assert!(
        matches!(&world.replies.last(), Some(Reply::Answered(a)) if a.call == 1 && a.stored == 0),
        "the input hears that the call is known"
    );
    let push = world.push(&result(Some(1), "a"));
    assert_eq!(world.answer_to(push), None);
    let record = world.end(Ended::Stored);
    assert_eq!(world.answer_to(push), Some(PushAnswer::Stored));
    // D-F2, D-I3: it inherits from its event and names it.
    assert_eq!(record.key.as_deref(), Some(&b"key"[..]));
    assert_eq!(record.timestamp_ms, Some(5));
    let names: Vec<_> = record.headers.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names[0], b"source");
    assert!(names.contains(&&b"millrace-src"[..]));
    world.withdraw(1);
    assert_eq!(world.count(1), (1, 0, true));
}

#[test]
fn a_p1_a_withdrawn_call_takes_nothing_more_and_ends_with_what_is_under_way() {
    let mut world = World::echo();
    world.announce(1, 4);
    let first = world.push(&result(Some(1), "a"));
    world.withdraw(1);
    assert_eq!(world.count(1), (0, 0, false));
    let late = world.push(&result(Some(1), "b"));
    assert_eq!(world.answer_to(late), Some(PushAnswer::Unknown));
    world.end(Ended::Stored);
    assert_eq!(world.answer_to(first), Some(PushAnswer::Stored));
    assert_eq!(world.count(1), (1, 0, true));
}

#[test]
fn a_p2_the_last_post_decides_and_a_repeated_one_keeps_its_id() {
    let mut world = World::echo();
    world.announce(1, 4);
    world.push(&result(Some(1), "a"));
    let first = world.fails();
    world.push(&result(Some(1), "a"));
    let again = world.end(Ended::Stored);
    let id = |record: &Record| {
        let found = record
            .headers
            .iter()
            .find(|(name, _)| name == "millrace-id");
        found.unwrap().1.clone()
    };
    assert_eq!(id(&first), id(&again));
    let push = world.push(&result(Some(1), "b"));
    assert_ne!(id(&world.records[0]), id(&again));
    world.fails();
    assert_eq!(world.answer_to(push), Some(PushAnswer::NotStored));
    world.withdraw(1);
    assert_eq!(world.count(1), (1, 1, true));
}

#[test]
fn posts_that_cannot_be_read_do_not_pass_for_silence() {
    let mut world = World::echo();
    world.announce(1, 4);
    world.announce(2, 5);
    let too_large = Failed::new(StoreClass::Rejected, "MessageSizeTooLarge", "x");
    world.store.push_refused(Some(correlation(1)), too_large);
    // It may belong to any call that has posted nothing.
    let mute = world.push(&result(None, "a"));
    assert_eq!(world.answer_to(mute), Some(PushAnswer::Missing));
    for call in [1, 2] {
        world.withdraw(call);
        assert_eq!(world.count(call), (0, 1, true), "call {call}");
    }
    world.announce(3, 6);
    world.withdraw(3);
    assert_eq!(world.count(3), (0, 0, true));
}

#[test]
fn r4_calls_of_a_revoked_partition_are_forgotten() {
    let mut world = World::echo();
    world.announce(1, 4);
    world.request(Request::Revoked(Revoked {
        generation: 1,
        partitions: vec![orders()],
    }));
    let push = world.push(&result(Some(1), "a"));
    assert_eq!(world.answer_to(push), Some(PushAnswer::Unknown));
    assert!(world.records.is_empty());
    world.withdraw(1);
    assert_eq!(world.count(1), (0, 0, true));
}

#[test]
fn a_p4_without_a_correlation_posts_belong_to_the_only_call() {
    let mut world = World::new(Push {
        correlate: Correlate::Serial,
        allow_uncorrelated: false,
        copies: Vec::new(),
    });
    let nobody = world.push(&result(None, "a"));
    assert_eq!(world.answer_to(nobody), Some(PushAnswer::Unknown));
    world.announce(1, 4);
    world.push(&result(None, "b"));
    let record = world.end(Ended::Stored);
    assert!(
        record
            .headers
            .iter()
            .any(|(name, _)| name == "millrace-src")
    );
    world.withdraw(1);
    assert_eq!(world.count(1), (1, 0, true));
}

#[test]
fn a_p5_uncorrelated_results_need_a_lease() {
    let mut world = World::new(Push {
        correlate: Correlate::Serial,
        allow_uncorrelated: true,
        copies: Vec::new(),
    });
    let push = world.push(&result(None, "a"));
    let record = world.end(Ended::Stored);
    assert_eq!(world.answer_to(push), Some(PushAnswer::Stored));
    assert!(
        !record
            .headers
            .iter()
            .any(|(name, _)| name == "millrace-src")
    );
    assert_eq!(world.store.counters().uncorrelated, 1);
    world.now = world.now.plus(Duration::from_secs(200));
    let push = world.push(&result(None, "b"));
    assert_eq!(world.answer_to(push), Some(PushAnswer::Unknown));
}

#[test]
fn a_k4_each_topic_gets_the_result_and_all_have_to_take_it() {
    let mut world = World::new(Push {
        correlate: Correlate::Echo,
        allow_uncorrelated: false,
        copies: vec!["second".to_owned()],
    });
    world.announce(1, 4);
    let push = world.push(&result(Some(1), "a"));
    let topics: Vec<_> = world.records.iter().map(|r| r.topic.to_string()).collect();
    assert_eq!(topics, ["out", "second"]);
    world.fails();
    assert_eq!(world.answer_to(push), None, "the other is still under way");
    world.end(Ended::Stored);
    assert_eq!(world.answer_to(push), Some(PushAnswer::NotStored));
    let push = world.push(&result(Some(1), "a"));
    world.end(Ended::Stored);
    world.end(Ended::Stored);
    assert_eq!(world.answer_to(push), Some(PushAnswer::Stored));
}

#[test]
fn p_6_a_lost_session_answers_every_post() {
    let mut world = World::echo();
    world.announce(1, 4);
    let push = world.push(&result(Some(1), "a"));
    world.store.close();
    world.turn();
    assert_eq!(world.answer_to(push), Some(PushAnswer::NotStored));
}
