//! The link to the output: frames, credit, what was stored and what has to be sent again.
//!
//! Invariant: results of one lane leave in the order in which the lane was answered; what was
//! refused goes again before anything newer of its partition (D-L3).
//! Invariant: an event becomes terminal when the output says that its records are stored (D-O2).
//! A busy block sends few, larger frames: after a frame, results wait for company until
//! [`limits::COLLECT_TIME`] has passed. A quiet block waits for nothing.

use std::collections::VecDeque;
use std::time::Duration;

use super::Intake;
use super::io::{Effect, Fact, Link};
use super::tenure::{Answer, Counters, EventRef, Letter, Place, Shortened, Tenure, Work};
use crate::contract::publish::{
    ABORTED, FateCode, Lease, Reply, Request, ResultsFrame, StoreClass, StoreFailure,
};
use crate::contract::result::{self, DeadLetter, Reason, ResultContext, Stage};
use crate::fate;
use crate::ledger::Number;
use crate::limits;
use crate::position::Partition;
use crate::rules::Rule;
use crate::time::Time;
use crate::token::Stamp;

/// Results that a lapsed lease kept from leaving are sent again after this long.
pub(super) const LEASE_PAUSE: Duration = Duration::from_millis(50);

/// Results that could not be stored are sent again after this long at most: the producer has
/// waited for its message time-out already, and the whole partition waits with them.
pub(super) const STORE_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Results that only a change of settings lets through are tried again after this long.
pub(super) const MISCONFIGURED_PAUSE: Duration = Duration::from_secs(5);

/// The connection to the output.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    up: bool,
    /// Bytes that may be sent.
    credit: u64,
    /// Sequence number of the last frame of results.
    seq: u64,
    /// Frames that are not answered in full, oldest first; their numbers have no gaps.
    sent: VecDeque<SentFrame>,
    /// Until when results wait for company, as a frame has just left; `None`: they do not.
    collecting: Option<Time>,
}

#[derive(Debug)]
struct SentFrame {
    seq: u64,
    /// `None`: answered.
    events: Vec<Option<EventRef>>,
    unanswered: usize,
}

impl LinkState {
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// The last frame of results that was sent; 0 before the first.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    fn take(&mut self, seq: u64, index: u32) -> Option<EventRef> {
        let first = self.sent.front()?.seq;
        let frame = self
            .sent
            .get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)?;
        let event = frame.events.get_mut(index as usize)?.take()?;
        frame.unanswered -= 1;
        while self.sent.front().is_some_and(|frame| frame.unanswered == 0) {
            self.sent.pop_front();
        }
        Some(event)
    }
}

impl Intake {
    pub(super) fn link_changed(&mut self, link: Link, now: Time, effects: &mut Vec<Effect>) {
        let unknown = std::mem::take(&mut self.link);
        for event in unknown
            .sent
            .into_iter()
            .flat_map(|frame| frame.events)
            .flatten()
        {
            self.send_again(event, None);
        }
        if self.exactly_once() {
            self.transaction_lost(now, effects);
        }
        self.pushes_forgotten(now, effects);
        if let Link::Up { credit } = link {
            self.link.up = true;
            self.link.credit = credit;
            self.grant_leases(now, effects);
        }
    }

    /// Tells a new session of the output which leases hold.
    fn grant_leases(&mut self, now: Time, effects: &mut Vec<Effect>) {
        for tenure in self.tenures.values() {
            if let Some(until) = tenure.lease.until().filter(|_| tenure.lease.holds(now)) {
                let lease = lease(
                    tenure.lease_generation,
                    until,
                    vec![tenure.partition.clone()],
                );
                effects.push(frame(&lease));
            }
        }
    }

