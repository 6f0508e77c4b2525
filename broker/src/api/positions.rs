//! Offsets by time and by leader epoch.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
};

use crate::log::Log;
use crate::state::State;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;

/// Whether a client's idea of the leader is ours. -1 stands for no idea.
pub(crate) fn check_epoch(log: &Log, epoch: i32) -> Result<(), ResponseError> {
    match epoch {
        -1 => Ok(()),
        old if old < log.leader_epoch() => Err(ResponseError::FencedLeaderEpoch),
        new if new > log.leader_epoch() => Err(ResponseError::UnknownLeaderEpoch),
        _ => Ok(()),
    }
}

pub(crate) fn list(
    state: &mut State,
    request: &ListOffsetsRequest,
    version: i16,
) -> ListOffsetsResponse {
    let topics = request
        .topics
        .iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|asked| {
                    let outcome = state
                        .log(&topic.name, asked.partition_index)
                        .ok_or(ResponseError::UnknownTopicOrPartition)
                        .and_then(|log| find(log, asked, request.isolation_level == 1));
                    partition_answer(asked.partition_index, outcome, version)
                })
                .collect();
            ListOffsetsTopicResponse::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions)
        })
        .collect();
    ListOffsetsResponse::default().with_topics(topics)
}

struct Position {
    offset: i64,
    timestamp: i64,
    leader_epoch: i32,
}

fn find(
    log: &Log,
    asked: &ListOffsetsPartition,
    committed: bool,
) -> Result<Position, ResponseError> {
    check_epoch(log, asked.current_leader_epoch)?;
    let end = if committed {
        log.stable_end()
    } else {
        log.end()
    };
    let unreadable = |error: std::io::Error| {
        tracing::error!(%error, "cannot search a partition");
        ResponseError::KafkaStorageError
    };
    let (offset, timestamp) = match asked.timestamp {
        LATEST => (end, -1),
        EARLIEST => (log.start(), -1),
        MAX_TIMESTAMP => log
            .find_latest(end)
            .map_err(unreadable)?
            .unwrap_or((-1, -1)),
        timestamp => log
            .find_time(timestamp, end)
            .map_err(unreadable)?
            .unwrap_or((-1, -1)),
    };
    Ok(Position {
        offset,
        timestamp,
        leader_epoch: if offset < 0 { -1 } else { log.leader_epoch() },
    })
}

fn partition_answer(
    partition: i32,
    outcome: Result<Position, ResponseError>,
    version: i16,
) -> ListOffsetsPartitionResponse {
    let mut answer = ListOffsetsPartitionResponse::default().with_partition_index(partition);
    match outcome {
        Ok(position) => {
            answer.offset = position.offset;
            answer.timestamp = position.timestamp;
            if version >= 4 {
                answer.leader_epoch = position.leader_epoch;
            }
        }
        Err(error) => {
            answer.error_code = error.code();
            answer.offset = -1;
            answer.timestamp = -1;
        }
    }
    answer
}

pub(crate) fn for_leader_epoch(
    state: &State,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|asked| {
                    let mut answer = EpochEndOffset::default()
                        .with_partition(asked.partition)
                        .with_leader_epoch(-1)
                        .with_end_offset(-1);
                    let outcome = state
                        .log(&topic.topic, asked.partition)
                        .ok_or(ResponseError::UnknownTopicOrPartition)
                        .and_then(|log| {
                            check_epoch(log, asked.current_leader_epoch)?;
                            Ok(log.epoch_end(asked.leader_epoch))
                        });
                    match outcome {
                        Ok(Some((epoch, end))) => {
                            answer.leader_epoch = epoch;
                            answer.end_offset = end;
                        }
                        Ok(None) => {}
                        Err(error) => answer.error_code = error.code(),
                    }
                    answer
                })
                .collect();
            OffsetForLeaderTopicResult::default()
                .with_topic(topic.topic)
                .with_partitions(partitions)
        })
        .collect();
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}
