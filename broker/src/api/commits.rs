//! Committed offsets, on the wire.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::text;
use crate::groups::Group;
use crate::journal::{Entry, OffsetEntry};
use crate::state::State;

/// Whether one offset may be committed, whoever commits it.
pub(super) fn check_offset(
    state: &State,
    topic: &str,
    partition: i32,
    metadata: Option<&StrBytes>,
) -> Result<(), ResponseError> {
    if state.log(topic, partition).is_none() {
        return Err(ResponseError::UnknownTopicOrPartition);
    }
    let bytes = metadata.map_or(0, |metadata| metadata.len());
    if bytes > state.limits.offset_metadata_bytes_max {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    Ok(())
}

pub(super) fn storage(error: &std::io::Error) -> ResponseError {
    tracing::error!(%error, "cannot write offsets down");
    ResponseError::CoordinatorNotAvailable
}

pub(crate) fn commit(state: &mut State, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let allowed = may_commit(state, &request);
    let mut taken = Vec::new();
    let mut codes: Vec<Vec<i16>> = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for one in &topic.partitions {
            let metadata = one.committed_metadata.as_ref();
            let outcome = allowed
                .and_then(|()| check_offset(state, &topic.name, one.partition_index, metadata));
            if outcome.is_ok() {
                taken.push(OffsetEntry {
                    topic: topic.name.to_string(),
                    partition: one.partition_index,
                    offset: one.committed_offset,
                    leader_epoch: one.committed_leader_epoch,
                    metadata: metadata.map(StrBytes::to_string).unwrap_or_default(),
                });
            }
            partitions.push(super::code(outcome));
        }
        codes.push(partitions);
    }
    if !taken.is_empty()
        && let Err(error) = write(state, &request.group_id, taken)
    {
        for code in codes.iter_mut().flatten().filter(|code| **code == 0) {
            *code = error.code();
        }
    }
    let topics = request
        .topics
        .into_iter()
        .zip(codes)
        .map(|(topic, codes)| {
            let partitions = topic
                .partitions
                .iter()
                .zip(codes)
                .map(|(one, code)| {
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(one.partition_index)
                        .with_error_code(code)
                })
                .collect();
            OffsetCommitResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions)
        })
        .collect();
    OffsetCommitResponse::default().with_topics(topics)
}

fn may_commit(state: &mut State, request: &OffsetCommitRequest) -> Result<(), ResponseError> {
    let generation = request.generation_id_or_member_epoch;
    match state.groups.get_mut(request.group_id.as_str()) {
        Some(group) => group.check_commit(
            &request.member_id,
            request.group_instance_id.as_deref(),
            generation,
            false,
            Instant::now(),
        ),
        None if generation >= 0 => Err(ResponseError::IllegalGeneration),
        None => state.group(&request.group_id).map(|_| ()),
    }
}

fn write(state: &mut State, group: &str, offsets: Vec<OffsetEntry>) -> Result<(), ResponseError> {
    let entry = Entry::OffsetsCommitted {
        group: group.to_string(),
        offsets,
    };
    state.keeper.record(&entry).map_err(|e| storage(&e))?;
    if let (Entry::OffsetsCommitted { offsets, .. }, Some(group)) =
        (&entry, state.groups.get_mut(group))
    {
        offsets
            .iter()
            .for_each(|offset| group.offsets.commit(offset));
    }
    Ok(())
}

/// One partition of an answer: what is committed, or that nothing is.
struct Fetched {
    offset: i64,
    leader_epoch: i32,
    metadata: StrBytes,
    error: i16,
}

fn fetch_one(group: Option<&Group>, topic: &str, partition: i32, stable: bool) -> Fetched {
    let nothing = |error: i16| Fetched {
        offset: -1,
        leader_epoch: -1,
        metadata: StrBytes::new(),
        error,
    };
    let Some(group) = group else {
        return nothing(0);
    };
    if stable && group.offsets.is_unstable(topic, partition) {
        return nothing(ResponseError::UnstableOffsetCommit.code());
    }
    match group.offsets.get(topic, partition) {
        None => nothing(0),
        Some(committed) => Fetched {
            offset: committed.offset,
            leader_epoch: committed.leader_epoch,
            metadata: text(&committed.metadata),
            error: 0,
        },
    }
}

