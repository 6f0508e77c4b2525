//! One partition, two releases with their pods, and brokers that lose, delay and refuse: what an
//! owner does between reading a token and answering an event.
//!
//! Roles, stamps and commit strings come from `millrace_core`. Modelled are the group (generation,
//! members, committed offset), what an owner knows (ledger, requests in flight, floor, doubt), and
//! the log of answers. Time is modelled by its consequence: a member is evicted only after its
//! lease has lapsed (R4).
//!
//! Invariant: each rule of section 4 that is modelled stands at one place and asks
//! [`Owners::holds`], so that a test can switch it off.

use std::sync::{Arc, LazyLock};

use millrace_core::contract::commit::{LedgerImage, Metadata, UnknownKeys};
use millrace_core::contract::intent::{Intent, Partitions};
use millrace_core::position::{Partition, Position};
use millrace_core::release::role::{Role, View, role, stamped};
use millrace_core::token::{ReleaseId, Token};

use crate::explore::World;

mod broker;
mod steps;

/// Events of the partition; even and odd positions are two keys.
pub const EVENTS: u8 = 3;

/// W.
pub const WINDOW: u8 = 2;

/// The old release and the new one.
pub const X: usize = 0;
/// The new one.
pub const Y: usize = 1;

static NAMES: LazyLock<[ReleaseId; 2]> =
    LazyLock::new(|| ["x", "y"].map(|name| ReleaseId::new(name).expect("a short name")));
static PARTITION: LazyLock<Partition> = LazyLock::new(|| Partition::new("tx", 0));

/// `delivery.guarantee`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Guarantee {
    /// Results first, the commit later.
    AtLeastOnce,
    /// Both in one transaction.
    ExactlyOnce,
}

/// A rule that is switched off (V2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Off {
    /// R1: a cut is pushed instead of sealed.
    Seal,
    /// R6: an owner trusts what it knows itself.
    Floor,
    /// R6: the floor is forgotten at the first own commit.
    FloorKept,
    /// R4: who was evicted may still send; the same as static membership.
    Lease,
    /// R4b: a partition is given up while a commit is open.
    Exclusion,
    /// R4c: a commit with an unknown outcome is taken for failed.
    Doubt,
    /// R1: a carried seal forgets what was answered above its cut.
    Carried,
    /// R8: tokens do not acknowledge intents.
    Stamp,
    /// R11: a depose forgets what was answered above the commit.
    DeposeLedger,
    /// R9: a missing token is read as Live.
    Missing,
}

/// A world's bounds and its rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Setup {
    /// What is promised.
    pub guarantee: Guarantee,
    /// Pods of each release.
    pub pods: [u8; 2],
    /// Intents that may be issued, in this order: to Y, to X, to Y.
    pub intents: u8,
    /// Whether the candidate is removed after it was given up.
    pub discard: bool,
    /// Whether the old release may be deposed.
    pub depose: bool,
    /// The switch-off.
    pub off: Option<Off>,
}

/// What may still go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Faults {
    /// Pods that die.
    pub crashes: u8,
    /// Members that are evicted while they live.
    pub evictions: u8,
    /// Partitions that are moved in order.
    pub moves: u8,
    /// Commits whose outcome stays unknown.
    pub unknown: u8,
    /// Attempts that fail.
    pub failures: u8,
    /// Groups whose offsets expire.
    pub expiries: u8,
}

/// The world.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Owners {
    /// Its bounds.
    pub setup: Setup,
    /// What may still go wrong.
    pub faults: Faults,
    /// The consumer groups; a discarded one is gone.
    pub groups: [Option<Group>; 2],
    /// The pods of both releases.
    pub pods: [Vec<Pod>; 2],
    /// For each event, how often each release has answered it; more than twice is twice.
    pub answers: [[u8; 2]; EVENTS as usize],
    /// How many intents were issued.
    pub issued: u8,
    /// Where X stood when the first intent was issued (for [`Off::Seal`]).
    pub pushed_cut: u8,
    /// Whether a seal was carried or deposed: then order holds for each key only.
    pub carried: bool,
    /// Whether X was deposed.
    pub deposed: bool,
    /// The invariant that the last step broke.
    pub broken: Option<&'static str>,
}

