//! What goes to the app, and when: window, breaker, suspects, batches.
//!
//! Invariant: nothing is dispatched at or beyond committed + window (R5, D-W9).
//! Invariant: while events are suspected of crashing the app, one event at a time goes (D-B6).
//! Invariant: after a crash nothing goes before the app says that it is healthy, so that one
//! death is never counted twice against an event (D-B6).

use std::time::Duration;

use super::io::{Call, Called, Effect, Fact};
use super::tenure::{EventRef, Letter, Place, TenureId};
use super::{App, Intake, OpenCall, parking};
use crate::batcher::{self, Cut, Waiting};
use crate::breaker::Gate;
use crate::contract::result::{Reason, Stage};
use crate::fate::Oversized;
use crate::lanes::{LaneHash, LaneId};
use crate::rules::Rule;
use crate::time::Time;
use crate::token::Stamp;

/// An app that was not reached is asked again after this long (class `infra`).
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a call is being filled with.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) events: Vec<EventRef>,
    bytes: usize,
}

impl Intake {
    /// Opens as many calls as may be open.
    pub(super) fn dispatch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        while self.may_call(now) {
            let probe = matches!(self.breaker.gate(now), Gate::Probe(_));
            let Some(events) = self.next_call(probe, now, effects) else {
                return;
            };
            self.call(events, probe, now, effects);
        }
    }

    /// When time alone lets a call go.
    pub(super) fn next_dispatch(&self, now: Time) -> Option<Duration> {
        if self.drain.is_some() || self.operator_paused || self.pushes_wait() {
            return None;
        }
        if let Some(quiet) = self.quiet_until.filter(|quiet| quiet.boot > now.boot) {
            return Some(quiet.boot);
        }
        if let Gate::Open(_, probe_at) = self.breaker.gate(now) {
            return probe_at.map(|at| at.boot);
        }
        if !self.window.has_room() || self.alone.is_some() {
            return None;
        }
        let since = self.waiting_since?;
        match batcher::cut(&self.batch(), self.waiting(since, now), now) {
            Cut::At(due) => Some(due.boot),
            Cut::Now | Cut::Nothing => None,
        }
    }

    fn may_call(&self, now: Time) -> bool {
        if self.drain.is_some()
            || self.operator_paused
            || self.rejoining
            || self.pushes_wait()
            || matches!(self.app, App::Away { .. })
            || self.quiet_until.is_some_and(|quiet| now.boot < quiet.boot)
        {
            return false;
        }
        match self.breaker.gate(now) {
            Gate::Closed
                if self.suspects.is_empty() && self.alone.is_none() && !self.goes_serially() =>
            {
                self.window.has_room()
            }
            Gate::Closed | Gate::Probe(_) => self.window.open() == 0,
            Gate::Open(..) => false,
        }
    }

    /// The events of the next call, in lane order; `None` if nothing is to be sent now.
    fn next_call(
        &mut self,
        probe: bool,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Option<Vec<EventRef>> {
        if self.suspects.is_empty() && self.take_suspect(now, effects) {
            return None;
        }
        while let Some(event) = self.suspects.first().copied() {
            let may_send = self.may_send(event.tenure, now);
            if self.work(event).is_none() {
                self.suspects.remove(&event);
                continue;
            }
            if !may_send || !self.is_named(Some(event)) {
                return None;
            }
            let work = self.work(event).expect("it was just there");
            work.place = Place::AtApp;
            let skip = work.skip.take();
            self.suspects.remove(&event);
            if let Some(letter) = self.parked_letter(event) {
                self.dead_letter_unsent(event, letter, now, effects);
                continue;
            }
            if let Some(reason) = skip {
                self.skipped(event, reason, now, effects);
                continue;
            }
            return Some(vec![event]);
        }
        let others = !self.halves.is_empty() || self.sendable(now) > 0;
        if others && self.commits_bind() && !self.is_named(None) {
            return None;
        }
        while let Some(half) = self.next_half(now) {
            let (parked, half): (Vec<_>, Vec<_>) = half
                .into_iter()
                .partition(|event| self.parked_letter(*event).is_some());
            self.dead_letter_parked(&parked, now, effects);
            if !half.is_empty() {
                return Some(half);
            }
        }
        let since = self.waiting_since?;
        let cut = batcher::cut(&self.batch(), self.waiting(since, now), now);
        match cut {
            Cut::Nothing => {
                self.waiting_since = None;
                return None;
            }
            Cut::At(_) if !probe => return None,
            Cut::At(_) | Cut::Now => {}
        }
        let draft = self.fill(probe, now, effects);
        self.waiting_since = (self.sendable(now) > 0).then_some(now);
        (!draft.events.is_empty()).then_some(draft.events)
    }

    /// The next half of a call that was too large, without the events of partitions that are
    /// not held any more. Halves whose partitions wait for a lease stay.
    fn next_half(&mut self, now: Time) -> Option<Vec<EventRef>> {
        for _ in 0..self.halves.len() {
            let mut half = self.halves.pop_front()?;
            half.retain(|event| {
                self.tenures
                    .get(&event.tenure)
                    .is_some_and(super::Tenure::is_live)
            });
            if half.iter().any(|event| !self.may_send(event.tenure, now)) {
                self.halves.push_back(half);
            } else if !half.is_empty() {
                return Some(half);
            }
        }
        None
    }

    /// What a call may hold now.
    fn batch(&self) -> batcher::Settings {
        batcher::Settings {
            records_max: self.batch_size.limit(),
            ..self.settings.batch
        }
    }

    fn waiting(&self, since: Time, now: Time) -> Waiting {
        Waiting {
            events: self.sendable(now),
            since,
            open_calls: self.window.open(),
        }
    }

    /// Events that the lanes would give now.
    fn sendable(&self, now: Time) -> usize {
        let watches = self.watches_pod();
        self.tenures
            .iter()
            .filter(|(id, tenure)| tenure.lanes.ready() > 0 && self.may_send(**id, now))
            .filter(|(_, tenure)| !watches || !tenure.is_suspect())
            .map(|(_, tenure)| tenure.lanes.ready())
            .sum()
    }

    pub(super) fn may_send(&self, tenure: TenureId, now: Time) -> bool {
        let lease_needed = self.settings.rules.hold(Rule::Lease);
        self.tenures
            .get(&tenure)
            .is_some_and(|t| t.is_live() && (!lease_needed || t.lease.holds(now)))
    }

    /// Takes events from the partitions in turn until the call is full.
    fn fill(&mut self, probe: bool, now: Time, effects: &mut Vec<Effect>) -> Draft {
        let mut draft = Draft::default();
        let records_max = if probe { 1 } else { self.batch().records_max };
        let start = self.cursor;
        let ids: Vec<TenureId> = self
            .tenures
            .range(start..)
            .chain(self.tenures.range(..start))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let suspect = self.watches_pod() && self.tenures[&id].is_suspect();
            if suspect || !self.may_send(id, now) {
                continue;
            }
            self.cursor = id + 1;
            while draft.events.len() < records_max {
                if !self.take_one(id, records_max, &mut draft, now, effects) {
                    break;
                }
            }
            if draft.events.len() >= records_max || draft.bytes >= self.settings.batch.bytes_max {
                break;
            }
        }
        draft
    }

    /// Moves the next event of a partition, and what may follow it in its lane, into the call.
    /// False if the partition gives nothing more or the call is full.
    pub(super) fn take_one(
        &mut self,
        id: TenureId,
        records_max: usize,
        draft: &mut Draft,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let tenure = self
            .tenures
            .get_mut(&id)
            .expect("the caller iterates over tenures");
        let Some((lane, first)) = tenure.lanes.take() else {
            return false;
        };
        match self.admit(
            EventRef {
                tenure: id,
                number: first,
            },
            draft,
            now,
        ) {
            Admission::Taken => {}
            Admission::Full => {
                let tenure = self.tenures.get_mut(&id).expect("it was just there");
                tenure.lanes.put_back(lane, first);
                return false;
            }
            // The next ones may stand below the window: a commit lets this one go on.
            Admission::Beyond => {
                let tenure = self.tenures.get_mut(&id).expect("it was just there");
                tenure.beyond_window.push((lane, first));
                return true;
            }
            Admission::Blocked => {
                let tenure = self.tenures.get_mut(&id).expect("it was just there");
                tenure
                    .ledger
                    .get_mut(first)
                    .expect("lanes hold events in flight")
                    .place = Place::Blocked;
                return true;
            }
            Admission::Dead(letter) => {
                self.dead_letter_unsent(
                    EventRef {
                        tenure: id,
                        number: first,
                    },
                    letter,
                    now,
                    effects,
                );
                return true;
            }
        }
        if !self.settings.rules.hold(Rule::LaneExclusion) {
            let tenure = self.tenures.get_mut(&id).expect("it was just there");
            tenure.lanes.release(lane);
            return true;
        }
        let mut taken = 1;
        while lane != LaneId::NONE
            && taken < self.settings.batch.per_lane_max
            && draft.events.len() < records_max
        {
            let tenure = self.tenures.get_mut(&id).expect("it was just there");
            let Some(number) = tenure.lanes.take_more(lane) else {
                break;
            };
            match self.admit(EventRef { tenure: id, number }, draft, now) {
                Admission::Taken => taken += 1,
                // It is decided when its turn comes as the first of its lane.
                Admission::Full | Admission::Beyond | Admission::Blocked | Admission::Dead(_) => {
                    let tenure = self.tenures.get_mut(&id).expect("it was just there");
                    tenure.lanes.queue_front(lane, number);
                    break;
                }
            }
        }
        true
    }

    /// Whether an event that its lane gave may join the call.
    fn admit(&mut self, event: EventRef, draft: &mut Draft, now: Time) -> Admission {
        let batch = self.settings.batch;
        let window = self
            .settings
            .rules
            .hold(Rule::Window)
            .then_some(self.settings.window);
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its lane was just asked");
        let limit = window.map(|window| tenure.committed.plus(window));
        let position = tenure
            .ledger
            .get(event.number)
            .map(|work| work.event.position());
        if let Some(letter) = position.and_then(|position| tenure.pod_crash_letter(position)) {
            return Admission::Dead(letter);
        }
        let work = tenure
            .ledger
            .get_mut(event.number)
            .expect("lanes hold events in flight");
        let bytes = work.event.bytes();
        if limit.is_some_and(|limit| work.event.position() >= limit) {
            return Admission::Beyond;
        }
        if !draft.events.is_empty() && draft.bytes + bytes > batch.bytes_max {
            draft.bytes = batch.bytes_max;
            return Admission::Full;
        }
        if let Some(reason) = work.skip.clone() {
            return Admission::Dead(Letter::of(
                Reason::Permanent,
                Stage::Input,
                "SKIPPED",
                reason,
            ));
        }
        if !tenure.parked.is_empty() {
            let lane = LaneHash::of(self.settings.ordering, work.event.key());
            let parked = tenure.parked.iter().any(|parked| Some(parked.lane) == lane);
            if parked {
                return Admission::Dead(parking::letter());
            }
        }
        if EventRef::expired(work, self.settings.ttl, now) {
            let message = "older than input.ttl".to_owned();
            return Admission::Dead(Letter::of(Reason::Ttl, Stage::Input, "TTL", message));
        }
        let size = work.event.value().map_or(0, <[u8]>::len);
        if size > self.settings.request_bytes_max {
            if self.settings.retry.oversized == Oversized::Block {
                return Admission::Blocked;
            }
            let message = format!(
                "the value has {size} bytes, app.maxRequestBytes allows {}",
                self.settings.request_bytes_max
            );
            return Admission::Dead(Letter::of(
                Reason::Oversized,
                Stage::Input,
                "OVERSIZED",
                message,
            ));
        }
        work.place = Place::AtApp;
        draft.bytes += bytes;
        draft.events.push(event);
        Admission::Taken
    }

    /// Sends one call.
    fn call(&mut self, events: Vec<EventRef>, probe: bool, now: Time, effects: &mut Vec<Effect>) {
        let id = self.next_call_id();
        let mut called = Vec::with_capacity(events.len());
        for event in &events {
            let tenure = self
                .tenures
                .get_mut(&event.tenure)
                .expect("a call is made of events in flight");
            let work = tenure
                .ledger
                .get_mut(event.number)
                .expect("a call is made of events in flight");
            work.attempts.begin(now);
            work.last_attempt_ms = now.wall_ms;
            if work.is_suspect() {
                self.alone = Some(id);
            }
            let position = work.event.position();
            let event_id = *work
                .id
                .get_or_insert_with(|| tenure.identity.event_id(position));
            called.push(Called {
                partition: tenure.partition.clone(),
                event: work.event.clone(),
                id: event_id,
                attempt: work.attempts.counted + 1,
                first_attempt_ms: work.attempts.first_ms,
            });
        }
        if probe {
            self.breaker.probing();
            self.report_breaker("half-open", effects);
        }
        let event = events[0];
        self.window.opened();
        self.tally.calls += 1;
        self.calls.insert(
            id,
            OpenCall {
                events,
                sent: now,
                probe,
            },
        );
        let call = Call {
            id,
            stamp: Stamp::Live,
            deadline: now.plus(self.settings.call_timeout),
            correlation: None,
            events: called,
        };
        if self.settings.push.is_some() {
            self.announce(call, event, effects);
        } else {
            effects.push(Effect::Call(call));
        }
    }

    /// Asks an app that is away whether it is back.
    pub(super) fn ask_app(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if let App::Away { ask_at, .. } = &mut self.app
            && ask_at.is_some_and(|at| now.boot >= at.boot)
        {
            *ask_at = None;
            self.died_since_asked = false;
            effects.push(Effect::ProbeApp);
        }
    }

    pub(super) fn next_question(&self) -> Option<Duration> {
        match &self.app {
            App::Away { ask_at, .. } => ask_at.map(|at| at.boot),
            App::Reachable => None,
        }
    }

    pub(super) fn app_probed(&mut self, ready: bool, now: Time, effects: &mut Vec<Effect>) {
        let App::Away { ask_at, told } = &mut self.app else {
            return;
        };
        if !ready {
            if !*told {
                *told = true;
                effects.push(Effect::Report(Fact::AppUnreachable {
                    message: self.tally.last_failure.clone().unwrap_or_else(|| "".into()),
                }));
            }
            *ask_at = Some(now.plus(ASK_AGAIN));
        } else if self.died_since_asked {
            // Perhaps whoever answered has died since.
            *ask_at = Some(now);
        } else {
            if *told {
                effects.push(Effect::Report(Fact::AppReachable));
            }
            self.app = App::Reachable;
        }
    }

    /// A call did not reach the app at all.
    pub(super) fn app_unreachable(&mut self, message: &str, effects: &mut Vec<Effect>) {
        match &mut self.app {
            App::Away { told: true, .. } => return,
            App::Away { told, .. } => *told = true,
            App::Reachable => self.ask_now(true, effects),
        }
        effects.push(Effect::Report(Fact::AppUnreachable {
            message: message.into(),
        }));
    }

    /// A connection died with a call in flight. Other connections of the same process may still
    /// stand for a moment, and whatever they were given now would seem to have killed it (D-B6).
    pub(super) fn app_died(&mut self, effects: &mut Vec<Effect>) {
        if !self.settings.rules.hold(Rule::CrashIsOver) {
            return;
        }
        match self.app {
            App::Reachable => self.ask_now(false, effects),
            App::Away { .. } => self.died_since_asked = true,
        }
    }

    fn ask_now(&mut self, told: bool, effects: &mut Vec<Effect>) {
        self.app = App::Away { ask_at: None, told };
        self.died_since_asked = false;
        effects.push(Effect::ProbeApp);
    }
}

/// Whether an event joins a call.
enum Admission {
    Taken,
    /// The call is full: it stays in its lane.
    Full,
    /// The window is reached: it waits for a commit.
    Beyond,
    /// It holds its lane until an operator acts.
    Blocked,
    /// It never goes to the app.
    Dead(Letter),
}
