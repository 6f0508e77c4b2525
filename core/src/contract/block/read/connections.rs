//! Reads `connections`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::Scope;
use crate::contract::block::connection::{
    BlobStore, ClientSecret, Connection, EmbeddedConnection, Entra, EventHubsAuth,
    EventHubsConnection, KafkaConnection, Mechanism, OAuth, Preset, Sasl, Tls,
};
use crate::contract::block::properties;
use crate::contract::block::values::Secret;

pub(super) fn all(top: &Scope<'_>) -> BTreeMap<String, Connection> {
    let scope = top.inside("connections");
    let names = top.get("connections");
    let names = names.as_object().into_iter().flat_map(|map| map.keys());
    names
        .filter_map(|name| Some((name.clone(), connection(&scope.named(name))?)))
        .collect()
}

fn connection(scope: &Scope<'_>) -> Option<Connection> {
    let [kafka, event_hubs, embedded] =
        ["kafka", "eventHubs", "embedded"].map(|name| scope.inside(name));
    if kafka.is_there() {
        Some(Connection::Kafka(kafka_connection(&kafka)))
    } else if event_hubs.is_there() {
        Some(Connection::EventHubs(event_hubs_connection(&event_hubs)))
    } else {
        embedded.is_there().then(|| {
            Connection::Embedded(EmbeddedConnection {
                path: embedded.filled("path").map(PathBuf::from),
                memory_max: embedded.size("memoryMax").unwrap_or_default(),
            })
        })
    }
}

/// Stands for a secret that is missing, which the rules refuse.
fn missing() -> Secret {
    Secret::Env(String::new())
}

fn kafka_connection(scope: &Scope<'_>) -> KafkaConnection {
    let preset = scope.word("preset").unwrap_or(Preset::None);
    let properties = scope.get("properties");
    let properties = properties.as_object().into_iter().flatten();
    KafkaConnection {
        bootstrap: scope.texts("bootstrap"),
        preset,
        transactions: scope
            .get("transactions")
            .as_bool()
            .unwrap_or(preset == Preset::None),
        tls: tls(scope),
        sasl: Some(scope.inside("sasl"))
            .filter(Scope::is_there)
            .map(|scope| sasl(&scope)),
        properties: properties
            .filter_map(|(name, value)| Some((name.clone(), properties::text(value)?)))
            .collect(),
    }
}

fn tls(scope: &Scope<'_>) -> Tls {
    match scope.get("tls") {
        Value::String(word) if word == "Off" => Tls::Off,
        Value::Object(_) => {
            let file = |name: &str| scope.filled(name).map(PathBuf::from);
            Tls::Files {
                ca: file("tls.ca"),
                pair: file("tls.cert").zip(file("tls.key")),
            }
        }
        _ => Tls::System,
    }
}

fn sasl(scope: &Scope<'_>) -> Sasl {
    let oauth = scope.inside("oauth");
    Sasl {
        mechanism: scope.word("mechanism").unwrap_or(Mechanism::Plain),
        username: scope.filled("username"),
        password: scope.secret("password"),
        oauth: oauth.is_there().then(|| OAuth {
            token_url: oauth.text("tokenUrl"),
            client_id: oauth.text("clientId"),
            client_secret: oauth.secret("clientSecret").unwrap_or_else(missing),
            scope: oauth.filled("scope"),
        }),
        entra: scope.word("entra").unwrap_or(Entra::None),
    }
}

fn event_hubs_connection(scope: &Scope<'_>) -> EventHubsConnection {
    let checkpoints = scope.inside("checkpoints");
    EventHubsConnection {
        namespace: scope.text("namespace"),
        auth: match scope.text("auth").as_str() {
            "ManagedIdentity" => EventHubsAuth::ManagedIdentity,
            "WorkloadIdentity" => EventHubsAuth::WorkloadIdentity,
            "AzureCli" => EventHubsAuth::AzureCli,
            "ClientSecret" => EventHubsAuth::ClientSecret(ClientSecret {
                tenant_id: scope.text("clientSecret.tenantId"),
                client_id: scope.text("clientSecret.clientId"),
                secret: scope.secret("clientSecret.secret").unwrap_or_else(missing),
            }),
            _ => EventHubsAuth::ConnectionString(
                scope.secret("connectionString").unwrap_or_else(missing),
            ),
        },
        endpoint: scope.filled("endpoint"),
        checkpoints: checkpoints.is_there().then(|| BlobStore {
            url: checkpoints.text("url"),
            sas: checkpoints.secret("sas"),
        }),
        ownership_expiry: scope.duration("ownershipExpiry"),
    }
}
