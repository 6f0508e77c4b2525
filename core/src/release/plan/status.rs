//! What the planner remembers between two looks: the status of a block.
//!
//! Invariant: it is written as a whole by compare-and-set, so two controllers never both decide.
//! Invariant: whatever can be seen elsewhere (tokens, pods, groups) is not remembered here.

use std::collections::BTreeSet;

use super::super::name::Name;
use crate::contract::intent::Intent;
use crate::evidence::guard;
use crate::token::ReleaseId;

/// Where a block stands (section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Nothing was released yet.
    New,
    /// A release gets its tokens and pods.
    Preparing,
    /// The candidate answers in silence.
    Shadowing,
    /// It passed.
    Verified,
    /// Neither passed nor failed in the time given.
    Inconclusive,
    /// It failed, or never became ready.
    Failed,
    /// Partitions move to the candidate.
    Promoting,
    /// The candidate answers all; the old release is ready to take over again.
    RollbackWindow,
    /// Partitions move back.
    RollingBack,
    /// The candidate is removed.
    Aborting,
    /// One release.
    Stable,
}

impl Phase {
    /// Every phase.
    pub const EACH: [Self; 11] = [
        Self::New,
        Self::Preparing,
        Self::Shadowing,
        Self::Verified,
        Self::Inconclusive,
        Self::Failed,
        Self::Promoting,
        Self::RollbackWindow,
        Self::RollingBack,
        Self::Aborting,
        Self::Stable,
    ];

    /// Whether section 6 has this transition.
    pub fn may_become(self, next: Self) -> bool {
        use Phase::{
            Aborting, Failed, Inconclusive, New, Preparing, Promoting, RollbackWindow, RollingBack,
            Shadowing, Stable, Verified,
        };
        match self {
            // New to Stable: a status that was lost beside tokens that were not (section 8).
            New => matches!(next, Preparing | Stable),
            Stable => next == Preparing,
            Preparing => matches!(next, Shadowing | Promoting | Failed | Aborting | Stable),
            Shadowing => matches!(next, Verified | Failed | Inconclusive | Aborting),
            Verified | Inconclusive => matches!(next, Promoting | Aborting),
            Failed => next == Aborting,
            Promoting => matches!(next, RollbackWindow | RollingBack),
            RollbackWindow => matches!(next, RollingBack | Stable),
            RollingBack => next == Aborting,
            Aborting => matches!(next, Stable | Preparing),
        }
    }

    /// A candidate exists and no intent has given it anything.
    pub fn is_before_promotion(self) -> bool {
        matches!(
            self,
            Self::Preparing | Self::Shadowing | Self::Verified | Self::Inconclusive | Self::Failed
        )
    }
}

/// The status of a block (section 12).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Status {
    /// Where it stands.
    pub phase: Phase,
    /// Since when, epoch ms.
    pub since_ms: i64,
    /// The release that answered when the candidate came.
    pub green: Option<ReleaseId>,
    /// The candidate.
    pub blue: Option<ReleaseId>,
    /// What Git asks for, and since when.
    pub wanted: Option<Wanted>,
    /// The newest intent (E3).
    pub intent: Option<Intent>,
    /// The newest epoch of an intent that targets the candidate.
    pub targeted: Option<u64>,
    /// How far the promotion is.
    pub promotion: Promotion,
    /// Who has approved the candidate.
    pub approvals: BTreeSet<String>,
    /// It may go live without a verdict.
    pub waived: bool,
    /// How often the candidate was paused because Green suffered, and whether it is (J9).
    pub suspended: guard::Record,
    /// How the candidate ends.
    pub ending: Option<Ending>,
    /// Releases that lose their partitions by a decision (R11).
    pub deposed: BTreeSet<ReleaseId>,
    /// The old release that is being removed (R12).
    pub retiring: Option<ReleaseId>,
    /// Releases that are not tried again by themselves (G2), newest last.
    pub rejected: Vec<ReleaseId>,
    /// Decisions that have taken effect.
    pub applied: BTreeSet<String>,
    /// People were told that nothing moves.
    pub stalled: bool,
    /// The epoch was found behind the tokens (section 8).
    pub epoch_repaired: bool,
}

/// A release that Git asks for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Wanted {
    /// The generation with which it came.
    pub generation: u64,
    /// Its hash (T1).
    pub hash8: String,
    /// Attempts that have been begun.
    pub attempts: u32,
}

/// How far a promotion is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Promotion {
    /// Index of the step.
    pub step: usize,
    /// Since when all partitions of the step are handed over, epoch ms.
    pub step_done_ms: Option<i64>,
    /// `promote --partitions N`.
    pub limit: Option<u32>,
}

/// How a candidate ends, other than by answering.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ending {
    /// A gate was missed.
    GateFailed,
    /// It did not become ready in time.
    NotReady,
    /// Somebody rejected it.
    Rejected,
    /// Nobody approved it in time.
    ApprovalExpired,
    /// Somebody gave it up, or Git went back.
    Aborted,
    /// It was live, at least in parts.
    RolledBack,
    /// Git asks for something else.
    Superseded,
    /// Another attempt follows.
    Retry,
}

impl Status {
    /// Of a block that nobody has looked at.
    pub fn new(now_ms: i64) -> Self {
        Self {
            phase: Phase::New,
            since_ms: now_ms,
            green: None,
            blue: None,
            wanted: None,
            intent: None,
            targeted: None,
            promotion: Promotion::default(),
            approvals: BTreeSet::new(),
            waived: false,
            suspended: guard::Record::default(),
            ending: None,
            deposed: BTreeSet::new(),
            retiring: None,
            rejected: Vec::new(),
            applied: BTreeSet::new(),
            stalled: false,
            epoch_repaired: false,
        }
    }

    /// Whether Git asks for what `release` is.
    pub fn wants(&self, release: Option<&ReleaseId>) -> bool {
        let name = release.and_then(Name::read);
        matches!((name, &self.wanted), (Some(name), Some(wanted)) if name.hash8 == wanted.hash8)
    }

    /// Whether what Git asks for was rejected since it asked (G2).
    pub fn wants_rejected(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| {
            self.rejected
                .iter()
                .filter_map(Name::read)
                .any(|name| (name.generation, &name.hash8) == (wanted.generation, &wanted.hash8))
        })
    }

    /// Whether the candidate is paused, because Green suffered (J9). A promotion ends that: the
    /// candidate must catch up to take over.
    pub fn is_suspended(&self) -> bool {
        self.phase.is_before_promotion() && self.suspended.paused
    }

    pub(super) fn enter(&mut self, phase: Phase, now_ms: i64) {
        self.phase = phase;
        self.since_ms = now_ms;
        self.stalled = false;
    }

    /// Forgets the candidate.
    pub(super) fn clear(&mut self) {
        self.blue = None;
        self.targeted = None;
        self.promotion = Promotion::default();
        self.approvals.clear();
        self.waived = false;
        self.suspended = guard::Record::default();
        self.ending = None;
        self.deposed.clear();
    }
}
