//! A client of single requests, and the words the tests are written in.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{
    ApiKey, FetchRequest, GroupId, ProduceRequest, RequestHeader, ResponseHeader, TopicName,
    TransactionalId,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Message, Request, StrBytes};
use kafka_protocol::records::{
    Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use millrace_broker::{Broker, Options};
use tokio::time::Instant;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn memory() -> Broker {
    Broker::start(Options::memory()).unwrap()
}

pub(crate) fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_string())
}

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName(text(name))
}

pub(crate) fn group(name: &str) -> GroupId {
    GroupId(text(name))
}

/// Waits for a condition that another thread brings about.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    correlation_id: i32,
}

impl Client {
    pub(crate) fn new(broker: &Broker) -> Client {
        Client::to(broker.address())
    }

    pub(crate) fn to(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client {
            stream,
            correlation_id: 0,
        }
    }

    /// The newest version that both the codec and the broker know.
    fn newest<R: Request>() -> i16 {
        let ours = match ApiKey::try_from(R::KEY).unwrap() {
            ApiKey::Produce | ApiKey::Metadata => 9,
            ApiKey::Fetch => 12,
            ApiKey::ListOffsets => 7,
            ApiKey::OffsetCommit | ApiKey::OffsetFetch => 8,
            ApiKey::FindCoordinator | ApiKey::ListGroups | ApiKey::InitProducerId => 4,
            ApiKey::CreateTopics => 6,
            ApiKey::DeleteTopics | ApiKey::DescribeGroups => 5,
            ApiKey::AddPartitionsToTxn
            | ApiKey::AddOffsetsToTxn
            | ApiKey::EndTxn
            | ApiKey::TxnOffsetCommit
            | ApiKey::ApiVersions => 3,
            ApiKey::DescribeCluster => 1,
            _ => i16::MAX,
        };
        ours.min(<R as Message>::VERSIONS.max)
    }

    pub(crate) fn send<R: Request>(&mut self, request: &R, version: i16) {
        self.correlation_id += 1;
        let api = ApiKey::try_from(R::KEY).unwrap();
        let mut body = BytesMut::new();
        RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(text("test")))
            .encode(&mut body, api.request_header_version(version))
            .unwrap();
        request.encode(&mut body, version).unwrap();
        self.send_raw(&body);
    }

    pub(crate) fn send_raw(&mut self, body: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_i32(i32::try_from(body.len()).unwrap());
        frame.put_slice(body);
        self.stream.write_all(&frame).unwrap();
    }

    pub(crate) fn receive_raw(&mut self) -> std::io::Result<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut body = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
        self.stream.read_exact(&mut body)?;
        Ok(body.into())
    }

    pub(crate) fn receive<R: Request>(&mut self, version: i16) -> R::Response {
        self.try_receive::<R>(version).unwrap()
    }

    pub(crate) fn try_receive<R: Request>(&mut self, version: i16) -> std::io::Result<R::Response> {
        let mut body = self.receive_raw()?;
        let header =
            ResponseHeader::decode(&mut body, R::Response::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, self.correlation_id);
        let answer = R::Response::decode(&mut body, version).unwrap();
        assert!(!body.has_remaining(), "bytes behind an answer");
        Ok(answer)
    }

    pub(crate) fn call_at<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        self.send(request, version);
        self.receive::<R>(version)
    }

    pub(crate) fn call<R: Request>(&mut self, request: &R) -> R::Response {
        self.call_at(request, Self::newest::<R>())
    }

    pub(crate) fn produce_as(
        &mut self,
        name: &str,
        partition: i32,
        records: Bytes,
        transactional_id: Option<&str>,
    ) -> PartitionProduceResponse {
        let answer = self.call(&produce_request(name, partition, records, transactional_id));
        answer.responses[0].partition_responses[0].clone()
    }

    /// Produces and returns the base offset.
    pub(crate) fn produce(&mut self, name: &str, partition: i32, values: &[&str]) -> i64 {
        let answer = self.produce_as(name, partition, batch(values), None);
        assert_eq!(answer.error_code, 0);
        answer.base_offset
    }

    pub(crate) fn fetch_from(
        &mut self,
        name: &str,
        partition: i32,
        offset: i64,
        committed: bool,
    ) -> PartitionData {
        let mut request = fetch_request(name, partition, offset);
        request.isolation_level = i8::from(committed);
        self.call(&request).responses[0].partitions[0].clone()
    }

    /// The values that are readable from the start, control records and, for `committed`,
    /// aborted ones left out as a client does.
    pub(crate) fn values(&mut self, name: &str, partition: i32, committed: bool) -> Vec<String> {
        let data = self.fetch_from(name, partition, 0, committed);
        assert_eq!(data.error_code, 0);
        let mut aborted = data.aborted_transactions.clone().unwrap_or_default();
        let mut aborting: Vec<i64> = Vec::new();
        let mut values = Vec::new();
        for record in decode(&data) {
            while aborted
                .first()
                .is_some_and(|one| one.first_offset <= record.offset)
            {
                aborting.push(aborted.remove(0).producer_id.0);
            }
            if record.control {
                let key = record.key.unwrap();
                if key[3] == 0 {
                    aborting.retain(|id| *id != record.producer_id);
                }
                continue;
            }
            if record.transactional && aborting.contains(&record.producer_id) {
                continue;
            }
            values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
        }
        values
    }
}

