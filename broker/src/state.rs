//! All that the broker knows, under one lock, and how it is found again in a folder.
//!
//! Invariant: no lock is held across an await; what takes long (loading a read, syncing a
//! file) happens after the lock is released.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::faults::Faults;
use crate::groups::Group;
use crate::ids::{now_ms, random_id};
use crate::journal::Entry;
use crate::keeper::{Keeper, OpenError};
use crate::limits::{GROUPS_MAX, PRODUCER_IDS_RESERVED, STALL_MIN};
use crate::log::recovery::Stopped;
use crate::options::Options;
use crate::settings::{Defaults, Settings};
use crate::topics::Topic;
use crate::transactions::Transactions;

/// The number of the only node.
pub(crate) const NODE_ID: i32 = 1;

/// Limits that came with the options.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) auto_create_topics: bool,
    pub(crate) default_partitions: i32,
    pub(crate) offset_metadata_bytes_max: usize,
    pub(crate) initial_rebalance_delay: Duration,
    pub(crate) session_timeout_min: Duration,
    pub(crate) session_timeout_max: Duration,
    pub(crate) transaction_timeout_max: Duration,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) cluster_id: String,
    pub(crate) leader_epoch: i32,
    pub(crate) limits: Limits,
    pub(crate) defaults: Defaults,
    pub(crate) keeper: Keeper,
    pub(crate) topics: BTreeMap<String, Topic>,
    pub(crate) groups: BTreeMap<String, Group>,
    pub(crate) transactions: Transactions,
    pub(crate) producer_ids: ProducerIds,
    last_tick: Instant,
}

/// Numbers for producers. They are taken from the journal in blocks, so that none is given
/// twice, however the broker stops.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds {
    next: i64,
    reserved: i64,
}

