//! The output proxy's machine: which record may enter the producer now, and what the input is
//! told about each event (P-1..P-9, D-O1..D-O7).
//!
//! One turn of the driver: feed what has come ([`Store::request`], [`Store::ended`], ...), carry
//! out the effects of [`Store::settle`], then give the producer every record that
//! [`Store::take`] hands out, and settle again.
//!
//! Invariant: each event of a session is answered exactly once.
//! Invariant: a live record is handed out only under a lease of its generation (P-4, R4).
//! Invariant: records of a lane never overtake each other on their way into the log (P-3):
//! while some are in the producer nothing else of the lane enters, and after a failure its
//! later events are refused until the failed one has come again.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::contract::publish::{
    Fault, Hello, Lease, Mode, Ready, Reply, Request, ResultEvent, Results, Revoked,
    StoreClass, StoreFailure, VERSION,
};
use crate::limits::{FRAME_BYTES_MAX, PARTLY_STORED_MAX, TRAIN_BYTES_MAX, TRAIN_RECORDS_MAX};
use crate::position::{Partition, Position};
use crate::time::Time;
use crate::token::Stamp;

mod answers;
mod counters;
mod lanes;
#[cfg(test)]
mod laws;
mod topics;

use answers::{Answers, FrameSlot, NewFrame};
pub use counters::{BUCKET_SECONDS, Counters, Histogram, OVERSIZED_BUCKETS, TopicCounters};
use lanes::{EventSlot, LaneKey, LaneSlot, Lanes, UNORDERED};
use topics::{Refusal, Topics};
pub use topics::Limits;

/// What the store is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The block's identity.
    pub block: String,
    /// The release whose results it stores.
    pub release: String,
    /// Where results go.
    pub output: Arc<str>,
    /// Where dead letters go.
    pub dead_letter: Arc<str>,
    /// Where shadow results go.
    pub verification: Arc<str>,
    /// Bytes of results that the input may send ahead (P-2).
    pub credit: u64,
}

/// A record for the producer.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its name in [`Store::ended`] and [`Store::refused`].
    pub ticket: u64,
    /// Where to.
    pub topic: Arc<str>,
    /// A fixed partition; `None`: by the key.
    pub partition: Option<i32>,
    /// Epoch milliseconds; `None`: now.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// In order, duplicates included.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// How a record's stay in the producer ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Acknowledged by all in-sync replicas.
    Stored,
    /// Not stored, as far as the client knows.
    Failed(Failed),
    /// As `Failed`, and the producer is unusable (D-O1).
    Fatal(Failed),
}

/// Why a record or an event was not stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failed {
    /// What follows from it.
    pub class: StoreClass,
    /// The broker's error name, or a word of ours.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Failed {
    fn new(class: StoreClass, code: &str, message: impl Into<String>) -> Self {
        Self { class, code: code.to_owned(), message: message.into() }
    }

    /// Whether the input will send the event again as it is, so that its lane has to wait.
    fn comes_again(&self) -> bool {
        match self.class {
            StoreClass::Transient
            | StoreClass::Misconfigured
            | StoreClass::Lease
            | StoreClass::Unknown => true,
            StoreClass::Rejected | StoreClass::Revoked => false,
        }
    }

    /// When records of one event fail differently, the higher one speaks for the event.
    fn rank(&self) -> u8 {
        match self.class {
            StoreClass::Unknown => 0,
            StoreClass::Transient => 1,
            StoreClass::Lease => 2,
            StoreClass::Misconfigured => 3,
            StoreClass::Rejected => 4,
            StoreClass::Revoked => 5,
        }
    }
}

/// Something for the driver to do, in order.
#[derive(Debug)]
pub enum Effect {
    /// Send this to the input.
    Reply(Reply),
    /// Purge the producer: its queue and what is in flight.
    Purge,
    /// Destroy the producer and make a new one; ends as [`Store::rebuilt`].
    Rebuild,
}

