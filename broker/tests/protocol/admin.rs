//! Topics and their configuration, and what the cluster says of itself.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_request::{
    AlterConfigsResource as SetResource, AlterableConfig as Set,
};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::*;
use millrace_broker::{Broker, Options};

use crate::client::*;

fn code(error: ResponseError) -> i16 {
    error.code()
}

fn metadata(client: &mut Client, name: &str, may_create: bool) -> (i16, usize) {
    let request = MetadataRequest::default()
        .with_allow_auto_topic_creation(may_create)
        .with_topics(Some(vec![
            MetadataRequestTopic::default().with_name(Some(topic(name))),
        ]));
    let answer = client.call(&request);
    (
        answer.topics[0].error_code,
        answer.topics[0].partitions.len(),
    )
}

fn configs(client: &mut Client, name: &str) -> BTreeMap<String, (String, i8)> {
    let request = DescribeConfigsRequest::default().with_resources(vec![
        DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(name))
            .with_configuration_keys(None),
    ]);
    let answer = client.call(&request);
    assert_eq!(answer.results[0].error_code, 0);
    answer.results[0]
        .configs
        .iter()
        .map(|one| {
            let value = one.value.as_ref().unwrap().to_string();
            (one.name.to_string(), (value, one.config_source))
        })
        .collect()
}

#[test]
fn topics_are_created_on_demand_if_both_sides_want_it() {
    let broker = memory();
    let mut client = Client::new(&broker);
    let unknown = code(ResponseError::UnknownTopicOrPartition);
    assert_eq!(metadata(&mut client, "orders", false), (unknown, 0));
    assert_eq!(metadata(&mut client, "orders", true), (0, 4));
    assert_eq!(metadata(&mut client, "orders", false), (0, 4));
    let invalid = code(ResponseError::InvalidTopicException);
    assert_eq!(metadata(&mut client, "or/ders", true), (invalid, 0));
    let mut options = Options::memory();
    options.auto_create_topics = false;
    let strict = Broker::start(options).unwrap();
    assert_eq!(
        metadata(&mut Client::new(&strict), "orders", true),
        (unknown, 0)
    );
}

#[test]
fn every_version_of_metadata_lists_all_topics() {
    let broker = memory();
    broker.create_topic("a", 1, &[]).unwrap();
    broker.create_topic("b", 2, &[]).unwrap();
    let mut client = Client::new(&broker);
    for version in 0..=9 {
        let all = if version == 0 { Some(vec![]) } else { None };
        let answer = client.call_at(&MetadataRequest::default().with_topics(all), version);
        let names: Vec<String> = answer
            .topics
            .iter()
            .map(|one| one.name.as_ref().unwrap().to_string())
            .collect();
        assert_eq!(names, ["a", "b"], "version {version}");
        assert_eq!(
            answer.topics[1].partitions[1].leader_id,
            answer.brokers[0].node_id
        );
    }
    let none = client.call(&MetadataRequest::default().with_topics(Some(vec![])));
    assert_eq!(none.topics.len(), 0);
    assert_eq!(none.cluster_id.unwrap().as_str(), broker.cluster_id());
    let cluster = client.call(&DescribeClusterRequest::default());
    assert_eq!(cluster.cluster_id.as_str(), broker.cluster_id());
    assert_eq!(cluster.brokers.len(), 1);
}

#[test]
fn b_e1_a_recreated_topic_has_another_id() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut client = Client::new(&broker);
    let id = |client: &mut Client| configs(client, "orders")["millrace.topic.id"].0.clone();
    let first = id(&mut client);
    assert_eq!(first.len(), 22);
    assert_eq!(broker.topics()[0].id, first);
    let delete =
        DeleteTopicsRequest::default().with_topic_names(vec![topic("orders"), topic("no")]);
    let answer = client.call(&delete);
    let codes: Vec<i16> = answer.responses.iter().map(|one| one.error_code).collect();
    assert_eq!(codes, [0, code(ResponseError::UnknownTopicOrPartition)]);
    broker.create_topic("orders", 1, &[]).unwrap();
    assert_ne!(id(&mut client), first);
}

