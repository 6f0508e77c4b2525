//! Tokens of the log in memory, from outside of groups.

use millrace_core::intake::io::{CommitOutcome, Committed};
use millrace_core::position::{Partition, Position};

use super::{CommitFault, MemoryLog};
use crate::{StoreError, TokenStore};

/// Reads and writes offsets of groups from outside.
#[derive(Clone, Debug)]
pub struct MemoryTokenStore {
    log: MemoryLog,
}

impl MemoryTokenStore {
    pub(super) fn new(log: MemoryLog) -> Self {
        Self { log }
    }

    fn unavailable(&self) -> Result<(), StoreError> {
        let mut state = self.log.lock();
        if state.failing_reads == 0 {
            return Ok(());
        }
        state.failing_reads -= 1;
        Err(StoreError::Unavailable("a fault of the test".to_owned()))
    }
}

impl TokenStore for MemoryTokenStore {
    async fn fetch(
        &self,
        group: &str,
        partition: &Partition,
    ) -> Result<Option<Committed>, StoreError> {
        self.unavailable()?;
        Ok(self.log.committed(group, partition))
    }

    async fn commit_if_empty(
        &self,
        group: &str,
        offsets: Vec<(Partition, Committed)>,
    ) -> Result<CommitOutcome, StoreError> {
        let mut state = self.log.lock();
        let fault = state.commit_faults.pop_front();
        let group = state.groups.entry(group.to_owned()).or_default();
        if !group.members().is_empty() {
            return Ok(CommitOutcome::NotOwner("the group has members".to_owned()));
        }
        let unknown = || CommitOutcome::Unknown("no answer".to_owned());
        Ok(match fault {
            None | Some(CommitFault::Slow(_)) => {
                group.offsets.extend(offsets);
                CommitOutcome::Done
            }
            Some(CommitFault::Unknown { applied: true }) => {
                group.offsets.extend(offsets);
                unknown()
            }
            Some(CommitFault::Unknown { applied: false } | CommitFault::Held) => unknown(),
            Some(CommitFault::Retriable) => {
                CommitOutcome::Retriable("not the coordinator".to_owned())
            }
            Some(CommitFault::NotOwner) => {
                CommitOutcome::NotOwner("a fault of the test".to_owned())
            }
        })
    }

    async fn log_range(&self, partition: &Partition) -> Result<(Position, Position), StoreError> {
        self.unavailable()?;
        let state = self.log.lock();
        let log = state
            .log(partition)
            .ok_or_else(|| StoreError::Refused(format!("{partition} does not exist")))?;
        Ok((Position::new(log.start), Position::new(log.end)))
    }

    async fn position_at(
        &self,
        partition: &Partition,
        timestamp_ms: i64,
    ) -> Result<Position, StoreError> {
        let (_, end) = self.log_range(partition).await?;
        let state = self.log.lock();
        let found = state.log(partition).and_then(|log| {
            let record = log
                .records
                .iter()
                .find(|record| record.timestamp_ms >= timestamp_ms);
            record.map(|record| record.position)
        });
        Ok(found.unwrap_or(end))
    }
}