/// The machine.
#[derive(Debug)]
pub struct Store {
    settings: Settings,
    rules: Rules,
    session: Option<Session>,
    topics: Topics,
    sources: Sources,
    events: Vec<Option<Event>>,
    free: Vec<EventSlot>,
    answers: Answers,
    lanes: Lanes,
    train: Option<Train>,
    /// Lanes with a failure in this turn whose other records may still be in the producer.
    suspects: Vec<LaneSlot>,
    partly: HashMap<(Partition, Position), Partly, BuildHasherDefault<SipHasher13>>,
    open: u64,
    /// Records in the producer whose session is over.
    orphans: u64,
    purge_wanted: bool,
    purges: u64,
    rebuild: Rebuild,
    full: bool,
    connected: bool,
    counters: Counters,
}

/// Rules that a test can switch off to show what each is for.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// P-3: a lane's train waits for the acknowledgement of the one before.
    trains: bool,
    /// P-3: after a failure the lane waits for the failed event.
    owed: bool,
    /// P-3: at a failed delivery what has not left is purged.
    purge: bool,
    /// P-4: no lease, no record.
    lease: bool,
}

impl Rules {
    const ALL: Self = Self { trains: true, owed: true, purge: true, lease: true };
}

#[derive(Debug)]
struct Session {
    number: u64,
    last_seq: Option<u64>,
    ready: bool,
    draining: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rebuild {
    No,
    Wanted,
    UnderWay,
}

/// Records of one lane that enter the producer in one go.
#[derive(Clone, Copy, Debug)]
struct Train {
    lane: LaneSlot,
    records: usize,
    bytes: usize,
}

/// One event that has records to store, or in the producer.
#[derive(Debug)]
struct Event {
    /// With the records that were not taken off yet.
    view: ResultEvent,
    /// With all records, if there are several.
    whole: Option<ResultEvent>,
    /// `None`: its session is over, nobody waits for an answer.
    frame: Option<FrameSlot>,
    lane: LaneSlot,
    source: u32,
    /// Records in the producer.
    open: u32,
    /// Records that were taken off `view`.
    taken: u32,
    /// Whether it stands in its lane's queue.
    waiting: bool,
    /// A bit per record that is stored, for the first 64.
    stored: u64,
    /// Records that an earlier attempt has stored (D-O2).
    skip: u64,
    since: Duration,
    held: Option<Box<Record>>,
    failed: Option<Box<Failed>>,
}

/// The records of an event that a failed attempt has stored.
#[derive(Clone, Copy, Debug)]
struct Partly {
    digest: u64,
    stored: u64,
}

/// The topic-partitions that the input reads.
#[derive(Debug, Default)]
struct Sources {
    by_partition: HashMap<Partition, u32, BuildHasherDefault<SipHasher13>>,
    list: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    partition: Partition,
    lease: Option<(i32, Duration)>,
    /// The newest generation that is gone.
    revoked: Option<i32>,
}

impl Sources {
    fn of(&mut self, partition: &Partition) -> u32 {
        if let Some(source) = self.by_partition.get(partition) {
            return *source;
        }
        let source = u32::try_from(self.list.len()).expect("partitions are far fewer than 2^32");
        self.by_partition.insert(partition.clone(), source);
        self.list.push(Source { partition: partition.clone(), lease: None, revoked: None });
        source
    }

    fn at(&mut self, source: u32) -> &mut Source {
        &mut self.list[source as usize]
    }
}

const SLOT_BITS: u32 = 28;
const RECORD_BITS: u32 = 24;

fn ticket(slot: EventSlot, record: u32, topic: u16) -> u64 {
    assert!(slot < 1 << SLOT_BITS && record < 1 << RECORD_BITS, "credit bounds events and records");
    u64::from(slot) | u64::from(record) << SLOT_BITS | u64::from(topic) << (SLOT_BITS + RECORD_BITS)
}

fn split(ticket: u64) -> (EventSlot, u32, u16) {
    let low = |number: u64, bits: u32| {
        u32::try_from(number & ((1 << bits) - 1)).expect("fewer than 32 bits")
    };
    (
        low(ticket, SLOT_BITS),
        low(ticket >> SLOT_BITS, RECORD_BITS),
        u16::try_from(ticket >> (SLOT_BITS + RECORD_BITS)).expect("12 bits are left"),
    )
}

impl Store {
    /// Nothing connected, nothing stored.
    pub fn new(settings: Settings) -> Self {
        Self::with_rules(settings, Rules::ALL)
    }

