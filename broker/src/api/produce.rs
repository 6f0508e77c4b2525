//! Produce: batches are checked outside of the lock, placed and stored under it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::ProduceRequest;
use kafka_protocol::messages::ProduceResponse;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};

use super::{Outcome, refusal, text};
use crate::batch::{self, Header, Malformed};
use crate::ids::now_ms;
use crate::log::producers::Sequence;
use crate::settings::Timestamps;
use crate::state::{Shared, State};
use crate::transactions::Identity;

/// A batch that has passed every check that needs no state, with a copy of its own: a slice
/// would keep the whole request in memory.
struct Checked {
    header: Header,
    batch: BytesMut,
}

struct Stored {
    base_offset: i64,
    append_time_ms: i64,
}

pub(crate) async fn produce(
    shared: &Arc<Shared>,
    mut request: ProduceRequest,
    version: i16,
) -> Outcome {
    if !(-1..=1).contains(&request.acks) {
        return refusal::produce(&request, ResponseError::InvalidRequiredAcks).into();
    }
    let checked: Vec<Vec<Result<Checked, ResponseError>>> = request
        .topic_data
        .iter_mut()
        .map(|topic| {
            topic
                .partition_data
                .iter_mut()
                .map(|data| check(data.records.take(), version))
                .collect()
        })
        .collect();
    let mut answer = {
        let mut state = shared.lock();
        store_all(&mut state, &request, checked, version)
    };
    shared.data.notify_waiters();
    if let Err(error) = shared.sync().await {
        tracing::error!(%error, "cannot sync records to the device");
        answer = refusal::produce(&request, ResponseError::KafkaStorageError);
    }
    if request.acks != 0 {
        return answer.into();
    }
    let failed = answer
        .responses
        .iter()
        .flat_map(|topic| &topic.partition_responses)
        .any(|partition| partition.error_code != 0);
    if failed {
        Outcome::Close
    } else {
        Outcome::Silent
    }
}

fn check(records: Option<Bytes>, version: i16) -> Result<Checked, ResponseError> {
    let records = records.unwrap_or_default();
    let header = Header::parse_whole(&records).map_err(|error| {
        tracing::debug!(%error, "refused a batch");
        match error {
            Malformed::Checksum => ResponseError::CorruptMessage,
            Malformed::Magic(_)
            | Malformed::Short(_)
            | Malformed::Length(_)
            | Malformed::Count { .. } => ResponseError::InvalidRecord,
        }
    })?;
    if header.is_control() {
        return Err(ResponseError::InvalidRecord);
    }
    if header.is_zstd() && version < 7 {
        return Err(ResponseError::UnsupportedCompressionType);
    }
    if header.producer_id >= 0 && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return Err(ResponseError::InvalidRecord);
    }
    if header.is_transactional() && header.producer_id < 0 {
        return Err(ResponseError::InvalidRecord);
    }
    Ok(Checked {
        header,
        batch: BytesMut::from(&records[..]),
    })
}

fn store_all(
    state: &mut State,
    request: &ProduceRequest,
    checked: Vec<Vec<Result<Checked, ResponseError>>>,
    version: i16,
) -> ProduceResponse {
    let transactional_id = request.transactional_id.as_ref().map(|id| id.as_str());
    let mut responses = Vec::with_capacity(request.topic_data.len());
    for (topic, checked) in request.topic_data.iter().zip(checked) {
        let mut partitions = Vec::with_capacity(checked.len());
        for (data, checked) in topic.partition_data.iter().zip(checked) {
            let outcome = checked.and_then(|checked| {
                store(state, transactional_id, &topic.name, data.index, checked)
            });
            let mut answer = PartitionProduceResponse::default().with_index(data.index);
            match outcome {
                Ok(stored) => {
                    answer.base_offset = stored.base_offset;
                    answer.log_append_time_ms = stored.append_time_ms;
                    if version >= 5 {
                        answer.log_start_offset = state
                            .log(&topic.name, data.index)
                            .map_or(-1, crate::log::Log::start);
                    }
                }
                Err(error) => {
                    answer.error_code = error.code();
                    answer.base_offset = -1;
                    answer.log_append_time_ms = -1;
                    if error == ResponseError::PolicyViolation && version >= 8 {
                        answer.error_message = Some(text(
                            "the memory of the embedded broker is full; delete records, raise its cap or start it with files",
                        ));
                    }
                }
            }
            partitions.push(answer);
        }
        responses.push(
            TopicProduceResponse::default()
                .with_name(topic.name.clone())
                .with_partition_responses(partitions),
        );
    }
    ProduceResponse::default().with_responses(responses)
}

fn store(
    state: &mut State,
    transactional_id: Option<&str>,
    topic_name: &str,
    partition: i32,
    checked: Checked,
) -> Result<Stored, ResponseError> {
    let Checked { header, mut batch } = checked;
    let State {
        topics,
        transactions,
        keeper,
        ..
    } = state;
    let topic = topics
        .get_mut(topic_name)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    let settings = topic.settings;
    let log = usize::try_from(partition)
        .ok()
        .and_then(|partition| topic.logs.get_mut(partition))
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    if header.bytes > settings.message_bytes_max {
        return Err(ResponseError::MessageTooLarge);
    }
    if let Sequence::Repeated { base_offset } = log.check(&header)? {
        return Ok(Stored {
            base_offset,
            append_time_ms: -1,
        });
    }
    if header.is_transactional() {
        let who = Identity {
            producer_id: header.producer_id,
            epoch: header.producer_epoch,
        };
        transactions.check_produce(transactional_id, who, topic_name, partition)?;
    }
    let now_ms = now_ms();
    let mut header = header;
    let append_time_ms = match settings.timestamps {
        Timestamps::Broker => {
            batch::patch_append_time(&mut batch, header.attributes, now_ms);
            header = Header::parse(&batch).map_err(|_| ResponseError::InvalidRecord)?;
            now_ms
        }
        Timestamps::Producer {
            before_max_ms,
            after_max_ms,
        } => {
            let late = header.max_timestamp > now_ms.saturating_add(after_max_ms);
            let early = header.base_timestamp >= 0
                && header.base_timestamp < now_ms.saturating_sub(before_max_ms);
            if header.has_append_time() || late || early {
                return Err(ResponseError::InvalidTimestamp);
            }
            -1
        }
    };
    let base_offset = log.append(header, batch, now_ms).map_err(|error| {
        tracing::error!(topic = topic_name, partition, %error, "cannot store a batch");
        ResponseError::KafkaStorageError
    })?;
    keeper.mark(log.file());
    Ok(Stored {
        base_offset,
        append_time_ms,
    })
}
