//! Configuration of topics and of the broker, on the wire. The broker's own is fixed when it
//! starts and can only be read.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::incremental_alter_configs_request::AlterableConfig;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as AlterSomeResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};

use super::text;
use crate::settings::{KEYS, Key, Kind, TOPIC_ID};
use crate::state::{NODE_ID, State};
use crate::topics::TopicError;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Where a value comes from, as the protocol numbers it.
const FROM_TOPIC: i8 = 1;
const FROM_BROKER_FILE: i8 = 4;
const FROM_DEFAULT: i8 = 5;

struct Value {
    name: &'static str,
    value: String,
    kind: Kind,
    source: i8,
    read_only: bool,
}

pub(crate) fn describe(
    state: &State,
    request: DescribeConfigsRequest,
    version: i16,
) -> DescribeConfigsResponse {
    let results = request
        .resources
        .into_iter()
        .map(|resource| {
            let answer = DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone());
            match values(state, &resource) {
                Err((error, message)) => answer
                    .with_error_code(error.code())
                    .with_error_message(Some(text(&message))),
                Ok(values) => answer.with_configs(
                    values
                        .into_iter()
                        .filter(|value| {
                            resource.configuration_keys.as_ref().is_none_or(|keys| {
                                keys.iter().any(|key| key.as_str() == value.name)
                            })
                        })
                        .map(|value| described(&value, request.include_synonyms, version))
                        .collect(),
                ),
            }
        })
        .collect();
    DescribeConfigsResponse::default().with_results(results)
}

fn described(value: &Value, synonyms: bool, version: i16) -> DescribeConfigsResourceResult {
    let mut answer = DescribeConfigsResourceResult::default()
        .with_name(text(value.name))
        .with_value(Some(text(&value.value)))
        .with_read_only(value.read_only)
        .with_config_source(value.source);
    if synonyms {
        answer.synonyms = vec![
            DescribeConfigsSynonym::default()
                .with_name(text(value.name))
                .with_value(Some(text(&value.value)))
                .with_source(value.source),
        ];
    }
    if version >= 3 {
        answer.config_type = value.kind as i8;
    }
    answer
}

fn values(
    state: &State,
    resource: &DescribeConfigsResource,
) -> Result<Vec<Value>, (ResponseError, String)> {
    let name = resource.resource_name.as_str();
    match resource.resource_type {
        TOPIC => {
            let Some(topic) = state.topics.get(name) else {
                let error = TopicError::Unknown(name.to_string());
                return Err((error.code(), error.to_string()));
            };
            Ok(KEYS
                .iter()
                .map(|key| topic_value(state, key, &topic.configs))
                .collect())
        }
        BROKER if name.is_empty() || name == NODE_ID.to_string() => Ok(broker_values(state)),
        _ => Err((
            ResponseError::InvalidRequest,
            format!(
                "there is no configuration of kind {} named {name:?}",
                resource.resource_type
            ),
        )),
    }
}

fn topic_value(state: &State, key: &Key, set: &BTreeMap<String, String>) -> Value {
    let value = set.get(key.name);
    Value {
        name: key.name,
        source: if value.is_some() {
            FROM_TOPIC
        } else {
            FROM_DEFAULT
        },
        value: value.cloned().unwrap_or_else(|| state.defaults.value(key)),
        kind: key.kind,
        read_only: key.name == TOPIC_ID,
    }
}

fn broker_values(state: &State) -> Vec<Value> {
    let limits = &state.limits;
    let fixed = |name: &'static str, value: String, kind: Kind| Value {
        name,
        value,
        kind,
        source: FROM_BROKER_FILE,
        read_only: true,
    };
    let ms = |duration: std::time::Duration| duration.as_millis().to_string();
    let from_topic = |name: &str| {
        KEYS.iter()
            .find(|key| key.name == name)
            .map_or_else(String::new, |key| state.defaults.value(key))
    };
    vec![
        fixed(
            "auto.create.topics.enable",
            limits.auto_create_topics.to_string(),
            Kind::Boolean,
        ),
        fixed(
            "num.partitions",
            limits.default_partitions.to_string(),
            Kind::Int,
        ),
        fixed("default.replication.factor", "1".into(), Kind::Int),
        fixed(
            "message.max.bytes",
            from_topic("max.message.bytes"),
            Kind::Int,
        ),
        fixed(
            "log.retention.bytes",
            from_topic("retention.bytes"),
            Kind::Long,
        ),
        fixed("log.retention.ms", from_topic("retention.ms"), Kind::Long),
        fixed(
            "offset.metadata.max.bytes",
            limits.offset_metadata_bytes_max.to_string(),
            Kind::Int,
        ),
        fixed(
            "group.initial.rebalance.delay.ms",
            ms(limits.initial_rebalance_delay),
            Kind::Int,
        ),
        fixed(
            "group.min.session.timeout.ms",
            ms(limits.session_timeout_min),
            Kind::Int,
        ),
        fixed(
            "group.max.session.timeout.ms",
            ms(limits.session_timeout_max),
            Kind::Int,
        ),
        fixed(
            "transaction.max.timeout.ms",
            ms(limits.transaction_timeout_max),
            Kind::Int,
        ),
    ]
}

