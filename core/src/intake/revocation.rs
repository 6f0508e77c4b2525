//! Letting partitions go in order: what was sent is awaited, the last commit is cut and ends, and
//! only then is the partition unassigned (D-G4).
//!
//! Invariant: a partition is let go only after every commit that touches it has ended, and none
//! follows (R4b).

use std::time::Duration;

use super::Intake;
use super::commits::FAILURES_MAX;
use super::io::{CommitId, Effect, Fact};
use super::tenure::{Phase, TenureId};
use super::transactions::Settled;
use crate::position::Partition;
use crate::rules::Rule;
use crate::time::Time;

/// Partitions that the group wants back (D-G4).
#[derive(Debug)]
pub(super) struct Revocation {
    pub(super) partitions: Vec<Partition>,
    pub(super) tenures: Vec<TenureId>,
    started: Time,
    deadline: Time,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Waiting for the acks of results already sent.
    Draining,
    /// The last commit is out.
    Committing(CommitId),
    /// The last commit was refused for now.
    Again { at: Time, times: u32 },
}

impl Revocation {
    fn wake(&self) -> Option<Duration> {
        match &self.step {
            Step::Draining => Some(self.deadline.boot),
            Step::Committing(_) => None,
            Step::Again { at, .. } => Some(at.boot),
        }
    }
}

impl Intake {
    /// Step (a) of D-G4: no more dispatch, no more lease; what was sent is awaited.
    pub(super) fn revoking(
        &mut self,
        partitions: Vec<Partition>,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        assert!(self.revocation.is_none(), "one rebalance at a time");
        self.tally.rebalances[1] += 1;
        let tenures: Vec<_> = partitions
            .iter()
            .filter_map(|p| self.by_partition.get(p).copied())
            .collect();
        for id in &tenures {
            let tenure = self
                .tenures
                .get_mut(id)
                .expect("by_partition names tenures");
            tenure.lease.clear();
            match &tenure.phase {
                Phase::Live { token, topic } => {
                    tenure.phase = Phase::Revoking {
                        token: token.clone(),
                        topic: *topic,
                    };
                }
                // Nothing was taken: what is still read about them comes too late.
                Phase::Reading { .. } | Phase::Halted { .. } => {
                    self.close(*id, |counters, n| counters.stale_revoked += n);
                }
                Phase::DataLost { .. } | Phase::Revoking { .. } => {}
            }
        }
        // Exactly-once: what is open may still join the transaction (D-G4 b).
        if !self.exactly_once() {
            self.stop_producing(partitions.clone(), effects);
        }
        if !self.settings.rules.hold(Rule::RevokeExclusion) {
            effects.push(Effect::Unassign(partitions.clone()));
        }
        self.revocation = Some(Revocation {
            partitions,
            tenures,
            started: now,
            deadline: now.plus(self.settings.drain_revoke),
            step: Step::Draining,
        });
    }

    /// When time alone moves the revocation on; an open commit has to end first.
    pub(super) fn next_revocation(&self) -> Option<Duration> {
        if self.rejoining || self.commit_is_open() {
            return None;
        }
        self.revocation.as_ref()?.wake()
    }

    /// Steps (b) to (e) of D-G4.
    pub(super) fn advance_revocation(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(revocation) = &self.revocation else {
            return;
        };
        if self.rejoining || self.commit_is_open() {
            return;
        }
        if self.exactly_once() {
            let tenures = revocation.tenures.clone();
            let late = now.boot >= revocation.deadline.boot;
            let last_was_cut = matches!(revocation.step, Step::Committing(_));
            match self.revocation_settled(&tenures, late, last_was_cut, now, effects) {
                Settled::No => {}
                Settled::Cut(id) => {
                    if let Some(revocation) = self.revocation.as_mut().filter(|_| late) {
                        revocation.step = Step::Committing(id);
                    }
                }
                Settled::Yes => self.release(now, effects),
            }
            return;
        }
        let mine = |id: &TenureId| self.tenures.get(id);
        let at_output = revocation
            .tenures
            .iter()
            .filter_map(mine)
            .any(|t| t.at_output > 0)
            || self.pushes.counting(&revocation.tenures);
        let dirty = revocation
            .tenures
            .iter()
            .filter_map(mine)
            .any(super::Tenure::is_unsettled);
        let commit = match revocation.step {
            Step::Draining if at_output && now.boot < revocation.deadline.boot => return,
            Step::Again { at, .. } if now.boot < at.boot => return,
            Step::Draining | Step::Again { .. } => dirty,
            // Its end is handled in `revocation_commit_ended`.
            Step::Committing(_) => false,
        };
        if commit {
            let tenures = revocation.tenures.clone();
            let which = |tenure: &super::Tenure| matches!(tenure.phase, Phase::Revoking { .. });
            if let Some(id) = self.cut_commit(which, true, now, effects) {
                let revocation = self.revocation.as_mut().expect("it was just there");
                debug_assert_eq!(tenures, revocation.tenures);
                revocation.step = Step::Committing(id);
                return;
            }
        }
        self.release(now, effects);
    }

    /// Step (e) of D-G4: lets go.
    fn release(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(revocation) = self.revocation.take() else {
            return;
        };
        // Results that were sent in vain must not be stored by the next transaction.
        let staged = |id: &TenureId| self.tenures.get(id).is_some_and(|t| t.staged > 0);
        if revocation.tenures.iter().any(staged) {
            self.stop_producing(revocation.partitions.clone(), effects);
        }
        self.tally
            .revoke_drain
            .record(now.since(revocation.started));
        for id in &revocation.tenures {
            if let Some((partition, unfinished)) =
                self.close(*id, |counters, n| counters.stale_revoked += n)
            {
                effects.push(Effect::Report(Fact::Released {
                    partition,
                    unfinished,
                }));
            }
        }
        if self.settings.rules.hold(Rule::RevokeExclusion) {
            effects.push(Effect::Unassign(revocation.partitions));
        }
    }

    pub(super) fn revocation_commit_ended(&mut self, ended: CommitId, now: Time) {
        let Some(revocation) = &mut self.revocation else {
            return;
        };
        let dirty = revocation
            .tenures
            .iter()
            .filter_map(|id| self.tenures.get(id))
            .any(|tenure| tenure.is_dirty() && tenure.commit_failures > 0);
        if let Step::Committing(id) = revocation.step
            && id == ended
            && dirty
        {
            let times = match revocation.step {
                Step::Again { times, .. } => times + 1,
                Step::Draining | Step::Committing(_) => 1,
            };
            if times <= FAILURES_MAX && now.boot < revocation.deadline.boot {
                revocation.step = Step::Again {
                    at: now.plus(self.settings.commit_interval),
                    times,
                };
            }
        }
    }
}
