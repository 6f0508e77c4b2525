//! Topics, partitions and records: created and deleted, on the wire.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
};

use super::text;
use crate::settings::{KEYS, TOPIC_ID};
use crate::state::State;
use crate::topics::TopicError;

pub(crate) fn create_topics(
    state: &mut State,
    request: CreateTopicsRequest,
    version: i16,
) -> CreateTopicsResponse {
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let outcome = create_topic(state, &topic, request.validate_only);
            let mut answer = CreatableTopicResult::default().with_name(topic.name.clone());
            match outcome {
                Ok(partitions) if version >= 5 => {
                    answer.num_partitions = partitions;
                    answer.replication_factor = 1;
                    answer.configs = Some(created_configs(state, &topic.name));
                }
                Ok(_) => {}
                Err(error) => {
                    answer.error_code = error.code().code();
                    answer.error_message = Some(text(&error.to_string()));
                }
            }
            answer
        })
        .collect();
    CreateTopicsResponse::default().with_topics(topics)
}

fn create_topic(
    state: &mut State,
    topic: &CreatableTopic,
    only_check: bool,
) -> Result<i32, TopicError> {
    if topic.replication_factor != -1 && topic.replication_factor != 1 {
        return Err(TopicError::Replicas(topic.replication_factor));
    }
    let mut partitions = topic.num_partitions;
    if !topic.assignments.is_empty() {
        partitions = i32::try_from(topic.assignments.len()).unwrap_or(i32::MAX);
    }
    let configs: BTreeMap<String, String> = topic
        .configs
        .iter()
        .filter_map(|config| Some((config.name.to_string(), config.value.as_ref()?.to_string())))
        .collect();
    let count = if only_check {
        state.check_creation(&topic.name, partitions, &configs)?
    } else {
        state.create_topic(&topic.name, partitions, configs)?;
        state
            .topics
            .get(topic.name.as_str())
            .map_or(0, |topic| topic.logs.len())
    };
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}

fn created_configs(state: &State, name: &str) -> Vec<CreatableTopicConfigs> {
    let set = state.topics.get(name).map(|topic| &topic.configs);
    KEYS.iter()
        .map(|key| {
            let value = set.and_then(|set| set.get(key.name));
            CreatableTopicConfigs::default()
                .with_name(text(key.name))
                .with_config_source(if value.is_some() { 1 } else { 5 })
                .with_value(Some(text(
                    &value.cloned().unwrap_or_else(|| state.defaults.value(key)),
                )))
                .with_read_only(key.name == TOPIC_ID)
        })
        .collect()
}

pub(crate) fn delete_topics(
    state: &mut State,
    request: DeleteTopicsRequest,
    version: i16,
) -> DeleteTopicsResponse {
    let responses = request
        .topic_names
        .into_iter()
        .map(|name| {
            let outcome = state.delete_topic(&name);
            let mut answer = DeletableTopicResult::default().with_name(Some(name));
            if let Err(error) = outcome {
                answer.error_code = error.code().code();
                if version >= 5 {
                    answer.error_message = Some(text(&error.to_string()));
                }
            }
            answer
        })
        .collect();
    DeleteTopicsResponse::default().with_responses(responses)
}

pub(crate) fn create_partitions(
    state: &mut State,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let results = request
        .topics
        .into_iter()
        .map(|topic| {
            let outcome = state.set_partitions(&topic.name, topic.count, request.validate_only);
            let answer = CreatePartitionsTopicResult::default().with_name(topic.name);
            match outcome {
                Ok(()) => answer,
                Err(error) => answer
                    .with_error_code(error.code().code())
                    .with_error_message(Some(text(&error.to_string()))),
            }
        })
        .collect();
    CreatePartitionsResponse::default().with_results(results)
}

pub(crate) fn delete_records(
    state: &mut State,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|one| {
                    let outcome: Result<i64, ResponseError> =
                        state.delete_records(&topic.name, one.partition_index, one.offset);
                    DeleteRecordsPartitionResult::default()
                        .with_partition_index(one.partition_index)
                        .with_low_watermark(*outcome.as_ref().unwrap_or(&-1))
                        .with_error_code(outcome.err().map_or(0, |error| error.code()))
                })
                .collect();
            DeleteRecordsTopicResult::default()
                .with_name(topic.name)
                .with_partitions(partitions)
        })
        .collect();
    DeleteRecordsResponse::default().with_topics(topics)
}
