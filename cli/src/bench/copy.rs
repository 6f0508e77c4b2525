//! The yardstick: a plain copy from topic to topic by librdkafka, as a good engineer would write
//! it. It uses the client library directly, not our connectors, so that what they cost is on our
//! side of the comparison.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;
use tokio::time::Instant;

/// How long nothing may come before the copy is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long the last records may take to be acknowledged.
const FLUSH_MAX: Duration = Duration::from_secs(60);

/// What a copy took.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Copy {
    /// Records copied and acknowledged.
    pub events: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// From the first record read to the last one acknowledged.
    pub seconds: f64,
    /// Records per second.
    pub per_second: f64,
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client library says no.
    #[error("the plain copy failed")]
    Kafka(#[from] KafkaError),
    /// Fewer records came than were promised.
    #[error("the plain copy saw {seen} of {wanted} records and then nothing more")]
    Silence {
        /// Seen.
        seen: u64,
        /// Promised.
        wanted: u64,
    },
    /// Records were refused.
    #[error("{0} records of the plain copy were not stored")]
    NotStored(u64),
}

/// Copies the first `wanted` records of all partitions. Blocks.
pub fn run(
    bootstrap: &str,
    from: &str,
    to: &str,
    partitions: i32,
    wanted: u64,
) -> Result<Copy, Error> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "millrace.bench.copy")
        .set("enable.auto.commit", "false")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.max.messages.kbytes", "8192")
        .set("queued.min.messages", "10000")
        .create()?;
    let ends = Arc::new(Ends::default());
    let producer: ThreadedProducer<Counting> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.kbytes", "65536")
        .create_with_context(Counting(Arc::clone(&ends)))?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(from, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut seen, mut bytes) = (0, 0);
    let mut started = None;
    let mut last = Instant::now();
    while seen < wanted {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            if last.elapsed() > SILENCE_MAX {
                return Err(Error::Silence { seen, wanted });
            }
            continue;
        };
        let message = message?;
        last = *started.get_or_insert_with(Instant::now);
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len) as u64;
        bytes += length(message.key()) + length(message.payload());
        send(&producer, to, &message)?;
        seen += 1;
        if seen.is_multiple_of(1_024) {
            last = Instant::now();
        }
    }
    producer.flush(FLUSH_MAX)?;
    let seconds = started.map_or(0.0, |started| started.elapsed().as_secs_f64());
    match ends.stored.load(Ordering::Acquire) {
        stored if stored == seen => Ok(Copy {
            events: seen,
            bytes,
            seconds,
            per_second: seen as f64 / seconds.max(1e-9),
        }),
        stored => Err(Error::NotStored(seen - stored)),
    }
}

fn send(
    producer: &ThreadedProducer<Counting>,
    to: &str,
    message: &BorrowedMessage<'_>,
) -> Result<(), KafkaError> {
    let mut record = BaseRecord::<[u8], [u8]>::to(to);
    record.key = message.key();
    record.payload = message.payload();
    record.timestamp = message.timestamp().to_millis();
    record.headers = message
        .headers()
        .map(rdkafka::message::BorrowedHeaders::detach);
    while let Err((error, back)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error);
        }
        record = back;
        // The thread of the producer makes room; this only waits for it.
        producer.poll(Duration::from_millis(1));
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Ends {
    stored: AtomicU64,
}

struct Counting(Arc<Ends>);

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.stored.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_broker::{Broker, Options};
    use millrace_connectors::{Delivery, Record, Sink};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_record_is_copied() {
        let broker = Broker::start(Options::memory()).unwrap();
        broker.create_topic("from", 3, &[]).unwrap();
        broker.create_topic("to", 3, &[]).unwrap();
        let bootstrap = broker.bootstrap();
        let settings = millrace_connectors::kafka::Settings::plain(&bootstrap, "test");
        let cluster = crate::connect::Cluster::new(settings).unwrap();
        let mut sink = cluster.sink(Duration::from_secs(10)).unwrap();
        for number in 0..1_000 {
            let record = Record {
                topic: "from".into(),
                partition: None,
                timestamp_ms: Some(7),
                key: Some(format!("k{}", number % 10).into()),
                value: Some(vec![b'x'; 100].into()),
                headers: vec![("h".into(), None)],
            };
            assert!(sink.append(number, record).is_ok());
        }
        sink.flush().await;
        let mut ends = Vec::new();
        while ends.len() < 1_000 {
            sink.deliveries(&mut ends).await;
        }
        assert!(
            ends.iter()
                .all(|(_, end)| matches!(end, Delivery::Stored { .. }))
        );
        let copy = tokio::task::spawn_blocking(move || run(&bootstrap, "from", "to", 3, 1_000));
        let copy = copy.await.unwrap().unwrap();
        assert_eq!(copy.events, 1_000);
        assert_eq!(copy.bytes, 102_000);
        let stored: i64 = (0..3)
            .map(|number| broker.partition("to", number).unwrap().end)
            .sum();
        assert_eq!(stored, 1_000);
        broker.shutdown().unwrap();
    }
}
