//! From a connection of the block document to what a client is made of.

use millrace_core::contract::block::{self, Connection};

use super::secrets::{Password, Remakes};
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
    /// Tokens of Microsoft Entra.
    #[error("this version takes tokens from sasl.oauth only, not from sasl.entra")]
    Entra,
    /// Who are we?
    #[error("sasl needs username and password, or oauth with mechanism OAuthBearer")]
    Credentials,
    /// The password cannot be read.
    #[error("the password cannot be read")]
    Password(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Settings {
    /// What the document says about a connection. Its secret is read by `password`.
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
        let (mut sasl, mut oauth_secret) = (None, None);
        let mut properties: Vec<(String, String)> = kafka.properties.clone().into_iter().collect();
        match &kafka.sasl {
            None => {}
            Some(block) if block.mechanism == block::Mechanism::OAuthBearer => {
                let (token, secret) = tokens(block, password)?;
                properties.extend(token);
                oauth_secret = Some(secret);
            }
            Some(block) => sasl = Some(credentials(block, password)?),
        }
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
            sasl,
            oauth_secret,
            remakes: Remakes::default(),
            properties,
        })
    }
}

/// What makes librdkafka fetch tokens from an OIDC endpoint, and renew them in time (D-P2).
fn tokens<E>(
    sasl: &block::Sasl,
    secret: impl FnOnce(&block::Secret) -> Result<String, E>,
) -> Result<(Vec<(String, String)>, Password), DocumentError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    if sasl.entra != block::Entra::None {
        return Err(DocumentError::Entra);
    }
    let oauth = sasl.oauth.as_ref().ok_or(DocumentError::Credentials)?;
    let secret =
        secret(&oauth.client_secret).map_err(|error| DocumentError::Password(Box::new(error)))?;
    let mut properties = vec![
        ("sasl.mechanism", "OAUTHBEARER".to_owned()),
        ("sasl.oauthbearer.method", "oidc".to_owned()),
        (
            "sasl.oauthbearer.token.endpoint.url",
            oauth.token_url.clone(),
        ),
        ("sasl.oauthbearer.client.id", oauth.client_id.clone()),
        // The vendored OpenSSL knows no default place of roots (B-K2).
        ("https.ca.location", "probe".to_owned()),
    ];
    if let Some(scope) = &oauth.scope {
        properties.push(("sasl.oauthbearer.scope", scope.clone()));
    }
    let properties = properties
        .into_iter()
        .map(|(property, value)| (property.to_owned(), value));
    Ok((properties.collect(), secret.into()))
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
        block::Mechanism::OAuthBearer => return Err(DocumentError::Credentials),
    };
    let (Some(username), Some(secret)) = (&sasl.username, &sasl.password) else {
        return Err(DocumentError::Credentials);
    };
    Ok(Sasl {
        mechanism,
        username: username.clone(),
        password: password(secret)
            .map_err(|error| DocumentError::Password(Box::new(error)))?
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use rdkafka::consumer::BaseConsumer;
    use serde_json::json;

    use super::super::rebalance::QuietContext;
    use super::super::settings::{Role, client_config};
    use super::*;

    fn settings(kafka: &serde_json::Value) -> Result<Settings, DocumentError> {
        let document = json!({
            "identity": "local/demo/iris",
            "connections": {"main": {"kafka": kafka}},
            "input": {"kafka": {"connection": "main", "topics": ["t"], "startAt": "Earliest"}},
            "output": {"kafka": {"connection": "main", "topic": "u"}},
            "app": {"shadow": "Safe", "local": {"command": ["app"]}},
        });
        let block = block::Block::parse(&document).expect("the document is valid");
        Settings::of(block.input_connection(), "test", |_| {
            Ok::<_, std::io::Error>("geheim".to_owned())
        })
    }

    #[test]
    fn d_p1_a_connection_becomes_settings() {
        let settings = settings(&json!({
            "bootstrap": ["a:1", "b:2"],
            "tls": "System",
            "sasl": {"mechanism": "ScramSha256", "username": "u", "password": {"env": "P"}},
            "properties": {"fetch.wait.max.ms": 17},
        }))
        .unwrap();
        assert_eq!(settings.bootstrap, ["a:1", "b:2"]);
        assert_eq!(settings.tls, Tls::System);
        let sasl = settings.sasl.unwrap();
        assert_eq!(sasl.mechanism, Mechanism::ScramSha256);
        assert_eq!(
            (sasl.username.as_str(), sasl.password),
            ("u", "geheim".into())
        );
        let property = ("fetch.wait.max.ms".to_owned(), "17".to_owned());
        assert_eq!(settings.properties, [property]);
    }

    #[test]
    fn d_p2_a_client_with_oauth_asks_the_endpoint_for_a_token() {
        let endpoint = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", endpoint.local_addr().unwrap());
        let settings = settings(&json!({
            "bootstrap": ["127.0.0.1:1"],
            "tls": "Off",
            "sasl": {
                "mechanism": "OAuthBearer",
                "oauth": {"tokenUrl": url, "clientId": "me", "clientSecret": {"env": "S"}},
            },
        }))
        .unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = endpoint.accept().unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let mut request = [0; 4_096];
            let length = stream.read(&mut request).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let config = client_config(&settings, Role::Outsider(None)).unwrap();
        assert_eq!(config.get("security.protocol"), Some("sasl_plaintext"));
        let client: BaseConsumer<QuietContext> = config.create_with_context(QuietContext).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !asked.is_finished() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the endpoint was not asked"
            );
            client.poll(Duration::from_millis(50));
        }
        let request = asked.join().unwrap();
        assert!(request.starts_with("POST /token"), "{request}");
    }
}