#[test]
fn creations_are_checked_one_by_one() {
    let broker = memory();
    let mut client = Client::new(&broker);
    let plain = |name: &str| {
        CreatableTopic::default()
            .with_name(topic(name))
            .with_num_partitions(3)
            .with_replication_factor(1)
    };
    let config = |name: &str, value: &str| {
        vec![
            CreatableTopicConfig::default()
                .with_name(text(name))
                .with_value(Some(text(value))),
        ]
    };
    let assigned = plain("assigned")
        .with_num_partitions(-1)
        .with_assignments(vec![
            CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(1)]),
            CreatableReplicaAssignment::default()
                .with_partition_index(1)
                .with_broker_ids(vec![BrokerId(1)]),
        ]);
    let request = CreateTopicsRequest::default().with_topics(vec![
        plain("good").with_configs(config("retention.ms", "1000")),
        plain("good"),
        plain("bad name"),
        plain("zero").with_num_partitions(0),
        plain("three").with_replication_factor(3),
        plain("config").with_configs(config("retention.ms", "soon")),
        plain("id").with_configs(config("millrace.topic.id", "mine")),
        plain("default").with_num_partitions(-1),
        assigned,
    ]);
    let answer = client.call(&request);
    let found: Vec<(i16, i32)> = answer
        .topics
        .iter()
        .map(|one| {
            (
                one.error_code,
                if one.error_code == 0 {
                    one.num_partitions
                } else {
                    0
                },
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (0, 3),
            (code(ResponseError::TopicAlreadyExists), 0),
            (code(ResponseError::InvalidTopicException), 0),
            (code(ResponseError::InvalidPartitions), 0),
            (code(ResponseError::InvalidReplicationFactor), 0),
            (code(ResponseError::InvalidConfig), 0),
            (code(ResponseError::InvalidConfig), 0),
            (0, 4),
            (0, 2),
        ]
    );
    let only_check = CreateTopicsRequest::default()
        .with_topics(vec![plain("checked")])
        .with_validate_only(true);
    assert_eq!(client.call(&only_check).topics[0].error_code, 0);
    let names: Vec<String> = broker.topics().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["assigned", "default", "good"]);
    for version in 2..=6 {
        let answer = client.call_at(
            &CreateTopicsRequest::default().with_topics(vec![plain(&format!("v{version}"))]),
            version,
        );
        assert_eq!(answer.topics[0].error_code, 0, "version {version}");
    }
}

#[test]
fn a_topic_grows_and_never_shrinks() {
    let broker = memory();
    broker.create_topic("orders", 2, &[]).unwrap();
    let mut client = Client::new(&broker);
    let mut grow = |name: &str, count: i32| {
        let request = CreatePartitionsRequest::default().with_topics(vec![
            CreatePartitionsTopic::default()
                .with_name(topic(name))
                .with_count(count)
                .with_assignments(None),
        ]);
        client.call(&request).results[0].error_code
    };
    assert_eq!(grow("orders", 3), 0);
    assert_eq!(grow("orders", 3), code(ResponseError::InvalidPartitions));
    assert_eq!(grow("orders", 1), code(ResponseError::InvalidPartitions));
    assert_eq!(
        grow("other", 3),
        code(ResponseError::UnknownTopicOrPartition)
    );
    assert_eq!(Client::new(&broker).produce("orders", 2, &["x"]), 0);
}

