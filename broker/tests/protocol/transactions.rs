//! Transactions: what is seen when, who is fenced, how they end.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, FetchRequest,
    InitProducerIdRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
};
use millrace_broker::{Broker, Options};

use crate::client::*;
use crate::groups::Member;
use crate::offsets::{OUTSIDER, commit, committed};

/// A transactional producer, reduced to its requests.
pub(crate) struct Producer {
    pub(crate) client: Client,
    pub(crate) id: &'static str,
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
}

fn named(id: &str) -> TransactionalId {
    TransactionalId(text(id))
}

impl Producer {
    pub(crate) fn new(broker: &Broker, id: &'static str) -> Producer {
        Producer::with_timeout(broker, id, 60_000)
    }

    fn with_timeout(broker: &Broker, id: &'static str, timeout_ms: i32) -> Producer {
        let mut client = Client::new(broker);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(named(id)))
            .with_transaction_timeout_ms(timeout_ms)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let answer = client.call(&request);
        assert_eq!(answer.error_code, 0);
        Producer {
            client,
            id,
            producer_id: answer.producer_id.0,
            epoch: answer.producer_epoch,
            sequence: 0,
        }
    }

    pub(crate) fn add(&mut self, partition: i32) -> i16 {
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(named(self.id))
            .with_v3_and_below_producer_id(ProducerId(self.producer_id))
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![
                AddPartitionsToTxnTopic::default()
                    .with_name(topic("orders"))
                    .with_partitions(vec![partition]),
            ]);
        let answer = self.client.call(&request);
        answer.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code
    }

    pub(crate) fn write(&mut self, partition: i32, value: &str) -> i16 {
        let from = From {
            id: self.producer_id,
            epoch: self.epoch,
            sequence: self.sequence,
            transactional: true,
        };
        let records = batch_from(&[value], from);
        let answer = self
            .client
            .produce_as("orders", partition, records, Some(self.id));
        if answer.error_code == 0 {
            self.sequence += 1;
        }
        answer.error_code
    }

    pub(crate) fn end(&mut self, commit: bool) -> i16 {
        let request = EndTxnRequest::default()
            .with_transactional_id(named(self.id))
            .with_producer_id(ProducerId(self.producer_id))
            .with_producer_epoch(self.epoch)
            .with_committed(commit);
        self.client.call(&request).error_code
    }

    pub(crate) fn add_group(&mut self) -> i16 {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(named(self.id))
            .with_producer_id(ProducerId(self.producer_id))
            .with_producer_epoch(self.epoch)
            .with_group_id(group("g"));
        self.client.call(&request).error_code
    }

    pub(crate) fn offset_request(&self, offset: i64, metadata: &str) -> TxnOffsetCommitRequest {
        TxnOffsetCommitRequest::default()
            .with_transactional_id(named(self.id))
            .with_group_id(group("g"))
            .with_producer_id(ProducerId(self.producer_id))
            .with_producer_epoch(self.epoch)
            .with_generation_id(-1)
            .with_topics(vec![
                TxnOffsetCommitRequestTopic::default()
                    .with_name(topic("orders"))
                    .with_partitions(vec![
                        TxnOffsetCommitRequestPartition::default()
                            .with_partition_index(0)
                            .with_committed_offset(offset)
                            .with_committed_metadata(Some(text(metadata))),
                    ]),
            ])
    }

    pub(crate) fn send_offset(&mut self, request: &TxnOffsetCommitRequest) -> i16 {
        self.client.call(request).topics[0].partitions[0].error_code
    }
}

