//! Records go in and come out: order, sequences, waits, limits, deletion.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    DeleteRecordsRequest, FetchRequest, InitProducerIdRequest, ListOffsetsRequest, ProduceRequest,
};
use millrace_broker::{Broker, Options, Storage};
use tokio::time::Instant;

use crate::client::*;

#[test]
fn b_e3_records_come_back_as_they_were_sent() {
    let broker = memory();
    broker.create_topic("orders", 2, &[]).unwrap();
    let mut client = Client::new(&broker);
    assert_eq!(client.produce("orders", 1, &["a", "b"]), 0);
    assert_eq!(client.produce("orders", 1, &["c"]), 2);
    assert_eq!(client.values("orders", 1, false), ["a", "b", "c"]);
    assert_eq!(client.values("orders", 0, false), Vec::<String>::new());
    let data = client.fetch_from("orders", 1, 2, false);
    let offsets: Vec<i64> = decode(&data).iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [2]);
    assert_eq!(
        (
            data.high_watermark,
            data.last_stable_offset,
            data.log_start_offset
        ),
        (3, 3, 0)
    );
}

#[test]
fn every_version_of_produce_and_fetch_carries_records() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    for version in 3..=9 {
        let answer = client.call_at(&produce_request("orders", 0, batch(&["x"]), None), version);
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!(
            (partition.error_code, partition.base_offset),
            (0, i64::from(version) - 3)
        );
    }
    for version in 4..=12 {
        let answer = client.call_at(&fetch_request("orders", 0, 0), version);
        assert_eq!(
            decode(&answer.responses[0].partitions[0]).len(),
            7,
            "version {version}"
        );
    }
}

#[test]
fn an_offset_out_of_range_and_an_unknown_partition_are_told() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let code = |client: &mut Client, name, partition, offset| {
        client.fetch_from(name, partition, offset, false).error_code
    };
    assert_eq!(code(&mut client, "orders", 0, 0), 0);
    assert_eq!(
        code(&mut client, "orders", 0, 1),
        ResponseError::OffsetOutOfRange.code()
    );
    assert_eq!(
        code(&mut client, "orders", 9, 0),
        ResponseError::UnknownTopicOrPartition.code()
    );
    assert_eq!(
        code(&mut client, "other", 0, 0),
        ResponseError::UnknownTopicOrPartition.code()
    );
    let refused = client.produce_as("other", 0, batch(&["x"]), None);
    assert_eq!(
        refused.error_code,
        ResponseError::UnknownTopicOrPartition.code()
    );
}

#[test]
fn b_e4_a_waiting_fetch_is_woken_by_the_next_record() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut reader = Client::new(&broker);
    let request = fetch_request("orders", 0, 0).with_max_wait_ms(60_000);
    reader.send(&request, 12);
    Client::new(&broker).produce("orders", 0, &["x"]);
    let answer = reader.receive::<FetchRequest>(12);
    assert_eq!(decode(&answer.responses[0].partitions[0]).len(), 1);
}

#[test]
fn b_e4_no_wake_up_is_lost_between_many_writers_and_readers() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let rounds = 300;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = Client::new(&broker);
                let mut next = 0;
                while next < rounds {
                    let request = fetch_request("orders", 0, next).with_max_wait_ms(60_000);
                    let answer = reader.call(&request);
                    let records = decode(&answer.responses[0].partitions[0]);
                    assert_eq!(records[0].offset, next);
                    next = records.last().unwrap().offset + 1;
                }
            });
        }
        let mut writer = Client::new(&broker);
        for _ in 0..rounds {
            writer.produce("orders", 0, &["x"]);
        }
    });
}

#[test]
fn a_fetch_waits_no_longer_than_it_said_and_returns_nothing() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let before = Instant::now();
    let answer = client.call(&fetch_request("orders", 0, 0).with_max_wait_ms(100));
    assert!(before.elapsed() >= Duration::from_millis(100));
    assert_eq!(decode(&answer.responses[0].partitions[0]).len(), 0);
}

#[test]
fn a_fetch_keeps_to_its_limits_but_always_gets_one_batch() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let large = "x".repeat(1_000);
    for _ in 0..10 {
        client.produce("orders", 0, &[&large]);
    }
    let count = |client: &mut Client, partition_max: i32, max: i32| {
        let mut request = fetch_request("orders", 0, 0).with_max_bytes(max);
        request.topics[0].partitions[0].partition_max_bytes = partition_max;
        decode(&client.call(&request).responses[0].partitions[0]).len()
    };
    assert_eq!(count(&mut client, 1, 10_000), 1);
    assert_eq!(count(&mut client, 3_500, 10_000), 3);
    assert_eq!(count(&mut client, 100_000, 2_500), 2);
    assert_eq!(count(&mut client, 100_000, 100_000), 10);
}

#[test]
fn a_fetch_session_of_another_broker_is_refused() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let mut request = fetch_request("orders", 0, 0);
    request.session_id = 7;
    request.session_epoch = 3;
    let answer = client.call(&request);
    assert_eq!(
        answer.error_code,
        ResponseError::FetchSessionIdNotFound.code()
    );
    let fresh = client.call(&fetch_request("orders", 0, 0));
    assert_eq!((fresh.error_code, fresh.session_id), (0, 0));
}

