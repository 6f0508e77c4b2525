//! Laws about commits, revocation and doubt.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_core::contract::commit::{Metadata, UnknownKeys};
use millrace_core::intake::io::{Commit, CommitId, CommitOutcome, Committed};
use millrace_core::limits::COMMIT_METADATA_BYTES_MAX;
use millrace_core::position::{Partition, Position};
use millrace_core::token::Token;

use super::{Covered, Law, Lawful, Laws, OpenCommit, Tenure, index_of, require};
use crate::scenario::LEASE;
use crate::world::Who;

impl Laws {
    /// A process hands a commit to its client.
    pub(crate) fn commit_cut(&mut self, who: Who, commit: &Commit, now: Duration) -> Lawful {
        let open = self.processes.entry(who.pod).or_default().open.is_some();
        require!(Client, !open, "a commit is cut while another one is open");
        let mut offsets = Vec::new();
        for (partition, committed) in &commit.offsets {
            let (covered, metadata) = self.covered(who, partition, committed)?;
            self.finished_below(partition, committed, &metadata)?;
            offsets.push(covered);
        }
        self.processes.entry(who.pod).or_default().open = Some(OpenCommit {
            id: commit.id,
            sent: now,
            offsets,
        });
        Ok(())
    }

    /// A process may commit this, and says in it what it must.
    pub(super) fn covered(
        &self,
        who: Who,
        partition: &Partition,
        committed: &Committed,
    ) -> Lawful<(Covered, Metadata)> {
        let index = index_of(partition);
        let tenure = self
            .tenures
            .get(&(who.pod, index))
            .filter(|t| t.started.is_some());
        let Some(tenure) = tenure else {
            return Err(
                Law::RevokeExclusion.broken(format!("{partition} is committed but not held"))
            );
        };
        require!(
            Doubt,
            !tenure.doubt,
            "{partition} is committed although it is in doubt"
        );
        let (at, known) = (committed.position, tenure.committed);
        require!(
            Watermark,
            at >= known,
            "{partition} is committed at {at} after {known}"
        );
        let metadata = Self::readable(partition, committed)?;
        self.names_parked(tenure, &metadata)?;
        let covered = Covered {
            partition: index,
            tenure: tenure.number,
            position: at,
            crash: metadata.ledger.crash,
        };
        Ok((covered, metadata))
    }

    /// The next owner learns of every parked lane.
    fn names_parked(&self, tenure: &Tenure, metadata: &Metadata) -> Lawful {
        let named: BTreeSet<u32> = metadata
            .ledger
            .parked
            .iter()
            .filter_map(|parked| self.lanes.get(&parked.lane).copied())
            .collect();
        require!(
            Parked,
            !self.parks || named.is_superset(&tenure.parked),
            "of the parked lanes {:?} the ledger names {named:?}",
            tenure.parked
        );
        Ok(())
    }

    /// The metadata of a commit is short, readable and canonical, and keeps the token.
    pub(super) fn readable(partition: &Partition, committed: &Committed) -> Lawful<Metadata> {
        let length = committed.metadata.len();
        require!(
            Metadata,
            length <= COMMIT_METADATA_BYTES_MAX,
            "{partition}: {length} bytes of metadata"
        );
        let metadata =
            Metadata::decode(&committed.metadata, UnknownKeys::Refuse).map_err(|error| {
                Law::Metadata.broken(format!("{partition}: {error}: {}", committed.metadata))
            })?;
        let token = Token::Live {
            epoch: 1,
            from: Position::START,
            peer: None,
        };
        require!(
            Metadata,
            metadata.token == token,
            "{partition}: the token became {:?}",
            metadata.token
        );
        require!(
            Metadata,
            metadata.encode() == committed.metadata,
            "{partition}: the metadata is not canonical"
        );
        Ok(metadata)
    }

    /// Nothing below a commit, or in its ledger, is unfinished.
    pub(super) fn finished_below(
        &mut self,
        partition: &Partition,
        committed: &Committed,
        metadata: &Metadata,
    ) -> Lawful {
        let index = index_of(partition);
        let at = committed.position;
        if let Some(open) = self.truth.unfinished_below(index, at) {
            return Err(Law::Watermark.broken(format!(
                "{partition} is committed at {at}, {open} is not finished"
            )));
        }
        for (byte, bits) in (0u64..).zip(&metadata.ledger.terminal) {
            for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                let position = at.plus(byte * 8 + bit);
                let finished = self.truth.is_finished_at(index, position);
                require!(
                    Watermark,
                    finished == Some(true),
                    "{partition}: the ledger says that {position} is finished"
                );
            }
        }
        Ok(())
    }

    /// A commit's end is about to be told.
    pub(super) fn commit_ended(&mut self, who: Who, id: CommitId, outcome: &CommitOutcome) {
        let process = self.processes.entry(who.pod).or_default();
        let Some(open) = process.open.take_if(|open| open.id == id) else {
            return;
        };
        for covered in open.offsets {
            let Some(tenure) = self
                .tenures
                .get_mut(&(who.pod, covered.partition))
                .filter(|t| t.number == covered.tenure)
            else {
                continue;
            };
            match outcome {
                CommitOutcome::Done => {
                    tenure.committed = covered.position;
                    tenure.crash = covered.crash.map(|crash| (covered.position, crash));
                    tenure.sent = tenure.sent.max(Some(open.sent));
                    if !tenure.revoking {
                        let until = self
                            .leased_until
                            .entry((who.pod, covered.partition))
                            .or_default();
                        *until = (*until).max(open.sent + LEASE);
                    }
                }
                CommitOutcome::Unknown(_) => tenure.doubt = true,
                CommitOutcome::Retriable(_) | CommitOutcome::NotOwner(_) => {}
            }
        }
    }

    /// The broker stores a commit.
    pub(crate) fn commit_applied(
        &self,
        who: Who,
        partition: usize,
        before: Option<Position>,
        committed: &Committed,
        owner: bool,
    ) -> Lawful {
        let at = committed.position;
        require!(
            RevokeExclusion,
            owner,
            "pod {} commits partition {partition} at {at} but does not have it",
            who.pod
        );
        require!(
            Watermark,
            before <= Some(at),
            "partition {partition} goes back from {before:?} to {at}"
        );
        Ok(())
    }

    /// A process lets partitions go.
    pub(crate) fn unassigned(&mut self, who: Who, partitions: &[Partition]) -> Lawful {
        for partition in partitions {
            let index = index_of(partition);
            let Some(tenure) = self.tenures.remove(&(who.pod, index)) else {
                continue;
            };
            let process = self.processes.entry(who.pod).or_default();
            let open = process.open.as_ref().is_some_and(|open| {
                open.offsets
                    .iter()
                    .any(|covered| covered.partition == index && covered.tenure == tenure.number)
            });
            require!(
                RevokeExclusion,
                !open,
                "{partition} is let go while a commit of it is open"
            );
            require!(Doubt, !tenure.doubt, "{partition} is let go in doubt");
        }
        Ok(())
    }

    /// The client is to be destroyed: nothing is held any more.
    pub(crate) fn rejoins(&mut self, who: Who) {
        self.tenures.retain(|(pod, _), _| *pod != who.pod);
        let process = self.processes.entry(who.pod).or_default();
        process.open = None;
        process.staged.clear();
    }
}
