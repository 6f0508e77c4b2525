//! Exactly-once: results, offsets and ledgers in one transaction of the output (D-E1..D-E5, P-5).
//!
//! Events whose results were sent since the last end are *staged*. A transaction is cut as a
//! commit is; its ledgers say that the staged events are terminal. Committed, they are; aborted,
//! their results go again as they are: nobody who reads what is committed has seen them, and the
//! app is not asked again.
//!
//! Invariant: a transaction's ledgers mark the staged events and no other open one (D-E4).
//! Invariant: between a transaction and its end no result is sent, so that every result belongs
//! to the transaction that the input has in mind.
//! Invariant: results of partitions that are gone are given up before anything is committed.

use std::time::Duration;

use bytes::Bytes;

use super::io::{CommitId, CommitOutcome, Effect};
use super::settings::Guarantee;
use super::tenure::{EventRef, Phase, Place, Tenure};
use super::{Intake, publishing};
use crate::contract::publish::{
    GroupMetadata, Request, Transaction, TransactionEnding, TransactionOffset, TransactionOutcome,
};
use crate::rules::Rule;
use crate::time::Time;

/// Transactions that were aborted for no fault of a result are repeated after this long at most.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What the output holds in its open transaction.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// Events whose results are in it, in the order in which they were sent.
    staged: Vec<EventRef>,
    /// Results were sent since the last end, maybe of partitions that are gone.
    holds: bool,
    /// It must not be committed: a result was not stored, or its partition is gone.
    doomed: bool,
    open: Option<Open>,
    aborted_in_a_row: u32,
}

/// A transaction that was cut and has not ended.
#[derive(Debug)]
enum Open {
    /// Who we are is being read (R4b).
    Reading { offsets: Vec<TransactionOffset> },
    /// The output has it.
    Sent,
}

impl Transactions {
    /// Whether one was cut that has not ended.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether results may join it.
    pub(super) fn takes_results(&self) -> bool {
        self.open.is_none() && !self.doomed
    }

    pub(super) fn stage(&mut self, event: EventRef) {
        self.staged.push(event);
        self.holds = true;
    }

    /// Results that it holds, of partitions that are still ours.
    pub(super) fn staged(&self) -> u64 {
        self.staged.len() as u64
    }

    /// It will be given up as soon as that can be said.
    pub(super) fn doom(&mut self) {
        self.doomed |= self.holds;
    }

    /// The client is gone, and with it the answer who we are.
    pub(super) fn unread(&mut self) {
        self.open
            .take_if(|open| matches!(open, Open::Reading { .. }));
    }
}

impl Place {
    /// In the open transaction of the output.
    fn is_staged(self) -> bool {
        matches!(self, Self::AtOutput | Self::Staged)
    }
}

impl Intake {
    pub(super) fn exactly_once(&self) -> bool {
        matches!(self.settings.guarantee, Guarantee::ExactlyOnce { .. })
    }

    /// Whether a commit or a transaction is under way.
    pub(super) fn commit_is_open(&self) -> bool {
        self.commits.is_open() || self.transactions.is_open()
    }

    /// Results that one transaction holds at most (D-E3). Half of what may be in flight: the app
    /// works on the other half meanwhile.
    pub(super) fn transaction_records_max(&self) -> u64 {
        match self.settings.guarantee {
            Guarantee::AtLeastOnce => u64::MAX,
            Guarantee::ExactlyOnce { records, .. } => {
                records.min(self.settings.in_flight_max as u64 / 2).max(1)
            }
        }
    }

    /// Ends the transaction if that is due.
    pub(super) fn transact(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.give_up_doomed(effects);
        if self.commit_is_open() || self.rejoining {
            return;
        }
        if self.transaction_due(now).is_some_and(|at| now.boot >= at) {
            self.cut_transaction(false, now, effects);
        }
    }

    pub(super) fn next_transaction(&self, now: Time) -> Option<Duration> {
        if self.commit_is_open() || self.rejoining {
            return None;
        }
        self.transaction_due(now)
    }

    fn give_up_doomed(&mut self, effects: &mut Vec<Effect>) {
        if !self.transactions.doomed || self.transactions.is_open() || !self.link.is_up() {
            return;
        }
        self.forget_commit();
        self.send_transaction(TransactionEnding::Abort, effects);
    }

    fn send_transaction(&mut self, ending: TransactionEnding, effects: &mut Vec<Effect>) {
        self.transactions.open = Some(Open::Sent);
        let seq = self.link.seq();
        effects.push(publishing::frame(&Request::Transaction(Transaction {
            seq,
            ending,
        })));
    }