fn producer_id(client: &mut Client) -> i64 {
    let answer = client.call(&InitProducerIdRequest::default().with_transactional_id(None));
    assert_eq!(answer.error_code, 0);
    answer.producer_id.0
}

#[test]
fn a_repeated_batch_is_stored_once_and_a_gap_is_refused() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let id = producer_id(&mut client);
    assert_ne!(id, producer_id(&mut client));
    let from = |sequence| From {
        id,
        epoch: 0,
        sequence,
        transactional: false,
    };
    let first = batch_from(&["a", "b"], from(0));
    assert_eq!(
        client
            .produce_as("orders", 0, first.clone(), None)
            .base_offset,
        0
    );
    let again = client.produce_as("orders", 0, first, None);
    assert_eq!((again.error_code, again.base_offset), (0, 0));
    let gap = client.produce_as("orders", 0, batch_from(&["d"], from(3)), None);
    assert_eq!(
        gap.error_code,
        ResponseError::OutOfOrderSequenceNumber.code()
    );
    let next = client.produce_as("orders", 0, batch_from(&["c"], from(2)), None);
    assert_eq!((next.error_code, next.base_offset), (0, 2));
    assert_eq!(client.values("orders", 0, false), ["a", "b", "c"]);
}

#[test]
fn bad_batches_are_refused_and_change_nothing() {
    let broker = memory();
    broker
        .create_topic("orders", 1, &[("max.message.bytes", "500")])
        .unwrap();
    let mut client = Client::new(&broker);
    let mut damaged = batch(&["abc"]).to_vec();
    *damaged.last_mut().unwrap() ^= 0xff;
    let mut old_format = batch(&["abc"]).to_vec();
    old_format[16] = 1;
    let two = [batch(&["a"]), batch(&["b"])].concat();
    for (records, error) in [
        (damaged, ResponseError::CorruptMessage),
        (old_format, ResponseError::InvalidRecord),
        (two, ResponseError::InvalidRecord),
        (Vec::new(), ResponseError::InvalidRecord),
        (
            batch(&[&"x".repeat(600)]).to_vec(),
            ResponseError::MessageTooLarge,
        ),
    ] {
        let answer = client.produce_as("orders", 0, records.into(), None);
        assert_eq!((answer.error_code, answer.base_offset), (error.code(), -1));
    }
    let mut request = produce_request("orders", 0, batch(&["x"]), None);
    request.acks = 7;
    let answer = client.call(&request);
    assert_eq!(
        answer.responses[0].partition_responses[0].error_code,
        ResponseError::InvalidRequiredAcks.code()
    );
    assert_eq!(broker.partition("orders", 0).unwrap().end, 0);
}

#[test]
fn without_acks_there_is_no_answer_and_a_failure_closes_the_connection() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let mut request = produce_request("orders", 0, batch(&["x"]), None);
    request.acks = 0;
    client.send(&request, 9);
    // The next answer belongs to the next request.
    assert_eq!(client.values("orders", 0, false), ["x"]);
    let mut wrong = produce_request("other", 0, batch(&["x"]), None);
    wrong.acks = 0;
    client.send(&wrong, 9);
    assert!(client.try_receive::<ProduceRequest>(9).is_err());
}

#[test]
fn b_e3_a_full_memory_refuses_new_records_and_keeps_the_old() {
    let mut options = Options::memory();
    options.storage = Storage::Memory { bytes_max: 10_000 };
    let broker = Broker::start(options).unwrap();
    broker.create_topic("orders", 2, &[]).unwrap();
    let mut client = Client::new(&broker);
    let value = "x".repeat(1_000);
    let mut stored = 0;
    let refused = loop {
        let answer = client.produce_as("orders", stored % 2, batch(&[&value]), None);
        if answer.error_code != 0 {
            break answer;
        }
        stored += 1;
        assert!(stored < 100, "the cap is never reached");
    };
    assert_eq!(refused.error_code, ResponseError::PolicyViolation.code());
    assert!(refused.error_message.unwrap().contains("memory"));
    let readable =
        client.values("orders", 0, false).len() + client.values("orders", 1, false).len();
    assert_eq!(i32::try_from(readable).unwrap(), stored);
    // Deleted records make room.
    assert_eq!(
        delete_records(&mut client, "orders", 0, -1),
        (0, broker.partition("orders", 0).unwrap().end)
    );
    assert_eq!(
        client
            .produce_as("orders", 1, batch(&[&value]), None)
            .error_code,
        0
    );
    // So does a deleted topic.
    broker.delete_topic("orders").unwrap();
    broker.create_topic("orders", 1, &[]).unwrap();
    for _ in 0..stored {
        client.produce("orders", 0, &[&value]);
    }
}

