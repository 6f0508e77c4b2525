//! Exactly-once: the brokers' side of transactions, and the calls of a transactional producer.
//!
//! As Kafka does: of the producers of one pod only the last one may write; what it appends and
//! the offsets it sends are seen together or never; offsets are checked by member and generation
//! when they arrive, not when the transaction ends; and who reads a position waits for it.

use std::time::Duration;

use bytes::{Buf, Bytes};
use millrace_core::contract::publish::{GroupMetadata, TransactionOffset};
use millrace_core::intake::io::{CommitId, Committed, Input};
use millrace_core::position::Partition;
use millrace_core::store::TransactionEnded;

use super::World;
use super::group::MemberId;
use super::happening::{ClientId, Happening, Who};
use super::output::Place;
use crate::laws::{Lawful, Source};
use crate::scenario::TRANSACTION_TIMEOUT;

/// What the brokers know about the producers of one pod.
#[derive(Debug, Default)]
pub(crate) struct Transactional {
    /// The producer that may write; 0: none.
    epoch: u64,
    /// The last transaction that has ended.
    ended: u64,
    open: Option<OpenTransaction>,
}

#[derive(Debug)]
struct OpenTransaction {
    name: u64,
    /// With their places in the order of the log.
    records: Vec<(u64, Place, Source)>,
    offsets: Vec<(usize, Committed)>,
}

/// A transaction that a pod's output is ending.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(super) pod: usize,
    /// The output process.
    pub(super) life: u32,
    pub(super) epoch: u64,
    pub(super) name: u64,
}

impl World {
    /// A pod's output has a new producer: older ones are fenced, and what they left is aborted.
    pub(crate) fn init_producer(&mut self, pod: usize) {
        let epoch = self.name();
        self.pods[pod].output.begin_as(epoch);
        self.abort_open(pod);
        self.transactional[pod].epoch = epoch;
    }

    fn abort_open(&mut self, pod: usize) {
        let it = &mut self.transactional[pod];
        if let Some(open) = it.open.take() {
            it.ended = it.ended.max(open.name);
            self.note(|| format!("the transaction {} of pod {pod} is aborted", open.name));
        }
    }

    /// The open transaction `name`, begun if it is new. `None`: its producer is fenced, or it is
    /// over.
    fn transaction_of(
        &mut self,
        pod: usize,
        epoch: u64,
        name: u64,
    ) -> Option<&mut OpenTransaction> {
        let it = &mut self.transactional[pod];
        if it.epoch != epoch || name <= it.ended {
            return None;
        }
        if it.open.is_none() {
            it.open = Some(OpenTransaction {
                name,
                records: Vec::new(),
                offsets: Vec::new(),
            });
            self.after(
                TRANSACTION_TIMEOUT,
                Happening::TransactionExpires(pod, name),
            );
        }
        let open = self.transactional[pod].open.as_mut();
        open.filter(|open| open.name == name)
    }

    /// Records arrive within a transaction.
    pub(crate) fn append_in_transaction(
        &mut self,
        pod: usize,
        epoch: u64,
        name: u64,
        place: Place,
        sources: Vec<Source>,
    ) {
        for source in sources {
            let at = self.name();
            if let Some(open) = self.transaction_of(pod, epoch, name) {
                open.records.push((at, place, source));
            }
        }
    }

    /// Nobody has ended a transaction for too long.
    pub(crate) fn transaction_expires(&mut self, pod: usize, name: u64) {
        let open = self.transactional[pod].open.as_ref();
        if open.is_some_and(|open| open.name == name) {
            self.abort_open(pod);
            self.transactional[pod].epoch = 0;
        }
    }

    /// Whether an open transaction holds a position of this partition.
    pub(crate) fn is_unstable(&self, partition: usize) -> bool {
        let open = self.transactional.iter().filter_map(|it| it.open.as_ref());
        open.flat_map(|open| &open.offsets)
            .any(|(held, _)| *held == partition)
    }

    /// `Effect::ReadGroupMetadata`.
    pub(crate) fn read_group_metadata(
        &mut self,
        who: Who,
        commit: CommitId,
        partitions: Vec<Partition>,
    ) {
        let after = self.random.latency(1, 300);
        let Some(process) = self.process(who) else {
            return;
        };
        let client = process.client.id;
        self.after(
            after,
            Happening::MetadataRead(who, client, commit, partitions),
        );
    }

    pub(crate) fn metadata_read(
        &mut self,
        who: Who,
        client: ClientId,
        commit: CommitId,
        partitions: &[Partition],
    ) -> Lawful {
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        if it.destroying {
            return Ok(());
        }
        let read = it.identity(partitions).map(|(member, generation)| {
            let mut bytes = member.to_le_bytes().to_vec();
            bytes.extend_from_slice(&generation.to_le_bytes());
            GroupMetadata::new(bytes.into()).expect("it is not empty")
        });
        let read = read.ok_or_else(|| "not a member, or not ours".to_owned());
        self.feed(who, Input::GroupMetadata { commit, read })
    }

    /// `Effect::Commit` of the store.
    pub(crate) fn commit_transaction(
        &mut self,
        pod: usize,
        group: Bytes,
        offsets: Vec<TransactionOffset>,
    ) {
        let slow = self.random.permille(self.scenario.faults.commit_slow) && !self.quiet;
        let after = if slow {
            self.random.ms(100, 12_000)
        } else {
            self.random.latency(5, 300)
        };
        let ending = self.ending(pod);
        let offsets = offsets
            .into_iter()
            .map(|offset| {
                let committed = Committed {
                    position: offset.position,
                    metadata: offset.metadata,
                };
                (Self::index_of(&offset.partition), committed)
            })
            .collect();
        self.after(after, Happening::OffsetsArrive(ending, group, offsets));
    }

