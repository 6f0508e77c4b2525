//! Which environment is which block, and which is refused with the name of the variable.

use super::*;
use crate::contract::block::{Block, Connection, ContractMode, Correlate, HealthCheck};

const INPUT: [(&str, &str); 6] = [
    ("MESSAGING_TYPE", "kafka"),
    ("KAFKA_ADDRESS", "broker:9092"),
    ("KAFKA_TOPIC", "orders"),
    ("KAFKA_CONSUMER_GROUP", "Old Group"),
    ("APP_HOST", "localhost"),
    ("APP_PORT", "5000"),
];

const OUTPUT: [(&str, &str); 5] = [
    ("MESSAGING_TYPE", "kafka"),
    ("KAFKA_ADDRESS", "broker:9092"),
    ("KAFKA_TOPIC", "scores"),
    ("OUTPUT_WRITER_HOST", "0.0.0.0"),
    ("OUTPUT_WRITER_PORT", "6001"),
];

/// Some variables, and others on top; an empty name removes nothing.
fn with(base: &[(&str, &str)], more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    base.iter().chain(more).map(owned).collect()
}

fn block(direction: Direction, variables: &BTreeMap<String, String>) -> Block {
    let profile = read(direction, variables).unwrap_or_else(|problems| panic!("{problems}"));
    let block = Block::parse(&profile.document).unwrap_or_else(|p| panic!("{p}"));
    assert!(
        block.not_in_this_version().is_empty(),
        "{:?}",
        block.not_in_this_version()
    );
    block
}

/// The problems, which must name this variable.
#[track_caller]
fn refused(direction: Direction, variables: &BTreeMap<String, String>, name: &str) -> String {
    let problems = read(direction, variables).expect_err(name).to_string();
    assert!(problems.contains(name), "{name} is not named: {problems}");
    problems
}

#[test]
fn the_environment_of_the_input_is_a_whole_block() {
    let block = block(Direction::Input, &with(&INPUT, &[]));
    assert_eq!(block.app.contract.mode, ContractMode::Push);
    assert_eq!(block.app.push.correlate, Correlate::Serial);
    assert!(block.app.push.allow_uncorrelated);
    assert_eq!(
        (block.app.path.as_str(), block.app.port.number),
        ("/", 5000)
    );
    assert_eq!(block.app.health_check, HealthCheck::Connect);
    assert_eq!(block.retry.max_attempts, Some(4));
    assert_eq!(block.retry.backoff_initial, Duration::from_secs(1));
    let super::super::InputSource::Kafka(input) = &block.input.source else {
        panic!("kafka");
    };
    assert_eq!(input.topics, ["orders"]);
    assert_eq!(input.adopt_group.as_deref(), Some("Old Group"));
}

#[test]
fn the_environment_of_the_output_is_a_whole_block() {
    let block = block(Direction::Output, &with(&OUTPUT, &[]));
    assert_eq!(block.app.push.port.number, 6001);
    let super::super::OutputSink::Kafka(output) = &block.output.sink else {
        panic!("kafka");
    };
    assert_eq!(output.topic, "scores");
    assert_eq!(output.dead_letter, "scores.dlq");
}

#[test]
fn a_k8_the_binary_decides_the_direction_and_suffixes_win() {
    let both = [
        ("KAFKA_TOPIC", "neither"),
        ("KAFKA_TOPIC_INPUT", "from"),
        ("KAFKA_TOPIC_OUTPUT", "to"),
    ];
    let variables = with(&INPUT, &both);
    let document = |direction| read(direction, &variables).unwrap().document;
    for direction in [Direction::Input, Direction::Output] {
        let document = document(direction);
        assert_eq!(document["input"]["kafka"]["topics"][0], "from");
        assert_eq!(document["output"]["kafka"]["topic"], "to");
    }
}

#[test]
fn a_k1_both_spellings_of_event_hub_names_work_and_must_agree() {
    let secret = "Endpoint=sb://x;SharedAccessKey=secret";
    let short = ("EVENTHUB_KAFKA_CONNECTION_STRING", secret);
    let long = ("EVENT_HUB_KAFKA_CONNECTION_STRING", secret);
    for (more, named) in [
        (vec![short], short.0),
        (vec![long], long.0),
        (vec![short, long], long.0),
    ] {
        let variables = with(&INPUT, &more);
        let profile = read(Direction::Input, &variables).unwrap();
        let kafka = &profile.document["connections"]["main"]["kafka"];
        assert_eq!(kafka["sasl"]["password"]["env"], named);
        assert_eq!(kafka["sasl"]["username"], "$ConnectionString");
        assert_eq!(kafka["tls"]["ca"], CERTIFICATES);
        assert!(!profile.document.to_string().contains("secret"));
        let block = block(Direction::Input, &variables);
        assert!(matches!(block.connections["main"], Connection::Kafka(_)));
    }
    let other = ("EVENTHUB_KAFKA_CONNECTION_STRING", "another secret");
    let problems = refused(Direction::Input, &with(&INPUT, &[long, other]), long.0);
    assert!(!problems.contains("secret"), "{problems}");
}

#[test]
fn a_k1_values_are_text() {
    let profile = read(Direction::Input, &with(&INPUT, &[("KAFKA_TOPIC", "123")])).unwrap();
    assert_eq!(profile.document["input"]["kafka"]["topics"][0], "123");
    block(Direction::Input, &with(&INPUT, &[("KAFKA_TOPIC", "123")]));
}

