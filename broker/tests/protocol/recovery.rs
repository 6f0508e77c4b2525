//! Files: what survives a stop, a crash, a torn tail, and what does not.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{InitProducerIdRequest, OffsetForLeaderEpochRequest};
use millrace_broker::{Broker, Listen, OpenError, Options, StartError, Storage};

use crate::client::*;
use crate::groups::Member;
use crate::offsets::{OUTSIDER, commit, committed};
use crate::transactions::Producer;

fn open(folder: &Path) -> Broker {
    let mut options = Options::files(folder);
    options.listen = Listen::Preferred(0);
    options.session_timeout_min = Duration::from_millis(50);
    Broker::start(options).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Stop {
    Clean,
    Kill,
}

fn reopen(broker: Broker, folder: &Path, how: Stop) -> Broker {
    match how {
        Stop::Clean => broker.shutdown().unwrap(),
        Stop::Kill => broker.kill(),
    }
    open(folder)
}

#[test]
fn b_e3_everything_survives_a_stop_and_a_kill() {
    for how in [Stop::Clean, Stop::Kill] {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(folder.path());
        broker
            .create_topic("orders", 2, &[("retention.ms", "1000000")])
            .unwrap();
        broker.create_topic("gone", 1, &[]).unwrap();
        let mut client = Client::new(&broker);
        client.produce("orders", 0, &["a", "b"]);
        client.produce("orders", 1, &["c"]);
        commit(&mut client, &OUTSIDER, 1, "token");
        broker.delete_topic("gone").unwrap();
        let (cluster, topics) = (broker.cluster_id(), broker.topics());

        let broker = reopen(broker, folder.path(), how);
        assert_eq!(broker.cluster_id(), cluster, "{how:?}");
        assert_eq!(broker.topics(), topics, "{how:?}");
        let mut client = Client::new(&broker);
        assert_eq!(client.values("orders", 0, true), ["a", "b"]);
        assert_eq!(client.values("orders", 1, true), ["c"]);
        assert_eq!(committed(&mut client, true), (0, 1, "token".into()));
        assert_eq!(client.produce("orders", 0, &["d"]), 2);
        assert!(!folder.path().join("gone-0.log").exists());
    }
}

#[test]
fn b_e3_a_torn_tail_is_cut_off_and_the_rest_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    client.produce("orders", 0, &["a"]);
    client.produce("orders", 0, &["b"]);
    let bytes = broker.partition("orders", 0).unwrap().bytes;
    broker.kill();
    let path = folder.path().join("orders-0.log");
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole.len() as u64, bytes);
    let half = whole.len() / 2;
    let mut damaged_body = whole.clone();
    *damaged_body.last_mut().unwrap() ^= 0xff;
    for torn in [
        whole[..half + 10].to_vec(),
        whole[..half + 65].to_vec(),
        damaged_body,
        [&whole[..half], &[0; 500][..]].concat(),
    ] {
        std::fs::write(&path, torn).unwrap();
        let broker = open(folder.path());
        let mut client = Client::new(&broker);
        assert_eq!(client.values("orders", 0, true), ["a"]);
        assert_eq!(client.produce("orders", 0, &["c"]), 1);
        let broker = reopen(broker, folder.path(), Stop::Kill);
        assert_eq!(Client::new(&broker).values("orders", 0, true), ["a", "c"]);
        broker.kill();
    }
}

#[test]
fn b_e3_a_torn_journal_loses_only_its_last_entry() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    commit(&mut client, &OUTSIDER, 1, "first");
    commit(&mut client, &OUTSIDER, 2, "second");
    broker.kill();
    let path = folder.path().join("journal");
    cut(&path, 3);
    let broker = open(folder.path());
    let mut client = Client::new(&broker);
    assert_eq!(committed(&mut client, true), (0, 1, "first".into()));
}

#[test]
fn b_e3_a_producer_repeats_across_a_kill_without_doubling() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let init = InitProducerIdRequest::default().with_transactional_id(None);
    let id = client.call(&init).producer_id.0;
    let from = |sequence| From {
        id,
        epoch: 0,
        sequence,
        transactional: false,
    };
    let batches: Vec<_> = (0..3).map(|n| batch_from(&["x"], from(n))).collect();
    for batch in &batches {
        client.produce_as("orders", 0, batch.clone(), None);
    }
    let broker = reopen(broker, folder.path(), Stop::Kill);
    let mut client = Client::new(&broker);
    let again = client.produce_as("orders", 0, batches[2].clone(), None);
    assert_eq!((again.error_code, again.base_offset), (0, 2));
    let gap = client.produce_as("orders", 0, batch_from(&["y"], from(5)), None);
    assert_eq!(
        gap.error_code,
        ResponseError::OutOfOrderSequenceNumber.code()
    );
    let next = client.produce_as("orders", 0, batch_from(&["y"], from(3)), None);
    assert_eq!((next.error_code, next.base_offset), (0, 3));
    let other = client.call(&init).producer_id.0;
    assert!(
        other > id,
        "no producer id is given twice: {other} after {id}"
    );
}

