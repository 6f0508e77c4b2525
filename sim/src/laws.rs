//! What must hold whatever goes wrong, checked at each step and at the end of a run.
//!
//! The laws keep a truth of their own: what really was stored, by whom, and what each process
//! was told. They judge what a machine does by that, never by what the machine believes.

mod calls;
mod commits;
mod pushes;
mod results;
mod transactions;
mod truth;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace_core::contract::commit::{CrashState, Metadata, UnknownKeys};
use millrace_core::intake::io::{CallId, CommitId, Input, Link, Operator, TokensRead};
use millrace_core::intake::state::State;
use millrace_core::lanes::{LaneHash, Ordering};
use millrace_core::position::{Partition, Position};

pub(crate) use self::truth::Source;
use self::truth::Truth;
use crate::scenario::Scenario;
use crate::world::Who;
use crate::world::log::Log;

/// A law.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Law {
    /// D-V3: every event below the committed position has an outcome; in the end every event.
    NoLoss,
    /// D-L4: first deliveries of a lane stand in the log in the order of their events.
    Order,
    /// D-L2: one event of a lane, or one batch in lane order, is at the app.
    LaneExclusion,
    /// D-L3: what was not stored is sent again before anything later of its lane.
    Resend,
    /// D-W1, I4: nothing below a commit, or in its ledger, is unfinished; commits never go back.
    Watermark,
    /// D-W5: what a ledger says is finished is not answered again, and attempts are not forgotten.
    Remembered,
    /// What was stored, and known to be, is not sent again.
    Repeats,
    /// Exactly-once: who reads what is committed sees each result once, and never both a result
    /// and a dead letter of one event.
    Once,
    /// D-W9, R5: nothing is dispatched at or beyond committed + window.
    Window,
    /// R4: nothing live is sent or produced without a lease.
    Lease,
    /// R4b, D-G4: commit and revocation of a partition exclude each other.
    RevokeExclusion,
    /// R4c: nothing is committed on, or given away, in doubt.
    Doubt,
    /// D-V1: every event is accounted for.
    Conservation,
    /// D-C1: what is in flight is bounded.
    Memory,
    /// Everything settles once the faults are over.
    Liveness,
    /// The machine does not wake up for nothing.
    WakeUps,
    /// D-G3: nothing is dispatched before the token is read, or after a revocation.
    Ownership,
    /// E1, E2: commit metadata is readable, short, and keeps token and topic.
    Metadata,
    /// D-I3: a record answers its own event under its own id.
    Identity,
    /// A dead letter has a cause; a result was answered by the app.
    Outcome,
    /// D-B6: who is dead-lettered for crashing the app was there when it died, again and again,
    /// and alone at the end.
    Blame,
    /// D-B7: an event of a suspect range is at the app alone, and the stored commit names it.
    Named,
    /// D-L5: nothing of a lane goes to the app behind its dead letter as long as it is parked.
    Parked,
    /// D-G10: after an unclean election nobody reads on behind a position that is not in the log.
    History,
    /// The consumer client is used as it can be.
    Client,
    /// A-P1, A-P2: results of a call that is over are not stored; calls are announced.
    Pushes,
    /// P-1 to P-8: the output understands and accepts every frame.
    Protocol,
    /// No machine meets what it thinks impossible.
    Panic,
}

/// A broken law.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub law: Law,
    /// What happened.
    pub message: String,
}

/// What a check comes to.
pub(crate) type Lawful<T = ()> = Result<T, Violation>;

impl Law {
    pub(crate) fn broken(self, message: impl Into<String>) -> Violation {
        Violation {
            law: self,
            message: message.into(),
        }
    }
}

/// Fails with a message unless a condition holds.
macro_rules! require {
    ($law:ident, $condition:expr, $($message:tt)+) => {
        if !($condition) {
            return Err($crate::laws::Law::$law.broken(format!($($message)+)));
        }
    };
}
use require;

