//! The output side of a pod: the real store machine, and a model of an idempotent producer and
//! the broker behind it.
//!
//! As librdkafka does: records of one topic-partition leave in the order in which they were
//! handed over, what was handed over in one go leaves and ends together, and what has not left
//! within the message time-out never does. A batch whose answer is lost may have been stored,
//! or may be stored later.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_core::contract::publish::{
    Hello, Mode, Reply, Request, StoreClass, VERSION, next_frame,
};
use millrace_core::intake::io::{CallId, Input, Link};
use millrace_core::limits::FRAME_BYTES_MAX;
use millrace_core::store::{self, Ended, Failed, Limits, Store};

use super::log::Nature;
use super::{Half, Happening, Who, World};
use crate::laws::{Law, Lawful, Source};
use crate::scenario::{MESSAGE_TIMEOUT, RECORD_BYTES_MAX, Scenario};

/// The topics of the output.
pub(crate) const OUTPUT: &str = "results";
pub(crate) const DEAD_LETTER: &str = "results.dlq";
/// How long a transaction waits for its input.
const TRANSACTION_OPEN_MAX: Duration = Duration::from_secs(5);
/// Partitions of each of them.
const PARTITIONS: u64 = 3;

/// An output process.
pub(crate) struct OutputPod {
    pub(crate) life: u32,
    pub(super) store: Store,
    /// Posts of the app that are not answered.
    pub(super) posts: BTreeMap<store::PushId, (Who, CallId)>,
    session: Option<u64>,
    /// Exactly-once: its producer is accepted.
    ready: bool,
    /// A wake-up is planned.
    wakes: bool,
    /// Sessions up to this one are broken: what is under way in them is lost.
    broken: u64,
    producer: Producer,
    /// When the last frame that is under way arrives, either way.
    to_output_at: Duration,
    to_input_at: Duration,
}

#[derive(Debug, Default)]
struct Producer {
    queue: VecDeque<Entry>,
    /// Tickets by entry, of everything that was not reported yet.
    open: BTreeMap<u64, u64>,
    sending: bool,
    /// Exactly-once: who it is to the brokers, and its open transaction.
    epoch: u64,
    transaction: Option<u64>,
    /// Exactly-once: when the last batch of a place arrives; later ones do not overtake it.
    arrives: BTreeMap<Place, Duration>,
}

/// A record in the producer.
#[derive(Clone, Debug)]
struct Entry {
    name: u64,
    place: Place,
    source: Source,
    since: Duration,
}

/// Where a record ends up.
pub(crate) type Place = (bool, i32);

/// Records on their way to the broker.
#[derive(Debug)]
pub(crate) struct Batch {
    pod: usize,
    place: Place,
    sources: Vec<Source>,
    /// Exactly-once: by which producer, in which transaction.
    transaction: Option<(u64, u64)>,
}

fn mode(scenario: &Scenario) -> Mode {
    if scenario.once {
        Mode::ExactlyOnce
    } else {
        Mode::AtLeastOnce
    }
}

impl OutputPod {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut store = Store::new(store::Settings {
            mode: mode(scenario),
            transaction_open_max: TRANSACTION_OPEN_MAX,
            block: Some("sim/block".to_owned()),
            release: "r1-5d0c77e1".to_owned(),
            output: OUTPUT.into(),
            dead_letter: DEAD_LETTER.into(),
            verification: "results.verify".into(),
            credit: scenario.credit,
            push: scenario.push.map(|correlate| store::Push {
                correlate,
                allow_uncorrelated: false,
                copies: Vec::new(),
            }),
        });
        store.connected(Limits {
            output: RECORD_BYTES_MAX,
            dead_letter: 1 << 20,
            verification: RECORD_BYTES_MAX,
            verification_partitions: 3,
        });
        Self {
            life: 0,
            store,
            posts: BTreeMap::new(),
            session: None,
            ready: !scenario.once,
            wakes: false,
            broken: 0,
            producer: Producer::default(),
            to_output_at: Duration::ZERO,
            to_input_at: Duration::ZERO,
        }
    }

    pub(crate) fn session(&self) -> Option<u64> {
        self.session
    }

    /// A new producer is accepted.
    pub(super) fn begin_as(&mut self, epoch: u64) {
        self.producer.epoch = epoch;
        self.producer.transaction = None;
        self.ready = true;
    }

    /// The producer's transaction ends: which process, which producer, which transaction.
    pub(super) fn end(&mut self) -> (u32, u64, Option<u64>) {
        let begun = self.producer.transaction.take();
        (self.life, self.producer.epoch, begun)
    }

    /// Whether this is its present producer.
    pub(super) fn ends(&self, epoch: u64) -> bool {
        self.producer.epoch == epoch
    }

    pub(super) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }
}