    /// Sends everything that may be sent: resends first, then the outboxes.
    pub(super) fn publish(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.link.up || !self.transactions.takes_results() || self.collects(now) {
            return;
        }
        let last = self.link.seq;
        let records_max = self.transaction_records_max();
        let ids: Vec<_> = self
            .tenures
            .iter()
            .filter(|(_, tenure)| tenure.has_unsent())
            .map(|(id, _)| *id)
            .collect();
        let once = self.exactly_once();
        let mut draft: Option<(ResultsFrame, Vec<Option<EventRef>>, i32)> = None;
        for id in ids {
            while self.link.credit > draft.as_ref().map_or(0, |(frame, ..)| frame.len() as u64)
                && self.transactions.staged() < records_max
            {
                let Some(number) = self.next_unsent(id, now) else {
                    break;
                };
                let generation = self.tenures[&id].lease_generation;
                let full = draft.as_ref().is_some_and(|(frame, _, g)| {
                    *g != generation || frame.len() >= limits::RESULTS_FRAME_BYTES
                });
                if full {
                    self.send(draft.take(), effects);
                }
                let (frame, events, _) = draft.get_or_insert_with(|| {
                    let frame = ResultsFrame::new(self.link.seq + 1, Stamp::Live, generation);
                    (frame, Vec::new(), generation)
                });
                let event = EventRef { tenure: id, number };
                let tenure = self.tenures.get_mut(&id).expect("its id was just listed");
                tenure.write(frame, number, &self.settings.names);
                if frame.overflowed() {
                    frame.discard_event();
                    let alone = events.is_empty();
                    tenure.take_back(number, alone);
                    if alone {
                        self.park_or_hold(event, None, false, now, effects);
                    } else {
                        self.send(draft.take(), effects);
                    }
                    continue;
                }
                events.push(Some(event));
                tenure.at_output += 1;
                if once {
                    tenure.staged += 1;
                    self.transactions.stage(event);
                }
            }
        }
        self.send(draft, effects);
        self.link.collecting = (self.link.seq > last).then(|| now.plus(limits::COLLECT_TIME));
        if !self.settings.rules.hold(Rule::StoredThenTerminal) {
            self.finish_unstored(now);
        }
    }

    /// Whether results wait for more of them.
    fn collects(&self, now: Time) -> bool {
        let waiting: usize = self.tenures.values().map(Tenure::unsent).sum();
        let until = self.link.collecting;
        waiting < limits::COLLECT_EVENTS && until.is_some_and(|until| now.boot < until.boot)
    }

    pub(super) fn next_publish(&self, now: Time) -> Option<Duration> {
        let full = self.transactions.staged() >= self.transaction_records_max();
        if !self.link.up || self.link.credit == 0 || full || !self.transactions.takes_results() {
            return None;
        }
        let lease_needed = self.settings.rules.hold(Rule::Lease);
        let once = self.exactly_once();
        self.tenures
            .values()
            .filter(|tenure| tenure.has_unsent() && !tenure.holds_output())
            .filter(|tenure| tenure.may_publish(once, lease_needed, now))
            .filter_map(|tenure| tenure.resend_at.max(self.link.collecting))
            .map(|at| at.boot)
            .min()
    }

    fn send(
        &mut self,
        draft: Option<(ResultsFrame, Vec<Option<EventRef>>, i32)>,
        effects: &mut Vec<Effect>,
    ) {
        let Some((frame, events, _)) = draft.filter(|(_, events, _)| !events.is_empty()) else {
            return;
        };
        self.link.seq += 1;
        let bytes = frame.finish();
        self.link.credit = self.link.credit.saturating_sub(bytes.len() as u64);
        self.link.sent.push_back(SentFrame {
            seq: self.link.seq,
            unanswered: events.len(),
            events,
        });
        self.tally.frames += 1;
        effects.push(Effect::Publish(bytes));
    }

    /// The next event of a partition to publish, if it may be published now.
    fn next_unsent(&mut self, id: u32, now: Time) -> Option<Number> {
        let lease_needed = self.settings.rules.hold(Rule::Lease);
        let in_order = self.settings.rules.hold(Rule::ResendInOrder);
        let once = self.exactly_once();
        let tenure = self.tenures.get_mut(&id)?;
        if !tenure.may_publish(once, lease_needed, now) {
            return None;
        }
        if tenure.holds_output() {
            return None;
        }
        if tenure.resend_at.is_some_and(|at| now.boot < at.boot) && in_order {
            return None;
        }
        if in_order {
            tenure.resend_at = None;
            return tenure
                .resend
                .pop_first()
                .or_else(|| tenure.outbox.pop_front());
        }
        tenure.outbox.pop_front().or_else(|| {
            if tenure.resend_at.is_some_and(|at| now.boot < at.boot) {
                return None;
            }
            tenure.resend_at = None;
            tenure.resend.pop_last()
        })
    }

