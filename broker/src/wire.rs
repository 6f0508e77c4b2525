//! Frames in and out: which kinds and versions of requests are understood, and how a frame
//! becomes a request and an answer a frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, RequestHeader, RequestKind, ResponseKind,
};
use kafka_protocol::protocol::{Decodable, StrBytes};

use crate::shape;

/// Kinds and versions. They stay below the versions that name topics by id and below the
/// second version of the transaction protocol.
pub(crate) const SUPPORTED: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 9),
    (ApiKey::Fetch, 4, 12),
    (ApiKey::ListOffsets, 1, 7),
    (ApiKey::Metadata, 0, 9),
    (ApiKey::OffsetCommit, 2, 8),
    (ApiKey::OffsetFetch, 1, 8),
    (ApiKey::FindCoordinator, 0, 4),
    (ApiKey::JoinGroup, 0, 9),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 5),
    (ApiKey::SyncGroup, 0, 5),
    (ApiKey::DescribeGroups, 0, 5),
    (ApiKey::ListGroups, 0, 4),
    (ApiKey::ApiVersions, 0, 3),
    (ApiKey::CreateTopics, 2, 6),
    (ApiKey::DeleteTopics, 1, 5),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 4),
    (ApiKey::OffsetForLeaderEpoch, 2, 4),
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::AddOffsetsToTxn, 0, 3),
    (ApiKey::EndTxn, 0, 3),
    (ApiKey::TxnOffsetCommit, 0, 3),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::AlterConfigs, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::OffsetDelete, 0, 0),
    (ApiKey::DescribeCluster, 0, 1),
];

/// The head of a request.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) api: ApiKey,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
    pub(crate) client_id: Option<StrBytes>,
}

/// A frame that was read.
#[derive(Debug)]
pub(crate) enum Frame {
    Request(Head, Box<RequestKind>),
    /// A newer client asks what we speak, in words we do not know. It is answered in the
    /// oldest form, so that it can ask again.
    UnknownVersions {
        correlation_id: i32,
    },
}

/// Why a frame closes its connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFrame {
    #[error("a frame of {0} bytes holds no request")]
    Short(usize),
    #[error("unknown request kind {0}")]
    Kind(i16),
    #[error("{api:?} version {version} is not supported")]
    Version { api: ApiKey, version: i16 },
    #[error("a {api:?} request of version {version} is malformed")]
    Malformed { api: ApiKey, version: i16 },
}

impl Frame {
    /// Reads one frame without its length.
    pub(crate) fn parse(mut frame: Bytes) -> Result<Frame, BadFrame> {
        if frame.len() < 8 {
            return Err(BadFrame::Short(frame.len()));
        }
        let mut head = &frame[..8];
        let (kind, version, correlation_id) = (head.get_i16(), head.get_i16(), head.get_i32());
        let api = ApiKey::try_from(kind).map_err(|_| BadFrame::Kind(kind))?;
        let (_, min, max) = SUPPORTED
            .iter()
            .find(|(known, _, _)| *known == api)
            .ok_or(BadFrame::Version { api, version })?;
        if !(*min..=*max).contains(&version) {
            return if api == ApiKey::ApiVersions {
                Ok(Frame::UnknownVersions { correlation_id })
            } else {
                Err(BadFrame::Version { api, version })
            };
        }
        let malformed = || BadFrame::Malformed { api, version };
        let header = RequestHeader::decode(&mut frame, api.request_header_version(version))
            .map_err(|_| malformed())?;
        if !shape::fits(api, version, &frame) {
            return Err(malformed());
        }
        let request = RequestKind::decode(api, &mut frame, version).map_err(|_| malformed())?;
        let head = Head {
            api,
            version,
            correlation_id,
            client_id: header.client_id,
        };
        Ok(Frame::Request(head, Box::new(request)))
    }
}

