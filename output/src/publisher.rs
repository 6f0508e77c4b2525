//! Owns the producer and the session: one task, one loop, no locks.
//!
//! [`Store`] decides; this loop carries out. A turn feeds what has come, then gives the producer
//! every record that may enter, then tells the input what happened.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_connectors::kafka::{
    self, AuthTokens, EndOfTransaction, Ending, KafkaSink, TransactionEnd,
};
use millrace_connectors::{AppendClass, Delivery, Record, Sink};
use millrace_core::contract::publish::{Fault, StoreClass};
use millrace_core::intake::io::Committed;
use millrace_core::store::{
    self, Effect, Ended, Failed, PushAnswer, PushId, Store, TransactionEnded,
};
use millrace_service::admin::{Health, Readiness};
use millrace_service::shutdown::Shutdown;
use millrace_service::time::clock;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::metrics::Snapshot;
use crate::push::Post;
use crate::server::{Arrival, Link, Progress};

/// How often counts are renewed and the loop shows that it moves.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a connection that is over may take to read its last frame.
const FAREWELL: Duration = Duration::from_secs(1);

/// Pause between two attempts to make a producer.
const REMAKE: Duration = Duration::from_secs(1);

/// The publisher. `M` makes a producer.
pub(crate) struct Publisher<M> {
    store: Store,
    make: M,
    sink: KafkaSink,
    /// The end of a transaction that is under way.
    ending: Option<EndOfTransaction>,
    link: Option<Link>,
    health: Health,
    snapshot: Snapshot,
    /// Told when the producer has to be made anew, because only a new one reads changed files.
    outdated: Arc<Notify>,
    /// Nothing enters the producer until it holds nothing and is made anew.
    renewing: bool,
    effects: Vec<Effect>,
    deliveries: Vec<(u64, Delivery)>,
    /// Who waits for the end of a pushed result.
    waiting: HashMap<PushId, oneshot::Sender<PushAnswer>>,
    /// The last failure, while nothing has been stored since.
    trouble: Option<String>,
    /// Shows brokers who we are, if an endpoint says so.
    auth_tokens: Option<AuthTokens>,
    /// Health says that there is no token.
    unauthenticated: bool,
}

/// What woke the loop.
enum Woken {
    Drain,
    Arrival(Option<Arrival>),
    Delivered,
    Ended(TransactionEnd),
    Posted(Option<Post>),
    Due,
    Link(Progress),
    Heartbeat,
    Outdated,
}

impl<M: Fn() -> Result<KafkaSink, kafka::Error>> Publisher<M> {
    pub(crate) fn new(
        store: Store,
        make: M,
        health: Health,
        snapshot: Snapshot,
        outdated: Arc<Notify>,
    ) -> Result<Self, kafka::Error> {
        Ok(Self {
            store,
            sink: make()?,
            ending: None,
            make,
            link: None,
            health,
            snapshot,
            outdated,
            renewing: false,
            effects: Vec::new(),
            deliveries: Vec::new(),
            waiting: HashMap::new(),
            trouble: None,
            auth_tokens: None,
            unauthenticated: false,
        })
    }

    /// The same, over a connection that shows tokens.
    pub(crate) fn with_tokens(self, auth_tokens: Option<AuthTokens>) -> Self {
        Self {
            auth_tokens,
            ..self
        }
    }

    /// Makes the producer ready to be used: a transactional one waits for the brokers.
    pub(crate) async fn prepare(&mut self) {
        while !prepared(&mut self.sink, &self.health).await {
            tokio::time::sleep(REMAKE).await;
            match (self.make)() {
                Ok(sink) => self.sink = sink,
                Err(error) => warn!(%error, "no producer can be made"),
            }
        }
    }