    fn with_rules(settings: Settings, rules: Rules) -> Self {
        let topics = Topics::new([
            Arc::clone(&settings.output),
            Arc::clone(&settings.dead_letter),
            Arc::clone(&settings.verification),
        ]);
        Self {
            settings,
            rules,
            session: None,
            topics,
            sources: Sources::default(),
            events: Vec::new(),
            free: Vec::new(),
            answers: Answers::default(),
            lanes: Lanes::new(rules.trains),
            train: None,
            suspects: Vec::new(),
            partly: HashMap::default(),
            open: 0,
            orphans: 0,
            purge_wanted: false,
            purges: 0,
            rebuild: Rebuild::No,
            full: false,
            connected: false,
            counters: Counters::default(),
        }
    }

    /// The broker is reached and the topics are checked: the input may send.
    pub fn connected(&mut self, limits: Limits) {
        self.topics.set_limits(limits);
        self.connected = true;
    }

    /// A connection has said `Hello`. `Ok`: it is the session now, and an older one is over.
    pub fn admit(&mut self, hello: &Hello) -> Result<(), Fault> {
        let fault = |code: &str, message: String| Err(Fault { code: code.to_owned(), message });
        if hello.version != VERSION {
            return fault("Version", format!("the output speaks version {VERSION} of the protocol, the input {}", hello.version));
        }
        if hello.block != self.settings.block || hello.release != self.settings.release {
            return fault(
                "ForeignBlock",
                format!(
                    "this output stores results of block {} release {}, not of block {} release {}",
                    self.settings.block, self.settings.release, hello.block, hello.release
                ),
            );
        }
        if hello.mode == Mode::ExactlyOnce {
            return fault("NotInThisVersion", "exactly-once is not in this version".to_owned());
        }
        if let Some(session) = &self.session
            && session.number > hello.session
        {
            return fault("Replaced", format!("session {} is newer than {}", session.number, hello.session));
        }
        self.close();
        self.counters.sessions += 1;
        self.session = Some(Session { number: hello.session, last_seq: None, ready: false, draining: false });
        Ok(())
    }

    /// The session's connection is gone: what has not entered the producer is dropped (P-6).
    pub fn close(&mut self) {
        if self.session.take().is_none() {
            return;
        }
        self.answers = Answers::default();
        self.lanes = Lanes::new(self.rules.trains);
        self.sources = Sources::default();
        self.suspects.clear();
        self.train = None;
        self.free.clear();
        self.orphans = self.open;
        for (slot, event) in (0..).zip(&mut self.events) {
            match event {
                Some(it) if it.open > 0 => {
                    it.frame = None;
                    it.lane = UNORDERED;
                    it.waiting = false;
                    it.held = None;
                }
                _ => {
                    *event = None;
                    self.free.push(slot);
                }
            }
        }
    }

    /// A frame of the session.
    pub fn request(&mut self, now: Time, request: Request) -> Result<(), Fault> {
        let fault = |code: &str, message: &str| {
            Err(Fault { code: code.to_owned(), message: message.to_owned() })
        };
        let Some(session) = &mut self.session else {
            return fault("NoHello", "the first frame has to be Hello");
        };
        if !session.ready {
            return fault("NotReady", "no frame may follow Hello before Ready");
        }
        match request {
            Request::Hello(_) => fault("Malformed", "a session says Hello once"),
            Request::Lease(lease) => {
                self.lease(&lease);
                Ok(())
            }
            Request::Results(results) => self.results(now, &results),
            Request::Revoked(revoked) => {
                self.revoked(&revoked);
                Ok(())
            }
            Request::Drain => {
                session.draining = true;
                Ok(())
            }
            Request::Announce(_) | Request::Withdraw { .. } => {
                fault("NotInThisVersion", "push mode is not in this version")
            }
            Request::Transaction(_) => {
                fault("NotInThisVersion", "exactly-once is not in this version")
            }
            Request::Error(_) => fault("Closed", "the input ended the connection"),
        }
    }

