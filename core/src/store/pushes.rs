//! Push mode: results that the app posts itself, beside the frames of the input (A-P1..A-P5).
//!
//! A pushed result becomes an event of a frame of its own and takes the way of all others:
//! lanes, leases, size limits, one answer.
//!
//! Invariant: only calls that are announced and not withdrawn take results (A-P1); the input
//! makes no call before it knows that it is announced.
//! Invariant: a call is counted out after everything it pushed has ended (A-P2).
//! Invariant: the app hears 200 after the acknowledgement, and each post is answered once.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;

use siphasher::sip::SipHasher13;

use super::answers::NewFrame;
use super::event::failure;
use super::lanes::LaneKey;
use super::{Effect, Failed, Store};
use crate::contract::app::Pushed;
pub use crate::contract::block::Correlate;
use crate::contract::publish::{
    Announce, Answered, Destination, FateCode, Fault, Reply, Request, ResultsFrame, StoreClass,
    StoreFailure,
};
use crate::contract::result::{self, ResultContext};
use crate::event::{Event, EventsBuilder, Timestamp, TimestampKind};
use crate::limits::PUSH_CALLS_MAX;
use crate::outcome::{Output, OutputKey};
use crate::position::Position;
use crate::time::Time;
use crate::token::Stamp;

/// How the app's posts find their events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Push {
    /// `app.push.correlate`.
    pub correlate: Correlate,
    /// `app.push.allowUncorrelated`.
    pub allow_uncorrelated: bool,
    /// `app.push.copies`: topics that get each result beside its own.
    pub copies: Vec<String>,
}

/// Names a post of the app.
pub type PushId = u64;

/// What the app hears of its post.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PushAnswer {
    /// The result is acknowledged by its topic.
    Stored,
    /// It is not; the app may post it again.
    NotStored,
    /// It does not say which call it answers.
    Missing,
    /// No call in flight has this correlation.
    Unknown,
    /// It is above the limit of its topic.
    TooLarge,
}

type Table<K, V> = HashMap<K, V, BuildHasherDefault<SipHasher13>>;

/// Calls that the app may push for, and posts that are under way.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    calls: Table<u64, Call>,
    by_correlation: Table<[u8; 16], u64>,
    open: Table<PushId, Open>,
    /// Calls that are announced, and of which the input does not know that they are.
    known: Vec<u64>,
    posts: PushId,
    /// Answers that the driver has not fetched.
    told: Vec<(PushId, PushAnswer)>,
    /// Calls that are counted out, and whether anything was stored for them.
    ended: Vec<(Answered, bool)>,
}

/// A call that was announced.
#[derive(Debug)]
struct Call {
    correlation: [u8; 16],
    generation: i32,
    source: u32,
    lane: u64,
    epoch: u64,
    partition: crate::position::Partition,
    /// The event without its value.
    event: Event,
    id: crate::identity::EventId,
    /// The input has withdrawn it: it takes nothing more, and ends with what is under way.
    withdrawn: bool,
    /// Posts under way.
    open: u32,
    /// Posts so far.
    posts: u32,
    stored: u32,
    /// Indices of results that were not stored, to be used again: the id of a repeated post is
    /// that of the first (D-I3).
    free: BTreeSet<u32>,
    next: u32,
    /// The newest failure, and how many posts had come by then: a later one makes it good.
    failure: Option<(u32, StoreFailure)>,
}

/// A post under way.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// `None`: it belongs to no event.
    call: Option<u64>,
    /// Which of the call's posts it is.
    post: u32,
    /// Which of the event's results it is.
    index: u32,
}

impl Store {
    /// The input is about to call the app.
    pub(super) fn announced(&mut self, announce: Announce) -> Result<(), Fault> {
        let fault = |code: &str, message: &str| {
            Err(Fault {
                code: code.to_owned(),
                message: message.to_owned(),
            })
        };
        if self.settings.push.is_none() {
            return fault(
                "NotPush",
                "the input announces a pushed call, but app.contract.mode is not Push here",
            );
        }
        if announce.stamp != Stamp::Live {
            return fault("Stamp", "pushed calls are live in this version");
        }
        if self.pushes.calls.len() >= PUSH_CALLS_MAX {
            return fault("TooManyCalls", "more pushed calls than an input may make");
        }
        let source = self.sources.of(&announce.partition);
        // One event of a lane is at the app, and everything before it is terminal: whatever the
        // lane still waits for has been decided otherwise.
        let copies = self.copies().len() as u64;
        for copy in (0..=copies).filter(|_| announce.lane != 0) {
            let key = LaneKey {
                lane: lane_of(announce.lane, copy),
                source,
                stamp: announce.stamp,
            };
            if let Some(lane) = self.lanes.find_broken(key) {
                self.lanes.forgive(lane);
                self.lanes.settle(lane);
            }
        }
        let call = Call {
            correlation: announce.correlation,
            generation: announce.generation,
            source,
            lane: announce.lane,
            epoch: announce.epoch,
            event: event_of(&announce),
            partition: announce.partition,
            id: announce.id,
            withdrawn: false,
            open: 0,
            posts: 0,
            stored: 0,
            free: BTreeSet::new(),
            next: 0,
            failure: None,
        };
        self.pushes
            .by_correlation
            .insert(announce.correlation, announce.call);
        self.pushes.calls.insert(announce.call, call);
        self.pushes.known.push(announce.call);
        Ok(())
    }