/// The error of one resource: a number and a sentence.
type Refused = (ResponseError, String);

fn alter_topic(
    state: &mut State,
    resource_type: i8,
    name: &str,
    configs: BTreeMap<String, String>,
    only_check: bool,
) -> Result<(), Refused> {
    if resource_type != TOPIC {
        return Err((
            ResponseError::InvalidRequest,
            "only topics can be configured while the broker runs".to_string(),
        ));
    }
    state
        .set_configs(name, configs, only_check)
        .map_err(|error| (error.code(), error.to_string()))
}

pub(crate) fn alter(state: &mut State, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let responses = request
        .resources
        .into_iter()
        .map(|resource| {
            let configs = resource
                .configs
                .iter()
                .filter_map(|one| Some((one.name.to_string(), one.value.as_ref()?.to_string())))
                .collect();
            let outcome = alter_topic(
                state,
                resource.resource_type,
                &resource.resource_name,
                configs,
                request.validate_only,
            );
            let answer = AlterConfigsResourceResponse::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name);
            match outcome {
                Ok(()) => answer,
                Err((error, message)) => answer
                    .with_error_code(error.code())
                    .with_error_message(Some(text(&message))),
            }
        })
        .collect();
    AlterConfigsResponse::default().with_responses(responses)
}

pub(crate) fn alter_some(
    state: &mut State,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let responses = request
        .resources
        .into_iter()
        .map(|resource| {
            let known = state.topics.get(resource.resource_name.as_str());
            let mut configs = known.map(|topic| topic.configs.clone()).unwrap_or_default();
            let outcome = resource
                .configs
                .iter()
                .try_for_each(|change| apply(&mut configs, change))
                .and_then(|()| {
                    alter_topic(
                        state,
                        resource.resource_type,
                        &resource.resource_name,
                        configs,
                        request.validate_only,
                    )
                });
            let answer = AlterSomeResponse::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name);
            match outcome {
                Ok(()) => answer,
                Err((error, message)) => answer
                    .with_error_code(error.code())
                    .with_error_message(Some(text(&message))),
            }
        })
        .collect();
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

/// One change: 0 sets, 1 removes, 2 appends to and 3 takes out of a list.
fn apply(configs: &mut BTreeMap<String, String>, change: &AlterableConfig) -> Result<(), Refused> {
    let name = change.name.to_string();
    let value = change.value.as_ref().map(|value| value.to_string());
    let is_list = KEYS
        .iter()
        .any(|key| key.name == name && key.kind == Kind::List);
    match (change.config_operation, value) {
        (0, Some(value)) => {
            configs.insert(name, value);
        }
        (1, _) if name == TOPIC_ID => {
            return Err((
                ResponseError::InvalidConfig,
                format!("{TOPIC_ID} is set by the broker"),
            ));
        }
        (1, _) => {
            configs.remove(&name);
        }
        (2, Some(value)) if is_list => {
            let list = configs.entry(name).or_default();
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(&value);
        }
        (3, Some(value)) if is_list => {
            if let Some(list) = configs.get_mut(&name) {
                *list = list
                    .split(',')
                    .filter(|part| part.trim() != value)
                    .collect::<Vec<_>>()
                    .join(",");
            }
        }
        (operation, _) => {
            return Err((
                ResponseError::InvalidRequest,
                format!("operation {operation} cannot be applied to {name}"),
            ));
        }
    }
    Ok(())
}
