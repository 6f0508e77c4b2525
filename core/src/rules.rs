//! The safety rules that can be switched off one by one, so that a test can show what each is for.
//!
//! Invariant: a shipped process runs with [`Rules::ALL`]; `Rules::without` exists only with the
//! cargo feature `off`, which no binary enables.

/// A safety rule that has a law.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// D-W1: the watermark stops at the first event that is not terminal.
    ContiguousWatermark,
    /// D-O2: an event is terminal only when the output has stored it.
    StoredThenTerminal,
    /// D-L2: at most one event of a lane is at the app.
    LaneExclusion,
    /// D-L3: after a failed delivery report results are sent again in lane order.
    ResendInOrder,
    /// D-W5: what a previous owner finished above its commit is not answered again.
    LedgerMemory,
    /// D-W9, R5: nothing is dispatched at or beyond committed + window.
    Window,
    /// R4: live results are sent only under a lease.
    Lease,
    /// R4b, D-G4: no unassign while a commit of the partition is open, no commit afterwards.
    RevokeExclusion,
    /// R4c: nothing is committed on a partition in doubt.
    Doubt,
    /// D-V1: every event that is discarded is counted.
    Conservation,
    /// D-B6: after a crash nothing is sent before the app is healthy again, and nobody is blamed
    /// who was alone at the app at a single one.
    CrashIsOver,
    /// D-E2, R4: a transaction commits offsets as a member of the group, so that brokers refuse a
    /// zombie's.
    GroupMetadata,
    /// D-E4: a transaction's ledger marks the events whose results are in it.
    TransactionLedger,
    /// D-E5: what was in an aborted transaction goes again.
    AbortedAgain,
    /// D-L5: after a dead letter the lane is parked, also for the next owner.
    Parking,
    /// D-B7: after unclean ends events go one at a time, and the ledger names which.
    PodCrash,
    /// A-P2: a pushed call is finished only when the output has counted what is stored.
    AnsweredThenTerminal,
    /// A-P1, R10: a pushed call is withdrawn before its event is decided about.
    WithdrawBeforeRetry,
    /// D-G10: a commit carries the leader epoch of what was read, so that the next owner notices
    /// that the log was cut meanwhile.
    LeaderEpoch,
}

impl Rule {
    /// Every rule, for tests that switch each off in turn.
    pub const EACH: [Self; 19] = [
        Self::ContiguousWatermark,
        Self::StoredThenTerminal,
        Self::LaneExclusion,
        Self::ResendInOrder,
        Self::LedgerMemory,
        Self::Window,
        Self::Lease,
        Self::RevokeExclusion,
        Self::Doubt,
        Self::Conservation,
        Self::CrashIsOver,
        Self::GroupMetadata,
        Self::TransactionLedger,
        Self::AbortedAgain,
        Self::Parking,
        Self::PodCrash,
        Self::AnsweredThenTerminal,
        Self::WithdrawBeforeRetry,
        Self::LeaderEpoch,
    ];
}

/// Which rules hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    off: Option<Rule>,
}

impl Rules {
    /// What every shipped process runs with.
    pub const ALL: Self = Self { off: None };

    /// All rules but one.
    #[cfg(feature = "off")]
    pub const fn without(rule: Rule) -> Self {
        Self { off: Some(rule) }
    }

    /// Whether a rule holds.
    pub fn hold(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }
}
