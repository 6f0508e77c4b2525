//! Transactional producers: who they are, what their open transaction touches, how it ends.
//!
//! Invariant: of all producers with one transactional id only the last one can write: each
//! new one raises the epoch.
//! Invariant: a transaction is decided in the journal before its first marker is written, so
//! that it ends in the same way everywhere, also across a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::time::Instant;

use crate::batch::Marker;
use crate::groups::offsets::Place;
use crate::ids::now_ms;
use crate::journal::{Entry, OffsetEntry};
use crate::keeper::{OpenError, failed};
use crate::limits::TRANSACTIONAL_IDS_MAX;
use crate::state::State;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Empty,
    /// Ended by the ticker if it takes longer.
    Ongoing {
        deadline: Instant,
    },
    /// Decided, and some markers are still to be written.
    Decided {
        commit: bool,
        epoch: i16,
    },
    Ended {
        commit: bool,
    },
}

#[derive(Debug)]
struct Transaction {
    producer_id: i64,
    epoch: i16,
    /// The epoch that the present producer raised itself, in case it asks again because the
    /// answer was lost.
    previous_epoch: Option<i16>,
    timeout_ms: i32,
    phase: Phase,
    partitions: BTreeSet<Place>,
    groups: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Transactions {
    by_id: BTreeMap<String, Transaction>,
}

/// A producer as it names itself in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
}

fn storage_error(error: &io::Error) -> ResponseError {
    tracing::error!(%error, "cannot write a transaction down");
    ResponseError::CoordinatorNotAvailable
}

impl Transactions {
    /// The transaction of a producer that proves to be the present one.
    fn check(&mut self, id: &str, who: Identity) -> Result<&mut Transaction, ResponseError> {
        let found = self
            .by_id
            .get_mut(id)
            .filter(|found| found.producer_id == who.producer_id)
            .ok_or(ResponseError::InvalidProducerIdMapping)?;
        if found.epoch != who.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        if matches!(found.phase, Phase::Decided { .. }) {
            return Err(ResponseError::ConcurrentTransactions);
        }
        Ok(found)
    }

