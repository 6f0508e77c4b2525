//! Push mode: the app posts its results to the output, and only the output knows what is stored.
//!
//! Each call is announced to the output, and made when the output says that it knows it. It is
//! withdrawn when it has ended, in whichever way: from then on the output refuses pushes for it,
//! and tells what it has stored. Only then anything is decided about the event.
//!
//! Invariant: an event is finished on the app's word and the output's count together (A-P2).
//! Invariant: no two calls of an event are open at the output at one time (A-P1).
//! Invariant: with `Serial` one call is open per process, its count included (A-P4).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use std::time::Duration;

use bytes::Bytes;
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::Intake;
use super::answers::Next;
use super::io::{Call, CallId, Effect, Fact};
use super::publishing::{self, LEASE_PAUSE, MISCONFIGURED_PAUSE, STORE_PAUSE_MAX};
use super::settings::Correlate;
use super::tenure::{EventRef, Letter, Phase, Place, Tenure, TenureId};
use crate::contract::publish::{Announce, Answered, Request, StoreClass, StoreFailure};
use crate::contract::result::{Reason, Stage};
use crate::event::TimestampKind;
use crate::fate;
use crate::outcome::{Class, FailureKind, Item, Outcome};
use crate::rules::Rule;
use crate::time::Time;

/// Calls as the output knows them, of one session of the link.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    /// Announced; made when the output knows them.
    waiting: BTreeMap<CallId, Call>,
    /// Announced and not withdrawn.
    announced: BTreeSet<CallId>,
    /// Withdrawn in this turn; told in one frame.
    ended: Vec<u64>,
    /// The output counts what it has stored for them.
    counting: BTreeMap<CallId, Counting>,
}

/// A call that has ended at the app.
#[derive(Debug)]
struct Counting {
    event: EventRef,
    outcome: Outcome,
    stored: u32,
    /// The last push, if it was not stored.
    failure: Option<StoreFailure>,
}

impl Pushes {
    /// Whether the output still counts for events of these tenures.
    pub(super) fn counting(&self, tenures: &[TenureId]) -> bool {
        self.counting
            .values()
            .any(|call| tenures.contains(&call.event.tenure))
    }

    /// Whether the output still counts for any call.
    pub(super) fn are_counting(&self) -> bool {
        !self.counting.is_empty()
    }
}

impl Intake {
    /// Whether no call may be made now because of push mode.
    pub(super) fn pushes_wait(&self) -> bool {
        let Some(push) = &self.settings.push else {
            return false;
        };
        let alone = push.correlate == Correlate::Serial;
        !self.link.is_up() || (alone && !(self.calls.is_empty() && self.pushes.counting.is_empty()))
    }

    /// Tells the output about a call; it is made when the output knows it, or its results might
    /// be there first.
    pub(super) fn announce(&mut self, mut call: Call, event: EventRef, effects: &mut Vec<Effect>) {
        let push = self.settings.push.as_ref().expect("push mode announces");
        let [called] = &call.events[..] else {
            unreachable!("push mode has single requests only (C-2)");
        };
        // Nobody who does not know the secret can tell it from 128 random bits.
        let mut hasher = SipHasher24::new_with_key(&push.secret);
        hasher.write_u64(call.id.0);
        let correlation = hasher.finish128().as_bytes();
        let tenure = &self.tenures[&event.tenure];
        let Phase::Live { token, .. } = &tenure.phase else {
            unreachable!("only live partitions are dispatched");
        };
        let lane = tenure
            .ledger
            .get(event.number)
            .expect("a call is made of events in flight")
            .lane;
        let it = &called.event;
        let timestamp = it.timestamp();
        let announce = Announce {
            call: call.id.0,
            correlation,
            stamp: call.stamp,
            generation: tenure.lease_generation,
            partition: called.partition.clone(),
            position: it.position(),
            lane: lane.to_wire(),
            epoch: token.epoch(),
            id: called.id,
            timestamp_ms: (timestamp.kind != TimestampKind::None).then_some(timestamp.ms),
            key: it.key().map(Bytes::copy_from_slice),
            headers: it
                .headers()
                .map(|(name, value)| {
                    let value = value.map(Bytes::copy_from_slice);
                    (Bytes::copy_from_slice(name), value)
                })
                .collect(),
        };
        effects.push(publishing::frame(&Request::Announce(announce)));
        call.correlation = Some(correlation);
        self.pushes.announced.insert(call.id);
        self.pushes.waiting.insert(call.id, call);
    }

