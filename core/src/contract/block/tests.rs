//! Tests of the block document as a whole.

use serde_json::{Map, json};

use super::keys::Absent;
use super::*;

mod every_key;
mod rules_across_keys;
mod schemas;

/// Every key of the documentation's full example, in this project's own form.
fn all() -> Value {
    serde_json::from_str(include_str!("all.json")).unwrap()
}

fn smallest() -> Value {
    json!({
        "identity": "local/demo/iris",
        "connections": {"main": {"embedded": {}}},
        "input": {"kafka": {"connection": "main", "topics": ["iris"], "startAt": "Earliest"}},
        "output": {"kafka": {"connection": "main", "topic": "iris-scored"}},
        "app": {
            "shadow": "Safe",
            "local": {"command": ["python", "-m", "app"], "python": {"requirements": "requirements.txt"}}
        }
    })
}

/// Sets the value at a dotted path, making sections on the way. `null` takes the key away.
fn set(document: &mut Value, path: &str, value: Value) {
    let mut at = document;
    for part in path.replace('[', ".[").split('.') {
        at = match part
            .strip_prefix('[')
            .and_then(|part| part.strip_suffix(']'))
        {
            Some(index) => {
                let index: usize = index.parse().unwrap();
                if at.as_array().is_none_or(|items| items.len() <= index) {
                    *at = json!([{}]);
                }
                &mut at[index]
            }
            None => {
                if !at.is_object() {
                    *at = json!({});
                }
                &mut at[part]
            }
        };
    }
    *at = value;
}

fn with(changes: &[(&str, Value)]) -> Value {
    let mut document = smallest();
    for (path, value) in changes {
        set(&mut document, path, value.clone());
    }
    document
}

fn problems(document: &Value) -> Vec<Problem> {
    Block::parse(document).map_or_else(Problems::into_vec, |_| Vec::new())
}

#[test]
fn the_smallest_document_is_a_block_with_every_default() {
    let block = Block::parse(&smallest()).unwrap();
    assert_eq!(block.identity.name(), "iris");
    assert_eq!(
        block.identity.group("r1-0a"),
        "millrace.local/demo/iris.r1-0a"
    );
    assert_eq!(
        block.identity.registry_group(),
        "millrace.local/demo/iris.registry"
    );
    assert_eq!(block.delivery.window, 5_000);
    assert_eq!(block.flow.concurrency, Concurrency::Adaptive);
    assert_eq!(block.retry.max_attempts, Some(5));
    assert_eq!(block.flow.max_in_flight_bytes.of(1 << 30), 1 << 28);
    assert_eq!(block.app.batch_path(), "/process-batch");
    assert_eq!(block.not_in_this_version(), []);
    assert_eq!(block.problems_on_a_laptop(), []);
    let OutputSink::Kafka(output) = &block.output.sink else {
        panic!("it is kafka")
    };
    assert_eq!(
        (output.dead_letter.as_str(), output.verification.as_str()),
        ("iris.dlq", "iris.verify")
    );
    assert!(
        block.creates_topics(block.output_connection()),
        "D-S1: Missing on an embedded connection"
    );
}

#[test]
fn the_full_document_says_what_the_defaults_say() {
    let document = all();
    let block = Block::parse(&document).unwrap();
    assert_eq!(
        block.not_in_this_version(),
        [],
        "hub is declared and not used"
    );
    for key in keys::all() {
        let path = key.path.replace(
            "<name>",
            match key.path {
                path if path.contains(".eventHubs") => "hub",
                path if path.contains(".embedded") => "local",
                _ => "main",
            },
        );
        let at = path
            .replace("[]", "")
            .split('.')
            .try_fold(&document, |value, name| value.get(name))
            .cloned();
        let (Some(found), Absent::Json(default)) = (at, key.default) else {
            continue;
        };
        let default: Value = serde_json::from_str(default).unwrap();
        if !key.path.ends_with(".namespace") {
            assert_eq!(found, default, "{path}");
        }
    }
}

#[test]
fn c1_five_mistakes_are_five_problems_with_their_paths() {
    let document = with(&[
        ("flow.maxInflight", json!(10)),
        ("delivery.window", json!(20_000)),
        ("retry.maxAge", json!(10)),
        ("app.shadow", Value::Null),
        ("output.kafka.topic", json!("iris")),
    ]);
    let problems = problems(&document);
    let paths: Vec<_> = problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "delivery.window",
            "flow.maxInflight",
            "retry.maxAge",
            "app.shadow",
            "output.kafka.topic"
        ]
    );
    assert_eq!(problems[0].found, "20000");
    assert_eq!(
        problems[0].allowed,
        "a whole number from 1 to 16384 (positions)"
    );
    assert_eq!(problems[1].nearest.as_deref(), Some("flow.maxInFlight"));
    assert_eq!(
        problems[2].allowed,
        "a duration such as 250ms, 10s, 5m, 24h; not 0"
    );
    assert_eq!(problems[3].found, "nothing");
    assert!(problems[4].reason.as_deref().unwrap().starts_with("D-O6"));
    let all = Problems::some(problems).unwrap().to_string();
    assert!(
        all.starts_with("the block document has 5 problems\n"),
        "{all}"
    );
    assert!(all.contains("flow.maxInflight: found an unknown key; allowed: maxInFlight, maxInFlightBytes, concurrency; did you mean `flow.maxInFlight`?"), "{all}");
}