fn with_topic() -> Broker {
    let broker = memory();
    broker.create_topic("orders", 2, &[]).unwrap();
    broker
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

#[test]
fn a_committed_transaction_appears_at_once_in_all_partitions() {
    let broker = with_topic();
    let mut reader = Client::new(&broker);
    let mut producer = Producer::new(&broker, "t");
    reader.produce("orders", 0, &["plain"]);
    assert_eq!((producer.add(0), producer.add(1)), (0, 0));
    assert_eq!((producer.write(0, "a"), producer.write(1, "b")), (0, 0));
    reader.produce("orders", 0, &["behind"]);
    // A reader of committed data stops before the open transaction, others do not.
    assert_eq!(reader.values("orders", 0, true), ["plain"]);
    assert_eq!(reader.values("orders", 0, false), ["plain", "a", "behind"]);
    let data = reader.fetch_from("orders", 0, 0, true);
    assert_eq!((data.last_stable_offset, data.high_watermark), (1, 3));
    assert_eq!(producer.end(true), 0);
    assert_eq!(reader.values("orders", 0, true), ["plain", "a", "behind"]);
    assert_eq!(reader.values("orders", 1, true), ["b"]);
    // The marker takes an offset of its own.
    assert_eq!(broker.partition("orders", 1).unwrap().end, 2);
}

#[test]
fn an_aborted_transaction_is_never_seen_by_readers_of_committed_data() {
    let broker = with_topic();
    let mut reader = Client::new(&broker);
    let mut producer = Producer::new(&broker, "t");
    producer.add(0);
    producer.write(0, "gone");
    assert_eq!(producer.end(false), 0);
    reader.produce("orders", 0, &["plain"]);
    producer.add(0);
    producer.write(0, "kept");
    assert_eq!(producer.end(true), 0);
    assert_eq!(reader.values("orders", 0, true), ["plain", "kept"]);
    assert_eq!(reader.values("orders", 0, false), ["gone", "plain", "kept"]);
    let data = reader.fetch_from("orders", 0, 0, true);
    let aborted = data.aborted_transactions.unwrap();
    assert_eq!(aborted.len(), 1);
    assert_eq!(
        (aborted[0].producer_id.0, aborted[0].first_offset),
        (producer.producer_id, 0)
    );
    // Behind its marker it is no longer told.
    let later = reader.fetch_from("orders", 0, 2, true);
    assert_eq!(later.aborted_transactions.unwrap().len(), 0);
}

#[test]
fn interleaved_transactions_are_told_apart() {
    let broker = with_topic();
    let mut reader = Client::new(&broker);
    let mut one = Producer::new(&broker, "one");
    let mut two = Producer::new(&broker, "two");
    one.add(0);
    two.add(0);
    one.write(0, "1a");
    two.write(0, "2a");
    one.write(0, "1b");
    two.write(0, "2b");
    assert_eq!(two.end(true), 0);
    assert_eq!(reader.values("orders", 0, true), Vec::<String>::new());
    assert_eq!(one.end(false), 0);
    assert_eq!(reader.values("orders", 0, true), ["2a", "2b"]);
}

#[test]
fn a_waiting_reader_of_committed_data_is_woken_by_the_commit() {
    let broker = with_topic();
    let mut producer = Producer::new(&broker, "t");
    producer.add(0);
    producer.write(0, "a");
    let mut reader = Client::new(&broker);
    let mut request = fetch_request("orders", 0, 0).with_max_wait_ms(60_000);
    request.isolation_level = 1;
    reader.send(&request, 12);
    producer.end(true);
    let answer = reader.receive::<FetchRequest>(12);
    assert_eq!(decode(&answer.responses[0].partitions[0]).len(), 2);
}

#[test]
fn a_new_producer_fences_the_old_one_and_aborts_its_transaction() {
    let broker = with_topic();
    let mut old = Producer::new(&broker, "t");
    old.add(0);
    old.write(0, "half");
    let mut new = Producer::new(&broker, "t");
    assert_eq!(
        (new.producer_id, new.epoch),
        (old.producer_id, old.epoch + 1)
    );
    assert_eq!(
        old.write(0, "late"),
        code(ResponseError::InvalidProducerEpoch)
    );
    assert_eq!(old.add(1), code(ResponseError::ProducerFenced));
    assert_eq!(old.end(true), code(ResponseError::ProducerFenced));
    assert_eq!(old.add_group(), code(ResponseError::ProducerFenced));
    // Older clients know the error under another number.
    let request = EndTxnRequest::default()
        .with_transactional_id(named("t"))
        .with_producer_id(ProducerId(old.producer_id))
        .with_producer_epoch(old.epoch);
    let answer = old.client.call_at(&request, 1);
    assert_eq!(answer.error_code, code(ResponseError::InvalidProducerEpoch));
    new.add(0);
    assert_eq!(new.write(0, "whole"), 0);
    assert_eq!(new.end(true), 0);
    assert_eq!(Client::new(&broker).values("orders", 0, true), ["whole"]);
}

#[test]
fn a_producer_can_raise_its_own_epoch_and_ask_again() {
    let broker = with_topic();
    let mut producer = Producer::new(&broker, "t");
    let raise = |client: &mut Client, id: i64, epoch: i16| {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(named("t")))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(epoch);
        let answer = client.call(&request);
        (answer.error_code, answer.producer_epoch)
    };
    let (id, client) = (producer.producer_id, &mut producer.client);
    assert_eq!(raise(client, id, 0), (0, 1));
    assert_eq!(raise(client, id, 0), (0, 1), "the answer was lost");
    assert_eq!(raise(client, id, 1), (0, 2));
    assert_eq!(
        raise(client, id, 0),
        (code(ResponseError::ProducerFenced), -1)
    );
}