pub(crate) fn produce_request(
    name: &str,
    partition: i32,
    records: Bytes,
    transactional_id: Option<&str>,
) -> ProduceRequest {
    ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(1_000)
        .with_transactional_id(transactional_id.map(|id| TransactionalId(text(id))))
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(topic(name))
                .with_partition_data(vec![
                    PartitionProduceData::default()
                        .with_index(partition)
                        .with_records(Some(records)),
                ]),
        ])
}

pub(crate) fn fetch_request(name: &str, partition: i32, offset: i64) -> FetchRequest {
    FetchRequest::default()
        .with_max_wait_ms(0)
        .with_min_bytes(1)
        .with_max_bytes(10_000_000)
        .with_topics(vec![
            FetchTopic::default()
                .with_topic(topic(name))
                .with_partitions(vec![
                    FetchPartition::default()
                        .with_partition(partition)
                        .with_fetch_offset(offset)
                        .with_partition_max_bytes(10_000_000),
                ]),
        ])
}

/// A producer's place in its sequence.
#[derive(Clone, Copy)]
pub(crate) struct From {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) transactional: bool,
}

pub(crate) const NOBODY: From = From {
    id: -1,
    epoch: -1,
    sequence: -1,
    transactional: false,
};

pub(crate) fn now_ms() -> i64 {
    let age = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    i64::try_from(age.as_millis()).unwrap()
}

pub(crate) fn batch(values: &[&str]) -> Bytes {
    batch_at(values, NOBODY, now_ms())
}

pub(crate) fn batch_from(values: &[&str], from: From) -> Bytes {
    batch_at(values, from, now_ms())
}

/// A batch whose records are one millisecond apart.
pub(crate) fn batch_at(values: &[&str], from: From, timestamp: i64) -> Bytes {
    let records: Vec<Record> = values
        .iter()
        .zip(0i32..)
        .map(|(value, index)| Record {
            transactional: from.transactional,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: from.id,
            producer_epoch: from.epoch,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(index),
            // The encoder wants a sequence that goes on, also where it means nothing.
            sequence: from.sequence + index,
            timestamp: timestamp + i64::from(index),
            key: None,
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            headers: IndexMap::new(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
    out.freeze()
}

pub(crate) fn decode(data: &PartitionData) -> Vec<Record> {
    let mut bytes = data.records.clone().unwrap_or_default();
    let mut records = Vec::new();
    while bytes.has_remaining() {
        records.extend(RecordBatchDecoder::decode(&mut bytes).unwrap().records);
    }
    records
}