    fn ending(&mut self, pod: usize) -> Ending {
        let name = self.name();
        let output = &mut self.pods[pod].output;
        let (life, epoch, begun) = output.end();
        Ending {
            pod,
            life,
            epoch,
            name: begun.unwrap_or(name),
        }
    }

    /// Offsets reach the group's coordinator.
    pub(crate) fn offsets_arrive(
        &mut self,
        ending: Ending,
        mut group: Bytes,
        offsets: Vec<(usize, Committed)>,
    ) -> Lawful {
        let faults = self.scenario.faults;
        let quiet = self.quiet;
        let refused = !quiet
            && self
                .random
                .permille(faults.commit_retriable + faults.commit_fenced);
        let answered = self.random.latency(10, 2_000);
        if self.transactional[ending.pod].epoch != ending.epoch {
            self.transaction_told(ending, answered, TransactionEnded::Unknown);
            return Ok(());
        }
        // Who says nothing about a generation is not asked about one.
        let member: Option<MemberId> = (group.len() == 12).then(|| group.get_u64_le());
        let known = match member {
            None => true,
            Some(member) => {
                self.group.is_member(member) && group.get_i32_le() == self.group.generation
            }
        };
        if !known || refused {
            self.note(|| format!("offsets of pod {} are refused", ending.pod));
            self.abort_arrive(ending);
            return Ok(());
        }
        for (partition, committed) in &offsets {
            let owner = self.group.owner(*partition);
            let owns = match member {
                Some(_) => owner == member,
                None => owner
                    .and_then(|owner| self.group.pod_of(owner))
                    .is_some_and(|who| who.pod == ending.pod),
            };
            self.laws
                .offsets_accepted(ending.pod, *partition, committed, owns)?;
        }
        if let Some(open) = self.transaction_of(ending.pod, ending.epoch, ending.name) {
            open.offsets.extend(offsets);
        }
        self.after(answered, Happening::EndSend(ending));
        Ok(())
    }

    /// The producer sends the word that ends its transaction.
    pub(crate) fn end_send(&mut self, ending: Ending) {
        if self.pods[ending.pod].output.life != ending.life {
            return;
        }
        let unknown = !self.quiet && self.random.permille(self.scenario.faults.commit_unknown);
        let arrives = self.random.latency(5, 300);
        if !unknown {
            self.after(arrives, Happening::EndArrive(ending, true));
            return;
        }
        // The word or its answer is lost.
        if self.random.permille(500) {
            self.after(arrives, Happening::EndArrive(ending.clone(), false));
        }
        let told = self.random.ms(100, 5_000);
        self.transaction_told(ending, told, TransactionEnded::Unknown);
    }

    /// The brokers commit: records and offsets become visible together.
    pub(crate) fn end_arrive(&mut self, ending: Ending, answers: bool) -> Lawful {
        let answered = self.random.latency(5, 500);
        let it = &mut self.transactional[ending.pod];
        let open = it
            .open
            .take_if(|open| it.epoch == ending.epoch && open.name == ending.name);
        let Some(open) = open else {
            if answers {
                self.transaction_told(ending, answered, TransactionEnded::Unknown);
            }
            return Ok(());
        };
        it.ended = it.ended.max(open.name);
        self.note(|| format!("the brokers commit a transaction of pod {}", ending.pod));
        for (at, place, source) in open.records {
            self.laws.committed_record(at, place, source)?;
        }
        for (partition, committed) in open.offsets {
            let before = self.group.committed_of(partition).map(|c| c.position);
            self.laws
                .committed_offset(&self.logs[partition].partition, before, &committed)?;
            self.group.store(partition, committed);
        }
        if answers {
            self.transaction_told(ending, answered, TransactionEnded::Committed);
        }
        Ok(())
    }

    /// `Effect::Abort` of the store: what is in the producer is purged.
    pub(crate) fn abort_transaction(&mut self, pod: usize) {
        let ending = self.ending(pod);
        let after = self.random.latency(5, 300);
        self.after(after, Happening::AbortArrive(ending));
    }

    pub(crate) fn abort_arrive(&mut self, ending: Ending) {
        let answered = self.random.latency(5, 500);
        let it = &mut self.transactional[ending.pod];
        if it.epoch != ending.epoch {
            self.transaction_told(ending, answered, TransactionEnded::Unknown);
            return;
        }
        it.ended = it.ended.max(ending.name);
        self.abort_open(ending.pod);
        self.transaction_told(ending, answered, TransactionEnded::Aborted);
    }

    fn transaction_told(&mut self, ending: Ending, after: Duration, ended: TransactionEnded) {
        self.after(after, Happening::TransactionTold(ending, ended));
    }

    pub(crate) fn transaction_ended(&mut self, ending: &Ending, ended: TransactionEnded) -> Lawful {
        let output = &mut self.pods[ending.pod].output;
        if output.life != ending.life || !output.ends(ending.epoch) {
            return Ok(());
        }
        output.store_mut().transaction_ended(ended);
        self.pump(ending.pod)
    }
}