fn failed(class: StoreClass, code: &str) -> Failed {
    Failed::new(class, code, format!("the model broker says {code}"))
}

/// The output partition of a record: by its key, and without one by its event, so that a record
/// that is sent again goes where it went before.
fn place(record: &store::Record, source: Source) -> Place {
    let number = match (&record.partition, &record.key) {
        (Some(partition), _) => *partition,
        (None, Some(key)) => {
            let sum: u64 = key.iter().map(|byte| u64::from(*byte)).sum();
            i32::try_from(sum % PARTITIONS).expect("small")
        }
        (None, None) => i32::try_from(source.index as u64 % PARTITIONS).expect("small"),
    };
    (&*record.topic == DEAD_LETTER, number)
}

impl World {
    /// The input's publish client connects.
    pub(crate) fn connect(&mut self, who: Who) -> Lawful {
        if self.is_frozen(who.pod, Half::Output) || !self.pods[who.pod].output.ready {
            self.after(Duration::from_millis(200), Happening::Connect(who));
            return Ok(());
        }
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        if process.session.is_some() {
            return Ok(());
        }
        let session = self.name();
        let hello = Hello {
            version: VERSION,
            block: "sim/block".to_owned(),
            release: "r1-5d0c77e1".to_owned(),
            pod: format!("pod-{}", who.pod),
            session,
            mode: mode(&self.scenario),
        };
        let output = &mut self.pods[who.pod].output;
        output.broken = session - 1;
        if let Err(fault) = output.store.admit(&hello) {
            return Err(Law::Protocol.broken(format!("the output refuses a session: {fault:?}")));
        }
        output.session = Some(session);
        self.pump(who.pod)
    }

    /// `Effect::Publish`.
    pub(crate) fn publish(&mut self, who: Who, frame: Bytes) {
        let after = self.random.latency(3, 300);
        let now = self.now;
        let Some(session) = self.process(who).and_then(|p| p.session) else {
            return;
        };
        let output = &mut self.pods[who.pod].output;
        output.to_output_at = output.to_output_at.max(now + after);
        let after = output.to_output_at - now;
        self.after(after, Happening::ToOutput(who.pod, session, frame));
    }

    /// A frame arrives at the output.
    pub(crate) fn hear_input(&mut self, pod: usize, session: u64, frame: Bytes) -> Lawful {
        let now = self.local(pod);
        let output = &mut self.pods[pod].output;
        if output.session != Some(session) || session <= output.broken {
            return Ok(());
        }
        let mut buffer = BytesMut::from(&frame[..]);
        let request = next_frame(&mut buffer, FRAME_BYTES_MAX)
            .and_then(|frame| Request::decode(frame.expect("a frame is sent whole")))
            .map_err(|error| Law::Protocol.broken(format!("a frame cannot be read: {error}")))?;
        if let Err(fault) = output.store.request(now, request) {
            return Err(Law::Protocol.broken(format!("the output refuses a frame: {fault:?}")));
        }
        self.pump(pod)
    }

    /// A frame arrives at the input.
    pub(crate) fn hear_output(&mut self, who: Who, session: u64, reply: Reply) -> Lawful {
        if session <= self.pods[who.pod].output.broken {
            return Ok(());
        }
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        if let Reply::Ready(ready) = reply {
            process.session = Some(session);
            return self.link_input(
                who,
                Link::Up {
                    credit: ready.credit,
                },
            );
        }
        if process.session != Some(session) {
            return Ok(());
        }
        self.feed(who, Input::Replies(vec![reply]))
    }