#[test]
fn records_outside_of_a_transaction_are_refused() {
    let broker = with_topic();
    let mut producer = Producer::new(&broker, "t");
    assert_eq!(producer.write(0, "x"), code(ResponseError::InvalidTxnState));
    producer.add(0);
    assert_eq!(producer.write(1, "x"), code(ResponseError::InvalidTxnState));
    assert_eq!(producer.write(0, "x"), 0);
    producer.end(true);
    assert_eq!(producer.write(0, "y"), code(ResponseError::InvalidTxnState));
    let stranger = produce_request(
        "orders",
        0,
        batch_from(
            &["x"],
            From {
                id: 999_999,
                epoch: 0,
                sequence: 0,
                transactional: true,
            },
        ),
        Some("t"),
    );
    let answer = producer.client.call(&stranger);
    assert_eq!(
        answer.responses[0].partition_responses[0].error_code,
        code(ResponseError::InvalidProducerIdMapping)
    );
}

#[test]
fn ending_twice_is_harmless_and_changing_the_mind_is_refused() {
    let broker = with_topic();
    let mut producer = Producer::new(&broker, "t");
    assert_eq!(producer.end(true), code(ResponseError::InvalidTxnState));
    producer.add(0);
    producer.write(0, "x");
    assert_eq!(producer.end(true), 0);
    assert_eq!(producer.end(true), 0);
    assert_eq!(producer.end(false), code(ResponseError::InvalidTxnState));
}

#[test]
fn an_unknown_partition_spoils_the_whole_addition() {
    let broker = with_topic();
    let mut producer = Producer::new(&broker, "t");
    let request = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(named("t"))
        .with_v3_and_below_producer_id(ProducerId(producer.producer_id))
        .with_v3_and_below_topics(vec![
            AddPartitionsToTxnTopic::default()
                .with_name(topic("orders"))
                .with_partitions(vec![0, 99]),
        ]);
    let answer = producer.client.call(&request);
    let codes: Vec<i16> = answer.results_by_topic_v3_and_below[0]
        .results_by_partition
        .iter()
        .map(|one| one.partition_error_code)
        .collect();
    assert_eq!(
        codes,
        [
            code(ResponseError::OperationNotAttempted),
            code(ResponseError::UnknownTopicOrPartition)
        ]
    );
    assert_eq!(producer.write(0, "x"), code(ResponseError::InvalidTxnState));
}