    pub(super) fn replied(&mut self, reply: Reply, now: Time, effects: &mut Vec<Effect>) {
        match reply {
            Reply::Stored(stored) => {
                for index in stored.stored.into_iter().flatten() {
                    if let Some(event) = self.link.take(stored.seq, index) {
                        self.stored(event, now);
                    }
                }
                for failure in stored.failures {
                    if let Some(event) = self.link.take(stored.seq, failure.event) {
                        self.not_stored(event, failure, now, effects);
                    }
                }
            }
            Reply::Credit(bytes) => self.link.credit += bytes,
            Reply::Ended { outcome, .. } => self.transaction_ended(outcome, now, effects),
            Reply::Answered(answered) => self.counted(answered, now, effects),
            Reply::Withdrawn { refused, answered } => {
                for call in refused.into_iter().chain(answered) {
                    self.withdrawn(call, now, effects);
                }
            }
            Reply::Ready(_) | Reply::Drained | Reply::Error(_) => {}
        }
    }

    fn stored(&mut self, event: EventRef, now: Time) {
        let once = self.exactly_once();
        let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
            return;
        };
        tenure.at_output -= 1;
        tenure.store_failures = 0;
        if once {
            // It is stored when its transaction is committed.
            if let Some(work) = tenure.ledger.get_mut(event.number) {
                work.place = Place::Staged;
            }
            return;
        }
        self.finish_stored(event, now);
    }

    /// The records of an event are stored for good: it is terminal.
    pub(super) fn finish_stored(&mut self, event: EventRef, now: Time) {
        let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
            return;
        };
        let Some(work) = tenure.ledger.get(event.number) else {
            return;
        };
        if let Some(Answer::DeadLetter(letter)) = &work.answer {
            let reason_and_stage = (letter.reason.as_str(), letter.stage.as_str());
            *self.tally.dead_letters.entry(reason_and_stage).or_default() += 1;
            self.note_latency(event, now);
            self.finish(event, now, |counters| counters.dead_lettered += 1);
        } else {
            self.emitted(event, now);
        }
    }

    /// All results of an event are stored.
    pub(super) fn emitted(&mut self, event: EventRef, now: Time) {
        self.note_latency(event, now);
        self.finish(event, now, |counters| counters.emitted += 1);
        self.breaker.record_ended(now);
    }

    fn note_latency(&mut self, event: EventRef, now: Time) {
        let Some(work) = self.work(event) else {
            return;
        };
        let overhead = now.boot.saturating_sub(work.own_since);
        let timestamp = work.event.timestamp();
        if timestamp.kind != crate::event::TimestampKind::None {
            let age_ms = now
                .wall_ms
                .saturating_sub(timestamp.ms)
                .max(0)
                .unsigned_abs();
            self.tally.latency.record(Duration::from_millis(age_ms));
        }
        self.tally.overhead.record(overhead);
    }

    fn not_stored(
        &mut self,
        event: EventRef,
        failure: StoreFailure,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        if self.exactly_once() {
            self.transactions.doom();
            if let Some(tenure) = self.tenures.get_mut(&event.tenure) {
                tenure.staged = tenure.staged.saturating_sub(1);
            }
            // Another result failed: this one goes again with it, without a pause.
            if failure.code == ABORTED {
                self.send_again(event, None);
                return;
            }
        }
        let jitter = self.random.unit();
        let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
            return;
        };
        // One outage fails many results at once: they are one failure, not one for each.
        if tenure.resend_at.is_none_or(|at| now.boot >= at.boot) {
            tenure.store_failures = tenure.store_failures.saturating_add(1);
        }
        let backoff =
            fate::backoff(&self.settings.retry, tenure.store_failures, jitter).min(STORE_PAUSE_MAX);
        let pause = match failure.class {
            StoreClass::Lease | StoreClass::Revoked => LEASE_PAUSE,
            StoreClass::Transient | StoreClass::Unknown => backoff,
            StoreClass::Misconfigured => MISCONFIGURED_PAUSE,
            StoreClass::Rejected => {
                let truncate = self.settings.truncate_dead_letters;
                if tenure.reject(event.number, &failure, truncate) {
                    Duration::ZERO
                } else {
                    MISCONFIGURED_PAUSE
                }
            }
        };
        let ours = matches!(failure.class, StoreClass::Lease | StoreClass::Revoked);
        if tenure.store_failures == 1 && tenure.resend_at.is_none() && !ours {
            effects.push(Effect::Report(Fact::StoreFailed {
                partition: tenure.partition.clone(),
                message: format!("{}: {}", failure.code, failure.message),
            }));
        }
        self.tally.resends += 1;
        self.send_again(event, Some(now.plus(pause)));
        if failure.class == StoreClass::Rejected {
            self.park_or_hold(event, None, false, now, effects);
        }
    }

    /// A published event goes again, before anything newer of its partition.
    fn send_again(&mut self, event: EventRef, at: Option<Time>) {
        let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
            return;
        };
        tenure.at_output -= 1;
        let Some(work) = tenure.ledger.get_mut(event.number) else {
            return;
        };
        work.place = Place::Outbox;
        tenure.resend.insert(event.number);
        tenure.resend_at = tenure.resend_at.max(at);
    }

    /// Makes an event terminal and takes it off the books.
    pub(super) fn finish(&mut self, event: EventRef, now: Time, count: impl FnOnce(&mut Counters)) {
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its work was just seen");
        let work = tenure
            .ledger
            .finish(event.number)
            .expect("it was in flight");
        count(&mut tenure.counters);
        tenure.since_commit += 1;
        self.in_flight_bytes -= work.event.bytes();
        tenure.in_flight_bytes -= work.event.bytes();
        if self.settings.push.is_some() {
            self.release_lane(event.tenure, work.lane, now);
        }
    }

    /// Only with [`Rule::StoredThenTerminal`] off: takes the sending for the storing.
    fn finish_unstored(&mut self, now: Time) {
        let sent: Vec<_> = self
            .link
            .sent
            .iter()
            .flat_map(|f| f.events.iter().flatten().copied())
            .collect();
        for event in sent {
            if self.work(event).is_some() {
                self.finish(event, now, |counters| counters.emitted += 1);
            }
        }
    }
}