    /// The input takes no more results of these calls.
    pub(super) fn withdrawn(&mut self, calls: Vec<u64>) {
        for number in calls {
            let Some(call) = self.pushes.calls.get_mut(&number) else {
                // Forgotten with its partition.
                self.pushes.ended.push((nothing_yet(number), false));
                continue;
            };
            call.withdrawn = true;
            self.pushes.by_correlation.remove(&call.correlation);
            self.pushes.count_out(number);
        }
    }

    /// Calls of partitions that are revoked take nothing more, and nobody asks for their count.
    pub(super) fn calls_revoked(&mut self, generation: i32, sources: &[u32]) {
        let by_correlation = &mut self.pushes.by_correlation;
        self.pushes.calls.retain(|_, call| {
            let gone =
                !call.withdrawn && call.generation <= generation && sources.contains(&call.source);
            if gone {
                by_correlation.remove(&call.correlation);
            }
            !gone
        });
    }

    /// The session is over, and with it every call.
    pub(super) fn forget_pushes(&mut self) {
        let pushes = &mut self.pushes;
        pushes.calls.clear();
        pushes.by_correlation.clear();
        pushes.ended.clear();
        pushes.known.clear();
        for (push, _) in pushes.open.drain() {
            self.counters.pushes_refused += 1;
            pushes.told.push((push, PushAnswer::NotStored));
        }
    }

    /// The app posts a result. It is answered by [`Effect::Pushed`].
    pub fn push(&mut self, now: Time, pushed: &Pushed) -> PushId {
        self.pushes.posts += 1;
        let push = self.pushes.posts;
        let answer = match self.call_of(pushed.correlation.as_ref()) {
            Ok(Some(call)) => {
                self.push_for(now, push, call, pushed);
                return push;
            }
            Ok(None) if self.push_uncorrelated(now, push, pushed) => return push,
            // Nobody answers live here.
            Ok(None) => PushAnswer::Unknown,
            Err(answer) => answer,
        };
        if answer == PushAnswer::Missing {
            self.pushes.blame_all();
        }
        self.counters.pushes_refused += 1;
        self.pushes.told.push((push, answer));
        push
    }

    /// The app posted what could not be read, or was too large to be. `correlation` is what it
    /// named, if that could be read.
    pub fn push_refused(&mut self, correlation: Option<[u8; 16]>, failed: Failed) {
        self.counters.pushes_refused += 1;
        let call = match self.call_of(correlation.as_ref()) {
            Ok(Some(call)) => call,
            Err(PushAnswer::Missing) => return self.pushes.blame_all(),
            Ok(None) | Err(_) => return,
        };
        if let Some(call) = self.pushes.calls.get_mut(&call) {
            call.posts += 1;
            call.failure = Some((call.posts, failure(call.posts, failed)));
        }
    }

    /// Which call a post belongs to; `None`: to none, which is allowed.
    fn call_of(&self, correlation: Option<&[u8; 16]>) -> Result<Option<u64>, PushAnswer> {
        let settings = self.settings.push.as_ref().ok_or(PushAnswer::Unknown)?;
        if let Some(correlation) = correlation {
            let call = self.pushes.by_correlation.get(correlation);
            return call.copied().map(Some).ok_or(PushAnswer::Unknown);
        }
        if settings.correlate == Correlate::Serial {
            let mut calls = self.pushes.by_correlation.values();
            match (calls.next(), calls.next()) {
                (Some(call), None) => return Ok(Some(*call)),
                (Some(_), Some(_)) => return Err(PushAnswer::Unknown),
                (None, _) => {}
            }
        }
        match (settings.allow_uncorrelated, settings.correlate) {
            (true, _) => Ok(None),
            (false, Correlate::Echo) => Err(PushAnswer::Missing),
            (false, Correlate::Serial) => Err(PushAnswer::Unknown),
        }
    }

