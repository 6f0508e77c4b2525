//! What follows from an answer of the app: results, another attempt, a dead letter.
//!
//! Invariant: a lane goes on only when its event is answered for good (D-L2).
//! Invariant: what stood behind an event that comes again stays behind it (A-B4).

use std::cmp::Reverse;
use std::time::Duration;

use super::io::{CallId, Effect, Fact};
use super::tenure::{Answer, CRASHES_ALONE, EventRef, Letter, Place, Shortened, TenureId};
use super::{App, Intake, OpenCall};
use crate::breaker::{Cause, Gate};
use crate::contract::result::{Reason, Stage};
use crate::fate::{self, Fate};
use crate::lanes::LaneId;
use crate::limits;
use crate::outcome::{Class, Failure, FailureKind, Item, Outcome, TIMED_OUT};
use crate::rules::Rule;
use crate::time::Time;

/// An event that a storm keeps from being dead-lettered is looked at again after this long.
const HELD_AGAIN: Duration = Duration::from_secs(1);

/// What an event's answer means for its lane.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Answered for good: the lane goes on.
    Gone,
    /// It comes again, later; the lane waits.
    Later,
    /// It comes again as soon as calls are possible.
    AtOnce,
}

/// One lane of a call.
struct LaneOfCall {
    tenure: TenureId,
    lane: LaneId,
    waits: bool,
}

impl Intake {
    pub(super) fn answered(
        &mut self,
        call: CallId,
        outcome: Outcome,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let Some(open) = self.calls.remove(&call) else {
            return;
        };
        self.alone.take_if(|alone| *alone == call);
        self.learn(&open, &outcome, now, effects);
        for event in &open.events {
            if let Some(work) = self.work(*event) {
                work.own_since += now.since(open.sent);
            }
        }
        if self.settings.push.is_some() {
            self.pushed_call_ended(call, &open.events, outcome, now, effects);
        } else {
            self.conclude(&open.events, outcome, now, effects);
        }
    }

