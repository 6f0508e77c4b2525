//! How partitions come: assignment, tokens, events, and positions that the log lost.

use super::io::{Effect, Fact, Fetched, Membership, StartAt, TokensRead};
use super::pod_crash::PodCrashes;
use super::settings::{Guarantee, OnDataLoss};
use super::tenure::{EventRef, Phase, Place, Tenure, Work};
use super::{Intake, Settings};
use crate::contract::commit::{CrashState, Metadata, Parked, UnknownKeys};
use crate::contract::grant::{Grant, Seeding};
use crate::event::TimestampKind;
use crate::fate::Attempts;
use crate::identity::{EventId, PartitionIdentity};
use crate::lanes::LaneId;
use crate::ledger::{Delivered, Ledger};
use crate::position::{Partition, Position};
use crate::rules::Rule;
use crate::time::Time;
use crate::token::Token;
use std::cmp::Reverse;
use std::time::Duration;

/// A partition that could not be started is read again after this long.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// Where a partition starts, as its own commit or its grant says.
struct Start {
    position: Position,
    token: Token,
    topic: Option<u32>,
    leader_epoch: Option<i32>,
    terminal: Vec<u8>,
    attempts: Vec<(Position, Attempts)>,
    /// It was added to its topic after the starter seeded the group.
    added: bool,
    parked: Vec<Parked>,
    crash: Option<CrashState>,
    log_end: Position,
}

impl Intake {
    pub(super) fn assigned(
        &mut self,
        partitions: Vec<Partition>,
        membership: Membership,
        effects: &mut Vec<Effect>,
    ) {
        self.membership = Some(membership);
        self.tally.rebalances[0] += 1;
        // Completes the rebalance, so that the other partitions are fetched again while the
        // tokens of the new ones are read.
        effects.push(Effect::Assign(Vec::new()));
        if self.rejoining || self.drain.is_some() {
            return;
        }
        for partition in partitions {
            assert!(
                !self.by_partition.contains_key(&partition),
                "{partition} was assigned twice"
            );
            self.open(partition.clone());
            effects.push(Effect::ReadTokens(partition));
        }
    }

    /// A tenure begins; its token is not read yet.
    fn open(&mut self, partition: Partition) -> &mut Tenure {
        self.tenures_opened += 1;
        let identity = PartitionIdentity::new(
            &self.settings.names.cluster,
            partition.topic(),
            partition.number(),
        );
        let counters = self.former.remove(&partition).unwrap_or_default();
        let tenure = Tenure::opening(
            partition.clone(),
            identity,
            // Exactly-once needs none: brokers refuse a zombie's transaction (R4).
            (!self.exactly_once()).then_some(self.settings.lease),
            counters,
            self.settings.rules,
        );
        self.by_partition.insert(partition, self.tenures_opened);
        self.tenures.entry(self.tenures_opened).or_insert(tenure)
    }

