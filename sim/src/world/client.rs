//! A consumer client, as a process sees it: callbacks of rebalances, fetches, commits.
//!
//! As librdkafka does: a revocation or an assignment is a callback that stands open until the
//! application has answered it; meanwhile nothing is fetched for any partition.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace_core::intake::io::{
    Commit, Committed, Fetched, Input, Membership, StartAt, TokensRead,
};
use millrace_core::position::{Partition, Position};

use super::group::{Assignment, MemberId, TOPIC_IDENTITY};
use super::{ClientId, Happening, Who, World};
use crate::laws::{Law, Lawful};

/// A consumer client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) member: Option<MemberId>,
    pub(super) generation: i32,
    owned: BTreeMap<usize, Owned>,
    callback: Callback,
    must_join: bool,
    joins: u64,
    fetch_armed: bool,
    pub(super) open: Option<Commit>,
    /// Commits that ended unknown and may still be applied.
    pub(super) late: Vec<Vec<(usize, Committed)>>,
    pub(super) destroying: bool,
    /// The coordinator cannot be reached until `Mend`.
    pub(super) cut: bool,
    /// Partitions that join once a revocation is done.
    revoked_some: bool,
}

#[derive(Debug, Default)]
struct Owned {
    /// `None`: not started.
    next: Option<Position>,
    /// Leader epoch of the record before `next`, as far as the client was told or has read.
    epoch: Option<i32>,
    /// It was told that its position is out of range.
    lost: bool,
    paused: bool,
}

/// A rebalance callback that the application has not answered.
#[derive(Debug, PartialEq, Eq)]
enum Callback {
    None,
    Revoking {
        left: BTreeSet<usize>,
        add: Vec<usize>,
    },
    Assigning,
}

impl Client {
    pub(crate) fn new(id: ClientId) -> Self {
        Self {
            id,
            member: None,
            generation: -1,
            owned: BTreeMap::new(),
            callback: Callback::None,
            must_join: false,
            joins: 0,
            fetch_armed: false,
            open: None,
            late: Vec::new(),
            destroying: false,
            cut: false,
            revoked_some: false,
        }
    }

    pub(crate) fn has_cut(&self) -> bool {
        self.cut
    }

    /// Who it is, if all of these are its own.
    pub(super) fn identity(&self, partitions: &[Partition]) -> Option<(MemberId, i32)> {
        let owns = |partition| self.owned.contains_key(&World::index_of(partition));
        let member = self.member.filter(|_| self.generation >= 0)?;
        partitions
            .iter()
            .all(owns)
            .then_some((member, self.generation))
    }

    fn owned_set(&self) -> BTreeSet<usize> {
        self.owned.keys().copied().collect()
    }

    fn membership(&self) -> Membership {
        Membership {
            generation: self.generation,
            member: u32::try_from(self.member.expect("an assignment has a member") & 0xffff_ffff)
                .expect("32 bits"),
        }
    }
}

impl World {
    fn partition(&self, index: usize) -> Partition {
        self.logs[index].partition.clone()
    }

    /// The client joins the group.
    pub(crate) fn join(&mut self, who: Who, client: ClientId) {
        let Some(it) = self.client(who, client) else {
            return;
        };
        if it.destroying || it.cut || it.callback != Callback::None {
            it.must_join = true;
            return;
        }
        it.must_join = false;
        let (member, owned) = (it.member, it.owned_set());
        if let Some(gone) = member.filter(|m| !self.group.is_member(*m)) {
            // The coordinator does not know it any more: first it loses everything.
            self.after(Duration::ZERO, Happening::LoseNotice(who, client, gone));
            return;
        }
        let (member, joins) = self.member_joins(who, client, member, owned);
        let it = self.client(who, client).expect("it just joined");
        it.member = Some(member);
        it.joins = joins;
    }

    /// The client hears that a rebalance has begun.
    pub(crate) fn notice(&mut self, who: Who, client: ClientId) {
        let Some(it) = self.client(who, client) else {
            return;
        };
        let Some(member) = it.member else { return };
        if self.group.waits_for(member) {
            self.join(who, client);
        }
    }