    fn lease(&mut self, lease: &Lease) {
        for partition in &lease.partitions {
            let source = self.sources.of(partition);
            let source = self.sources.at(source);
            if source.lease.is_none_or(|(generation, _)| generation <= lease.generation) {
                source.lease = Some((lease.generation, lease.until));
            }
        }
    }

    fn results(&mut self, now: Time, results: &Results) -> Result<(), Fault> {
        let fault = |code: &str, message: String| Err(Fault { code: code.to_owned(), message });
        let bytes = results.frame_bytes() as u64;
        if self.answers.bytes() + bytes > self.settings.credit + FRAME_BYTES_MAX as u64 {
            return fault("Credit", "the input sent more than its credit".to_owned());
        }
        if let Some(session) = &mut self.session {
            if let Some(last) = session.last_seq
                && results.seq != last + 1
            {
                return fault("Sequence", format!("frame {} follows frame {last}", results.seq));
            }
            session.last_seq = Some(results.seq);
        }
        self.counters.frames += 1;
        self.counters.frame_bytes += bytes;
        self.counters.events += u64::from(results.len());
        let sources: Vec<u32> = results.partitions().iter().map(|p| self.sources.of(p)).collect();
        let frame = self.answers.open(NewFrame {
            seq: results.seq,
            stamp: results.stamp,
            generation: results.generation,
            arrived: now.boot,
            bytes,
            events: results.len(),
        });
        for event in results.events() {
            let source = sources[event.partition as usize];
            self.arrive(frame, results.stamp, source, event)?;
        }
        Ok(())
    }

    /// One event of a frame: answered at once, or queued in its lane.
    fn arrive(&mut self, frame: FrameSlot, stamp: Stamp, source: u32, view: ResultEvent) -> Result<(), Fault> {
        let key = LaneKey { lane: view.lane, source, stamp };
        let ordered = view.lane != 0;
        if ordered && let Some(lane) = self.lanes.find_broken(key) {
            let position = view.position;
            let first = self.lanes.at(lane).owed.first().copied();
            if self.rules.owed && view.record_count() > 0 && first.is_some_and(|first| first < position) {
                self.lanes.owe(lane, position);
                self.fail_at_once(frame, view.index, held_back());
                return Ok(());
            }
            self.lanes.pay(lane, position);
            self.lanes.settle(lane);
        }
        if view.record_count() == 0 {
            self.counters.stored += 1;
            self.answers.stored(frame, view.index);
            return Ok(());
        }
        match self.topics.check(stamp, &view) {
            Ok(()) => {}
            Err(Refusal::Event { failed, oversized }) => {
                if let Some(bytes) = oversized {
                    self.counters.oversized[counters::oversized_bucket(bytes)] += 1;
                }
                self.fail_at_once(frame, view.index, failed);
                return Ok(());
            }
            Err(Refusal::Frame(fault)) => return Err(fault),
        }
        let skip = self.stored_before(source, &view);
        let lane = if ordered { self.lanes.open(key) } else { UNORDERED };
        let whole = (view.record_count() > 1).then(|| view.clone());
        let slot = self.insert(Event {
            view,
            whole,
            frame: Some(frame),
            lane,
            source,
            open: 0,
            taken: 0,
            waiting: true,
            stored: skip,
            skip,
            since: Duration::ZERO,
            held: None,
            failed: None,
        });
        self.lanes.at(lane).waiting.push_back(slot);
        self.lanes.settle(lane);
        Ok(())
    }

    fn insert(&mut self, event: Event) -> EventSlot {
        if let Some(slot) = self.free.pop() {
            self.events[slot as usize] = Some(event);
            return slot;
        }
        self.events.push(Some(event));
        u32::try_from(self.events.len() - 1).expect("credit bounds the events far below 2^32")
    }

