//! Measures how fast the broker stores and serves records of 1,000 bytes, over TCP on this
//! machine: `measure [folder]`. Without a folder it keeps them in memory.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, FetchRequest, FetchResponse, ProduceRequest, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, Request, StrBytes};
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use millrace_broker::{Broker, Listen, Options};
use tokio::time::Instant;

const RECORDS_PER_BATCH: i64 = 500;
const BATCHES: i64 = 1_000;
const RECORD_BYTES: usize = 1_000;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn batch() -> Outcome<Bytes> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let records: Vec<Record> = (0..RECORDS_PER_BATCH)
        .map(|offset| {
            Ok(Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: -1,
                producer_epoch: -1,
                timestamp_type: TimestampType::Creation,
                offset,
                sequence: i32::try_from(offset)? - 1,
                timestamp: i64::try_from(now.as_millis())?,
                key: None,
                value: Some(vec![b'x'; RECORD_BYTES].into()),
                headers: IndexMap::new(),
            })
        })
        .collect::<Outcome<_>>()?;
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut out, &records, &options)?;
    Ok(out.freeze())
}

fn frame<R: Request>(request: &R, version: i16) -> Outcome<BytesMut> {
    let mut out = BytesMut::new();
    out.put_i32(0);
    RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .encode(
            &mut out,
            ApiKey::try_from(R::KEY)
                .map_err(|()| "no kind")?
                .request_header_version(version),
        )?;
    request.encode(&mut out, version)?;
    let length = i32::try_from(out.len() - 4)?;
    out[..4].copy_from_slice(&length.to_be_bytes());
    Ok(out)
}

fn answer(stream: &mut TcpStream) -> Outcome<Bytes> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; usize::try_from(i32::from_be_bytes(length))?];
    stream.read_exact(&mut body)?;
    Ok(body.into())
}

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str("load"))
}

fn store(address: SocketAddr, partition: i32, records: Bytes) -> Outcome<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(name())
                .with_partition_data(vec![
                    PartitionProduceData::default()
                        .with_index(partition)
                        .with_records(Some(records)),
                ]),
        ]);
    let frame = frame(&request, 7)?;
    for _ in 0..BATCHES {
        stream.write_all(&frame)?;
        answer(&mut stream)?;
    }
    Ok(())
}

fn read(address: SocketAddr, partition: i32) -> Outcome<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut next = 0;
    while next < BATCHES * RECORDS_PER_BATCH {
        let request = FetchRequest::default()
            .with_min_bytes(1)
            .with_max_bytes(8 << 20)
            .with_topics(vec![
                FetchTopic::default()
                    .with_topic(name())
                    .with_partitions(vec![
                        FetchPartition::default()
                            .with_partition(partition)
                            .with_fetch_offset(next)
                            .with_partition_max_bytes(2 << 20),
                    ]),
            ]);
        stream.write_all(&frame(&request, 11)?)?;
        let mut body = answer(&mut stream)?;
        ResponseHeader::decode(&mut body, 0)?;
        let response = FetchResponse::decode(&mut body, 11)?;
        let records = &response.responses[0].partitions[0].records;
        let bytes = records.as_ref().map_or(0, Bytes::len);
        // All batches are alike, so the bytes tell how many there were.
        let batches = bytes / usize::try_from(RECORDS_PER_BATCH)? / RECORD_BYTES;
        assert!(batches > 0, "nothing was read at {next}");
        next += i64::try_from(batches)? * RECORDS_PER_BATCH;
    }
    Ok(())
}

fn measure(what: &str, work: impl Fn(i32) -> Outcome<()> + Sync) -> Outcome<()> {
    for connections in [1, 2] {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..connections)
                .map(|partition| {
                    scope.spawn({
                        let work = &work;
                        move || work(partition)
                    })
                })
                .collect();
            for thread in threads {
                thread.join().map_err(|_| "a thread panicked")??;
            }
            Outcome::Ok(())
        })?;
        let records = i64::from(connections) * BATCHES * RECORDS_PER_BATCH;
        let seconds = start.elapsed().as_secs_f64();
        let megabytes = f64::from(i32::try_from(records)?) / 1_000.0;
        tracing::info!(
            what,
            connections,
            megabytes_per_second = format!("{:.0}", megabytes / seconds),
            records_per_second = format!("{:.0}", f64::from(i32::try_from(records)?) / seconds),
        );
    }
    Ok(())
}

fn main() -> Outcome<()> {
    tracing_subscriber::fmt().init();
    let mut options = match std::env::args().nth(1) {
        Some(folder) => Options::files(folder),
        None => Options::memory(),
    };
    options.listen = Listen::Preferred(0);
    if let millrace_broker::Storage::Memory { bytes_max } = &mut options.storage {
        *bytes_max = 4 << 30;
    }
    let broker = Broker::start(options)?;
    broker.create_topic("load", 2, &[])?;
    let records = batch()?;
    measure("store", |partition| {
        store(broker.address(), partition, records.clone())
    })?;
    measure("serve", |partition| read(broker.address(), partition))?;
    broker.shutdown()?;
    Ok(())
}
