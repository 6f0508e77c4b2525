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
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use siphasher::sip::SipHasher13;

use crate::contract::publish::{
    Fault, GroupMetadata, Hello, Mode, Ready, Reply, Request, StoreClass, TransactionOffset,
    VERSION,
};
use crate::position::{Partition, Position};
use crate::time::Time;

mod answers;
mod arrival;
mod counters;
mod ended;
mod event;
mod lanes;
#[cfg(test)]
mod laws;
mod produce;
mod pushes;
mod topics;
mod transactions;

use answers::Answers;
pub use counters::{BUCKET_SECONDS, Counters, Histogram, OVERSIZED_BUCKETS, TopicCounters};
use event::{Event, Partly, Sources};
use lanes::{EventSlot, LaneSlot, Lanes, UNORDERED};
use pushes::Pushes;
pub use pushes::{Correlate, Push, PushAnswer, PushId};
pub use topics::Limits;
use topics::Topics;
pub use transactions::TransactionEnded;
use transactions::Transactions;

/// What the store is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The block's identity; `None`: that of whoever connects.
    pub block: Option<String>,
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
    /// How results are stored, as the input has to ask for.
    pub mode: Mode,
    /// Exactly-once: how long a transaction may wait for its input, which may be frozen.
    pub transaction_open_max: Duration,
    /// `app.contract.mode: Push`; `None`: the app posts nothing here.
    pub push: Option<Push>,
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
    /// Which record of its event it is about, where one is to blame.
    record: Option<u32>,
}

impl Failed {
    /// A failure that is about no record in particular.
    pub fn new(class: StoreClass, code: &str, message: impl Into<String>) -> Self {
        Self {
            record: None,
            class,
            code: code.to_owned(),
            message: message.into(),
        }
    }

    fn of_record(self, record: u32) -> Self {
        Self {
            record: Some(record),
            ..self
        }
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
    /// Exactly-once: commit what is in the producer, all of it acknowledged, with these offsets;
    /// ends as [`Store::transaction_ended`].
    Commit {
        /// The consumer that has read what the offsets cover.
        group_metadata: GroupMetadata,
        /// What it has reached.
        offsets: Vec<TransactionOffset>,
    },
    /// Exactly-once: abort what is in the producer, purging what is not acknowledged; ends as
    /// [`Store::transaction_ended`].
    Abort,
    /// Answer the app's post.
    Pushed {
        /// As [`Store::push`] named it.
        push: PushId,
        /// With what.
        answer: PushAnswer,
    },
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
    pushes: Pushes,
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
    transactions: Transactions,
    /// The producer's queue was full: nothing is tried before this, or before a delivery.
    full_until: Option<Duration>,
    full_and_empty_since: Option<Duration>,
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
    const ALL: Self = Self {
        trains: true,
        owed: true,
        purge: true,
        lease: true,
    };
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
    /// Where its records go: records of different topics are not stored or lost together.
    topic: Option<u16>,
    records: usize,
    bytes: usize,
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
            pushes: Pushes::default(),
            lanes: Lanes::new(rules.trains),
            train: None,
            suspects: Vec::new(),
            partly: HashMap::default(),
            open: 0,
            orphans: 0,
            purge_wanted: false,
            purges: 0,
            rebuild: Rebuild::No,
            transactions: Transactions::default(),
            full_until: None,
            full_and_empty_since: None,
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
        let fault = |code: &str, message: String| {
            Err(Fault {
                code: code.to_owned(),
                message,
            })
        };
        if hello.version != VERSION {
            return fault(
                "Version",
                format!(
                    "the output speaks version {VERSION} of the protocol, the input {}",
                    hello.version
                ),
            );
        }
        let block = self.settings.block.as_ref().unwrap_or(&hello.block);
        if hello.block != *block || hello.release != self.settings.release {
            return fault(
                "ForeignBlock",
                format!(
                    "this output stores results of block {block} release {}, not of block {} release {}",
                    self.settings.release, hello.block, hello.release
                ),
            );
        }
        if hello.mode != self.settings.mode {
            return fault(
                "Mode",
                format!(
                    "this output stores results as {:?}, the input asks for {:?}; both read delivery.guarantee of the same document",
                    self.settings.mode, hello.mode
                ),
            );
        }
        if let Some(session) = &self.session
            && session.number > hello.session
        {
            return fault(
                "Replaced",
                format!("session {} is newer than {}", session.number, hello.session),
            );
        }
        self.close();
        self.counters.sessions += 1;
        self.session = Some(Session {
            number: hello.session,
            last_seq: None,
            ready: false,
            draining: false,
        });
        Ok(())
    }

    /// The session's connection is gone: what has not entered the producer is dropped (P-6).
    pub fn close(&mut self) {
        if self.session.take().is_none() {
            return;
        }
        self.answers = Answers::default();
        self.forget_pushes();
        self.lanes = Lanes::new(self.rules.trains);
        self.sources = Sources::default();
        self.suspects.clear();
        self.train = None;
        self.abandon_transaction();
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
            Err(Fault {
                code: code.to_owned(),
                message: message.to_owned(),
            })
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
            Request::Announce(announce) => self.announced(announce),
            Request::Withdraw { calls } => {
                self.withdrawn(calls);
                Ok(())
            }
            Request::Transaction(transaction) => self.transaction(transaction),
            Request::Error(_) => fault("Closed", "the input ended the connection"),
        }
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
        self.events[slot as usize]
            .as_mut()
            .expect("lanes and tickets name living events")
    }

    /// What has to be done and told now.
    pub fn settle(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.spoil_late(now);
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
        self.tell_apps(effects);
        self.tell(now, effects);
        self.settle_transaction(effects);
    }

    /// What the session is told.
    fn tell(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(session) = &mut self.session else {
            return;
        };
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
        self.settle_pushes(effects);
        let Some(session) = &mut self.session else {
            return;
        };
        if let Some(credit) = self.answers.take_credit() {
            effects.push(Effect::Reply(Reply::Credit(credit)));
        }
        if session.draining && self.answers.unanswered() == 0 && self.open == 0 {
            session.draining = false;
            effects.push(Effect::Reply(Reply::Drained));
        }
    }

    /// When to try again although nothing has come.
    pub fn deadline(&self) -> Option<Duration> {
        let late = self.transaction_late();
        self.full_until.into_iter().chain(late).min()
    }

    /// Records in the producer.
    pub fn open_records(&self) -> u64 {
        self.open
    }

    /// Whether nothing is open and nobody waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.open == 0 && self.answers.unanswered() == 0 && self.transactions.is_idle()
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        counters.topics = self.topics.counters().to_vec();
        counters
    }
}
