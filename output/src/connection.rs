//! From the block document to the clients' settings.

use std::net::SocketAddr;

use millrace_connectors::kafka;
use millrace_core::contract::block::{
    self, Block, Connection, EmbeddedConnection, KafkaConnection, KafkaOutput, OutputSink,
};
use millrace_service::config;
use millrace_service::secret;

/// Why a block cannot be published by this version, or with this environment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that the document may ask for, and that is not built yet.
    #[error("{0} is not in this version")]
    NotInThisVersion(&'static str),
    /// An embedded connection without anybody who runs that broker.
    #[error("connections.{0} is embedded: only `millrace dev` runs such a broker; name a kafka connection instead")]
    Embedded(String),
    /// A password cannot be read.
    #[error("connections.{connection}.kafka.sasl.password cannot be read")]
    Secret {
        /// Which connection.
        connection: String,
        /// Why.
        #[source]
        source: secret::Error,
    },
    /// Name or password is missing.
    #[error("connections.{0}.kafka.sasl needs username and password")]
    Incomplete(String),
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

/// Reads the output's part of the document. `embedded` is where `millrace dev` runs its broker.
pub(crate) fn broker(
    block: &Block,
    embedded: Option<SocketAddr>,
    variables: &config::Environment,
) -> Result<Broker, Error> {
    let OutputSink::Kafka(output) = &block.output.sink else {
        return Err(Error::NotInThisVersion("output.eventHubs"));
    };
    let name = output.connection.clone();
    let settings = match block.output_connection() {
        Connection::Kafka(connection) => kafka_settings(&name, connection, variables)?,
        Connection::Embedded(EmbeddedConnection { .. }) => {
            let address = embedded.ok_or_else(|| Error::Embedded(name.clone()))?;
            kafka::Settings::plain(address.to_string(), CLIENT_ID)
        }
        Connection::EventHubs(_) => return Err(Error::NotInThisVersion("an eventHubs connection")),
    };
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
    };
    Ok(Broker { name, settings, producer, output: output.clone() })
}

/// What brokers write into their logs about us.
const CLIENT_ID: &str = "millrace-output";

fn kafka_settings(
    name: &str,
    connection: &KafkaConnection,
    variables: &config::Environment,
) -> Result<kafka::Settings, Error> {
    Ok(kafka::Settings {
        bootstrap: connection.bootstrap.clone(),
        client_id: CLIENT_ID.to_owned(),
        tls: match &connection.tls {
            block::Tls::Off => kafka::Tls::Off,
            block::Tls::System => kafka::Tls::System,
            block::Tls::Files { ca, pair } => kafka::Tls::Files { ca: ca.clone(), pair: pair.clone() },
        },
        sasl: match &connection.sasl {
            Some(sasl) => Some(self::sasl(name, sasl, variables)?),
            None => None,
        },
        properties: connection.properties.clone().into_iter().collect(),
    })
}

fn sasl(name: &str, sasl: &block::Sasl, variables: &config::Environment) -> Result<kafka::Sasl, Error> {
    let mechanism = match sasl.mechanism {
        block::Mechanism::Plain => kafka::Mechanism::Plain,
        block::Mechanism::ScramSha256 => kafka::Mechanism::ScramSha256,
        block::Mechanism::ScramSha512 => kafka::Mechanism::ScramSha512,
        block::Mechanism::OAuthBearer => {
            return Err(Error::NotInThisVersion("sasl.mechanism OAuthBearer"));
        }
    };
    let (Some(username), Some(password)) = (&sasl.username, &sasl.password) else {
        return Err(Error::Incomplete(name.to_owned()));
    };
    let password = secret::read(password, variables)
        .map_err(|source| Error::Secret { connection: name.to_owned(), source })?;
    Ok(kafka::Sasl {
        mechanism,
        username: username.clone(),
        password: password.expose().to_owned(),
    })
}