/// What connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Rings when a partition has got new or newly stable records.
    pub(crate) data: Notify,
    pub(crate) faults: Faults,
    /// One sync at a time: who gets through knows that everything written before is safe.
    sync_gate: tokio::sync::Mutex<()>,
    pub(crate) syncs: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Shared {
    pub(crate) fn new(state: State, host: String, port: u16) -> Arc<Shared> {
        Arc::new(Shared {
            syncs: state.keeper.syncs(),
            state: Mutex::new(state),
            data: Notify::new(),
            faults: Faults::default(),
            sync_gate: tokio::sync::Mutex::new(()),
            host,
            port,
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A request that panicked has closed its connection; the others go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything that was written before this call is on the device, if the
    /// options ask for it.
    pub(crate) async fn sync(&self) -> std::io::Result<()> {
        if !self.syncs {
            return Ok(());
        }
        let _gate = self.sync_gate.lock().await;
        tokio::task::block_in_place(|| self.sync_now())
    }

    /// As `sync`, for callers outside of the runtime.
    pub(crate) fn sync_now(&self) -> std::io::Result<()> {
        let dirty = self.lock().keeper.take_dirty();
        dirty.iter().try_for_each(|file| file.sync_data())
    }
}

impl State {
    /// Opens the storage and brings back what is in it.
    pub(crate) fn open(options: &Options) -> Result<State, OpenError> {
        let (keeper, entries) = Keeper::open(&options.storage)?;
        let mut state = State {
            cluster_id: random_id(),
            leader_epoch: 0,
            limits: Limits {
                auto_create_topics: options.auto_create_topics,
                default_partitions: options.default_partitions,
                offset_metadata_bytes_max: options.offset_metadata_bytes_max,
                initial_rebalance_delay: options.initial_rebalance_delay,
                session_timeout_min: options.session_timeout_min,
                session_timeout_max: options.session_timeout_max,
                transaction_timeout_max: options.transaction_timeout_max,
            },
            defaults: Defaults::new(options),
            keeper,
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            transactions: Transactions::default(),
            producer_ids: ProducerIds::default(),
            last_tick: Instant::now(),
        };
        if state.keeper.has_files() {
            state.recover(entries)?;
        }
        Ok(state)
    }

    fn recover(&mut self, entries: Vec<Entry>) -> Result<(), OpenError> {
        let stopped = match entries.last() {
            None | Some(Entry::Closed) => Stopped::Cleanly,
            Some(_) => Stopped::Crashed,
        };
        let now = Instant::now();
        let now_ms = now_ms();
        let mut replay = Replay::default();
        for entry in entries {
            self.replay(entry, &mut replay, now);
        }
        if replay.opened {
            self.leader_epoch += 1;
        }
        for (name, found) in replay.topics {
            let mut logs = Vec::with_capacity(found.partitions);
            for partition in 0..found.partitions {
                let start = found.starts.get(&partition).copied().unwrap_or_default();
                logs.push(self.keeper.open_log(
                    &name,
                    partition,
                    start,
                    self.leader_epoch,
                    stopped,
                    now_ms,
                )?);
            }
            let settings = Settings::new(&found.configs, &self.defaults);
            self.topics.insert(
                name,
                Topic {
                    configs: found.configs,
                    settings,
                    logs,
                },
            );
        }
        let topics = &self.topics;
        self.keeper.sweep(|name, partition| {
            topics
                .get(name)
                .is_some_and(|topic| partition < topic.logs.len())
        })?;
        self.settle_transactions(now_ms)?;
        let snapshot = self.snapshot();
        self.keeper
            .snapshot(&snapshot)
            .map_err(crate::keeper::failed("write", "journal".as_ref()))
    }

    fn replay(&mut self, entry: Entry, replay: &mut Replay, now: Instant) {
        match entry {
            Entry::Cluster { id } => self.cluster_id = id,
            Entry::Opened { leader_epoch } => {
                self.leader_epoch = leader_epoch;
                replay.opened = true;
            }
            Entry::Closed => {}
            Entry::TopicCreated {
                name,
                partitions,
                configs,
            } => {
                let topic = ReplayedTopic {
                    partitions,
                    configs,
                    starts: HashMap::new(),
                };
                replay.topics.insert(name, topic);
            }
            Entry::TopicDeleted { name } => {
                replay.topics.remove(&name);
                for group in self.groups.values_mut() {
                    group.offsets.delete_topic(&name);
                }
                self.transactions.forget_topic(&name);
            }
            Entry::PartitionsSet { name, partitions } => {
                if let Some(topic) = replay.topics.get_mut(&name) {
                    topic.partitions = partitions;
                }
            }
            Entry::ConfigsSet { name, configs } => {
                if let Some(topic) = replay.topics.get_mut(&name) {
                    topic.configs = configs;
                }
            }
            Entry::LogStart {
                name,
                partition,
                offset,
            } => {
                if let Some(topic) = replay.topics.get_mut(&name) {
                    topic.starts.insert(partition, offset);
                }
            }
            Entry::OffsetsCommitted { group, offsets } => {
                let group = self.replayed_group(&group);
                offsets
                    .iter()
                    .for_each(|offset| group.offsets.commit(offset));
            }
            Entry::OffsetsDeleted { group, partitions } => {
                let group = self.replayed_group(&group);
                for (topic, partition) in partitions {
                    group.offsets.delete(&topic, partition);
                }
            }
            Entry::GroupDeleted { group } => {
                self.groups.remove(&group);
            }
            Entry::Group { ref group, .. } => {
                self.replayed_group(group).restore(&entry, now);
            }
            Entry::ProducerIds { next } => {
                self.producer_ids = ProducerIds {
                    next,
                    reserved: next,
                };
            }
            Entry::Transactional {
                id,
                producer_id,
                epoch,
                timeout_ms,
            } => self
                .transactions
                .restore(id, producer_id, epoch, timeout_ms),
            Entry::TransactionDecided {
                id,
                producer_id,
                epoch,
                commit,
                partitions,
                offsets,
            } => {
                if commit {
                    for (group, offsets) in &offsets {
                        let group = self.replayed_group(group);
                        offsets
                            .iter()
                            .for_each(|offset| group.offsets.commit(offset));
                    }
                }
                self.transactions
                    .restore_decision(&id, producer_id, epoch, commit, partitions);
            }
            Entry::TransactionEnded { id } => self.transactions.restore_end(&id),
        }
    }

    fn replayed_group(&mut self, name: &str) -> &mut Group {
        let delay = self.limits.initial_rebalance_delay;
        self.groups
            .entry(name.to_string())
            .or_insert_with(|| Group::new(delay))
    }

    /// The facts that lead to the present state.
    pub(crate) fn snapshot(&self) -> Vec<Entry> {
        let mut entries = vec![
            Entry::Cluster {
                id: self.cluster_id.clone(),
            },
            Entry::Opened {
                leader_epoch: self.leader_epoch,
            },
            Entry::ProducerIds {
                next: self.producer_ids.reserved,
            },
        ];
        for (name, topic) in &self.topics {
            entries.push(Entry::TopicCreated {
                name: name.clone(),
                partitions: topic.logs.len(),
                configs: topic.configs.clone(),
            });
            for (partition, log) in topic.logs.iter().enumerate() {
                if log.start() > 0 {
                    entries.push(Entry::LogStart {
                        name: name.clone(),
                        partition,
                        offset: log.start(),
                    });
                }
            }
        }
        for (name, group) in &self.groups {
            entries.push(group.entry(name));
            let offsets = group.offsets.entries();
            if !offsets.is_empty() {
                entries.push(Entry::OffsetsCommitted {
                    group: name.clone(),
                    offsets,
                });
            }
        }
        entries.extend(self.transactions.entries());
        entries
    }

    /// Rewrites the journal when it has grown long, and writes down changed groups.
    pub(crate) fn keep_journal(&mut self) {
        self.write_groups();
        if self.keeper.wants_snapshot() {
            let snapshot = self.snapshot();
            if let Err(error) = self.keeper.snapshot(&snapshot) {
                tracing::warn!(%error, "cannot rewrite the journal; the old one stays");
            }
        }
    }

    /// Writes down one group, if it changed. What fails is tried again at the next tick.
    pub(crate) fn write_group(&mut self, name: &str) {
        if let Some(group) = self.groups.get_mut(name) {
            write(&mut self.keeper, name, group);
        }
    }

    fn write_groups(&mut self) {
        for (name, group) in &mut self.groups {
            write(&mut self.keeper, name, group);
        }
    }

    /// Writes everything to the device and marks a clean end.
    pub(crate) fn close(&mut self) -> std::io::Result<()> {
        self.write_groups();
        for log in self.topics.values().flat_map(|topic| &topic.logs) {
            if let Some(file) = log.file() {
                file.sync_data()?;
            }
        }
        self.keeper.record(&Entry::Closed)?;
        match self.keeper.journal_file() {
            Some(file) => file.sync_all(),
            None => Ok(()),
        }
    }

    /// The group of this name, made if it is missing.
    pub(crate) fn group(&mut self, name: &str) -> Result<&mut Group, ResponseError> {
        if name.is_empty() {
            return Err(ResponseError::InvalidGroupId);
        }
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(name) {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        Ok(self.replayed_group(name))
    }

    /// A number that no producer has had.
    pub(crate) fn next_producer_id(&mut self) -> std::io::Result<i64> {
        let ids = &mut self.producer_ids;
        if ids.next == ids.reserved {
            let reserved = ids.reserved + PRODUCER_IDS_RESERVED;
            self.keeper.record(&Entry::ProducerIds { next: reserved })?;
            ids.reserved = reserved;
        }
        let id = ids.next;
        ids.next += 1;
        Ok(id)
    }

    /// Looks at the clock: groups and transactions. Tells whether records became readable.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        let gap = now.duration_since(self.last_tick);
        self.last_tick = now;
        for group in self.groups.values_mut() {
            if gap > STALL_MIN {
                // It was the broker that did not listen, not its clients that were silent.
                group.postpone_sessions(gap);
            }
            group.tick(now);
        }
        self.groups.retain(|_, group| {
            !(group.generation == 0 && group.is_idle() && group.offsets.is_empty())
        });
        let ended = self.end_late_transactions(now);
        self.keep_journal();
        ended
    }

    /// Producers with an open transaction in some partition.
    pub(crate) fn open_producers(&self) -> HashSet<(i64, i16)> {
        self.topics
            .values()
            .flat_map(|topic| &topic.logs)
            .flat_map(|log| log.producers().open())
            .collect()
    }
}

fn write(keeper: &mut Keeper, name: &str, group: &mut Group) {
    if !group.changed {
        return;
    }
    match keeper.record(&group.entry(name)) {
        Ok(()) => group.changed = false,
        Err(error) => tracing::error!(group = name, %error, "cannot write a group down"),
    }
}

#[derive(Debug, Default)]
struct Replay {
    opened: bool,
    topics: BTreeMap<String, ReplayedTopic>,
}

#[derive(Debug)]
struct ReplayedTopic {
    partitions: usize,
    configs: BTreeMap<String, String>,
    starts: HashMap<usize, i64>,
}
