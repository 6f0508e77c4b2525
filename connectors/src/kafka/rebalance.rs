//! The callbacks of a group member, and what they may do.
//!
//! librdkafka calls them inside `poll`, on the poll thread, and waits for an (un)assign of ours
//! before the rebalance goes on. The override copies the list and returns, so that a revoked
//! partition stays ours, and can be committed, until the driver lets go of it (R4b, D-G4).
//!
//! Invariant: a revocation is answered in the callback only when the partition is gone anyway:
//! lost, the client is closing, or a restart has just answered it by accident (see
//! [`Group::restarting`]). Otherwise dropping a consumer, which polls until it is closed, hangs.
//! Invariant: only what is in the client's assignment is taken out of it; librdkafka refuses the
//! whole list otherwise, and the rebalance would never end.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millrace_core::position::{Partition, Position};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, Statistics, TopicPartitionList};
use tracing::{debug, error, info, warn};

use super::ffi;
use super::secrets::Renewing;
use super::settings::Settings;

/// A consumer that is, or wants to be, a member of a group.
pub(super) type Client = BaseConsumer<MemberContext>;

/// Something that a callback saw.
#[derive(Debug)]
pub(super) enum Seen {
    /// The group gave us these.
    Assigned(Vec<Partition>, ffi::Identity),
    /// The group wants these back.
    Revoking(Vec<Partition>),
    /// These are gone and unassigned.
    Lost(Vec<Partition>),
    /// A commit of ours ended.
    Committed {
        result: Option<RDKafkaErrorCode>,
        entries: Vec<ffi::Entry>,
    },
    /// An error of the client as a whole, or of a partition.
    Error(RDKafkaErrorCode, String),
}

/// What the callbacks and the poll thread share. Both run on the poll thread.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// What the group gave us, assigned in the client or not.
    pub(super) granted: HashSet<Partition>,
    /// What is assigned in the client.
    pub(super) assigned: HashSet<Partition>,
    /// A revocation that waits for the driver, and what it has let go of so far.
    pub(super) revoking: Option<Revoking>,
    /// The client is about to be destroyed.
    pub(super) closing: bool,
    /// An unassign that answers no revocation is under way. If one was already queued, librdkafka
    /// took our unassign for its answer, so that what it names is gone.
    pub(super) restarting: bool,
    /// Statistics in a row that show no connected broker; `None`: not known yet.
    pub(super) alone: Option<u32>,
    /// Partitions of which everything below this position was fetched and taken, as of the last
    /// statistics; `None`: nothing new.
    pub(super) drained: Option<HashMap<Partition, Position>>,
    /// The last error of the client as a whole, for people.
    pub(super) last_error: String,
    /// In order.
    pub(super) seen: Vec<Seen>,
}

/// A revocation that the driver has not completed yet.
#[derive(Debug)]
pub(super) struct Revoking {
    pub(super) asked: HashSet<Partition>,
    pub(super) released: HashSet<Partition>,
}

/// Context of a member's client.
#[derive(Debug, Default)]
pub(super) struct MemberContext {
    group: Mutex<Group>,
    served: AtomicU64,
    /// Its renewed password.
    pub(super) renewing: Renewing,
}

impl MemberContext {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            renewing: Renewing::of(settings),
            ..Self::default()
        }
    }

    /// The state of the membership.
    pub(super) fn group(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many callbacks were served; tells an empty queue from a served event.
    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn serve(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }
}

/// A list as librdkafka wants it.
pub(super) fn list<'a>(
    partitions: impl IntoIterator<Item = (&'a Partition, Offset)>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        let mut element = list.add_partition(partition.topic(), partition.number());
        if let Err(error) = element.set_offset(offset) {
            // Only a negative offset is refused, and the list then keeps "invalid".
            error!(%partition, %error, "position cannot be given to the client");
        }
    }
    list
}

/// Takes out of the client's assignment what is in it, in one call.
pub(super) fn unassign<'a>(
    client: &Client,
    group: &mut Group,
    partitions: impl IntoIterator<Item = &'a Partition>,
) {
    let leaving: Vec<Partition> = partitions
        .into_iter()
        .filter(|partition| group.assigned.remove(*partition))
        .cloned()
        .collect();
    let list = list(leaving.iter().map(|partition| (partition, Offset::Invalid)));
    if let Err(error) = client.incremental_unassign(&list) {
        warn!(%error, "the client did not unassign");
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(
        &self,
        client: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        self.serve();
        let partitions: Vec<Partition> = ffi::entries(list)
            .into_iter()
            .map(|entry| entry.partition)
            .collect();
        let mut group = self.group();
        if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // An empty assign completes the rebalance: what we have goes on while the tokens
            // of what is new are read. The new partitions are assigned with their positions
            // later, which librdkafka allows at any time.
            if let Err(error) = client.incremental_assign(&TopicPartitionList::new()) {
                warn!(%error, "the client did not complete the assignment");
            }
            if group.closing {
                return;
            }
            let identity = ffi::identity(client.client()).unwrap_or(ffi::Identity {
                generation: -1,
                member: String::new(),
            });
            group.granted.extend(partitions.iter().cloned());
            group.seen.push(Seen::Assigned(partitions, identity));
            return;
        }
        let gone = group.closing || group.restarting || client.assignment_lost();
        if gone || partitions.is_empty() {
            unassign(client, &mut group, &partitions);
            for partition in &partitions {
                group.granted.remove(partition);
            }
            group.revoking = None;
            if !group.closing && !partitions.is_empty() {
                group.seen.push(Seen::Lost(partitions));
            }
            return;
        }
        group.revoking = Some(Revoking {
            asked: partitions.iter().cloned().collect(),
            released: HashSet::new(),
        });
        group.seen.push(Seen::Revoking(partitions));
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        self.serve();
        let result = result.err().map(|error| {
            error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::Unknown)
        });
        let entries = ffi::entries(offsets);
        self.group().seen.push(Seen::Committed { result, entries });
    }
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.serve();
        log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.serve();
        let connected = statistics
            .brokers
            .values()
            .any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        {
            let mut group = self.group();
            group.alone = Some(match group.alone {
                _ if connected => 0,
                alone => alone.unwrap_or(0) + 1,
            });
        }
        let mut drained = HashMap::new();
        for (topic, of) in statistics.topics {
            let topic: Arc<str> = topic.into();
            for (number, partition) in of.partitions {
                // -1 is what librdkafka calls a partition that it has not met.
                let known = number >= 0 && partition.ls_offset >= 0;
                let all = partition.next_offset >= partition.ls_offset && partition.fetchq_cnt == 0;
                if known && all {
                    let partition_of = Partition::new(Arc::clone(&topic), number);
                    drained.insert(partition_of, Position::new(partition.ls_offset));
                }
            }
        }
        self.group().drained = Some(drained);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.serve();
        if let Some(code) = error.rdkafka_error_code() {
            let mut group = self.group();
            reason.clone_into(&mut group.last_error);
            group.seen.push(Seen::Error(code, reason.to_owned()));
        }
    }
}

/// Passes a log line of librdkafka on. Its warnings are about single connections, which
/// it repairs by itself, so they are `info` here; errors come as happenings too.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning
            if facility != "CONFWARN" =>
        {
            info!(target: "librdkafka", facility, "{message}");
        }
        _ => debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// Context of clients whose errors come back as results: only logs.
#[derive(Clone, Debug, Default)]
pub(super) struct QuietContext;

impl ClientContext for QuietContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(target: "librdkafka", %error, reason);
    }
}

impl ConsumerContext for QuietContext {}

/// The shared handle of a member's client.
pub(super) type SharedClient = Arc<Client>;
