//! Rules of connections, and of those who use them.

use super::{Checker, is_missing};
use crate::contract::block::connection::{
    Connection, Entra, EventHubsAuth, EventHubsConnection, KafkaConnection, Mechanism, Preset,
    Sasl, Tls,
};
use crate::contract::block::problem::Problem;
use crate::contract::block::{Block, Compression, InputSource, OutputSink};

/// What a use wants of its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Kafka,
    EventHubs,
}

pub(super) fn check(check: &mut Checker<'_>, block: &Block) {
    let names = names(check);
    for name in &names {
        let path = format!("connections.{name}");
        check.exactly_one(&path, &["kafka", "eventHubs", "embedded"]);
        match block.connections.get(name) {
            Some(Connection::Kafka(kafka)) => {
                kafka_connection(check, &format!("{path}.kafka"), kafka)
            }
            Some(Connection::EventHubs(hubs)) => {
                event_hubs(check, &format!("{path}.eventHubs"), hubs)
            }
            Some(Connection::Embedded(_)) | None => {}
        }
    }
    check.exactly_one("input", &["kafka", "eventHubs"]);
    check.exactly_one("output", &["kafka", "eventHubs"]);
    match &block.input.source {
        InputSource::Kafka(input) => {
            used(
                check,
                block,
                &names,
                "input.kafka.connection",
                &input.connection,
                Wants::Kafka,
            );
            check.distinct("input.kafka.topics", &input.topics);
        }
        InputSource::EventHubs(input) => {
            used(
                check,
                block,
                &names,
                "input.eventHubs.connection",
                &input.connection,
                Wants::EventHubs,
            );
            check.distinct("input.eventHubs.consumerGroups", &input.consumer_groups);
            let path = format!("connections.{}.eventHubs.checkpoints", input.connection);
            let bare = matches!(block.connections.get(&input.connection), Some(Connection::EventHubs(hubs)) if hubs.checkpoints.is_none());
            check.refuse_if(bare, &[&path], || {
                Problem::new(
                    &path,
                    "nothing",
                    "a section with url, required by input.eventHubs",
                )
                .because("positions and tokens are kept there")
            });
        }
    }
    match &block.output.sink {
        OutputSink::Kafka(output) => {
            used(
                check,
                block,
                &names,
                "output.kafka.connection",
                &output.connection,
                Wants::Kafka,
            );
            compression(check, block, &output.connection, output.compression);
        }
        OutputSink::EventHubs(output) => {
            used(
                check,
                block,
                &names,
                "output.eventHubs.connection",
                &output.connection,
                Wants::EventHubs,
            );
        }
    }
}

fn names(check: &Checker<'_>) -> Vec<String> {
    let map = check
        .found
        .values
        .get("connections")
        .and_then(|value| value.as_object());
    map.into_iter()
        .flat_map(|map| map.keys().cloned())
        .collect()
}

fn used(
    check: &mut Checker<'_>,
    block: &Block,
    names: &[String],
    key: &str,
    name: &str,
    wants: Wants,
) {
    let unknown = !name.is_empty() && !names.iter().any(|known| known == name);
    check.refuse_if(unknown, &[key], || {
        let nearest = names
            .iter()
            .find(|known| known.eq_ignore_ascii_case(name))
            .cloned();
        Problem {
            nearest,
            ..Problem::new(
                key,
                format!("{name:?}"),
                format!("one of connections: {}", names.join(", ")),
            )
        }
    });
    let has = match block.connections.get(name) {
        None => return,
        Some(Connection::EventHubs(_)) => Wants::EventHubs,
        Some(Connection::Kafka(_) | Connection::Embedded(_)) => Wants::Kafka,
    };
    check.refuse_if(has != wants, &[key], || {
        let allowed = match wants {
            Wants::Kafka => "a connection with kafka or embedded",
            Wants::EventHubs => "a connection with eventHubs",
        };
        Problem::new(key, format!("{name:?}"), allowed)
    });
}

