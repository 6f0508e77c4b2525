//! Committed offsets: who may commit, what is kept, what is read back.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest};
use millrace_broker::Broker;

use crate::client::*;
use crate::groups::Member;

pub(crate) struct Committer<'a> {
    pub(crate) group: &'a str,
    pub(crate) member_id: &'a str,
    pub(crate) instance: Option<&'a str>,
    pub(crate) generation: i32,
}

/// Somebody who is no member of any group.
pub(crate) const OUTSIDER: Committer<'static> = Committer {
    group: "g",
    member_id: "",
    instance: None,
    generation: -1,
};

pub(crate) fn commit_request(
    who: &Committer<'_>,
    partition: i32,
    offset: i64,
    metadata: &str,
) -> OffsetCommitRequest {
    OffsetCommitRequest::default()
        .with_group_id(group(who.group))
        .with_member_id(text(who.member_id))
        .with_group_instance_id(who.instance.map(text))
        .with_generation_id_or_member_epoch(who.generation)
        .with_topics(vec![
            OffsetCommitRequestTopic::default()
                .with_name(topic("orders"))
                .with_partitions(vec![
                    OffsetCommitRequestPartition::default()
                        .with_partition_index(partition)
                        .with_committed_offset(offset)
                        .with_committed_leader_epoch(0)
                        .with_committed_metadata(Some(text(metadata))),
                ]),
        ])
}

pub(crate) fn commit(client: &mut Client, who: &Committer<'_>, offset: i64, metadata: &str) -> i16 {
    client
        .call(&commit_request(who, 0, offset, metadata))
        .topics[0]
        .partitions[0]
        .error_code
}

/// Error, offset and metadata, as a reader that waits for transactions sees them.
pub(crate) fn committed(client: &mut Client, stable: bool) -> (i16, i64, String) {
    let request = OffsetFetchRequest::default()
        .with_require_stable(stable)
        .with_groups(vec![
            OffsetFetchRequestGroup::default()
                .with_group_id(group("g"))
                .with_topics(Some(vec![
                    OffsetFetchRequestTopics::default()
                        .with_name(topic("orders"))
                        .with_partition_indexes(vec![0]),
                ])),
        ]);
    let answer = client.call(&request);
    let found = answer.groups[0].topics[0].partitions[0].clone();
    (
        found.error_code,
        found.committed_offset,
        found.metadata.unwrap().to_string(),
    )
}

fn with_topic() -> Broker {
    let broker = memory();
    broker.create_topic("orders", 4, &[]).unwrap();
    broker
}

#[test]
fn offset_and_4000_bytes_of_metadata_come_back_together() {
    let broker = with_topic();
    let mut client = Client::new(&broker);
    let metadata = "ä".repeat(2_000);
    assert_eq!(commit(&mut client, &OUTSIDER, 7, &metadata), 0);
    assert_eq!(committed(&mut client, true), (0, 7, metadata.clone()));
    let seen = broker.committed("g", "orders", 0).unwrap();
    assert_eq!((seen.offset, seen.metadata), (7, metadata));
    let too_long = "x".repeat(4_097);
    assert_eq!(
        commit(&mut client, &OUTSIDER, 8, &too_long),
        ResponseError::OffsetMetadataTooLarge.code()
    );
    assert_eq!(committed(&mut client, true).1, 7);
    assert_eq!(commit(&mut client, &OUTSIDER, 8, &too_long[..4_096]), 0);
}

#[test]
fn b_e2_an_outsider_commits_only_while_the_group_is_empty() {
    let broker = with_topic();
    let mut outsider = Client::new(&broker);
    assert_eq!(commit(&mut outsider, &OUTSIDER, 1, "before"), 0);
    let mut member = Member::new(&broker, "g");
    member.settle();
    assert_eq!(
        commit(&mut outsider, &OUTSIDER, 2, "during"),
        ResponseError::UnknownMemberId.code()
    );
    assert_eq!(committed(&mut outsider, true), (0, 1, "before".into()));
    member.leave();
    assert_eq!(commit(&mut outsider, &OUTSIDER, 3, "after"), 0);
}

#[test]
fn b_e2_a_member_commits_with_its_present_generation_only() {
    let broker = with_topic();
    let mut member = Member::new(&broker, "g");
    member.settle();
    let id = member.id.clone();
    let generation = member.generation;
    let who = |generation| Committer {
        group: "g",
        member_id: &id,
        instance: None,
        generation,
    };
    assert_eq!(commit(&mut member.client, &who(generation), 5, "m"), 0);
    let stale = ResponseError::IllegalGeneration.code();
    assert_eq!(
        commit(&mut member.client, &who(generation - 1), 6, ""),
        stale
    );
    assert_eq!(
        commit(&mut member.client, &who(generation + 1), 6, ""),
        stale
    );
    // A member that lost a partition but not its membership can still commit it, as in
    // Apache Kafka: the broker fences generations, not partitions.
    let answer = member
        .client
        .call(&commit_request(&who(generation), 3, 9, ""));
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
    let stranger = Committer {
        member_id: "stranger",
        ..who(generation)
    };
    assert_eq!(
        commit(&mut member.client, &stranger, 6, ""),
        ResponseError::UnknownMemberId.code()
    );
    let unknown_group = Committer {
        group: "other",
        ..who(generation)
    };
    assert_eq!(commit(&mut member.client, &unknown_group, 6, ""), stale);
    assert_eq!(committed(&mut member.client, true), (0, 5, "m".into()));
}