#[test]
fn b_e3_an_open_transaction_is_aborted_and_its_producer_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker.create_topic("orders", 2, &[]).unwrap();
    let mut client = Client::new(&broker);
    let mut done = Producer::new(&broker, "done");
    done.add(0);
    done.write(0, "committed");
    done.end(true);
    let mut open_one = Producer::new(&broker, "open");
    open_one.add(0);
    open_one.write(0, "half");
    open_one.add_group();
    let offset = open_one.offset_request(5, "token");
    assert_eq!(open_one.send_offset(&offset), 0);
    client.produce("orders", 0, &["plain"]);

    let broker = reopen(broker, folder.path(), Stop::Kill);
    let mut client = Client::new(&broker);
    assert_eq!(client.values("orders", 0, true), ["committed", "plain"]);
    assert_eq!(committed(&mut client, true).1, -1);
    for old in [&mut open_one, &mut done] {
        old.client = Client::new(&broker);
        assert_eq!(old.add(0), ResponseError::ProducerFenced.code());
    }
    let mut new = Producer::new(&broker, "open");
    assert!(new.epoch > open_one.epoch);
    assert_eq!(new.producer_id, open_one.producer_id);
    new.add(0);
    assert_eq!(new.write(0, "whole"), 0);
    assert_eq!(new.end(true), 0);
    assert_eq!(
        client.values("orders", 0, true),
        ["committed", "plain", "whole"]
    );
}

/// Cuts the end of a file off, as if it had never been written.
fn cut(path: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - bytes).unwrap();
}

#[test]
fn b_e3_a_decided_transaction_is_finished_after_a_kill() {
    const MARKER_BYTES: u64 = 78;
    for commit in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(folder.path());
        broker.create_topic("orders", 2, &[]).unwrap();
        let mut producer = Producer::new(&broker, "t");
        producer.add(0);
        producer.add(1);
        producer.write(0, "a");
        producer.write(1, "b");
        producer.add_group();
        let offset = producer.offset_request(5, "token");
        producer.send_offset(&offset);
        assert_eq!(producer.end(commit), 0);
        broker.kill();
        // As if the broker had died between its first and its second marker.
        let ended = r#"{"kind":"transactionEnded","id":"t"}"#;
        let journal = folder.path().join("journal");
        assert!(std::fs::read(&journal).unwrap().ends_with(ended.as_bytes()));
        cut(&journal, 8 + ended.len() as u64);
        cut(&folder.path().join("orders-1.log"), MARKER_BYTES);

        let broker = open(folder.path());
        let mut client = Client::new(&broker);
        let seen = |value: &str| {
            if commit {
                vec![value.to_string()]
            } else {
                vec![]
            }
        };
        assert_eq!(client.values("orders", 0, true), seen("a"));
        assert_eq!(client.values("orders", 1, true), seen("b"));
        let end = |partition| broker.partition("orders", partition).unwrap().end;
        assert_eq!((end(0), end(1)), (2, 2), "one marker each");
        let found = committed(&mut client, true).1;
        assert_eq!(found, if commit { 5 } else { -1 });
    }
}

#[test]
fn aborted_transactions_stay_aborted_after_a_stop() {
    for how in [Stop::Clean, Stop::Kill] {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(folder.path());
        broker.create_topic("orders", 1, &[]).unwrap();
        let mut producer = Producer::new(&broker, "t");
        for (value, commit) in [("a", true), ("b", false), ("c", true)] {
            producer.add(0);
            producer.write(0, value);
            producer.end(commit);
        }
        let broker = reopen(broker, folder.path(), how);
        assert_eq!(Client::new(&broker).values("orders", 0, true), ["a", "c"]);
    }
}

#[test]
fn committed_offsets_of_a_transaction_survive() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut producer = Producer::new(&broker, "t");
    producer.add_group();
    let offset = producer.offset_request(5, "token");
    producer.send_offset(&offset);
    assert_eq!(producer.end(true), 0);
    let broker = reopen(broker, folder.path(), Stop::Kill);
    let mut client = Client::new(&broker);
    assert_eq!(committed(&mut client, true), (0, 5, "token".into()));
}

