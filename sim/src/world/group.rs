//! The group coordinator: members, generations, cooperative rebalances, committed offsets.
//!
//! As the broker does: commits are fenced by member and generation, not by partition. A
//! partition moves in two rebalances: its owner gives it up after the first, the next owner
//! gets it in the second.

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::contract::grant::{Grant, Seeding};
use millrace_core::intake::io::Committed;
use millrace_core::position::Position;
use millrace_core::seeding;
use millrace_core::token::ReleaseId;

use super::{ClientId, Happening, Who, World};
use crate::random::Random;
use crate::scenario::{SESSION, Scenario};

/// Names a member; never used twice.
pub(crate) type MemberId = u64;

/// What the broker tells about the topic (E1, key `t`).
pub(crate) const TOPIC_IDENTITY: u32 = 0x5f2c_90ab;

/// The coordinator.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) generation: i32,
    pub(crate) members: BTreeMap<MemberId, Member>,
    preparing: bool,
    epoch: u64,
    committed: Vec<Option<Committed>>,
    /// Partitions that the starter seeds; owners seed later ones (D-G12).
    seeds: usize,
    pub(crate) registry: Committed,
    /// The next assignment is drawn at random.
    shuffle: bool,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    who: Who,
    client: ClientId,
    /// What it has, as far as the coordinator knows.
    owned: BTreeSet<usize>,
    joined: bool,
    /// Counts its joins: an answer to an earlier one is void.
    joins: u64,
    /// Counts the times it was heard of again after a silence.
    silence: u64,
}

/// What a rebalance gives a member.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) joins: u64,
    pub(crate) generation: i32,
    pub(crate) add: Vec<usize>,
    pub(crate) revoke: Vec<usize>,
}

impl Group {
    pub(crate) fn new(scenario: &Scenario, random: &mut Random) -> Self {
        let seeds = if random.permille(200) {
            scenario.partitions.div_ceil(2)
        } else {
            scenario.partitions
        };
        Self {
            generation: 0,
            members: BTreeMap::new(),
            preparing: false,
            epoch: 0,
            committed: vec![None; scenario.partitions],
            seeds,
            registry: registry(Seeding::Seeding(
                u32::try_from(seeds).expect("few partitions"),
            )),
            shuffle: false,
        }
    }

    /// The starter writes the first tokens (D-G12).
    pub(crate) fn seed(&mut self, scenario: &Scenario) {
        let settings = scenario.settings(0, millrace_core::rules::Rules::ALL);
        debug_assert_eq!(settings.names.release.as_str(), RELEASE);
        for slot in self.committed.iter_mut().take(self.seeds) {
            slot.get_or_insert_with(|| seeding::live(Position::START, Some(TOPIC_IDENTITY)));
        }
        self.registry = registry(Seeding::Seeded(
            u32::try_from(self.seeds).expect("few partitions"),
        ));
    }

    pub(crate) fn committed_of(&self, partition: usize) -> Option<&Committed> {
        self.committed[partition].as_ref()
    }

    /// Committed positions by partition.
    pub(crate) fn committed(&self) -> Vec<Option<Position>> {
        self.committed
            .iter()
            .map(|c| c.as_ref().map(|c| c.position))
            .collect()
    }

    pub(crate) fn store(&mut self, partition: usize, committed: Committed) {
        self.committed[partition] = Some(committed);
    }

    /// The member that has a partition.
    pub(crate) fn owner(&self, partition: usize) -> Option<MemberId> {
        self.members
            .iter()
            .find(|(_, m)| m.owned.contains(&partition))
            .map(|(id, _)| *id)
    }

    /// The member that a client is.
    pub(crate) fn pod_of(&self, member: MemberId) -> Option<Who> {
        self.members.get(&member).map(|m| m.who)
    }

    pub(crate) fn is_member(&self, member: MemberId) -> bool {
        self.members.contains_key(&member)
    }

    /// Whether a rebalance waits for this member.
    pub(crate) fn waits_for(&self, member: MemberId) -> bool {
        self.preparing && self.members.get(&member).is_some_and(|m| !m.joined)
    }

    /// Whether a member waits for the outcome of a rebalance.
    pub(crate) fn is_joining(&self, member: MemberId) -> bool {
        self.preparing && self.members.get(&member).is_some_and(|m| m.joined)
    }
}

const RELEASE: &str = "r1-5d0c77e1";

fn registry(seeding: Seeding) -> Committed {
    let grant = Grant {
        root: ReleaseId::new(RELEASE).expect("it is a release id"),
        seeding: Some(seeding),
        release: None,
    };
    Committed {
        position: Position::START,
        metadata: grant.encode(),
    }
}

impl World {
    /// The member joins, for the first time or again.
    pub(crate) fn member_joins(
        &mut self,
        who: Who,
        client: ClientId,
        member: Option<MemberId>,
        owned: BTreeSet<usize>,
    ) -> (MemberId, u64) {
        let known = member.filter(|m| self.group.members.contains_key(m));
        let id = known.unwrap_or_else(|| self.name());
        let joins = {
            let member = self.group.members.entry(id).or_insert(Member {
                who,
                client,
                owned: BTreeSet::new(),
                joined: false,
                joins: 0,
                silence: 0,
            });
            member.owned = owned;
            member.joins += 1;
            member.joins
        };
        if !self.group.preparing {
            self.rebalance();
        }
        self.group
            .members
            .get_mut(&id)
            .expect("it just joined")
            .joined = true;
        self.all_joined();
        (id, joins)
    }

