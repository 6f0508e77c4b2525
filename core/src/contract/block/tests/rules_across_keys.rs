//! C-2: each rule has a document that it refuses.

use super::*;

fn kafka() -> Value {
    json!({"kafka": {"bootstrap": ["b:1"], "tls": "Off"}})
}

/// The document with these changes breaks exactly one rule, at `path`, for `reason`.
fn check(changes: &[(&str, Value)], path: &str, reason: &str) {
    let problems = problems(&with(changes));
    let places: Vec<_> = problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(places, [path], "{problems:?}");
    let said = problems[0].to_string();
    assert!(said.contains(reason), "{said}");
}

fn fine(changes: &[(&str, Value)]) {
    assert_eq!(problems(&with(changes)), []);
}

#[test]
fn c2_r4_names_its_four_keys() {
    let broken = [
        ("connections.main", kafka()),
        ("delivery.lease", json!("9s")),
    ];
    let problem = &problems(&with(&broken))[0].to_string();
    for key in [
        "delivery.lease 9s",
        "delivery.messageTimeout 7s",
        "delivery.sessionTimeout 20s",
        "connections.main.kafka.properties.max.poll.interval.ms 5m",
        "= 21s",
    ] {
        assert!(problem.contains(key), "{problem}");
    }
    fine(&[
        ("delivery.lease", json!("9s")),
        ("delivery.messageTimeout", json!("6s")),
    ]);
    fine(&[
        ("delivery.lease", json!("9s")),
        ("delivery.guarantee", json!("ExactlyOnce")),
    ]);
    let properties = json!({"max.poll.interval.ms": 19_999});
    check(
        &[
            ("connections.main", kafka()),
            ("connections.main.kafka.properties", properties),
        ],
        "delivery.lease",
        "19999ms",
    );
    check(
        &[("delivery.sessionTimeout", json!("19s"))],
        "delivery.lease",
        "sessionTimeout 19s",
    );
    // One mistake, one problem: a lease that is none is not also too long.
    check(
        &[("delivery.lease", json!("9 s"))],
        "delivery.lease",
        "a duration",
    );
}

#[test]
fn c2_exactly_once_needs_one_kafka_connection_with_transactions() {
    let once = ("delivery.guarantee", json!("ExactlyOnce"));
    fine(std::slice::from_ref(&once));
    let two = [
        once.clone(),
        ("connections.other", kafka()),
        ("output.kafka.connection", json!("other")),
    ];
    check(&two, "delivery.guarantee", "one connection");
    check(
        &[once.clone(), ("app.contract.mode", json!("Push"))],
        "delivery.guarantee",
        "Reply",
    );
    let event_hubs = json!({"kafka": {"bootstrap": ["b:1"], "preset": "EventHubs"}});
    check(
        &[once.clone(), ("connections.main", event_hubs.clone())],
        "delivery.guarantee",
        "transactions: true",
    );
    check(
        &[once.clone(), ("delivery.transaction.timeout", json!("6s"))],
        "delivery.messageTimeout",
        "at most delivery.transaction.timeout",
    );
    fine(&[
        once,
        ("connections.main", event_hubs),
        ("connections.main.kafka.transactions", json!(true)),
    ]);
}

#[test]
fn c2_an_apps_state_and_side_effects_decide_how_it_may_be_released() {
    let recreate = ("release.strategy", json!("Recreate"));
    for broken in [
        vec![("app.state", json!("Shared"))],
        vec![("app.shadow", json!("Unsafe"))],
        vec![
            ("app.contract.mode", json!("Push")),
            ("app.push.correlate", json!("Serial")),
        ],
    ] {
        check(&broken, "release.strategy", "Recreate");
        fine(&[broken, vec![recreate.clone()]].concat());
    }
    fine(&[
        ("app.shadow", json!("Unsafe")),
        ("release.shadow.replay.from", json!("2026-01-31T12:00:00Z")),
    ]);
    let own = [("app.state", json!("PerRelease"))];
    check(&own, "release.shadow.partitions", "100%");
    let whole = [own[0].clone(), ("release.shadow.partitions", json!("100%"))];
    fine(&whole);
    check(
        &[whole.to_vec(), vec![("replicas", json!(3))]].concat(),
        "release.rollback.retainReplicas",
        "replicas, which is 3",
    );
}

#[test]
fn c2_push_needs_single_requests() {
    let push = [
        ("app.contract.mode", json!("Push")),
        ("app.contract.request", json!("Batch")),
    ];
    check(&push, "app.contract.request", "Single");
}

