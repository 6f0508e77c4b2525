//! Kafka and what speaks its protocol, over librdkafka.
//!
//! librdkafka decides when a commit or a record really leaves. Nothing here relies on the moment
//! of a call, only on a callback or on the destruction of a client (B-K7).

mod admin;
mod auth_tokens;
mod classify;
mod consumer;
mod document;
mod ends;
mod ffi;
mod partition;
mod poll_thread;
mod producer;
mod reader;
mod rebalance;
mod secrets;
mod session;
mod settings;
mod token_endpoint;
mod token_reader;
mod tokens;
mod transactions;

pub use admin::{Admin, Member, TopicInfo};
pub use auth_tokens::{AuthTokens, Clock};
pub use consumer::KafkaSource;
pub use document::DocumentError;
pub use ends::LogEnds;
pub use producer::{EndOfTransaction, KafkaSink};
pub use reader::{Reader, Start, Until};
pub use secrets::{Password, Remakes};
pub use settings::{
    Compression, Error, GroupSettings, Mechanism, ProducerSettings, Sasl, Settings, Tls,
    TransactionSettings, refusal,
};
pub use tokens::KafkaTokenStore;
pub use transactions::{Ending, TransactionEnd, Unfenced, prove_fencing};
