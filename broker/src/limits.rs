//! Every cap of the broker in one place. No cap, no design.

use std::time::Duration;

/// The largest request that is read from a connection.
pub(crate) const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;

/// The most items one array of a request may hold. The codec allocates an array before it
/// reads it, so an unchecked length of a broken client could take the whole process down.
pub(crate) const ARRAY_ITEMS_MAX: usize = 100_000;

/// The most bytes of records in one answer to a fetch, one oversized batch aside.
pub(crate) const FETCH_BYTES_MAX: usize = 55 * 1024 * 1024;

/// The longest a fetch may wait for data.
pub(crate) const FETCH_WAIT_MAX: Duration = Duration::from_secs(300);

/// Connections served at the same time; further ones are closed at once.
pub(crate) const CONNECTIONS_MAX: usize = 1_024;

/// Topics of one broker.
pub(crate) const TOPICS_MAX: usize = 10_000;

/// Partitions of one topic.
pub(crate) const PARTITIONS_MAX: i32 = 10_000;

/// Letters in a topic name, as in Apache Kafka.
pub(crate) const TOPIC_NAME_LETTERS_MAX: usize = 249;

/// Groups of one broker.
pub(crate) const GROUPS_MAX: usize = 100_000;

/// Members of one group.
pub(crate) const MEMBERS_MAX: usize = 10_000;

/// Transactional ids of one broker.
pub(crate) const TRANSACTIONAL_IDS_MAX: usize = 100_000;

/// Batches remembered per producer and partition to recognise a repeated one.
pub(crate) const PRODUCER_BATCHES_MAX: usize = 5;

/// A producer that has been silent for so long is forgotten.
pub(crate) const PRODUCER_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What one stored batch costs in memory beyond its bytes.
pub(crate) const BATCH_OVERHEAD_BYTES: u64 = 128;

/// A partition file is rewritten when its deleted head is at least this long and longer
/// than what is alive.
pub(crate) const DEAD_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// The journal is rewritten as a snapshot when it is longer than this and has grown
/// fourfold since the last snapshot.
pub(crate) const JOURNAL_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// The longest entry of the journal.
pub(crate) const JOURNAL_ENTRY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Producer ids taken from the journal at a time.
pub(crate) const PRODUCER_IDS_RESERVED: i64 = 1_000;

/// How often sessions, rebalances and transactions are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(25);

/// A pause between two looks at the clock that counts as a stall of the broker itself.
pub(crate) const STALL_MIN: Duration = Duration::from_secs(1);

/// How often retention is applied.
pub(crate) const RETENTION_TICK: Duration = Duration::from_secs(1);

/// How long a stopping broker waits for a sync that is still running.
pub(crate) const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