#[test]
fn b_e2_commits_during_a_rebalance_follow_its_phase() {
    let broker = with_topic();
    let mut first = Member::new(&broker, "g");
    first.settle();
    let mut second = Member::new(&broker, "g");
    second.begin_join();
    let rebalancing = ResponseError::RebalanceInProgress.code();
    eventually("the rebalance is announced", || {
        first.heartbeat() == rebalancing
    });
    let id = first.id.clone();
    let who = |generation| Committer {
        group: "g",
        member_id: &id,
        instance: None,
        generation,
    };
    // While others join, the old generation may still write down what it did.
    let generation = first.generation;
    assert_eq!(commit(&mut first.client, &who(generation), 5, ""), 0);
    first.join();
    second.end_join();
    // Before the assignment nobody owns anything in the new one.
    let generation = first.generation;
    assert_eq!(
        commit(&mut first.client, &who(generation), 6, ""),
        rebalancing
    );
}

#[test]
fn b_e2_a_fenced_static_member_cannot_commit() {
    let broker = with_topic();
    let mut old = Member::new(&broker, "g");
    old.instance = Some("pod-1");
    old.settle();
    let mut new = Member::new(&broker, "g");
    new.instance = Some("pod-1");
    new.join();
    let id = old.id.clone();
    let who = Committer {
        group: "g",
        member_id: &id,
        instance: Some("pod-1"),
        generation: old.generation,
    };
    assert_eq!(
        commit(&mut old.client, &who, 5, ""),
        ResponseError::FencedInstanceId.code()
    );
}

#[test]
fn offsets_of_unknown_partitions_are_refused_one_by_one() {
    let broker = with_topic();
    let mut client = Client::new(&broker);
    let mut request = commit_request(&OUTSIDER, 99, 5, "");
    let good = commit_request(&OUTSIDER, 1, 5, "").topics[0].partitions[0].clone();
    request.topics[0].partitions.push(good);
    let answer = client.call(&request);
    let codes: Vec<i16> = answer.topics[0]
        .partitions
        .iter()
        .map(|one| one.error_code)
        .collect();
    assert_eq!(codes, [ResponseError::UnknownTopicOrPartition.code(), 0]);
}

#[test]
fn every_version_of_commit_and_fetch_keeps_offset_and_metadata() {
    let broker = with_topic();
    let mut client = Client::new(&broker);
    for version in 2..=8 {
        let offset = i64::from(version);
        let mut request = commit_request(&OUTSIDER, 0, offset, "m");
        if version < 6 {
            request.topics[0].partitions[0].committed_leader_epoch = -1;
        }
        let answer = client.call_at(&request, version);
        assert_eq!(answer.topics[0].partitions[0].error_code, 0);
        assert_eq!(committed(&mut client, false), (0, offset, "m".into()));
    }
    for version in 1..=7 {
        let request = OffsetFetchRequest::default()
            .with_group_id(group("g"))
            .with_topics(Some(vec![
                OffsetFetchRequestTopic::default()
                    .with_name(topic("orders"))
                    .with_partition_indexes(vec![0, 1]),
            ]));
        let answer = client.call_at(&request, version);
        let offsets: Vec<i64> = answer.topics[0]
            .partitions
            .iter()
            .map(|one| one.committed_offset)
            .collect();
        assert_eq!(offsets, [8, -1], "version {version}");
    }
}

#[test]
fn all_offsets_of_a_group_can_be_read_at_once() {
    let broker = with_topic();
    let mut client = Client::new(&broker);
    for partition in [0, 2] {
        client.call(&commit_request(&OUTSIDER, partition, 5, ""));
    }
    let request = OffsetFetchRequest::default().with_groups(vec![
        OffsetFetchRequestGroup::default()
            .with_group_id(group("g"))
            .with_topics(None),
    ]);
    let answer = client.call(&request);
    let partitions: Vec<i32> = answer.groups[0].topics[0]
        .partitions
        .iter()
        .map(|one| one.partition_index)
        .collect();
    assert_eq!(partitions, [0, 2]);
}

#[test]
fn offsets_are_deleted_unless_a_member_reads_the_topic() {
    let broker = with_topic();
    let mut client = Client::new(&broker);
    commit(&mut client, &OUTSIDER, 5, "");
    let request = OffsetDeleteRequest::default()
        .with_group_id(group("g"))
        .with_topics(vec![
            OffsetDeleteRequestTopic::default()
                .with_name(topic("orders"))
                .with_partitions(vec![
                    OffsetDeleteRequestPartition::default().with_partition_index(0),
                ]),
        ]);
    let mut member = Member::new(&broker, "g");
    member.settle();
    let answer = client.call(&request);
    assert_eq!(
        answer.topics[0].partitions[0].error_code,
        ResponseError::GroupSubscribedToTopic.code()
    );
    member.leave();
    assert_eq!(client.call(&request).topics[0].partitions[0].error_code, 0);
    assert_eq!(committed(&mut client, true).1, -1);
}

#[test]
fn a_deleted_topic_takes_its_committed_offsets_with_it() {
    let broker = with_topic();
    let mut client = Client::new(&broker);
    commit(&mut client, &OUTSIDER, 5, "");
    broker.delete_topic("orders").unwrap();
    broker.create_topic("orders", 1, &[]).unwrap();
    assert_eq!(committed(&mut client, true).1, -1);
}