/// A consumer group, as its coordinator knows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Group {
    /// Rises with each rebalance.
    pub generation: u8,
    /// To whom the partition is assigned.
    pub owner: Option<u8>,
    /// The committed offset and its metadata; `None`: expired.
    pub committed: Option<(u8, Arc<str>)>,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pod {
    /// The generation in which it is a member.
    pub member: Option<u8>,
    /// The coordinator has given it up, and it does not know.
    pub evicted: bool,
    /// The newest intent that it knows; 0: none.
    pub intent: u8,
    /// The partition, if it owns it.
    pub owner: Option<Owner>,
    /// A commit that may still be applied.
    pub limbo: Option<Commit>,
}

/// What an owner knows. Bit i of a set: the event at position i.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    /// Its token; `None`: it found none.
    pub token: Option<Token>,
    /// Committed.
    pub base: u8,
    /// Terminal at or above `base`.
    pub terminal: u8,
    /// At the app.
    pub in_flight: u8,
    /// Answered, and waiting for the next transaction.
    pub unstored: u8,
    /// R6.
    pub floor: u8,
}

/// A commit on its way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Commit {
    /// The offset.
    pub at: u8,
    /// What stands beside it.
    pub metadata: Arc<str>,
    /// Results in the same transaction.
    pub results: u8,
    /// It seals or adopts.
    pub hands_over: bool,
}

/// One thing that can happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// The controller asks for the next hand-over.
    Issue,
    /// An intent reaches a pod.
    Hear(usize, usize, u8),
    /// The coordinator assigns the partition to a pod, which reads (R2).
    Assign(usize, usize),
    /// The partition is revoked in order.
    Revoke(usize),
    /// A member is evicted without knowing.
    Evict(usize),
    /// It notices, and drops everything.
    Wake(usize, usize),
    /// A pod dies.
    Crash(usize, usize),
    /// An event goes to the app.
    Dispatch(usize, usize, u8),
    /// Its answer is published (exactly-once: enters the transaction).
    Answer(usize, usize, u8),
    /// The attempt fails.
    Fail(usize, usize, u8),
    /// Watermark, ledger and stamp are committed.
    Commit(usize, usize, Outcome),
    /// The owner seals (R1).
    Seal(usize, usize, Outcome),
    /// It seals although events have no answer.
    SealCarried(usize, usize, Outcome),
    /// The owner adopts (R3).
    Adopt(usize, usize, Outcome),
    /// A commit with unknown outcome is applied, and its callback says so.
    Late(usize, usize),
    /// It is not applied, and its callback says so.
    Never(usize, usize),
    /// The controller commits a seal for the dead release (R11).
    Depose,
    /// The controller removes the candidate.
    Discard,
    /// The committed offset expires.
    Expire(usize),
}

/// What a committer learns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Done, or refused by the broker.
    Known,
    /// Nothing yet.
    Unknown,
}

impl Owners {
    /// X is Live from 0, Y is seeded behind it.
    pub fn new(setup: Setup, faults: Faults) -> Self {
        let group = |token: &Token| {
            Some(Group {
                generation: 0,
                owner: None,
                committed: Some((0, text(token, 0, 0))),
            })
        };
        let live = Token::Live {
            epoch: 1,
            from: Position::START,
            peer: None,
        };
        let shadow = Token::Shadow {
            epoch: 1,
            at: Position::START,
            peer: Some(NAMES[X].clone()),
        };
        Self {
            setup,
            faults,
            groups: [group(&live), group(&shadow)],
            pods: setup.pods.map(|n| vec![Pod::default(); usize::from(n)]),
            answers: [[0; 2]; EVENTS as usize],
            issued: 0,
            pushed_cut: 0,
            carried: false,
            deposed: false,
            broken: None,
        }
    }

    /// Whether a rule holds.
    pub fn holds(&self, rule: Off) -> bool {
        self.setup.off != Some(rule)
    }

    /// The token that the broker holds for a release.
    pub fn token(&self, release: usize) -> Option<Token> {
        let (_, text) = self.groups[release].as_ref()?.committed.as_ref()?;
        Some(read(text).token)
    }

    /// Whether the newest intent is fulfilled (L1).
    pub fn is_handed_over(&self) -> bool {
        let target = if self.issued % 2 == 1 { Y } else { X };
        let live = |release| matches!(self.token(release), Some(Token::Live { .. }));
        live(target) && !live(1 - target)
    }

    /// Whether the old release has given the partition away and taken it back (L2).
    pub fn is_rolled_back(&self) -> bool {
        let adopted = matches!(self.token(X), Some(Token::Live { peer: Some(_), .. }));
        self.issued == 2 && adopted && self.is_handed_over()
    }

    fn exactly_once(&self) -> bool {
        self.setup.guarantee == Guarantee::ExactlyOnce
    }

