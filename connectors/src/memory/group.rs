//! Groups of the log in memory: who owns what, and who may commit.
//!
//! Cooperative: a rebalance asks owners for what moves, and gives it to the next owner only when
//! they have let go. One rebalance at a time per member.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use millrace_core::intake::io::{Commit, CommitId, CommitOutcome, Committed, Membership};
use millrace_core::position::Partition;

use super::{CommitFault, MemberId, State};
use crate::Happening;
use crate::mailbox::Mailbox;

#[derive(Debug, Default)]
struct Member {
    /// `None`: a ghost.
    mailbox: Option<Arc<Mailbox>>,
    topics: Vec<String>,
    owned: BTreeSet<Partition>,
    /// Asked back and not let go of yet.
    revoking: BTreeSet<Partition>,
    /// The generation that the driver was told.
    generation: i32,
    held: Vec<Commit>,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) offsets: HashMap<Partition, Committed>,
    generation: i32,
    members: BTreeMap<MemberId, Member>,
}

impl Group {
    pub(super) fn members(&self) -> Vec<MemberId> {
        self.members.keys().copied().collect()
    }

    pub(super) fn wake(&self) {
        for member in self.members.values() {
            if let Some(mailbox) = &member.mailbox {
                mailbox.wake();
            }
        }
    }

    pub(super) fn add(&mut self, id: MemberId, mailbox: Arc<Mailbox>, topics: Vec<String>) {
        self.members.insert(
            id,
            Member {
                mailbox: Some(mailbox),
                topics,
                ..Member::default()
            },
        );
    }

    pub(super) fn add_ghost(&mut self, id: MemberId) {
        let topics = self
            .members
            .values()
            .flat_map(|member| member.topics.iter().cloned())
            .collect::<BTreeSet<_>>();
        self.members.insert(
            id,
            Member {
                topics: topics.into_iter().collect(),
                ..Member::default()
            },
        );
    }

    /// A member leaves, or its client is destroyed: commits of it that were held are lost.
    pub(super) fn remove(&mut self, id: MemberId) -> Vec<CommitId> {
        self.members
            .remove(&id)
            .map(|member| member.held.iter().map(|commit| commit.id).collect())
            .unwrap_or_default()
    }

    pub(super) fn evict(&mut self, id: MemberId, again: MemberId) {
        let Some(mut member) = self.members.remove(&id) else {
            return;
        };
        let Some(mailbox) = &member.mailbox else {
            return;
        };
        let lost: Vec<Partition> = std::mem::take(&mut member.owned).into_iter().collect();
        mailbox.drop_lanes(&lost);
        if !lost.is_empty() {
            mailbox.push(Happening::Lost(lost));
        }
        // A held commit stays open: its client lives on (R4c).
        member.revoking.clear();
        member.generation = 0;
        self.members.insert(again, member);
    }

    /// The present name of the member behind this mailbox; it changes when it is evicted.
    pub(super) fn member_of(&self, mailbox: &Arc<Mailbox>) -> Option<MemberId> {
        self.members
            .iter()
            .find(|(_, member)| {
                let of = member.mailbox.as_ref();
                of.is_some_and(|of| Arc::ptr_eq(of, mailbox))
            })
            .map(|(id, _)| *id)
    }

    pub(super) fn owns(&self, id: MemberId, partition: &Partition) -> bool {
        self.members
            .get(&id)
            .is_some_and(|member| member.owned.contains(partition))
    }

