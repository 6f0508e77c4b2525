//! An idempotent producer as a [`Sink`]; with [`TransactionSettings`] a transactional one.
//!
//! Invariant: every record that was taken ends as exactly one delivery, in the order in which
//! librdkafka reports them.
//!
//! [`TransactionSettings`]: super::TransactionSettings

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_core::contract::publish::GroupMetadata;
use millrace_core::intake::io::Committed;
use millrace_core::position::{Partition, Position};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::auth_tokens::{AuthTokens, Registration};
use super::rebalance::QuietContext;
use super::secrets::Renewing;
use super::settings::{self, Error, ProducerSettings, Role, Settings};
use super::transactions::{Calls, Ending, TransactionEnd, Unfenced};
use super::{classify, ffi};
use crate::{AppendClass, Delivery, Record, Sink};

/// Topics whose C names are kept; an app may name any topic per result (A-S4).
const NAMES_MAX: usize = 64;

const _: () = assert!(
    size_of::<usize>() == size_of::<u64>(),
    "tickets travel as pointers"
);

#[derive(Debug, Default)]
struct Reports {
    deliveries: Vec<(u64, Delivery)>,
    /// Records taken and not reported yet.
    open: u64,
}

#[derive(Debug, Default)]
struct Ends {
    reports: Mutex<Reports>,
    reported: Notify,
    settled: Notify,
    fatal: AtomicBool,
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) {
        self.lock().open += 1;
    }

    fn not_taken(&self) {
        self.lock().open -= 1;
    }

    fn end(&self, ticket: u64, delivery: Delivery) {
        let mut reports = self.lock();
        // Whoever takes them takes all.
        let first = reports.deliveries.is_empty();
        reports.deliveries.push((ticket, delivery));
        reports.open -= 1;
        let settled = reports.open == 0;
        drop(reports);
        if first {
            self.reported.notify_one();
        }
        if settled {
            self.settled.notify_waiters();
        }
    }
}

struct SinkContext {
    ends: Arc<Ends>,
    renewing: Renewing,
    auth_tokens: Option<AuthTokens>,
}

impl ClientContext for SinkContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::rebalance::log(level, facility, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        QuietContext.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.ends.fatal.store(true, Ordering::Relaxed);
        }
        QuietContext.error(error, reason);
    }
}

impl ProducerContext for SinkContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: usize) {
        let delivery = match result {
            Ok(message) => Delivery::Stored {
                partition: message.partition(),
                position: Position::new(message.offset()),
            },
            Err((error, _)) => {
                let code = error
                    .rdkafka_error_code()
                    .unwrap_or(RDKafkaErrorCode::Unknown);
                let fatal = self.ends.fatal.load(Ordering::Relaxed);
                without_token(failed(code, fatal), self.auth_tokens.as_ref())
            }
        };
        self.ends.end(ticket as u64, delivery);
    }
}

fn failed(code: RDKafkaErrorCode, fatal: bool) -> Delivery {
    Delivery::Failed {
        class: classify::append_class(code, fatal),
        code: format!("{code:?}"),
        message: code.to_string(),
    }
}

/// What brokers did not take because they let nobody in waits until that is mended (D-P2).
fn without_token(mut delivery: Delivery, tokens: Option<&AuthTokens>) -> Delivery {
    if let Delivery::Failed { class, message, .. } = &mut delivery
        && *class == AppendClass::Transient
        && let Some(reason) = tokens.and_then(AuthTokens::missing)
    {
        *class = AppendClass::Misconfigured;
        *message = format!("{message}: {reason}");
    }
    delivery
}

/// Appends records to topics.
pub struct KafkaSink {
    /// Given back before the producer is dropped, whose last handle has to be ours.
    registration: Registration,
    /// `None` only while dropping.
    producer: Option<Arc<ThreadedProducer<SinkContext>>>,
    ends: Arc<Ends>,
    names: Vec<(Arc<str>, CString)>,
    /// `None`: every record counts for itself.
    transaction: Option<Transaction>,
}

/// What a transactional producer is doing.
struct Transaction {
    begun: bool,
    given_up: Arc<AtomicBool>,
    timeout: Duration,
}