fn delete_records(client: &mut Client, name: &str, partition: i32, offset: i64) -> (i16, i64) {
    let request = DeleteRecordsRequest::default().with_topics(vec![
        DeleteRecordsTopic::default()
            .with_name(topic(name))
            .with_partitions(vec![
                DeleteRecordsPartition::default()
                    .with_partition_index(partition)
                    .with_offset(offset),
            ]),
    ]);
    let answer = client.call(&request);
    let partition = &answer.topics[0].partitions[0];
    (partition.error_code, partition.low_watermark)
}

#[test]
fn deleted_records_are_out_of_range_and_offsets_go_on() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    client.produce("orders", 0, &["a", "b"]);
    client.produce("orders", 0, &["c"]);
    assert_eq!(delete_records(&mut client, "orders", 0, 1), (0, 1));
    assert_eq!(
        client.fetch_from("orders", 0, 0, false).error_code,
        ResponseError::OffsetOutOfRange.code()
    );
    // The batch stays as a whole; a client skips what it did not ask for.
    assert_eq!(decode(&client.fetch_from("orders", 0, 1, false)).len(), 3);
    assert_eq!(delete_records(&mut client, "orders", 0, -1), (0, 3));
    assert_eq!(client.produce("orders", 0, &["d"]), 3);
    let error = ResponseError::OffsetOutOfRange.code();
    assert_eq!(delete_records(&mut client, "orders", 0, 99), (error, -1));
}

#[test]
fn retention_deletes_by_bytes_and_by_age() {
    let broker = memory();
    let mut client = Client::new(&broker);
    broker
        .create_topic("small", 1, &[("retention.bytes", "400")])
        .unwrap();
    for _ in 0..20 {
        client.produce("small", 0, &["0123456789"]);
    }
    eventually("retention by bytes", || {
        let partition = broker.partition("small", 0).unwrap();
        partition.bytes <= 400 && partition.start > 0 && partition.end == 20
    });
    broker
        .create_topic("young", 1, &[("retention.ms", "3600000")])
        .unwrap();
    let old = batch_at(&["old"], NOBODY, now_ms() - 7_200_000);
    client.produce_as("young", 0, old, None);
    client.produce("young", 0, &["new"]);
    eventually("retention by age", || {
        broker.partition("young", 0).unwrap().start == 1
    });
    let data = client.fetch_from("young", 0, 1, false);
    assert_eq!(decode(&data).len(), 1);
}

fn list_offset(client: &mut Client, name: &str, timestamp: i64, committed: bool) -> (i64, i64) {
    let request = ListOffsetsRequest::default()
        .with_isolation_level(i8::from(committed))
        .with_topics(vec![
            ListOffsetsTopic::default()
                .with_name(topic(name))
                .with_partitions(vec![
                    ListOffsetsPartition::default()
                        .with_partition_index(0)
                        .with_current_leader_epoch(-1)
                        .with_timestamp(timestamp),
                ]),
        ]);
    let answer = client.call(&request);
    let found = &answer.topics[0].partitions[0];
    assert_eq!(found.error_code, 0);
    (found.offset, found.timestamp)
}

#[test]
fn positions_are_found_by_time() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    client.produce_as("orders", 0, batch_at(&["a", "b", "c"], NOBODY, 1_000), None);
    client.produce_as("orders", 0, batch_at(&["d"], NOBODY, 500), None);
    client.produce_as("orders", 0, batch_at(&["e"], NOBODY, 2_000), None);
    for (asked, found) in [
        (-2, (0, -1)),
        (-1, (5, -1)),
        (-3, (4, 2_000)),
        (0, (0, 1_000)),
        (1_001, (1, 1_001)),
        (1_003, (4, 2_000)),
        (2_001, (-1, -1)),
    ] {
        assert_eq!(
            list_offset(&mut client, "orders", asked, false),
            found,
            "at {asked}"
        );
    }
}

#[test]
fn the_broker_can_give_the_timestamps() {
    let broker = memory();
    broker
        .create_topic("orders", 1, &[("message.timestamp.type", "LogAppendTime")])
        .unwrap();
    let mut client = Client::new(&broker);
    let before = now_ms();
    let answer = client.produce_as("orders", 0, batch_at(&["a", "b"], NOBODY, 1_000), None);
    assert!(answer.log_append_time_ms >= before);
    // The decoder checks the new checksum.
    let records = decode(&client.fetch_from("orders", 0, 0, false));
    assert_eq!(records.len(), 2);
    let found = list_offset(&mut client, "orders", before, false);
    assert_eq!(found, (0, answer.log_append_time_ms));
}

#[test]
fn a_timestamp_far_from_now_is_refused_where_the_topic_says_so() {
    let broker = memory();
    broker
        .create_topic("orders", 1, &[("message.timestamp.before.max.ms", "60000")])
        .unwrap();
    let mut client = Client::new(&broker);
    let error = ResponseError::InvalidTimestamp.code();
    for (timestamp, expected) in [
        (now_ms(), 0),
        (now_ms() - 120_000, error),
        (now_ms() + 7_200_000, error),
    ] {
        let answer = client.produce_as("orders", 0, batch_at(&["a"], NOBODY, timestamp), None);
        assert_eq!(answer.error_code, expected);
    }
}