    /// A result of an announced call.
    fn push_for(&mut self, now: Time, push: PushId, number: u64, pushed: &Pushed) {
        let release = self.settings.release.as_str();
        let call = self
            .pushes
            .calls
            .get_mut(&number)
            .expect("correlations name calls");
        let index = call.free.pop_first().unwrap_or_else(|| {
            call.next += 1;
            call.next - 1
        });
        call.posts += 1;
        call.open += 1;
        let open = Open {
            call: Some(number),
            post: call.posts,
            index,
        };
        self.pushes.open.insert(push, open);
        let context = ResultContext {
            release,
            epoch: call.epoch,
            block: "",
            pod: "",
            group: "",
            cluster: "",
            proxy_version: "",
        };
        let mut frame = ResultsFrame::new(0, Stamp::Live, call.generation);
        let position = call.event.position();
        let copies = self.settings.push.iter().flat_map(|push| &push.copies);
        for (number, copy) in (0..).zip(std::iter::once(None).chain(copies.map(Some))) {
            let copied = copy.map(|topic| Output {
                topic: Some(topic.clone()),
                ..pushed.output.clone()
            });
            let lane = lane_of(call.lane, number);
            frame.event(&call.partition, position, lane, FateCode::Emitted);
            result::write_result(
                &mut frame,
                &context,
                &call.partition,
                &call.event,
                &call.id,
                index,
                copied.as_ref().unwrap_or(&pushed.output),
            );
        }
        self.arrive_alone(now, push, frame);
    }

    /// A result that answers no event: without `millrace-src`, under any lease that holds (A-P5).
    /// False if there is none.
    fn push_uncorrelated(&mut self, now: Time, push: PushId, pushed: &Pushed) -> bool {
        let ready = self.session.as_ref().is_some_and(|session| session.ready);
        let held = self.sources.list.iter().find_map(|source| {
            let (generation, until) = source.lease.filter(|_| ready)?;
            (now.boot < until).then_some((source.partition.clone(), generation))
        });
        let Some((partition, generation)) = held else {
            return false;
        };
        let output = &pushed.output;
        let mut frame = ResultsFrame::new(0, Stamp::Live, generation);
        let destination = output
            .topic
            .as_deref()
            .map_or(Destination::Output, Destination::Topic);
        let key = match &output.key {
            OutputKey::Inherit | OutputKey::Null => None,
            OutputKey::Bytes(key) => Some(&key[..]),
        };
        let copies = self
            .copies()
            .iter()
            .map(|topic| Destination::Topic(topic.as_str()));
        for destination in std::iter::once(destination).chain(copies) {
            frame.event(&partition, Position::START, 0, FateCode::Emitted);
            frame.record(destination, None, None, key, output.value.as_deref());
            for (name, value) in &output.headers {
                if !result::is_reserved(name) {
                    frame.header(name, value.as_deref());
                }
            }
            let release = self.settings.release.as_bytes();
            frame.header(result::RELEASE, Some(release));
        }
        let open = Open {
            call: None,
            post: 0,
            index: 0,
        };
        self.pushes.open.insert(push, open);
        self.arrive_alone(now, push, frame);
        true
    }

    /// Topics that get each result beside its own. Each has its own lanes, so that one that fails
    /// does not keep it from the others (A-K4).
    fn copies(&self) -> &[String] {
        self.settings
            .push
            .as_ref()
            .map_or(&[], |push| &push.copies[..])
    }

    /// From here on a pushed result is like any other.
    fn arrive_alone(&mut self, now: Time, push: PushId, frame: ResultsFrame) {
        if frame.overflowed() {
            self.push_ended(push, Some(too_large()));
            return;
        }
        let frame = frame.finish();
        let Ok(Request::Results(results)) = Request::decode(frame.slice(4..)) else {
            unreachable!("decoding accepts exactly what encoding writes");
        };
        let slot = self.answers.open(NewFrame {
            seq: 0,
            stamp: results.stamp,
            generation: results.generation,
            arrived: now.boot,
            bytes: 0,
            events: results.len(),
            push: Some(push),
        });
        let source = self.sources.of(&results.partitions()[0]);
        for event in results.events() {
            self.arrive(slot, results.stamp, source, event)
                .expect("live results may go to every topic");
        }
    }

    /// Hands out what the app has to be told.
    pub(super) fn tell_apps(&mut self, effects: &mut Vec<Effect>) {
        let told = self.pushes.told.drain(..);
        effects.extend(told.map(|(push, answer)| Effect::Pushed { push, answer }));
    }

