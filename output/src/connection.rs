//! From the block document to the clients' settings.

use millrace_connectors::kafka;
use millrace_core::contract::block::{self, Block, KafkaOutput, OutputSink};
use millrace_service::config;
use millrace_service::secret;
use millrace_service::time::clock;

/// Why a block cannot be published by this version, or with this environment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Results go to Event Hubs over AMQP.
    #[error("output.eventHubs is not in this version; use output.kafka over the Kafka endpoint")]
    EventHubs,
    /// The connection cannot be used.
    #[error("connections.{connection} cannot be used")]
    Connection {
        /// Which.
        connection: String,
        /// Why.
        #[source]
        source: kafka::DocumentError,
    },
}

/// Everything that is needed to reach the output's brokers.
#[derive(Clone, Debug)]
pub(crate) struct Broker {
    /// The connection's name in the document.
    pub(crate) name: String,
    pub(crate) settings: kafka::Settings,
    pub(crate) producer: kafka::ProducerSettings,
    pub(crate) output: KafkaOutput,
}

/// Reads the output's part of the document.
pub(crate) fn broker(block: &Block, variables: &config::Environment) -> Result<Broker, Error> {
    let OutputSink::Kafka(output) = &block.output.sink else {
        return Err(Error::EventHubs);
    };
    let name = output.connection.clone();
    let password = |password: &block::Secret| {
        secret::read(password, variables).map(|text| text.expose().to_owned())
    };
    let settings = kafka::Settings::of(block.output_connection(), CLIENT_ID, clock, password)
        .map_err(|source| Error::Connection {
            connection: name.clone(),
            source,
        })?;
    let producer = kafka::ProducerSettings {
        compression: match output.compression {
            block::Compression::None => kafka::Compression::None,
            block::Compression::Gzip => kafka::Compression::Gzip,
            block::Compression::Snappy => kafka::Compression::Snappy,
            block::Compression::Lz4 => kafka::Compression::Lz4,
            block::Compression::Zstd => kafka::Compression::Zstd,
        },
        linger: output.linger,
        message_timeout: block.delivery.message_timeout,
        batch_bytes_max: None,
        transactions: None,
    };
    Ok(Broker {
        name,
        settings,
        producer,
        output: output.clone(),
    })
}

/// What brokers write into their logs about us.
const CLIENT_ID: &str = "millrace-output";