    /// Runs until a drain is asked for and everything is stored.
    pub(crate) async fn run(
        mut self,
        mut arrivals: mpsc::Receiver<Arrival>,
        mut posts: mpsc::Receiver<Post>,
        shutdown: &Shutdown,
    ) {
        let mut posting = true;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining = false;
        while !(draining && self.link.is_none() && self.store.is_idle()) {
            let open = self.store.open_records() > 0;
            let due = self.store.deadline();
            let woken = tokio::select! {
                biased;
                () = shutdown.requested(), if !draining => Woken::Drain,
                _ = heartbeat.tick() => Woken::Heartbeat,
                () = self.outdated.notified() => Woken::Outdated,
                () = self.sink.deliveries(&mut self.deliveries), if open => Woken::Delivered,
                ended = transaction_ended(&mut self.ending) => Woken::Ended(ended),
                progress = next_progress(&mut self.link) => Woken::Link(progress),
                post = posts.recv(), if posting => Woken::Posted(post),
                arrival = arrivals.recv() => Woken::Arrival(arrival),
                () = sleep_until(due) => Woken::Due,
            };
            match woken {
                Woken::Drain => {
                    draining = true;
                    info!("storing what the input proxy still sends, then ending");
                }
                Woken::Arrival(Some(arrival)) => self.admit(arrival),
                Woken::Arrival(None) => return,
                Woken::Delivered => self.delivered(),
                Woken::Ended(end) => self.transaction_ended(end),
                Woken::Posted(Some(Post::Result(pushed, answer))) => {
                    let push = self.store.push(clock(), &pushed);
                    self.waiting.insert(push, answer);
                }
                Woken::Posted(Some(Post::Unread(correlation, failed))) => {
                    self.store.push_refused(correlation, failed);
                }
                // The block is not in push mode.
                Woken::Posted(None) => posting = false,
                Woken::Link(Progress::Received) => self.received(),
                Woken::Link(Progress::Sent) | Woken::Due => {}
                Woken::Link(Progress::Closed) => self.close_link("the input proxy is gone"),
                Woken::Outdated => self.renewing = true,
                Woken::Heartbeat => {
                    self.health.progressed();
                    self.look_at_tokens();
                    self.snapshot.renew(self.store.counters());
                }
            }
            self.turn().await;
        }
        self.sink.flush().await;
        self.snapshot.renew(self.store.counters());
    }

    /// Settle, produce, settle.
    async fn turn(&mut self) {
        self.settle().await;
        // A transaction that has begun ends with its own producer.
        let between = self.store.is_between_transactions();
        if self.renewing && between && self.store.open_records() == 0 {
            self.sink = self.remake().await;
            self.renewing = false;
            info!("the producer was made anew");
        }
        if !self.renewing || !between {
            self.produce();
        }
        self.settle().await;
        if self.link.as_ref().is_some_and(Link::is_over) {
            self.close_link("the session ended");
        }
    }