#[test]
fn a_stable_group_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut member = Member::new(&broker, "g");
    member.settle();
    let broker = reopen(broker, folder.path(), Stop::Kill);
    member.client = Client::new(&broker);
    assert_eq!(member.heartbeat(), 0);
    assert_eq!(member.sync(&[]).1, "all");
    let mut outsider = Client::new(&broker);
    assert_eq!(
        commit(&mut outsider, &OUTSIDER, 1, ""),
        ResponseError::UnknownMemberId.code()
    );
    let before = member.generation;
    member.leave();
    let broker = reopen(broker, folder.path(), Stop::Clean);
    let mut next = Member::new(&broker, "g");
    next.settle();
    assert!(next.generation > before, "generations are not used twice");
}

#[test]
fn deleted_records_stay_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker
        .create_topic("orders", 1, &[("retention.bytes", "0")])
        .unwrap();
    let mut client = Client::new(&broker);
    for _ in 0..5 {
        client.produce("orders", 0, &["a"]);
    }
    eventually("retention has deleted everything", || {
        broker.partition("orders", 0).unwrap().start == 5
    });
    let length = std::fs::metadata(folder.path().join("orders-0.log"))
        .unwrap()
        .len();
    assert_eq!(length, 0, "the file gives its room back");
    let broker = reopen(broker, folder.path(), Stop::Kill);
    let partition = broker.partition("orders", 0).unwrap();
    assert_eq!((partition.start, partition.end), (5, 5));
    assert_eq!(Client::new(&broker).produce("orders", 0, &["b"]), 5);
}

#[test]
fn each_start_is_a_leader_epoch_with_a_known_end() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    broker.create_topic("orders", 1, &[]).unwrap();
    Client::new(&broker).produce("orders", 0, &["a", "b"]);
    let broker = reopen(broker, folder.path(), Stop::Clean);
    let mut client = Client::new(&broker);
    client.produce("orders", 0, &["c"]);
    let mut end_of = |current: i32, epoch: i32| {
        let request = OffsetForLeaderEpochRequest::default().with_topics(vec![
            OffsetForLeaderTopic::default()
                .with_topic(topic("orders"))
                .with_partitions(vec![
                    OffsetForLeaderPartition::default()
                        .with_partition(0)
                        .with_current_leader_epoch(current)
                        .with_leader_epoch(epoch),
                ]),
        ]);
        let answer = client.call(&request).topics[0].partitions[0].clone();
        (answer.error_code, answer.leader_epoch, answer.end_offset)
    };
    assert_eq!(end_of(-1, 0), (0, 0, 2));
    assert_eq!(end_of(1, 1), (0, 1, 3));
    assert_eq!(end_of(-1, 7), (0, -1, -1));
    assert_eq!(end_of(0, 0).0, ResponseError::FencedLeaderEpoch.code());
    assert_eq!(end_of(2, 0).0, ResponseError::UnknownLeaderEpoch.code());
    let mut stale = fetch_request("orders", 0, 0);
    stale.topics[0].partitions[0].current_leader_epoch = 0;
    assert_eq!(
        client.call(&stale).responses[0].partitions[0].error_code,
        ResponseError::FencedLeaderEpoch.code()
    );
}

#[test]
fn two_brokers_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    let mut options = Options::files(folder.path());
    options.listen = Listen::Preferred(0);
    assert!(matches!(
        Broker::start(options),
        Err(StartError::Open(OpenError::InUse(_)))
    ));
    broker.shutdown().unwrap();
    open(folder.path());
}

#[test]
fn synced_files_hold_what_was_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut options = Options::files(folder.path());
        options.listen = Listen::Preferred(0);
        options.storage = Storage::Files {
            path: folder.path().to_path_buf(),
            fsync: true,
        };
        Broker::start(options).unwrap()
    };
    let broker = start();
    broker.create_topic("orders", 1, &[]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Client::new(&broker);
                for _ in 0..5 {
                    client.produce("orders", 0, &["a"]);
                }
            });
        }
    });
    broker.kill();
    let broker = start();
    assert_eq!(broker.partition("orders", 0).unwrap().end, 20);
}

#[test]
fn a_restart_on_the_same_port_is_possible_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(folder.path());
    let address = broker.address();
    let _client = Client::new(&broker);
    broker.kill();
    let mut options = Options::files(folder.path());
    options.listen = Listen::Exact(address);
    let broker = Broker::start(options).unwrap();
    assert_eq!(broker.address(), address);
}
