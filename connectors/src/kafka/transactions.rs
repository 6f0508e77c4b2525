//! The transactional calls of a producer. They block, so they run on threads that may (D-E2).
//!
//! Invariant: a call that may go on is made again until it has ended one way or the other. An end
//! stays unknown (R4c) only if the producer failed for good, or got no answer for as long as the
//! brokers keep a transaction: librdkafka may wait for ever for a coordinator that it has taken
//! out of its list. In both cases a new producer settles it.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millrace_core::contract::publish::GroupMetadata;
use millrace_core::intake::io::Committed;
use millrace_core::position::{Partition, Position};
use rdkafka::Offset;
use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::settings::{Compression, Error, ProducerSettings, Settings, TransactionSettings};
use super::{KafkaSink, ffi, rebalance};

/// How long one call blocks before it looks whether anybody still waits.
const CALL_MAX: Duration = Duration::from_secs(1);

/// How a transaction shall end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Everything that was appended, and these offsets, at once or not at all.
    Commit {
        /// The consumer that reads the offsets' partitions.
        group: GroupMetadata,
        /// What it has reached, with its tokens.
        offsets: Vec<(Partition, Committed)>,
    },
    /// Nothing.
    Abort,
}

/// How a transaction ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TransactionEnd {
    /// Everything is stored.
    Committed,
    /// Nothing is, and why.
    Aborted(String),
    /// The producer is of no use any more (fenced, or it failed for good), and nobody here
    /// knows what became of the transaction: make a new one, which settles it.
    Unknown(String),
}

/// The blocking calls of one producer.
pub(super) struct Calls<C: ProducerContext + 'static> {
    pub(super) producer: Arc<ThreadedProducer<C>>,
    /// Nobody waits any more.
    pub(super) given_up: Arc<AtomicBool>,
    /// `transaction.timeout.ms`: when it is over, the brokers abort what has not ended.
    pub(super) timeout: Duration,
}

impl<C: ProducerContext + 'static> Calls<C> {
    /// Gets the producer its number, which fences a predecessor and ends what it left open.
    pub(super) fn init(&self) -> Result<(), String> {
        self.patiently("init", None, || {
            let init = self.producer.init_transactions(CALL_MAX);
            init.map_err(|error| called(&error))
        })
        .map_err(|error| error.message)
    }

    /// Begins a transaction; asks nobody.
    pub(super) fn begin(&self) -> Result<(), ffi::TransactionError> {
        self.producer
            .begin_transaction()
            .map_err(|error| called(&error))
    }

    pub(super) fn end(&self, ending: &Ending) -> TransactionEnd {
        let until = Some(Instant::now() + self.timeout);
        match ending {
            Ending::Commit { group, offsets } => self.commit(group.as_bytes(), offsets, until),
            Ending::Abort => self.abort("it was given up".to_owned(), until),
        }
    }

    fn commit(
        &self,
        group: &Bytes,
        offsets: &[(Partition, Committed)],
        until: Option<Instant>,
    ) -> TransactionEnd {
        if !offsets.is_empty() {
            let list = rebalance::list(offsets.iter().map(|(partition, committed)| {
                (partition, Offset::Offset(committed.position.offset()))
            }));
            for (partition, committed) in offsets {
                if let Some(mut element) =
                    list.find_partition(partition.topic(), partition.number())
                {
                    element.set_metadata(&committed.metadata);
                }
            }
            let sent = self.patiently("send_offsets", until, || {
                ffi::send_offsets(self.producer.client(), &list, group, CALL_MAX)
            });
            if let Err(error) = sent {
                return self.failed(error, until);
            }
        }
        let committed = self.patiently("commit", until, || {
            let committed = self.producer.commit_transaction(CALL_MAX);
            committed.map_err(|error| called(&error))
        });
        match committed {
            Ok(()) => TransactionEnd::Committed,
            Err(error) => self.failed(error, until),
        }
    }

    /// A call failed so that the transaction cannot be committed any more, or worse.
    fn failed(&self, error: ffi::TransactionError, until: Option<Instant>) -> TransactionEnd {
        if error.aborts {
            self.abort(error.message, until)
        } else {
            TransactionEnd::Unknown(error.message)
        }
    }

    fn abort(&self, reason: String, until: Option<Instant>) -> TransactionEnd {
        let aborted = self.patiently("abort", until, || {
            let aborted = self.producer.abort_transaction(CALL_MAX);
            aborted.map_err(|error| called(&error))
        });
        match aborted {
            Ok(()) => TransactionEnd::Aborted(reason),
            Err(error) => TransactionEnd::Unknown(format!("{reason}; {}", error.message)),
        }
    }

    fn patiently(
        &self,
        what: &'static str,
        until: Option<Instant>,
        call: impl Fn() -> Result<(), ffi::TransactionError>,
    ) -> Result<(), ffi::TransactionError> {
        let waits = || {
            let late = until.is_some_and(|until| Instant::now() >= until);
            !late && !self.given_up.load(Ordering::Relaxed)
        };
        patiently(what, waits, call)
    }
}

