//! Exactly-once, as a reader of what is committed sees it, and as the group's coordinator does.

use std::time::Duration;

use millrace_core::contract::publish::{Transaction, TransactionEnding, TransactionOutcome};
use millrace_core::intake::io::{CommitId, CommitOutcome, Committed};
use millrace_core::position::{Partition, Position};

use super::truth::Source;
use super::{Law, Lawful, Laws, OpenCommit, require};
use crate::world::Who;
use crate::world::output::Place;

/// Transactions have no names of their own; one is open at a time.
const THE_TRANSACTION: CommitId = CommitId(0);

impl Laws {
    /// A process asks for the end of a transaction.
    pub(super) fn transaction_sent(
        &mut self,
        who: Who,
        transaction: &Transaction,
        now: Duration,
    ) -> Lawful {
        let TransactionEnding::Commit { offsets, .. } = &transaction.ending else {
            return Ok(());
        };
        let open = self.processes.entry(who.pod).or_default().open.is_some();
        require!(
            Client,
            !open,
            "a transaction is cut while another one is open"
        );
        let mut covered = Vec::new();
        for offset in offsets {
            let committed = Committed {
                position: offset.position,
                metadata: offset.metadata.clone(),
            };
            covered.push(self.covered(who, &offset.partition, &committed)?.0);
        }
        self.processes.entry(who.pod).or_default().open = Some(OpenCommit {
            id: THE_TRANSACTION,
            sent: now,
            offsets: covered,
        });
        Ok(())
    }

    /// A process is about to hear how its transaction ended.
    pub(super) fn transaction_ended(&mut self, who: Who, outcome: TransactionOutcome) {
        let staged = std::mem::take(&mut self.processes.entry(who.pod).or_default().staged);
        let told = match outcome {
            TransactionOutcome::Committed => CommitOutcome::Done,
            TransactionOutcome::Aborted => CommitOutcome::Retriable(String::new()),
            TransactionOutcome::Unknown => CommitOutcome::Unknown(String::new()),
        };
        self.commit_ended(who, THE_TRANSACTION, &told);
        for event in staged {
            if outcome != TransactionOutcome::Committed {
                self.comes_again(who, event);
                continue;
            }
            let tenure = self.tenures.get_mut(&(who.pod, event.partition));
            if let Some(tenure) = tenure.filter(|t| t.number == event.tenure) {
                tenure.at_output.remove(&event.index);
                tenure.stored.insert(event.index);
                let process = self.processes.entry(who.pod).or_default();
                *process.stored.entry(event.partition).or_default() += 1;
            }
        }
    }

    /// The link is gone, and with it what was not committed; a commit that was asked for is in
    /// doubt.
    pub(super) fn transaction_lost(&mut self, who: Who) {
        self.transaction_ended(who, TransactionOutcome::Unknown);
    }

    /// The coordinator takes offsets into a transaction.
    pub(crate) fn offsets_accepted(
        &self,
        pod: usize,
        partition: usize,
        committed: &Committed,
        owns: bool,
    ) -> Lawful {
        let at = committed.position;
        require!(
            RevokeExclusion,
            owns || self.muted == Some(Law::RevokeExclusion),
            "pod {pod} commits partition {partition} at {at} but does not have it"
        );
        Ok(())
    }

    /// A record becomes visible to readers of what is committed.
    pub(crate) fn committed_record(&mut self, at: u64, place: Place, source: Source) -> Lawful {
        self.truth.committed(at, place, source)
    }

    /// A position becomes visible, right after the records of its transaction.
    pub(crate) fn committed_offset(
        &mut self,
        partition: &Partition,
        before: Option<Position>,
        committed: &Committed,
    ) -> Lawful {
        let at = committed.position;
        require!(
            Watermark,
            before <= Some(at),
            "{partition} goes back from {before:?} to {at}"
        );
        let metadata = Self::readable(partition, committed)?;
        self.finished_below(partition, committed, &metadata)
    }
}
