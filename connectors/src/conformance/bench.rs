//! What the items of the suite share: topics, appended records, and a driver that says yes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millrace_core::contract::publish::GroupMetadata;
use millrace_core::event::Event;
use millrace_core::intake::io::{
    Commit, CommitId, CommitOutcome, Committed, Membership, StartAt, TokensRead,
};
use millrace_core::position::{Partition, Position};
use tokio::time::Instant;

use crate::kafka::{
    Admin, Compression, GroupSettings, KafkaSink, KafkaSource, KafkaTokenStore, ProducerSettings,
    Reader, Settings, TransactionSettings, Until,
};
use crate::{Delivery, Happening, Record, Sink, Source};

/// How long a condition may take to become true.
pub(super) const SOON: Duration = Duration::from_secs(40);

/// A broker under test.
#[derive(Clone, Debug)]
pub struct Bench {
    bootstrap: String,
    name: String,
    count: Arc<AtomicU32>,
}

impl Bench {
    /// A broker at `host:port`.
    pub fn new(bootstrap: &str) -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            bootstrap: bootstrap.to_owned(),
            name: format!("c{:x}", now.as_micros()),
            count: Arc::default(),
        }
    }

    pub(super) fn item(&self, name: &str) -> Self {
        let rule: String = name.split('_').take(2).collect();
        Self {
            bootstrap: self.bootstrap.clone(),
            name: format!("{}-{rule}", self.name),
            count: Arc::clone(&self.count),
        }
    }

    pub(super) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub(super) fn settings(&self) -> Settings {
        Settings::plain(&self.bootstrap, "millrace-conformance")
    }

    /// A name that nobody else uses.
    pub(super) fn unique(&self, kind: &str) -> String {
        format!(
            "{}-{kind}-{}",
            self.name,
            self.count.fetch_add(1, Ordering::Relaxed)
        )
    }

    pub(super) fn admin(&self) -> Admin {
        Admin::connect(&self.settings()).unwrap()
    }

    pub(super) fn store(&self) -> KafkaTokenStore {
        KafkaTokenStore::new(self.settings()).unwrap()
    }

    /// A new topic, once its partitions have leaders.
    pub(super) async fn topic(&self, partitions: i32) -> String {
        let topic = self.unique("t");
        let admin = self.admin();
        admin.create_topics(&[(&topic, partitions)]).await.unwrap();
        self.wait_for(&topic, partitions).await;
        topic
    }

    pub(super) async fn wait_for(&self, topic: &str, partitions: i32) {
        let store = self.store();
        let all: Vec<Partition> = (0..partitions).map(|n| Partition::new(topic, n)).collect();
        eventually("the topic is there", async || {
            let ranges = store.log_ranges(all.clone()).await;
            ranges
                .is_ok_and(|ranges| ranges.len() == all.len())
                .then_some(())
        })
        .await;
    }

    pub(super) fn sink(&self) -> KafkaSink {
        self.sink_with(Duration::ZERO, Duration::from_secs(20))
    }

    pub(super) fn sink_with(&self, linger: Duration, message_timeout: Duration) -> KafkaSink {
        let settings = ProducerSettings {
            compression: Compression::Lz4,
            linger,
            message_timeout,
            batch_bytes_max: None,
            transactions: None,
        };
        KafkaSink::new(&self.settings(), &settings).unwrap()
    }

    /// A transactional producer that is ready.
    pub(super) async fn transactional(&self, id: &str) -> KafkaSink {
        let settings = ProducerSettings {
            compression: Compression::Lz4,
            linger: Duration::ZERO,
            message_timeout: Duration::from_secs(20),
            batch_bytes_max: None,
            transactions: Some(TransactionSettings {
                id: id.to_owned(),
                timeout: Duration::from_secs(30),
            }),
        };
        let mut sink = KafkaSink::new(&self.settings(), &settings).unwrap();
        sink.prepare().await.unwrap();
        sink
    }

    /// Everything that a reader of committed records sees of a partition, as text.
    pub(super) async fn read(&self, topic: &str, partition: i32) -> Vec<String> {
        let from = (
            Partition::new(topic, partition),
            crate::kafka::Start::Earliest,
        );
        let mut reader = Reader::open(self.settings(), vec![from], Until::Ends);
        let mut values = Vec::new();
        while let Some(fetched) = reader.next().await {
            for event in fetched.unwrap().iter().flat_map(|part| &part.events) {
                let value = event.value().unwrap_or_default();
                values.push(String::from_utf8_lossy(value).into_owned());
            }
        }
        values
    }

    /// Appends records and expects all of them to be stored; their places, in order.
    pub(super) async fn append(&self, records: Vec<Record>) -> Vec<(i32, Position)> {
        let mut sink = self.sink();
        append(&mut sink, records)
            .await
            .into_iter()
            .map(|delivery| match delivery {
                Delivery::Stored {
                    partition,
                    position,
                } => (partition, position),
                Delivery::Failed { code, message, .. } => panic!("{code}: {message}"),
            })
            .collect()
    }

    /// Appends `count` records with their numbers as values.
    pub(super) async fn numbers(&self, topic: &str, partition: i32, count: u32) {
        let records = (0..count)
            .map(|number| record(topic, Some(partition), number.to_string()))
            .collect();
        self.append(records).await;
    }

    pub(super) fn group(&self, topics: &[&str]) -> GroupSettings {
        GroupSettings {
            group: self.unique("g"),
            registry: self.unique("r"),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            session_timeout: Duration::from_secs(10),
        }
    }

    pub(super) fn member(&self, group: &GroupSettings) -> Peer {
        Peer {
            source: KafkaSource::new(self.settings(), group.clone()).unwrap(),
            start: Start::Committed,
            start_epoch: None,
            read_epoch: None,
            owned: BTreeSet::new(),
            tokens: BTreeMap::new(),
            events: Vec::new(),
            membership: None,
            revoking: None,
            lost: 0,
            rejoined: 0,
            out_of_range: Vec::new(),
            outcomes: Vec::new(),
            group_metadata: None,
            commits: 0,
        }
    }
}

