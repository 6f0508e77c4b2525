//! librdkafka properties that people may pass through, and those that would break a rule (B-K5).

use serde_json::{Map, Value};

use super::problem::Problem;
use super::walk::{join, shown};

/// Properties that are refused, each with the rule's reason.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &[
            "enable.auto.commit",
            "auto.commit.interval.ms",
            "auto.commit.enable",
            "enable.auto.offset.store",
            "offset.store.method",
            "offset.store.path",
            "offset.store.sync.interval.ms",
        ],
        "D-W2: only the watermark is committed, by one function, with the token",
    ),
    (
        &["auto.offset.reset"],
        "D-G9: positions are never reset silently; use input.kafka.startAt and onDataLoss",
    ),
    (
        &["group.id"],
        "T3: the group is named after identity and release",
    ),
    (
        &["group.instance.id"],
        "R4: static members are handed over without the session wait, so two pods could answer live",
    ),
    (
        &["partition.assignment.strategy", "group.remote.assignor"],
        "D-G2: hand-overs need cooperative-sticky",
    ),
    (
        &["session.timeout.ms"],
        "R4: use delivery.sessionTimeout, which the lease is checked against",
    ),
    (
        &["transactional.id"],
        "D-E2: one transactional producer per pod, named by the output proxy",
    ),
    (
        &["transaction.timeout.ms"],
        "D-E3: use delivery.transaction.timeout",
    ),
    (
        &["enable.idempotence", "acks", "request.required.acks"],
        "D-O1: results are stored by all in-sync replicas, once and in order",
    ),
    (
        &["enable.gapless.guarantee"],
        "D-O1: one permanent error would make the producer fatal",
    ),
    (
        &["delivery.timeout.ms", "message.timeout.ms"],
        "R4: use delivery.messageTimeout, which the lease is checked against",
    ),
    (
        &["linger.ms", "queue.buffering.max.ms"],
        "D-O1: use output.kafka.linger",
    ),
    (
        &["compression.codec", "compression.type"],
        "D-O1: use output.kafka.compression",
    ),
    (
        &["message.max.bytes"],
        "D-O3: use output.kafka.maxBytes, which is checked before an event's first record",
    ),
    (
        &["bootstrap.servers", "metadata.broker.list"],
        "use bootstrap of the connection",
    ),
    (
        &["security.protocol"],
        "D-P1: it follows from tls and sasl of the connection",
    ),
    (
        &[
            "sasl.mechanism",
            "sasl.mechanisms",
            "sasl.username",
            "sasl.oauthbearer.method",
            "sasl.oauthbearer.client.id",
            "sasl.oauthbearer.token.endpoint.url",
            "sasl.oauthbearer.scope",
        ],
        "D-P1: use sasl of the connection",
    ),
    (
        &[
            "sasl.oauthbearer.grant.type",
            "sasl.oauthbearer.metadata.authentication.type",
            "enable.sasl.oauthbearer.unsecure.jwt",
        ],
        "D-P2: tokens come from sasl.oauth of the connection, by client credentials",
    ),
    (
        &[
            "sasl.password",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.keystore.password",
        ],
        "C-3: secrets appear only as {file: FILE} or {env: NAME}",
    ),
    (
        &[
            "ssl.certificate.location",
            "ssl.key.location",
            "ssl.certificate.pem",
            "ssl.keystore.location",
        ],
        "D-P1: use tls of the connection, whose files are watched",
    ),
    (&["allow.auto.create.topics"], "D-S1: use topics.create"),
    (
        &["enable.partition.eof", "statistics.interval.ms"],
        "R6: the end of a partition comes from the statistics",
    ),
    (
        &["queuing.strategy"],
        "D-L2: another order of the queue would reorder lanes",
    ),
    (
        &["test.mock.num.brokers"],
        "a mock cluster drops records silently; use an embedded connection",
    ),
];

/// Properties of which only some values are refused.
fn refused_value(name: &str, value: &str) -> Option<(&'static str, &'static str)> {
    match name {
        "group.protocol" if value != "classic" => Some((
            "classic",
            "R4: the lease is proven for the classic group protocol only",
        )),
        "max.in.flight" | "max.in.flight.requests.per.connection"
            if !value.parse::<u32>().is_ok_and(|n| (1..=5).contains(&n)) =>
        {
            Some((
                "1 to 5",
                "D-O1: an idempotent producer keeps the order of 5 requests at most",
            ))
        }
        "partitioner" if value == "random" => Some((
            "one that goes by the key",
            "D-L1: the results of one key stay in one partition",
        )),
        "max.poll.interval.ms" if !value.parse::<u32>().is_ok_and(|n| n > 0) => {
            Some(("milliseconds, a whole number", "R4"))
        }
        _ => None,
    }
}

/// Checks `connections.<name>.kafka.properties`, which stands at `path`.
pub(super) fn check(path: &str, map: &Map<String, Value>) -> Vec<Problem> {
    let mut names: Vec<_> = map.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    names
        .into_iter()
        .filter_map(|(name, value)| check_one(&join(path, name), name, value))
        .collect()
}

fn check_one(path: &str, name: &str, value: &Value) -> Option<Problem> {
    let refused = REFUSED.iter().find(|(names, _)| names.contains(&name));
    let what = || {
        if is_secret(name) {
            "a value that is not shown".to_owned()
        } else {
            shown(value)
        }
    };
    if let Some((_, reason)) = refused {
        return Some(Problem::new(path, what(), "not this property").because(*reason));
    }
    let Some(text) = text(value) else {
        return Some(Problem::new(path, what(), "text, a number, true or false"));
    };
    let (allowed, reason) = refused_value(name, &text)?;
    Some(Problem::new(path, what(), allowed).because(reason))
}

/// A property's value as librdkafka takes it.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether the value of this property is a secret, as far as its name tells.
fn is_secret(name: &str) -> bool {
    ["password", "secret", "pem", "sasl.oauthbearer.config"]
        .iter()
        .any(|word| name.contains(word))
}

/// The document with the values of secret properties blanked.
pub(super) fn redacted(document: &Value) -> Value {
    let mut copy = document.clone();
    let connections = copy.get_mut("connections").and_then(Value::as_object_mut);
    for connection in connections.into_iter().flat_map(Map::values_mut) {
        let properties = connection
            .pointer_mut("/kafka/properties")
            .and_then(Value::as_object_mut);
        for (name, value) in properties.into_iter().flatten() {
            if is_secret(name) {
                *value = Value::from("(not shown)");
            }
        }
    }
    let variables = copy.pointer_mut("/app/env").and_then(Value::as_array_mut);
    for variable in variables.into_iter().flatten() {
        if let Some(value) = variable.get_mut("value") {
            // People put passwords there although they should not.
            *value = Value::from("(not shown)");
        }
    }
    copy
}