/// Appends an answer, as a frame, to `out`.
pub(crate) fn encode(
    api: ApiKey,
    version: i16,
    correlation_id: i32,
    answer: &ResponseKind,
    out: &mut BytesMut,
) -> Result<(), Unencodable> {
    let start = out.len();
    out.put_i32(0);
    out.put_i32(correlation_id);
    if api.response_header_version(version) >= 1 {
        out.put_u8(0);
    }
    answer.encode(out, version).map_err(|error| Unencodable {
        api,
        version,
        reason: error.to_string(),
    })?;
    let length = out.len() - start - 4;
    let length = i32::try_from(length).map_err(|_| Unencodable {
        api,
        version,
        reason: format!("{length} bytes are too many"),
    })?;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// An answer of ours that the codec refuses.
#[derive(Debug, thiserror::Error)]
#[error("failed to encode the answer to {api:?} version {version}: {reason}")]
pub(crate) struct Unencodable {
    api: ApiKey,
    version: i16,
    reason: String,
}

/// What the broker speaks.
pub(crate) fn api_versions(error: Option<ResponseError>) -> ApiVersionsResponse {
    let keys = SUPPORTED
        .iter()
        .map(|(api, min, max)| {
            // librdkafka takes a broker without version 0 of Produce for one that cannot
            // compress (https://issues.apache.org/jira/browse/KAFKA-18659), so Kafka itself
            // names a version here that nobody uses any more.
            let min = if *api == ApiKey::Produce { 0 } else { *min };
            ApiVersion::default()
                .with_api_key(*api as i16)
                .with_min_version(min)
                .with_max_version(*max)
        })
        .collect();
    ApiVersionsResponse::default()
        .with_error_code(error.map_or(0, |error| error.code()))
        .with_api_keys(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::*;
    use kafka_protocol::protocol::Encodable;

    fn frame(api: ApiKey, version: i16, body: &RequestKind) -> Bytes {
        let mut out = BytesMut::new();
        RequestHeader::default()
            .with_request_api_key(api as i16)
            .with_request_api_version(version)
            .with_correlation_id(7)
            .encode(&mut out, api.request_header_version(version))
            .expect("header");
        body.encode(&mut out, version).expect("body");
        out.freeze()
    }

    fn text(value: &str) -> StrBytes {
        StrBytes::from_string(value.to_string())
    }

    /// One request of each kind, with an item in each array.
    fn filled(api: ApiKey, version: i16) -> RequestKind {
        let name = || TopicName(text("t"));
        let group = || GroupId(text("g"));
        match api {
            ApiKey::Produce => ProduceRequest::default()
                .with_topic_data(vec![
                    produce_request::TopicProduceData::default()
                        .with_name(name())
                        .with_partition_data(vec![
                            produce_request::PartitionProduceData::default()
                                .with_records(Some(Bytes::from_static(b"abc"))),
                        ]),
                ])
                .into(),
            ApiKey::Fetch => {
                let mut request = FetchRequest::default().with_topics(vec![
                    fetch_request::FetchTopic::default()
                        .with_topic(name())
                        .with_partitions(vec![fetch_request::FetchPartition::default()]),
                ]);
                if version >= 7 {
                    request.forgotten_topics_data = vec![
                        fetch_request::ForgottenTopic::default()
                            .with_topic(name())
                            .with_partitions(vec![1]),
                    ];
                }
                request.into()
            }
            ApiKey::ListOffsets => ListOffsetsRequest::default()
                .with_topics(vec![
                    list_offsets_request::ListOffsetsTopic::default()
                        .with_name(name())
                        .with_partitions(vec![
                            list_offsets_request::ListOffsetsPartition::default(),
                        ]),
                ])
                .into(),
            ApiKey::Metadata => MetadataRequest::default()
                .with_topics(Some(vec![
                    metadata_request::MetadataRequestTopic::default().with_name(Some(name())),
                ]))
                .into(),
            ApiKey::OffsetCommit => OffsetCommitRequest::default()
                .with_group_id(group())
                .with_topics(vec![
                    offset_commit_request::OffsetCommitRequestTopic::default()
                        .with_name(name())
                        .with_partitions(vec![
                            offset_commit_request::OffsetCommitRequestPartition::default(),
                        ]),
                ])
                .into(),
            ApiKey::OffsetFetch if version >= 8 => OffsetFetchRequest::default()
                .with_groups(vec![
                    offset_fetch_request::OffsetFetchRequestGroup::default()
                        .with_group_id(group())
                        .with_topics(Some(vec![
                            offset_fetch_request::OffsetFetchRequestTopics::default()
                                .with_name(name())
                                .with_partition_indexes(vec![1, 2]),
                        ])),
                ])
                .into(),
            ApiKey::OffsetFetch => OffsetFetchRequest::default()
                .with_group_id(group())
                .with_topics(Some(vec![
                    offset_fetch_request::OffsetFetchRequestTopic::default()
                        .with_name(name())
                        .with_partition_indexes(vec![1, 2]),
                ]))
                .into(),
            ApiKey::FindCoordinator if version >= 4 => FindCoordinatorRequest::default()
                .with_coordinator_keys(vec![text("g")])
                .into(),
            ApiKey::FindCoordinator => FindCoordinatorRequest::default().with_key(text("g")).into(),
            ApiKey::JoinGroup => JoinGroupRequest::default()
                .with_protocols(vec![
                    join_group_request::JoinGroupRequestProtocol::default()
                        .with_name(text("range"))
                        .with_metadata(Bytes::from_static(b"x")),
                ])
                .into(),
            ApiKey::Heartbeat => HeartbeatRequest::default().into(),
            ApiKey::LeaveGroup if version >= 3 => LeaveGroupRequest::default()
                .with_members(vec![leave_group_request::MemberIdentity::default()])
                .into(),
            ApiKey::LeaveGroup => LeaveGroupRequest::default().into(),
            ApiKey::SyncGroup => SyncGroupRequest::default()
                .with_assignments(vec![
                    sync_group_request::SyncGroupRequestAssignment::default(),
                ])
                .into(),
            ApiKey::DescribeGroups => DescribeGroupsRequest::default()
                .with_groups(vec![group()])
                .into(),
            ApiKey::ListGroups if version >= 4 => ListGroupsRequest::default()
                .with_states_filter(vec![text("Stable")])
                .into(),
            ApiKey::ListGroups => ListGroupsRequest::default().into(),
            ApiKey::ApiVersions => ApiVersionsRequest::default().into(),
            ApiKey::CreateTopics => CreateTopicsRequest::default()
                .with_topics(vec![
                    create_topics_request::CreatableTopic::default()
                        .with_name(name())
                        .with_assignments(vec![
                            create_topics_request::CreatableReplicaAssignment::default()
                                .with_broker_ids(vec![BrokerId(1)]),
                        ])
                        .with_configs(vec![
                            create_topics_request::CreatableTopicConfig::default()
                                .with_value(Some(text("v"))),
                        ]),
                ])
                .into(),
            ApiKey::DeleteTopics => DeleteTopicsRequest::default()
                .with_topic_names(vec![name()])
                .into(),
            ApiKey::DeleteRecords => DeleteRecordsRequest::default()
                .with_topics(vec![
                    delete_records_request::DeleteRecordsTopic::default().with_partitions(vec![
                        delete_records_request::DeleteRecordsPartition::default(),
                    ]),
                ])
                .into(),
            ApiKey::InitProducerId => InitProducerIdRequest::default().into(),
            ApiKey::OffsetForLeaderEpoch => OffsetForLeaderEpochRequest::default()
                .with_topics(vec![
                    offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
                        .with_partitions(vec![
                            offset_for_leader_epoch_request::OffsetForLeaderPartition::default(),
                        ]),
                ])
                .into(),
            ApiKey::AddPartitionsToTxn => AddPartitionsToTxnRequest::default()
                .with_v3_and_below_topics(vec![
                    add_partitions_to_txn_request::AddPartitionsToTxnTopic::default()
                        .with_partitions(vec![1]),
                ])
                .into(),
            ApiKey::AddOffsetsToTxn => AddOffsetsToTxnRequest::default().into(),
            ApiKey::EndTxn => EndTxnRequest::default().into(),
            ApiKey::TxnOffsetCommit => TxnOffsetCommitRequest::default()
                .with_topics(vec![
                    txn_offset_commit_request::TxnOffsetCommitRequestTopic::default()
                        .with_partitions(vec![
                            txn_offset_commit_request::TxnOffsetCommitRequestPartition::default(),
                        ]),
                ])
                .into(),
            ApiKey::DescribeConfigs => DescribeConfigsRequest::default()
                .with_resources(vec![
                    describe_configs_request::DescribeConfigsResource::default()
                        .with_configuration_keys(Some(vec![text("k")])),
                ])
                .into(),
            ApiKey::AlterConfigs => AlterConfigsRequest::default()
                .with_resources(vec![
                    alter_configs_request::AlterConfigsResource::default()
                        .with_configs(vec![alter_configs_request::AlterableConfig::default()]),
                ])
                .into(),
            ApiKey::IncrementalAlterConfigs => IncrementalAlterConfigsRequest::default()
                .with_resources(vec![
                    incremental_alter_configs_request::AlterConfigsResource::default()
                        .with_configs(vec![
                            incremental_alter_configs_request::AlterableConfig::default(),
                        ]),
                ])
                .into(),
            ApiKey::CreatePartitions => CreatePartitionsRequest::default()
                .with_topics(vec![
                    create_partitions_request::CreatePartitionsTopic::default().with_assignments(
                        Some(vec![
                            create_partitions_request::CreatePartitionsAssignment::default()
                                .with_broker_ids(vec![BrokerId(1)]),
                        ]),
                    ),
                ])
                .into(),
            ApiKey::DeleteGroups => DeleteGroupsRequest::default()
                .with_groups_names(vec![group()])
                .into(),
            ApiKey::OffsetDelete => OffsetDeleteRequest::default()
                .with_topics(vec![
                    offset_delete_request::OffsetDeleteRequestTopic::default().with_partitions(
                        vec![offset_delete_request::OffsetDeleteRequestPartition::default()],
                    ),
                ])
                .into(),
            ApiKey::DescribeCluster => DescribeClusterRequest::default().into(),
            other => panic!("{other:?} is supported but not tested"),
        }
    }

    #[test]
    fn b_e1_every_supported_request_is_read_and_every_torn_one_refused() {
        for (api, min, max) in SUPPORTED {
            for version in *min..=*max {
                let whole = frame(*api, version, &filled(*api, version));
                let parsed = Frame::parse(whole.clone());
                assert!(
                    matches!(&parsed, Ok(Frame::Request(head, _)) if head.correlation_id == 7),
                    "{api:?} {version}: {parsed:?}"
                );
                for length in 0..whole.len() {
                    let torn = Frame::parse(whole.slice(..length));
                    assert!(torn.is_err(), "{api:?} {version} cut at {length}: {torn:?}");
                }
                let mut long = BytesMut::from(&whole[..]);
                long.put_u8(0);
                assert!(Frame::parse(long.freeze()).is_err(), "{api:?} {version}");
            }
        }
    }

    #[test]
    fn b_e5_a_lying_array_length_is_refused_before_anything_is_allocated() {
        let mut body = BytesMut::new();
        body.put_i16(ApiKey::Metadata as i16);
        body.put_i16(1);
        body.put_i32(1);
        body.put_i16(-1);
        body.put_i32(i32::MAX);
        assert!(matches!(
            Frame::parse(body.freeze()),
            Err(BadFrame::Malformed { .. })
        ));
    }

    #[test]
    fn b_e1_an_unknown_version_of_api_versions_is_not_an_error() {
        let mut body = BytesMut::new();
        body.put_i16(ApiKey::ApiVersions as i16);
        body.put_i16(99);
        body.put_i32(5);
        assert!(matches!(
            Frame::parse(body.freeze()),
            Ok(Frame::UnknownVersions { correlation_id: 5 })
        ));
    }
}
