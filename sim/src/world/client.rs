//! A consumer client, as a process sees it: callbacks of rebalances, fetches, commits.
//!
//! As librdkafka does: a revocation or an assignment is a callback that stands open until the
//! application has answered it; meanwhile nothing is fetched for any partition. A commit is
//! stamped with member and generation when it is sent, not when it is asked for; once asked
//! for, nobody can take it back, short of destroying the client.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace_core::intake::io::{
    Commit, CommitId, CommitOutcome, Committed, Fetched, Input, Membership, TokensRead,
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
    generation: i32,
    owned: BTreeMap<usize, Owned>,
    callback: Callback,
    must_join: bool,
    joins: u64,
    fetch_armed: bool,
    open: Option<Commit>,
    /// Commits that ended unknown and may still be applied.
    late: Vec<Vec<(usize, Committed)>>,
    destroying: bool,
    /// The coordinator cannot be reached until `Mend`.
    cut: bool,
    /// Partitions that join once a revocation is done.
    revoked_some: bool,
}

#[derive(Debug, Default)]
struct Owned {
    /// `None`: not started.
    next: Option<Position>,
    paused: bool,
}

/// A rebalance callback that the application has not answered.
#[derive(Debug, PartialEq, Eq)]
enum Callback {
    None,
    Revoking { left: BTreeSet<usize>, add: Vec<usize> },
    Assigning,
}

/// A commit on its way to the coordinator.
#[derive(Debug)]
pub(crate) struct OnTheWire {
    who: Who,
    client: ClientId,
    member: Option<MemberId>,
    generation: i32,
    offsets: Vec<(usize, Committed)>,
    /// The commit that waits for an answer, and whether the answer arrives.
    answer: Option<(CommitId, Answer)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Arrives,
    Lost,
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

    fn owned_set(&self) -> BTreeSet<usize> {
        self.owned.keys().copied().collect()
    }

    fn membership(&self) -> Membership {
        Membership {
            generation: self.generation,
            member: u32::try_from(self.member.expect("an assignment has a member") & 0xffff_ffff).expect("32 bits"),
        }
    }
}

fn offsets_of(commit: &Commit) -> Vec<(usize, Committed)> {
    commit.offsets.iter().map(|(p, c)| (World::index_of(p), c.clone())).collect()
}

impl World {
    fn partition(&self, index: usize) -> Partition {
        self.logs[index].partition.clone()
    }

    /// The client joins the group.
    pub(crate) fn join(&mut self, who: Who, client: ClientId) {
        let Some(it) = self.client(who, client) else { return };
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
        let Some(it) = self.client(who, client) else { return };
        let Some(member) = it.member else { return };
        if self.group.waits_for(member) {
            self.join(who, client);
        }
    }

    /// The outcome of a rebalance arrives.
    pub(crate) fn sync(&mut self, who: Who, client: ClientId, assignment: Assignment) -> Lawful {
        let Some(it) = self.client(who, client) else { return Ok(()) };
        let stale = it.joins != assignment.joins || it.destroying || it.callback != Callback::None;
        let Some(member) = it.member.filter(|_| !stale) else { return Ok(()) };
        if !self.group.is_member(member) {
            return Ok(());
        }
        let it = self.client(who, client).expect("it was just there");
        it.generation = assignment.generation;
        if assignment.revoke.is_empty() {
            return self.assign_callback(who, client, assignment.add);
        }
        let left: BTreeSet<usize> = assignment.revoke.into_iter().filter(|p| it.owned.contains_key(p)).collect();
        if left.is_empty() {
            return self.assign_callback(who, client, assignment.add);
        }
        it.callback = Callback::Revoking { left: left.clone(), add: assignment.add };
        let partitions = left.iter().map(|p| self.partition(*p)).collect();
        self.feed(who, Input::Revoking(partitions))
    }

    /// The second half of a rebalance, or the whole of one that takes nothing.
    pub(crate) fn assign_callback(&mut self, who: Who, client: ClientId, add: Vec<usize>) -> Lawful {
        let Some(it) = self.client(who, client) else { return Ok(()) };
        if it.destroying || it.member.is_none() || it.callback != Callback::None {
            return Ok(());
        }
        it.callback = Callback::Assigning;
        for partition in &add {
            it.owned.insert(*partition, Owned::default());
        }
        let membership = it.membership();
        let partitions = add.iter().map(|p| self.partition(*p)).collect();
        self.feed(who, Input::Assigned { partitions, membership })
    }

