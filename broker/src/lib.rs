//! A single-node broker that speaks the Kafka protocol, to be started inside a program: for
//! `millrace dev`, the demo and tests. It serves its own machine only; production is Kafka
//! or Event Hubs.
//!
//! ```no_run
//! use millrace_broker::{Broker, Options};
//!
//! let broker = Broker::start(Options::memory())?;
//! broker.create_topic("orders", 4, &[])?;
//! println!("bootstrap.servers={}", broker.bootstrap());
//! broker.shutdown()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! How a request runs: `server` reads a frame, `wire` and `shape` make it a request, `faults`
//! may spoil it, a function in `api` calls `state`, which holds topics (`log`), `groups` and
//! `transactions` under one lock and writes what must last into the `journal`.
//!
//! Known differences from Apache Kafka: no compaction; a search by time inside a compressed
//! batch finds the batch, not the record; committed offsets of idle groups do not expire.
#![forbid(unsafe_code)]

mod api;
mod batch;
mod broker;
mod faults;
mod groups;
mod ids;
mod journal;
mod keeper;
mod limits;
mod log;
mod options;
mod server;
mod settings;
mod shape;
mod state;
mod topics;
mod transactions;
mod wire;

pub use broker::{Broker, CommittedOffset, PartitionSummary, StartError, StopError, TopicSummary};
pub use faults::{Fault, FaultId, Faults, Target, Times};
pub use kafka_protocol::ResponseError;
pub use kafka_protocol::messages::ApiKey;
pub use keeper::OpenError;
pub use options::{Listen, Options, Retention, Storage};
pub use topics::TopicError;