#[test]
fn c2_schemas_and_structured_requests_go_where_they_can_be_obeyed() {
    let pushed = [
        ("app.contract.mode", json!("Push")),
        ("output.schema", json!("result.json")),
    ];
    check(&pushed, "output.schema", "Push");
    fine(&pushed[1..]);
    let structured = [
        ("app.contract.structured", json!(true)),
        ("app.contract.content", json!("CloudEvents")),
    ];
    check(&structured[..1], "app.contract.structured", "CloudEvents");
    fine(&structured);
}

#[test]
fn c2_d_o6_topics_differ() {
    check(
        &[("output.kafka.topic", json!("iris"))],
        "output.kafka.topic",
        "own results",
    );
    check(
        &[("output.kafka.deadLetter", json!("iris"))],
        "output.kafka.deadLetter",
        "own results",
    );
    check(
        &[("output.kafka.deadLetter", json!("iris-scored"))],
        "output.kafka.deadLetter",
        "output.kafka.topic",
    );
    check(
        &[("output.kafka.verification", json!("iris.dlq"))],
        "output.kafka.verification",
        "deadLetter",
    );
    // Another cluster has other topics.
    fine(&[
        ("connections.other", kafka()),
        ("output.kafka.connection", json!("other")),
        ("output.kafka.topic", json!("iris")),
    ]);
}

#[test]
fn c2_the_sample_holds_the_partitions_that_must_be_seen() {
    check(
        &[("release.shadow.partitions", json!("0%"))],
        "release.verification.minPartitions",
        "sample",
    );
}

#[test]
fn a_connection_is_one_thing_and_is_there() {
    check(
        &[("connections.main.kafka", json!({"bootstrap": ["b:1"]}))],
        "connections.main",
        "exactly one of",
    );
    check(
        &[("connections.x", json!({}))],
        "connections.x",
        "none of them",
    );
    check(
        &[("input.kafka.connection", json!("Main"))],
        "input.kafka.connection",
        "did you mean `main`?",
    );
    let hub = json!({"eventHubs": {"connectionString": {"env": "X"}}});
    check(
        &[
            ("connections.hub", hub.clone()),
            ("output.kafka.connection", json!("hub")),
        ],
        "output.kafka.connection",
        "with kafka or embedded",
    );
    let input = json!({"eventHubs": {"connection": "hub", "hub": "tx", "startAt": "Latest"}});
    check(
        &[("connections.hub", hub), ("input", input.clone())],
        "connections.hub.eventHubs.checkpoints",
        "required by input.eventHubs",
    );
    check(
        &[("input", json!({}))],
        "input",
        "exactly one of kafka, eventHubs",
    );
    check(
        &[("connections.a b", json!({"embedded": {}}))],
        "connections.a b",
        "letters, digits",
    );
    check(
        &[("input.kafka.topics", json!([]))],
        "input.kafka.topics",
        "at least one",
    );
    check(
        &[("input.kafka.topics", json!(["a", "a"]))],
        "input.kafka.topics",
        "\"a\" twice",
    );
}

#[test]
fn d_p1_a_login_is_complete() {
    let sasl = |sasl: Value| {
        [
            ("connections.main", kafka()),
            ("connections.main.kafka.sasl", sasl),
        ]
    };
    check(
        &sasl(json!({"password": {"env": "P"}})),
        "connections.main.kafka.sasl.username",
        "Plain",
    );
    check(
        &sasl(json!({"username": "u"})),
        "connections.main.kafka.sasl.password",
        "Plain",
    );
    check(
        &sasl(json!({"mechanism": "OAuthBearer"})),
        "connections.main.kafka.sasl.oauth",
        "OAuthBearer",
    );
    let oauth = json!({"tokenUrl": "http://t", "clientId": "c"});
    check(
        &sasl(json!({"mechanism": "OAuthBearer", "oauth": oauth})),
        "connections.main.kafka.sasl.oauth.clientSecret",
        "required",
    );
    fine(&sasl(
        json!({"mechanism": "OAuthBearer", "entra": "WorkloadIdentity"}),
    ));
    let tls = json!({"ca": "ca.pem", "cert": "cert.pem"});
    check(
        &[
            ("connections.main", kafka()),
            ("connections.main.kafka.tls", tls),
        ],
        "connections.main.kafka.tls",
        "both cert and key",
    );
}

