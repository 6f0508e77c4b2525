//! A member of a group of the log in memory.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_core::contract::publish::GroupMetadata;
use millrace_core::event::{EventsBuilder, Timestamp, TimestampKind};
use millrace_core::intake::io::{Commit, CommitId, CommitOutcome, Fetched, StartAt, TokensRead};
use millrace_core::limits::FETCH_RECORDS_MAX;
use millrace_core::position::{Partition, Position};

use super::{CommitFault, MemberId, MemoryLog, State, group};
use crate::mailbox::{Mailbox, Wish};
use crate::{Happening, Source};

#[derive(Clone, Copy, Debug)]
struct Reading {
    next: Position,
    /// Out of range was told; a seek ends it.
    broken: bool,
}

/// Reads the log in memory as a member of a group.
#[derive(Debug)]
pub struct MemorySource {
    log: MemoryLog,
    group: String,
    registry: String,
    topics: Vec<String>,
    mailbox: Arc<Mailbox>,
    readings: HashMap<Partition, Reading>,
    closed: bool,
}

impl MemorySource {
    pub(super) fn join(log: MemoryLog, group: &str, registry: &str, topics: &[&str]) -> Self {
        let source = Self {
            log,
            group: group.to_owned(),
            registry: registry.to_owned(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            mailbox: Arc::default(),
            readings: HashMap::new(),
            closed: false,
        };
        source.enter(&mut source.log.lock());
        source
    }

    /// Its present name in the group; `None` after it left.
    pub fn member(&self) -> Option<MemberId> {
        let state = self.log.lock();
        state.groups.get(&self.group)?.member_of(&self.mailbox)
    }

    fn enter(&self, state: &mut State) {
        state.members += 1;
        let id = MemberId(state.members);
        let members = state.groups.entry(self.group.clone()).or_default();
        members.add(id, Arc::clone(&self.mailbox), self.topics.clone());
        group::rebalance(state);
    }

    /// Leaves the group; the commits that were still open.
    fn leave(&mut self) -> Vec<millrace_core::intake::io::CommitId> {
        self.readings.clear();
        let mut state = self.log.lock();
        let Some(members) = state.groups.get_mut(&self.group) else {
            return Vec::new();
        };
        let Some(id) = members.member_of(&self.mailbox) else {
            return Vec::new();
        };
        let open = members.remove(id);
        group::rebalance(&mut state);
        open
    }

    /// Copies what there is to read. Whether it did anything.
    fn pump(&mut self) -> bool {
        let state = self.log.lock();
        let members = state.groups.get(&self.group);
        let id = members.and_then(|members| members.member_of(&self.mailbox));
        self.readings.retain(|partition, _| {
            members
                .zip(id)
                .is_some_and(|(members, id)| members.owns(id, partition))
        });
        let mut did = false;
        for (partition, reading) in &mut self.readings {
            let wishes = self.mailbox.wishes(std::iter::once(partition));
            let Some(log) = state.log(partition) else {
                continue;
            };
            if reading.broken || wishes != [Wish::Read] {
                continue;
            }
            let next = reading.next.offset();
            if next < log.start || next > log.end {
                reading.broken = true;
                if let Some(tenure) = self.mailbox.tenure(partition) {
                    let happening = Happening::OutOfRange {
                        partition: partition.clone(),
                        log_start: Position::new(log.start),
                        log_end: Position::new(log.end),
                    };
                    self.mailbox
                        .push_behind(partition.clone(), tenure, happening);
                    did = true;
                }
                continue;
            }
            let mut events = EventsBuilder::default();
            let from = log
                .records
                .partition_point(|record| record.position < reading.next);
            for record in log.records[from..].iter().take(FETCH_RECORDS_MAX) {
                reading.next = record.position.next();
                let at = Timestamp {
                    ms: record.timestamp_ms,
                    kind: TimestampKind::Create,
                };
                let headers = record.headers.iter();
                events.push(
                    record.position,
                    at,
                    record.key.as_deref(),
                    record.value.as_deref(),
                    headers.map(|(name, value)| (&name[..], value.as_deref())),
                );
            }
            if !events.is_empty() {
                did = true;
                self.mailbox.push_fetched(vec![Fetched {
                    partition: partition.clone(),
                    leader_epoch: None,
                    events: events.finish(),
                }]);
            }
        }
        did
    }

    fn tokens(&self, partition: &Partition) -> Result<TokensRead, String> {
        let mut state = self.log.lock();
        if state.failing_reads > 0 {
            state.failing_reads -= 1;
            return Err("the broker did not answer".to_owned());
        }
        let log = state
            .log(partition)
            .ok_or_else(|| format!("{partition} does not exist"))?;
        let committed = |group: &str, partition: &Partition| {
            let group = state.groups.get(group)?;
            group.offsets.get(partition).cloned()
        };
        let zero = Partition::new(partition.shared_topic(), 0);
        Ok(TokensRead {
            own: committed(&self.group, partition),
            registry: committed(&self.registry, partition),
            seeding: committed(&self.registry, &zero),
            log_start: Position::new(log.start),
            log_end: Position::new(log.end),
            topic_identity: None,
        })
    }
}

impl Source for MemorySource {
    async fn next(&mut self) -> Happening {
        loop {
            if let Some(happening) = self.mailbox.take() {
                return happening;
            }
            if !self.pump() {
                self.mailbox.filled().await;
            }
        }
    }