    fn event(&mut self, slot: EventSlot) -> &mut Event {
        self.events[slot as usize].as_mut().expect("lanes and tickets name living events")
    }

    fn fail_at_once(&mut self, frame: FrameSlot, index: u32, failed: Failed) {
        self.counters.failed += 1;
        self.answers.failed(frame, failure(index, failed));
    }

    fn revoked(&mut self, revoked: &Revoked) {
        let mut gone = Vec::with_capacity(revoked.partitions.len());
        for partition in &revoked.partitions {
            let number = self.sources.of(partition);
            let source = self.sources.at(number);
            source.revoked = source.revoked.max(Some(revoked.generation));
            if source.lease.is_some_and(|(generation, _)| generation <= revoked.generation) {
                source.lease = None;
            }
            gone.push(number);
        }
        for lane in self.lanes.of_sources(|source| gone.contains(&source)) {
            let waiting = std::mem::take(&mut self.lanes.at(lane).waiting);
            let mut kept = std::collections::VecDeque::with_capacity(waiting.len());
            for slot in waiting {
                if self.is_revoked(slot) {
                    let event = self.event(slot);
                    event.waiting = false;
                    event.fail(revoked_failure());
                    self.finish(slot);
                } else {
                    kept.push_back(slot);
                }
            }
            let it = self.lanes.at(lane);
            it.waiting = kept;
            if it.source().is_some() {
                // Whoever owns the partition next begins at the committed position.
                self.lanes.forgive(lane);
            }
            self.lanes.settle(lane);
        }
    }

    fn is_revoked(&mut self, slot: EventSlot) -> bool {
        let event = self.event(slot);
        let (source, frame) = (event.source, event.frame);
        let Some(frame) = frame else { return false };
        let frame = self.answers.at(frame);
        let (stamp, generation) = (frame.stamp, frame.generation);
        stamp == Stamp::Live && self.sources.at(source).revoked.is_some_and(|gone| generation <= gone)
    }

    /// The next record for the producer, if one may enter now.
    pub fn take(&mut self, now: Time) -> Option<Record> {
        if self.full || self.orphans > 0 || self.rebuild != Rebuild::No || self.purge_wanted {
            return None;
        }
        loop {
            let mut train = match self.train.take() {
                Some(train) => train,
                None => {
                    let lane = self.lanes.next_ready()?;
                    self.lanes.at(lane).purges_before = self.purges;
                    Train { lane, records: 0, bytes: 0 }
                }
            };
            if let Some(record) = self.couple(now, &mut train) {
                self.train = Some(train);
                return Some(record);
            }
            self.lanes.settle(train.lane);
        }
    }

    /// The next record of a train; `None`: the train is complete.
    fn couple(&mut self, now: Time, train: &mut Train) -> Option<Record> {
        loop {
            let slot = *self.lanes.at(train.lane).waiting.front()?;
            if self.event(slot).failed.is_some() {
                self.leave_queue(train.lane, slot);
                self.finish(slot);
                continue;
            }
            if let Err(failed) = self.permitted(now, slot) {
                self.refuse(slot, failed);
                continue;
            }
            if train.lane != UNORDERED
                && (train.bytes >= TRAIN_BYTES_MAX || train.records >= TRAIN_RECORDS_MAX)
            {
                return None;
            }
            let record = self.next_record(slot, now);
            let event = self.event(slot);
            let complete = event.view.record_count() == 0;
            if record.is_some() {
                event.open += 1;
                self.open += 1;
                self.lanes.at(train.lane).open += 1;
            }
            if complete {
                self.leave_queue(train.lane, slot);
            }
            if let Some(record) = record {
                train.records += 1;
                train.bytes += topics::record_bytes(&record);
                return Some(record);
            }
            self.finish(slot);
        }
    }

    fn leave_queue(&mut self, lane: LaneSlot, slot: EventSlot) {
        let first = self.lanes.at(lane).waiting.pop_front();
        assert_eq!(first, Some(slot), "only the first event of a lane leaves its queue");
        self.event(slot).waiting = false;
    }

