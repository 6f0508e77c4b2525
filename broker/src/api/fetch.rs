//! Fetch: waits until there is enough to read, takes slices under the lock, loads them
//! outside of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::{FetchRequest, FetchResponse, ProducerId};
use tokio::time::Instant;

use crate::limits::{FETCH_BYTES_MAX, FETCH_WAIT_MAX};
use crate::log::Log;
use crate::log::store::Slice;
use crate::state::{Shared, State};

/// One partition's part of an answer, its records not loaded yet.
struct Part {
    data: PartitionData,
    slice: Option<Slice>,
}

fn bytes_max(asked: i32) -> usize {
    usize::try_from(asked)
        .unwrap_or_default()
        .min(FETCH_BYTES_MAX)
}

fn is_committed(request: &FetchRequest) -> bool {
    request.isolation_level == 1
}

pub(crate) async fn fetch(
    shared: &Arc<Shared>,
    request: &FetchRequest,
    version: i16,
) -> FetchResponse {
    // Sessions save bytes between many brokers. Every answer here says "no session", so a
    // client that names one means some other broker.
    if version >= 7 && request.session_id != 0 && request.session_epoch > 0 {
        return FetchResponse::default()
            .with_error_code(ResponseError::FetchSessionIdNotFound.code());
    }
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or_default());
    let deadline = Instant::now() + wait.min(FETCH_WAIT_MAX);
    let enough = usize::try_from(request.min_bytes).unwrap_or_default();
    loop {
        // Listen before looking: what arrives in between must not be missed.
        let arrival = shared.data.notified();
        tokio::pin!(arrival);
        arrival.as_mut().enable();
        if is_ready(&shared.lock(), request, enough) || Instant::now() >= deadline {
            break;
        }
        tokio::select! {
            () = &mut arrival => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
    let parts = take(&shared.lock(), request);
    load(parts)
}

/// Whether an answer has enough bytes, or an error that is better told at once.
fn is_ready(state: &State, request: &FetchRequest, enough: usize) -> bool {
    let mut bytes = 0;
    if enough == 0 {
        return true;
    }
    for topic in &request.topics {
        for asked in &topic.partitions {
            match state.log(&topic.topic, asked.partition) {
                None => return true,
                Some(log) => {
                    if refusal(log, asked).is_some() {
                        return true;
                    }
                    let below = below(log, is_committed(request));
                    let limit = enough.saturating_sub(bytes);
                    bytes += log.available(asked.fetch_offset, below, limit);
                    if bytes >= enough {
                        return true;
                    }
                }
            }
        }
    }
    // Waiting for nothing helps nobody.
    request
        .topics
        .iter()
        .all(|topic| topic.partitions.is_empty())
}

fn below(log: &Log, committed: bool) -> i64 {
    if committed {
        log.stable_end()
    } else {
        log.end()
    }
}

fn refusal(log: &Log, asked: &FetchPartition) -> Option<ResponseError> {
    if let Err(error) = super::positions::check_epoch(log, asked.current_leader_epoch) {
        return Some(error);
    }
    let readable = log.start()..=log.end();
    (!readable.contains(&asked.fetch_offset)).then_some(ResponseError::OffsetOutOfRange)
}

fn take(state: &State, request: &FetchRequest) -> Vec<(FetchableTopicResponse, Vec<Part>)> {
    let mut left = bytes_max(request.max_bytes);
    let mut nothing_yet = true;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut parts = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let mut data = PartitionData::default()
                .with_partition_index(asked.partition)
                .with_high_watermark(-1)
                .with_aborted_transactions(None)
                .with_records(Some(Bytes::new()));
            let Some(log) = state.log(&topic.topic, asked.partition) else {
                data.error_code = ResponseError::UnknownTopicOrPartition.code();
                parts.push(Part { data, slice: None });
                continue;
            };
            if let Some(error) = refusal(log, asked) {
                data.error_code = error.code();
                parts.push(Part { data, slice: None });
                continue;
            }
            let below = below(log, is_committed(request));
            let limit = bytes_max(asked.partition_max_bytes).min(left);
            // A batch that is larger than every limit must still get through, once.
            let read = log.read(asked.fetch_offset, below, limit, nothing_yet && left > 0);
            nothing_yet &= read.bytes == 0;
            left = left.saturating_sub(read.bytes);
            data.high_watermark = log.end();
            data.last_stable_offset = log.stable_end();
            data.log_start_offset = log.start();
            if is_committed(request) {
                let aborted = log.aborted(asked.fetch_offset, read.end);
                data.aborted_transactions = Some(
                    aborted
                        .iter()
                        .map(|one| {
                            AbortedTransaction::default()
                                .with_producer_id(ProducerId(one.producer_id))
                                .with_first_offset(one.first_offset)
                        })
                        .collect(),
                );
            }
            parts.push(Part {
                data,
                slice: Some(read.slice),
            });
        }
        let answer = FetchableTopicResponse::default().with_topic(topic.topic.clone());
        topics.push((answer, parts));
    }
    topics
}

fn load(topics: Vec<(FetchableTopicResponse, Vec<Part>)>) -> FetchResponse {
    let mut responses = Vec::with_capacity(topics.len());
    for (mut topic, parts) in topics {
        for Part { mut data, slice } in parts {
            match slice.map(Slice::load) {
                Some(Ok(records)) => data.records = Some(records),
                Some(Err(error)) => {
                    tracing::error!(%error, "cannot read records");
                    data.error_code = ResponseError::KafkaStorageError.code();
                }
                None => {}
            }
            topic.partitions.push(data);
        }
        responses.push(topic);
    }
    FetchResponse::default().with_responses(responses)
}
