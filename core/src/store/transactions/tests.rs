//! What an exactly-once session hears, and what its producer is told to do.

use bytes::{Bytes, BytesMut};

use super::super::{Ended, Limits, Settings};
use super::*;
use crate::contract::publish::{
    Destination, FateCode, GroupMetadata, Hello, Request, ResultsFrame, Revoked, TransactionOffset,
    VERSION, next_frame,
};
use crate::limits::{FRAME_BYTES_MAX, PUBLISH_CREDIT_BYTES};
use crate::position::{Partition, Position};
use crate::token::Stamp;

const OPEN_MAX: Duration = Duration::from_secs(4);

/// A store with a session, and what it wants done.
struct World {
    store: Store,
    now: Time,
    seq: u64,
    next: i64,
    effects: Vec<Effect>,
}

fn decoded(frame: Bytes) -> Request {
    let mut buffer = BytesMut::from(&frame[..]);
    let frame = next_frame(&mut buffer, FRAME_BYTES_MAX).unwrap().unwrap();
    Request::decode(frame).unwrap()
}

fn hello(session: u64) -> Hello {
    Hello {
        version: VERSION,
        block: "b".to_owned(),
        release: "r1".to_owned(),
        pod: "p".to_owned(),
        session,
        mode: Mode::ExactlyOnce,
    }
}

impl World {
    fn new() -> Self {
        let mut store = Store::new(Settings {
            block: Some("b".to_owned()),
            release: "r1".to_owned(),
            output: "out".into(),
            dead_letter: "out.dlq".into(),
            verification: "out.verify".into(),
            credit: PUBLISH_CREDIT_BYTES,
            mode: Mode::ExactlyOnce,
            transaction_open_max: OPEN_MAX,
            push: None,
        });
        store.connected(Limits {
            output: 1_000,
            dead_letter: 1_000,
            verification: 1_000,
            verification_partitions: 1,
        });
        let mut world = Self {
            store,
            now: Time {
                boot: Duration::from_secs(100),
                wall_ms: 0,
            },
            seq: 0,
            next: 0,
            effects: Vec::new(),
        };
        world.connect(1);
        world
    }

    fn connect(&mut self, session: u64) {
        self.store.admit(&hello(session)).unwrap();
        self.seq = 0;
        self.settle();
        self.effects
            .retain(|e| !matches!(e, Effect::Reply(Reply::Ready(_))));
    }

    /// Sends events with values of these sizes, all of one lane.
    fn send(&mut self, sizes: &[usize]) {
        self.seq += 1;
        let mut frame = ResultsFrame::new(self.seq, Stamp::Live, 1);
        for size in sizes {
            let position = Position::new(self.next);
            self.next += 1;
            frame.event(&Partition::new("in", 0), position, 7, FateCode::Emitted);
            let value = vec![b'x'; *size];
            frame.record(Destination::Output, None, None, Some(b"k"), Some(&value));
        }
        self.store
            .request(self.now, decoded(frame.finish()))
            .unwrap();
    }

    fn ask(&mut self, ending: TransactionEnding) {
        let transaction = Transaction {
            seq: self.seq,
            ending,
        };
        self.store
            .request(self.now, Request::Transaction(transaction))
            .unwrap();
    }

    fn commit(&mut self) {
        self.ask(TransactionEnding::Commit {
            group_metadata: GroupMetadata::new(Bytes::from_static(b"m")).unwrap(),
            offsets: vec![TransactionOffset {
                partition: Partition::new("in", 0),
                position: Position::new(self.next),
                metadata: "mr1".to_owned(),
            }],
        });
    }

    /// Gives the producer what may enter; the tickets.
    fn produce(&mut self) -> Vec<u64> {
        let mut tickets = Vec::new();
        while let Some(record) = self.store.take(self.now) {
            tickets.push(record.ticket);
        }
        self.settle();
        tickets
    }

    fn end(&mut self, tickets: &[u64], end: &Ended) {
        let ends = tickets.iter().map(|ticket| (*ticket, end.clone()));
        self.store.ended(self.now, ends.collect::<Vec<_>>());
        self.settle();
    }

    fn stored(&mut self, tickets: &[u64]) {
        self.end(tickets, &Ended::Stored);
    }

    fn settle(&mut self) {
        self.store.settle(self.now, &mut self.effects);
    }