    /// The output knows a call.
    fn make_call(&mut self, mut call: Call, now: Time, effects: &mut Vec<Effect>) {
        let open = self.calls.get_mut(&call.id).expect("it was not made yet");
        open.sent = now;
        let tenure = open.events[0].tenure;
        if self.drain.is_none() && self.may_send(tenure, now) {
            call.deadline = now.plus(self.settings.call_timeout);
            effects.push(Effect::Call(call));
        } else {
            self.answered(call.id, Outcome::Abandoned, now, effects);
        }
    }

    /// The app has answered a pushed call, or nobody waits for its answer any more.
    pub(super) fn pushed_call_ended(
        &mut self,
        call: CallId,
        events: &[EventRef],
        outcome: Outcome,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let event = events[0];
        if !self.pushes.announced.remove(&call) {
            self.conclude_uncounted(event, outcome, now, effects);
            return;
        }
        let Some(tenure) = self.tenures.get(&event.tenure) else {
            self.tally.stale_results += 1;
            return;
        };
        // The output has forgotten the call with the revocation: whatever the app says, nobody
        // knows what is stored. The next owner asks again.
        if !tenure.is_live() {
            return;
        }
        let rules = self.settings.rules;
        match outcome {
            Outcome::Items(_) if !rules.hold(Rule::AnsweredThenTerminal) => {
                self.emitted(event, now);
            }
            Outcome::Failed(_) if !rules.hold(Rule::WithdrawBeforeRetry) => {
                self.conclude(events, outcome, now, effects);
            }
            Outcome::Items(_) | Outcome::Failed(_) | Outcome::TooLarge(_) | Outcome::Abandoned => {
                self.pushes.ended.push(call.0);
                let counting = Counting {
                    event,
                    outcome,
                    stored: 0,
                    failure: None,
                };
                self.pushes.counting.insert(call, counting);
            }
        }
    }

    /// Nobody can tell any more what was stored for a call. What failed is decided as ever; what
    /// went well is done again, because its results may be missing (P-6).
    fn conclude_uncounted(
        &mut self,
        event: EventRef,
        outcome: Outcome,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let outcome = match outcome {
            Outcome::Items(_) => Outcome::Abandoned,
            Outcome::Failed(_) | Outcome::TooLarge(_) | Outcome::Abandoned => outcome,
        };
        self.conclude(&[event], outcome, now, effects);
    }

    /// The link is another one: the output has forgotten every call.
    pub(super) fn pushes_forgotten(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let forgotten = std::mem::take(&mut self.pushes);
        for call in forgotten.waiting.into_keys() {
            self.answered(call, Outcome::Abandoned, now, effects);
        }
        for call in forgotten.counting.into_values() {
            self.conclude_uncounted(call.event, call.outcome, now, effects);
        }
    }

    /// Tells the output which calls have ended.
    pub(super) fn withdraw(&mut self, effects: &mut Vec<Effect>) {
        if !self.pushes.ended.is_empty() {
            let calls = std::mem::take(&mut self.pushes.ended);
            effects.push(publishing::frame(&Request::Withdraw { calls }));
        }
    }

    /// What the output has stored for a call: nothing yet, or all.
    pub(super) fn counted(&mut self, answered: Answered, now: Time, effects: &mut Vec<Effect>) {
        if let Some(call) = self.pushes.waiting.remove(&CallId(answered.call)) {
            self.make_call(call, now, effects);
        } else if let Some(call) = self.pushes.counting.get_mut(&CallId(answered.call)) {
            call.stored = answered.stored;
            call.failure = answered.failures.into_iter().next_back();
        }
    }