/// The laws of one run and the truth that they judge by.
#[derive(Debug)]
pub(crate) struct Laws {
    truth: Truth,
    tenures: BTreeMap<(usize, usize), Tenure>,
    processes: BTreeMap<usize, Process>,
    tenures_opened: u64,
    /// End of the last lease that was really obtained, by pod and partition.
    leased_until: BTreeMap<(usize, usize), Duration>,
    /// Partitions that a pod's member lost by silence and did not get back.
    expired: BTreeSet<(usize, usize)>,
    window: u64,
    per_lane_max: usize,
    batch_records_max: usize,
    in_flight_max: u64,
    once: bool,
    ttl: bool,
    /// Commits of owners that ended uncleanly, by the event that they name.
    named: BTreeMap<(usize, Position), BTreeSet<String>>,
    /// Whether lanes are parked, for longer than a run takes.
    parks: bool,
    lanes: BTreeMap<LaneHash, u32>,
    push: bool,
    muted: Option<Law>,
}

/// One partition while a process has it, as the laws see it.
#[derive(Debug)]
struct Tenure {
    number: u64,
    /// Where it has to start, and what is finished above that.
    read: Option<(Position, BTreeSet<Position>)>,
    /// Attempts of earlier owners.
    attempts: BTreeMap<Position, u32>,
    started: Option<Position>,
    /// The last commit that the process knows to be stored.
    committed: Position,
    /// When that commit was cut.
    sent: Option<Duration>,
    revoking: bool,
    doubt: bool,
    busy: BTreeMap<u32, CallId>,
    /// Events that the app answered with results in this tenure.
    answered: BTreeSet<usize>,
    /// Events that the output has, by their frames.
    at_output: BTreeSet<usize>,
    stored: BTreeSet<usize>,
    /// Events that were not stored and have to come again, by lane.
    owed: BTreeMap<u32, BTreeSet<usize>>,
    /// The last event of a lane that was sent for the first time.
    last_sent: BTreeMap<u32, usize>,
    /// What the last stored commit says about unclean ends, and where it stands.
    crash: Option<(Position, CrashState)>,
    /// Lanes that are parked, and those that ever were.
    parked: BTreeSet<u32>,
    ever_parked: BTreeSet<u32>,
    /// Behind the last event handed over.
    end: Position,
    /// An operator let every lane go on when this was the end.
    unparked_at: Position,
}

/// One input process, as the laws see it.
#[derive(Debug, Default)]
struct Process {
    open: Option<OpenCommit>,
    calls: BTreeMap<CallId, Vec<Sent>>,
    /// Events of the frames of this session that are not answered.
    frames: BTreeMap<u64, Vec<Option<Sent>>>,
    /// Exactly-once: events of the transaction that has not ended.
    staged: Vec<Sent>,
    /// Events handed over, by partition.
    records: BTreeMap<usize, u64>,
    /// Events that it was told to be stored while it held them, by partition.
    stored: BTreeMap<usize, u64>,
    /// Deaths of the app at which an event was there, and those at which it was alone.
    deaths: BTreeMap<(usize, usize), Deaths>,
    pushes: pushes::Pushes,
    idle_turns: u32,
    idle_second: (u64, u32),
}

/// The deaths of the app that one event of a process has seen.
#[derive(Clone, Debug, Default)]
struct Deaths {
    any: BTreeSet<u64>,
    alone: BTreeSet<u64>,
}

#[derive(Debug)]
struct OpenCommit {
    id: CommitId,
    sent: Duration,
    offsets: Vec<Covered>,
}

/// What a commit says of one partition.
#[derive(Debug)]
struct Covered {
    partition: usize,
    tenure: u64,
    position: Position,
    /// What it says about unclean ends.
    crash: Option<CrashState>,
}

/// An event that a tenure has given away for a while.
#[derive(Clone, Copy, Debug)]
struct Sent {
    partition: usize,
    index: usize,
    tenure: u64,
    lane: u32,
}

/// Turns without any effect that are due at once, in a row.
const IDLE_TURNS_MAX: u32 = 3;
/// Ticks without any effect in one virtual second.
const IDLE_TICKS_MAX: u32 = 400;

/// A lane that is parked for so long stays parked to the end of a run.
const PARKED_FOR_GOOD: Duration = Duration::from_secs(3_600);