    /// When the next transaction is due (D-E3).
    fn transaction_due(&self, now: Time) -> Option<Duration> {
        let Guarantee::ExactlyOnce { interval, .. } = self.settings.guarantee else {
            return None;
        };
        if !self.link.is_up() {
            return None;
        }
        let mut changes = self.transactions.staged();
        let mut at_once = false;
        for tenure in self.tenures.values().filter(|t| t.may_be_committed()) {
            if self.doubted(tenure) {
                continue;
            }
            changes += tenure.since_commit;
            let begins = tenure.is_live() && !tenure.lease.holds(now);
            // The next event of a suspect range goes when it is named (D-B7).
            at_once |= tenure.crashes.wanted;
            let stuck = !tenure.beyond_window.is_empty()
                && tenure.ledger.watermark_as_if(is_staged) > tenure.committed;
            at_once |= begins || stuck;
        }
        let many = changes >= self.transaction_records_max();
        // What is staged keeps events from being taken.
        let full = self.over_bounds && changes.saturating_mul(8) >= self.in_flight() as u64;
        let due = if at_once || many || (full && changes > 0) {
            Duration::ZERO
        } else if changes > 0 {
            self.commits
                .cut_at()
                .map_or(Duration::ZERO, |cut| cut.boot + interval)
        } else {
            return None;
        };
        Some(
            self.commits
                .again_at()
                .map_or(due, |again| again.boot.max(due)),
        )
    }

    /// Cuts a transaction over everything that has changed. A `clean` one says that the owner
    /// leaves in order: what is revoked, or everything when the process stops (D-B7).
    pub(super) fn cut_transaction(
        &mut self,
        clean: bool,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Option<CommitId> {
        let membership = self.membership?;
        if !self.link.is_up() || self.transactions.doomed || self.commit_is_open() {
            return None;
        }
        let marks = self.settings.rules.hold(Rule::TransactionLedger);
        let (mut offsets, mut covered) = (Vec::new(), Vec::new());
        let (watches, doubt) = (self.watches_pod(), self.settings.rules.hold(Rule::Doubt));
        let stops = self.revocation.is_none();
        for (id, tenure) in &mut self.tenures {
            let clean = clean && (stops || matches!(tenure.phase, Phase::Revoking { .. }));
            let says_more = tenure.crashes.wanted || (clean && tenure.is_unsettled());
            let begins = tenure.is_live() && !tenure.lease.holds(now);
            let changed = tenure.is_dirty() || says_more || begins;
            if !changed || !tenure.may_be_committed() || (doubt && tenure.in_doubt) {
                continue;
            }
            let (generation, member) = (membership.generation, Some(membership.member));
            let committed = tenure.commit(generation, member, watches.then_some(clean), |work| {
                marks && is_staged(work)
            });
            if let Some(committed) = committed {
                tenure.ledger_bytes = committed.metadata.len();
                covered.push((*id, committed.position, tenure.since_commit));
                offsets.push(TransactionOffset {
                    partition: tenure.partition.clone(),
                    position: committed.position,
                    metadata: committed.metadata,
                });
            }
        }
        if offsets.is_empty() {
            return None;
        }
        let id = self.commits.begin(now, membership.generation, covered);
        if self.settings.rules.hold(Rule::GroupMetadata) {
            let partitions = offsets.iter().map(|o| o.partition.clone()).collect();
            self.transactions.open = Some(Open::Reading { offsets });
            effects.push(Effect::ReadGroupMetadata {
                commit: id,
                partitions,
            });
        } else {
            let nobody = GroupMetadata::new(Bytes::from_static(b"nobody"));
            let group_metadata = nobody.expect("it is not empty");
            self.send_transaction(
                TransactionEnding::Commit {
                    group_metadata,
                    offsets,
                },
                effects,
            );
        }
        Some(id)
    }

    /// Who we are, for the transaction that was cut.
    pub(super) fn group_metadata_read(
        &mut self,
        commit: CommitId,
        read: Result<GroupMetadata, String>,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        if !self.commits.is_open_as(commit) {
            return;
        }
        let Some(Open::Reading { mut offsets }) = self
            .transactions
            .open
            .take_if(|open| matches!(open, Open::Reading { .. }))
        else {
            return;
        };
        offsets.retain(|offset| {
            let id = self.by_partition.get(&offset.partition);
            id.is_some_and(|id| self.tenures[id].may_be_committed())
        });
        if self.transactions.doomed || offsets.is_empty() {
            // It was not sent, and now never will be.
            self.forget_commit();
            return;
        }
        match read {
            Ok(group_metadata) => self.send_transaction(
                TransactionEnding::Commit {
                    group_metadata,
                    offsets,
                },
                effects,
            ),
            Err(message) => self.committed(commit, CommitOutcome::NotOwner(message), now, effects),
        }
    }

    /// The output says how the transaction ended.
    pub(super) fn transaction_ended(
        &mut self,
        outcome: TransactionOutcome,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        if !matches!(self.transactions.open, Some(Open::Sent)) {
            return;
        }
        let ended = std::mem::take(&mut self.transactions);
        self.transactions.aborted_in_a_row = ended.aborted_in_a_row;
        let id = self.commits.open_id();
        match outcome {
            TransactionOutcome::Committed => {
                self.transactions.aborted_in_a_row = 0;
                self.finish_staged(&ended.staged, now);
                if let Some(id) = id {
                    self.committed(id, CommitOutcome::Done, now, effects);
                }
            }
            TransactionOutcome::Aborted => {
                self.stage_again(&ended.staged, now);
                self.aborted(id, !ended.doomed, now, effects);
            }
            TransactionOutcome::Unknown => {
                let message = "a transaction ended unknown, or its producer was fenced".to_owned();
                match id {
                    Some(id) => {
                        self.committed(id, CommitOutcome::Unknown(message), now, effects);
                    }
                    None => self.rejoin(message, effects),
                }
                self.stage_again(&ended.staged, now);
            }
        }
    }

    fn aborted(&mut self, id: Option<CommitId>, pause: bool, now: Time, effects: &mut Vec<Effect>) {
        if let Some(id) = id {
            let message = "the output aborted the transaction".to_owned();
            self.committed(id, CommitOutcome::Retriable(message), now, effects);
        }
        let Guarantee::ExactlyOnce { interval, .. } = self.settings.guarantee else {
            return;
        };
        let times = self.transactions.aborted_in_a_row;
        self.transactions.aborted_in_a_row = times.saturating_add(1);
        let wait = interval.saturating_mul(1 << times.min(8)).min(PAUSE_MAX);
        self.commits.repeat_at(pause.then(|| now.plus(wait)));
    }

    /// What was in the transaction is stored.
    fn finish_staged(&mut self, staged: &[EventRef], now: Time) {
        for event in staged {
            let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
                continue;
            };
            let known = tenure.ledger.get(event.number);
            if !known.is_some_and(|work| work.place.is_staged()) {
                continue;
            }
            self.finish_stored(*event, now);
            // The commit that has just ended says so already.
            let tenure = self
                .tenures
                .get_mut(&event.tenure)
                .expect("it was just there");
            tenure.since_commit -= 1;
            tenure.staged = 0;
        }
    }