    fn others(&self, release: usize) -> Vec<(ReleaseId, Token)> {
        let other = 1 - release;
        let token = self.token(other).map(|token| (NAMES[other].clone(), token));
        token.into_iter().collect()
    }

    /// What the real function says. Live owners do not look at others again before they commit,
    /// which is the worst that can happen between two looks.
    fn role(&self, release: usize, pod: &Pod, owner: &Owner) -> Role {
        let others = match owner.token {
            Some(Token::Live { .. }) => Vec::new(),
            Some(Token::Shadow { .. } | Token::Sealed { .. }) | None => self.others(release),
        };
        let intent = intent(pod.intent);
        role(&View {
            this: &NAMES[release],
            partition: &PARTITION,
            me: owner.token.as_ref(),
            others: &others,
            grant: None,
            intent: intent.as_ref(),
        })
    }

    /// The token that a Live owner's next commit carries (R8).
    fn stamp(&self, release: usize, pod: &Pod, token: &Token) -> Token {
        let intent = intent(pod.intent);
        let view = View {
            this: &NAMES[release],
            partition: &PARTITION,
            me: Some(token),
            others: &[],
            grant: None,
            intent: intent.as_ref(),
        };
        match token {
            Token::Live { epoch, from, peer } if self.holds(Off::Stamp) => Token::Live {
                epoch: stamped(&view, *epoch),
                from: *from,
                peer: peer.clone(),
            },
            Token::Live { .. } | Token::Shadow { .. } | Token::Sealed { .. } => token.clone(),
        }
    }
}

impl Owner {
    /// The lowest position that is not terminal.
    fn watermark(&self) -> u8 {
        (self.base..EVENTS)
            .find(|o| !has(self.terminal, *o))
            .unwrap_or(EVENTS)
    }

    /// One above the highest answered position (T7).
    fn horizon(&self) -> u8 {
        let highest = (0..EVENTS).rev().find(|o| has(self.terminal, *o));
        highest.map_or(0, |o| o + 1).max(self.watermark())
    }

    /// What its cut must reach at least (R1, R6).
    fn cut(&self) -> u8 {
        self.horizon().max(self.floor)
    }

    /// What its ledger says above a position.
    fn above(&self, at: u8) -> u8 {
        (at..EVENTS)
            .filter(|o| has(self.terminal, *o))
            .fold(0, |set, o| set | bit(o))
    }

    /// One event of a key at a time, in order (D-L2).
    fn is_next_of_lane(&self, o: u8) -> bool {
        (self.base..o)
            .filter(|earlier| earlier % 2 == o % 2)
            .all(|earlier| has(self.terminal, earlier))
    }
}

fn bit(o: u8) -> u8 {
    1 << o
}

fn has(set: u8, o: u8) -> bool {
    set & bit(o) != 0
}

/// The intents of the script; their epochs are 2, 3, 4.
fn intent(number: u8) -> Option<Intent> {
    (number > 0).then(|| Intent {
        epoch: u64::from(number) + 1,
        target: NAMES[if number % 2 == 1 { Y } else { X }].clone(),
        from: None,
        partitions: Partitions::All,
        shadow: None,
        reason: String::new(),
        decision: None,
    })
}

/// The commit string of a token at `at` with a set of terminal positions.
fn text(token: &Token, at: u8, terminal: u8) -> Arc<str> {
    let mut ledger = LedgerImage::default();
    for o in at..EVENTS {
        if has(terminal, o) {
            ledger.set_terminal(u64::from(o - at));
        }
    }
    let metadata = Metadata {
        ledger,
        ..Metadata::of_outsider(token.clone(), None)
    };
    metadata.encode().into()
}

fn read(text: &str) -> Metadata {
    Metadata::decode(text, UnknownKeys::Refuse).expect("only what was encoded is committed")
}

/// Positions at or above `at` that a ledger names.
fn terminal(metadata: &Metadata, at: u8) -> u8 {
    (at..EVENTS)
        .filter(|o| metadata.ledger.is_terminal(u64::from(o - at)))
        .fold(0, |set, o| set | bit(o))
}

fn position(at: u8) -> Position {
    Position::new(i64::from(at))
}

fn offset(position: Position) -> u8 {
    u8::try_from(position.offset()).expect("there are few events")
}

impl World for Owners {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        if self.broken.is_some() {
            return Vec::new();
        }
        self.possible()
    }

    fn after(&self, step: &Step) -> Option<Self> {
        let mut next = self.clone();
        next.take(*step);
        (next != *self).then_some(next)
    }
}