    /// Decides about the events of a call that has ended.
    pub(super) fn conclude(
        &mut self,
        events: &[EventRef],
        outcome: Outcome,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Outcome::Items(items) => {
                assert_eq!(items.len(), events.len(), "one item per event of the call");
                let items = events.iter().copied().zip(items);
                self.settle(items, now, effects);
            }
            Outcome::TooLarge(_) if events.len() > 1 => {
                self.halve(events);
            }
            Outcome::Failed(failure) | Outcome::TooLarge(failure) => {
                let items = events
                    .iter()
                    .map(|event| (*event, Item::Failed(failure.clone())));
                self.settle(items, now, effects);
            }
            Outcome::Abandoned => {
                for event in events.iter().rev() {
                    self.put_back(*event, now);
                }
            }
        }
    }

    /// Sends a call that was too large again in two parts (A-B2). What stands behind an event of
    /// the first part in its lane waits for it: both parts may be at the app at once (D-L2).
    fn halve(&mut self, events: &[EventRef]) {
        let (first, second) = events.split_at(events.len() / 2);
        let mut lanes = Vec::new();
        for event in first {
            if let Some(lane) = self.work(*event).map(|work| work.lane)
                && lane != LaneId::NONE
            {
                lanes.push((event.tenure, lane));
            }
        }
        let mut rest = Vec::new();
        let mut behind = Vec::new();
        for event in second {
            match self.work(*event).map(|work| work.lane) {
                Some(lane) if lanes.contains(&(event.tenure, lane)) => behind.push(*event),
                Some(_) => rest.push(*event),
                None => {}
            }
        }
        for event in behind.into_iter().rev() {
            self.put_behind(event);
        }
        self.halves.push_back(first.to_vec());
        if !rest.is_empty() {
            self.halves.push_back(rest);
        }
    }

    /// Window, breaker and what is known about the app follow the call as a whole.
    fn learn(&mut self, open: &OpenCall, outcome: &Outcome, now: Time, effects: &mut Vec<Effect>) {
        let failure = match outcome {
            Outcome::Items(_) => None,
            Outcome::Failed(failure) | Outcome::TooLarge(failure) => Some(failure),
            Outcome::Abandoned => {
                self.window.closed();
                self.breaker.probe_abandoned(now);
                return;
            }
        };
        if failure.is_some_and(|f| f.kind == FailureKind::EventSchema) {
            // The app was not asked: nothing was learned about it.
            self.window.closed();
            if open.probe {
                self.breaker.probe_abandoned(now);
            }
            return;
        }
        match failure.map(|f| (f.class, f.kind)) {
            None => {
                let took = now.since(open.sent);
                self.window.succeeded(took);
                self.batch_size.answered(open.events.len(), took);
            }
            Some((
                Class::Transient | Class::Infra,
                FailureKind::Refused | FailureKind::TimedOut | FailureKind::ConnectionLost,
            )) => {
                self.window.failed();
            }
            Some(_) => self.window.closed(),
        }
        // Connections that are lost together are one crash.
        let lost = failure.is_some_and(|f| f.kind == FailureKind::ConnectionLost);
        let crashed = lost && matches!(self.app, App::Reachable);
        self.tally.app_crashes += u64::from(crashed);
        let too_large = matches!(outcome, Outcome::TooLarge(_));
        if too_large || failure.is_some_and(|f| f.code == TIMED_OUT) {
            self.batch_size.too_large(open.sent, now);
        }
        let malformed = failure.is_some_and(|f| f.kind == FailureKind::Malformed);
        self.malformed_in_a_row = if malformed {
            self.malformed_in_a_row + 1
        } else {
            0
        };
        if let Some(failure) = failure {
            self.tally.last_failure = Some(failure.message.as_str().into());
        }
        if open.probe && self.breaker.is_probing() {
            self.probe_ended(outcome, now, effects);
        } else {
            let failed =
                failure.is_some_and(|f| matches!(f.class, Class::Transient | Class::Infra));
            if self.breaker.request_ended(failed, now) {
                self.report_breaker("open", effects);
            }
        }
        if self.malformed_in_a_row >= limits::MALFORMED_IN_A_ROW_MAX {
            self.misconfigured(now, effects);
        }
        match failure {
            Some(failure) if failure.class == Class::Infra => {
                self.app_unreachable(&failure.message, effects);
            }
            Some(failure) if failure.kind == FailureKind::ConnectionLost => self.app_died(effects),
            Some(_) | None => {}
        }
    }

    /// A probe succeeds when the app answers; in a storm only when it answers well.
    fn probe_ended(&mut self, outcome: &Outcome, now: Time, effects: &mut Vec<Effect>) {
        let storm = matches!(self.breaker.gate(now), Gate::Open(Cause::Storm, _));
        let permanent = |failure: &Failure| failure.class == Class::Permanent;
        let answered = match outcome {
            Outcome::Items(items) => items.iter().all(|item| match item {
                Item::Emit(_) | Item::EmitMany(_) | Item::Filter => true,
                Item::Failed(failure) => permanent(failure) && !storm,
            }),
            Outcome::Failed(failure) | Outcome::TooLarge(failure) => permanent(failure) && !storm,
            Outcome::Abandoned => false,
        };
        if answered {
            self.breaker.probe_succeeded();
            self.report_breaker("closed", effects);
        } else {
            self.breaker.probe_failed(now);
            self.report_breaker("open", effects);
        }
    }

    fn misconfigured(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.breaker.misconfigured(now) {
            self.report_breaker("open", effects);
        }
    }

    /// Decides about each event of a call, then lets the lanes go on.
    fn settle(
        &mut self,
        items: impl Iterator<Item = (EventRef, Item)>,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let mut lanes: Vec<LaneOfCall> = Vec::new();
        let mut behind: Vec<EventRef> = Vec::new();
        let mut at_once: Vec<EventRef> = Vec::new();
        for (event, item) in items {
            let Some(lane) = self.work(event).map(|work| work.lane) else {
                self.tally.stale_results += 1;
                continue;
            };
            let known = self.lane_of_call(&mut lanes, event.tenure, lane);
            if known.is_some_and(|index| lanes[index].waits) && !self.settings.tolerate_reordering {
                behind.push(event);
                continue;
            }
            let next = self.decide(event, item, now, effects);
            if next == Next::AtOnce {
                at_once.push(event);
            }
            match known {
                Some(index) => lanes[index].waits |= next != Next::Gone,
                None if next == Next::Gone => self.go_on(event.tenure, lane, now),
                None => {}
            }
        }
        for event in behind.into_iter().rev() {
            self.put_behind(event);
        }
        for event in at_once.into_iter().rev() {
            self.put_back(event, now);
        }
        for lane in lanes.into_iter().filter(|lane| !lane.waits) {
            self.go_on(lane.tenure, lane.lane, now);
        }
    }

    /// Finds or adds the lane among those of the call. `None` where each event stands alone, so
    /// that nothing has to be remembered.
    fn lane_of_call(
        &self,
        lanes: &mut Vec<LaneOfCall>,
        tenure: TenureId,
        lane: LaneId,
    ) -> Option<usize> {
        if lane == LaneId::NONE || self.settings.batch.per_lane_max == 1 {
            return None;
        }
        let found = lanes
            .iter()
            .position(|l| l.tenure == tenure && l.lane == lane);
        Some(found.unwrap_or_else(|| {
            lanes.push(LaneOfCall {
                tenure,
                lane,
                waits: false,
            });
            lanes.len() - 1
        }))
    }

    fn decide(
        &mut self,
        event: EventRef,
        item: Item,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Next {
        // An earlier event of its lane, of the same call, may have been dead-lettered just now.
        let answers = !matches!(item, Item::Failed(_));
        if let Some(letter) = self.parked_letter(event).filter(|_| answers) {
            return self.dead_letter(event, letter, now, effects);
        }
        match item {
            Item::Emit(output) => self.answer(event, Answer::One(output)),
            Item::EmitMany(outputs) if !outputs.is_empty() => {
                self.answer(event, Answer::Many(outputs))
            }
            Item::EmitMany(_) | Item::Filter => self.filter(event, now),
            Item::Failed(failure) => return self.failed(event, failure, now, effects),
        }
        Next::Gone
    }

    fn failed(
        &mut self,
        event: EventRef,
        failure: Failure,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Next {
        if failure.class == Class::Misconfigured {
            self.misconfigured(now, effects);
        }
        let jitter = self.random.unit();
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its work was just seen");
        let work = tenure
            .ledger
            .get_mut(event.number)
            .expect("its work was just seen");
        let counted = work.attempts.counted;
        let crashes_alone_max = if self.settings.rules.hold(Rule::CrashIsOver) {
            CRASHES_ALONE
        } else {
            1
        };
        let fate = fate::decide(
            &self.settings.retry,
            &failure,
            &mut work.attempts,
            jitter,
            now,
        );
        work.failure = Some(format!("{}: {}", failure.code, failure.message).into());
        // The next commit has to say so, although no position became terminal (D-W5).
        tenure.since_commit += u64::from(work.attempts.counted > counted);
        if failure.kind == FailureKind::ConnectionLost {
            if work.is_suspect() {
                work.crashes_alone += 1;
            }
            work.crashes = work.crashes.saturating_add(1);
            if work.crashes_alone >= crashes_alone_max {
                let letter = Letter::from_failure(Reason::AppCrash, Stage::App, failure);
                return self.dead_letter(event, letter, now, effects);
            }
        }
        match fate {
            Fate::Retry { .. }
                if failure.kind == FailureKind::ConnectionLost && work.is_suspect() =>
            {
                work.place = Place::Suspected;
                self.suspects.insert(event);
                Next::Later
            }
            Fate::Retry { at, all } => {
                work.place = Place::Backoff;
                self.retries.push(Reverse((at.boot, event)));
                self.tally.retries += 1;
                if all {
                    let later = self.quiet_until.map_or(at, |until| until.max(at));
                    self.quiet_until = Some(later);
                }
                Next::Later
            }
            Fate::Hold => Next::AtOnce,
            Fate::Block => {
                work.place = Place::Blocked;
                Next::Later
            }
            Fate::Drop => {
                self.finish(event, now, |counters| counters.dropped += 1);
                Next::Gone
            }
            Fate::DeadLetter(reason, stage) => {
                let letter = Letter::from_failure(reason, stage, failure);
                self.dead_letter(event, letter, now, effects)
            }
        }
    }

    /// The event's answer waits to be published.
    pub(super) fn answer(&mut self, event: EventRef, answer: Answer) {
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its work was just seen");
        let work = tenure
            .ledger
            .get_mut(event.number)
            .expect("its work was just seen");
        work.place = Place::Outbox;
        work.answer = Some(answer);
        tenure.outbox.push_back(event.number);
    }

    fn filter(&mut self, event: EventRef, now: Time) {
        self.finish(event, now, |counters| counters.filtered += 1);
        self.breaker.record_ended(now);
    }

    pub(super) fn dead_letter(
        &mut self,
        event: EventRef,
        letter: Letter,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Next {
        // What a parked lane dead-letters says nothing new about the app.
        let by_policy = letter.reason == Reason::LaneParked;
        if !by_policy && !self.breaker.may_dead_letter(now) {
            if !self.tally.storm_reported {
                self.tally.storm_reported = true;
                self.report_breaker("open", effects);
            }
            return Next::AtOnce;
        }
        self.report_dead_letter(event, &letter, now, effects);
        if self.park_or_hold(event, Some(&letter), true, now, effects) {
            return Next::Later;
        }
        self.answer(event, Answer::DeadLetter(Box::new(letter)));
        Next::Gone
    }

    /// An event that never goes to the app is dead-lettered; its lane, just taken, goes on.
    pub(super) fn dead_letter_unsent(
        &mut self,
        event: EventRef,
        letter: Letter,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let lane = self.work(event).expect("its lane just gave it").lane;
        match self.dead_letter(event, letter, now, effects) {
            Next::Gone => self.go_on(event.tenure, lane, now),
            // Its lane finds no room among the parked ones.
            Next::Later => {}
            // A storm holds it. It is no use as a probe, because the app never sees it.
            Next::AtOnce => {
                if let Some(work) = self.work(event) {
                    work.place = Place::Backoff;
                }
                self.retries.push(Reverse((now.boot + HELD_AGAIN, event)));
            }
        }
    }

    /// An operator gave up on an event that was held back.
    pub(super) fn skipped(
        &mut self,
        event: EventRef,
        reason: String,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let letter = Letter::of(Reason::Permanent, Stage::Input, "SKIPPED", reason);
        self.report_dead_letter(event, &letter, now, effects);
        let lane = self.work(event).expect("it was just woken").lane;
        if self.park_or_hold(event, Some(&letter), true, now, effects) {
            return;
        }
        self.answer(event, Answer::DeadLetter(Box::new(letter)));
        self.go_on(event.tenure, lane, now);
    }

    /// The event's lane goes on with the next one. In push mode it waits for more, until the
    /// event is terminal: nothing else would keep a later result of the lane, which the app
    /// stores by itself, behind an earlier dead letter (D-L4).
    pub(super) fn go_on(&mut self, tenure: TenureId, lane: LaneId, now: Time) {
        if self.settings.push.is_none() {
            self.release_lane(tenure, lane, now);
        }
    }

    pub(super) fn release_lane(&mut self, tenure: TenureId, lane: LaneId, now: Time) {
        if self.settings.rules.hold(Rule::LaneExclusion)
            && let Some(tenure) = self.tenures.get_mut(&tenure)
        {
            tenure.lanes.release(lane);
            // Or the next event of a lane waits for the next fetch or commit.
            if tenure.lanes.ready() > 0 {
                self.waiting_since.get_or_insert(now);
            }
        }
    }

    /// The event goes back in front of its lane, to be sent as soon as calls are possible; alone
    /// if it is suspected, also when the app was not there at its last turn (D-B6).
    pub(super) fn put_back(&mut self, event: EventRef, now: Time) {
        let Some(work) = self.work(event) else {
            return;
        };
        if work.is_suspect() {
            work.place = Place::Suspected;
            self.suspects.insert(event);
            return;
        }
        work.place = Place::Waiting;
        let lane = work.lane;
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its work was just seen");
        tenure.lanes.put_back(lane, event.number);
        self.waiting_since.get_or_insert(now);
    }

    /// The event waits behind one of its lane that comes again.
    pub(super) fn put_behind(&mut self, event: EventRef) {
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its work was just seen");
        let work = tenure
            .ledger
            .get_mut(event.number)
            .expect("its work was just seen");
        work.place = Place::Waiting;
        tenure.lanes.queue_front(work.lane, event.number);
    }

    fn report_dead_letter(
        &mut self,
        event: EventRef,
        letter: &Letter,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        if !self.tally.worth_reporting(letter.reason, now) {
            return;
        }
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its work was just seen");
        let work = tenure
            .ledger
            .get(event.number)
            .expect("its work was just seen");
        effects.push(Effect::Report(Fact::DeadLettered {
            partition: tenure.partition.clone(),
            position: work.event.position(),
            reason: letter.reason.as_str(),
            message: letter.message.clone(),
        }));
    }

    pub(super) fn report_breaker(&mut self, state: &'static str, effects: &mut Vec<Effect>) {
        let cause = self.breaker.cause();
        self.tally.storm_reported &= state != "closed";
        effects.push(Effect::Report(Fact::Breaker {
            state,
            cause: cause.map_or("none", Cause::as_str),
            message: self.tally.last_failure.clone().unwrap_or_else(|| "".into()),
        }));
    }
}

impl Letter {
    pub(super) fn of(reason: Reason, stage: Stage, code: &str, message: String) -> Self {
        Self {
            reason,
            stage,
            code: code.to_owned(),
            message,
            body: bytes::Bytes::new(),
            output_index: None,
            shortened: Shortened::Nothing,
            stamped_now: false,
        }
    }

    pub(super) fn from_failure(reason: Reason, stage: Stage, failure: Failure) -> Self {
        Self {
            reason,
            stage,
            code: failure.code,
            message: failure.message,
            body: failure.body,
            output_index: None,
            shortened: Shortened::Nothing,
            stamped_now: false,
        }
    }
}
