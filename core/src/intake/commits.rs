//! Commits, leases and doubt, partitions that are lost, and the end.
//!
//! Invariant: one commit is outstanding; its end is known only from its own callback or from the
//! destruction of the client (R4c).

use std::time::Duration;

use super::Intake;
use super::io::{Commit, CommitId, CommitOutcome, Effect, Fact};
use super::publishing;
use super::tenure::TenureId;
use crate::contract::publish::{Request, Revoked};
use crate::position::{Partition, Position};
use crate::rules::Rule;
use crate::time::Time;

/// Refused commits in a row before somebody is told (D-W3), and before the client is made anew
/// when it is the membership that is refused (D-G6).
pub(super) const FAILURES_MAX: u32 = 3;

/// What is known about commits.
#[derive(Debug, Default)]
pub(super) struct Commits {
    last: CommitId,
    open: Option<OpenCommit>,
    /// When the last one was cut.
    cut_at: Option<Time>,
    /// A refused one is repeated then.
    again_at: Option<Time>,
    /// Refusals of the membership in a row.
    not_owner: u32,
    pub(super) done: u64,
    pub(super) retriable: u64,
    pub(super) fenced: u64,
}

impl Commits {
    /// Since when a commit is out.
    pub(super) fn open_since(&self) -> Option<Time> {
        self.open.as_ref().map(|open| open.sent)
    }
}

#[derive(Debug)]
struct OpenCommit {
    id: CommitId,
    sent: Time,
    generation: i32,
    /// What was committed, and how many terminal events it covered.
    offsets: Vec<(TenureId, Position, u64)>,
}

impl Commits {
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn is_open_as(&self, id: CommitId) -> bool {
        self.open_id() == Some(id)
    }

    pub(super) fn open_id(&self) -> Option<CommitId> {
        self.open.as_ref().map(|open| open.id)
    }

    pub(super) fn cut_at(&self) -> Option<Time> {
        self.cut_at
    }

    pub(super) fn again_at(&self) -> Option<Time> {
        self.again_at
    }

    pub(super) fn repeat_at(&mut self, at: Option<Time>) {
        self.again_at = at;
    }

    /// Notes that a commit was cut.
    pub(super) fn begin(
        &mut self,
        now: Time,
        generation: i32,
        offsets: Vec<(TenureId, Position, u64)>,
    ) -> CommitId {
        let id = self.last.next();
        self.last = id;
        self.cut_at = Some(now);
        self.again_at = None;
        self.open = Some(OpenCommit {
            id,
            sent: now,
            generation,
            offsets,
        });
        id
    }
}

impl Intake {
    /// Cuts a commit if one is due and none is out.
    pub(super) fn commit_what_is_due(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.exactly_once() {
            self.transact(now, effects);
            return;
        }
        let waits = self.commits.again_at.is_some_and(|at| now.boot < at.boot);
        if self.commits.open.is_some() || self.rejoining || waits {
            return;
        }
        let due = self
            .tenures
            .values()
            .any(|tenure| self.commit_due(tenure).is_some_and(|at| now.boot >= at));
        if due {
            let live = |tenure: &super::Tenure| tenure.is_live();
            self.cut_commit(live, false, now, effects);
        }
    }

    pub(super) fn next_commit(&self, now: Time) -> Option<Duration> {
        if self.exactly_once() {
            return self.next_transaction(now);
        }
        if self.commits.open.is_some() || self.rejoining {
            return None;
        }
        let due = self
            .tenures
            .values()
            .filter_map(|tenure| self.commit_due(tenure))
            .min()?;
        Some(
            self.commits
                .again_at
                .map_or(due, |again| again.boot.max(due)),
        )
    }

    /// When the next commit of this partition is due.
    fn commit_due(&self, tenure: &super::Tenure) -> Option<Duration> {
        if !tenure.is_live() || self.doubted(tenure) {
            return None;
        }
        let Some(renewal) = tenure.lease.renewal_due() else {
            return Some(Duration::ZERO);
        };
        let stuck =
            !tenure.beyond_window.is_empty() && tenure.ledger.watermark() > tenure.committed;
        if tenure.crashes.wanted {
            return Some(Duration::ZERO);
        }
        let many = tenure.since_commit >= self.settings.commit_records;
        if stuck || many {
            return Some(Duration::ZERO);
        }
        let interval = self.commits.cut_at.map_or(Duration::ZERO, |cut| {
            cut.boot + self.settings.commit_interval
        });
        Some(if tenure.is_dirty() {
            interval.min(renewal)
        } else {
            renewal
        })
    }

    pub(super) fn doubted(&self, tenure: &super::Tenure) -> bool {
        tenure.in_doubt && self.settings.rules.hold(Rule::Doubt)
    }

