//! One partition that is assigned in the client: its queue, and how far it was read.
//!
//! Each partition has a queue of its own (split before and again after each assign), so that one
//! that is not wanted is left unread without losing what was fetched (D-G1).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_core::event::{EventsBuilder, Timestamp, TimestampKind};
use millrace_core::limits::FETCH_BYTES_MAX;
use millrace_core::position::{Partition, Position};
use rdkafka::consumer::ConsumerContext;
use rdkafka::consumer::base_consumer::{BaseConsumer, PartitionQueue};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use tokio::time::Instant;

use super::ffi;

/// What stopped a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Drained {
    /// The queue is empty.
    Empty,
    /// The fetch is full; more may wait.
    Enough,
    /// The position to read next is not in the log.
    OutOfRange,
    /// The reader is at the end of the partition.
    AtEnd,
}

/// Where a seek goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) position: Position,
    /// librdkafka asks the leader whether the log holds this epoch up to the position.
    pub(super) leader_epoch: Option<i32>,
}

/// A partition that is being read.
pub(super) struct Reading<C: ConsumerContext + 'static> {
    queue: PartitionQueue<C>,
    ready: Arc<AtomicBool>,
    /// Records below are not handed over; guards against a repetition after a resume.
    next: Position,
    /// librdkafka does not fetch any more; only a restart helps.
    pub(super) broken: bool,
    /// librdkafka was told to stop fetching.
    pub(super) fetch_paused: bool,
    /// A seek to do, and when it was last tried. Until it is done no record is handed over.
    pub(super) seek: Option<(Target, Option<Instant>)>,
    /// Epoch of the leader that took the last record handed over.
    pub(super) leader_epoch: Option<i32>,
}

impl<C: ConsumerContext + 'static> Reading<C> {
    /// Splits the queue of a partition off. `None`: librdkafka does not know the partition.
    pub(super) fn split(
        client: &Arc<BaseConsumer<C>>,
        partition: &Partition,
        next: Position,
    ) -> Option<Self> {
        let queue = client.split_partition_queue(partition.topic(), partition.number())?;
        Some(Self {
            queue,
            ready: Arc::new(AtomicBool::new(true)),
            next,
            broken: false,
            fetch_paused: false,
            seek: None,
            leader_epoch: None,
        })
    }

    /// Splits again, after an assign; from now on `wake` is called from librdkafka's threads
    /// when records arrive.
    pub(super) fn arm(
        &mut self,
        client: &Arc<BaseConsumer<C>>,
        partition: &Partition,
        wake: impl Fn() + Send + Sync + 'static,
    ) {
        if let Some(queue) = client.split_partition_queue(partition.topic(), partition.number()) {
            // Dropping a handle silences the queue's callback for all its handles, so the
            // callback is set on the new one after the old one is gone.
            self.queue = queue;
        }
        let flag = Arc::clone(&self.ready);
        self.queue.set_nonempty_callback(move || {
            flag.store(true, Ordering::Release);
            wake();
        });
        self.ready.store(true, Ordering::Release);
    }

    /// Whether a record at this position is the next one to hand over, or a later one.
    pub(super) fn accept(&mut self, position: Position) -> bool {
        advance(&mut self.next, position)
    }

    /// The position behind the last record that was handed over.
    pub(super) fn next(&self) -> Position {
        self.next
    }

    /// Whether something may wait in the queue.
    pub(super) fn ready(&self) -> bool {
        !self.broken && self.ready.load(Ordering::Acquire)
    }

    /// Reads on from here.
    pub(super) fn reset(&mut self, next: Position) {
        self.next = next;
        self.ready.store(true, Ordering::Release);
    }

    /// Drops what waits in the queue.
    pub(super) fn discard(&self) {
        while self.queue.poll(Duration::ZERO).is_some() {}
    }

    /// Drops what waits in the queue. Whether librdkafka has stopped fetching for good, after which
    /// it cannot be moved any more.
    pub(super) fn gave_up(&mut self) -> bool {
        while let Some(polled) = self.queue.poll(Duration::ZERO) {
            let lost = polled.is_err_and(|error| lost_position(&error).is_break());
            self.broken |= lost;
        }
        self.broken
    }

    /// Copies records into `into` until `records_max` more or the bytes of a fetch are there.
    pub(super) fn drain(&mut self, into: &mut EventsBuilder, records_max: usize) -> Drained {
        // The callback comes only when an empty queue gets its first record. The flag is
        // cleared before the queue is read, so that no such moment is missed.
        self.ready.store(false, Ordering::Release);
        let end = into.len() + records_max;
        loop {
            if into.len() >= end || into.bytes() >= FETCH_BYTES_MAX {
                self.ready.store(true, Ordering::Release);
                return Drained::Enough;
            }
            match self.queue.poll(Duration::ZERO) {
                None => return Drained::Empty,
                Some(Ok(message)) => {
                    if advance(&mut self.next, Position::new(message.offset())) {
                        copy(&message, into);
                        self.leader_epoch = ffi::leader_epoch(&message);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.ready.store(true, Ordering::Release);
                    return Drained::AtEnd;
                }
                Some(Err(error)) => {
                    if lost_position(&error).is_break() {
                        self.broken = true;
                        return Drained::OutOfRange;
                    }
                }
            }
        }
    }
}

fn advance(next: &mut Position, position: Position) -> bool {
    let accepted = position >= *next;
    if accepted {
        *next = position.next();
    }
    accepted
}

fn lost_position(error: &KafkaError) -> ControlFlow<()> {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::AutoOffsetReset
            | RDKafkaErrorCode::OffsetOutOfRange
            | RDKafkaErrorCode::LogTruncation,
        ) => ControlFlow::Break(()),
        // The others were reported by the client's error callback, and it goes on trying.
        _ => ControlFlow::Continue(()),
    }
}

/// Copies one record, byte-exact.
pub(super) fn copy(message: &BorrowedMessage<'_>, into: &mut EventsBuilder) {
    let timestamp = match message.timestamp() {
        rdkafka::Timestamp::NotAvailable => Timestamp {
            ms: -1,
            kind: TimestampKind::None,
        },
        rdkafka::Timestamp::CreateTime(ms) => Timestamp {
            ms,
            kind: TimestampKind::Create,
        },
        rdkafka::Timestamp::LogAppendTime(ms) => Timestamp {
            ms,
            kind: TimestampKind::Append,
        },
    };
    into.push(
        Position::new(message.offset()),
        timestamp,
        message.key(),
        message.payload(),
        ffi::headers(message),
    );
}