impl Tenure {
    /// Exactly-once publishes until its last transaction; at-least-once until its lease ends.
    fn may_publish(&self, once: bool, lease_needed: bool, now: Time) -> bool {
        if once {
            return matches!(
                self.phase,
                super::tenure::Phase::Live { .. } | super::tenure::Phase::Revoking { .. }
            );
        }
        self.is_live() && (!lease_needed || self.lease.holds(now))
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.unsent() > 0
    }

    pub(super) fn unsent(&self) -> usize {
        self.resend.len() + self.outbox.len()
    }

    /// Writes the records of one event into a frame.
    fn write(&mut self, frame: &mut ResultsFrame, number: Number, names: &super::settings::Names) {
        let epoch = match &self.phase {
            super::tenure::Phase::Live { token, .. }
            | super::tenure::Phase::Revoking { token, .. } => token.epoch(),
            _ => unreachable!("only partitions with a live token publish"),
        };
        let context = ResultContext {
            release: names.release.as_str(),
            epoch,
            block: &names.block,
            pod: &names.pod,
            group: &names.group,
            cluster: &names.cluster,
            proxy_version: &names.proxy_version,
        };
        let work = self
            .ledger
            .get_mut(number)
            .expect("the outbox holds events in flight");
        work.place = Place::AtOutput;
        let position = work.event.position();
        let id = *work
            .id
            .get_or_insert_with(|| self.identity.event_id(position));
        let Work {
            event,
            lane,
            attempts,
            answer,
            last_attempt_ms,
            ..
        } = &*work;
        let answer = answer.as_ref().expect("the outbox holds answered events");
        let fate = match answer {
            Answer::One(_) | Answer::Many(_) => FateCode::Emitted,
            Answer::DeadLetter(_) => FateCode::DeadLettered,
        };
        frame.event(&self.partition, position, lane.to_wire(), fate);
        match answer {
            Answer::One(output) => {
                result::write_result(frame, &context, &self.partition, event, &id, 0, output);
            }
            Answer::Many(outputs) => {
                for (index, output) in (0u32..).zip(outputs) {
                    result::write_result(
                        frame,
                        &context,
                        &self.partition,
                        event,
                        &id,
                        index,
                        output,
                    );
                }
            }
            Answer::DeadLetter(letter) => {
                let dead = DeadLetter {
                    reason: letter.reason,
                    stage: letter.stage,
                    code: &letter.code,
                    message: if letter.shortened >= Shortened::Message {
                        ""
                    } else {
                        &letter.message
                    },
                    body: if letter.shortened >= Shortened::Body {
                        &[]
                    } else {
                        &letter.body
                    },
                    attempts: attempts.counted,
                    first_attempt_ms: attempts.first_ms,
                    last_attempt_ms: *last_attempt_ms,
                    output_index: letter.output_index,
                    value_bytes_max: (letter.shortened == Shortened::Value)
                        .then_some(limits::DEAD_LETTER_TRUNCATED_VALUE_BYTES),
                    stamped_now: letter.stamped_now,
                };
                result::write_dead_letter(frame, &context, &self.partition, event, &id, &dead);
            }
        }
    }