#[test]
fn offset_and_token_of_a_transaction_appear_with_its_commit() {
    let broker = with_topic();
    let mut reader = Client::new(&broker);
    commit(&mut reader, &OUTSIDER, 1, "old");
    let mut producer = Producer::new(&broker, "t");
    let request = producer.offset_request(9, "token");
    assert_eq!(
        producer.send_offset(&request),
        code(ResponseError::InvalidTxnState),
        "the group was not added"
    );
    assert_eq!(producer.add_group(), 0);
    assert_eq!(producer.send_offset(&request), 0);
    // A stable read is told to wait; the other one sees the old state.
    let unstable = code(ResponseError::UnstableOffsetCommit);
    assert_eq!(committed(&mut reader, true), (unstable, -1, String::new()));
    assert_eq!(committed(&mut reader, false), (0, 1, "old".into()));
    assert_eq!(producer.end(true), 0);
    assert_eq!(committed(&mut reader, true), (0, 9, "token".into()));
}

#[test]
fn offsets_of_an_aborted_transaction_are_forgotten() {
    let broker = with_topic();
    let mut reader = Client::new(&broker);
    commit(&mut reader, &OUTSIDER, 1, "old");
    let mut producer = Producer::new(&broker, "t");
    producer.add_group();
    let request = producer.offset_request(9, "token");
    assert_eq!(producer.send_offset(&request), 0);
    assert_eq!(producer.end(false), 0);
    assert_eq!(committed(&mut reader, true), (0, 1, "old".into()));
}

#[test]
fn b_e2_a_transaction_cannot_commit_for_a_stale_generation() {
    let broker = with_topic();
    let mut member = Member::new(&broker, "g");
    member.settle();
    let mut producer = Producer::new(&broker, "t");
    producer.add_group();
    let as_member = |generation: i32, id: &str| {
        producer
            .offset_request(9, "")
            .with_generation_id(generation)
            .with_member_id(text(id))
    };
    let good = as_member(member.generation, &member.id);
    let stale = as_member(member.generation - 1, &member.id);
    let stranger = as_member(member.generation, "stranger");
    assert_eq!(
        producer.send_offset(&stale),
        code(ResponseError::IllegalGeneration)
    );
    assert_eq!(
        producer.send_offset(&stranger),
        code(ResponseError::UnknownMemberId)
    );
    assert_eq!(producer.send_offset(&good), 0);
    let too_long = good.with_topics(producer.offset_request(9, &"x".repeat(5_000)).topics);
    assert_eq!(
        producer.send_offset(&too_long),
        code(ResponseError::OffsetMetadataTooLarge)
    );
}

#[test]
fn a_slow_transaction_is_aborted_and_its_producer_fenced() {
    let broker = with_topic();
    let mut producer = Producer::with_timeout(&broker, "t", 100);
    producer.add(0);
    producer.write(0, "slow");
    let mut reader = Client::new(&broker);
    reader.produce("orders", 0, &["plain"]);
    eventually("the transaction is aborted", || {
        reader.values("orders", 0, true) == ["plain"]
    });
    assert_eq!(producer.end(true), code(ResponseError::ProducerFenced));
    assert_eq!(
        producer.write(0, "late"),
        code(ResponseError::InvalidProducerEpoch)
    );
}

#[test]
fn transaction_timeouts_and_names_are_checked() {
    let mut options = Options::memory();
    options.transaction_timeout_max = Duration::from_secs(10);
    let broker = Broker::start(options).unwrap();
    let mut client = Client::new(&broker);
    let mut init = |id: &str, timeout_ms: i32| {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(named(id)))
            .with_transaction_timeout_ms(timeout_ms);
        client.call(&request).error_code
    };
    assert_eq!(init("t", 10_000), 0);
    assert_eq!(
        init("t", 10_001),
        code(ResponseError::InvalidTransactionTimeout)
    );
    assert_eq!(init("t", 0), code(ResponseError::InvalidTransactionTimeout));
    assert_eq!(init("", 10_000), code(ResponseError::InvalidRequest));
}

#[test]
fn a_deleted_topic_does_not_hold_up_a_transaction() {
    let broker = with_topic();
    let mut producer = Producer::new(&broker, "t");
    producer.add(0);
    producer.write(0, "x");
    broker.delete_topic("orders").unwrap();
    assert_eq!(producer.end(true), 0);
}
