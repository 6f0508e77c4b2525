//! What a broker is started with. Plain values; nothing is read from the environment.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

/// How to start a broker. Begin with [`Options::memory`] or [`Options::files`] and change
/// the fields that matter.
#[derive(Debug)]
pub struct Options {
    /// Where to listen. Only loopback addresses are accepted.
    pub listen: Listen,
    /// Where records live.
    pub storage: Storage,
    /// Create a topic when a client asks for its metadata.
    pub auto_create_topics: bool,
    /// Partitions of a topic created without a number.
    pub default_partitions: i32,
    /// The largest record batch, in bytes, unless the topic says otherwise.
    pub message_bytes_max: i32,
    /// What may be deleted, unless the topic says otherwise.
    pub retention: Retention,
    /// The longest metadata string of a committed offset, in bytes.
    pub offset_metadata_bytes_max: usize,
    /// How long the first rebalance of an empty group waits for more members.
    pub initial_rebalance_delay: Duration,
    /// The shortest session time-out a member may ask for.
    pub session_timeout_min: Duration,
    /// The longest session time-out a member may ask for.
    pub session_timeout_max: Duration,
    /// The longest time-out a transactional producer may ask for.
    pub transaction_timeout_max: Duration,
}

/// The address a broker listens on.
#[derive(Debug)]
pub enum Listen {
    /// 127.0.0.1 with this port if it is free, else with any free port.
    Preferred(u16),
    /// Exactly this address; starting fails if it is taken.
    Exact(SocketAddr),
    /// A listener that the caller has bound.
    Bound(TcpListener),
}

/// Where records live.
#[derive(Debug, Clone)]
pub enum Storage {
    /// In memory, gone with the broker. A produce that would pass the cap is refused;
    /// nothing stored is dropped to make room.
    Memory {
        /// The cap over all partitions.
        bytes_max: u64,
    },
    /// In a folder that belongs to this broker alone.
    Files {
        /// The folder; it is created if it is missing.
        path: PathBuf,
        /// Whether an answer waits until the data is on the device. Without it the data
        /// survives a crash of the process, not of the machine.
        fsync: bool,
    },
}

/// How long records are kept. `None` means for ever.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Bytes per partition.
    pub bytes: Option<u64>,
    /// Age by the records' timestamps.
    pub age: Option<Duration>,
}

impl Options {
    /// A broker in memory on any free port: what tests want.
    pub fn memory() -> Options {
        Options::with(
            Storage::Memory {
                bytes_max: 1024 * 1024 * 1024,
            },
            Listen::Preferred(0),
        )
    }

    /// A broker with files in `path`, on port 9092 if that is free: what a laptop wants.
    pub fn files(path: impl Into<PathBuf>) -> Options {
        Options::with(
            Storage::Files {
                path: path.into(),
                fsync: false,
            },
            Listen::Preferred(9092),
        )
    }

    fn with(storage: Storage, listen: Listen) -> Options {
        Options {
            listen,
            storage,
            auto_create_topics: true,
            default_partitions: 4,
            message_bytes_max: 1_048_588,
            retention: Retention {
                bytes: None,
                age: None,
            },
            offset_metadata_bytes_max: 4096,
            initial_rebalance_delay: Duration::ZERO,
            session_timeout_min: Duration::from_secs(6),
            session_timeout_max: Duration::from_secs(1800),
            transaction_timeout_max: Duration::from_secs(900),
        }
    }
}