    /// Whether a transactional batch may be stored in this partition.
    pub(crate) fn check_produce(
        &mut self,
        id: Option<&str>,
        who: Identity,
        topic: &str,
        partition: i32,
    ) -> Result<(), ResponseError> {
        let found = self
            .check(id.unwrap_or_default(), who)
            .map_err(|error| match error {
                ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
                ResponseError::ConcurrentTransactions => ResponseError::NotEnoughReplicas,
                other => other,
            })?;
        let place = (topic.to_string(), partition);
        match found.phase {
            Phase::Ongoing { .. } if found.partitions.contains(&place) => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    pub(crate) fn add_partitions(
        &mut self,
        id: &str,
        who: Identity,
        places: Vec<Place>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        let found = self.check(id, who)?;
        found.begin(now);
        found.partitions.extend(places);
        Ok(())
    }

    pub(crate) fn add_group(
        &mut self,
        id: &str,
        who: Identity,
        group: &str,
        now: Instant,
    ) -> Result<(), ResponseError> {
        let found = self.check(id, who)?;
        found.begin(now);
        found.groups.insert(group.to_string());
        Ok(())
    }

    /// Whether offsets of this group may be held for the open transaction.
    pub(crate) fn check_offsets(
        &mut self,
        id: &str,
        who: Identity,
        group: &str,
    ) -> Result<(), ResponseError> {
        let found = self.check(id, who).map_err(|error| match error {
            ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
            other => other,
        })?;
        match found.phase {
            Phase::Ongoing { .. } if found.groups.contains(group) => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    pub(crate) fn forget_topic(&mut self, topic: &str) {
        for transaction in self.by_id.values_mut() {
            transaction.partitions.retain(|(name, _)| name != topic);
        }
    }

    pub(crate) fn restore(&mut self, id: String, producer_id: i64, epoch: i16, timeout_ms: i32) {
        let transaction = Transaction {
            producer_id,
            epoch,
            previous_epoch: None,
            timeout_ms,
            phase: Phase::Empty,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
        };
        self.by_id.insert(id, transaction);
    }

    pub(crate) fn restore_decision(
        &mut self,
        id: &str,
        producer_id: i64,
        epoch: i16,
        commit: bool,
        partitions: Vec<Place>,
    ) {
        if let Some(found) = self.by_id.get_mut(id) {
            found.producer_id = producer_id;
            found.phase = Phase::Decided { commit, epoch };
            found.partitions = partitions.into_iter().collect();
        }
    }

    pub(crate) fn restore_end(&mut self, id: &str) {
        if let Some(found) = self.by_id.get_mut(id) {
            found.phase = Phase::Empty;
            found.partitions.clear();
        }
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (id, found) in &self.by_id {
            entries.push(Entry::Transactional {
                id: id.clone(),
                producer_id: found.producer_id,
                epoch: found.epoch,
                timeout_ms: found.timeout_ms,
            });
            if let Phase::Decided { commit, epoch } = found.phase {
                entries.push(Entry::TransactionDecided {
                    id: id.clone(),
                    producer_id: found.producer_id,
                    epoch,
                    commit,
                    partitions: found.partitions.iter().cloned().collect(),
                    // They were applied when it was decided.
                    offsets: Vec::new(),
                });
            }
        }
        entries
    }
}

impl Transaction {
    fn begin(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Ongoing { .. }) {
            let timeout = Duration::from_millis(u64::try_from(self.timeout_ms).unwrap_or_default());
            self.phase = Phase::Ongoing {
                deadline: now + timeout,
            };
            self.partitions.clear();
            self.groups.clear();
        }
    }
}

impl State {
    /// Gives a producer its number, and a transactional one also its epoch, which fences
    /// its predecessors and ends what they left open.
    pub(crate) fn init_producer(
        &mut self,
        id: Option<&str>,
        timeout_ms: i32,
        known: Identity,
    ) -> Result<Identity, ResponseError> {
        let Some(id) = id else {
            let producer_id = self.next_producer_id().map_err(|e| storage_error(&e))?;
            return Ok(Identity {
                producer_id,
                epoch: 0,
            });
        };
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let timeout_fits = u64::try_from(timeout_ms).is_ok_and(|ms| {
            ms > 0 && Duration::from_millis(ms) <= self.limits.transaction_timeout_max
        });
        if !timeout_fits {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let Some(found) = self.transactions.by_id.get(id) else {
            if self.transactions.by_id.len() >= TRANSACTIONAL_IDS_MAX {
                return Err(ResponseError::CoordinatorNotAvailable);
            }
            let producer_id = self.next_producer_id().map_err(|e| storage_error(&e))?;
            return self.set_producer(
                id,
                Identity {
                    producer_id,
                    epoch: 0,
                },
                timeout_ms,
            );
        };
        let (now_known, phase) = (
            Identity {
                producer_id: found.producer_id,
                epoch: found.epoch,
            },
            found.phase,
        );
        if known.producer_id >= 0 && known != now_known {
            let asks_again = known.producer_id == now_known.producer_id
                && found.previous_epoch == Some(known.epoch);
            return if asks_again {
                Ok(now_known)
            } else {
                Err(ResponseError::ProducerFenced)
            };
        }
        match phase {
            Phase::Decided { .. } => return Err(ResponseError::ConcurrentTransactions),
            Phase::Ongoing { .. } => self.end_transaction(id, false, raised(now_known).epoch)?,
            Phase::Empty | Phase::Ended { .. } => {}
        }
        let next = if now_known.epoch >= i16::MAX - 1 {
            Identity {
                producer_id: self.next_producer_id().map_err(|e| storage_error(&e))?,
                epoch: 0,
            }
        } else {
            raised(now_known)
        };
        self.set_producer(id, next, timeout_ms)?;
        if let Some(found) = self.transactions.by_id.get_mut(id)
            && known == now_known
        {
            found.previous_epoch = Some(known.epoch);
        }
        Ok(next)
    }

    fn set_producer(
        &mut self,
        id: &str,
        who: Identity,
        timeout_ms: i32,
    ) -> Result<Identity, ResponseError> {
        self.keeper
            .record(&Entry::Transactional {
                id: id.to_string(),
                producer_id: who.producer_id,
                epoch: who.epoch,
                timeout_ms,
            })
            .map_err(|e| storage_error(&e))?;
        self.transactions
            .restore(id.to_string(), who.producer_id, who.epoch, timeout_ms);
        Ok(who)
    }

    /// The producer ends its transaction. Repeating the call is harmless.
    pub(crate) fn end_own_transaction(
        &mut self,
        id: &str,
        who: Identity,
        commit: bool,
    ) -> Result<(), ResponseError> {
        let found = self.transactions.check(id, who)?;
        match found.phase {
            Phase::Ongoing { .. } => self.end_transaction(id, commit, who.epoch),
            Phase::Ended { commit: ended } if ended == commit => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// Decides a transaction, then carries the decision out.
    fn end_transaction(&mut self, id: &str, commit: bool, epoch: i16) -> Result<(), ResponseError> {
        let Some(found) = self.transactions.by_id.get(id) else {
            return Err(ResponseError::InvalidProducerIdMapping);
        };
        let producer_id = found.producer_id;
        let offsets: Vec<(String, Vec<OffsetEntry>)> = found
            .groups
            .iter()
            .filter_map(|name| {
                let held = self.groups.get(name)?.offsets.held(producer_id);
                Some((name.clone(), held)).filter(|(_, held)| commit && !held.is_empty())
            })
            .collect();
        let decided = Entry::TransactionDecided {
            id: id.to_string(),
            producer_id,
            epoch,
            commit,
            partitions: found.partitions.iter().cloned().collect(),
            offsets: offsets.clone(),
        };
        self.keeper
            .record(&decided)
            .map_err(|e| storage_error(&e))?;
        for (name, offsets) in &offsets {
            if let Some(group) = self.groups.get_mut(name) {
                offsets
                    .iter()
                    .for_each(|offset| group.offsets.commit(offset));
            }
        }
        if let Some(found) = self.transactions.by_id.get_mut(id) {
            found.phase = Phase::Decided { commit, epoch };
            for name in std::mem::take(&mut found.groups) {
                if let Some(group) = self.groups.get_mut(&name) {
                    group.offsets.release(producer_id);
                }
            }
        }
        self.carry_out(id).map_err(|e| storage_error(&e))
    }

    /// Writes the markers of a decided transaction. What fails is tried again at the next
    /// tick; until then the transaction's records stay undecided.
    fn carry_out(&mut self, id: &str) -> io::Result<()> {
        let Some(found) = self.transactions.by_id.get_mut(id) else {
            return Ok(());
        };
        let Phase::Decided { commit, epoch } = found.phase else {
            return Ok(());
        };
        let marker = if commit {
            Marker::Commit
        } else {
            Marker::Abort
        };
        while let Some(place) = found.partitions.first() {
            let log = usize::try_from(place.1)
                .ok()
                .and_then(|partition| self.topics.get_mut(&place.0)?.logs.get_mut(partition));
            if let Some(log) = log {
                log.append_marker(found.producer_id, epoch, marker, now_ms())?;
                self.keeper.mark(log.file());
            }
            found.partitions.pop_first();
        }
        self.keeper
            .record(&Entry::TransactionEnded { id: id.to_string() })?;
        found.phase = Phase::Ended { commit };
        Ok(())
    }

    /// Aborts transactions that took too long and finishes those that could not be
    /// finished before. Tells whether any ended.
    pub(crate) fn end_late_transactions(&mut self, now: Instant) -> bool {
        let due: Vec<(String, Phase, Identity, i32)> = self
            .transactions
            .by_id
            .iter()
            .filter(|(_, found)| match found.phase {
                Phase::Ongoing { deadline } => deadline <= now,
                Phase::Decided { .. } => true,
                Phase::Empty | Phase::Ended { .. } => false,
            })
            .map(|(id, found)| {
                let who = Identity {
                    producer_id: found.producer_id,
                    epoch: found.epoch,
                };
                (id.clone(), found.phase, who, found.timeout_ms)
            })
            .collect();
        let mut ended = false;
        for (id, phase, who, timeout_ms) in due {
            let outcome = if let Phase::Ongoing { .. } = phase {
                tracing::info!(transactional_id = %id, "a transaction took too long and is aborted");
                self.end_transaction(&id, false, raised(who).epoch)
                    // The slow producer is fenced, so that it learns what happened.
                    .and_then(|()| self.set_producer(&id, raised(who), timeout_ms).map(|_| ()))
            } else {
                self.carry_out(&id).map_err(|e| storage_error(&e))
            };
            ended |= outcome.is_ok();
        }
        ended
    }

    /// After a start: carries out what was decided, aborts what was open, and fences all
    /// transactional producers of the time before, whose open transactions are lost.
    pub(crate) fn settle_transactions(&mut self, now_ms: i64) -> Result<(), OpenError> {
        let ids: Vec<String> = self.transactions.by_id.keys().cloned().collect();
        for id in &ids {
            // A marker may have been written just before the crash: one per partition.
            if let Some(found) = self.transactions.by_id.get_mut(id) {
                let producer_id = found.producer_id;
                let topics = &self.topics;
                found.partitions.retain(|(topic, partition)| {
                    usize::try_from(*partition)
                        .ok()
                        .and_then(|partition| topics.get(topic)?.logs.get(partition))
                        .is_some_and(|log| log.producers().has_open(producer_id))
                });
            }
            self.carry_out(id)
                .map_err(failed("finish a transaction in", id.as_ref()))?;
        }
        let open = self.open_producers();
        for topic in self.topics.values_mut() {
            for log in &mut topic.logs {
                for (producer_id, epoch) in open.iter().copied() {
                    if log.producers().has_open(producer_id) {
                        let epoch = epoch.saturating_add(1);
                        log.append_marker(producer_id, epoch, Marker::Abort, now_ms)
                            .map_err(failed("abort a transaction in", "a partition".as_ref()))?;
                    }
                }
            }
        }
        for found in self.transactions.by_id.values_mut() {
            found.epoch = found.epoch.saturating_add(1);
            found.phase = Phase::Empty;
            found.partitions.clear();
            found.groups.clear();
        }
        Ok(())
    }
}

fn raised(who: Identity) -> Identity {
    Identity {
        epoch: who.epoch.saturating_add(1),
        ..who
    }
}