    /// Nothing more can be stored for a call: its event is decided about.
    pub(super) fn withdrawn(&mut self, call: u64, now: Time, effects: &mut Vec<Effect>) {
        let Some(call) = self.pushes.counting.remove(&CallId(call)) else {
            return;
        };
        let event = call.event;
        if self.work(event).is_none() {
            self.tally.stale_results += 1;
            return;
        }
        let partly = call.stored > 0;
        match (call.outcome, call.failure) {
            (Outcome::Items(_), Some(failure)) if failure.class == StoreClass::Rejected => {
                self.rejected(event, failure, now, effects);
            }
            (Outcome::Items(_), Some(failure)) => self.not_pushed(event, failure, now, effects),
            (Outcome::Items(_), None) if partly => {
                self.clear_store_failures(event);
                self.emitted(event, now);
            }
            (Outcome::Items(_), None) => {
                let filter = Outcome::Items(vec![Item::Filter]);
                self.conclude(&[event], filter, now, effects);
            }
            (Outcome::Failed(failure), _) if failure.kind == FailureKind::TimedOut && partly => {
                let letter = Letter::from_failure(Reason::Timeout, Stage::App, failure);
                self.bury(event, letter, now, effects);
            }
            // The app failed because its result was not stored: that is not the event's fault,
            // and no further attempt would make it any better.
            (Outcome::Failed(answer), Some(failure))
                if matches!(answer.class, Class::Transient | Class::Permanent)
                    && answer.kind != FailureKind::ConnectionLost =>
            {
                if failure.class == StoreClass::Rejected {
                    self.rejected(event, failure, now, effects);
                } else {
                    self.not_pushed(event, failure, now, effects);
                }
            }
            (outcome, _) => self.conclude(&[event], outcome, now, effects),
        }
    }

    /// The last push of a call was not stored: the app is asked again, which does not count as
    /// an attempt, as long as it takes (D-O1, D-O4).
    fn not_pushed(
        &mut self,
        event: EventRef,
        failure: StoreFailure,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let jitter = self.random.unit();
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its work was just seen");
        tenure.store_failures = tenure.store_failures.saturating_add(1);
        if tenure.store_failures == 1 {
            effects.push(Effect::Report(Fact::StoreFailed {
                partition: tenure.partition.clone(),
                message: format!("{}: {}", failure.code, failure.message),
            }));
        }
        let pause = match failure.class {
            StoreClass::Lease | StoreClass::Revoked => LEASE_PAUSE,
            StoreClass::Misconfigured => MISCONFIGURED_PAUSE,
            StoreClass::Transient | StoreClass::Unknown | StoreClass::Rejected => {
                fate::backoff(&self.settings.retry, tenure.store_failures, jitter)
                    .min(STORE_PAUSE_MAX)
            }
        };
        self.tally.resends += 1;
        self.wait(event, now.boot + pause);
    }

    /// The broker will never take what the app pushed (D-O4).
    fn rejected(
        &mut self,
        event: EventRef,
        failure: StoreFailure,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let letter = Tenure::rejection(&failure);
        self.bury(event, letter, now, effects);
    }

    fn bury(&mut self, event: EventRef, letter: Letter, now: Time, effects: &mut Vec<Effect>) {
        match self.dead_letter(event, letter, now, effects) {
            // With `Later` it is held, with its letter, until its lane can be parked.
            Next::Gone | Next::Later => {}
            // A storm holds it: the app is asked again when that is over.
            Next::AtOnce => self.put_back(event, now),
        }
    }

    fn wait(&mut self, event: EventRef, until: Duration) {
        if let Some(work) = self.work(event) {
            work.place = Place::Backoff;
            self.retries.push(Reverse((until, event)));
        }
    }

    fn clear_store_failures(&mut self, event: EventRef) {
        if let Some(tenure) = self.tenures.get_mut(&event.tenure) {
            tenure.store_failures = 0;
        }
    }
}