    pub(super) fn let_go(&mut self, id: MemberId, partitions: &[Partition]) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        for partition in partitions {
            if member.revoking.remove(partition) {
                member.owned.remove(partition);
            }
        }
        if let Some(mailbox) = &member.mailbox {
            let gone: Vec<Partition> = partitions
                .iter()
                .filter(|partition| !member.owned.contains(*partition))
                .cloned()
                .collect();
            mailbox.drop_lanes(&gone);
        }
    }

    /// Who a member is, if all of this is its own (R4b).
    pub(super) fn metadata(
        &self,
        id: MemberId,
        partitions: &[Partition],
    ) -> Result<String, String> {
        let member = self.members.get(&id).ok_or("unknown member")?;
        if !partitions.iter().all(|p| member.owned.contains(p)) {
            return Err("not ours any more".to_owned());
        }
        Ok(format!("{}:{}", member.generation, id.0))
    }

    /// A commit of a member; `None`: its end comes later.
    pub(super) fn commit(
        &mut self,
        id: MemberId,
        commit: Commit,
        fault: Option<&CommitFault>,
    ) -> Option<CommitOutcome> {
        let Some(member) = self.members.get_mut(&id) else {
            return Some(CommitOutcome::NotOwner("unknown member".to_owned()));
        };
        if !commit
            .offsets
            .iter()
            .all(|(partition, _)| member.owned.contains(partition))
        {
            return Some(CommitOutcome::NotOwner("not ours any more".to_owned()));
        }
        match fault {
            None | Some(CommitFault::Slow(_)) => {
                self.offsets.extend(commit.offsets);
                Some(CommitOutcome::Done)
            }
            Some(CommitFault::Retriable) => {
                Some(CommitOutcome::Retriable("not the coordinator".to_owned()))
            }
            Some(CommitFault::NotOwner) => {
                Some(CommitOutcome::NotOwner("illegal generation".to_owned()))
            }
            Some(CommitFault::Unknown { applied }) => {
                if *applied {
                    self.offsets.extend(commit.offsets);
                }
                Some(CommitOutcome::Unknown("no answer".to_owned()))
            }
            Some(CommitFault::Held) => {
                member.held.push(commit);
                None
            }
        }
    }

    pub(super) fn release_commits(&mut self, applied: bool) {
        for member in self.members.values_mut() {
            for commit in std::mem::take(&mut member.held) {
                let outcome = if applied {
                    self.offsets.extend(commit.offsets);
                    CommitOutcome::Done
                } else {
                    CommitOutcome::Retriable("not the coordinator".to_owned())
                };
                if let Some(mailbox) = &member.mailbox {
                    mailbox.push(Happening::Committed {
                        commit: commit.id,
                        outcome,
                    });
                }
            }
        }
    }

    /// Who should own what: everybody keeps what it has, up to its share.
    fn target(&self, partitions: &[Partition]) -> BTreeMap<Partition, MemberId> {
        let mut target = BTreeMap::new();
        let count = self.members.len();
        if count == 0 {
            return target;
        }
        let mut shares: BTreeMap<MemberId, usize> = BTreeMap::new();
        for (index, id) in self.members.keys().enumerate() {
            let share = partitions.len() / count + usize::from(index < partitions.len() % count);
            shares.insert(*id, share);
        }
        for (id, member) in &self.members {
            for partition in member.owned.iter().filter(|p| partitions.contains(p)) {
                let share = shares.get_mut(id).expect("every member has a share");
                if *share > 0 {
                    *share -= 1;
                    target.insert(partition.clone(), *id);
                }
            }
        }
        for partition in partitions {
            if target.contains_key(partition) {
                continue;
            }
            if let Some((id, share)) = shares.iter_mut().find(|(_, share)| **share > 0) {
                *share -= 1;
                target.insert(partition.clone(), *id);
            }
        }
        target
    }

    fn rebalance(&mut self, partitions: &[Partition]) {
        let target = self.target(partitions);
        let mut changed = false;
        for (id, member) in &mut self.members {
            let moving: Vec<Partition> = member
                .owned
                .iter()
                .filter(|partition| target.get(*partition) != Some(id))
                .filter(|partition| !member.revoking.contains(*partition))
                .cloned()
                .collect();
            if moving.is_empty() {
                continue;
            }
            changed = true;
            match &member.mailbox {
                None => member.owned.retain(|partition| !moving.contains(partition)),
                Some(mailbox) => {
                    member.revoking.extend(moving.iter().cloned());
                    mailbox.push(Happening::Revoking(moving));
                }
            }
        }
        let owned: BTreeSet<Partition> = self
            .members
            .values()
            .flat_map(|member| member.owned.iter().cloned())
            .collect();
        let mut given: BTreeMap<MemberId, Vec<Partition>> = BTreeMap::new();
        for (partition, id) in target {
            if !owned.contains(&partition) {
                given.entry(id).or_default().push(partition);
            }
        }
        if changed || !given.is_empty() {
            self.generation += 1;
        }
        for (id, member) in &mut self.members {
            let partitions = given.remove(id).unwrap_or_default();
            if member.generation == self.generation && partitions.is_empty() {
                continue;
            }
            member.generation = self.generation;
            member.owned.extend(partitions.iter().cloned());
            let Some(mailbox) = &member.mailbox else {
                continue;
            };
            for partition in &partitions {
                mailbox.open(partition.clone());
            }
            mailbox.push(Happening::Assigned {
                partitions,
                membership: Membership {
                    generation: self.generation,
                    member: u32::try_from(id.0).unwrap_or(u32::MAX),
                },
            });
        }
    }
}

/// Gives partitions to members, and asks for those that have to move.
pub(super) fn rebalance(state: &mut State) {
    let State { topics, groups, .. } = state;
    for group in groups.values_mut() {
        let wanted: BTreeSet<&String> = group
            .members
            .values()
            .flat_map(|member| member.topics.iter())
            .collect();
        let mut partitions = Vec::new();
        for topic in wanted {
            let count = topics.get(topic).map_or(0, Vec::len);
            let count = i32::try_from(count).expect("a test has few partitions");
            partitions.extend((0..count).map(|number| Partition::new(topic.as_str(), number)));
        }
        group.rebalance(&partitions);
    }
}