    async fn settle(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.store.settle(clock(), &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Reply(reply) => {
                    if let Some(link) = &mut self.link {
                        link.send(&reply);
                    }
                }
                Effect::Pushed { push, answer } => {
                    if let Some(waiting) = self.waiting.remove(&push) {
                        // An app that has hung up does not hear it.
                        let _gone = waiting.send(answer);
                    }
                }
                Effect::Purge => self.sink.purge(),
                Effect::Rebuild => self.rebuild().await,
                Effect::Commit {
                    group_metadata,
                    offsets,
                } => {
                    let offsets = offsets.into_iter().map(|offset| {
                        let committed = Committed {
                            position: offset.position,
                            metadata: offset.metadata,
                        };
                        (offset.partition, committed)
                    });
                    self.ending = Some(self.sink.end_transaction(Ending::Commit {
                        group: group_metadata,
                        offsets: offsets.collect(),
                    }));
                }
                Effect::Abort => {
                    self.ending = Some(self.sink.end_transaction(Ending::Abort));
                }
            }
        }
        self.effects = effects;
    }

    fn transaction_ended(&mut self, end: TransactionEnd) {
        self.ending = None;
        let ended = match end {
            TransactionEnd::Committed => TransactionEnded::Committed,
            TransactionEnd::Aborted(reason) => {
                debug!(%reason, "a transaction was aborted");
                TransactionEnded::Aborted
            }
            TransactionEnd::Unknown(reason) => {
                warn!(
                    %reason,
                    "a transaction has no known end, or its producer was fenced; the input proxy reads its positions again"
                );
                TransactionEnded::Unknown
            }
        };
        self.store.transaction_ended(ended);
    }

    /// Gives the producer every record that may enter it now.
    fn produce(&mut self) {
        // The clock is read for each record: a lease may end between two of them (P-4).
        while let Some(record) = self.store.take(clock()) {
            let ticket = record.ticket;
            let record = Record {
                topic: record.topic,
                partition: record.partition,
                timestamp_ms: record.timestamp_ms,
                key: record.key,
                value: record.value,
                headers: record.headers,
            };
            if let Err(record) = self.sink.append(ticket, record) {
                self.store.refused(
                    clock(),
                    store::Record {
                        ticket,
                        topic: record.topic,
                        partition: record.partition,
                        timestamp_ms: record.timestamp_ms,
                        key: record.key,
                        value: record.value,
                        headers: record.headers,
                    },
                );
            }
        }
    }

    fn delivered(&mut self) {
        let mut stored = false;
        let mut failure = None;
        let ended = self.deliveries.drain(..).map(|(ticket, delivery)| {
            let end = ended(delivery);
            match &end {
                Ended::Stored => stored = true,
                Ended::Failed(failed) | Ended::Fatal(failed) => {
                    if failed.class != StoreClass::Rejected && failure.is_none() {
                        failure = Some(format!("{}: {}", failed.code, failed.message));
                    }
                }
            }
            (ticket, end)
        });
        self.store.ended(clock(), ended);
        self.note(stored, failure);
    }

    /// Keeps health and log up to date: one line when trouble begins, one when it ends.
    fn note(&mut self, stored: bool, failure: Option<String>) {
        match (failure, &self.trouble) {
            (Some(failure), None) => {
                warn!(
                    error = failure,
                    "results cannot be stored; they are sent again without limit. Check that the brokers are up and that this connection may write to its topics"
                );
                self.health.set(Readiness::Degraded(format!(
                    "results cannot be stored: {failure}"
                )));
                self.trouble = Some(failure);
            }
            (None, Some(_)) if stored => {
                info!("results are stored again");
                self.trouble = None;
                if !self.unauthenticated {
                    self.health.set(Readiness::Ready);
                }
            }
            _ => {}
        }
    }

    /// Without a token the brokers let nobody in, sooner or later (D-P2); said before a result has
    /// to fail.
    fn look_at_tokens(&mut self) {
        let missing = self.auth_tokens.as_ref().and_then(AuthTokens::missing);
        match missing {
            Some(reason) => {
                self.unauthenticated = true;
                self.health.set(Readiness::Degraded(reason));
            }
            None if self.unauthenticated => {
                self.unauthenticated = false;
                self.health.set(match &self.trouble {
                    None => Readiness::Ready,
                    Some(failure) => {
                        Readiness::Degraded(format!("results cannot be stored: {failure}"))
                    }
                });
            }
            None => {}
        }
    }

    fn admit(&mut self, arrival: Arrival) {
        let mut link = Link::new(arrival.stream, arrival.buffer);
        match self.store.admit(&arrival.hello) {
            Ok(()) => {
                info!(
                    session = arrival.hello.session,
                    pod = arrival.hello.pod,
                    "the input proxy is connected"
                );
                let newer = Fault {
                    code: "Replaced".to_owned(),
                    message: "a newer session of the input proxy has connected".to_owned(),
                };
                if let Some(mut older) = self.link.replace(link) {
                    older.end(newer);
                    say_farewell(older);
                }
                // Frames may have come together with Hello.
                self.received();
            }
            Err(fault) => {
                warn!(
                    code = fault.code,
                    "a connection to the publish port is refused: {}", fault.message
                );
                link.end(fault);
                say_farewell(link);
            }
        }
    }

    fn received(&mut self) {
        let Some(link) = &mut self.link else { return };
        let now = clock();
        while let Some(frame) = link.next() {
            let handled = match frame {
                Ok(request) => self.store.request(now, request),
                Err(error) => Err(Fault {
                    code: "Malformed".to_owned(),
                    message: error.to_string(),
                }),
            };
            if let Err(fault) = handled {
                if fault.code != "Closed" {
                    warn!(
                        code = fault.code,
                        "the publish connection is ended: {}", fault.message
                    );
                }
                link.end(fault);
                self.store.close();
                return;
            }
        }
    }

    fn close_link(&mut self, why: &str) {
        if self.link.take().is_some() {
            debug!("{why}");
            self.store.close();
        }
    }

    /// D-O1: after a fatal error the producer is made anew; what it held is sent again.
    async fn rebuild(&mut self) {
        warn!("the producer failed for good and is made anew");
        self.sink.purge();
        self.ending = None;
        self.sink = self.remake().await;
        self.deliveries.clear();
        self.store.rebuilt();
    }

    /// Makes a producer that may be used, however long that takes.
    async fn remake(&self) -> KafkaSink {
        loop {
            match (self.make)() {
                Ok(mut sink) => {
                    if prepared(&mut sink, &self.health).await {
                        return sink;
                    }
                }
                Err(error) => warn!(%error, "no producer can be made"),
            }
            self.health.progressed();
            tokio::time::sleep(REMAKE).await;
        }
    }
}