fn compression(check: &mut Checker<'_>, block: &Block, name: &str, compression: Compression) {
    let preset = matches!(block.connections.get(name), Some(Connection::Kafka(kafka)) if kafka.preset == Preset::EventHubs);
    let key = "output.kafka.compression";
    check.refuse_if(
        preset && !matches!(compression, Compression::None | Compression::Gzip),
        &[key],
        || {
            Problem::new(
                key,
                check_shown(compression),
                "None; Gzip on Premium and Dedicated",
            )
            .because("D-C5: Event Hubs takes no other")
        },
    );
}

fn check_shown(compression: Compression) -> String {
    format!("{compression:?}")
}

fn kafka_connection(check: &mut Checker<'_>, path: &str, kafka: &KafkaConnection) {
    check.distinct(&format!("{path}.bootstrap"), &kafka.bootstrap);
    let half = matches!(&kafka.tls, Tls::Files { pair: None, .. })
        && ["cert", "key"]
            .iter()
            .any(|key| check.has(&format!("{path}.tls.{key}")));
    let tls = format!("{path}.tls");
    check.refuse_if(half, &[&tls], || {
        Problem::new(&tls, "one of cert and key", "both cert and key, or neither").because("D-P1")
    });
    if let Some(login) = &kafka.sasl {
        sasl(check, &format!("{path}.sasl"), login);
    }
    let azure = kafka.preset == Preset::EventHubs;
    check.refuse_if(azure && kafka.tls == Tls::Off, &[&tls], || {
        Problem::new(&tls, "Off", "System, or a section")
            .because("D-C5: Event Hubs speaks TLS only")
    });
}

fn sasl(check: &mut Checker<'_>, path: &str, sasl: &Sasl) {
    let needs = |check: &mut Checker<'_>, missing: bool, key: &str, when: &str| {
        let key = format!("{path}.{key}");
        check.refuse_if(missing, &[&key, &format!("{path}.mechanism")], || {
            Problem::new(&key, "nothing", format!("a value, required with {when}")).because("D-P1")
        });
    };
    match sasl.mechanism {
        Mechanism::Plain | Mechanism::ScramSha256 | Mechanism::ScramSha512 => {
            needs(
                check,
                sasl.username.is_none(),
                "username",
                "Plain and Scram",
            );
            needs(
                check,
                sasl.password.is_none(),
                "password",
                "Plain and Scram",
            );
        }
        Mechanism::OAuthBearer if sasl.entra == Entra::None => match &sasl.oauth {
            None => needs(check, true, "oauth", "mechanism: OAuthBearer without entra"),
            Some(oauth) => {
                let when = "mechanism: OAuthBearer";
                needs(check, oauth.token_url.is_empty(), "oauth.tokenUrl", when);
                needs(check, oauth.client_id.is_empty(), "oauth.clientId", when);
                needs(
                    check,
                    is_missing(&oauth.client_secret),
                    "oauth.clientSecret",
                    when,
                );
            }
        },
        Mechanism::OAuthBearer => {}
    }
}

fn event_hubs(check: &mut Checker<'_>, path: &str, hubs: &EventHubsConnection) {
    let needs = |check: &mut Checker<'_>, missing: bool, key: &str, when: &str| {
        let key = format!("{path}.{key}");
        check.refuse_if(missing, &[&key, &format!("{path}.auth")], || {
            Problem::new(&key, "nothing", format!("a value, required with {when}")).because("E-C3")
        });
    };
    match &hubs.auth {
        EventHubsAuth::ConnectionString(secret) => {
            needs(
                check,
                is_missing(secret),
                "connectionString",
                "auth: ConnectionString",
            );
            return;
        }
        EventHubsAuth::ClientSecret(client) => {
            let when = "auth: ClientSecret";
            needs(
                check,
                client.tenant_id.is_empty(),
                "clientSecret.tenantId",
                when,
            );
            needs(
                check,
                client.client_id.is_empty(),
                "clientSecret.clientId",
                when,
            );
            needs(
                check,
                is_missing(&client.secret),
                "clientSecret.secret",
                when,
            );
        }
        EventHubsAuth::ManagedIdentity
        | EventHubsAuth::WorkloadIdentity
        | EventHubsAuth::AzureCli => {}
    }
    let nowhere = hubs.namespace.is_empty() && hubs.endpoint.is_none();
    needs(check, nowhere, "namespace", "any auth but ConnectionString");
}