/// Makes a call again as long as it says that it may go on, and somebody waits.
fn patiently(
    what: &'static str,
    waits: impl Fn() -> bool,
    mut call: impl FnMut() -> Result<(), ffi::TransactionError>,
) -> Result<(), ffi::TransactionError> {
    loop {
        match call() {
            Err(error) if error.retriable && waits() => {
                debug!(call = what, %error, "a transactional call goes on");
                if error.code != rdkafka::error::RDKafkaErrorCode::OperationTimedOut {
                    // It failed at once, and would again.
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
            ended => return ended,
        }
    }
}

/// The crate's error in our words.
fn called(error: &KafkaError) -> ffi::TransactionError {
    match error {
        KafkaError::Transaction(error) => ffi::TransactionError {
            code: error.code(),
            message: error.string(),
            retriable: error.is_retriable(),
            aborts: error.txn_requires_abort(),
        },
        other => ffi::TransactionError {
            code: other
                .rdkafka_error_code()
                .unwrap_or(rdkafka::error::RDKafkaErrorCode::Unknown),
            message: other.to_string(),
            retriable: false,
            aborts: false,
        },
    }
}

/// Why exactly-once cannot be promised on these brokers.
#[derive(Debug, thiserror::Error)]
pub enum Unfenced {
    /// The client is not usable.
    #[error("the producer of the fencing test cannot be made")]
    Client(#[source] Error),
    /// Worth another try.
    #[error("the fencing test did not come to an end: {0}")]
    Unavailable(String),
    /// The brokers take offsets from a member that does not exist.
    #[error(
        "the brokers accepted offsets of a forged group generation, so a zombie could commit too (D-E2); use delivery.guarantee: AtLeastOnce here"
    )]
    Accepted,
}

/// Generation of the member that the fencing test makes up.
const FORGED: i32 = 1_000_000;

/// Proves that the brokers refuse offsets of a forged group generation in a transaction (D-E2).
/// The group `probe` is nobody's, and nothing is stored whatever comes out.
///
/// # Errors
/// If they do not, or if it could not be found out.
pub async fn prove_fencing(
    settings: &Settings,
    transactions: TransactionSettings,
    probe: &str,
    partition: Partition,
) -> Result<(), Unfenced> {
    let producer = ProducerSettings {
        compression: Compression::None,
        linger: Duration::ZERO,
        message_timeout: transactions.timeout,
        batch_bytes_max: None,
        transactions: Some(transactions),
    };
    let forged = CString::new(probe)
        .map_err(|error| Unfenced::Unavailable(error.to_string()))
        .and_then(|group| {
            ffi::forged_group_metadata(&group, FORGED, c"forged")
                .map_err(|error| Unfenced::Unavailable(error.to_string()))
        })?;
    let group = GroupMetadata::new(forged.into())
        .map_err(|error| Unfenced::Unavailable(error.to_string()))?;
    let mut sink = KafkaSink::new(settings, &producer).map_err(Unfenced::Client)?;
    sink.prepare().await.map_err(Unfenced::Unavailable)?;
    let offset = Committed {
        position: Position::START,
        metadata: "millrace: a forged generation must be refused".to_owned(),
    };
    sink.probe_offsets(group, vec![(partition, offset)]).await
}

impl<C: ProducerContext + 'static> Calls<C> {
    /// Sends offsets, and gives them up whether they are taken or not.
    pub(super) fn probe(
        &self,
        group: &GroupMetadata,
        offsets: &[(Partition, Committed)],
    ) -> Result<(), Unfenced> {
        use rdkafka::error::RDKafkaErrorCode as Code;
        let unavailable = |error: ffi::TransactionError| Unfenced::Unavailable(error.to_string());
        self.begin().map_err(unavailable)?;
        let list = rebalance::list(offsets.iter().map(|(partition, committed)| {
            (partition, Offset::Offset(committed.position.offset()))
        }));
        let until = Some(Instant::now() + self.timeout);
        let sent = self.patiently("send_offsets", until, || {
            ffi::send_offsets(self.producer.client(), &list, group.as_bytes(), CALL_MAX)
        });
        if let TransactionEnd::Unknown(reason) = self.abort("a probe".to_owned(), until) {
            warn!(%reason, "the fencing test left its transaction to the brokers");
        }
        match sent {
            Ok(()) => Err(Unfenced::Accepted),
            Err(error) => match error.code {
                Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::FencedInstanceId
                | Code::FencedMemberEpoch
                | Code::StaleMemberEpoch => Ok(()),
                _ => Err(Unfenced::Unavailable(error.to_string())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rdkafka::error::RDKafkaErrorCode as Code;

    use super::*;

    fn failed(code: Code, retriable: bool) -> Result<(), ffi::TransactionError> {
        Err(ffi::TransactionError {
            code,
            message: String::new(),
            retriable,
            aborts: false,
        })
    }

    /// How often a call is made whose answers are these, while somebody waits for so many.
    fn calls(answers: &[Result<(), ffi::TransactionError>], waited_for: usize) -> (usize, bool) {
        let made = Cell::new(0);
        let ended = patiently(
            "test",
            || made.get() < waited_for,
            || {
                made.set(made.get() + 1);
                answers[made.get() - 1].clone()
            },
        );
        (made.get(), ended.is_ok())
    }

    #[test]
    fn r4c_a_call_goes_on_until_it_has_ended_or_nobody_waits_any_more() {
        let late = || failed(Code::OperationTimedOut, true);
        let busy = || failed(Code::ConcurrentTransactions, true);
        let over = || failed(Code::Fenced, false);
        assert_eq!(calls(&[late(), busy(), Ok(())], 9), (3, true));
        assert_eq!(calls(&[late(), over(), Ok(())], 9), (2, false));
        assert_eq!(
            calls(&[late(), late(), late()], 2),
            (2, false),
            "a coordinator that never answers"
        );
    }
}