    /// The connection breaks; each side sees it when it does.
    pub(crate) fn break_link(&mut self, who: Who) {
        let (input, output) = (self.random.ms(0, 300), self.random.ms(0, 300));
        let it = &mut self.pods[who.pod].output;
        let Some(session) = it.session.filter(|s| *s > it.broken) else {
            return;
        };
        it.broken = session;
        self.after(input, Happening::LinkLost(who, session));
        self.after(output, Happening::OutputClose(who.pod, session));
    }

    /// The output process dies and is there again at once, empty.
    pub(crate) fn output_crash(&mut self, pod: usize) {
        let who = Who {
            pod,
            life: self.pods[pod].life,
        };
        let old = &self.pods[pod].output;
        let (life, session, broken) = (old.life, old.session, old.broken);
        // The app sees its connections break.
        let posts: Vec<_> = old.posts.values().copied().collect();
        for (who, call) in posts {
            let broken = Happening::PostAnswered(who, call, store::PushAnswer::NotStored);
            self.after(Duration::from_millis(1), broken);
        }
        let mut new = OutputPod::new(&self.scenario);
        new.life = life + 1;
        new.broken = broken.max(session.unwrap_or(0));
        self.pods[pod].output = new;
        if self.scenario.once {
            let after = self.random.latency(50, 8_000);
            self.after(after, Happening::OutputReady(pod, life + 1));
        }
        if let Some(session) = session {
            let after = self.random.ms(0, 300);
            self.after(after, Happening::LinkLost(who, session));
        }
    }

    /// Time alone changes something.
    pub(crate) fn output_wakes(&mut self, pod: usize, life: u32) -> Lawful {
        let output = &mut self.pods[pod].output;
        if output.life != life {
            return Ok(());
        }
        output.wakes = false;
        self.pump(pod)
    }

    /// A new output's producer is accepted, which ends what the one before left open.
    pub(crate) fn output_ready(&mut self, pod: usize, life: u32) {
        if self.pods[pod].output.life == life {
            self.init_producer(pod);
        }
    }

    pub(crate) fn link_lost(&mut self, who: Who, session: u64) -> Lawful {
        let again = self.random.ms(50, 2_000);
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let was_up = process.session.take_if(|s| *s == session).is_some();
        self.after(again, Happening::Connect(who));
        if was_up {
            self.link_input(who, Link::Down)
        } else {
            Ok(())
        }
    }

    pub(crate) fn output_close(&mut self, pod: usize, session: u64) -> Lawful {
        let output = &mut self.pods[pod].output;
        if output.session != Some(session) {
            return Ok(());
        }
        output.broken = output.broken.max(session);
        output.session = None;
        output.store.close();
        self.pump(pod)
    }

    /// One turn of the output's driver.
    pub(super) fn pump(&mut self, pod: usize) -> Lawful {
        self.settle_store(pod);
        let now = self.now;
        let local = self.local(pod);
        let full = !self.quiet && self.random.permille(self.scenario.faults.queue_full);
        let mut full_at = if full { self.random.below(3) } else { u64::MAX };
        while let Some(record) = self.pods[pod].output.store.take(local) {
            if full_at == 0 && !self.pods[pod].output.producer.open.is_empty() {
                self.pods[pod].output.store.refused(local, record);
                break;
            }
            full_at = full_at.saturating_sub(1);
            let source = self.laws.produced(pod, &record, now, &self.logs)?;
            let name = self.name();
            let place = place(&record, source);
            let once = self.scenario.once;
            let producer = &mut self.pods[pod].output.producer;
            if once {
                producer.transaction.get_or_insert(name);
            }
            producer.open.insert(name, record.ticket);
            producer.queue.push_back(Entry {
                name,
                place,
                source,
                since: now,
            });
        }
        self.settle_store(pod);
        if self.scenario.once
            && let Some(at) = self.pods[pod].output.store.deadline()
        {
            let life = self.pods[pod].output.life;
            let after = at.saturating_sub(local.boot) + Duration::from_millis(1);
            let output = &mut self.pods[pod].output;
            if !std::mem::replace(&mut output.wakes, true) {
                self.after(after, Happening::OutputWakes(pod, life));
            }
        }
        let output = &mut self.pods[pod].output;
        if !output.producer.queue.is_empty() && !output.producer.sending {
            output.producer.sending = true;
            let life = output.life;
            let after = self.random.latency(2, 50);
            self.after(after, Happening::SendBatches(pod, life));
        }
        Ok(())
    }