    pub(super) fn tokens_read(
        &mut self,
        partition: &Partition,
        read: Result<TokensRead, String>,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let Some(&id) = self.by_partition.get(partition) else {
            return;
        };
        let watches = self.watches_pod();
        let seen = self.topics_seen.get(partition.topic()).copied();
        let tenure = self
            .tenures
            .get_mut(&id)
            .expect("by_partition names tenures");
        if let Phase::DataLost { reason, .. } = &mut tenure.phase {
            // A position may be gone because its whole topic is.
            let topic = read.ok().and_then(|read| read.topic_identity);
            if let Err(made_anew) = unchanged(partition, seen, topic)
                && *reason != made_anew
            {
                reason.clone_from(&made_anew);
                effects.push(Effect::Report(Fact::Halted {
                    partition: partition.clone(),
                    reason: made_anew,
                }));
            }
            return;
        }
        if !matches!(tenure.phase, Phase::Reading { .. } | Phase::Halted { .. }) {
            return;
        }
        let again_at = now.plus(READ_AGAIN);
        // E1, D-W7: under exactly-once the ledger is safety state.
        let unknown_keys = match self.settings.guarantee {
            Guarantee::AtLeastOnce => UnknownKeys::Ignore,
            Guarantee::ExactlyOnce { .. } => UnknownKeys::Refuse,
        };
        let start = match read {
            Err(_) => {
                tenure.phase = Phase::Reading {
                    again_at: Some(again_at),
                };
                return;
            }
            // Brokers forget the commits of a topic that is deleted, so what this process saw
            // says more than a missing token.
            Ok(read) => unchanged(partition, seen, read.topic_identity)
                .and_then(|()| start(partition, read, unknown_keys, &self.settings)),
        };
        match start {
            Err(reason) => {
                let known =
                    matches!(&tenure.phase, Phase::Halted { reason: r, .. } if *r == reason);
                if !known {
                    effects.push(Effect::Report(Fact::Halted {
                        partition: partition.clone(),
                        reason: reason.clone(),
                    }));
                }
                tenure.phase = Phase::Halted { reason, again_at };
            }
            Ok(start) => {
                if let Some(topic) = start.topic {
                    self.topics_seen.insert(partition.topic().into(), topic);
                }
                tenure.ledger = Ledger::new(start.position, &start.terminal, self.settings.rules);
                tenure.committed = start.position;
                tenure.leader_epoch = start.leader_epoch;
                tenure.inherit(start.attempts);
                tenure.parked = start.parked;
                tenure.crashes = PodCrashes::inherit(
                    start.crash.filter(|_| watches),
                    start.position,
                    self.settings.window,
                    start.log_end,
                );
                tenure.phase = Phase::Live {
                    token: start.token,
                    topic: start.topic,
                };
                // The client starts to hand over events at once.
                tenure.paused = None;
                effects.push(Effect::Assign(vec![StartAt {
                    partition: partition.clone(),
                    position: start.position,
                    leader_epoch: start.leader_epoch,
                }]));
                effects.push(Effect::Report(Fact::Started {
                    partition: partition.clone(),
                    position: start.position,
                    remembered: start
                        .terminal
                        .iter()
                        .map(|b| u64::from(b.count_ones()))
                        .sum(),
                    added: start.added,
                }));
                self.report_suspicion(id, effects);
            }
        }
    }

    /// Reads tokens again where that failed or the token forbids live answers.
    pub(super) fn read_again(&mut self, now: Time, effects: &mut Vec<Effect>) {
        for tenure in self.tenures.values_mut() {
            match &mut tenure.phase {
                Phase::Reading { again_at } if again_at.is_some_and(|at| now.boot >= at.boot) => {
                    *again_at = None;
                }
                Phase::Halted { again_at, .. } | Phase::DataLost { again_at, .. }
                    if now.boot >= again_at.boot =>
                {
                    *again_at = now.plus(READ_AGAIN);
                }
                Phase::Reading { .. }
                | Phase::Halted { .. }
                | Phase::Live { .. }
                | Phase::DataLost { .. }
                | Phase::Revoking { .. } => continue,
            }
            effects.push(Effect::ReadTokens(tenure.partition.clone()));
        }
    }

    pub(super) fn next_read(&self) -> Option<Duration> {
        self.tenures
            .values()
            .filter_map(|tenure| match &tenure.phase {
                Phase::Reading { again_at } => again_at.map(|at| at.boot),
                Phase::Halted { again_at, .. } | Phase::DataLost { again_at, .. } => {
                    Some(again_at.boot)
                }
                Phase::Live { .. } | Phase::Revoking { .. } => None,
            })
            .min()
    }

    pub(super) fn fetched(&mut self, fetched: Fetched, now: Time) {
        let Some(&id) = self.by_partition.get(&fetched.partition) else {
            return;
        };
        let tenure = self
            .tenures
            .get_mut(&id)
            .expect("by_partition names tenures");
        if !tenure.is_live() {
            return;
        }
        self.skew.observe(&fetched.events, now);
        if self.settings.rules.hold(Rule::LeaderEpoch) {
            tenure.leader_epoch = fetched.leader_epoch.or(tenure.leader_epoch);
        }
        for event in fetched.events {
            let position = event.position();
            if position < tenure.ledger.end() {
                // Read again after a seek; it is in flight or terminal already.
                continue;
            }
            tenure.counters.records += 1;
            let bytes = event.bytes();
            tenure.counters.bytes += bytes as u64;
            let lane = LaneId::of(self.settings.ordering, self.seed, event.key());
            let redriven = event
                .header(b"millrace-redrive-of")
                .flatten()
                .and_then(EventId::parse);
            let work = Work {
                attempts: tenure.take_inherited(position),
                event,
                lane,
                id: redriven,
                last_attempt_ms: 0,
                own_since: now.boot,
                crashes: 0,
                crashes_alone: 0,
                place: Place::Waiting,
                answer: None,
                skip: None,
                failure: None,
            };
            match tenure.ledger.deliver(position, work) {
                Delivered::Remembered => {
                    tenure.counters.ledger_skipped += 1;
                    tenure.since_commit += 1;
                }
                Delivered::New(number) => {
                    self.in_flight_bytes += bytes;
                    tenure.in_flight_bytes += bytes;
                    tenure.lanes.push(lane, number);
                }
            }
        }
        if self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
    }