    /// P-4: stamp, generation and lease, against the clock of this very moment.
    fn permitted(&mut self, now: Time, slot: EventSlot) -> Result<(), Failed> {
        let event = self.event(slot);
        let (source, frame) = (event.source, event.frame);
        let frame = self.answers.at(frame.expect("only events of the session wait"));
        let (stamp, generation) = (frame.stamp, frame.generation);
        if stamp != Stamp::Live || !self.rules.lease {
            return Ok(());
        }
        let source = self.sources.at(source);
        if source.revoked.is_some_and(|gone| generation <= gone) {
            return Err(revoked_failure());
        }
        match source.lease {
            Some((known, until)) if generation <= known && now.boot < until => Ok(()),
            Some((known, _)) if generation > known => Err(Failed::new(
                StoreClass::Lease,
                "UnknownGeneration",
                format!("there is a lease of generation {known} on {}, none of {generation}", source.partition),
            )),
            Some(_) => Err(Failed::new(
                StoreClass::Lease,
                "LeaseEnded",
                format!("the lease on {} ended before the record left", source.partition),
            )),
            None => Err(Failed::new(
                StoreClass::Lease,
                "NoLease",
                format!("there is no lease on {}", source.partition),
            )),
        }
    }

    /// The next record of an event that no earlier attempt has stored.
    fn next_record(&mut self, slot: EventSlot, now: Time) -> Option<Record> {
        let event = self.events[slot as usize].as_mut().expect("lanes name living events");
        let source = self.sources.list[event.source as usize].partition.number();
        let topics = &self.topics;
        if let Some(record) = event.held.take() {
            return Some(*record);
        }
        if event.taken == 0 {
            event.since = now.boot;
        }
        loop {
            let index = event.taken;
            let skipped = index < 64 && event.skip & (1 << index) != 0;
            let record = event.view.next_record(|view, record| {
                (!skipped).then(|| topics.record(view, &record, source, |topic| ticket(slot, index, topic)))
            })?;
            event.taken += 1;
            if let Some(record) = record {
                return Some(record);
            }
        }
    }

    /// The producer's queue is full: the record comes back and is handed out again later.
    pub fn refused(&mut self, record: Record) {
        let (slot, _, _) = split(record.ticket);
        self.counters.queue_full += 1;
        self.open -= 1;
        self.train = None;
        let event = self.event(slot);
        event.open -= 1;
        event.held = Some(Box::new(record));
        let (lane, was_waiting) = (event.lane, event.waiting);
        event.waiting = true;
        let it = self.lanes.at(lane);
        it.open -= 1;
        if !was_waiting {
            it.waiting.push_front(slot);
        }
        if self.open > 0 {
            // The rest of the train waits for the part that has left.
            self.full = true;
        } else {
            self.refuse(slot, Failed::new(
                StoreClass::Misconfigured,
                "QueueTooSmall",
                "the producer's empty queue has no room for this record; raise queue.buffering.max.kbytes in the connection's properties",
            ));
        }
        self.lanes.settle(lane);
    }

    /// Records ended in the producer, in the order of their reports.
    pub fn ended(&mut self, now: Time, records: impl IntoIterator<Item = (u64, Ended)>) {
        for (ticket, end) in records {
            self.record_ended(now, ticket, end);
        }
        let mut suspects = std::mem::take(&mut self.suspects);
        for lane in suspects.drain(..) {
            // Records behind the failed one could still be stored, and would overtake it.
            let it = self.lanes.at(lane);
            if it.open > 0 && it.purges_before == self.purges && self.rules.purge {
                self.purge_wanted = true;
            }
        }
        self.suspects = suspects;
    }