/// A record without key and headers.
pub(super) fn record(topic: &str, partition: Option<i32>, value: impl Into<Bytes>) -> Record {
    Record {
        topic: topic.into(),
        partition,
        timestamp_ms: None,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    }
}

/// Appends records, waiting where the queue is full; the ends in the order of the records.
pub(super) async fn append(sink: &mut KafkaSink, records: Vec<Record>) -> Vec<Delivery> {
    let count = records.len();
    let mut ends: Vec<Option<Delivery>> = vec![None; count];
    let mut ready = Vec::new();
    for (ticket, mut record) in records.into_iter().enumerate() {
        while let Err(back) = sink.append(ticket as u64, record) {
            record = back;
            sink.deliveries(&mut ready).await;
        }
    }
    sink.flush().await;
    while ready.len() < count {
        sink.deliveries(&mut ready).await;
    }
    for (ticket, delivery) in ready {
        let end = &mut ends[usize::try_from(ticket).unwrap()];
        assert!(end.is_none(), "record {ticket} ended twice");
        *end = Some(delivery);
    }
    ends.into_iter().map(Option::unwrap).collect()
}

/// Waits until a condition holds.
pub(super) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where a [`Peer`] starts what it is given.
#[derive(Clone, Copy)]
pub(super) enum Start {
    /// At its committed position, else at the first one of the log.
    Committed,
    /// Here.
    At(Position),
}

/// A driver around a source: reads tokens, then assigns; lets go only when it is told to.
pub(super) struct Peer {
    pub(super) source: KafkaSource,
    pub(super) start: Start,
    /// Starts ask whether the log holds this epoch up to there.
    pub(super) start_epoch: Option<i32>,
    /// Epoch of the leader that took the last record.
    pub(super) read_epoch: Option<i32>,
    /// Granted and started.
    pub(super) owned: BTreeSet<Partition>,
    pub(super) tokens: BTreeMap<Partition, TokensRead>,
    pub(super) events: Vec<(Partition, Event)>,
    pub(super) membership: Option<Membership>,
    pub(super) revoking: Option<Vec<Partition>>,
    pub(super) lost: u32,
    pub(super) rejoined: u32,
    pub(super) out_of_range: Vec<(Position, Position)>,
    pub(super) outcomes: Vec<(CommitId, CommitOutcome)>,
    /// The last answer to the question who we are.
    pub(super) group_metadata: Option<Result<GroupMetadata, String>>,
    commits: u64,
}