#[test]
fn b_k5_properties_that_break_a_rule_are_refused_with_its_reason() {
    let property = |name: &str, value: Value| {
        let properties = json!({name: value});
        problems(&with(&[
            ("connections.main", kafka()),
            ("connections.main.kafka.properties", properties),
        ]))
    };
    for (name, value, reason) in [
        ("enable.auto.commit", json!(true), "D-W2"),
        ("auto.offset.reset", json!("latest"), "D-G9"),
        ("group.instance.id", json!("a"), "R4"),
        ("session.timeout.ms", json!(1), "delivery.sessionTimeout"),
        ("isolation.level", json!("read_uncommitted"), ""),
        ("transactional.id", json!("a"), "D-E2"),
        ("message.timeout.ms", json!(1), "R4"),
        ("acks", json!(1), "D-O1"),
        ("group.protocol", json!("consumer"), "R4"),
        ("group.protocol", json!("classic"), ""),
        ("max.in.flight", json!(6), "D-O1"),
        ("max.in.flight", json!(5), ""),
        ("socket.keepalive.enable", json!(true), ""),
        ("client.id", json!("me"), ""),
        ("client.id", json!(["me"]), "text, a number"),
    ] {
        let problems = property(name, value.clone());
        if reason.is_empty() {
            assert_eq!(problems, [], "{name} {value}");
        } else {
            assert_eq!(problems.len(), 1, "{name} {value}");
            assert!(problems[0].to_string().contains(reason), "{}", problems[0]);
            assert_eq!(
                problems[0].path,
                format!("connections.main.kafka.properties.{name}")
            );
        }
    }
    let once = with(&[
        ("connections.main", kafka()),
        (
            "connections.main.kafka.properties",
            json!({"isolation.level": "read_uncommitted"}),
        ),
        ("delivery.guarantee", json!("ExactlyOnce")),
    ]);
    assert!(problems(&once)[0].to_string().contains("D-E3"));
}

#[test]
fn smaller_rules_hold() {
    check(
        &[("retry.onExhausted", json!("Drop"))],
        "retry.dropReason",
        "D-R3",
    );
    check(
        &[("retry.backoff.initial", json!("31s"))],
        "retry.backoff.initial",
        "retry.backoff.max, which is 30s",
    );
    check(
        &[("breaker.openMin", json!("61s"))],
        "breaker.openMin",
        "breaker.openMax",
    );
    check(
        &[("app.contract.timeout", json!("25h"))],
        "app.contract.timeout",
        "24h",
    );
    check(
        &[("app.local.command", json!([]))],
        "app.local.command",
        "the program",
    );
    check(
        &[("app.env", json!([{"name": "A"}]))],
        "app.env[0]",
        "exactly one of value, valueFrom",
    );
    check(
        &[(
            "app.env",
            json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        )],
        "app.env[1].name",
        "once",
    );
    check(
        &[("release.verification.compare.mode", json!("Label"))],
        "release.verification.compare.path",
        "Label",
    );
    check(
        &[(
            "release.verification.gates",
            json!([{"metric": "agreement"}]),
        )],
        "release.verification.gates[0]",
        "min, max or maxDelta",
    );
    check(
        &[(
            "release.verification.gates",
            json!([{"metric": "p95LatencyRatio", "max": 2.0, "maxDelta": 1.0}]),
        )],
        "release.verification.gates[0].maxDelta",
        "only errorRate",
    );
    for key in ["ignore", "redact.keep"] {
        check(
            &[(
                &format!("release.verification.compare.{key}"),
                json!(["score", "a["]),
            )],
            &format!("release.verification.compare.{key}[1]"),
            "a path such as",
        );
    }
    check(
        &[(
            "release.verification.compare.fields",
            json!([{"path": "a..b"}]),
        )],
        "release.verification.compare.fields[0].path",
        "a path such as",
    );
    check(
        &[
            ("release.verification.compare.mode", json!("Label")),
            ("release.verification.compare.path", json!("scores[*]")),
        ],
        "release.verification.compare.path",
        "one place",
    );
    check(
        &[("release.verification.gates", json!([{"min": 1}]))],
        "release.verification.gates[0]",
        "exactly one of",
    );
    check(
        &[("release.promotion.steps", json!([{"partitions": "50%"}]))],
        "release.promotion.steps",
        "the last one 100%",
    );
    let event_hubs = json!({"kafka": {"bootstrap": ["b:1"], "preset": "EventHubs"}});
    check(
        &[
            ("connections.main", event_hubs),
            ("output.kafka.compression", json!("Lz4")),
        ],
        "output.kafka.compression",
        "Event Hubs",
    );
}
