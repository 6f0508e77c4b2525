//! The registry: roots, and grants for partitions that were added (E4, R12, R13).
//!
//! Invariant: only a partition that the registry does not know is new; where a known one is Live
//! nowhere its token is lost, and only a person may replace it (R9).
//! Invariant: L is granted only where no other group has a Live or unadopted Sealed token, S only
//! beside a Live one.

use super::actions::{Action, Reason, Subject, Wait};
use super::duties::Duties;
use super::status::{Phase, Status};
use crate::contract::commit::Metadata;
use crate::contract::grant::{Grant, Granted, Grants};
use crate::position::{Partition, Position};
use crate::token::{ReleaseId, Token};

impl Duties<'_> {
    /// Keeps the registry of every partition; must come before the tokens of a first release.
    pub(super) fn registry(&mut self) {
        let observed = self.observed;
        let status = &observed.status;
        let Some(green) = &status.green else { return };
        // Until its pods start, every partition belongs to the first release, like D-G12.
        let first = status.blue.is_none() && status.phase == Phase::Preparing;
        let starting = first && !observed.was_started(green);
        for (partition, start) in observed.partitions.iter().flatten() {
            let known = observed.registry.get(partition);
            if let Some(known) = known {
                self.hand_on(known, partition);
            }
            let wanted = match known {
                None if starting => plain(green),
                None => Grant {
                    release: self.added(status, green, partition, *start),
                    ..plain(&root_of(self, green))
                },
                Some(known) => Grant {
                    root: self.root(status, green, known, partition),
                    release: self
                        .still_open(known, partition)
                        .or_else(|| self.repair(status, green, partition)),
                    seeding: known.seeding,
                },
            };
            if known != Some(&wanted) {
                let partition = partition.clone();
                let grant = wanted;
                self.actions.push(Action::Register { partition, grant });
            } else if wanted.release.is_some() {
                self.waiting_on.push(wait(partition, Reason::Granted));
            } else if !starting && self.lost(status, green, partition) {
                self.waiting_on.push(wait(partition, Reason::TokenMissing));
            }
        }
    }

    /// The grants of a partition that nobody knows yet.
    fn added(
        &self,
        status: &Status,
        green: &ReleaseId,
        partition: &Partition,
        start: Position,
    ) -> Option<Grants> {
        let observed = self.observed;
        let intent = status.intent.as_ref();
        let target = intent.map_or(green, |intent| &intent.target);
        let epoch = intent.map_or(1, |intent| intent.epoch);
        let taken = observed.groups.keys().any(|release| {
            observed
                .token(release, partition)
                .is_some_and(|t| t.tenure().is_some())
        });
        if taken {
            return None;
        }
        let live = Granted {
            release: target.clone(),
            token: Token::Live {
                epoch,
                from: start,
                peer: None,
            },
        };
        let other = [Some(green), status.blue.as_ref()]
            .into_iter()
            .flatten()
            .find(|release| *release != target && observed.groups.contains_key(*release));
        let second = other.map(|release| Granted {
            release: release.clone(),
            token: Token::Shadow {
                epoch,
                at: start,
                peer: Some(target.clone()),
            },
        });
        Some(Grants {
            first: live,
            second,
        })
    }

    /// S for the one of both releases that has no token beside the other's Live one: it was
    /// seeded before the partition was there, or its offsets have expired.
    fn repair(&self, status: &Status, green: &ReleaseId, partition: &Partition) -> Option<Grants> {
        let observed = self.observed;
        let blue = status.blue.as_ref()?;
        let epoch = status.intent.as_ref().map_or(1, |intent| intent.epoch);
        let grant = |missing: &ReleaseId, holder: &ReleaseId| {
            let never = observed.commit(missing, partition).is_none();
            let running = observed.groups.contains_key(missing) && !observed.is_empty(missing);
            let live = observed.live(holder, partition).is_some();
            let at = observed.commit(holder, partition)?.at;
            (never && running && live).then(|| Granted {
                release: missing.clone(),
                token: Token::Shadow {
                    epoch,
                    at,
                    peer: Some(holder.clone()),
                },
            })
        };
        let first = grant(blue, green).or_else(|| grant(green, blue))?;
        let second = None;
        Some(Grants { first, second })
    }

    /// The root: it changes when an old release is removed.
    fn root(
        &self,
        status: &Status,
        green: &ReleaseId,
        known: &Grant,
        partition: &Partition,
    ) -> ReleaseId {
        let observed = self.observed;
        // Whoever the root was: what it answered is history once the old group is removed.
        let retired = status.retiring.is_some()
            && status.phase == Phase::Stable
            && observed.live(green, partition).is_some()
            && observed
                .snapshot
                .get(green)
                .and_then(|saved| saved.get(partition))
                == observed.token(green, partition);
        if retired {
            green.clone()
        } else {
            known.root.clone()
        }
    }

    /// R13: a grant is cleared once its token is seen, or when its release is gone.
    fn still_open(&self, known: &Grant, partition: &Partition) -> Option<Grants> {
        let observed = self.observed;
        let open = |granted: &&Granted| {
            let exists = observed.groups.contains_key(&granted.release)
                || observed.pods.contains_key(&granted.release);
            exists && observed.token(&granted.release, partition).is_none()
        };
        let grants = known.release.as_ref()?;
        let mut open = [Some(&grants.first), grants.second.as_ref()]
            .into_iter()
            .flatten()
            .filter(open)
            .cloned();
        Some(Grants {
            first: open.next()?,
            second: open.next(),
        })
    }

    /// R13, like R11: L that nobody takes, because its release has no members and is not the target
    /// any more, is handed on as a seal; the target cannot take L, it has a token already.
    fn hand_on(&mut self, known: &Grant, partition: &Partition) {
        let observed = self.observed;
        let Some(intent) = &observed.status.intent else {
            return;
        };
        let commit = observed.commit(&intent.target, partition);
        let Some(found) = commit.and_then(|commit| commit.metadata.as_ref()) else {
            return;
        };
        let both = known.release.iter();
        let both = both.flat_map(|grants| [Some(&grants.first), grants.second.as_ref()]);
        for granted in both.flatten() {
            let release = granted.release.clone();
            let nobody = observed.is_empty(&release) && observed.are_stable(&release);
            let untaken = observed.commit(&release, partition).is_none();
            let Token::Live { from, .. } = granted.token else {
                continue;
            };
            if release == intent.target || !nobody || !untaken {
                continue;
            }
            let token = Token::Sealed {
                epoch: intent.epoch,
                at: from,
                to: Some(intent.target.clone()),
            };
            self.actions.push(Action::CommitIfEmpty {
                release,
                partition: partition.clone(),
                at: from,
                metadata: Metadata::of_outsider(token, found.topic),
            });
        }
    }

    fn lost(&self, status: &Status, green: &ReleaseId, partition: &Partition) -> bool {
        let observed = self.observed;
        let blue = status
            .blue
            .as_ref()
            .filter(|_| !matches!(status.phase, Phase::Preparing | Phase::Aborting));
        [Some(green), blue]
            .into_iter()
            .flatten()
            .any(|release| observed.token(release, partition).is_none())
    }
}

fn root_of(duties: &Duties<'_>, green: &ReleaseId) -> ReleaseId {
    let first = duties.observed.registry.values().next();
    first.map_or(green, |grant| &grant.root).clone()
}

fn plain(root: &ReleaseId) -> Grant {
    Grant {
        root: root.clone(),
        seeding: None,
        release: None,
    }
}

fn wait(partition: &Partition, reason: Reason) -> Wait {
    Wait {
        subject: Subject::Partition(partition.clone()),
        reason,
    }
}