/// The end of a transaction that is under way. Nothing may be appended until it is known.
#[derive(Debug)]
pub struct EndOfTransaction(JoinHandle<TransactionEnd>);

impl EndOfTransaction {
    /// Waits for it. Cancel-safe; to be asked once it was not cancelled.
    pub async fn known(&mut self) -> TransactionEnd {
        let ended = (&mut self.0).await;
        ended.unwrap_or_else(|error| TransactionEnd::Unknown(error.to_string()))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl KafkaSink {
    /// Makes the producer; fails only if the settings are unusable. The first delivery of a
    /// fresh producer takes about half a second, so keep it (B-K4).
    pub fn new(settings: &Settings, producer: &ProducerSettings) -> Result<Self, Error> {
        let ends = Arc::new(Ends::default());
        let context = SinkContext {
            ends: Arc::clone(&ends),
            renewing: Renewing::of(settings),
            auth_tokens: settings.auth_tokens.clone(),
        };
        let transaction = producer.transactions.as_ref().map(|of| Transaction {
            begun: false,
            given_up: Arc::default(),
            timeout: of.timeout,
        });
        let producer: ThreadedProducer<_> =
            settings::client_config(settings, Role::Producer(producer))?
                .create_with_context(context)
                .map_err(|error| Error::Client(error.to_string()))?;
        let producer = Arc::new(producer);
        Ok(Self {
            registration: settings.register(&producer),
            producer: Some(producer),
            ends,
            names: Vec::new(),
            transaction,
        })
    }

    fn calls(&self) -> Option<Calls<SinkContext>> {
        Some(Calls {
            producer: Arc::clone(self.producer.as_ref()?),
            given_up: Arc::clone(&self.transaction.as_ref()?.given_up),
            timeout: self.transaction.as_ref()?.timeout,
        })
    }

    /// Makes a transactional producer ready: it fences its predecessor and ends what that left
    /// open. Waits for the brokers as long as it takes; any other producer is ready at once.
    ///
    /// # Errors
    /// If this producer will never be ready: make another one.
    pub async fn prepare(&mut self) -> Result<(), String> {
        let Some(calls) = self.calls() else {
            return Ok(());
        };
        // A dropped sink gives up, and so does the call.
        tokio::task::spawn_blocking(move || calls.init())
            .await
            .map_err(|error| error.to_string())?
    }

    /// Ends the transaction of everything appended since the last end.
    pub fn end_transaction(&mut self, ending: Ending) -> EndOfTransaction {
        let calls = self
            .calls()
            .expect("only a transactional producer is asked to end a transaction");
        let transaction = self.transaction.as_mut().expect("it was just there");
        let begun = std::mem::take(&mut transaction.begun);
        EndOfTransaction(tokio::task::spawn_blocking(move || {
            if !begun {
                // Offsets alone, or nothing at all.
                if ending == Ending::Abort {
                    return TransactionEnd::Aborted("nothing was in it".to_owned());
                }
                if let Err(error) = calls.begin() {
                    return TransactionEnd::Unknown(error.message);
                }
            }
            calls.end(&ending)
        }))
    }

    /// The core of [`super::prove_fencing`].
    pub(super) async fn probe_offsets(
        &mut self,
        group: GroupMetadata,
        offsets: Vec<(Partition, Committed)>,
    ) -> Result<(), Unfenced> {
        let calls = self.calls().expect("the probe is transactional");
        tokio::task::spawn_blocking(move || calls.probe(&group, &offsets))
            .await
            .map_err(|error| Unfenced::Unavailable(error.to_string()))?
    }

    /// Begins a transaction if the producer is transactional and has none.
    fn begin(&mut self) -> Result<(), RDKafkaErrorCode> {
        let Some(transaction) = &self.transaction else {
            return Ok(());
        };
        if transaction.begun {
            return Ok(());
        }
        if let Some(calls) = self.calls() {
            calls.begin().map_err(|error| error.code)?;
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.begun = true;
        }
        Ok(())
    }

    /// Whether the producer has failed for good: make a new one (D-O1).
    pub fn fatal(&self) -> bool {
        self.ends.fatal.load(Ordering::Relaxed)
            || self
                .producer
                .as_ref()
                .is_some_and(|producer| producer.client().fatal_error().is_some())
    }

    /// A producer that fails for good purges what it holds, and reports that before the error
    /// itself: such records wait for the next producer too.
    fn mark_fatal(&self, ends: &mut [(u64, Delivery)]) {
        let failed = |end: &Delivery| {
            matches!(
                end,
                Delivery::Failed {
                    class: AppendClass::Transient,
                    ..
                }
            )
        };
        if !ends.iter().any(|(_, end)| failed(end)) || !self.fatal() {
            return;
        }
        for (_, end) in ends {
            if let Delivery::Failed {
                class: class @ AppendClass::Transient,
                ..
            } = end
            {
                *class = AppendClass::Fatal;
            }
        }
    }

    /// The index of a topic's C name.
    fn name(&mut self, topic: &Arc<str>) -> Option<usize> {
        let known = self
            .names
            .iter()
            .position(|(name, _)| Arc::ptr_eq(name, topic) || **name == **topic);
        if known.is_some() {
            return known;
        }
        let name = CString::new(&**topic).ok()?;
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.push((Arc::clone(topic), name));
        Some(self.names.len() - 1)
    }
}

impl Sink for KafkaSink {
    fn append(&mut self, ticket: u64, record: Record) -> Result<(), Record> {
        // Counted first: the report may come before `produce` returns.
        self.ends.taken();
        if let Err(code) = self.begin() {
            // It begins whenever it can, so it never will.
            let end = failed(code, true);
            self.ends.end(ticket, end);
            return Ok(());
        }
        let result = match self.name(&record.topic) {
            None => Err(RDKafkaErrorCode::InvalidTopic),
            Some(name) => {
                let producer = self.producer.as_ref().expect("it is taken only by drop");
                producer.context().renewing.apply(producer.client());
                ffi::produce(
                    producer.client(),
                    &ffi::Produce {
                        topic: &self.names[name].1,
                        partition: record.partition.unwrap_or(-1),
                        timestamp_ms: record.timestamp_ms.unwrap_or(0),
                        key: record.key.as_deref(),
                        value: record.value.as_deref(),
                        headers: &record.headers,
                        ticket: usize::try_from(ticket).expect("pointers have 64 bits"),
                    },
                )
            }
        };
        match result {
            Ok(()) => Ok(()),
            Err(RDKafkaErrorCode::QueueFull) => {
                self.ends.not_taken();
                Err(record)
            }
            Err(code) => {
                self.ends.end(ticket, failed(code, self.fatal()));
                Ok(())
            }
        }
    }

    async fn deliveries(&mut self, into: &mut Vec<(u64, Delivery)>) {
        if let Some(producer) = &self.producer {
            producer.context().renewing.apply(producer.client());
        }
        loop {
            let reported = self.ends.reported.notified();
            {
                let mut reports = self.ends.lock();
                if !reports.deliveries.is_empty() {
                    let before = into.len();
                    into.append(&mut reports.deliveries);
                    drop(reports);
                    self.mark_fatal(&mut into[before..]);
                    return;
                }
            }
            reported.await;
        }
    }

    fn purge(&mut self) {
        if let Some(producer) = &self.producer {
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }

    async fn flush(&mut self) {
        loop {
            let settled = self.ends.settled.notified();
            tokio::pin!(settled);
            // Registered before the look, so that the last report is not missed.
            settled.as_mut().enable();
            if self.ends.lock().open == 0 {
                return;
            }
            settled.await;
        }
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        drop(std::mem::take(&mut self.registration));
        // Ending a producer waits for its threads; nobody who drops a sink may wait for that.
        if let Some(producer) = self.producer.take() {
            let ended = std::thread::Builder::new()
                .name("millrace-sink-end".to_owned())
                .spawn(move || drop(producer));
            if let Err(error) = ended {
                tracing::warn!(%error, "the producer was ended in place");
            }
        }
    }
}
