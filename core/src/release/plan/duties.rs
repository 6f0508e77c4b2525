//! What each phase has to get done: tokens, pods, hand-overs, clean-up.
//!
//! Invariant: tokens before pods, and pods gone before the controller writes tokens again.
//! Invariant: a release is removed only when no intent that still travels could name it.

use super::actions::{Action, Reason, Seed, SeedKind, Start, Subject, Wait};
use super::intents::{lag, step_partitions, unadopted};
use super::observed::Observed;
use super::phases::{approvals_needed, may_discard};
use super::policy::{Policy, left};
use super::readiness;
use super::status::{Phase, Status};
use crate::contract::block::Strategy;
use crate::contract::commit::Metadata;
use crate::position::Partition;
use crate::token::{ReleaseId, Token};

/// Collects actions and waits.
pub(super) struct Duties<'a> {
    pub(super) observed: &'a Observed,
    pub(super) policy: &'a Policy,
    pub(super) now_ms: i64,
    pub(super) actions: Vec<Action>,
    pub(super) waiting_on: Vec<Wait>,
}

impl Duties<'_> {
    /// What the present phase has to get done.
    pub(super) fn of_phase(&mut self) {
        let status = &self.observed.status;
        match (status.phase, &status.green, &status.blue) {
            (Phase::New, ..) | (_, None, _) => {}
            (Phase::Stable, Some(green), _) => self.stable(status, green),
            (_, Some(green), None) => self.first(green),
            (Phase::Preparing, Some(green), Some(blue)) => self.prepare(green, blue),
            (Phase::Promoting, Some(green), Some(blue)) => self.promote(status, green, blue),
            (Phase::RollingBack, Some(green), Some(blue)) => self.hand_over(blue, green),
            (Phase::RollbackWindow, Some(green), Some(blue)) => self.window(status, green, blue),
            (Phase::Aborting, Some(green), Some(blue)) => self.abort(status, green, blue),
            (Phase::Shadowing, Some(green), Some(blue)) => {
                self.keep_both(green, blue);
                self.wait(blue, Reason::Evidence);
            }
            (Phase::Verified, Some(green), Some(blue)) => {
                self.keep_both(green, blue);
                let given = status.approvals.len();
                let required = u32::try_from(approvals_needed(self.policy)).unwrap_or(u32::MAX);
                self.wait(blue, Reason::Approvals { given, required });
            }
            (Phase::Inconclusive | Phase::Failed, Some(green), Some(blue)) => {
                self.keep_both(green, blue);
                self.wait(blue, Reason::Decision);
            }
        }
    }

    pub(super) fn wait(&mut self, release: &ReleaseId, reason: Reason) {
        self.waiting_on.push(readiness::wait(release, reason));
    }

    fn wait_for(&mut self, partition: &Partition, reason: Reason) {
        self.waiting_on.push(Wait {
            subject: Subject::Partition(partition.clone()),
            reason,
        });
    }

    fn pods(&self) -> u32 {
        self.policy.replicas.max(1)
    }

    fn first(&mut self, green: &ReleaseId) {
        let seeds = self.missing(green, |_, _| Some(Start::Configured), SeedKind::Live, 1);
        self.seed_and_start(green, seeds, self.pods());
        self.await_ready(green);
    }

    fn prepare(&mut self, green: &ReleaseId, blue: &ReleaseId) {
        let replay = self.policy.release.shadow.replay_from_ms;
        let start = |observed: &Observed, partition: &Partition| match replay {
            Some(timestamp_ms) => Some(Start::Time { timestamp_ms }),
            // R9: behind a holder whose token is gone nobody can trail.
            None => observed
                .token(green, partition)
                .and(observed.commit(green, partition))
                .map(|commit| Start::At(commit.at)),
        };
        let epoch = self
            .observed
            .status
            .intent
            .as_ref()
            .map_or(1, |intent| intent.epoch);
        let peer = green.clone();
        let seeds = self.missing(blue, start, SeedKind::Shadow { peer }, epoch);
        let pods = match self.policy.release.strategy {
            Strategy::BlueGreen => self.policy.release.shadow.replicas.max(1),
            Strategy::Recreate => 0,
        };
        self.seed_and_start(blue, seeds, pods);
        self.scale(green, self.pods());
        self.await_ready(blue);
    }

    /// Seeds for every partition that has no commit in the release's group.
    fn missing(
        &self,
        release: &ReleaseId,
        start: impl Fn(&Observed, &Partition) -> Option<Start>,
        kind: SeedKind,
        epoch: u64,
    ) -> Vec<Seed> {
        let observed = self.observed;
        let seed = |partition: &Partition| {
            Some(Seed {
                partition: partition.clone(),
                start: start(observed, partition)?,
                kind: kind.clone(),
                epoch,
            })
        };
        observed
            .fresh()
            .filter(|partition| observed.commit(release, partition).is_none())
            .filter_map(seed)
            .collect()
    }

    fn seed_and_start(&mut self, release: &ReleaseId, seeds: Vec<Seed>, pods: u32) {
        // Owners may have committed since: then a token that is not there is lost (R9).
        let before_start = self.observed.is_empty(release) && !self.observed.was_started(release);
        if before_start && !seeds.is_empty() {
            let release = release.clone();
            self.actions.push(Action::Seed { release, seeds });
            return;
        }
        // A partition that was added later has a grant instead (R13).
        let seeded = self
            .observed
            .fresh()
            .any(|p| self.observed.commit(release, p).is_some());
        if !seeded {
            return self.wait(release, Reason::TokenMissing);
        }
        self.start(release, pods);
    }

    fn start(&mut self, release: &ReleaseId, pods: u32) {
        if !self.observed.pods.contains_key(release) {
            self.actions.push(Action::CreateRelease(release.clone()));
        }
        self.scale(release, pods);
    }

    fn scale(&mut self, release: &ReleaseId, pods: u32) {
        let wanted = self.observed.pods.get(release).map(|pods| pods.wanted);
        let created = self
            .actions
            .contains(&Action::CreateRelease(release.clone()));
        if wanted.map_or(created && pods > 0, |wanted| wanted != pods) {
            let release = release.clone();
            self.actions.push(Action::Scale { release, pods });
        }
    }

    fn await_ready(&mut self, release: &ReleaseId) {
        if let Err(wait) = readiness::of(release, self.observed, self.now_ms) {
            self.waiting_on.push(wait);
        }
    }

    fn keep_both(&mut self, green: &ReleaseId, blue: &ReleaseId) {
        self.scale(green, self.pods());
        if self.policy.release.strategy == Strategy::BlueGreen {
            self.scale(blue, self.policy.release.shadow.replicas.max(1));
        }
    }

    fn promote(&mut self, status: &Status, green: &ReleaseId, blue: &ReleaseId) {
        self.hand_over(green, blue);
        if self.policy.release.strategy == Strategy::Recreate {
            return;
        }
        if let Err(wait) = readiness::of(blue, self.observed, self.now_ms) {
            self.waiting_on.push(wait);
        }
        let events = lag(blue, self.observed);
        let max = self.policy.release.promotion.max_cutover_lag;
        if events > max {
            self.wait(blue, Reason::Lag { events, max });
        }
        let there = |p: &&Partition| self.observed.live(blue, p).is_some();
        let there = self.observed.fresh().filter(there).count();
        let all = self.observed.fresh().count();
        let step = self
            .policy
            .release
            .promotion
            .steps
            .get(status.promotion.step);
        if let (Some(done), Some(step)) = (status.promotion.step_done_ms, step) {
            let left = left(done, step.pause, self.now_ms);
            self.wait(blue, Reason::Time { left });
        } else if there < all && there >= step_partitions(status, self.observed, self.policy) {
            self.wait(blue, Reason::Limit);
        }
    }

    /// Moves what the intent covers, or all when it goes back.
    fn hand_over(&mut self, giver: &ReleaseId, receiver: &ReleaseId) {
        let status = &self.observed.status;
        let Some(intent) = status
            .intent
            .as_ref()
            .filter(|intent| intent.target == *receiver)
        else {
            return;
        };
        let recreate = self.policy.release.strategy == Strategy::Recreate;
        let covered: Vec<_> = self.observed.fresh().filter(|p| intent.covers(p)).collect();
        let is_live = |p: &&&Partition| self.observed.live(giver, p).is_some();
        let live: Vec<_> = covered.iter().filter(is_live).copied().collect();
        let deposed = status.deposed.contains(giver);
        let giver_pods = if deposed || recreate && live.is_empty() {
            0
        } else {
            self.pods()
        };
        self.scale(giver, giver_pods);
        if !recreate || self.observed.is_empty(giver) {
            self.start(receiver, self.pods());
        }
        // Recreate: a giver without pods can adopt nothing, so what it was given goes back (R11).
        if giver_pods == 0 {
            self.depose(giver, receiver, intent.epoch, &covered);
        }
        for partition in covered {
            let lives = self.observed.live(receiver, partition);
            if self.observed.live(giver, partition).is_some() {
                self.wait_for(partition, Reason::NotSealed);
            } else if unadopted(giver, receiver, partition, self.observed).is_some() {
                self.wait_for(partition, Reason::NotAdopted);
            } else if lives.is_some_and(|epoch| epoch < intent.epoch) {
                self.wait_for(partition, Reason::NotSealed);
            } else if lives.is_none() {
                self.wait_for(partition, Reason::NotAdopted);
            }
        }
    }

    /// R11: takes what the giver holds, and what it was given and has not taken.
    fn depose(
        &mut self,
        giver: &ReleaseId,
        receiver: &ReleaseId,
        epoch: u64,
        covered: &[&Partition],
    ) {
        if !self.observed.is_empty(giver) {
            return self.wait(giver, Reason::Leaving);
        }
        let group = self.observed.groups.get(giver);
        if !group.is_some_and(|group| group.offsets_stable) {
            return self.wait(giver, Reason::OffsetsUnstable);
        }
        for partition in covered {
            let held = self.observed.live(giver, partition).is_some();
            let source = if held {
                giver
            } else if unadopted(receiver, giver, partition, self.observed).is_some() {
                receiver
            } else {
                continue;
            };
            let Some(commit) = self.observed.commit(source, partition) else {
                continue;
            };
            let Some(metadata) = &commit.metadata else {
                continue;
            };
            let to = Some(receiver.clone());
            let at = commit.at;
            let sealed = Metadata {
                token: Token::Sealed { epoch, at, to },
                generation: 0,
                member: None,
                ..metadata.clone()
            };
            self.actions.push(Action::CommitIfEmpty {
                release: giver.clone(),
                partition: (*partition).clone(),
                at,
                metadata: sealed,
            });
        }
    }

    fn window(&mut self, status: &Status, green: &ReleaseId, blue: &ReleaseId) {
        let retained = match self.policy.release.strategy {
            Strategy::BlueGreen => self.policy.release.rollback.retain_replicas,
            Strategy::Recreate => 0,
        };
        let deposed = status.deposed.contains(green);
        self.scale(green, if deposed { 0 } else { retained });
        self.scale(blue, self.pods());
        let window = self.policy.release.rollback.window;
        let left = left(status.since_ms, window, self.now_ms);
        self.wait(blue, Reason::Time { left });
    }

    fn abort(&mut self, status: &Status, green: &ReleaseId, blue: &ReleaseId) {
        self.scale(green, self.pods());
        if !may_discard(status, green, self.observed) {
            for partition in self.observed.fresh() {
                let live = self.observed.live(green, partition);
                if live <= status.targeted {
                    self.waiting_on.push(Wait {
                        subject: Subject::Partition(partition.clone()),
                        reason: Reason::NotSealed,
                    });
                }
            }
            return;
        }
        self.remove(blue);
    }

    fn stable(&mut self, status: &Status, green: &ReleaseId) {
        self.scale(green, self.pods());
        let Some(old) = &status.retiring else { return };
        self.scale(old, 0);
        if !self.observed.is_empty(old) {
            return self.wait(old, Reason::Leaving);
        }
        let saved = self.observed.snapshot.get(green);
        let is_saved = |p: &Partition| {
            let token = self.observed.token(green, p);
            let same = saved.and_then(|saved| saved.get(p)) == token;
            same && matches!(token, Some(Token::Live { .. }))
        };
        // R12: the old group is what remains of history until both are written.
        if !self.observed.fresh().all(is_saved) {
            if self.observed.all_live(green, 0) {
                self.actions.push(Action::Snapshot);
            } else {
                self.wait(green, Reason::TokenMissing);
            }
            return;
        }
        let rooted = |p: &Partition| {
            let grant = self.observed.registry.get(p);
            grant.is_some_and(|grant| grant.root == *green)
        };
        if self.observed.partitions.is_some() && self.observed.fresh().all(rooted) {
            self.remove(old);
        } else {
            self.wait(old, Reason::Retiring(old.clone()));
        }
    }

    fn remove(&mut self, release: &ReleaseId) {
        self.scale(release, 0);
        if !self.observed.is_empty(release) {
            return self.wait(release, Reason::Leaving);
        }
        if self.observed.groups.contains_key(release) {
            self.actions.push(Action::DeleteGroup(release.clone()));
        }
        if self.observed.pods.contains_key(release) {
            self.actions.push(Action::DeleteRelease(release.clone()));
        }
    }
}
