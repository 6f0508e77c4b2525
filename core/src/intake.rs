//! The input proxy's machine: ledger, lanes, batcher, window, retries, breaker, lease, doubt and
//! the link to the output, composed.
//!
//! Feed every [`Input`] in the order it happened; start every [`Effect`] in the order given.
//! Each call also handles what is due by `now`; [`Intake::deadline`] says when to wake.
//!
//! Invariant: nothing is dispatched before position and token are read (D-G3, R2).
//! Invariant: stored, then terminal, then committed (architecture invariant 6).
//! Invariant: commit and revocation of a partition exclude each other (R4b).
//! Invariant: every event that was taken is accounted for (D-V1).

mod answers;
#[cfg(test)]
mod bench;
mod commits;
mod dispatch;
mod flow;
pub mod io;
mod lag;
mod parking;
mod partitions;
mod pod_crash;
mod publishing;
mod pushes;
mod revocation;
pub mod settings;
pub mod state;
mod tenure;
mod transactions;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::io::{CallId, CommitId, Effect, Input, Membership, Operator};
pub use self::settings::Settings;
use self::tenure::{Counters, EventRef, Place, Tenure, TenureId, Work};
use crate::batcher::Size;
use crate::breaker::Breaker;
use crate::position::Partition;
use crate::random::Random;
use crate::skew::Skew;
use crate::time::Time;
use crate::window::Window;

/// The machine.
#[derive(Debug)]
pub struct Intake {
    settings: Settings,
    seed: u64,
    random: Random,
    membership: Option<Membership>,
    tenures: BTreeMap<TenureId, Tenure>,
    by_partition: BTreeMap<Partition, TenureId>,
    tenures_opened: TenureId,
    /// Counters of partitions that we do not own at the moment.
    former: BTreeMap<Partition, Counters>,
    /// Identities of the topics that this process has worked on (R9).
    topics_seen: BTreeMap<Arc<str>, u32>,

    window: Window,
    batch_size: Size,
    breaker: Breaker,
    app: App,
    /// A connection to the app died after the open question about its health was put.
    died_since_asked: bool,
    calls: BTreeMap<CallId, OpenCall>,
    calls_made: u64,
    /// Halves of batches that were too large; they go before anything else (A-B2).
    halves: VecDeque<Vec<EventRef>>,
    /// Events that were at the app at two crashes; while there are any, they go alone (D-B6).
    suspects: BTreeSet<EventRef>,
    /// The call of a suspect; nobody joins it.
    alone: Option<CallId>,
    retries: BinaryHeap<Reverse<(Duration, EventRef)>>,
    /// Since when events wait that could be sent.
    waiting_since: Option<Time>,
    /// The tenure that is served first in the next call.
    cursor: TenureId,
    malformed_in_a_row: u32,
    /// The app asked for quiet (D-B5).
    quiet_until: Option<Time>,

    link: publishing::LinkState,
    pushes: pushes::Pushes,
    commits: commits::Commits,
    transactions: transactions::Transactions,
    revocation: Option<revocation::Revocation>,
    /// The client is being destroyed and made anew (R4c).
    rejoining: bool,

    in_flight_bytes: usize,
    over_bounds: bool,
    operator_paused: bool,
    drain: Option<Drain>,
    load: lag::Load,
    skew: Skew,
    tally: state::Tally,
    next_wake: Option<Time>,
}

/// What is known about the app.
#[derive(Debug)]
enum App {
    Reachable,
    /// Not reached, or a connection died with a call in flight. Asked about its health at this
    /// time; the question is out if `None`.
    Away {
        ask_at: Option<Time>,
        /// Whether operators know: not as long as it may have been a single connection.
        told: bool,
    },
}

/// A call that the app has not answered.
#[derive(Debug)]
struct OpenCall {
    events: Vec<EventRef>,
    sent: Time,
    probe: bool,
}

#[derive(Debug)]
struct Drain {
    deadline: Time,
    stopped: bool,
}