/// The lane, as the truth counts them, of each hash that a ledger can name.
fn lanes(ordering: Ordering, logs: &[Log]) -> BTreeMap<LaneHash, u32> {
    let mut lanes = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for record in logs.iter().flat_map(|log| &log.records) {
        let Some(hash) = LaneHash::of(ordering, record.key.as_deref()) else {
            continue;
        };
        let next = u32::try_from(keys.len() + 1).expect("few keys");
        let lane = if ordering == Ordering::Partition {
            1
        } else {
            *keys.entry(record.key.clone()).or_insert(next)
        };
        lanes.insert(hash, lane);
    }
    lanes
}

fn index_of(partition: &Partition) -> usize {
    usize::try_from(partition.number()).expect("partitions count from zero")
}

impl Laws {
    pub(crate) fn new(scenario: &Scenario, logs: &[Log]) -> Self {
        let settings = scenario.settings(0, millrace_core::rules::Rules::ALL);
        let fetched = scenario.fetch_max * scenario.partitions as u64;
        Self {
            truth: Truth::new(scenario.calm, &settings, logs),
            tenures: BTreeMap::new(),
            processes: BTreeMap::new(),
            tenures_opened: 0,
            leased_until: BTreeMap::new(),
            expired: BTreeSet::new(),
            window: settings.window,
            per_lane_max: settings.batch.per_lane_max,
            batch_records_max: settings.batch.records_max,
            in_flight_max: settings.in_flight_max as u64 + fetched,
            once: scenario.once,
            ttl: settings.ttl.is_some(),
            named: BTreeMap::new(),
            parks: settings
                .parking
                .is_some_and(|parking| parking.ttl >= PARKED_FOR_GOOD),
            lanes: lanes(settings.ordering, logs),
            push: scenario.push.is_some(),
            muted: scenario.muted,
        }
    }

    /// A process starts.
    pub(crate) fn started(&mut self, who: Who) {
        self.gone(who);
        self.processes.insert(who.pod, Process::default());
    }

    /// A process ends.
    pub(crate) fn gone(&mut self, who: Who) {
        self.processes.remove(&who.pod);
        self.tenures.retain(|(pod, _), _| *pod != who.pod);
    }

    /// A process says that everything is settled.
    pub(crate) fn stopped(&mut self, who: Who, in_time: bool, at_deadline: bool) -> Lawful {
        let open = self
            .processes
            .get(&who.pod)
            .is_some_and(|p| p.open.is_some());
        require!(Liveness, in_time, "a drain took longer than its deadline");
        require!(
            RevokeExclusion,
            at_deadline || !open,
            "a drain ends with a commit open"
        );
        Ok(())
    }

    /// A process is about to get an input.
    pub(crate) fn fed(&mut self, who: Who, input: &Input) {
        match input {
            Input::Assigned { partitions, .. } => {
                for partition in partitions {
                    self.open_tenure(who, index_of(partition));
                }
            }
            Input::Revoking(partitions) => {
                for partition in partitions {
                    if let Some(tenure) = self.tenures.get_mut(&(who.pod, index_of(partition))) {
                        tenure.revoking = true;
                    }
                }
            }
            Input::Lost(partitions) => {
                for partition in partitions {
                    self.tenures.remove(&(who.pod, index_of(partition)));
                }
            }
            Input::TokensRead {
                partition,
                read: Ok(read),
            } => self.tokens_read(who, partition, read),
            Input::Fetched { batches } => {
                let process = self.processes.entry(who.pod).or_default();
                for batch in batches {
                    let key = (who.pod, index_of(&batch.partition));
                    if let (Some(tenure), Some(last)) =
                        (self.tenures.get_mut(&key), batch.events.last())
                    {
                        tenure.end = tenure.end.max(last.position().next());
                    }
                    *process
                        .records
                        .entry(index_of(&batch.partition))
                        .or_default() += batch.events.len() as u64;
                }
            }
            Input::Answered(answers) => {
                for (call, outcome) in answers {
                    self.answered(who, *call, outcome);
                }
            }
            Input::Link(Link::Up { .. } | Link::Down) => self.link_changed(who),
            Input::Replies(replies) => {
                for reply in replies {
                    self.replied(who, reply);
                }
            }
            Input::Committed { commit, outcome } => self.commit_ended(who, *commit, outcome),
            Input::Operator(Operator::Unpark { .. }) => {
                for ((pod, _), tenure) in &mut self.tenures {
                    if *pod == who.pod {
                        tenure.parked.clear();
                        tenure.unparked_at = tenure.end;
                    }
                }
            }
            Input::Rejoined => self.rejoins(who),
            // It halts, and nothing that was open of it goes on.
            Input::OutOfRange { partition, .. } => {
                self.tenures.remove(&(who.pod, index_of(partition)));
            }
            Input::TokensRead { read: Err(_), .. }
            | Input::GroupMetadata { .. }
            | Input::AppProbed { .. }
            | Input::LogEnds(_)
            | Input::Operator(
                Operator::Pause
                | Operator::Resume { .. }
                | Operator::Skip { .. }
                | Operator::Renew { .. },
            )
            | Input::Drain { .. }
            | Input::Tick => {}
        }
    }

