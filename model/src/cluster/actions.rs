//! What the controller's actions do to groups, pods and the registry, and what must hold of every
//! commit.
//!
//! Invariant: the brokers refuse what they refuse: nothing is committed into a group with members
//! but by its members.

use std::collections::BTreeMap;

use millrace_core::contract::commit::{Metadata, UnknownKeys};
use millrace_core::position::{Partition, Position};
use millrace_core::release::plan::{
    Action, Committed, Group, Members, Phase, Pods, Status, Verdict,
};
use millrace_core::token::{ReleaseId, Token};

use super::Cluster;

impl Cluster {
    /// The controller carries one action out.
    pub fn carry_out(&mut self, action: Action) {
        match action {
            Action::SetStatus(status) => self.set_status(*status),
            Action::PushIntent(intent) => {
                if !self.issued.contains(&intent) {
                    // Where nothing arrives late, older ones are as if they had never been.
                    if self.budget.stale == 0 {
                        self.issued.clear();
                    }
                    self.issued.push(intent);
                }
            }
            Action::Register { partition, grant } => {
                self.observed.registry.insert(partition, grant);
            }
            Action::Seed { release, seeds } => {
                // The broker refuses such a commit while the group has members.
                if self.observed.is_empty(&release) {
                    for seed in seeds {
                        let token = seed.token(Position::START);
                        self.commit_fresh(&release, &seed.partition, token);
                    }
                }
            }
            Action::CommitIfEmpty {
                release,
                partition,
                at,
                metadata,
            } => {
                if self.observed.is_empty(&release) {
                    self.commit(&release, &partition, at, metadata);
                }
            }
            Action::CreateRelease(release) => {
                self.observed.pods.entry(release).or_insert(Pods {
                    wanted: 0,
                    running: 0,
                    ready: 0,
                });
            }
            Action::Scale { release, pods } => {
                if let Some(found) = self.observed.pods.get_mut(&release) {
                    found.wanted = pods;
                }
            }
            Action::DeleteRelease(release) => {
                self.observed.pods.remove(&release);
                self.heard.remove(&release);
                // Its pods go with it, and then its group has no members.
                if let Some(group) = self.observed.groups.get_mut(&release) {
                    group.members = Members::Empty;
                }
            }
            Action::DeleteGroup(release) => {
                if self.observed.is_empty(&release) {
                    self.delete_group(&release);
                }
            }
            Action::Snapshot => self.snapshot(),
            Action::Answer { decision, .. } => {
                // Answered decisions are of no interest any more.
                self.observed.decisions.retain(|d| d.name != decision);
            }
            Action::Record { .. } | Action::Notify { .. } => {}
        }
    }

    fn set_status(&mut self, status: Status) {
        let before = self.observed.status.phase;
        if before != status.phase {
            if !before.may_become(status.phase) {
                self.broken = Some("section 6: no such transition");
            }
            if status.phase == Phase::Preparing || status.phase == Phase::Stable {
                self.observed.evidence.verdict = Verdict::Pending;
            }
        }
        self.observed.status = status;
    }

    fn delete_group(&mut self, release: &ReleaseId) {
        let holds = |p: &Partition| {
            let others_hold = self.holders(p).any(|holder| holder != release);
            let named = self.observed.groups.iter().any(|(other, group)| {
                let token = group
                    .commits
                    .get(p)
                    .and_then(|c| c.metadata.as_ref())
                    .map(|m| &m.token);
                let to_this =
                    matches!(token, Some(Token::Sealed { to: Some(to), .. }) if to == release);
                other != release && to_this && !others_hold
            });
            self.observed.live(release, p).is_some() || named
        };
        if self.observed.fresh().any(holds) {
            self.broken = Some("a group was deleted that holds, or is given, a partition");
        }
        self.observed.groups.remove(release);
    }

    fn snapshot(&mut self) {
        let tokens = |group: &Group| {
            let token =
                |(p, c): (&Partition, &Committed)| Some((p.clone(), c.metadata.clone()?.token));
            group.commits.iter().filter_map(token).collect()
        };
        let groups = self.observed.groups.iter();
        self.observed.snapshot = groups
            .map(|(r, group)| (r.clone(), tokens(group)))
            .collect();
    }

    pub(super) fn commit_fresh(
        &mut self,
        release: &ReleaseId,
        partition: &Partition,
        token: Token,
    ) {
        let metadata = Metadata::of_outsider(token, None);
        self.commit(release, partition, Position::START, metadata);
    }

    /// Every commit comes by here: what must hold of tokens is looked at (I1).
    fn commit(
        &mut self,
        release: &ReleaseId,
        partition: &Partition,
        at: Position,
        metadata: Metadata,
    ) {
        if let Token::Live { epoch, from, .. } = &metadata.token {
            let was_live = self.observed.live(release, partition).is_some();
            let sealed = |token: &Token| {
                matches!(token, Token::Sealed { epoch: e, at, to: Some(to) }
                    if e == epoch && at == from && to == release)
            };
            let others = self
                .observed
                .groups
                .iter()
                .filter(|(other, _)| *other != release);
            let mut others = others
                .filter_map(|(_, group)| group.commits.get(partition)?.metadata.as_ref())
                .map(|metadata| &metadata.token);
            let first = others.clone().all(|token| token.tenure().is_none());
            if !was_live && !first && !others.any(sealed) {
                self.broken = Some("I1: Live without the seal that it starts from");
            }
        }
        let group = self
            .observed
            .groups
            .entry(release.clone())
            .or_insert(Group {
                members: Members::Empty,
                offsets_stable: true,
                commits: BTreeMap::new(),
            });
        // The form that is committed is the one that is read again.
        let text = metadata.encode();
        let read = Metadata::decode(&text, UnknownKeys::Refuse);
        let committed = Committed {
            at,
            metadata: read.ok(),
            lag: 0,
        };
        group.commits.insert(partition.clone(), committed);
        if self.holders(partition).count() > 1 {
            self.broken = Some("I1: two releases are Live");
        }
    }
}
