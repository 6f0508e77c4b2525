//! What the planner sees: plain facts, gathered by whoever runs it.
//!
//! Invariant: nothing here is decided; a fact that could not be read is absent, never guessed.

use std::collections::{BTreeMap, BTreeSet};

use super::status::Status;
use crate::contract::commit::Metadata;
use crate::contract::grant::Grant;
use crate::evidence::guard;
pub use crate::evidence::verdict::Verdict;
use crate::position::{Partition, Position};
use crate::token::{ReleaseId, Token};

/// Everything that the planner looks at.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Observed {
    /// What Git asks for.
    pub spec: Spec,
    /// What the planner wrote last.
    pub status: Status,
    /// The partitions that exist now, with the first position of each; `None`: the brokers did
    /// not say.
    pub partitions: Option<BTreeMap<Partition, Position>>,
    /// The consumer groups of this block's releases; absent ones do not exist.
    pub groups: BTreeMap<ReleaseId, Group>,
    /// The registry (T3).
    pub registry: BTreeMap<Partition, Grant>,
    /// The pods of each release that was created.
    pub pods: BTreeMap<ReleaseId, Pods>,
    /// Every decision about the block, oldest first.
    pub decisions: Vec<Decision>,
    /// What the comparison showed.
    pub evidence: Evidence,
    /// What the guards measure.
    pub guard: Guard,
    /// The tokens of the last written snapshot (E5).
    pub snapshot: BTreeMap<ReleaseId, BTreeMap<Partition, Token>>,
}

/// The wanted release.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Spec {
    /// Of the document.
    pub generation: u64,
    /// Of the release-class fields (T1).
    pub hash8: String,
    /// Who changed it last, where known (`approvals.forbidAuthor`).
    pub author: Option<String>,
}

/// One consumer group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Group {
    /// Who is in it.
    pub members: Members,
    /// No transaction of it is open (R11).
    pub offsets_stable: bool,
    /// Its commits.
    pub commits: BTreeMap<Partition, Committed>,
}

/// The members of a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Members {
    /// None: only now the controller may commit.
    Empty,
    /// It rebalances.
    Moving,
    /// Everybody has what they shall have.
    Stable {
        /// Since when, epoch ms.
        since_ms: i64,
        /// What is assigned.
        assigned: BTreeSet<Partition>,
    },
}

/// The committed offset of one partition.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Committed {
    /// The offset.
    pub at: Position,
    /// What stands beside it; `None`: nothing that can be read (R9).
    pub metadata: Option<Metadata>,
    /// Events behind the end of what it may read.
    pub lag: u64,
}

/// The pods of one release.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pods {
    /// How many were asked for.
    pub wanted: u32,
    /// How many exist, those that end included.
    pub running: u32,
    /// How many are ready.
    pub ready: u32,
}

/// The word of a person or of CI.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Decision {
    /// Unique.
    pub name: String,
    /// What to do.
    pub action: DecisionAction,
    /// About which release.
    pub release: ReleaseId,
    /// The evidence that was looked at, if it was (J8).
    pub evidence: Option<String>,
    /// Who.
    pub actor: String,
    /// Whether it has been answered.
    pub answered: bool,
}

/// What a decision asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DecisionAction {
    /// The candidate may go live.
    Approve,
    /// It may not.
    Reject,
    /// Approve, and hand over at most this many partitions; `None`: all.
    Promote {
        /// How many.
        partitions: Option<u32>,
    },
    /// Give up the candidate, or go back.
    Abort,
    /// Go back.
    Rollback,
    /// Take the partitions from a release that cannot hand over (R11).
    Depose,
    /// Another attempt.
    Retry,
    /// Promote without a verdict.
    WaiveVerification,
}

/// What the comparison of both releases showed so far (J7, J8).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Evidence {
    /// The verdict.
    pub verdict: Verdict,
    /// A gate with `onFail: Hold` is missed: only a person may promote.
    pub held: bool,
    /// Of the evidence that it rests on.
    pub digest: Option<String>,
}

/// What the guards measure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Guard {
    /// What the do-no-harm guard of this candidate says (J9); while there is none, what the status
    /// says.
    pub suspended: guard::Record,
    /// Since when Blue fails more than `release.rollback.auto.errorRate`, epoch ms.
    pub failing_since_ms: Option<i64>,
}

impl Observed {
    /// The commit of a partition in the group of a release.
    pub fn commit(&self, release: &ReleaseId, partition: &Partition) -> Option<&Committed> {
        self.groups.get(release)?.commits.get(partition)
    }

    /// The token of a partition in a release.
    pub fn token(&self, release: &ReleaseId, partition: &Partition) -> Option<&Token> {
        let metadata = self.commit(release, partition)?.metadata.as_ref()?;
        Some(&metadata.token)
    }

    /// The epoch of a Live token.
    pub fn live(&self, release: &ReleaseId, partition: &Partition) -> Option<u64> {
        match self.token(release, partition)? {
            Token::Live { epoch, .. } => Some(*epoch),
            Token::Shadow { .. } | Token::Sealed { .. } => None,
        }
    }

    /// The partitions that exist now.
    pub fn fresh(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().flat_map(BTreeMap::keys)
    }

    /// Whether every partition is Live in a release, at an epoch of at least `epoch` (R12).
    pub fn all_live(&self, release: &ReleaseId, epoch: u64) -> bool {
        self.partitions.as_ref().is_some_and(|all| !all.is_empty())
            && self
                .fresh()
                .all(|partition| self.live(release, partition) >= Some(epoch))
    }

    /// Whether the controller may write to a group: it has no members, and no pod that could join.
    pub fn is_empty(&self, release: &ReleaseId) -> bool {
        let members = self.groups.get(release).map(|group| &group.members);
        let running = self.pods.get(release).map_or(0, |pods| pods.running);
        matches!(members, None | Some(Members::Empty)) && running == 0
    }

    /// Whether no transaction of a group is open (R11).
    pub fn are_stable(&self, release: &ReleaseId) -> bool {
        let group = self.groups.get(release);
        group.is_none_or(|group| group.offsets_stable)
    }

    /// Whether pods of a release were ever asked for, so that its owners may have answered.
    pub fn was_started(&self, release: &ReleaseId) -> bool {
        let pods = self.pods.get(release);
        pods.is_some_and(|pods| pods.wanted > 0 || pods.running > 0)
    }

    /// The highest epoch that any token or grant carries (R8, section 8).
    pub fn newest_epoch(&self) -> u64 {
        let tokens = self
            .groups
            .values()
            .flat_map(|group| group.commits.values());
        let tokens = tokens
            .filter_map(|commit| commit.metadata.as_ref())
            .map(|metadata| metadata.token.epoch());
        let granted = self
            .registry
            .values()
            .filter_map(|grant| grant.release.as_ref());
        let granted = granted
            .flat_map(|grants| [Some(&grants.first), grants.second.as_ref()])
            .flatten()
            .map(|granted| granted.token.epoch());
        tokens.chain(granted).max().unwrap_or(0)
    }
}