    pub(super) fn cut_commit(
        &mut self,
        which: impl Fn(&super::Tenure) -> bool,
        clean: bool,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Option<CommitId> {
        if self.exactly_once() {
            return self.cut_transaction(clean, now, effects);
        }
        let membership = self.membership?;
        let mut offsets = Vec::new();
        let mut covered = Vec::new();
        let (watches, doubt) = (self.watches_pod(), self.settings.rules.hold(Rule::Doubt));
        for (id, tenure) in &mut self.tenures {
            if !which(tenure) || (doubt && tenure.in_doubt) {
                continue;
            }
            let (generation, member) = (membership.generation, Some(membership.member));
            if let Some(committed) =
                tenure.commit(generation, member, watches.then_some(clean), |_| false)
            {
                tenure.ledger_bytes = committed.metadata.len();
                covered.push((*id, committed.position, tenure.since_commit));
                offsets.push((tenure.partition.clone(), committed));
            }
        }
        if offsets.is_empty() {
            return None;
        }
        let id = self.commits.begin(now, membership.generation, covered);
        effects.push(Effect::Commit(Commit { id, offsets }));
        Some(id)
    }

    pub(super) fn committed(
        &mut self,
        id: CommitId,
        outcome: CommitOutcome,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let Some(open) = self.commits.open.take_if(|open| open.id == id) else {
            return;
        };
        if outcome != CommitOutcome::Done {
            self.commit_not_stored(&open);
        }
        match outcome {
            CommitOutcome::Done => self.commit_done(&open, now, effects),
            CommitOutcome::Retriable(message) => {
                self.commits.retriable += 1;
                self.commits.again_at = Some(now.plus(self.settings.commit_interval));
                self.commit_refused(&open, message, effects);
            }
            CommitOutcome::NotOwner(message) => {
                self.commits.fenced += 1;
                self.commits.not_owner += 1;
                self.commits.again_at = Some(now.plus(self.settings.commit_interval));
                for (tenure, ..) in &open.offsets {
                    if let Some(tenure) = self.tenures.get_mut(tenure) {
                        tenure.lease.clear();
                    }
                }
                if self.commits.not_owner >= FAILURES_MAX {
                    self.rejoin(format!("the group refuses our commits: {message}"), effects);
                }
            }
            CommitOutcome::Unknown(message) => {
                for (tenure, ..) in &open.offsets {
                    if let Some(tenure) = self.tenures.get_mut(tenure) {
                        tenure.in_doubt = true;
                    }
                }
                if self.settings.rules.hold(Rule::Doubt) {
                    self.rejoin(format!("a commit ended unknown: {message}"), effects);
                }
            }
        }
        self.revocation_commit_ended(id, now);
    }

    /// Forgets a commit that was cut and will not be stored.
    pub(super) fn forget_commit(&mut self) {
        if let Some(open) = self.commits.open.take() {
            self.commit_not_stored(&open);
        }
    }

    fn commit_not_stored(&mut self, open: &OpenCommit) {
        for (tenure, ..) in &open.offsets {
            if let Some(tenure) = self.tenures.get_mut(tenure) {
                tenure.crashes.not_stored();
            }
        }
    }

    fn commit_done(&mut self, open: &OpenCommit, now: Time, effects: &mut Vec<Effect>) {
        self.commits.done += 1;
        self.commits.not_owner = 0;
        let mut leased = Vec::new();
        let mut until = None;
        for (id, position, covered) in &open.offsets {
            let Some(tenure) = self.tenures.get_mut(id) else {
                continue;
            };
            tenure.committed = *position;
            tenure.since_commit = tenure.since_commit.saturating_sub(*covered);
            tenure.commit_failures = 0;
            tenure.crashes.stored();
            tenure.enter_window();
            if tenure.is_live() {
                tenure.lease.renew(open.sent);
                tenure.lease_generation = open.generation;
                until = tenure.lease.until();
                leased.push(tenure.partition.clone());
            }
        }
        if self.tenures.values().any(|tenure| tenure.lanes.ready() > 0) {
            self.waiting_since.get_or_insert(now);
        }
        if let Some(until) = until.filter(|_| self.link.is_up()) {
            let lease = publishing::lease(open.generation, until, leased);
            effects.push(publishing::frame(&lease));
        }
    }

    fn commit_refused(&mut self, open: &OpenCommit, message: String, effects: &mut Vec<Effect>) {
        let mut times = 0;
        for (id, ..) in &open.offsets {
            if let Some(tenure) = self.tenures.get_mut(id) {
                tenure.commit_failures += 1;
                times = times.max(tenure.commit_failures);
            }
        }
        if times == FAILURES_MAX {
            effects.push(Effect::Report(Fact::CommitsFail { times, message }));
        }
    }

    /// The group gave these away already (D-G5).
    pub(super) fn lost(&mut self, partitions: &[Partition], effects: &mut Vec<Effect>) {
        let ids: Vec<_> = partitions
            .iter()
            .filter_map(|p| self.by_partition.get(p).copied())
            .collect();
        // A tenure that lost its data is gone before the commit that touches it has ended.
        let touched = |id: &TenureId| ids.contains(id) || !self.tenures.contains_key(id);
        let open = self
            .commits
            .open
            .as_ref()
            .is_some_and(|open| open.offsets.iter().any(|(id, ..)| touched(id)));
        self.tally.rebalances[2] += 1;
        self.stop_producing(partitions.to_vec(), effects);
        self.lose(&ids, effects);
        if let Some(revocation) = &mut self.revocation {
            revocation.tenures.retain(|id| !ids.contains(id));
            revocation.partitions.retain(|p| !partitions.contains(p));
            if revocation.partitions.is_empty() {
                self.revocation = None;
            }
        }
        if open {
            self.rejoin(
                "partitions were lost while a commit was open".into(),
                effects,
            );
        }
    }

    /// Destroys the client: all partitions are gone until it has joined again (R4c).
    pub(super) fn rejoin(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if self.rejoining {
            return;
        }
        self.rejoining = true;
        let partitions: Vec<_> = self.by_partition.keys().cloned().collect();
        self.stop_producing(partitions, effects);
        let ids: Vec<_> = self.tenures.keys().copied().collect();
        self.lose(&ids, effects);
        self.revocation = None;
        self.transactions.unread();
        self.commits.open = None;
        self.commits.not_owner = 0;
        self.commits.again_at = None;
        effects.push(Effect::Report(Fact::Rejoining { reason }));
        effects.push(Effect::Rejoin);
    }

    fn lose(&mut self, ids: &[TenureId], effects: &mut Vec<Effect>) {
        for id in ids {
            if let Some((partition, unfinished)) =
                self.close(*id, |counters, n| counters.stale_lost += n)
            {
                effects.push(Effect::Report(Fact::Lost {
                    partition,
                    unfinished,
                }));
            }
        }
    }

    /// Tells the output that live records of these partitions must not leave any more.
    pub(super) fn stop_producing(&mut self, partitions: Vec<Partition>, effects: &mut Vec<Effect>) {
        if !partitions.is_empty() {
            self.transactions.doom();
        }
        if let Some(membership) = self
            .membership
            .filter(|_| self.link.is_up() && !partitions.is_empty())
        {
            effects.push(publishing::frame(&Request::Revoked(Revoked {
                generation: membership.generation,
                partitions,
            })));
        }
    }

    /// Ends a tenure; what is unfinished is counted as stale and read again by the next owner.
    pub(super) fn close(
        &mut self,
        id: TenureId,
        count: impl FnOnce(&mut super::Counters, u64),
    ) -> Option<(Partition, u64)> {
        let mut tenure = self.tenures.remove(&id)?;
        self.by_partition.remove(&tenure.partition);
        self.suspects.retain(|event| event.tenure != id);
        let unfinished = tenure.ledger.in_flight() as u64;
        let bytes: usize = tenure
            .ledger
            .iter()
            .map(|(.., work)| work.event.bytes())
            .sum();
        self.in_flight_bytes -= bytes;
        if self.settings.rules.hold(Rule::Conservation) {
            count(&mut tenure.counters, unfinished);
        }
        let partition = tenure.partition;
        self.former.insert(partition.clone(), tenure.counters);
        Some((partition, unfinished))
    }

    /// Lets everything open end, commits, and stops (D-S4, D-S5).
    pub(super) fn advance_drain(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(drain) = &self.drain else {
            return;
        };
        let late = now.boot >= drain.deadline.boot;
        // What the group wants back is given back first, unless the deadline ends everything.
        if drain.stopped || (self.revocation.is_some() && !late) {
            return;
        }
        let open = !self.calls.is_empty()
            || self.pushes.are_counting()
            || self
                .tenures
                .values()
                .any(|t| t.has_unsent() || t.at_output > 0);
        if !late {
            if open || self.commit_is_open() || self.rejoining {
                return;
            }
            let unsaved = |tenure: &super::Tenure| tenure.is_live() && tenure.is_unsettled();
            let waits = self.commits.again_at.is_some_and(|at| now.boot < at.boot);
            if self.tenures.values().any(unsaved) {
                if !waits {
                    self.cut_commit(unsaved, true, now, effects);
                }
                return;
            }
        }
        let ids: Vec<_> = self.tenures.keys().copied().collect();
        for id in ids {
            self.close(id, |counters, n| counters.stale_stop += n);
        }
        self.drain.as_mut().expect("it was just there").stopped = true;
        effects.push(Effect::Stop);
    }
}
