//! The answer to a request of any kind that says nothing but an error, item by item.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use crate::wire;

pub(crate) fn produce(request: &ProduceRequest, error: ResponseError) -> ProduceResponse {
    use kafka_protocol::messages::produce_response::{
        PartitionProduceResponse, TopicProduceResponse,
    };
    let topics = request.topic_data.iter().map(|topic| {
        let partitions = topic.partition_data.iter().map(|data| {
            PartitionProduceResponse::default()
                .with_index(data.index)
                .with_error_code(error.code())
                .with_base_offset(-1)
                .with_log_append_time_ms(-1)
        });
        TopicProduceResponse::default()
            .with_name(topic.name.clone())
            .with_partition_responses(partitions.collect())
    });
    ProduceResponse::default().with_responses(topics.collect())
}

fn fetch(request: &FetchRequest, error: ResponseError) -> FetchResponse {
    use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            PartitionData::default()
                .with_partition_index(asked.partition)
                .with_error_code(error.code())
                .with_high_watermark(-1)
                .with_aborted_transactions(None)
                .with_records(Some(Bytes::new()))
        });
        FetchableTopicResponse::default()
            .with_topic(topic.topic.clone())
            .with_partitions(partitions.collect())
    });
    FetchResponse::default().with_responses(topics.collect())
}

fn list_offsets(request: &ListOffsetsRequest, error: ResponseError) -> ListOffsetsResponse {
    use kafka_protocol::messages::list_offsets_response::{
        ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            ListOffsetsPartitionResponse::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(error.code())
                .with_offset(-1)
                .with_timestamp(-1)
        });
        ListOffsetsTopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

fn metadata(request: &MetadataRequest, error: ResponseError) -> MetadataResponse {
    use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
    let topics = request.topics.iter().flatten().map(|topic| {
        MetadataResponseTopic::default()
            .with_name(topic.name.clone())
            .with_error_code(error.code())
    });
    MetadataResponse::default().with_topics(topics.collect())
}

fn offset_commit(request: &OffsetCommitRequest, error: ResponseError) -> OffsetCommitResponse {
    use kafka_protocol::messages::offset_commit_response::{
        OffsetCommitResponsePartition, OffsetCommitResponseTopic,
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|one| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(one.partition_index)
                .with_error_code(error.code())
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

fn offset_fetch(
    request: &OffsetFetchRequest,
    version: i16,
    error: ResponseError,
) -> OffsetFetchResponse {
    use kafka_protocol::messages::offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponseTopic,
    };
    if version >= 8 {
        let groups = request.groups.iter().map(|group| {
            OffsetFetchResponseGroup::default()
                .with_group_id(group.group_id.clone())
                .with_error_code(error.code())
        });
        return OffsetFetchResponse::default().with_groups(groups.collect());
    }
    let topics = request.topics.iter().flatten().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|partition| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(*partition)
                .with_committed_offset(-1)
                .with_metadata(Some(StrBytes::new()))
                .with_error_code(error.code())
        });
        OffsetFetchResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    let answer = OffsetFetchResponse::default().with_topics(topics.collect());
    if version >= 2 {
        answer.with_error_code(error.code())
    } else {
        answer
    }
}

fn find_coordinator(
    request: &FindCoordinatorRequest,
    version: i16,
    error: ResponseError,
) -> FindCoordinatorResponse {
    use kafka_protocol::messages::find_coordinator_response::Coordinator;
    if version < 4 {
        return FindCoordinatorResponse::default()
            .with_error_code(error.code())
            .with_node_id(BrokerId(-1))
            .with_port(-1);
    }
    let coordinators = request.coordinator_keys.iter().map(|key| {
        Coordinator::default()
            .with_key(key.clone())
            .with_node_id(BrokerId(-1))
            .with_port(-1)
            .with_error_code(error.code())
    });
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}

fn add_partitions(
    request: &AddPartitionsToTxnRequest,
    error: ResponseError,
) -> AddPartitionsToTxnResponse {
    use kafka_protocol::messages::add_partitions_to_txn_response::{
        AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
    };
    let topics = request.v3_and_below_topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*partition)
                .with_partition_error_code(error.code())
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect())
}

