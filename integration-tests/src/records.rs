//! Writes events and reads topics with librdkafka directly, so that no code under test stands
//! between a story and the broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::wait::{patience, wait_for};

/// How long one question to the broker may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Name and value of a header.
pub type RecordHeader = (String, Option<Vec<u8>>);

/// An event to write.
#[derive(Clone, Default, Debug)]
pub struct Event {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<RecordHeader>,
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
}

impl Event {
    /// An event of this key.
    pub fn of(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self {
            key: Some(key.into()),
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// An event without a key.
    pub fn keyless(value: impl Into<Vec<u8>>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// Without a value.
    pub fn tombstone(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: Some(key.into()),
            ..Self::default()
        }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: Option<&[u8]>) -> Self {
        self.headers.push((name.into(), value.map(<[u8]>::to_vec)));
        self
    }

    /// In this partition.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// With this timestamp.
    #[must_use]
    pub fn timestamp(mut self, ms: i64) -> Self {
        self.timestamp_ms = Some(ms);
        self
    }
}

/// A record that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Epoch milliseconds.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers in order.
    pub headers: Vec<RecordHeader>,
}

impl Record {
    fn new(message: &BorrowedMessage<'_>) -> Self {
        let header =
            |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: message
                .headers()
                .into_iter()
                .flat_map(|all| all.iter().map(header))
                .collect(),
        }
    }

    /// The last value of a header, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().rev().find(|(n, _)| n == name)?;
        found
            .1
            .as_ref()
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The value as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    /// The headers that are not Millrace's own.
    pub fn headers_of_others(&self) -> Vec<RecordHeader> {
        let others = self
            .headers
            .iter()
            .filter(|(name, _)| !name.starts_with("millrace-"));
        others.cloned().collect()
    }
}