    /// A frame has no room for the event: it is the next one to be written. If it had a frame for
    /// itself, its results are larger than any frame, and it becomes a dead letter.
    fn take_back(&mut self, number: Number, alone: bool) {
        let work = self.ledger.get_mut(number).expect("it was just written");
        work.place = Place::Outbox;
        if alone {
            let message = "the results of this event are larger than a publish frame".to_owned();
            let letter = Letter::of(Reason::Oversized, Stage::App, "RESULTS_TOO_LARGE", message);
            work.answer = Some(Answer::DeadLetter(Box::new(letter)));
        }
        self.resend.insert(number);
    }

    /// The broker will never take these records: the event becomes a dead letter, or its dead
    /// letter becomes smaller (D-O4, D-D5). False if nothing smaller is allowed.
    fn reject(&mut self, number: Number, failure: &StoreFailure, truncate: bool) -> bool {
        let Some(work) = self.ledger.get_mut(number) else {
            return true;
        };
        if let Some(Answer::DeadLetter(letter)) = &mut work.answer {
            let early_or_late = failure.code.eq_ignore_ascii_case("InvalidTimestamp");
            if early_or_late && !letter.stamped_now {
                letter.stamped_now = true;
                return true;
            }
            letter.shortened = match (letter.shortened, truncate) {
                (Shortened::Nothing, _) => Shortened::Body,
                (Shortened::Body, _) => Shortened::Message,
                (Shortened::Message, true) => Shortened::Value,
                (Shortened::Message, false) | (Shortened::Value, _) => return false,
            };
            return true;
        }
        let letter = Self::rejection(failure);
        work.answer = Some(Answer::DeadLetter(Box::new(letter)));
        true
    }

    /// The dead letter of an event whose result the broker will never take (D-O4).
    pub(super) fn rejection(failure: &StoreFailure) -> Letter {
        let oversized = failure.code.eq_ignore_ascii_case("MessageSizeTooLarge");
        let reason = if oversized {
            Reason::Oversized
        } else {
            Reason::OutputRejected
        };
        let mut letter = Letter::of(
            reason,
            Stage::Output,
            &failure.code,
            failure.message.clone(),
        );
        letter.output_index = failure.record;
        letter
    }
}

/// The frame that lets the output produce live records of these partitions (P-4).
pub(super) fn lease(generation: i32, until: Duration, partitions: Vec<Partition>) -> Request {
    Request::Lease(Lease {
        generation,
        until,
        partitions,
    })
}

/// A frame, encoded.
pub(super) fn frame(request: &Request) -> Effect {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    Effect::Publish(bytes.into())
}