    /// What was in the transaction is not stored: it goes again, from memory (D-E5).
    fn stage_again(&mut self, staged: &[EventRef], now: Time) {
        if !self.settings.rules.hold(Rule::AbortedAgain) {
            self.finish_staged(staged, now);
            return;
        }
        for event in staged {
            let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
                continue;
            };
            tenure.staged = 0;
            let Some(work) = tenure.ledger.get_mut(event.number) else {
                continue;
            };
            if work.place.is_staged() {
                work.place = Place::Outbox;
                tenure.resend.insert(event.number);
            }
        }
    }

    /// The connection to the output is gone, and its transaction with it (P-6); unless the output
    /// was told to commit, which it may have done (R4c).
    pub(super) fn transaction_lost(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let lost = std::mem::take(&mut self.transactions);
        self.stage_again(&lost.staged, now);
        match (lost.open, self.commits.open_id()) {
            (Some(Open::Sent), Some(id)) => {
                let message = "the output was lost while a transaction was open".to_owned();
                self.committed(id, CommitOutcome::Unknown(message), now, effects);
            }
            (Some(Open::Reading { .. } | Open::Sent) | None, _) => self.forget_commit(),
        }
    }

    /// Whether the revocation has nothing more to wait for (D-G4 b, c): open requests, their
    /// results, and the transaction that holds them.
    pub(super) fn revocation_settled(
        &mut self,
        tenures: &[super::tenure::TenureId],
        late: bool,
        last_was_cut: bool,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Settled {
        let of = |event: &EventRef| tenures.contains(&event.tenure);
        let at_app = self.calls.values().any(|call| call.events.iter().any(of));
        let mine = || tenures.iter().filter_map(|id| self.tenures.get(id));
        let busy = at_app || mine().any(|t| t.has_unsent() || t.at_output > 0);
        let dirty = mine().any(Tenure::is_unsettled);
        if !late {
            let waits = self.commits.again_at().is_some_and(|at| now.boot < at.boot);
            if busy || (dirty && (waits || self.transactions.doomed)) {
                return Settled::No;
            }
        }
        if !dirty || (late && last_was_cut) {
            return Settled::Yes;
        }
        match self.cut_transaction(true, now, effects) {
            Some(id) => Settled::Cut(id),
            // Without the output nothing can be saved; whoever owns them next reads them again.
            None if late || self.link.is_up() => Settled::Yes,
            None => Settled::No,
        }
    }
}

/// What a revocation has to do.
pub(super) enum Settled {
    /// Wait.
    No,
    /// Its last transaction is out.
    Cut(CommitId),
    /// Let go.
    Yes,
}

fn is_staged(work: &super::tenure::Work) -> bool {
    work.place.is_staged()
}

impl Tenure {
    fn may_be_committed(&self) -> bool {
        matches!(self.phase, Phase::Live { .. } | Phase::Revoking { .. })
    }
}