    fn record_ended(&mut self, now: Time, ticket: u64, end: Ended) {
        let (slot, record, topic) = split(ticket);
        self.full = false;
        let event = self.event(slot);
        let since = event.since;
        let failed = match end {
            Ended::Stored => {
                if record < 64 {
                    event.stored |= 1 << record;
                }
                self.topics.stored(topic, now.boot.saturating_sub(since));
                None
            }
            Ended::Failed(failed) => Some(failed),
            Ended::Fatal(failed) => {
                if self.rebuild == Rebuild::No {
                    self.rebuild = Rebuild::Wanted;
                }
                Some(failed)
            }
        };
        if let Some(failed) = &failed {
            self.topics.failed(topic, failed.comes_again());
        }
        self.left_producer(slot, failed);
    }

    /// A record of the event is not in the producer any more.
    fn left_producer(&mut self, slot: EventSlot, failed: Option<Failed>) {
        self.open -= 1;
        let event = self.event(slot);
        event.open -= 1;
        let lane = event.lane;
        if event.frame.is_none() {
            self.orphan_ended(slot, failed.as_ref());
            return;
        }
        self.lanes.at(lane).open -= 1;
        if let Some(failed) = failed {
            if failed.comes_again() && lane != UNORDERED {
                self.suspects.push(lane);
            }
            self.refuse(slot, failed);
        } else {
            self.finish(slot);
        }
        self.lanes.settle(lane);
    }

    /// A record of a session that is over: a later one of its train must not be stored after
    /// it has failed.
    fn orphan_ended(&mut self, slot: EventSlot, failed: Option<&Failed>) {
        self.orphans -= 1;
        if failed.is_some_and(Failed::comes_again) && self.orphans > 0 && self.rules.purge {
            self.purge_wanted = true;
        }
        if self.event(slot).open == 0 {
            self.events[slot as usize] = None;
            self.free.push(slot);
        }
    }

    /// Fails an event. If it will come again, everything behind it in its lane fails with it.
    fn refuse(&mut self, slot: EventSlot, failed: Failed) {
        let event = self.event(slot);
        let (lane, position) = (event.lane, event.view.position);
        let comes_again = failed.comes_again();
        event.fail(failed);
        // Whoever owns a revoked partition next does not send this event again.
        let breaks = comes_again && lane != UNORDERED && !self.is_revoked(slot);
        if breaks {
            self.lanes.owe(lane, position);
            let mut waiting = std::mem::take(&mut self.lanes.at(lane).waiting);
            for behind in waiting.drain(..) {
                let event = self.event(behind);
                event.waiting = false;
                if behind == slot {
                    continue;
                }
                let position = event.view.position;
                event.fail(held_back());
                self.lanes.owe(lane, position);
                self.finish(behind);
            }
            self.lanes.at(lane).waiting = waiting;
        } else if self.event(slot).waiting && self.lanes.at(lane).waiting.front() == Some(&slot) {
            self.leave_queue(lane, slot);
        }
        self.finish(slot);
    }

    /// Answers an event if nothing of it is open or to come.
    fn finish(&mut self, slot: EventSlot) {
        let event = self.event(slot);
        if event.open > 0 || event.waiting {
            return;
        }
        let done = event.failed.is_some() || (event.view.record_count() == 0 && event.held.is_none());
        assert!(done, "an event with records to come waits in its lane");
        let Some(mut event) = self.events[slot as usize].take() else { return };
        self.free.push(slot);
        let Some(frame) = event.frame else { return };
        match event.failed.take() {
            None => {
                self.counters.stored += 1;
                self.answers.stored(frame, event.view.index);
            }
            Some(failed) => {
                if failed.comes_again() && event.stored != 0 {
                    self.remember(&event);
                }
                self.counters.failed += 1;
                self.answers.failed(frame, failure(event.view.index, *failed));
            }
        }
    }

    /// The producer was made anew: whatever the old one still held is unknown, and failed.
    pub fn rebuilt(&mut self) {
        self.rebuild = Rebuild::No;
        self.purge_wanted = false;
        self.full = false;
        self.counters.rebuilds += 1;
        let open: Vec<(EventSlot, u32)> = (0..)
            .zip(&self.events)
            .filter_map(|(slot, event)| Some((slot, event.as_ref()?.open)).filter(|(_, open)| *open > 0))
            .collect();
        for (slot, open) in open {
            for _ in 0..open {
                let failed = Failed::new(
                    StoreClass::Transient,
                    "ProducerRebuilt",
                    "the producer failed for good and was made anew",
                );
                self.left_producer(slot, Some(failed));
            }
        }
        self.suspects.clear();
    }