/// A cluster as clients see it.
pub struct Cluster {
    bootstrap: String,
    /// Asks and reads; belongs to no group. Making a client costs more than asking one.
    reader: BaseConsumer,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// The one at this address.
    pub fn at(bootstrap: &str) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
            reader: consumer(bootstrap, "nobody"),
        }
    }

    /// Creates a topic.
    pub fn create_topic(&self, name: &str, partitions: i32, configured: &[(&str, &str)]) {
        let everywhere = TopicReplication::Fixed(-1);
        self.create(NewTopic::new(name, partitions, everywhere), configured);
    }

    /// Creates a topic of one partition, which these nodes keep; the first leads.
    pub fn create_topic_at(&self, name: &str, nodes: &[i32], configured: &[(&str, &str)]) {
        let there = TopicReplication::Variable(&[nodes]);
        self.create(NewTopic::new(name, 1, there), configured);
    }

    fn create<'a>(&self, mut topic: NewTopic<'a>, configured: &[(&'a str, &'a str)]) {
        let admin = self.admin();
        for (key, value) in configured {
            topic = topic.set(key, value);
        }
        let name = topic.name;
        let created = await_it(admin.create_topics([&topic], &AdminOptions::new()));
        for result in created.expect("the broker answers") {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => panic!("{topic}: {code}"),
            }
        }
        self.partitions(name);
    }

    /// Nodes that have everything of the topic's first partition, as its leader sees it; `None`
    /// if nobody leads.
    pub fn in_sync(&self, topic: &str) -> Option<Vec<i32>> {
        let metadata = self.reader.fetch_metadata(Some(topic), ANSWER).ok()?;
        let partition = metadata.topics().first()?.partitions().first()?;
        (partition.leader() >= 0).then(|| partition.isr().to_vec())
    }

    /// The node that leads the topic's first partition.
    pub fn leader(&self, topic: &str) -> Option<i32> {
        let metadata = self.reader.fetch_metadata(Some(topic), ANSWER).ok()?;
        let leader = metadata.topics().first()?.partitions().first()?.leader();
        (leader >= 0).then_some(leader)
    }

    /// A topic has so many partitions from now on.
    pub fn set_partitions(&self, topic: &str, count: i32) {
        let count_new = usize::try_from(count).expect("a positive count");
        let more = NewPartitions::new(topic, count_new);
        let admin = self.admin();
        let made = await_it(admin.create_partitions([&more], &AdminOptions::new()));
        all_well(made.expect("the broker answers"));
        wait_for("the new partitions", || {
            let all = partitions(&self.reader, topic)?;
            (all.len() == count_new).then_some(())
        });
    }

    /// A topic goes with all its records.
    pub fn delete_topic(&self, topic: &str) {
        let admin = self.admin();
        let deleted = await_it(admin.delete_topics(&[topic], &AdminOptions::new()));
        all_well(deleted.expect("the broker answers"));
        wait_for("the end of the topic", || {
            let all = partitions(&self.reader, topic)?;
            all.is_empty().then_some(())
        });
    }

    /// The log of a partition begins at this offset from now on.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before))
            .expect("an offset");
        let deleted = await_it(self.admin().delete_records(&list, &AdminOptions::new()));
        deleted.expect("the broker answers");
    }

    /// A group goes with all its commits.
    pub fn delete_group(&self, group: &str) {
        let deleted = await_it(self.admin().delete_groups(&[group], &AdminOptions::new()));
        all_well(deleted.expect("the broker answers"));
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        config(&self.bootstrap).create().expect("an admin")
    }

    /// Its id.
    pub fn id(&self) -> String {
        wait_for("the cluster's id", || {
            // A client that has not asked anything yet does not know.
            self.reader.fetch_metadata(Some("none"), ANSWER).ok()?;
            self.reader.client().fetch_cluster_id(ANSWER)
        })
    }

    /// The partitions of a topic, once it is there.
    pub fn partitions(&self, topic: &str) -> Vec<i32> {
        wait_for(&format!("topic {topic}"), || {
            partitions(&self.reader, topic).filter(|all| !all.is_empty())
        })
    }

    /// Whether a topic is there.
    pub fn has_topic(&self, topic: &str) -> bool {
        !wait_for("an answer about topics", || partitions(&self.reader, topic)).is_empty()
    }

    /// Everything that a topic holds now, per partition in order of the offsets.
    pub fn read(&self, topic: &str) -> Vec<Record> {
        let consumer = &self.reader;
        let mut ends = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for partition in self.partitions(topic) {
            let ask = || consumer.fetch_watermarks(topic, partition, ANSWER).ok();
            let (first, end) = wait_for("the ends of a partition", ask);
            if first < end {
                ends.insert(partition, end);
                assignment
                    .add_partition_offset(topic, partition, Offset::Offset(first))
                    .expect("an offset");
            }
        }
        consumer.assign(&assignment).expect("an assignment");
        let mut records = Vec::new();
        let deadline = patience();
        while !ends.is_empty() {
            assert!(
                !deadline.is_over(),
                "{topic} cannot be read to its ends {ends:?}"
            );
            let Some(polled) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let message = match polled {
                Ok(message) => message,
                // The last position may be the mark of a transaction, which is no record.
                Err(KafkaError::PartitionEOF(partition)) => {
                    ends.remove(&partition);
                    continue;
                }
                // A broker that is away comes back, or the deadline ends this.
                Err(_) => continue,
            };
            let record = Record::new(&message);
            if ends
                .get(&record.partition)
                .is_some_and(|end| record.offset + 1 >= *end)
            {
                ends.remove(&record.partition);
            }
            records.push(record);
        }
        consumer.unassign().expect("an end of the assignment");
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// First free offset of each partition.
    pub fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        wait_for(&format!("the ends of {topic}"), || self.ends_now(topic))
    }

    /// The same; `None` if there is no such topic or the broker does not answer.
    pub fn ends_now(&self, topic: &str) -> Option<BTreeMap<i32, i64>> {
        let end = |partition| {
            let (_, end) = self
                .reader
                .fetch_watermarks(topic, partition, ANSWER)
                .ok()?;
            Some((partition, end))
        };
        partitions(&self.reader, topic)?
            .into_iter()
            .map(end)
            .collect()
    }

    /// Watches what a group has committed.
    pub fn commits(&self, group: &str) -> Commits {
        Commits(consumer(&self.bootstrap, group))
    }

    /// Commits a position for a group without members.
    pub fn commit(&self, group: &str, topic: &str, partition: i32, position: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(position))
            .expect("a position");
        consumer(&self.bootstrap, group)
            .commit(&list, CommitMode::Sync)
            .expect("a group without members takes commits");
    }

    /// A producer.
    pub fn writer(&self, topic: &str) -> Writer {
        let outcome = Outcome::default();
        let producer = config(&self.bootstrap)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", "60000")
            .set("message.max.bytes", "67108864")
            .create_with_context(outcome.clone());
        Writer {
            topic: topic.to_owned(),
            producer: producer.expect("a producer"),
            outcome,
        }
    }
}

fn await_it<T>(asked: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(asked)
}