    fn open_tenure(&mut self, who: Who, partition: usize) {
        self.tenures_opened += 1;
        self.expired.remove(&(who.pod, partition));
        let tenure = Tenure {
            number: self.tenures_opened,
            read: None,
            attempts: BTreeMap::new(),
            started: None,
            committed: Position::START,
            sent: None,
            revoking: false,
            doubt: false,
            busy: BTreeMap::new(),
            answered: BTreeSet::new(),
            at_output: BTreeSet::new(),
            stored: BTreeSet::new(),
            owed: BTreeMap::new(),
            last_sent: BTreeMap::new(),
            crash: None,
            parked: BTreeSet::new(),
            ever_parked: BTreeSet::new(),
            end: Position::START,
            unparked_at: Position::START,
        };
        self.tenures.insert((who.pod, partition), tenure);
    }

    fn tokens_read(&mut self, who: Who, partition: &Partition, read: &TokensRead) {
        let Some(tenure) = self.tenures.get_mut(&(who.pod, index_of(partition))) else {
            return;
        };
        if tenure.started.is_some() {
            return;
        }
        tenure.read = match &read.own {
            None => Some((read.log_start, BTreeSet::new())),
            Some(own) => Metadata::decode(&own.metadata, UnknownKeys::Refuse)
                .ok()
                .map(|metadata| {
                    let bits = (0..).zip(&metadata.ledger.terminal);
                    let remembered = bits
                        .flat_map(|(byte, bits)| {
                            (0..8u64)
                                .filter(move |i| bits >> i & 1 == 1)
                                .map(move |i| byte * 8 + i)
                        })
                        .map(|delta| own.position.plus(delta))
                        .collect();
                    let crash = metadata.ledger.crash;
                    // At the third and later ends it was named alone.
                    let crash = crash.filter(|crash| !crash.clean && crash.count >= 3);
                    if let Some(named) = crash.and_then(|crash| crash.named) {
                        self.named
                            .entry((index_of(partition), own.position.plus(named.delta)))
                            .or_default()
                            .insert(own.metadata.clone());
                    }
                    let parked = metadata.ledger.parked.iter();
                    tenure.parked = parked
                        .filter_map(|parked| self.lanes.get(&parked.lane).copied())
                        .collect();
                    tenure.ever_parked.clone_from(&tenure.parked);
                    let attempts = &metadata.ledger.attempts;
                    tenure.attempts = attempts
                        .iter()
                        .map(|a| (own.position.plus(a.delta), a.attempts))
                        .collect();
                    (own.position, remembered)
                }),
        };
    }