#[test]
fn c1_a_key_in_the_wrong_section_is_shown_where_it_belongs() {
    let problems = problems(&with(&[("window", json!(5)), ("zzz", json!(1))]));
    assert_eq!(problems[0].nearest.as_deref(), Some("delivery.window"));
    assert_eq!(problems[1].nearest, None);
}

#[test]
fn c3_a_secret_in_the_open_is_refused_and_not_repeated() {
    let kafka = json!({"bootstrap": ["b:1"], "sasl": {"username": "u", "password": "hunter2"}});
    let document = with(&[
        ("connections.main", json!({"kafka": kafka})),
        ("admin.token", json!("hunter2")),
        (
            "connections.main.kafka.properties",
            json!({"sasl.password": "hunter2", "ssl.key.pem": "hunter2"}),
        ),
        (
            "notifications",
            json!([{"on": ["Failed"], "webhook": {"url": "http://x", "secret": {"file": "a", "env": "hunter2"}}}]),
        ),
    ]);
    let error = Block::parse(&document).unwrap_err();
    assert_eq!(error.iter().count(), 5, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn a_whole_kubernetes_object_is_its_spec() {
    let object = |kind: &str| json!({"apiVersion": "millrace.dev/v1alpha1", "kind": kind, "metadata": {"name": "iris"}, "spec": smallest()});
    assert_eq!(
        Block::parse(&object("PipelineBlock")),
        Block::parse(&smallest())
    );
    assert_eq!(problems(&object("ReleaseRecord"))[0].path, "kind");
    let empty = json!({"apiVersion": "millrace.dev/v1alpha1", "kind": "PipelineBlock"});
    assert_eq!(problems(&empty)[0].path, "spec");
    for nothing in [Value::Null, json!([]), json!("x")] {
        assert_eq!(problems(&nothing).len(), 1);
    }
}

#[test]
fn an_empty_document_names_every_required_key() {
    let problems = problems(&json!({}));
    let paths: Vec<_> = problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(paths, ["identity", "connections", "input", "output", "app"]);
}

#[test]
fn c1_a_missing_key_is_told_without_what_follows_from_it() {
    for (change, root) in [
        (("app.shadow", Value::Null), "app.shadow"),
        (("app.shadow", json!("Sometimes")), "app.shadow"),
        (("app", json!({})), "app.shadow"),
        (("app", Value::Null), "app"),
    ] {
        let problems = problems(&with(std::slice::from_ref(&change)));
        let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, [root], "{change:?}");
    }
}

#[test]
fn times_depend_on_guarantee_and_preset() {
    let event_hubs = json!({"kafka": {"bootstrap": ["ns:9093"], "preset": "EventHubs"}});
    let exactly_once = json!("ExactlyOnce");
    let kafka = json!({"kafka": {"bootstrap": ["b:1"]}});
    let check = |connection: &Value, guarantee: &Value, expect: [u64; 3]| {
        let document = with(&[
            ("connections.main", connection.clone()),
            ("delivery.guarantee", guarantee.clone()),
        ]);
        let delivery = read::draft(&document, &walk::spec(&document)).delivery;
        let times = [
            delivery.session_timeout,
            delivery.lease,
            delivery.message_timeout,
        ];
        assert_eq!(
            times.map(|time| time.as_secs()),
            expect,
            "{connection} {guarantee}"
        );
    };
    check(&kafka, &Value::Null, [20, 8, 7]);
    check(&kafka, &exactly_once, [10, 8, 7]);
    check(&event_hubs, &Value::Null, [30, 10, 15]);
    let block = Block::parse(&with(&[("connections.main", event_hubs)])).unwrap();
    let OutputSink::Kafka(output) = &block.output.sink else {
        panic!("it is kafka")
    };
    assert_eq!(
        (output.compression, output.max_bytes),
        (Compression::None, Some(1_000_000))
    );
    assert!(
        !block.creates_topics(block.output_connection()),
        "D-S1: Never elsewhere"
    );
    let Connection::Kafka(connection) = block.output_connection() else {
        panic!("it is kafka")
    };
    assert!(!connection.transactions);
}

#[test]
fn a_port_knows_whether_somebody_chose_it() {
    let block = Block::parse(&with(&[
        ("admin.inputPort", json!(9400)),
        ("publish.port", json!(0)),
    ]))
    .unwrap();
    assert_eq!(
        block.admin.input_port,
        Port {
            number: 9400,
            chosen: true
        }
    );
    assert_eq!(
        block.admin.output_port,
        Port {
            number: 9401,
            chosen: false
        }
    );
    assert_eq!(
        block.publish.port,
        Port {
            number: 0,
            chosen: true
        }
    );
}

#[test]
fn what_this_version_cannot_do_is_a_valid_document_that_a_starter_refuses() {
    let check = |path: &str, value: Value| {
        let block = Block::parse(&with(&[
            ("connections.main", json!({"kafka": {"bootstrap": ["b:1"]}})),
            (path, value),
        ]))
        .unwrap();
        let later = block.not_in_this_version();
        assert_eq!(later.len(), 1, "{path}");
        assert_eq!(later[0].path, path);
        assert_eq!(later[0].reason.as_deref(), Some("not in this version"));
    };
    check("telemetry.otlp.endpoint", json!("http://127.0.0.1:4317"));
    let hub = json!({"eventHubs": {"connectionString": {"file": "F"}, "checkpoints": {"url": "file:///tmp/x"}}});
    let block = Block::parse(&with(&[
        ("connections.hub", hub),
        (
            "input",
            json!({"eventHubs": {"connection": "hub", "hub": "tx", "startAt": "Latest"}}),
        ),
    ]));
    assert_eq!(
        block.unwrap().not_in_this_version()[0].path,
        "input.eventHubs"
    );
}

#[test]
fn c6_clusters_and_laptops_demand_more() {
    let block = Block::parse(&with(&[("app.local", Value::Null)])).unwrap();
    let paths = |problems: Vec<Problem>| {
        problems
            .into_iter()
            .map(|problem| problem.path)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        paths(block.problems_on_a_cluster()),
        ["connections.main", "app.image"]
    );
    assert_eq!(paths(block.problems_on_a_laptop()), ["app.local"]);
}

#[test]
fn d_p4_the_redacted_document_shows_no_secret() {
    let document = with(&[
        (
            "connections.main",
            json!({"kafka": {"bootstrap": ["b:1"], "properties": {"my.secret": "hunter2", "client.id": "me"}}}),
        ),
        ("app.env", json!([{"name": "PASSWORD", "value": "hunter2"}])),
    ]);
    let shown = Block::parse(&document).unwrap().redacted();
    assert!(!shown.to_string().contains("hunter2"), "{shown}");
    assert_eq!(
        shown["connections"]["main"]["kafka"]["properties"]["client.id"],
        "me"
    );
}

#[test]
fn an_override_finds_its_key_whatever_its_case() {
    let document = with(&[(
        "connections.my-main",
        json!({"kafka": {"properties": {"log_level": 6}}}),
    )]);
    let check = |name: &str, expect: &str, is_text: bool, replaces: bool| {
        let segments: Vec<_> = name.split("__").collect();
        let place = place(&segments, &document).unwrap();
        assert_eq!(
            (place.path.join("/").as_str(), place.is_text, place.replaces),
            (expect, is_text, replaces),
            "{name}"
        );
    };
    check("FLOW__MAX_IN_FLIGHT", "flow/maxInFlight", false, true);
    check("flow__maxinflight", "flow/maxInFlight", false, true);
    check("RETRY", "retry", false, false);
    check("OUTPUT__KAFKA__TOPIC", "output/kafka/topic", true, true);
    check("BATCH__TARGET_P99", "batch/targetP99", false, true);
    check(
        "CONNECTIONS__MY_MAIN__KAFKA__TLS__CA",
        "connections/my-main/kafka/tls/ca",
        true,
        true,
    );
    check(
        "CONNECTIONS__NEW__KAFKA",
        "connections/new/kafka",
        false,
        false,
    );
    check(
        "CONNECTIONS__MY_MAIN__KAFKA__PROPERTIES__MAX_POLL_INTERVAL_MS",
        "connections/my-main/kafka/properties/max.poll.interval.ms",
        true,
        true,
    );
    check(
        "CONNECTIONS__MY_MAIN__KAFKA__PROPERTIES__LOG_LEVEL",
        "connections/my-main/kafka/properties/log_level",
        true,
        true,
    );
    check("ADMIN__TOKEN", "admin/token", false, true);
    check("ADMIN__TOKEN__FILE", "admin/token/file", true, true);
    check(
        "APP__RESOURCES__limits__cpu",
        "app/resources/limits/cpu",
        false,
        true,
    );
    let unknown = place(&["FLOW", "MAX_IN_FLIHGT"], &document).unwrap_err();
    assert_eq!(unknown.nearest.as_deref(), Some("flow.maxInFlight"));
    assert!(place(&["NOTIFICATIONS", "0"], &document).is_err());
    assert!(place(&["REPLICAS", "X"], &document).is_err());
}

#[test]
fn hostile_documents_are_refused_quickly() {
    let long = "x".repeat(100_000);
    let many: Map<String, Value> = (0..2_000)
        .map(|i| (format!("key{i}"), json!(long)))
        .collect();
    let problems = problems(&Value::Object(many));
    assert_eq!(problems.len(), 2_005);
    assert!(
        problems
            .iter()
            .all(|problem| problem.to_string().len() < 1_000)
    );
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!({"app": deep});
    }
    assert!(Block::parse(&deep).is_err());
}
