//! Who leads what: the answer is always this node.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, DescribeClusterResponse, FindCoordinatorRequest, FindCoordinatorResponse,
    MetadataRequest, MetadataResponse, TopicName,
};

use super::text;
use crate::log::Log;
use crate::state::{NODE_ID, Shared, State};
use crate::topics::{TopicError, is_valid_name};

pub(crate) fn metadata(
    shared: &Shared,
    request: MetadataRequest,
    version: i16,
) -> MetadataResponse {
    let mut state = shared.lock();
    let asked = request
        .topics
        .filter(|topics| version > 0 || !topics.is_empty());
    let topics = match asked {
        None => {
            let names: Vec<String> = state.topics.keys().cloned().collect();
            names
                .iter()
                .map(|name| topic(&mut state, name, false))
                .collect()
        }
        Some(asked) => asked
            .iter()
            .filter_map(|asked| asked.name.as_ref())
            .map(|name| topic(&mut state, name, request.allow_auto_topic_creation))
            .collect(),
    };
    let mut answer = MetadataResponse::default()
        .with_brokers(vec![
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(NODE_ID))
                .with_host(text(&shared.host))
                .with_port(i32::from(shared.port)),
        ])
        .with_controller_id(BrokerId(NODE_ID))
        .with_topics(topics);
    if version >= 2 {
        answer.cluster_id = Some(text(&state.cluster_id));
    }
    answer
}

fn topic(state: &mut State, name: &str, may_create: bool) -> MetadataResponseTopic {
    let mut answer = MetadataResponseTopic::default().with_name(Some(TopicName(text(name))));
    if !state.topics.contains_key(name) {
        let outcome = if !is_valid_name(name) {
            Err(ResponseError::InvalidTopicException)
        } else if may_create && state.limits.auto_create_topics {
            state
                .create_topic(name, -1, BTreeMap::new())
                .map_err(|error: TopicError| error.code())
        } else {
            Err(ResponseError::UnknownTopicOrPartition)
        };
        if let Err(error) = outcome {
            answer.error_code = error.code();
            return answer;
        }
        tracing::info!(topic = name, "created a topic that a client asked for");
    }
    let node = BrokerId(NODE_ID);
    let epoch = state.log(name, 0).map_or(0, Log::leader_epoch);
    let partitions = state.topics.get(name).map_or(0, |topic| topic.logs.len());
    answer.partitions = (0..i32::try_from(partitions).unwrap_or(i32::MAX))
        .map(|partition| {
            MetadataResponsePartition::default()
                .with_partition_index(partition)
                .with_leader_id(node)
                .with_leader_epoch(epoch)
                .with_replica_nodes(vec![node])
                .with_isr_nodes(vec![node])
        })
        .collect();
    answer
}

pub(crate) fn describe(shared: &Shared) -> DescribeClusterResponse {
    DescribeClusterResponse::default()
        .with_cluster_id(text(&shared.lock().cluster_id))
        .with_controller_id(BrokerId(NODE_ID))
        .with_brokers(vec![
            DescribeClusterBroker::default()
                .with_broker_id(BrokerId(NODE_ID))
                .with_host(text(&shared.host))
                .with_port(i32::from(shared.port)),
        ])
}

pub(crate) fn find_coordinator(
    shared: &Shared,
    request: &FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let known = (0..=1).contains(&request.key_type);
    let error = if known {
        0
    } else {
        ResponseError::InvalidRequest.code()
    };
    let (node, port) = if known {
        (BrokerId(NODE_ID), i32::from(shared.port))
    } else {
        (BrokerId(-1), -1)
    };
    let host = text(if known { &shared.host } else { "" });
    if version >= 4 {
        let coordinators = request
            .coordinator_keys
            .iter()
            .map(|key| {
                Coordinator::default()
                    .with_key(key.clone())
                    .with_node_id(node)
                    .with_host(host.clone())
                    .with_port(port)
                    .with_error_code(error)
            })
            .collect();
        return FindCoordinatorResponse::default().with_coordinators(coordinators);
    }
    FindCoordinatorResponse::default()
        .with_error_code(error)
        .with_node_id(node)
        .with_host(host)
        .with_port(port)
}
