//! From a connection of the block document to what a client is made of.

use millrace_core::contract::block::{self, Connection};

use super::settings::{Mechanism, Sasl, Settings, Tls};

/// A connection of the document cannot be used by this version, or not from here.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Only `millrace dev` starts the embedded broker.
    #[error(
        "an embedded connection exists only under `millrace dev`; name brokers under \
         connections.<name>.kafka.bootstrap"
    )]
    Embedded,
    /// Event Hubs over AMQP.
    #[error(
        "this version reads Event Hubs over its Kafka endpoint only; use kafka with preset EventHubs"
    )]
    EventHubs,
    /// Tokens instead of passwords.
    #[error("this version knows sasl.mechanism Plain, ScramSha256 and ScramSha512")]
    Mechanism,
    /// Who are we?
    #[error("sasl needs username and password")]
    Credentials,
    /// The password cannot be read.
    #[error("the password cannot be read")]
    Password(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Settings {
    /// What the document says about a connection. Secrets are read by `password`.
    pub fn of<E>(
        connection: &Connection,
        client_id: &str,
        password: impl FnOnce(&block::Secret) -> Result<String, E>,
    ) -> Result<Self, DocumentError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let kafka = match connection {
            Connection::Kafka(kafka) => kafka,
            Connection::Embedded(_) => return Err(DocumentError::Embedded),
            Connection::EventHubs(_) => return Err(DocumentError::EventHubs),
        };
        Ok(Self {
            bootstrap: kafka.bootstrap.clone(),
            client_id: client_id.to_owned(),
            tls: match &kafka.tls {
                block::Tls::Off => Tls::Off,
                block::Tls::System => Tls::System,
                block::Tls::Files { ca, pair } => Tls::Files {
                    ca: ca.clone(),
                    pair: pair.clone(),
                },
            },
            sasl: kafka
                .sasl
                .as_ref()
                .map(|sasl| credentials(sasl, password))
                .transpose()?,
            properties: kafka.properties.clone().into_iter().collect(),
        })
    }
}

fn credentials<E>(
    sasl: &block::Sasl,
    password: impl FnOnce(&block::Secret) -> Result<String, E>,
) -> Result<Sasl, DocumentError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mechanism = match sasl.mechanism {
        block::Mechanism::Plain => Mechanism::Plain,
        block::Mechanism::ScramSha256 => Mechanism::ScramSha256,
        block::Mechanism::ScramSha512 => Mechanism::ScramSha512,
        block::Mechanism::OAuthBearer => return Err(DocumentError::Mechanism),
    };
    let (Some(username), Some(secret)) = (&sasl.username, &sasl.password) else {
        return Err(DocumentError::Credentials);
    };
    Ok(Sasl {
        mechanism,
        username: username.clone(),
        password: password(secret).map_err(|error| DocumentError::Password(Box::new(error)))?,
    })
}