    /// What was asked for since the last look, in words; credit is left out.
    fn said(&mut self) -> Vec<String> {
        self.settle();
        let said = self.effects.drain(..).filter_map(|effect| match effect {
            Effect::Reply(Reply::Stored(stored)) => {
                let failed: Vec<&str> = stored.failures.iter().map(|f| f.code.as_str()).collect();
                let count: u32 = stored.stored.iter().map(|r| r.end - r.start).sum();
                Some(format!("stored {count}, failed {failed:?}"))
            }
            Effect::Reply(Reply::Ended { seq, outcome }) => Some(format!("{outcome:?} {seq}")),
            Effect::Reply(Reply::Credit(_)) => None,
            Effect::Reply(other) => Some(format!("{other:?}")),
            Effect::Commit { offsets, .. } => Some(format!("commit {}", offsets.len())),
            other => Some(format!("{other:?}").to_lowercase()),
        });
        said.collect()
    }

    fn told(&mut self, ended: TransactionEnded) {
        self.store.transaction_ended(ended);
    }

    /// One result is stored, and its transaction is being committed.
    fn committing_one(&mut self) {
        self.send(&[1]);
        let tickets = self.produce();
        self.stored(&tickets);
        self.commit();
        assert_eq!(self.said(), ["stored 1, failed []", "commit 1"]);
    }
}

fn transient() -> Ended {
    Ended::Failed(Failed::new(StoreClass::Transient, "NotLeader", "away"))
}

#[test]
fn p_5_a_transaction_is_committed_when_all_its_results_are_stored() {
    let mut world = World::new();
    world.send(&[1, 1]);
    world.send(&[1]);
    let tickets = world.produce();
    assert_eq!(tickets.len(), 3, "in a transaction nobody waits for a lane");
    world.commit();
    world.stored(&tickets[..2]);
    assert_eq!(world.said(), ["stored 2, failed []"]);
    assert!(!world.store.is_idle());
    world.stored(&tickets[2..]);
    assert_eq!(world.said(), ["stored 1, failed []", "commit 1"]);
    world.told(TransactionEnded::Committed);
    assert_eq!(world.said(), ["Committed 2"]);
    assert!(world.store.is_idle());
    assert_eq!(world.store.counters().committed, 1);
}

#[test]
fn d_e5_one_failed_result_aborts_the_transaction_and_fails_the_rest() {
    let mut world = World::new();
    world.send(&[1, 1, 1]);
    let tickets = world.produce();
    world.end(&tickets[..1], &transient());
    assert_eq!(world.said(), ["stored 0, failed [\"NotLeader\"]", "abort"]);
    // What comes now has failed already.
    world.send(&[1]);
    assert!(world.produce().is_empty());
    world.end(&tickets[1..2], &Ended::Stored);
    world.end(&tickets[2..], &transient());
    assert_eq!(
        world.said(),
        [
            "stored 0, failed [\"TransactionAborted\"]",
            "stored 1, failed []",
            "stored 0, failed [\"TransactionAborted\"]"
        ]
    );
    world.told(TransactionEnded::Aborted);
    assert!(world.said().is_empty(), "the input has to ask first");
    world.commit();
    assert_eq!(world.said(), ["Aborted 2"]);
    world.send(&[1]);
    let tickets = world.produce();
    assert_eq!(tickets.len(), 1, "the next transaction is another one");
    world.stored(&tickets);
    world.commit();
    assert_eq!(world.said(), ["stored 1, failed []", "commit 1"]);
}

#[test]
fn d_o3_a_result_that_is_too_large_spoils_the_transaction_too() {
    let mut world = World::new();
    world.send(&[1, 5_000, 1]);
    assert!(world.produce().is_empty(), "nothing of it has entered yet");
    assert_eq!(
        world.said(),
        [
            "stored 0, failed [\"MessageSizeTooLarge\", \"TransactionAborted\", \"TransactionAborted\"]"
        ]
    );
    world.commit();
    assert_eq!(world.said(), ["Aborted 1"]);
}