    /// The outcome of a rebalance arrives.
    pub(crate) fn sync(&mut self, who: Who, client: ClientId, assignment: Assignment) -> Lawful {
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        let stale = it.joins != assignment.joins || it.destroying || it.callback != Callback::None;
        let Some(member) = it.member.filter(|_| !stale) else {
            return Ok(());
        };
        if !self.group.is_member(member) {
            return Ok(());
        }
        let it = self.client(who, client).expect("it was just there");
        it.generation = assignment.generation;
        if assignment.revoke.is_empty() {
            return self.assign_callback(who, client, assignment.add);
        }
        let left: BTreeSet<usize> = assignment
            .revoke
            .into_iter()
            .filter(|p| it.owned.contains_key(p))
            .collect();
        if left.is_empty() {
            return self.assign_callback(who, client, assignment.add);
        }
        it.callback = Callback::Revoking {
            left: left.clone(),
            add: assignment.add,
        };
        let partitions = left.iter().map(|p| self.partition(*p)).collect();
        self.feed(who, Input::Revoking(partitions))
    }

    /// The second half of a rebalance, or the whole of one that takes nothing.
    pub(crate) fn assign_callback(
        &mut self,
        who: Who,
        client: ClientId,
        add: Vec<usize>,
    ) -> Lawful {
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        if it.destroying || it.member.is_none() || it.callback != Callback::None {
            return Ok(());
        }
        it.callback = Callback::Assigning;
        for partition in &add {
            it.owned.insert(*partition, Owned::default());
        }
        let membership = it.membership();
        let partitions = add.iter().map(|p| self.partition(*p)).collect();
        self.feed(
            who,
            Input::Assigned {
                partitions,
                membership,
            },
        )
    }

    /// `Effect::Assign`.
    pub(crate) fn assign(&mut self, who: Who, starts: Vec<StartAt>) -> Lawful {
        for start in &starts {
            self.laws.starts(who, &start.partition, start.position)?;
        }
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let it = &mut process.client;
        if it.destroying {
            return Ok(());
        }
        for StartAt {
            partition,
            position,
            leader_epoch,
        } in starts
        {
            let index = Self::index_of(&partition);
            let leaving =
                matches!(&it.callback, Callback::Revoking { left, .. } if left.contains(&index));
            match it.owned.get_mut(&index) {
                Some(owned) if owned.next.is_none() && !leaving => {
                    owned.next = Some(position);
                    owned.epoch = leader_epoch;
                }
                Some(_) => {
                    return Err(Law::Client.broken(format!(
                        "{partition} is started twice, or while it is revoked"
                    )));
                }
                None => {
                    return Err(Law::Client.broken(format!("{partition} is started but not owned")));
                }
            }
        }
        let client = it.id;
        if it.callback == Callback::Assigning {
            it.callback = Callback::None;
            let again = std::mem::take(&mut it.must_join) || std::mem::take(&mut it.revoked_some);
            if again {
                let after = self.random.ms(0, 20);
                self.after(after, Happening::Join(who, client));
            }
        }
        self.arm_fetch(who);
        Ok(())
    }

    /// `Effect::Unassign`.
    pub(crate) fn unassign(&mut self, who: Who, partitions: &[Partition]) -> Lawful {
        self.laws.unassigned(who, partitions)?;
        let keep_silent = self.random.permille(500);
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let it = &mut process.client;
        if it.destroying {
            return Ok(());
        }
        let Callback::Revoking { left, add } = &mut it.callback else {
            return Err(Law::Client.broken("unassigned without a revocation"));
        };
        for partition in partitions {
            let index = Self::index_of(partition);
            if !left.remove(&index) {
                return Err(
                    Law::Client.broken(format!("{partition} is unassigned but not revoked"))
                );
            }
            it.owned.remove(&index);
        }
        if !left.is_empty() {
            return Ok(());
        }
        let add = std::mem::take(add);
        it.callback = Callback::None;
        it.revoked_some = true;
        let client = it.id;
        if add.is_empty() && keep_silent {
            it.revoked_some = false;
            self.after(Duration::from_millis(1), Happening::Join(who, client));
            self.arm_fetch(who);
        } else {
            self.after(
                Duration::from_millis(1),
                Happening::AssignCallback(who, client, add),
            );
        }
        Ok(())
    }

