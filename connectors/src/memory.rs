//! A log in memory behind the same traits as Kafka, with faults, for tests in paused time.
//!
//! It keeps the promises that brokers keep: positions ascend and may have gaps, commits are
//! fenced by membership, a revoked partition moves only after its owner has let go of it, and an
//! outsider commits only while a group is empty. Everything else happens at once unless a fault
//! says otherwise.

mod group;
mod sink;
mod source;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use millrace_core::intake::io::Committed;
use millrace_core::position::{Partition, Position};

pub use sink::MemorySink;
pub use source::MemorySource;
pub use store::MemoryTokenStore;

use crate::{AppendClass, Record};
use group::Group;

/// What becomes of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommitFault {
    /// Refused for now; nothing is stored.
    Retriable,
    /// Refused for good, as of a member that is gone.
    NotOwner,
    /// Nobody knows.
    Unknown {
        /// Whether it was stored.
        applied: bool,
    },
    /// Open until [`MemoryLog::release_commits`] or the destruction of the client.
    Held,
    /// Stored, and told this much later.
    Slow(Duration),
}

/// What becomes of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AppendFault {
    /// Not stored, and told so.
    Fail(AppendClass),
    /// Stored, but told as failed (F-27).
    StoredButFailed(AppendClass),
    /// Neither stored nor told until [`MemorySink::release`] or a purge.
    Held,
    /// Stored, and told this much later.
    Slow(Duration),
    /// The queue is full: the record comes back.
    Full,
}

/// A record that is stored.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// Where.
    pub position: Position,
    /// Epoch milliseconds.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// In order, duplicates included.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// A member of a group, as [`MemorySource::member`] names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MemberId(u64);

#[derive(Debug, Default)]
struct Log {
    start: i64,
    end: i64,
    /// Ascending positions, with gaps.
    records: Vec<StoredRecord>,
}

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<String, Vec<Log>>,
    groups: HashMap<String, Group>,
    members: u64,
    commit_faults: VecDeque<CommitFault>,
    append_faults: VecDeque<AppendFault>,
    failing_reads: u32,
    now_ms: i64,
}

impl State {
    fn log(&self, partition: &Partition) -> Option<&Log> {
        let number = usize::try_from(partition.number()).ok()?;
        self.topics.get(partition.topic())?.get(number)
    }

    fn log_mut(&mut self, partition: &Partition) -> Option<&mut Log> {
        let number = usize::try_from(partition.number()).ok()?;
        self.topics.get_mut(partition.topic())?.get_mut(number)
    }

    /// Appends; `None`: there is no such partition.
    fn append(&mut self, record: &Record, number: i32) -> Option<Position> {
        self.now_ms += 1;
        let now_ms = self.now_ms;
        let log = self.log_mut(&Partition::new(Arc::clone(&record.topic), number))?;
        let position = Position::new(log.end);
        log.end += 1;
        log.records.push(StoredRecord {
            position,
            timestamp_ms: record.timestamp_ms.unwrap_or(now_ms),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.clone(),
        });
        Some(position)
    }

    /// Wakes every source: there may be something to read.
    fn wake(&self) {
        for group in self.groups.values() {
            group.wake();
        }
    }
}

/// A log in memory. Cheap to clone; all clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    state: Arc<Mutex<State>>,
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a topic, or adds partitions to it.
    pub fn create_topic(&self, name: &str, partitions: u32) {
        let mut state = self.lock();
        let logs = state.topics.entry(name.to_owned()).or_default();
        logs.resize_with(partitions as usize, Log::default);
        group::rebalance(&mut state);
    }

    /// Appends a record without a sink.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn append(
        &self,
        partition: &Partition,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Position {
        let record = Record {
            topic: partition.shared_topic(),
            partition: Some(partition.number()),
            timestamp_ms: None,
            key: key.map(Bytes::copy_from_slice),
            value: value.map(Bytes::copy_from_slice),
            headers: Vec::new(),
        };
        self.append_record(&record)
    }

    /// Appends a record with everything in it; without a partition it goes by its key.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn append_record(&self, record: &Record) -> Position {
        let mut state = self.lock();
        let number = record
            .partition
            .unwrap_or_else(|| sink::partition_of(&state, record));
        let position = state.append(record, number).expect("the topic was created");
        state.wake();
        position
    }

    /// Leaves positions out, as transactions and compaction do (T4).
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn skip(&self, partition: &Partition, positions: u32) {
        let mut state = self.lock();
        let log = state.log_mut(partition).expect("the topic was created");
        log.end += i64::from(positions);
    }

    /// Drops everything before a position, as retention does (D-G10).
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn drop_before(&self, partition: &Partition, position: Position) {
        let mut state = self.lock();
        let log = state.log_mut(partition).expect("the topic was created");
        log.start = position.offset().clamp(log.start, log.end);
        let start = log.start;
        log.records
            .retain(|record| record.position.offset() >= start);
        state.wake();
    }

    /// What a partition holds.
    pub fn records(&self, partition: &Partition) -> Vec<StoredRecord> {
        let state = self.lock();
        state
            .log(partition)
            .map(|log| log.records.clone())
            .unwrap_or_default()
    }

    /// What a group committed.
    pub fn committed(&self, group: &str, partition: &Partition) -> Option<Committed> {
        let state = self.lock();
        state.groups.get(group)?.offsets.get(partition).cloned()
    }

    /// Joins a group. `registry` is the group that tokens are granted in.
    pub fn source(&self, group: &str, registry: &str, topics: &[&str]) -> MemorySource {
        MemorySource::join(self.clone(), group, registry, topics)
    }

    /// A producer.
    pub fn sink(&self) -> MemorySink {
        MemorySink::new(self.clone())
    }

    /// Reads and writes offsets from outside of groups.
    pub fn token_store(&self) -> MemoryTokenStore {
        MemoryTokenStore::new(self.clone())
    }

    /// The next commits meet these faults, one each; those behind them pass.
    pub fn fail_commits(&self, faults: impl IntoIterator<Item = CommitFault>) {
        self.lock().commit_faults.extend(faults);
    }

    /// Ends the commits that are held; `applied`: they are stored.
    pub fn release_commits(&self, group: &str, applied: bool) {
        if let Some(group) = self.lock().groups.get_mut(group) {
            group.release_commits(applied);
        }
    }

    /// The next records of sinks meet these faults, one each; those behind them pass.
    pub fn fail_appends(&self, faults: impl IntoIterator<Item = AppendFault>) {
        self.lock().append_faults.extend(faults);
    }

    /// The next readings of tokens fail.
    pub fn fail_token_reads(&self, times: u32) {
        self.lock().failing_reads = times;
    }

    /// A member that nobody drives joins a group and is given its share.
    pub fn join_ghost(&self, group: &str) -> MemberId {
        let mut state = self.lock();
        state.members += 1;
        let id = MemberId(state.members);
        state
            .groups
            .entry(group.to_owned())
            .or_default()
            .add_ghost(id);
        group::rebalance(&mut state);
        id
    }

    /// Takes a member out of its group: what it owned is lost (D-G5), and it joins again under
    /// another name unless it is a ghost.
    pub fn evict(&self, group: &str, member: MemberId) {
        let mut state = self.lock();
        state.members += 1;
        let again = MemberId(state.members);
        if let Some(group) = state.groups.get_mut(group) {
            group.evict(member, again);
        }
        group::rebalance(&mut state);
    }

    /// The members of a group.
    pub fn members(&self, group: &str) -> Vec<MemberId> {
        let state = self.lock();
        state
            .groups
            .get(group)
            .map(Group::members)
            .unwrap_or_default()
    }
}