/// The places that a request asks for; all that are committed if it names none.
fn places(
    group: Option<&Group>,
    asked: Option<Vec<(TopicName, Vec<i32>)>>,
) -> Vec<(TopicName, Vec<i32>)> {
    if let Some(asked) = asked {
        return asked;
    }
    let mut all: Vec<(TopicName, Vec<i32>)> = Vec::new();
    for (topic, partition) in group.iter().flat_map(|group| group.offsets.places()) {
        match all.last_mut() {
            Some((name, partitions)) if name.as_str() == topic => partitions.push(*partition),
            _ => all.push((TopicName(text(topic)), vec![*partition])),
        }
    }
    all
}

pub(crate) fn fetch(
    state: &State,
    request: OffsetFetchRequest,
    version: i16,
) -> OffsetFetchResponse {
    let stable = request.require_stable;
    if version >= 8 {
        let groups = request
            .groups
            .into_iter()
            .map(|asked| {
                let group = state.groups.get(asked.group_id.as_str());
                let wanted = asked.topics.map(|topics| {
                    topics
                        .into_iter()
                        .map(|topic| (topic.name, topic.partition_indexes))
                        .collect()
                });
                let topics = places(group, wanted)
                    .into_iter()
                    .map(|(name, partitions)| {
                        let partitions = partitions
                            .into_iter()
                            .map(|partition| {
                                let found = fetch_one(group, &name, partition, stable);
                                OffsetFetchResponsePartitions::default()
                                    .with_partition_index(partition)
                                    .with_committed_offset(found.offset)
                                    .with_committed_leader_epoch(found.leader_epoch)
                                    .with_metadata(Some(found.metadata))
                                    .with_error_code(found.error)
                            })
                            .collect();
                        OffsetFetchResponseTopics::default()
                            .with_name(name)
                            .with_partitions(partitions)
                    })
                    .collect();
                OffsetFetchResponseGroup::default()
                    .with_group_id(asked.group_id)
                    .with_topics(topics)
            })
            .collect();
        return OffsetFetchResponse::default().with_groups(groups);
    }
    let group = state.groups.get(request.group_id.as_str());
    let wanted = request.topics.map(|topics| {
        topics
            .into_iter()
            .map(|topic| (topic.name, topic.partition_indexes))
            .collect()
    });
    let topics = places(group, wanted)
        .into_iter()
        .map(|(name, partitions)| {
            let partitions = partitions
                .into_iter()
                .map(|partition| {
                    let found = fetch_one(group, &name, partition, stable);
                    let mut answer = OffsetFetchResponsePartition::default()
                        .with_partition_index(partition)
                        .with_committed_offset(found.offset)
                        .with_metadata(Some(found.metadata))
                        .with_error_code(found.error);
                    if version >= 5 {
                        answer.committed_leader_epoch = found.leader_epoch;
                    }
                    answer
                })
                .collect();
            OffsetFetchResponseTopic::default()
                .with_name(name)
                .with_partitions(partitions)
        })
        .collect();
    OffsetFetchResponse::default().with_topics(topics)
}

pub(crate) fn delete(state: &mut State, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let Some(group) = state.groups.get_mut(request.group_id.as_str()) else {
        return OffsetDeleteResponse::default()
            .with_error_code(ResponseError::GroupIdNotFound.code());
    };
    let is_consumer = group.protocol_type.as_deref().unwrap_or("consumer") == "consumer";
    if !group.members.is_empty() && !is_consumer {
        return OffsetDeleteResponse::default()
            .with_error_code(ResponseError::NonEmptyGroup.code());
    }
    let mut deleted = Vec::new();
    let topics: Vec<OffsetDeleteResponseTopic> = request
        .topics
        .into_iter()
        .map(|topic| {
            let read = !group.members.is_empty() && group.subscribes(&topic.name);
            let partitions = topic
                .partitions
                .iter()
                .map(|one| {
                    let answer = OffsetDeleteResponsePartition::default()
                        .with_partition_index(one.partition_index);
                    if read {
                        return answer
                            .with_error_code(ResponseError::GroupSubscribedToTopic.code());
                    }
                    deleted.push((topic.name.to_string(), one.partition_index));
                    answer
                })
                .collect();
            OffsetDeleteResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions)
        })
        .collect();
    let entry = Entry::OffsetsDeleted {
        group: request.group_id.to_string(),
        partitions: deleted.clone(),
    };
    if let Err(error) = state.keeper.record(&entry) {
        return OffsetDeleteResponse::default().with_error_code(storage(&error).code());
    }
    for (topic, partition) in deleted {
        group.offsets.delete(&topic, partition);
    }
    OffsetDeleteResponse::default().with_topics(topics)
}