    pub(super) fn out_of_range(
        &mut self,
        partition: &Partition,
        log_start: Position,
        log_end: Position,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let Some(&id) = self.by_partition.get(partition) else {
            return;
        };
        let tenure = self
            .tenures
            .get_mut(&id)
            .expect("by_partition names tenures");
        if !tenure.is_live() {
            return;
        }
        let from = tenure.ledger.end();
        let to = match self.settings.on_data_loss {
            OnDataLoss::Stop => from,
            OnDataLoss::Earliest => log_start,
            OnDataLoss::Latest => log_end,
        };
        // Gone at its beginning before we read it, or at its end after we did.
        let cut = from >= log_start;
        let lost = if cut {
            from.min(log_end)..from
        } else {
            from..log_start
        };
        tenure.counters.data_loss += lost.end.since(lost.start);
        effects.push(Effect::Report(Fact::DataLoss {
            partition: partition.clone(),
            from: lost.start,
            to: lost.end,
        }));
        if self.settings.on_data_loss == OnDataLoss::Stop || to < from {
            let what = if cut {
                format!(
                    "the log was cut below position {from}, up to which it was read, as an unclean \
                     leader election does"
                )
            } else {
                format!("position {from} is not in the log any more")
            };
            let reason = format!(
                "data loss: {what} (it holds {log_start} to {log_end}); set \
                 input.kafka.onDataLoss or move the group's position by hand"
            );
            effects.push(Effect::Report(Fact::Halted {
                partition: partition.clone(),
                reason: reason.clone(),
            }));
            // Whatever is open of it ends here: nothing is committed on it any more, so nothing may
            // be stored, and it must not take room, calls or suspicion from the others.
            self.stop_producing(vec![partition.clone()], effects);
            self.close(id, |counters, n| counters.stale_lost += n);
            self.open(partition.clone()).phase = Phase::DataLost {
                reason,
                again_at: now,
            };
            return;
        }
        tenure.ledger.skip_lost(to);
        tenure.leader_epoch = None;
        tenure.since_commit += 1;
        effects.push(Effect::Seek {
            partition: partition.clone(),
            position: to,
        });
    }

    /// An event is due for its next attempt: it goes back in front of its lane.
    pub(super) fn wake_retries(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.drain.is_some() {
            return;
        }
        while let Some(Reverse((at, event))) = self.retries.peek().copied() {
            if at > now.boot {
                return;
            }
            self.retries.pop();
            let Some(work) = self.work(event) else {
                continue;
            };
            if work.place != Place::Backoff {
                continue;
            }
            let (lane, skip) = (work.lane, work.skip.take());
            if let Some(reason) = skip {
                self.skipped(event, reason, now, effects);
                continue;
            }
            if work.is_suspect() {
                // Also when its last attempt ended in another way: it stays alone (D-B6).
                work.place = Place::Suspected;
                self.suspects.insert(event);
                continue;
            }
            work.place = Place::Waiting;
            let tenure = self
                .tenures
                .get_mut(&event.tenure)
                .expect("its work was just seen");
            tenure.lanes.put_back(lane, event.number);
            self.waiting_since.get_or_insert(now);
        }
    }
}