    /// Starts a rebalance: every member has to join again.
    pub(crate) fn rebalance(&mut self) {
        self.group.preparing = true;
        self.group.epoch += 1;
        let members: Vec<_> = self
            .group
            .members
            .values_mut()
            .map(|m| {
                m.joined = false;
                (m.who, m.client)
            })
            .collect();
        for (who, client) in members {
            let after = self.random.ms(0, 1_000);
            self.after(after, Happening::Notice(who, client));
        }
    }

    pub(crate) fn shuffle(&mut self) {
        self.group.shuffle = true;
        if !self.group.preparing && !self.group.members.is_empty() {
            self.rebalance();
        }
    }

    fn all_joined(&mut self) {
        if self.group.preparing && self.group.members.values().all(|m| m.joined) {
            self.group.epoch += 1;
            let epoch = self.group.epoch;
            let after = self.random.ms(0, 300);
            self.after(after, Happening::Complete(epoch));
        }
    }

    /// Everybody has joined: a new generation.
    pub(crate) fn complete(&mut self, epoch: u64) {
        let all = self.group.members.values().all(|m| m.joined);
        if epoch != self.group.epoch
            || !self.group.preparing
            || !all
            || self.group.members.is_empty()
        {
            return;
        }
        self.group.preparing = false;
        self.group.generation += 1;
        let target = self.target();
        let generation = self.group.generation;
        let owners: Vec<_> = (0..self.scenario.partitions)
            .map(|p| self.group.owner(p))
            .collect();
        let ids: Vec<_> = self.group.members.keys().copied().collect();
        self.note(|| format!("generation {generation}: {target:?} by partition"));
        for id in ids {
            let add: Vec<usize> = (0..self.scenario.partitions)
                .filter(|p| target[*p] == id && owners[*p].is_none())
                .collect();
            let revoke: Vec<usize> = (0..self.scenario.partitions)
                .filter(|p| target[*p] != id && owners[*p] == Some(id))
                .collect();
            let member = self
                .group
                .members
                .get_mut(&id)
                .expect("its id was just listed");
            member.owned.extend(&add);
            let assignment = Assignment {
                joins: member.joins,
                generation,
                add,
                revoke,
            };
            let (who, client) = (member.who, member.client);
            let after = self.random.latency(50, 1_500);
            self.after(after, Happening::Sync(who, client, Box::new(assignment)));
        }
    }

    /// Who shall have each partition: even, and as before where possible.
    fn target(&mut self) -> Vec<MemberId> {
        let ids: Vec<_> = self.group.members.keys().copied().collect();
        let partitions = self.scenario.partitions;
        if std::mem::take(&mut self.group.shuffle) {
            return (0..partitions).map(|_| self.random.pick(&ids)).collect();
        }
        let most = partitions.div_ceil(ids.len());
        let mut count: BTreeMap<MemberId, usize> = ids.iter().map(|id| (*id, 0)).collect();
        let mut target = vec![None; partitions];
        for (partition, slot) in target.iter_mut().enumerate() {
            if let Some(owner) = self.group.owner(partition)
                && count[&owner] < most
            {
                *count.get_mut(&owner).expect("it is a member") += 1;
                *slot = Some(owner);
            }
        }
        target
            .into_iter()
            .map(|slot| {
                slot.unwrap_or_else(|| {
                    let (id, n) = count
                        .iter_mut()
                        .min_by_key(|(_, n)| **n)
                        .expect("there are members");
                    *n += 1;
                    *id
                })
            })
            .collect()
    }

    /// A member leaves or is put out.
    pub(crate) fn member_leaves(&mut self, member: MemberId) {
        if self.group.members.remove(&member).is_none() || self.group.members.is_empty() {
            return;
        }
        if self.group.preparing {
            self.all_joined();
        } else {
            self.rebalance();
        }
    }

    /// Nothing is heard of a member from now on; it is put out at the end of its session.
    pub(crate) fn falls_silent(&mut self, member: MemberId) {
        let before = self.random.ms(0, 3_000);
        if let Some(it) = self.group.members.get_mut(&member) {
            it.silence += 1;
            let silence = it.silence;
            self.after(SESSION - before, Happening::Expire(member, silence));
        }
    }

    /// A member is heard of again.
    pub(crate) fn speaks_again(&mut self, member: MemberId) {
        if let Some(it) = self.group.members.get_mut(&member) {
            it.silence += 1;
        }
    }

    /// The session of a silent member ends.
    pub(crate) fn expire(&mut self, member: MemberId, silence: u64) {
        if self
            .group
            .members
            .get(&member)
            .is_none_or(|m| m.silence != silence)
        {
            return;
        }
        let (who, client) = {
            let m = &self.group.members[&member];
            (m.who, m.client)
        };
        self.note(|| format!("the session of pod {} has ended", who.pod));
        self.laws
            .expired(who, self.group.members[&member].owned.iter().copied());
        self.member_leaves(member);
        let after = self.random.ms(0, 2_000);
        self.after(after, Happening::LoseNotice(who, client, member));
    }
}
