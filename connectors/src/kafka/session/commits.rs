//! Commits of a group member: what is refused here, what is sent, and what its end means.
//!
//! Invariant: one is open at a time, and it ends by its callback or with its client (R4c).

use millrace_core::contract::publish::GroupMetadata;
use millrace_core::intake::io::{Commit, CommitId, CommitOutcome};
use millrace_core::position::Partition;
use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;

use super::super::{classify, ffi, rebalance};
use super::{OpenCommit, Session};
use crate::Happening;

impl Session<'_> {
    pub(super) fn commit(&mut self, commit: Commit) {
        let id = commit.id;
        let partitions = commit.offsets.iter().map(|(partition, _)| partition);
        let checked = if commit.offsets.is_empty() {
            Err(CommitOutcome::Done)
        } else {
            self.may_commit(partitions)
        };
        if let Err(outcome) = checked {
            self.around.mailbox.push(Happening::Committed {
                commit: id,
                outcome,
            });
            return;
        }
        let list = rebalance::list(commit.offsets.iter().map(|(partition, committed)| {
            (partition, Offset::Offset(committed.position.offset()))
        }));
        for (partition, committed) in &commit.offsets {
            if let Some(mut element) = list.find_partition(partition.topic(), partition.number()) {
                element.set_metadata(&committed.metadata);
            }
        }
        if let Err(error) = ffi::commit(self.client.client(), &list) {
            self.around.mailbox.push(Happening::Committed {
                commit: id,
                outcome: CommitOutcome::Retriable(error.to_string()),
            });
            return;
        }
        drop(list);
        self.open = Some(OpenCommit {
            id,
            partitions: commit
                .offsets
                .into_iter()
                .map(|(partition, _)| partition)
                .collect(),
        });
    }

    /// What can be known about a commit before it is sent (R4b, D-G7).
    fn may_commit<'p>(
        &self,
        mut partitions: impl Iterator<Item = &'p Partition>,
    ) -> Result<(), CommitOutcome> {
        if let Some(open) = &self.open {
            return Err(CommitOutcome::Retriable(format!(
                "commit {} is open",
                open.id.0
            )));
        }
        if self.silent || self.polled.elapsed() > self.around.silence_max {
            return Err(CommitOutcome::NotOwner(
                "the client was not polled for most of max.poll.interval.ms".to_owned(),
            ));
        }
        if self.client.assignment_lost() {
            return Err(CommitOutcome::NotOwner("the assignment is lost".to_owned()));
        }
        let group = self.client.context().group();
        let gone = partitions.find(|partition| {
            let released = group
                .revoking
                .as_ref()
                .is_some_and(|revoking| revoking.released.contains(*partition));
            released || !group.granted.contains(*partition)
        });
        drop(group);
        if let Some(partition) = gone {
            return Err(CommitOutcome::NotOwner(format!(
                "{partition} is not ours any more"
            )));
        }
        // librdkafka stamps generation and member when it sends. Without a member id that is
        // the stamp of an outsider, which brokers accept once the group is empty.
        let now = ffi::identity(self.client.client());
        let (Some(now), Some(told)) = (now, &self.member) else {
            return Err(CommitOutcome::NotOwner(
                "not a member of the group".to_owned(),
            ));
        };
        if now.generation < 0 || now.member != told.member {
            return Err(CommitOutcome::NotOwner(
                "the membership has changed".to_owned(),
            ));
        }
        Ok(())
    }

    /// Who we are, for a transaction that commits these partitions (R4b). Nothing is polled
    /// between the look at what is ours and the reading, so both are of one generation.
    pub(super) fn read_group_metadata(&self, commit: CommitId, partitions: &[Partition]) {
        let read = match self.may_commit(partitions.iter()) {
            Err(
                CommitOutcome::Retriable(message)
                | CommitOutcome::NotOwner(message)
                | CommitOutcome::Unknown(message),
            ) => Err(message),
            Err(CommitOutcome::Done) | Ok(()) => self.group_metadata(),
        };
        self.around
            .mailbox
            .push(Happening::GroupMetadata { commit, read });
    }

    fn group_metadata(&self) -> Result<GroupMetadata, String> {
        let read = ffi::group_metadata(self.client.client()).map_err(|error| error.to_string())?;
        let (identity, bytes) = read.ok_or("not a member of the group")?;
        if identity.generation < 0 || identity.member.is_empty() {
            return Err("not a member of the group".to_owned());
        }
        GroupMetadata::new(bytes.into()).map_err(|error| error.to_string())
    }

    pub(super) fn committed(&mut self, result: Option<RDKafkaErrorCode>, entries: &[ffi::Entry]) {
        let code = error(result, entries);
        let Some(open) = self.open.take() else {
            return;
        };
        if let Some(code) = code.filter(|code| classify::misconfigured(*code)) {
            self.report(format!("commits are refused: {code}"));
        }
        self.around.mailbox.push(Happening::Committed {
            commit: open.id,
            outcome: classify::commit_outcome(code),
        });
    }
}

/// The error of a commit as a whole, or of one of its partitions.
pub(super) fn error(
    result: Option<RDKafkaErrorCode>,
    entries: &[ffi::Entry],
) -> Option<RDKafkaErrorCode> {
    result.or_else(|| entries.iter().find_map(|entry| entry.error))
}