/// The role of a partition in a block with one release: live if its own token says so, or if the
/// starter left it to the owner (D-G12); everything else halts it (R9).
fn start(
    partition: &Partition,
    read: TokensRead,
    unknown_keys: UnknownKeys,
    settings: &Settings,
) -> Result<Start, String> {
    let Some(own) = read.own else {
        return granted(partition, &read, unknown_keys);
    };
    let metadata = Metadata::decode(&own.metadata, unknown_keys)
        .map_err(|error| format!("the token of {partition} cannot be read: {error}; find out who wrote it, then seed the group anew"))?;
    unchanged(partition, metadata.topic, read.topic_identity)?;
    match metadata.token {
        Token::Live { .. } => {}
        Token::Shadow { .. } => return Err("its token says shadow: another release is live".into()),
        Token::Sealed { .. } => {
            return Err("its token says sealed: another release took over".into());
        }
    }
    let rules = settings.rules;
    let remember = rules.hold(Rule::LedgerMemory);
    let parks = settings.parking.is_some() && rules.hold(Rule::Parking);
    Ok(Start {
        position: own.position,
        token: metadata.token,
        topic: read.topic_identity,
        crash: metadata.ledger.crash,
        log_end: read.log_end,
        leader_epoch: metadata.leader_epoch,
        terminal: if remember {
            metadata.ledger.terminal
        } else {
            Vec::new()
        },
        attempts: metadata
            .ledger
            .attempts
            .iter()
            .map(|attempted| {
                let attempts = Attempts {
                    counted: attempted.attempts,
                    first_ms: attempted.first_attempt_s * 1000,
                    first_boot_ms: None,
                };
                (own.position.plus(attempted.delta), attempts)
            })
            .collect(),
        added: false,
        parked: if parks {
            metadata.ledger.parked
        } else {
            Vec::new()
        },
    })
}

/// A topic that was made anew under its name halts its partitions, whatever their tokens say (R9).
fn unchanged(partition: &Partition, before: Option<u32>, now: Option<u32>) -> Result<(), String> {
    match (before, now) {
        (Some(before), Some(now)) if before != now => Err(format!(
            "topic {} was deleted and created again since the last commit; its positions mean \
             something else now, and ids of its events repeat (TopicIdentityChanged)",
            partition.topic()
        )),
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

/// A partition that was added after the starter seeded the group starts live, at earliest.
fn granted(
    partition: &Partition,
    read: &TokensRead,
    unknown_keys: UnknownKeys,
) -> Result<Start, String> {
    let missing = || {
        format!(
            "{partition} has no token (TokenMissing); if this block is new, let its starter seed \
             it; if its offsets expired, restore them"
        )
    };
    let seeding = read.seeding.as_ref().ok_or_else(missing)?;
    let grant = Grant::decode(&seeding.metadata, unknown_keys)
        .map_err(|error| format!("the registry cannot be read: {error}"))?;
    match grant.seeding {
        Some(Seeding::Seeded(n)) if i64::from(partition.number()) >= i64::from(n) => Ok(Start {
            position: read.log_start,
            token: Token::Live {
                epoch: 1,
                from: read.log_start,
                peer: None,
            },
            topic: read.topic_identity,
            leader_epoch: None,
            terminal: Vec::new(),
            attempts: Vec::new(),
            added: true,
            parked: Vec::new(),
            crash: None,
            log_end: read.log_end,
        }),
        Some(Seeding::Seeded(_) | Seeding::Seeding(_)) | None => Err(missing()),
    }
}

impl Tenure {
    /// What the previous owner had tried (D-W5); kept until the events are delivered.
    fn inherit(&mut self, attempts: Vec<(Position, Attempts)>) {
        self.inherited = attempts;
    }

    fn take_inherited(&mut self, position: Position) -> Attempts {
        let found = self.inherited.iter().position(|(at, _)| *at == position);
        found.map_or_else(Attempts::default, |index| {
            self.inherited.swap_remove(index).1
        })
    }
}

impl EventRef {
    /// Whether an event is older than `input.ttl`.
    pub(super) fn expired(work: &Work, ttl: Option<Duration>, now: Time) -> bool {
        let timestamp = work.event.timestamp();
        let age_ms = now
            .wall_ms
            .saturating_sub(timestamp.ms)
            .max(0)
            .unsigned_abs();
        timestamp.kind != TimestampKind::None
            && ttl.is_some_and(|ttl| u128::from(age_ms) > ttl.as_millis())
    }
}

#[cfg(test)]
mod tests;