fn txn_offset_commit(
    request: &TxnOffsetCommitRequest,
    error: ResponseError,
) -> TxnOffsetCommitResponse {
    use kafka_protocol::messages::txn_offset_commit_response::{
        TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|one| {
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(one.partition_index)
                .with_error_code(error.code())
        });
        TxnOffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

fn offset_for_leader_epoch(
    request: &OffsetForLeaderEpochRequest,
    error: ResponseError,
) -> OffsetForLeaderEpochResponse {
    use kafka_protocol::messages::offset_for_leader_epoch_response::{
        EpochEndOffset, OffsetForLeaderTopicResult,
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            EpochEndOffset::default()
                .with_partition(asked.partition)
                .with_error_code(error.code())
        });
        OffsetForLeaderTopicResult::default()
            .with_topic(topic.topic.clone())
            .with_partitions(partitions.collect())
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn create_topics(request: &CreateTopicsRequest, error: ResponseError) -> CreateTopicsResponse {
    use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
    let topics = request.topics.iter().map(|topic| {
        CreatableTopicResult::default()
            .with_name(topic.name.clone())
            .with_error_code(error.code())
    });
    CreateTopicsResponse::default().with_topics(topics.collect())
}

fn delete_topics(request: &DeleteTopicsRequest, error: ResponseError) -> DeleteTopicsResponse {
    use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
    let topics = request.topic_names.iter().map(|name| {
        DeletableTopicResult::default()
            .with_name(Some(name.clone()))
            .with_error_code(error.code())
    });
    DeleteTopicsResponse::default().with_responses(topics.collect())
}

fn create_partitions(
    request: &CreatePartitionsRequest,
    error: ResponseError,
) -> CreatePartitionsResponse {
    use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
    let topics = request.topics.iter().map(|topic| {
        CreatePartitionsTopicResult::default()
            .with_name(topic.name.clone())
            .with_error_code(error.code())
    });
    CreatePartitionsResponse::default().with_results(topics.collect())
}

fn delete_records(request: &DeleteRecordsRequest, error: ResponseError) -> DeleteRecordsResponse {
    use kafka_protocol::messages::delete_records_response::{
        DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|one| {
            DeleteRecordsPartitionResult::default()
                .with_partition_index(one.partition_index)
                .with_low_watermark(-1)
                .with_error_code(error.code())
        });
        DeleteRecordsTopicResult::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

fn describe_configs(
    request: &DescribeConfigsRequest,
    error: ResponseError,
) -> DescribeConfigsResponse {
    use kafka_protocol::messages::describe_configs_response::DescribeConfigsResult;
    let results = request.resources.iter().map(|resource| {
        DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(error.code())
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn alter_configs(request: &AlterConfigsRequest, error: ResponseError) -> AlterConfigsResponse {
    use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
    let responses = request.resources.iter().map(|resource| {
        AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(error.code())
    });
    AlterConfigsResponse::default().with_responses(responses.collect())
}

fn alter_some_configs(
    request: &IncrementalAlterConfigsRequest,
    error: ResponseError,
) -> IncrementalAlterConfigsResponse {
    use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
    let responses = request.resources.iter().map(|resource| {
        AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(error.code())
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

fn describe_groups(
    request: &DescribeGroupsRequest,
    error: ResponseError,
) -> DescribeGroupsResponse {
    use kafka_protocol::messages::describe_groups_response::DescribedGroup;
    let groups = request.groups.iter().map(|name| {
        DescribedGroup::default()
            .with_group_id(name.clone())
            .with_error_code(error.code())
    });
    DescribeGroupsResponse::default().with_groups(groups.collect())
}

fn delete_groups(request: &DeleteGroupsRequest, error: ResponseError) -> DeleteGroupsResponse {
    use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
    let results = request.groups_names.iter().map(|name| {
        DeletableGroupResult::default()
            .with_group_id(name.clone())
            .with_error_code(error.code())
    });
    DeleteGroupsResponse::default().with_results(results.collect())
}

/// `None` for kinds that the broker does not serve.
pub(crate) fn answer(
    request: &RequestKind,
    version: i16,
    error: ResponseError,
) -> Option<ResponseKind> {
    let number = error.code();
    Some(match request {
        RequestKind::ApiVersions(_) => wire::api_versions(Some(error)).into(),
        RequestKind::Produce(request) => produce(request, error).into(),
        RequestKind::Fetch(request) => fetch(request, error).into(),
        RequestKind::ListOffsets(request) => list_offsets(request, error).into(),
        RequestKind::Metadata(request) => metadata(request, error).into(),
        RequestKind::OffsetCommit(request) => offset_commit(request, error).into(),
        RequestKind::OffsetFetch(request) => offset_fetch(request, version, error).into(),
        RequestKind::OffsetDelete(_) => OffsetDeleteResponse::default()
            .with_error_code(number)
            .into(),
        RequestKind::FindCoordinator(request) => find_coordinator(request, version, error).into(),
        RequestKind::JoinGroup(request) => JoinGroupResponse::default()
            .with_error_code(number)
            .with_generation_id(-1)
            .with_protocol_name(Some(StrBytes::new()))
            .with_member_id(request.member_id.clone())
            .into(),
        RequestKind::SyncGroup(_) => SyncGroupResponse::default().with_error_code(number).into(),
        RequestKind::Heartbeat(_) => HeartbeatResponse::default().with_error_code(number).into(),
        RequestKind::LeaveGroup(_) => LeaveGroupResponse::default().with_error_code(number).into(),
        RequestKind::InitProducerId(_) => InitProducerIdResponse::default()
            .with_error_code(number)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
            .into(),
        RequestKind::AddPartitionsToTxn(request) => add_partitions(request, error).into(),
        RequestKind::AddOffsetsToTxn(_) => AddOffsetsToTxnResponse::default()
            .with_error_code(number)
            .into(),
        RequestKind::TxnOffsetCommit(request) => txn_offset_commit(request, error).into(),
        RequestKind::EndTxn(_) => EndTxnResponse::default().with_error_code(number).into(),
        RequestKind::OffsetForLeaderEpoch(request) => {
            offset_for_leader_epoch(request, error).into()
        }
        RequestKind::CreateTopics(request) => create_topics(request, error).into(),
        RequestKind::DeleteTopics(request) => delete_topics(request, error).into(),
        RequestKind::CreatePartitions(request) => create_partitions(request, error).into(),
        RequestKind::DeleteRecords(request) => delete_records(request, error).into(),
        RequestKind::DescribeConfigs(request) => describe_configs(request, error).into(),
        RequestKind::AlterConfigs(request) => alter_configs(request, error).into(),
        RequestKind::IncrementalAlterConfigs(request) => alter_some_configs(request, error).into(),
        RequestKind::ListGroups(_) => ListGroupsResponse::default().with_error_code(number).into(),
        RequestKind::DescribeGroups(request) => describe_groups(request, error).into(),
        RequestKind::DeleteGroups(request) => delete_groups(request, error).into(),
        RequestKind::DescribeCluster(_) => DescribeClusterResponse::default()
            .with_error_code(number)
            .into(),
        _ => return None,
    })
}