impl Peer {
    /// Handles happenings until the condition holds.
    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds(self) {
            let happening = tokio::time::timeout_at(deadline, self.source.next()).await;
            match happening {
                Ok(happening) => self.handle(happening),
                Err(_) => panic!("not in time: {what}; {}", self.describe()),
            }
        }
    }

    /// Handles happenings for a while, for claims that something does not happen.
    pub(super) async fn for_a_while(&mut self, long: Duration) {
        let deadline = Instant::now() + long;
        while let Ok(happening) = tokio::time::timeout_at(deadline, self.source.next()).await {
            self.handle(happening);
        }
    }

    fn describe(&self) -> String {
        format!(
            "owned {:?}, {} events, membership {:?}, revoking {:?}, lost {}, rejoined {}, outcomes {:?}",
            self.owned,
            self.events.len(),
            self.membership,
            self.revoking,
            self.lost,
            self.rejoined,
            self.outcomes
        )
    }

    fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Assigned {
                partitions,
                membership,
            } => {
                self.membership = Some(membership);
                for partition in partitions {
                    self.source.read_tokens(partition);
                }
            }
            Happening::TokensRead { partition, read } => match read {
                Ok(tokens) => {
                    let start = match self.start {
                        Start::At(position) => position,
                        Start::Committed => tokens
                            .own
                            .as_ref()
                            .map_or(tokens.log_start, |own| own.position),
                    };
                    self.tokens.insert(partition.clone(), tokens);
                    self.source.assign(vec![StartAt {
                        partition: partition.clone(),
                        position: start,
                        leader_epoch: self.start_epoch,
                    }]);
                    self.owned.insert(partition);
                }
                Err(_) => self.source.read_tokens(partition),
            },
            Happening::Revoking(partitions) => self.revoking = Some(partitions),
            Happening::Lost(partitions) => {
                self.lost += 1;
                for partition in partitions {
                    self.owned.remove(&partition);
                }
            }
            Happening::Fetched(fetched) => {
                for part in fetched {
                    self.read_epoch = part.leader_epoch;
                    for event in part.events {
                        self.events.push((part.partition.clone(), event));
                    }
                }
            }
            Happening::OutOfRange {
                log_start, log_end, ..
            } => self.out_of_range.push((log_start, log_end)),
            Happening::Committed { commit, outcome } => self.outcomes.push((commit, outcome)),
            Happening::GroupMetadata { read, .. } => self.group_metadata = Some(read),
            Happening::Rejoined => {
                self.rejoined += 1;
                self.owned.clear();
                self.revoking = None;
            }
            Happening::Brokers { .. } | Happening::Misconfigured(_) => {}
        }
    }

    /// Completes the revocation that waits.
    pub(super) fn let_go(&mut self) {
        let partitions = self.revoking.take().unwrap();
        for partition in &partitions {
            self.owned.remove(partition);
        }
        self.source.unassign(partitions);
    }

    /// Commits, and waits for the end.
    pub(super) async fn commit(
        &mut self,
        partition: &Partition,
        position: i64,
        metadata: &str,
    ) -> CommitOutcome {
        let id = self.start_commit(partition, position, metadata);
        self.until("the commit ends", |peer| peer.outcome(id).is_some())
            .await;
        self.outcome(id).unwrap()
    }

    /// Commits until it is no longer refused for now, as an owner does at each tick (D-W3).
    pub(super) async fn commit_surely(
        &mut self,
        partition: &Partition,
        position: i64,
        metadata: &str,
    ) {
        let deadline = Instant::now() + SOON;
        loop {
            match self.commit(partition, position, metadata).await {
                CommitOutcome::Done => return,
                CommitOutcome::Retriable(_) => assert!(Instant::now() < deadline),
                refused => panic!("{refused:?}"),
            }
            self.for_a_while(Duration::from_millis(100)).await;
        }
    }

    pub(super) fn start_commit(
        &mut self,
        partition: &Partition,
        position: i64,
        metadata: &str,
    ) -> CommitId {
        self.commits += 1;
        let id = CommitId(self.commits);
        let offset = committed(position, metadata);
        self.source.commit(Commit {
            id,
            offsets: vec![(partition.clone(), offset)],
        });
        id
    }

    pub(super) fn outcome(&self, id: CommitId) -> Option<CommitOutcome> {
        let found = self.outcomes.iter().find(|(commit, _)| *commit == id);
        found.map(|(_, outcome)| outcome.clone())
    }

    /// Who we are, for a transaction that commits these partitions.
    pub(super) async fn metadata(
        &mut self,
        partitions: &[&Partition],
    ) -> Result<GroupMetadata, String> {
        self.commits += 1;
        let partitions = partitions.iter().map(|p| (*p).clone()).collect();
        self.source
            .read_group_metadata(CommitId(self.commits), partitions);
        self.until("we know who we are", |peer| peer.group_metadata.is_some())
            .await;
        self.group_metadata.take().unwrap()
    }

    /// Positions that came of a partition, in order.
    pub(super) fn positions(&self, partition: &Partition) -> Vec<i64> {
        self.events
            .iter()
            .filter(|(of, _)| of == partition)
            .map(|(_, event)| event.position().offset())
            .collect()
    }
}

pub(super) fn committed(position: i64, metadata: &str) -> Committed {
    Committed {
        position: Position::new(position),
        metadata: metadata.to_owned(),
    }
}