    fn read_tokens(&mut self, partition: Partition) {
        let Some(tenure) = self.mailbox.tenure(&partition) else {
            return;
        };
        let read = self.tokens(&partition);
        let happening = Happening::TokensRead {
            partition: partition.clone(),
            read,
        };
        self.mailbox.push_about(&partition, tenure, happening);
    }

    // Its logs are never cut at their end, so an epoch says nothing more.
    fn assign(&mut self, starts: Vec<StartAt>) {
        for start in starts {
            let reading = Reading {
                next: start.position,
                broken: false,
            };
            self.readings.insert(start.partition, reading);
        }
        self.mailbox.wake();
    }

    fn unassign(&mut self, partitions: Vec<Partition>) {
        let mut state = self.log.lock();
        if let Some(members) = state.groups.get_mut(&self.group) {
            if let Some(id) = members.member_of(&self.mailbox) {
                members.let_go(id, &partitions);
            }
            group::rebalance(&mut state);
        }
    }

    fn seek(&mut self, partition: Partition, position: Position) {
        self.mailbox.seek(partition.clone());
        self.mailbox.sought(&partition);
        if let Some(reading) = self.readings.get_mut(&partition) {
            *reading = Reading {
                next: position,
                broken: false,
            };
        }
        self.mailbox.wake();
    }

    fn pause(&mut self, partition: Partition) {
        self.mailbox.pause(partition);
    }

    fn resume(&mut self, partition: Partition) {
        self.mailbox.resume(&partition);
    }

    fn commit(&mut self, commit: Commit) {
        let id = commit.id;
        let mut state = self.log.lock();
        let fault = state.commit_faults.pop_front();
        let outcome = match state.groups.get_mut(&self.group) {
            Some(members) => match members.member_of(&self.mailbox) {
                Some(member) => members.commit(member, commit, fault.as_ref()),
                None => Some(CommitOutcome::NotOwner("unknown member".to_owned())),
            },
            None => Some(CommitOutcome::NotOwner("unknown group".to_owned())),
        };
        drop(state);
        let Some(outcome) = outcome else {
            return;
        };
        let happening = Happening::Committed {
            commit: id,
            outcome,
        };
        let mailbox = Arc::clone(&self.mailbox);
        match fault {
            Some(CommitFault::Slow(delay)) => {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    mailbox.push(happening);
                });
            }
            _ => mailbox.push(happening),
        }
    }

    fn read_group_metadata(&mut self, commit: CommitId, partitions: Vec<Partition>) {
        let state = self.log.lock();
        let read = state
            .groups
            .get(&self.group)
            .and_then(|members| Some((members, members.member_of(&self.mailbox)?)))
            .ok_or_else(|| "not a member".to_owned())
            .and_then(|(members, id)| members.metadata(id, &partitions))
            .and_then(|text| {
                GroupMetadata::new(text.into_bytes().into()).map_err(|error| error.to_string())
            });
        drop(state);
        self.mailbox.push(Happening::GroupMetadata { commit, read });
    }

    fn rejoin(&mut self) {
        self.mailbox.rejoin();
        for commit in self.leave() {
            self.mailbox.push(Happening::Committed {
                commit,
                outcome: CommitOutcome::Unknown("the client was destroyed first".to_owned()),
            });
        }
        self.mailbox.rejoined();
        self.enter(&mut self.log.lock());
    }

    async fn close(&mut self) {
        self.closed = true;
        self.leave();
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        if !self.closed {
            self.leave();
        }
    }
}
