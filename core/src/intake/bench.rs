//! A test bench for the intake machine: what is not the point of a test happens by itself.

use std::time::Duration;

use super::Intake;
use super::io::{
    Call, CommitOutcome, Committed, Effect, Fact, Fetched, Input, Link, Membership, StartAt,
    TokensRead,
};
use super::settings::{Guarantee, Names, OnDataLoss, Settings};
use crate::batcher;
use crate::breaker;
use crate::contract::commit::Metadata;
use crate::event::{EventsBuilder, Timestamp, TimestampKind};
use crate::fate;
use crate::lanes::Ordering;
use crate::outcome::{Item, Outcome};
use crate::position::{Partition, Position};
use crate::rules::Rules;
use crate::time::Time;
use crate::token::{ReleaseId, Token};
use crate::window::Concurrency;

pub(super) const STALL_AFTER: Duration = Duration::from_secs(300);
pub(super) const WALL_MS: i64 = 1_700_000_000_000;

pub(super) fn settings() -> Settings {
    Settings {
        names: Names {
            release: ReleaseId::new("r1").unwrap(),
            block: "b".into(),
            pod: "p".into(),
            group: "g".into(),
            cluster: "c".into(),
            proxy_version: "0".into(),
        },
        guarantee: Guarantee::AtLeastOnce,
        ordering: Ordering::Key,
        window: 5_000,
        commit_interval: Duration::from_secs(1),
        commit_records: 2_500,
        lease: Duration::from_secs(8),
        drain_revoke: Duration::from_secs(10),
        in_flight_max: 1_024,
        in_flight_bytes_max: 1 << 20,
        concurrency: Concurrency::Fixed(4),
        batch: batcher::Settings::SINGLE,
        tolerate_reordering: false,
        parking: None,
        retry: fate::Settings {
            attempts_max: 0,
            age_max: Duration::from_secs(3600),
            backoff_initial: Duration::from_secs(3600),
            backoff_multiplier: 1.0,
            backoff_max: Duration::from_secs(3600),
            respect_retry_after: true,
            on_exhausted: fate::OnExhausted::Block,
            oversized: fate::Oversized::DeadLetter,
        },
        breaker: breaker::Settings {
            failure_ratio: 0.5,
            window: Duration::from_secs(20),
            requests_min: 20,
            open_min: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
            storm_ratio: 0.1,
            storm_window: Duration::from_secs(60),
            storm_records_min: 100,
        },
        call_timeout: Duration::from_secs(30),
        request_bytes_max: 1 << 20,
        ttl: None,
        on_data_loss: OnDataLoss::Stop,
        truncate_dead_letters: false,
        stall_after: STALL_AFTER,
        push: None,
        rules: Rules::ALL,
    }
}

/// A machine with one partition, on a clock that the test turns.
pub(super) struct Bench {
    pub(super) intake: Intake,
    pub(super) now: Time,
    effects: Vec<Effect>,
    /// Calls that nobody has answered.
    pub(super) calls: Vec<Call>,
    /// Commits are answered at once.
    pub(super) commits: bool,
    pub(super) rejoins: usize,
    pub(super) facts: Vec<Fact>,
    /// Where partitions were started.
    pub(super) starts: Vec<StartAt>,
    /// What the last commit said.
    pub(super) committed: Option<Committed>,
    /// Epoch of the leader that takes what is fetched.
    pub(super) leader_epoch: Option<i32>,
}

pub(super) fn partition() -> Partition {
    Partition::new("t", 0)
}

impl Bench {
    /// The partition is live from position 0 on.
    pub(super) fn live() -> Self {
        let mut bench = Self::new();
        bench.join();
        bench
    }

    /// No partition is assigned.
    pub(super) fn new() -> Self {
        Self {
            intake: Intake::new(settings(), 7),
            now: Time {
                boot: Duration::from_secs(1_000),
                wall_ms: WALL_MS,
            },
            effects: Vec::new(),
            calls: Vec::new(),
            commits: true,
            rejoins: 0,
            facts: Vec::new(),
            starts: Vec::new(),
            committed: None,
            leader_epoch: None,
        }
    }

    pub(super) fn join(&mut self) {
        let token = Token::Live {
            epoch: 1,
            from: Position::START,
            peer: None,
        };
        self.join_with(&Metadata::of_outsider(token, None), Position::START);
    }

    /// Joins, and finds this commit.
    pub(super) fn join_with(&mut self, metadata: &Metadata, position: Position) {
        self.on(Input::Link(Link::Up { credit: 1 << 20 }));
        self.on(Input::Assigned {
            partitions: vec![partition()],
            membership: Membership {
                generation: 1,
                member: 1,
            },
        });
        self.on(Input::TokensRead {
            partition: partition(),
            read: Ok(TokensRead {
                own: Some(Committed {
                    position,
                    metadata: metadata.encode(),
                }),
                registry: None,
                seeding: None,
                log_start: Position::START,
                log_end: position,
                topic_identity: None,
            }),
        });
    }

    pub(super) fn on(&mut self, input: Input) {
        self.intake.on(self.now, input, &mut self.effects);
        let mut answers = Vec::new();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Commit(commit) if self.commits => {
                    self.committed = commit.offsets.first().map(|(_, offset)| offset.clone());
                    answers.push(commit.id);
                }
                Effect::Call(call) => self.calls.push(call),
                Effect::Rejoin => self.rejoins += 1,
                Effect::Assign(starts) => self.starts.extend(starts),
                Effect::Report(fact @ (Fact::Stalled { .. } | Fact::DataLoss { .. })) => {
                    self.facts.push(fact);
                }
                _ => {}
            }
        }
        for commit in answers {
            self.on(Input::Committed {
                commit,
                outcome: CommitOutcome::Done,
            });
        }
    }

    /// Events at these positions, each a second younger than the one before.
    pub(super) fn fetch(&mut self, positions: std::ops::Range<i64>) {
        self.fetch_stamped(positions, |position| Timestamp {
            ms: WALL_MS - 100_000 + 1_000 * position,
            kind: TimestampKind::Create,
        });
    }

    pub(super) fn fetch_stamped(
        &mut self,
        positions: std::ops::Range<i64>,
        stamp: impl Fn(i64) -> Timestamp,
    ) {
        let mut events = EventsBuilder::default();
        for position in positions {
            let timestamp = stamp(position);
            let key = position.to_string();
            let no_headers = std::iter::empty::<(&[u8], Option<&[u8]>)>();
            let value = Some(&b"v"[..]);
            events.push(
                Position::new(position),
                timestamp,
                Some(key.as_bytes()),
                value,
                no_headers,
            );
        }
        let events = events.finish();
        self.on(Input::Fetched {
            batches: vec![Fetched {
                partition: partition(),
                leader_epoch: self.leader_epoch,
                events,
            }],
        });
    }

    /// Answers all calls that are open, and those that follow.
    pub(super) fn answer(&mut self) {
        while let Some(call) = self.calls.pop() {
            let outcome = Outcome::Items(vec![Item::Filter]);
            self.on(Input::Answered(vec![(call.id, outcome)]));
        }
    }

    /// A second passes and the ends are told.
    pub(super) fn second(&mut self, end: Option<i64>) {
        self.now = self.now.plus(Duration::from_secs(1));
        let ends = end.map(|end| vec![(partition(), Position::new(end))]);
        self.on(Input::LogEnds(ends));
    }

    pub(super) fn seconds(&mut self, count: u64, end: Option<i64>) {
        (0..count).for_each(|_| self.second(end));
    }
}