    /// `Effect::Seek`.
    pub(crate) fn seek(&mut self, who: Who, partition: &Partition, position: Position) -> Lawful {
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        match process.client.owned.get_mut(&Self::index_of(partition)) {
            Some(owned) if owned.next.is_some() => {
                owned.next = Some(position);
                owned.epoch = None;
                owned.lost = false;
            }
            _ => return Err(Law::Client.broken(format!("{partition} is moved but not started"))),
        }
        self.arm_fetch(who);
        Ok(())
    }

    /// `Effect::Pause` and `Effect::Resume`.
    pub(crate) fn pause(&mut self, who: Who, partition: &Partition, paused: bool) -> Lawful {
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        if process.client.destroying {
            return Ok(());
        }
        match process.client.owned.get_mut(&Self::index_of(partition)) {
            Some(owned) => owned.paused = paused,
            None => {
                return Err(
                    Law::Client.broken(format!("{partition} is paused or resumed but not owned"))
                );
            }
        }
        self.arm_fetch(who);
        Ok(())
    }

    /// Plans the next fetch, if there is or will be something to fetch.
    fn arm_fetch(&mut self, who: Who) {
        let now = self.now;
        let pod = &self.pods[who.pod];
        let Some(process) = pod.process.as_ref().filter(|_| pod.life == who.life) else {
            return;
        };
        let it = &process.client;
        if it.fetch_armed || it.callback != Callback::None || it.destroying {
            return;
        }
        let next = it
            .owned
            .iter()
            .filter(|(_, owned)| !owned.paused && !owned.lost)
            .filter_map(|(index, owned)| {
                let log = &self.logs[*index];
                log.records
                    .get(log.index_from(owned.next?))
                    .map(|record| record.at)
            })
            .min();
        let client = it.id;
        if let Some(at) = next {
            let after = at.saturating_sub(now) + self.random.latency(10, 200);
            self.client(who, client)
                .expect("it was just there")
                .fetch_armed = true;
            self.after(after, Happening::Fetch(who, client));
        }
    }

    /// Hands over what there is.
    pub(crate) fn fetch(&mut self, who: Who, client: ClientId) -> Lawful {
        let now = self.now;
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        it.fetch_armed = false;
        if it.callback != Callback::None || it.destroying {
            return Ok(());
        }
        let candidates: Vec<(usize, Position, Option<i32>)> = it
            .owned
            .iter()
            .filter(|(_, owned)| !owned.paused && !owned.lost)
            .filter_map(|(index, owned)| Some((*index, owned.next?, owned.epoch)))
            .collect();
        let mut left = usize::try_from(self.scenario.fetch_max).expect("small");
        let mut batches = Vec::new();
        let mut lost = Vec::new();
        for (index, next, epoch) in candidates {
            let log = &self.logs[index];
            if log.is_cut_below(next) && epoch != Some(log.epoch()) {
                // Who knows the epoch of what it read asks whether the log still holds it.
                if epoch.is_none() {
                    return Err(Law::History.broken(format!(
                        "{} is read on at {next} although the log was cut below",
                        log.partition
                    )));
                }
                lost.push(index);
                continue;
            }
            let from = log.index_from(next);
            let written = log.records.partition_point(|record| record.at <= now);
            let count = written.saturating_sub(from).min(left);
            if count == 0 {
                continue;
            }
            let count = self.random.index(count) + 1;
            left -= count;
            let log = &self.logs[index];
            let events = log.events(from..from + count);
            let behind = log.records[from + count - 1].position.next();
            batches.push(Fetched {
                partition: log.partition.clone(),
                leader_epoch: Some(log.epoch()),
                events,
            });
            let epoch = self.logs[index].epoch();
            let it = self.client(who, client).expect("it was just there");
            let owned = it.owned.get_mut(&index).expect("it was just there");
            owned.next = Some(behind);
            owned.epoch = Some(epoch);
        }
        for index in lost {
            let it = self.client(who, client).expect("it was just there");
            it.owned.get_mut(&index).expect("it was just there").lost = true;
            let log_end = self.logs[index].end(now);
            let out_of_range = Input::OutOfRange {
                partition: self.partition(index),
                log_start: Position::START,
                log_end,
            };
            self.feed(who, out_of_range)?;
            if self.client(who, client).is_none() {
                return Ok(());
            }
        }
        if !batches.is_empty() {
            self.feed(who, Input::Fetched { batches })?;
        }
        self.arm_fetch(who);
        Ok(())
    }

