//! Transactional producers, on the wire.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse, InitProducerIdRequest,
    InitProducerIdResponse, ProducerId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::code;
use super::commits::check_offset;
use crate::journal::OffsetEntry;
use crate::state::State;
use crate::transactions::Identity;

/// Older clients know a fenced producer under another number.
fn fenced(error: ResponseError, version: i16, known_from: i16) -> ResponseError {
    match error {
        ResponseError::ProducerFenced if version < known_from => {
            ResponseError::InvalidProducerEpoch
        }
        other => other,
    }
}

pub(crate) fn init(
    state: &mut State,
    request: &InitProducerIdRequest,
    version: i16,
) -> InitProducerIdResponse {
    let known = Identity {
        producer_id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let id = request.transactional_id.as_ref().map(|id| id.as_str());
    match state.init_producer(id, request.transaction_timeout_ms, known) {
        Ok(who) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(who.producer_id))
            .with_producer_epoch(who.epoch),
        Err(error) => InitProducerIdResponse::default()
            .with_error_code(fenced(error, version, 4).code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1),
    }
}

pub(crate) fn add_partitions(
    state: &mut State,
    request: AddPartitionsToTxnRequest,
    version: i16,
) -> AddPartitionsToTxnResponse {
    let who = Identity {
        producer_id: request.v3_and_below_producer_id.0,
        epoch: request.v3_and_below_producer_epoch,
    };
    let topics = request.v3_and_below_topics;
    let places: Vec<(String, i32)> = topics
        .iter()
        .flat_map(|topic| {
            topic
                .partitions
                .iter()
                .map(|one| (topic.name.to_string(), *one))
        })
        .collect();
    let unknown = |topic: &str, partition: i32| state.log(topic, partition).is_none();
    let some_unknown = places
        .iter()
        .any(|(topic, partition)| unknown(topic, *partition));
    // All or nothing: with an unknown partition the others are not added either.
    let codes: Vec<i16> = if some_unknown {
        places
            .iter()
            .map(|(topic, partition)| {
                if unknown(topic, *partition) {
                    ResponseError::UnknownTopicOrPartition.code()
                } else {
                    ResponseError::OperationNotAttempted.code()
                }
            })
            .collect()
    } else {
        let count = places.len();
        let outcome = state
            .transactions
            .add_partitions(
                &request.v3_and_below_transactional_id,
                who,
                places,
                Instant::now(),
            )
            .map_err(|error| fenced(error, version, 2));
        vec![code(outcome); count]
    };
    let mut codes = codes.into_iter();
    let results = topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .zip(codes.by_ref())
                .map(|(partition, code)| {
                    AddPartitionsToTxnPartitionResult::default()
                        .with_partition_index(*partition)
                        .with_partition_error_code(code)
                })
                .collect();
            AddPartitionsToTxnTopicResult::default()
                .with_name(topic.name)
                .with_results_by_partition(partitions)
        })
        .collect();
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results)
}

pub(crate) fn add_offsets(
    state: &mut State,
    request: &AddOffsetsToTxnRequest,
    version: i16,
) -> AddOffsetsToTxnResponse {
    let who = Identity {
        producer_id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let outcome = if request.group_id.is_empty() {
        Err(ResponseError::InvalidGroupId)
    } else {
        state
            .transactions
            .add_group(
                &request.transactional_id,
                who,
                &request.group_id,
                Instant::now(),
            )
            .map_err(|error| fenced(error, version, 2))
    };
    AddOffsetsToTxnResponse::default().with_error_code(code(outcome))
}

pub(crate) fn commit_offsets(
    state: &mut State,
    request: TxnOffsetCommitRequest,
) -> TxnOffsetCommitResponse {
    let allowed = may_commit(state, &request);
    let producer_id = request.producer_id.0;
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|one| {
                    let metadata = one.committed_metadata.as_ref();
                    let outcome = allowed.and_then(|()| {
                        check_offset(state, &topic.name, one.partition_index, metadata)?;
                        let entry = OffsetEntry {
                            topic: topic.name.to_string(),
                            partition: one.partition_index,
                            offset: one.committed_offset,
                            leader_epoch: one.committed_leader_epoch,
                            metadata: metadata.map(StrBytes::to_string).unwrap_or_default(),
                        };
                        state
                            .group(&request.group_id)?
                            .offsets
                            .hold(producer_id, &entry);
                        Ok(())
                    });
                    TxnOffsetCommitResponsePartition::default()
                        .with_partition_index(one.partition_index)
                        .with_error_code(code(outcome))
                })
                .collect();
            TxnOffsetCommitResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions)
        })
        .collect();
    TxnOffsetCommitResponse::default().with_topics(topics)
}

fn may_commit(state: &mut State, request: &TxnOffsetCommitRequest) -> Result<(), ResponseError> {
    let who = Identity {
        producer_id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    state
        .transactions
        .check_offsets(&request.transactional_id, who, &request.group_id)?;
    match state.groups.get_mut(request.group_id.as_str()) {
        Some(group) => group.check_commit(
            &request.member_id,
            request.group_instance_id.as_deref(),
            request.generation_id,
            true,
            Instant::now(),
        ),
        None if request.generation_id >= 0 => Err(ResponseError::IllegalGeneration),
        None => Ok(()),
    }
}

pub(crate) fn end(state: &mut State, request: &EndTxnRequest, version: i16) -> EndTxnResponse {
    let who = Identity {
        producer_id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let outcome = state
        .end_own_transaction(&request.transactional_id, who, request.committed)
        .map_err(|error| fenced(error, version, 2));
    EndTxnResponse::default().with_error_code(code(outcome))
}