#[test]
fn p_6_a_lost_session_aborts_and_the_next_one_waits_for_that() {
    let mut world = World::new();
    world.send(&[1]);
    let tickets = world.produce();
    world.store.close();
    assert_eq!(world.said(), ["abort"]);
    world.connect(2);
    world.send(&[1]);
    assert!(world.produce().is_empty());
    world.end(&tickets, &transient());
    assert!(world.produce().is_empty());
    world.told(TransactionEnded::Aborted);
    let tickets = world.produce();
    assert_eq!(tickets.len(), 1);
    world.stored(&tickets);
    world.commit();
    assert_eq!(world.said(), ["stored 1, failed []", "commit 1"]);
}

#[test]
fn p_6_the_end_of_an_old_sessions_commit_is_not_told_to_the_new_one() {
    let mut world = World::new();
    world.committing_one();
    world.store.close();
    world.connect(2);
    world.commit();
    assert!(world.said().is_empty());
    world.told(TransactionEnded::Committed);
    assert_eq!(world.said(), ["commit 1"], "its own, without results");
    world.told(TransactionEnded::Aborted);
    assert_eq!(world.said(), ["Aborted 0"]);
}

#[test]
fn d_e5_a_fenced_producer_is_made_anew_before_the_input_hears_of_it() {
    let mut world = World::new();
    world.committing_one();
    world.told(TransactionEnded::Unknown);
    assert_eq!(world.said(), ["rebuild"]);
    assert!(world.said().is_empty());
    world.store.rebuilt();
    assert_eq!(world.said(), ["Unknown 1"]);
}

#[test]
fn d_e5_a_record_that_fails_for_good_ends_its_transaction_as_unknown() {
    let mut world = World::new();
    world.send(&[1, 1]);
    let tickets = world.produce();
    let fatal = Ended::Fatal(Failed::new(StoreClass::Transient, "Fenced", "gone"));
    world.end(&tickets[..1], &fatal);
    world.commit();
    let said = world.said();
    assert!(said.iter().any(|word| word == "rebuild"), "{said:?}");
    world.store.rebuilt();
    let said = world.said();
    assert_eq!(
        said.last().map(String::as_str),
        Some("Unknown 1"),
        "{said:?}"
    );
}

#[test]
fn r4_results_of_partitions_that_are_gone_are_given_up() {
    let mut world = World::new();
    let revoked = || {
        Request::Revoked(Revoked {
            generation: 1,
            partitions: vec![Partition::new("in", 0)],
        })
    };
    world.store.request(world.now, revoked()).unwrap();
    world.send(&[1]);
    let tickets = world.produce();
    assert_eq!(tickets.len(), 1, "there was nothing to give up");
    world.store.request(world.now, revoked()).unwrap();
    assert_eq!(world.said(), ["abort"]);
    world.told(TransactionEnded::Aborted);
    world.end(&tickets, &transient());
    world.ask(TransactionEnding::Abort);
    assert_eq!(
        world.said(),
        ["stored 0, failed [\"TransactionAborted\"]", "Aborted 1"]
    );
}

#[test]
fn a_transaction_whose_input_says_nothing_is_given_up() {
    let mut world = World::new();
    world.send(&[1]);
    let tickets = world.produce();
    world.stored(&tickets);
    assert_eq!(world.said(), ["stored 1, failed []"]);
    assert_eq!(world.store.deadline(), Some(world.now.boot + OPEN_MAX));
    world.now = world.now.plus(OPEN_MAX);
    assert_eq!(world.said(), ["abort"]);
    world.told(TransactionEnded::Aborted);
    world.commit();
    assert_eq!(world.said(), ["Aborted 1"]);
    assert_eq!(world.store.deadline(), None);
}

#[test]
fn p_5_frames_out_of_turn_end_the_connection() {
    let mut world = World::new();
    world.send(&[1]);
    world.seq = 7;
    let transaction = Transaction {
        seq: 7,
        ending: TransactionEnding::Abort,
    };
    let request = Request::Transaction(transaction);
    let fault = world.store.request(world.now, request).unwrap_err();
    assert_eq!(fault.code, "Sequence");
    world.seq = 1;
    world.commit();
    let mut frame = ResultsFrame::new(2, Stamp::Live, 1);
    let at = Position::new(9);
    frame.event(&Partition::new("in", 0), at, 7, FateCode::Emitted);
    let late = decoded(frame.finish());
    let fault = world.store.request(world.now, late).unwrap_err();
    assert_eq!(fault.code, "Sequence");
}