    /// A token read reaches the broker.
    pub(crate) fn read_tokens(&mut self, who: Who, client: ClientId, index: usize) {
        let fails = !self.quiet && self.random.permille(self.scenario.faults.token_read);
        let Some(it) = self.client(who, client) else {
            return;
        };
        let away = it.cut;
        let read = if fails || away || self.is_unstable(index) {
            Err("the coordinator cannot be reached".to_owned())
        } else {
            Ok(TokensRead {
                own: self.group.committed_of(index).cloned(),
                registry: None,
                seeding: Some(self.group.registry.clone()),
                log_start: Position::START,
                log_end: self.logs[index].end(self.now),
                topic_identity: Some(TOPIC_IDENTITY),
            })
        };
        let after = self.random.latency(5, 1_000);
        self.after(
            after,
            Happening::TokensRead(who, client, index, Box::new(read)),
        );
    }

    pub(crate) fn tokens_read(
        &mut self,
        who: Who,
        client: ClientId,
        index: usize,
        read: Result<TokensRead, String>,
    ) -> Lawful {
        let partition = self.partition(index);
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        if it.destroying || !it.owned.contains_key(&index) {
            return Ok(());
        }
        self.feed(who, Input::TokensRead { partition, read })
    }

    /// The client learns that it is no member any more.
    pub(crate) fn lose_notice(&mut self, who: Who, client: ClientId, member: MemberId) -> Lawful {
        let Some(it) = self.client(who, client) else {
            return Ok(());
        };
        if it.destroying || it.member != Some(member) {
            return Ok(());
        }
        it.member = None;
        it.callback = Callback::None;
        it.must_join = false;
        it.revoked_some = false;
        let owned = it.owned_set();
        it.owned.clear();
        let after = self.random.ms(10, 500);
        self.after(after, Happening::Join(who, client));
        if owned.is_empty() {
            return Ok(());
        }
        let partitions = owned.iter().map(|p| self.partition(*p)).collect();
        self.feed(who, Input::Lost(partitions))
    }

    /// The coordinator cannot be reached from this client for a while.
    pub(crate) fn cut(&mut self, who: Who, long: Duration) {
        let Some(process) = self.process(who) else {
            return;
        };
        let it = &mut process.client;
        if it.cut {
            return;
        }
        it.cut = true;
        let (client, member) = (it.id, it.member);
        if let Some(member) = member {
            self.falls_silent(member);
        }
        self.after(long, Happening::Mend(who, client));
    }

    /// The coordinator can be reached again.
    pub(crate) fn mend(&mut self, who: Who, client: ClientId) {
        let Some(it) = self.client(who, client) else {
            return;
        };
        if !std::mem::take(&mut it.cut) {
            return;
        }
        let (member, again) = (it.member, std::mem::take(&mut it.must_join));
        if let Some(member) = member {
            self.speaks_again(member);
        }
        if again {
            self.after(Duration::from_millis(1), Happening::Join(who, client));
        }
    }

    /// A process falls silent: frozen, or dead.
    pub(crate) fn client_silent(&mut self, who: Who) {
        let member = self.process(who).and_then(|p| p.client.member);
        if let Some(member) = member {
            self.falls_silent(member);
        }
    }

    /// A frozen process goes on.
    pub(crate) fn client_speaks(&mut self, who: Who) {
        let cut = self.process(who).is_some_and(|p| p.client.has_cut());
        let member = self.process(who).and_then(|p| p.client.member);
        if let Some(member) = member.filter(|_| !cut) {
            self.speaks_again(member);
        }
    }
}