    /// `Effect::Assign`.
    pub(crate) fn assign(&mut self, who: Who, starts: Vec<(Partition, Position)>) -> Lawful {
        for (partition, position) in &starts {
            self.laws.starts(who, partition, *position)?;
        }
        let Some(process) = self.process(who) else { return Ok(()) };
        let it = &mut process.client;
        if it.destroying {
            return Ok(());
        }
        for (partition, position) in starts {
            let index = Self::index_of(&partition);
            let leaving = matches!(&it.callback, Callback::Revoking { left, .. } if left.contains(&index));
            match it.owned.get_mut(&index) {
                Some(owned) if owned.next.is_none() && !leaving => owned.next = Some(position),
                Some(_) => return Err(Law::Client.broken(format!("{partition} is started twice, or while it is revoked"))),
                None => return Err(Law::Client.broken(format!("{partition} is started but not owned"))),
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
        let Some(process) = self.process(who) else { return Ok(()) };
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
                return Err(Law::Client.broken(format!("{partition} is unassigned but not revoked")));
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
            self.after(Duration::from_millis(1), Happening::AssignCallback(who, client, add));
        }
        Ok(())
    }

    /// `Effect::Seek`.
    pub(crate) fn seek(&mut self, who: Who, partition: &Partition, position: Position) -> Lawful {
        let Some(process) = self.process(who) else { return Ok(()) };
        match process.client.owned.get_mut(&Self::index_of(partition)) {
            Some(owned) if owned.next.is_some() => owned.next = Some(position),
            _ => return Err(Law::Client.broken(format!("{partition} is moved but not started"))),
        }
        self.arm_fetch(who);
        Ok(())
    }

    /// `Effect::Pause` and `Effect::Resume`.
    pub(crate) fn pause(&mut self, who: Who, partition: &Partition, paused: bool) -> Lawful {
        let Some(process) = self.process(who) else { return Ok(()) };
        if process.client.destroying {
            return Ok(());
        }
        match process.client.owned.get_mut(&Self::index_of(partition)) {
            Some(owned) => owned.paused = paused,
            None => return Err(Law::Client.broken(format!("{partition} is paused or resumed but not owned"))),
        }
        self.arm_fetch(who);
        Ok(())
    }

    /// Plans the next fetch, if there is or will be something to fetch.
    fn arm_fetch(&mut self, who: Who) {
        let now = self.now;
        let pod = &self.pods[who.pod];
        let Some(process) = pod.process.as_ref().filter(|_| pod.life == who.life) else { return };
        let it = &process.client;
        if it.fetch_armed || it.callback != Callback::None || it.destroying {
            return;
        }
        let next = it
            .owned
            .iter()
            .filter(|(_, owned)| !owned.paused)
            .filter_map(|(index, owned)| {
                let log = &self.logs[*index];
                log.records.get(log.index_from(owned.next?)).map(|record| record.at)
            })
            .min();
        let client = it.id;
        if let Some(at) = next {
            let after = at.saturating_sub(now) + self.random.latency(10, 200);
            self.client(who, client).expect("it was just there").fetch_armed = true;
            self.after(after, Happening::Fetch(who, client));
        }
    }

    /// Hands over what there is.
    pub(crate) fn fetch(&mut self, who: Who, client: ClientId) -> Lawful {
        let now = self.now;
        let Some(it) = self.client(who, client) else { return Ok(()) };
        it.fetch_armed = false;
        if it.callback != Callback::None || it.destroying {
            return Ok(());
        }
        let candidates: Vec<(usize, Position)> = it
            .owned
            .iter()
            .filter(|(_, owned)| !owned.paused)
            .filter_map(|(index, owned)| Some((*index, owned.next?)))
            .collect();
        let mut left = usize::try_from(self.scenario.fetch_max).expect("small");
        let mut batches = Vec::new();
        for (index, next) in candidates {
            let log = &self.logs[index];
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
            batches.push(Fetched { partition: log.partition.clone(), events });
            let it = self.client(who, client).expect("it was just there");
            it.owned.get_mut(&index).expect("it was just there").next = Some(behind);
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
        let Some(it) = self.client(who, client) else { return };
        let read = if fails || it.cut {
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
        self.after(after, Happening::TokensRead(who, client, index, Box::new(read)));
    }

    pub(crate) fn tokens_read(&mut self, who: Who, client: ClientId, index: usize, read: Result<TokensRead, String>) -> Lawful {
        let partition = self.partition(index);
        let Some(it) = self.client(who, client) else { return Ok(()) };
        if it.destroying || !it.owned.contains_key(&index) {
            return Ok(());
        }
        self.feed(who, Input::TokensRead { partition, read })
    }

    /// `Effect::Commit`.
    pub(crate) fn commit(&mut self, who: Who, commit: Commit) {
        let slow = self.random.permille(self.scenario.faults.commit_slow) && !self.quiet;
        let after = if slow { self.random.ms(100, 12_000) } else { self.random.latency(5, 300) };
        let Some(process) = self.process(who) else { return };
        let (id, client) = (commit.id, process.client.id);
        if process.client.destroying {
            return;
        }
        process.client.open = Some(commit);
        self.after(after, Happening::CommitSend(who, client, id));
    }

    /// The client sends a commit, stamped with what it knows now.
    pub(crate) fn commit_send(&mut self, who: Who, client: ClientId, id: CommitId) {
        let quiet = self.quiet;
        let faults = self.scenario.faults;
        let Some(it) = self.client(who, client) else { return };
        let Some(commit) = it.open.as_ref().filter(|c| c.id == id) else { return };
        let offsets = offsets_of(commit);
        if it.cut || it.member.is_none() {
            // librdkafka waits for the coordinator, at most a session.
            let after = self.random.ms(100, 1_000);
            self.after(after, Happening::CommitSend(who, client, id));
            return;
        }
        let (member, generation) = (it.member, it.generation);
        let rebalancing = member.is_some_and(|m| self.group.is_joining(m));
        let unknown = !quiet && self.random.permille(faults.commit_unknown);
        let retriable = !quiet && self.random.permille(faults.commit_retriable);
        let fenced = !quiet && self.random.permille(faults.commit_fenced);
        let rebalancing = rebalancing && self.random.permille(500);
        let answered = self.random.latency(10, 2_000);
        if retriable || rebalancing {
            let outcome = CommitOutcome::Retriable("the coordinator is loading".into());
            self.after(answered, Happening::CommitAnswer(who, client, id, outcome));
            return;
        }
        if fenced {
            let outcome = CommitOutcome::NotOwner("illegal generation".into());
            self.after(answered, Happening::CommitAnswer(who, client, id, outcome));
            return;
        }
        let mut wire = OnTheWire { who, client, member, generation, offsets, answer: Some((id, Answer::Arrives)) };
        if unknown {
            let after = self.random.ms(100, 5_000);
            let outcome = CommitOutcome::Unknown("the request timed out".into());
            self.after(after, Happening::CommitAnswer(who, client, id, outcome));
            match self.random.below(3) {
                // It never arrives.
                0 => return,
                // It arrives, its answer does not.
                1 => wire.answer = Some((id, Answer::Lost)),
                // The client sends it again when nobody expects it any more.
                _ => {
                    let later = after + self.random.ms(1, 25_000);
                    let offsets = wire.offsets;
                    let it = self.client(who, client).expect("it was just there");
                    it.late.push(offsets.clone());
                    self.after(later, Happening::LateSend(who, client, offsets));
                    return;
                }
            }
        }
        let after = self.random.ms(0, 30);
        self.after(after, Happening::CommitArrive(Box::new(wire)));
    }

    /// A commit whose end was told as unknown is sent after all.
    pub(crate) fn late_send(&mut self, who: Who, client: ClientId, offsets: Vec<(usize, Committed)>) {
        let Some(it) = self.client(who, client) else { return };
        let Some(found) = it.late.iter().position(|late| *late == offsets) else { return };
        it.late.remove(found);
        let wire = OnTheWire { who, client, member: it.member, generation: it.generation, offsets, answer: None };
        self.after(Duration::from_millis(1), Happening::CommitArrive(Box::new(wire)));
    }

    /// The coordinator checks member and generation, nothing else.
    pub(crate) fn commit_arrive(&mut self, wire: OnTheWire) -> Lawful {
        let known = wire.member.is_some_and(|m| self.group.is_member(m));
        let outcome = if !known {
            CommitOutcome::NotOwner("unknown member".into())
        } else if wire.generation != self.group.generation {
            CommitOutcome::NotOwner("illegal generation".into())
        } else {
            self.apply(&wire)?;
            CommitOutcome::Done
        };
        if let Some((id, Answer::Arrives)) = wire.answer {
            let after = self.random.latency(10, 1_000);
            self.after(after, Happening::CommitAnswer(wire.who, wire.client, id, outcome));
        }
        Ok(())
    }

    fn apply(&mut self, wire: &OnTheWire) -> Lawful {
        let member = wire.member.expect("the coordinator knows it");
        self.note(|| format!("the broker stores a commit of pod {}", wire.who.pod));
        for (partition, committed) in &wire.offsets {
            let before = self.group.committed_of(*partition).map(|c| c.position);
            let owner = self.group.owner(*partition);
            self.laws.commit_applied(wire.who, *partition, before, committed, owner == Some(member))?;
            self.group.store(*partition, committed.clone());
        }
        Ok(())
    }

    pub(crate) fn commit_answer(&mut self, who: Who, client: ClientId, id: CommitId, outcome: CommitOutcome) -> Lawful {
        let Some(it) = self.client(who, client) else { return Ok(()) };
        if it.open.take_if(|c| c.id == id).is_none() {
            return Ok(());
        }
        self.feed(who, Input::Committed { commit: id, outcome })
    }

    /// `Effect::Rejoin`: the client is destroyed on its own thread.
    pub(crate) fn rejoin(&mut self, who: Who) {
        let after = self.random.latency(200, 8_000);
        let Some(process) = self.process(who) else { return };
        let it = &mut process.client;
        if it.destroying {
            return;
        }
        it.destroying = true;
        let client = it.id;
        self.after(after, Happening::Destroyed(who, client));
    }

    /// The client is gone: whatever it had asked for has happened or never will.
    pub(crate) fn destroyed(&mut self, who: Who, client: ClientId) -> Lawful {
        let leaves = self.random.permille(700);
        let Some(it) = self.client(who, client) else { return Ok(()) };
        let (open, late, member, generation) = (it.open.take(), std::mem::take(&mut it.late), it.member, it.generation);
        let open_offsets = open.as_ref().map(offsets_of);
        for offsets in late.into_iter().chain(open_offsets) {
            if self.random.permille(500) {
                self.commit_arrive(OnTheWire { who, client, member, generation, offsets, answer: None })?;
            }
        }
        if let Some(open) = open {
            let outcome = CommitOutcome::Unknown("the client was destroyed".into());
            self.feed(who, Input::Committed { commit: open.id, outcome })?;
        }
        if let Some(member) = member {
            if leaves {
                self.member_leaves(member);
            } else {
                self.falls_silent(member);
            }
        }
        let new = self.name();
        if let Some(process) = self.process(who) {
            process.client = Client::new(new);
        }
        self.feed(who, Input::Rejoined)?;
        let after = self.random.ms(0, 500);
        self.after(after, Happening::Join(who, new));
        Ok(())
    }

    /// The process ends in order: its client is closed and leaves.
    pub(crate) fn leave(&mut self, who: Who) -> Lawful {
        let Some(process) = self.process(who) else { return Ok(()) };
        let it = &mut process.client;
        let (late, member, generation, client) = (std::mem::take(&mut it.late), it.member, it.generation, it.id);
        let open = it.open.take().as_ref().map(offsets_of);
        for offsets in late.into_iter().chain(open) {
            if self.random.permille(500) {
                self.commit_arrive(OnTheWire { who, client, member, generation, offsets, answer: None })?;
            }
        }
        if let Some(member) = member {
            self.member_leaves(member);
        }
        Ok(())
    }

    /// The client learns that it is no member any more.
    pub(crate) fn lose_notice(&mut self, who: Who, client: ClientId, member: MemberId) -> Lawful {
        let Some(it) = self.client(who, client) else { return Ok(()) };
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
        let Some(process) = self.process(who) else { return };
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
        let Some(it) = self.client(who, client) else { return };
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