#[test]
fn a_k5_what_is_wrong_is_named() {
    let input = |name: &'static str, value: &'static str| with(&INPUT, &[(name, value)]);
    for (name, value) in [
        ("MESSAGING_TYPE", "carrier-pigeon"),
        ("MESSAGING_TYPE", "storage"),
        ("KAFKA_ADDRESS", ""),
        ("KAFKA_ADDRESS", "ftp://broker:9092"),
        ("KAFKA_TOPIC", ""),
        ("KAFKA_CONSUMER_GROUP", ""),
        ("APP_HOST", ""),
        ("APP_HOST", "ftp://localhost"),
        ("APP_HOST", "app.example.com"),
        ("APP_PORT", "0"),
        ("APP_PORT", "-1"),
        ("APP_PORT", "http"),
        ("TIMEOUT", "soon"),
    ] {
        refused(Direction::Input, &input(name, value), name);
    }
    for name in ["KAFKA_ADDRESS", "KAFKA_TOPIC", "KAFKA_CONSUMER_GROUP"] {
        let mut variables = with(&INPUT, &[]);
        variables.remove(name);
        refused(Direction::Input, &variables, name);
    }
    let same = [("KAFKA_TOPIC_INPUT", "t"), ("KAFKA_TOPIC_OUTPUT", "t")];
    refused(Direction::Input, &with(&INPUT, &same), "KAFKA_TOPIC_INPUT");
    refused(
        Direction::Output,
        &with(&OUTPUT, &same),
        "KAFKA_TOPIC_OUTPUT",
    );
    refused(
        Direction::Output,
        &with(&OUTPUT, &[("OUTPUT_WRITER_PORT", "70000")]),
        "OUTPUT_WRITER_PORT",
    );
}

#[test]
fn sinks_of_later_versions_are_named() {
    for kind in ["storage", "redis", "eventhub"] {
        let variables = with(&OUTPUT, &[("MESSAGING_TYPE", kind)]);
        let problems = refused(Direction::Output, &variables, "MESSAGING_TYPE");
        assert!(problems.contains("not in this version"), "{problems}");
    }
}

#[test]
fn a_k4_broadcast_clients_are_read_as_json_and_as_python_writes_them() {
    let broadcast = |clients| {
        let variables = [
            ("MESSAGING_TYPE", "broadcast"),
            ("BROADCAST_CLIENTS", clients),
        ];
        with(&variables, &[("OUTPUT_WRITER_PORT", "6000")])
    };
    for clients in [
        r#"[{"type":"kafka","config":{"KAFKA_ADDRESS":"b:9092","KAFKA_TOPIC":"one"}},{"type":"kafka","config":{"KAFKA_ADDRESS":"b:9092","KAFKA_TOPIC":2}}]"#,
        "[{'type': 'kafka', 'config': {'KAFKA_ADDRESS': 'b:9092', 'KAFKA_TOPIC': 'one'}}, {'type': 'kafka', 'config': {'KAFKA_ADDRESS': 'b:9092', 'KAFKA_TOPIC': 2, 'x': None,},},]",
    ] {
        let block = block(Direction::Output, &broadcast(clients));
        let super::super::OutputSink::Kafka(output) = &block.output.sink else {
            panic!("kafka");
        };
        assert_eq!(output.topic, "one");
        assert_eq!(block.app.push.copies, ["2"]);
    }
    for (clients, name) in [
        ("[]", "BROADCAST_CLIENTS"),
        ("nonsense", "BROADCAST_CLIENTS"),
        (
            "[{'type': 'redis', 'config': {}}]",
            "BROADCAST_CLIENTS[0].type",
        ),
        (
            "[{'type': 'kafka', 'config': {}}]",
            "BROADCAST_CLIENTS[0].config.KAFKA_TOPIC",
        ),
    ] {
        refused(Direction::Output, &broadcast(clients), name);
    }
    let elsewhere = "[{'type':'kafka','config':{'KAFKA_ADDRESS':'a:1','KAFKA_TOPIC':'x'}},{'type':'kafka','config':{'KAFKA_ADDRESS':'b:1','KAFKA_TOPIC':'y'}}]";
    let name = "BROADCAST_CLIENTS[1].config.KAFKA_ADDRESS";
    refused(Direction::Output, &broadcast(elsewhere), name);
}

#[test]
fn what_does_nothing_is_told() {
    let more = [
        ("LOG_CFG", "x"),
        ("APPINSIGHTS_ENDPOINT", "y"),
        ("TIMEOUT", "2.5"),
    ];
    let profile = read(Direction::Input, &with(&INPUT, &more)).unwrap();
    assert_eq!(profile.ignored, ["LOG_CFG", "APPINSIGHTS_ENDPOINT"]);
    assert_eq!(profile.stop_after, Some(Duration::from_millis(2_500)));
}

#[test]
fn groups_with_different_names_are_different_blocks() {
    let identity = |group| {
        let variables = with(&INPUT, &[("KAFKA_CONSUMER_GROUP", group)]);
        read(Direction::Input, &variables).unwrap().document["identity"].clone()
    };
    let groups = ["a", "A", "a.", "-a-", "ä", "$Default", "group-1"];
    let identities: BTreeSet<String> = groups
        .iter()
        .map(|group| identity(group).as_str().unwrap().to_owned())
        .collect();
    assert_eq!(identities.len(), groups.len(), "{identities:?}");
    assert_eq!(identity("group-1"), "agogosml/group-1");
}
