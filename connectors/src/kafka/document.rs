//! From a connection of the block document to what a client is made of.

use std::ffi::CString;

use millrace_core::contract::block::{self, Connection};

use super::auth_tokens::{AuthTokens, Clock};
use super::secrets::Remakes;
use super::settings::{Mechanism, Sasl, Settings, Tls};
use super::token_endpoint::{Roots, TokenEndpoint};

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
    /// Nobody can be asked there.
    #[error("sasl.oauth.tokenUrl is no http or https URL with a host")]
    TokenUrl,
    /// What brokers are told beside the token.
    #[error("the property sasl.oauthbearer.extensions is not NAME=VALUE[,NAME=VALUE]")]
    Extensions,
    /// The password cannot be read.
    #[error("the password cannot be read")]
    Password(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Settings {
    /// What the document says about a connection. Its secret is read by `password`; auth tokens
    /// live by `clock`.
    pub fn of<E>(
        connection: &Connection,
        client_id: &str,
        clock: Clock,
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
        let (mut sasl, mut auth_tokens) = (None, None);
        let properties: Vec<(String, String)> = kafka.properties.clone().into_iter().collect();
        match &kafka.sasl {
            None => {}
            Some(block) if block.mechanism == block::Mechanism::OAuthBearer => {
                auth_tokens = Some(tokens(block, &properties, clock, password)?);
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
            auth_tokens,
            remakes: Remakes::default(),
            properties,
        })
    }
}

/// Who gets tokens for the clients, and renews them in time (D-P2).
fn tokens<E>(
    sasl: &block::Sasl,
    properties: &[(String, String)],
    clock: Clock,
    secret: impl FnOnce(&block::Secret) -> Result<String, E>,
) -> Result<AuthTokens, DocumentError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    if sasl.entra != block::Entra::None {
        return Err(DocumentError::Entra);
    }
    let oauth = sasl.oauth.as_ref().ok_or(DocumentError::Credentials)?;
    let property = |name: &str| {
        let found = properties.iter().rfind(|(property, _)| property == name);
        found.map(|(_, value)| value.as_str())
    };
    // The properties that librdkafka has for an endpoint that it asks itself.
    let roots = match (property("https.ca.pem"), property("https.ca.location")) {
        (Some(pem), _) => Roots::Pem(pem.to_owned()),
        (None, Some("probe")) | (None, None) => Roots::System,
        (None, Some(path)) => Roots::File(path.into()),
    };
    let extensions = extensions(property("sasl.oauthbearer.extensions").unwrap_or_default())
        .ok_or(DocumentError::Extensions)?;
    let scope = oauth.scope.as_deref();
    let endpoint = TokenEndpoint::new(&oauth.token_url, &oauth.client_id, scope, roots)
        .ok_or(DocumentError::TokenUrl)?;
    let secret =
        secret(&oauth.client_secret).map_err(|error| DocumentError::Password(Box::new(error)))?;
    Ok(AuthTokens::new(endpoint, secret.into(), extensions, clock))
}

/// Names and values, as librdkafka spells them in one text.
fn extensions(text: &str) -> Option<Vec<(CString, CString)>> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            Some((CString::new(name).ok()?, CString::new(value).ok()?))
        })
        .collect()
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
    use std::time::Duration;

    use millrace_core::time::Time;
    use serde_json::json;

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
        Settings::of(block.input_connection(), "test", clock, |_| {
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

    fn clock() -> Time {
        Time {
            boot: Duration::from_secs(1),
            wall_ms: 0,
        }
    }

    fn with_tokens(url: &str, properties: &serde_json::Value) -> Result<Settings, DocumentError> {
        settings(&json!({
            "bootstrap": ["127.0.0.1:1"],
            "tls": "Off",
            "sasl": {
                "mechanism": "OAuthBearer",
                "oauth": {"tokenUrl": url, "clientId": "me", "clientSecret": {"env": "S"}},
            },
            "properties": properties,
        }))
    }

    #[test]
    fn d_p2_a_client_with_oauth_shows_tokens_that_we_get() {
        let settings = with_tokens("http://127.0.0.1:1/token", &json!({})).unwrap();
        let config = client_config(&settings, Role::Outsider(None)).unwrap();
        assert_eq!(config.get("security.protocol"), Some("sasl_plaintext"));
        assert_eq!(config.get("sasl.mechanism"), Some("OAUTHBEARER"));
        assert_eq!(config.get("sasl.oauthbearer.method"), None);
        let printed = format!("{settings:?}");
        assert!(!printed.contains("geheim"), "{printed}");
    }

    #[test]
    fn what_a_token_endpoint_needs_is_checked_before_it_is_asked() {
        let with = |extensions: &str| {
            let properties = json!({"sasl.oauthbearer.extensions": extensions});
            with_tokens("http://idp/token", &properties)
        };
        assert!(with("logicalCluster=lkc-1, identityPoolId=pool=2").is_ok());
        let refused = with("logicalCluster").unwrap_err();
        assert!(matches!(refused, DocumentError::Extensions), "{refused:?}");
    }

    #[test]
    fn extensions_are_pairs() {
        let text = |text: &str| CString::new(text).unwrap();
        assert_eq!(extensions(""), Some(vec![]));
        let pairs = vec![(text("a"), text("b=c")), (text("d"), text("e"))];
        assert_eq!(extensions("a=b=c, d=e"), Some(pairs));
        assert_eq!(extensions("a"), None);
    }
}