/// Waits until a producer may be used. False if it never will be.
async fn prepared(sink: &mut KafkaSink, health: &Health) -> bool {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut ready = std::pin::pin!(sink.prepare());
    loop {
        tokio::select! {
            prepared = &mut ready => {
                if let Err(error) = &prepared {
                    warn!(%error, "the transactional producer is not accepted; trying again");
                }
                return prepared.is_ok();
            }
            _ = heartbeat.tick() => health.progressed(),
        }
    }
}

/// Cancel-safe.
async fn transaction_ended(ending: &mut Option<EndOfTransaction>) -> TransactionEnd {
    match ending {
        Some(ending) => ending.known().await,
        None => std::future::pending().await,
    }
}

/// Waits for a moment of the boot clock; without one for ever.
async fn sleep_until(boot: Option<Duration>) {
    match boot {
        Some(boot) => tokio::time::sleep(boot.saturating_sub(clock().boot)).await,
        None => std::future::pending().await,
    }
}

/// Cancel-safe as [`Link::progress`] is.
async fn next_progress(link: &mut Option<Link>) -> Progress {
    match link {
        Some(link) => link.progress().await,
        None => std::future::pending().await,
    }
}

/// Lets a connection that is over read its last frame, for a moment.
fn say_farewell(mut link: Link) {
    tokio::spawn(async move {
        let told = async {
            while !link.is_over() {
                if link.progress().await == Progress::Closed {
                    return;
                }
            }
        };
        // A peer that does not read will find the connection closed.
        drop(tokio::time::timeout(FAREWELL, told).await);
    });
}

fn ended(delivery: Delivery) -> Ended {
    match delivery {
        Delivery::Stored { .. } => Ended::Stored,
        Delivery::Failed {
            class,
            code,
            message,
        } => {
            let (class, fatal) = match class {
                AppendClass::Transient => (StoreClass::Transient, false),
                AppendClass::Rejected => (StoreClass::Rejected, false),
                AppendClass::Misconfigured => (StoreClass::Misconfigured, false),
                AppendClass::Fatal => (StoreClass::Transient, true),
            };
            let failed = Failed::new(class, &code, message);
            if fatal {
                Ended::Fatal(failed)
            } else {
                Ended::Failed(failed)
            }
        }
    }
}