fn all_well<T>(results: Vec<Result<T, (String, RDKafkaErrorCode)>>) {
    for result in results {
        if let Err((what, code)) = result {
            panic!("{what}: {code}");
        }
    }
}

fn config(bootstrap: &str) -> ClientConfig {
    // Else `exit` frees what threads of clients still use, and the test binary aborts.
    openssl_sys::init();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "200");
    config
}

fn consumer(bootstrap: &str, group: &str) -> BaseConsumer {
    config(bootstrap)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "50")
        // What was aborted never happened.
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("message.max.bytes", "67108864")
        .set("receive.message.max.bytes", "134217728")
        .create()
        .expect("a consumer")
}

/// The partitions of a topic, none if it does not exist; `None` if the broker does not answer.
fn partitions(consumer: &BaseConsumer, topic: &str) -> Option<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER).ok()?;
    let found = metadata
        .topics()
        .iter()
        .find(|t| t.name() == topic && t.error().is_none());
    Some(
        found
            .into_iter()
            .flat_map(|t| t.partitions())
            .map(|p| p.id())
            .collect(),
    )
}

/// What a group has committed, asked from outside.
pub struct Commits(BaseConsumer);

impl std::fmt::Debug for Commits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Commits")
    }
}

impl Commits {
    /// Position and metadata of one partition; `None` if there is no commit, or no answer.
    pub fn with_metadata(&self, topic: &str, partition: i32) -> Option<(i64, String)> {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        let committed = self
            .0
            .committed_offsets(list, Duration::from_secs(2))
            .ok()?;
        let elements = committed.elements();
        let element = elements.first()?;
        let Offset::Offset(offset) = element.offset() else {
            return None;
        };
        Some((offset, element.metadata().to_owned()))
    }

    /// Commits as somebody who is no member; the group has to be empty.
    pub fn overwrite(&self, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("an offset");
        let mut element = list.find_partition(topic, partition).expect("just added");
        element.set_metadata(metadata);
        self.0
            .commit(&list, CommitMode::Sync)
            .expect("an empty group takes a commit");
    }

    /// Joins the group as any other program would, and stays until it is dropped.
    pub fn join(&self, topic: &str) {
        self.0.subscribe(&[topic]).expect("a subscription");
        wait_for("a place in the group", || {
            drop(self.0.poll(Duration::from_millis(50)));
            let assigned = self.0.assignment().ok()?;
            (assigned.count() > 0).then_some(())
        });
    }

    /// The committed offset of each of these partitions; `None` if the broker does not say.
    pub fn of(&self, topic: &str, partitions: &[i32]) -> Option<BTreeMap<i32, i64>> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(topic, *partition);
        }
        let committed = self
            .0
            .committed_offsets(list, Duration::from_secs(2))
            .ok()?;
        let offset = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            let offset = match element.offset() {
                Offset::Offset(offset) => offset,
                _ => -1,
            };
            (element.partition(), offset)
        };
        Some(committed.elements().into_iter().map(offset).collect())
    }
}

#[derive(Clone, Default)]
struct Outcome {
    stored: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl ClientContext for Outcome {}

impl ProducerContext for Outcome {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery: &DeliveryResult<'_>, (): ()) {
        let count = if delivery.is_ok() {
            &self.stored
        } else {
            &self.failed
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes events to one topic; each is stored once, or the story fails.
pub struct Writer {
    topic: String,
    producer: ThreadedProducer<Outcome>,
    outcome: Outcome,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Enqueues one event.
    pub fn write(&self, event: &Event) {
        let mut headers = OwnedHeaders::new();
        for (name, value) in &event.headers {
            headers = headers.insert(Header {
                key: name,
                value: value.as_deref(),
            });
        }
        let mut record = BaseRecord::<[u8], [u8], ()>::to(&self.topic).headers(headers);
        record.key = event.key.as_deref();
        record.payload = event.value.as_deref();
        record.partition = event.partition;
        record.timestamp = event.timestamp_ms;
        let deadline = patience();
        while let Err((error, back)) = self.producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert!(error == full && !deadline.is_over(), "{error}");
            crate::wait::let_pass(Duration::from_millis(5));
            record = back;
        }
    }

    /// Waits until everything is stored; tells how much.
    pub fn flush(&self) -> u64 {
        self.producer
            .flush(crate::wait::PATIENCE)
            .expect("the broker takes every event");
        let failed = self.outcome.failed.load(Ordering::Relaxed);
        assert_eq!(failed, 0, "events were not stored in {}", self.topic);
        self.outcome.stored.load(Ordering::Relaxed)
    }
}