    fn settle_store(&mut self, pod: usize) {
        let local = self.local(pod);
        let now = self.now;
        let mut effects = Vec::new();
        self.pods[pod].output.store.settle(local, &mut effects);
        for effect in effects {
            match effect {
                store::Effect::Reply(reply) => {
                    let after = self.random.latency(3, 300);
                    let life = self.pods[pod].life;
                    let output = &mut self.pods[pod].output;
                    output.to_input_at = output.to_input_at.max(now + after);
                    let after = output.to_input_at - now;
                    if let Some(session) = output.session {
                        self.after(after, Happening::ToInput(Who { pod, life }, session, reply));
                    }
                }
                store::Effect::Pushed { push, answer } => {
                    let after = self.random.latency(2, 200);
                    if let Some((who, call)) = self.pods[pod].output.posts.remove(&push) {
                        self.after(after, Happening::PostAnswered(who, call, answer));
                    }
                }
                store::Effect::Purge => self.purge(pod),
                store::Effect::Commit {
                    group_metadata,
                    offsets,
                } => self.commit_transaction(pod, group_metadata.as_bytes().clone(), offsets),
                store::Effect::Abort => {
                    self.purge(pod);
                    self.abort_transaction(pod);
                }
                store::Effect::Rebuild => {
                    let output = &mut self.pods[pod].output;
                    output.producer.queue.clear();
                    output.producer.open.clear();
                    // What the old one still hears is for nobody.
                    output.producer.epoch = 0;
                    let life = output.life;
                    let after = self.random.ms(20, 1_000);
                    self.after(after, Happening::Rebuilt(pod, life));
                }
            }
        }
    }

    fn purge(&mut self, pod: usize) {
        let output = &mut self.pods[pod].output;
        output.producer.queue.clear();
        let purged: Vec<_> = output
            .producer
            .open
            .keys()
            .map(|name| {
                (
                    *name,
                    Ended::Failed(failed(StoreClass::Transient, "purged")),
                )
            })
            .collect();
        let life = output.life;
        self.after(
            Duration::from_millis(1),
            Happening::BatchEnd(pod, life, purged),
        );
    }

    pub(crate) fn rebuilt(&mut self, pod: usize, life: u32) -> Lawful {
        if self.pods[pod].output.life != life {
            return Ok(());
        }
        if self.scenario.once {
            self.init_producer(pod);
        }
        self.pods[pod].output.store.rebuilt();
        self.pump(pod)
    }

    /// The producer sends what it holds, one batch per topic-partition.
    pub(crate) fn send_batches(&mut self, pod: usize, life: u32) -> Lawful {
        if self.pods[pod].output.life != life {
            return Ok(());
        }
        if self.now < self.output_away_until {
            let after = self.output_away_until - self.now;
            self.after(after, Happening::SendBatches(pod, life));
            return Ok(());
        }
        let now = self.now;
        let producer = &mut self.pods[pod].output.producer;
        producer.sending = false;
        let mut expired = Vec::new();
        let mut batches: BTreeMap<Place, Vec<Entry>> = BTreeMap::new();
        for entry in producer.queue.drain(..) {
            if now > entry.since + MESSAGE_TIMEOUT {
                expired.push((
                    entry.name,
                    Ended::Failed(failed(StoreClass::Transient, "message timed out")),
                ));
            } else {
                batches.entry(entry.place).or_default().push(entry);
            }
        }
        if !expired.is_empty() {
            self.after(Duration::ZERO, Happening::BatchEnd(pod, life, expired));
        }
        for (place, entries) in batches {
            self.send_batch(pod, life, place, entries);
        }
        Ok(())
    }