    /// Pushed results have ended, and calls with them.
    pub(super) fn settle_pushes(&mut self, effects: &mut Vec<Effect>) {
        for (push, failure) in self.answers.take_pushes() {
            self.push_ended(push, failure);
        }
        self.tell_apps(effects);
        for call in self.pushes.known.drain(..) {
            effects.push(Effect::Reply(Reply::Answered(nothing_yet(call))));
        }
        if self.pushes.ended.is_empty() {
            return;
        }
        let (mut refused, mut answered) = (Vec::new(), Vec::new());
        for (count, any) in self.pushes.ended.drain(..) {
            if any {
                answered.push(count.call);
            } else {
                refused.push(count.call);
            }
            if any || !count.failures.is_empty() {
                effects.push(Effect::Reply(Reply::Answered(count)));
            }
        }
        effects.push(Effect::Reply(Reply::Withdrawn { refused, answered }));
    }

    fn push_ended(&mut self, push: PushId, failure: Option<StoreFailure>) {
        let Some(open) = self.pushes.open.remove(&push) else {
            return;
        };
        let answer = match &failure {
            None => PushAnswer::Stored,
            Some(failure) if failure.code == OVERSIZED => PushAnswer::TooLarge,
            Some(_) => PushAnswer::NotStored,
        };
        if answer == PushAnswer::Stored {
            self.counters.pushes_stored += 1;
            self.counters.uncorrelated += u64::from(open.call.is_none());
        } else {
            self.counters.pushes_refused += 1;
        }
        self.pushes.told.push((push, answer));
        let Some(number) = open.call else { return };
        let Some(call) = self.pushes.calls.get_mut(&number) else {
            return;
        };
        call.open -= 1;
        match failure {
            None => {
                call.stored += 1;
                call.failure.take_if(|(posts, _)| open.post > *posts);
            }
            Some(mut failure) => {
                call.free.insert(open.index);
                failure.event = open.post;
                failure.record = Some(open.index);
                call.failure = Some((call.posts, failure));
            }
        }
        self.pushes.count_out(number);
    }
}

impl Pushes {
    /// A post does not say which call it answers: it may be that of any that has none yet, and
    /// none of these may end as if the app had nothing to say.
    fn blame_all(&mut self) {
        let missing = || {
            let message = "the app posts a result without the Millrace-Correlation of its request; \
                           echo it, or set app.push.correlate: Serial";
            Failed::new(StoreClass::Misconfigured, "CorrelationMissing", message)
        };
        for call in self.calls.values_mut().filter(|call| call.posts == 0) {
            call.failure = Some((0, failure(0, missing())));
        }
    }

    /// Ends a call that is withdrawn and has nothing under way.
    fn count_out(&mut self, number: u64) {
        let done = |call: &Call| call.withdrawn && call.open == 0;
        if !self.calls.get(&number).is_some_and(done) {
            return;
        }
        if let Some(call) = self.calls.remove(&number) {
            let count = Answered {
                call: number,
                stored: call.stored,
                failures: call
                    .failure
                    .into_iter()
                    .map(|(_, failure)| failure)
                    .collect(),
            };
            self.ended.push((count, call.stored > 0));
        }
    }
}

/// What the broker calls a record that is too large; the store says so, too.
const OVERSIZED: &str = "MessageSizeTooLarge";

/// The lane of a result's copy; 0 stays no lane.
fn lane_of(lane: u64, copy: u64) -> u64 {
    let mixed = lane ^ copy.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if lane == 0 { 0 } else { mixed.max(1) }
}

/// A call for which nothing is stored.
fn nothing_yet(call: u64) -> Answered {
    Answered {
        call,
        stored: 0,
        failures: Vec::new(),
    }
}

fn too_large() -> StoreFailure {
    StoreFailure {
        event: 0,
        record: None,
        class: StoreClass::Rejected,
        code: OVERSIZED.to_owned(),
        message: "the result is larger than a publish frame".to_owned(),
    }
}

/// The event of a call, as far as its results inherit from it.
fn event_of(announce: &Announce) -> Event {
    let timestamp = Timestamp {
        ms: announce.timestamp_ms.unwrap_or_default(),
        kind: match announce.timestamp_ms {
            Some(_) => TimestampKind::Create,
            None => TimestampKind::None,
        },
    };
    let mut events = EventsBuilder::default();
    let headers = announce
        .headers
        .iter()
        .map(|(name, value)| (&name[..], value.as_deref()));
    events.push(
        announce.position,
        timestamp,
        announce.key.as_deref(),
        None,
        headers,
    );
    events.finish().pop().expect("one event was just put in")
}

#[cfg(test)]
mod tests;