    /// A partition starts.
    pub(crate) fn starts(&mut self, who: Who, partition: &Partition, position: Position) -> Lawful {
        let tenure = self.tenures.get_mut(&(who.pod, index_of(partition)));
        let Some(tenure) = tenure else {
            return Err(
                Law::Ownership.broken(format!("{partition} is started without being owned"))
            );
        };
        let read = tenure.read.as_ref().map(|(position, _)| *position);
        require!(
            Ownership,
            read == Some(position),
            "{partition} starts at {position}, its commit says {read:?}"
        );
        require!(
            Ownership,
            !tenure.revoking,
            "{partition} is started although the group wants it back"
        );
        tenure.started = Some(position);
        tenure.committed = position;
        Ok(())
    }

    /// The log of a partition was cut: nobody can promise to answer all of it any more.
    pub(crate) fn cut(&mut self, partition: usize) {
        self.truth.cut(partition);
    }

    /// An operator gives up on an event.
    pub(crate) fn skipped(&mut self, partition: usize, index: usize) {
        self.truth.failed(partition, index, truth::SKIPPED);
    }

    /// After each step of a process.
    pub(crate) fn stepped(&mut self, who: Who, state: &State) -> Lawful {
        let mut in_flight = 0;
        let process = self.processes.entry(who.pod).or_default();
        for partition in &state.partitions {
            let gap = partition.conservation_gap();
            require!(
                Conservation,
                gap == 0,
                "{}: {gap} events are not accounted for",
                partition.partition
            );
            let fed = process
                .records
                .get(&index_of(&partition.partition))
                .copied()
                .unwrap_or(0);
            let counted = partition.counters.records;
            require!(
                Conservation,
                fed == counted,
                "{}: {fed} events were handed over, {counted} counted",
                partition.partition
            );
            let told = process
                .stored
                .get(&index_of(&partition.partition))
                .copied()
                .unwrap_or(0);
            let counted = partition.counters.emitted + partition.counters.dead_lettered;
            require!(
                Conservation,
                told == counted,
                "{}: {told} events were stored, {counted} counted",
                partition.partition
            );
            in_flight += partition.in_flight;
        }
        let most = self.in_flight_max;
        require!(
            Memory,
            in_flight <= most,
            "{in_flight} events are in flight, at most {most} may be"
        );
        Ok(())
    }

    /// After each turn: what a tick did, and when the next is due.
    pub(crate) fn turned(
        &mut self,
        who: Who,
        idle: bool,
        due: Option<Duration>,
        now: Duration,
    ) -> Lawful {
        let process = self.processes.entry(who.pod).or_default();
        if !idle {
            process.idle_turns = 0;
            return Ok(());
        }
        process.idle_turns = if due == Some(Duration::ZERO) {
            process.idle_turns + 1
        } else {
            0
        };
        require!(
            WakeUps,
            process.idle_turns <= IDLE_TURNS_MAX,
            "it wakes up again and again without doing anything"
        );
        let second = now.as_secs();
        process.idle_second = match process.idle_second {
            (last, n) if last == second => (second, n + 1),
            _ => (second, 1),
        };
        require!(
            WakeUps,
            process.idle_second.1 <= IDLE_TICKS_MAX,
            "it woke up {IDLE_TICKS_MAX} times in a second without doing anything"
        );
        Ok(())
    }

    /// A member was put out of the group for its silence.
    pub(crate) fn expired(&mut self, who: Who, partitions: impl Iterator<Item = usize>) {
        self.expired.extend(partitions.map(|p| (who.pod, p)));
    }

    /// Whether every event has its outcome and is committed.
    pub(crate) fn settled(&mut self, committed: &[Option<Position>]) -> bool {
        self.truth.settled(committed)
    }

    /// How much there is to do: events without an outcome, and positions that are not committed.
    pub(crate) fn open(&self, committed: &[Option<Position>]) -> u64 {
        self.truth.open(committed)
    }

    /// What is not settled, for people.
    pub(crate) fn unsettled(&self, committed: &[Option<Position>]) -> String {
        self.truth.unsettled(committed)
    }

    /// Records that were stored more than once.
    pub(crate) fn repeats(&self) -> u64 {
        self.truth.repeats()
    }

    /// At the end of a run.
    pub(crate) fn ended(&mut self) -> Lawful {
        let open = self.truth.without_outcome();
        require!(NoLoss, open.is_empty(), "without an outcome: {open}");
        Ok(())
    }
}