#[test]
fn configuration_is_set_in_parts_and_as_a_whole_and_the_id_stays() {
    let broker = memory();
    broker
        .create_topic("orders", 1, &[("segment.ms", "5000")])
        .unwrap();
    let mut client = Client::new(&broker);
    let id = configs(&mut client, "orders")["millrace.topic.id"].clone();
    let mut change = |name: &str, operation: i8, value: Option<&str>| {
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![
            AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("orders"))
                .with_configs(vec![
                    AlterableConfig::default()
                        .with_name(text(name))
                        .with_config_operation(operation)
                        .with_value(value.map(text)),
                ]),
        ]);
        client.call(&request).responses[0].error_code
    };
    let invalid = code(ResponseError::InvalidConfig);
    assert_eq!(change("retention.ms", 0, Some("1000")), 0);
    assert_eq!(change("cleanup.policy", 2, Some("compact")), 0);
    assert_eq!(change("retention.ms", 0, Some("soon")), invalid);
    assert_eq!(change("no.such", 0, Some("1")), invalid);
    assert_eq!(change("millrace.topic.id", 0, Some("mine")), invalid);
    assert_eq!(change("millrace.topic.id", 1, None), invalid);
    let now = configs(&mut client, "orders");
    assert_eq!(now["retention.ms"], ("1000".into(), 1));
    assert_eq!(now["segment.ms"], ("5000".into(), 1));
    assert_eq!(now["cleanup.policy"], ("compact".into(), 1));
    assert_eq!(now["max.message.bytes"], ("1048588".into(), 5));
    let whole = AlterConfigsRequest::default().with_resources(vec![
        SetResource::default()
            .with_resource_type(2)
            .with_resource_name(text("orders"))
            .with_configs(vec![
                Set::default()
                    .with_name(text("max.message.bytes"))
                    .with_value(Some(text("300"))),
            ]),
    ]);
    assert_eq!(client.call(&whole).responses[0].error_code, 0);
    let now = configs(&mut client, "orders");
    assert_eq!(now["retention.ms"], ("-1".into(), 5));
    assert_eq!(now["millrace.topic.id"], id);
    let answer = client.produce_as("orders", 0, batch(&[&"x".repeat(400)]), None);
    assert_eq!(answer.error_code, code(ResponseError::MessageTooLarge));
}

#[test]
fn the_broker_describes_itself_and_cannot_be_reconfigured() {
    let broker = memory();
    let mut client = Client::new(&broker);
    let request = DescribeConfigsRequest::default().with_resources(vec![
        DescribeConfigsResource::default()
            .with_resource_type(4)
            .with_resource_name(text("1"))
            .with_configuration_keys(Some(vec![text("offset.metadata.max.bytes")])),
        DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text("no")),
    ]);
    let answer = client.call(&request);
    assert_eq!(answer.results[0].configs.len(), 1);
    assert_eq!(
        answer.results[0].configs[0]
            .value
            .as_ref()
            .unwrap()
            .as_str(),
        "4096"
    );
    assert_eq!(
        answer.results[1].error_code,
        code(ResponseError::UnknownTopicOrPartition)
    );
    let change = IncrementalAlterConfigsRequest::default().with_resources(vec![
        AlterConfigsResource::default()
            .with_resource_type(4)
            .with_resource_name(text("1")),
    ]);
    assert_eq!(
        client.call(&change).responses[0].error_code,
        code(ResponseError::InvalidRequest)
    );
}

#[test]
fn the_only_node_coordinates_everything() {
    let broker = memory();
    let mut client = Client::new(&broker);
    let port = i32::from(broker.address().port());
    for version in 0..=3 {
        let request = FindCoordinatorRequest::default().with_key(text("g"));
        let answer = client.call_at(&request, version);
        assert_eq!((answer.error_code, answer.port), (0, port));
    }
    for kind in 0..=1 {
        let request = FindCoordinatorRequest::default()
            .with_key_type(kind)
            .with_coordinator_keys(vec![text("a"), text("b")]);
        let answer = client.call_at(&request, 4);
        let ports: Vec<i32> = answer.coordinators.iter().map(|one| one.port).collect();
        assert_eq!(ports, [port, port]);
    }
    let unknown = FindCoordinatorRequest::default()
        .with_key_type(2)
        .with_coordinator_keys(vec![text("a")]);
    let answer = client.call_at(&unknown, 4);
    assert_eq!(
        answer.coordinators[0].error_code,
        code(ResponseError::InvalidRequest)
    );
}
