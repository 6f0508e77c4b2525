//! Faults on demand, as clients feel them.

use std::time::Duration;

use kafka_protocol::messages::{
    HeartbeatRequest, MetadataRequest, OffsetCommitRequest, ProduceRequest,
};
use millrace_broker::{ApiKey, Fault, ResponseError, Target, Times};
use tokio::time::Instant;

use crate::client::*;
use crate::offsets::{OUTSIDER, commit, commit_request, committed};

#[test]
fn b_e7_a_refused_request_changes_nothing() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let fault = broker.faults().refuse(
        ApiKey::Produce,
        ResponseError::NotEnoughReplicas,
        Times::Count(2),
    );
    for _ in 0..2 {
        let answer = client.produce_as("orders", 0, batch(&["x"]), None);
        assert_eq!(answer.error_code, ResponseError::NotEnoughReplicas.code());
    }
    assert_eq!(client.produce("orders", 0, &["x"]), 0);
    assert_eq!(broker.faults().hits(fault), 2);
}

#[test]
fn b_e7_a_commit_is_rejected_for_one_group_only() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    broker.faults().reject_commit(
        "g",
        ResponseError::CoordinatorLoadInProgress,
        Times::UntilCleared,
    );
    assert_eq!(
        commit(&mut client, &OUTSIDER, 5, ""),
        ResponseError::CoordinatorLoadInProgress.code()
    );
    let other = crate::offsets::Committer {
        group: "other",
        ..OUTSIDER
    };
    assert_eq!(commit(&mut client, &other, 5, ""), 0);
    broker.faults().clear_all();
    assert_eq!(commit(&mut client, &OUTSIDER, 5, ""), 0);
}

#[test]
fn b_e7_an_answer_can_time_out_after_the_request_was_carried_out() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let faults = broker.faults();
    faults.time_out_after_applying(ApiKey::Produce, Times::Count(1));
    faults.time_out_after_applying(ApiKey::OffsetCommit, Times::Count(1));
    let answer = client.produce_as("orders", 0, batch(&["x"]), None);
    assert_eq!(answer.error_code, ResponseError::RequestTimedOut.code());
    assert_eq!(client.values("orders", 0, true), ["x"]);
    assert_eq!(
        commit(&mut client, &OUTSIDER, 5, "m"),
        ResponseError::RequestTimedOut.code()
    );
    assert_eq!(committed(&mut client, true), (0, 5, "m".into()));
}

#[test]
fn b_e7_a_connection_can_be_cut_before_and_after_the_request() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    broker.faults().add(
        Target::kind(ApiKey::Produce).partition("orders", 0),
        Fault::DropConnection,
        Times::Count(1),
    );
    let mut client = Client::new(&broker);
    client.send(&produce_request("orders", 0, batch(&["lost"]), None), 9);
    assert!(client.try_receive::<ProduceRequest>(9).is_err());
    assert_eq!(broker.partition("orders", 0).unwrap().end, 0);
    broker.faults().add(
        Target::kind(ApiKey::OffsetCommit),
        Fault::LoseAnswer,
        Times::Count(1),
    );
    let mut client = Client::new(&broker);
    client.send(&commit_request(&OUTSIDER, 0, 7, ""), 8);
    assert!(client.try_receive::<OffsetCommitRequest>(8).is_err());
    assert_eq!(broker.committed("g", "orders", 0).unwrap().offset, 7);
}

#[test]
fn b_e7_a_delay_holds_up_only_its_kind() {
    let broker = memory();
    let mut client = Client::new(&broker);
    broker.faults().delay(
        ApiKey::Heartbeat,
        Duration::from_millis(150),
        Times::Count(1),
    );
    let before = Instant::now();
    client.call(&MetadataRequest::default());
    assert!(before.elapsed() < Duration::from_millis(150));
    let before = Instant::now();
    client.call(&HeartbeatRequest::default().with_group_id(group("g")));
    assert!(before.elapsed() >= Duration::from_millis(150));
}