    /// What has to be done and told now.
    pub fn settle(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.rebuild == Rebuild::Wanted {
            self.rebuild = Rebuild::UnderWay;
            self.purge_wanted = false;
            effects.push(Effect::Rebuild);
        } else if self.purge_wanted {
            self.purge_wanted = false;
            self.purges += 1;
            self.counters.purges += 1;
            effects.push(Effect::Purge);
        }
        if let Some(train) = self.train.take() {
            // What comes in a later turn is not part of it.
            self.lanes.settle(train.lane);
        }
        let Some(session) = &mut self.session else { return };
        if self.connected && !session.ready {
            session.ready = true;
            effects.push(Effect::Reply(Reply::Ready(Ready {
                version: VERSION,
                credit: self.settings.credit,
                limits: self.topics.limits(),
            })));
        }
        let seconds = &mut self.counters.seconds;
        self.answers.take(|part, finished| {
            if let Some(finished) = finished {
                seconds.observe(now.boot.saturating_sub(finished.arrived));
            }
            if !part.stored.is_empty() || !part.failures.is_empty() {
                effects.push(Effect::Reply(Reply::Stored(part)));
            }
        });
        if let Some(credit) = self.answers.take_credit() {
            effects.push(Effect::Reply(Reply::Credit(credit)));
        }
        if session.draining && self.answers.unanswered() == 0 && self.open == 0 {
            session.draining = false;
            effects.push(Effect::Reply(Reply::Drained));
        }
    }

    /// Records in the producer.
    pub fn open_records(&self) -> u64 {
        self.open
    }

    /// Whether nothing is open and nobody waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.open == 0 && self.answers.unanswered() == 0
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        counters.topics = self.topics.counters().to_vec();
        counters
    }

    fn remember(&mut self, event: &Event) {
        if self.partly.len() >= PARTLY_STORED_MAX {
            self.partly.clear();
        }
        let Some(whole) = &event.whole else { return };
        let digest = digest(whole);
        let key = (self.sources.at(event.source).partition.clone(), event.view.position);
        self.partly.insert(key, Partly { digest, stored: event.stored });
    }

    /// The records of this event that an earlier attempt has stored already (D-O2).
    fn stored_before(&mut self, source: u32, view: &ResultEvent) -> u64 {
        if self.partly.is_empty() {
            return 0;
        }
        let key = (self.sources.at(source).partition.clone(), view.position);
        match self.partly.remove(&key) {
            Some(partly) if partly.digest == digest(view) => partly.stored,
            _ => 0,
        }
    }
}

impl Event {
    fn fail(&mut self, failed: Failed) {
        self.held = None;
        if self.failed.as_ref().is_none_or(|known| failed.rank() > known.rank()) {
            self.failed = Some(Box::new(failed));
        }
    }
}

/// Tells answers of the app apart: an event that the app was asked again about may have others.
fn digest(view: &ResultEvent) -> u64 {
    let mut hasher = SipHasher13::new();
    for record in view.records() {
        hasher.write(record.key.unwrap_or_default());
        hasher.write(record.value.unwrap_or_default());
        hasher.write_u64(record.value.map_or(u64::MAX, |value| value.len() as u64));
    }
    hasher.finish()
}

fn failure(event: u32, failed: Failed) -> StoreFailure {
    StoreFailure { event, class: failed.class, code: failed.code, message: failed.message }
}

fn held_back() -> Failed {
    Failed::new(
        StoreClass::Transient,
        "LaneHeld",
        "an earlier event of its lane was not stored and has to come first",
    )
}

fn revoked_failure() -> Failed {
    Failed::new(StoreClass::Revoked, "Revoked", "the partition was revoked before the record left")
}