impl Intake {
    /// A machine that owns nothing yet. The seed decides jitter and lane hashes.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            random: Random(seed),
            seed,
            membership: None,
            tenures: BTreeMap::new(),
            by_partition: BTreeMap::new(),
            tenures_opened: 0,
            former: BTreeMap::new(),
            topics_seen: BTreeMap::new(),
            window: Window::new(settings.concurrency),
            batch_size: Size::new(&settings.batch),
            breaker: Breaker::new(settings.breaker),
            app: App::Reachable,
            died_since_asked: false,
            calls: BTreeMap::new(),
            calls_made: 0,
            halves: VecDeque::new(),
            suspects: BTreeSet::new(),
            alone: None,
            retries: BinaryHeap::new(),
            waiting_since: None,
            cursor: 0,
            malformed_in_a_row: 0,
            quiet_until: None,
            link: publishing::LinkState::default(),
            pushes: pushes::Pushes::default(),
            commits: commits::Commits::default(),
            transactions: transactions::Transactions::default(),
            revocation: None,
            rejoining: false,
            in_flight_bytes: 0,
            over_bounds: false,
            operator_paused: false,
            drain: None,
            load: lag::Load::default(),
            skew: Skew::default(),
            tally: state::Tally::default(),
            next_wake: None,
            settings,
        }
    }

    /// Takes one input and everything that is due by `now`.
    pub fn on(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Assigned {
                partitions,
                membership,
            } => self.assigned(partitions, membership, effects),
            Input::Revoking(partitions) => self.revoking(partitions, now, effects),
            Input::Lost(partitions) => self.lost(&partitions, effects),
            Input::TokensRead { partition, read } => {
                self.tokens_read(&partition, read, now, effects)
            }
            Input::Fetched { batches } => batches.into_iter().for_each(|b| self.fetched(b, now)),
            Input::OutOfRange {
                partition,
                log_start,
                log_end,
            } => self.out_of_range(&partition, log_start, log_end, now, effects),
            Input::Answered(answers) => {
                for (call, outcome) in answers {
                    self.answered(call, outcome, now, effects);
                }
            }
            Input::AppProbed { ready } => self.app_probed(ready, now, effects),
            Input::Link(link) => self.link_changed(link, now, effects),
            Input::Replies(replies) => {
                for reply in replies {
                    self.replied(reply, now, effects);
                }
            }
            Input::Committed { commit, outcome } => self.committed(commit, outcome, now, effects),
            Input::GroupMetadata { commit, read } => {
                self.group_metadata_read(commit, read, now, effects);
            }
            Input::Rejoined => self.rejoining = false,
            Input::LogEnds(ends) => self.log_ends(ends, now, effects),
            Input::Operator(operator) => self.operated(operator, now, effects),
            Input::Drain { deadline } => {
                self.drain.get_or_insert(Drain {
                    deadline,
                    stopped: false,
                });
            }
            Input::Tick => {}
        }
        self.turn(now, effects);
    }

    /// When to call [`Self::on`] with [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Time> {
        self.next_wake
    }

    /// Does everything that is due, in the order in which one thing enables the next.
    fn turn(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.wake_retries(now, effects);
        self.advance_parking(now);
        self.ask_app(now, effects);
        self.read_again(now, effects);
        self.dispatch(now, effects);
        self.withdraw(effects);
        self.publish(now, effects);
        self.commit_what_is_due(now, effects);
        self.advance_revocation(now, effects);
        self.regulate(effects);
        self.advance_drain(now, effects);
        self.next_wake = self.earliest(now);
    }

    /// The earliest moment at which time alone changes something.
    fn earliest(&self, now: Time) -> Option<Time> {
        let retry = self
            .retries
            .peek()
            .map(|Reverse((at, _))| *at)
            .filter(|_| self.drain.is_none());
        let drain = self
            .drain
            .as_ref()
            .filter(|d| !d.stopped)
            .map(|d| d.deadline.boot);
        [
            retry,
            drain,
            self.next_dispatch(now),
            self.next_question(),
            self.next_publish(now),
            self.next_commit(now),
            self.next_read(),
            self.next_revocation(),
            self.next_unpark(now),
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|boot| now.plus(boot.saturating_sub(now.boot)))
    }

    fn operated(&mut self, operator: Operator, now: Time, effects: &mut Vec<Effect>) {
        match operator {
            Operator::Pause => self.operator_paused = true,
            Operator::Resume {
                storm_guard_off_until,
            } => {
                self.operator_paused = false;
                self.breaker.resume(storm_guard_off_until);
                self.retry_blocked(now);
            }
            Operator::Renew { reason } if self.drain.is_none() => self.rejoin(reason, effects),
            // What is open ends with the client that it has.
            Operator::Renew { .. } => {}
            Operator::Skip {
                partition,
                position,
                reason,
            } => self.skip(&partition, position, reason, now),
            Operator::Unpark { partition, lane } => self.unpark(partition.as_ref(), lane),
        }
    }

    /// Blocked events get another attempt.
    fn retry_blocked(&mut self, now: Time) {
        for (id, tenure) in &mut self.tenures {
            let blocked: Vec<_> = tenure
                .ledger
                .iter()
                .filter(|(.., work)| work.place == Place::Blocked)
                .map(|(number, ..)| number)
                .collect();
            for number in blocked {
                let work = tenure.ledger.get_mut(number).expect("it was just listed");
                work.place = Place::Backoff;
                work.attempts.counted = 0;
                let event = EventRef {
                    tenure: *id,
                    number,
                };
                self.retries.push(Reverse((now.boot, event)));
            }
        }
    }

    /// Marks one event to be dead-lettered when its turn comes; at once if it is held back.
    fn skip(
        &mut self,
        partition: &Partition,
        position: crate::position::Position,
        reason: String,
        now: Time,
    ) {
        let Some(&id) = self.by_partition.get(partition) else {
            return;
        };
        let tenure = self
            .tenures
            .get_mut(&id)
            .expect("by_partition names tenures");
        let Some(number) = tenure.ledger.find(position) else {
            return;
        };
        let work = tenure.ledger.get_mut(number).expect("it was just found");
        work.skip = Some(reason);
        if matches!(work.place, Place::Backoff | Place::Blocked) {
            work.place = Place::Backoff;
            self.retries
                .push(Reverse((now.boot, EventRef { tenure: id, number })));
        }
    }

    fn work(&mut self, event: EventRef) -> Option<&mut Work> {
        self.tenures
            .get_mut(&event.tenure)?
            .ledger
            .get_mut(event.number)
    }

    fn next_call_id(&mut self) -> CallId {
        self.calls_made += 1;
        CallId(self.calls_made)
    }
}

/// Names commits in the order in which they were cut.
impl CommitId {
    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