    fn send_batch(&mut self, pod: usize, life: u32, place: Place, entries: Vec<Entry>) {
        let producer = &self.pods[pod].output.producer;
        let transaction = producer.transaction.map(|name| (producer.epoch, name));
        let faults = self.scenario.faults;
        let quiet = self.quiet;
        let strikes =
            |random: &mut crate::random::Random, chance| !quiet && random.permille(chance);
        let random = &mut self.random;
        let class = if strikes(random, faults.store_transient) {
            Some((
                Ended::Failed(failed(StoreClass::Transient, "NotEnoughReplicas")),
                false,
            ))
        } else if strikes(random, faults.store_misconfigured) {
            Some((
                Ended::Failed(failed(
                    StoreClass::Misconfigured,
                    "TopicAuthorizationFailed",
                )),
                false,
            ))
        } else if strikes(random, faults.store_fatal) {
            Some((
                Ended::Fatal(failed(StoreClass::Transient, "Fatal")),
                random.permille(300),
            ))
        } else if strikes(random, faults.store_unknown) {
            let class = random.pick(&[StoreClass::Unknown, StoreClass::Transient]);
            Some((
                Ended::Failed(failed(class, "RequestTimedOut")),
                random.permille(600),
            ))
        } else {
            None
        };
        let mut wire = random.latency(20, 3_000);
        if transaction.is_some() {
            let now = self.now;
            let arrives = &mut self.pods[pod].output.producer.arrives;
            let last = arrives.entry(place).or_default();
            *last = (*last).max(now + wire);
            wire = *last - now;
        }
        let answer = wire + random.latency(5, 500);
        let (mut ended, mut sources) = (Vec::new(), Vec::new());
        for entry in entries {
            let nature = self.logs[entry.source.partition].records[entry.source.index].nature;
            // The broker never takes it, whatever becomes of the rest.
            let refused = !place.0 && nature == Nature::Unstorable;
            let end = match &class {
                None if refused => Ended::Failed(failed(StoreClass::Rejected, "InvalidRecord")),
                None => Ended::Stored,
                Some((end, _)) => end.clone(),
            };
            ended.push((entry.name, end));
            if !refused {
                sources.push(entry.source);
            }
        }
        let (arrives, answered) = match &class {
            None => (true, answer),
            // An answer that was lost may come before the records are stored.
            Some((_, stored)) => (*stored, self.random.ms(1, 4_000)),
        };
        if arrives {
            self.after(
                wire,
                Happening::BatchArrive(Box::new(Batch {
                    pod,
                    place,
                    sources,
                    transaction,
                })),
            );
        }
        self.after(answered, Happening::BatchEnd(pod, life, ended));
    }

    /// The broker appends a batch.
    pub(crate) fn batch_arrive(&mut self, batch: Batch) -> Lawful {
        if let Some((epoch, name)) = batch.transaction {
            self.append_in_transaction(batch.pod, epoch, name, batch.place, batch.sources);
            return Ok(());
        }
        for source in batch.sources {
            self.note(|| format!("stored: {source:?} from pod {}", batch.pod));
            let owner = self.group.owner(source.partition);
            let owner = owner.and_then(|member| self.group.pod_of(member));
            self.laws.appended(batch.pod, batch.place, source, owner)?;
        }
        Ok(())
    }

    pub(crate) fn batch_end(&mut self, pod: usize, life: u32, ended: Vec<(u64, Ended)>) -> Lawful {
        let local = self.local(pod);
        let output = &mut self.pods[pod].output;
        if output.life != life {
            return Ok(());
        }
        let open = &mut output.producer.open;
        let ended: Vec<_> = ended
            .into_iter()
            .filter_map(|(name, end)| Some((open.remove(&name)?, end)))
            .collect();
        if ended.is_empty() {
            return Ok(());
        }
        output.store.ended(local, ended);
        self.pump(pod)
    }
}
