//! Documents and overrides, from text to a block.

use millrace_core::contract::block::{Concurrency, Connection, InputSource, OutputSink, Secret};

use super::*;

const SMALLEST: &str = "
identity: local/demo/iris
connections:
  main: {embedded: {}}
input:  {kafka: {connection: main, topics: [iris], startAt: Earliest}}
output: {kafka: {connection: main, topic: iris-scored}}
app:
  shadow: Safe
  local: {command: [python, -m, app], python: {requirements: requirements.txt}}
";

const ALL: &str = include_str!("../../tests/fixtures/all.yaml");
const ALL_AS_JSON: &str = include_str!("../../../core/src/contract/block/all.json");

fn parse_with(text: &str, environment: &[(&str, &str)]) -> Result<Block, Error> {
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    parse(Path::new("block.yaml"), text.as_bytes(), &environment)
}

fn smallest(environment: &[(&str, &str)]) -> Block {
    parse_with(SMALLEST, environment).unwrap()
}

fn paths(result: Result<Block, Error>) -> Vec<String> {
    let error = result.unwrap_err();
    let problems = error.problems().unwrap_or_else(|| panic!("{error}"));
    problems
        .iter()
        .map(|problem| problem.path.clone())
        .collect()
}

#[test]
fn the_full_document_is_read_from_yaml() {
    let json = Block::parse(&serde_json::from_str(ALL_AS_JSON).unwrap()).unwrap();
    assert_eq!(parse_with(ALL, &[]).unwrap(), json);
    // The same through both layers.
    let layered = parse_with(ALL, &[("MILLRACE__REPLICAS", "1")]).unwrap();
    assert_eq!(layered.release, json.release);
    assert_eq!(layered.connections, json.connections);
}

#[test]
fn environment_overrides_the_document_key_by_key() {
    let block = smallest(&[
        ("MILLRACE__FLOW__MAX_IN_FLIGHT", "512"),
        ("millrace__flow__concurrency", "7"),
        ("MILLRACE__INPUT__KAFKA__TOPICS", "[a, b]"),
        ("MILLRACE__OUTPUT__KAFKA__TOPIC", "123"),
        ("MILLRACE__RETRY", "{maxAttempts: 0, backoff: {max: 5s}}"),
        ("MILLRACE__ADMIN__TOKEN", "{env: TOKEN}"),
        ("MILLRACE_RELEASE", "r1-0a"),
        ("MILLRACE_POD", "{not: a key}"),
    ]);
    assert_eq!(block.flow.max_in_flight, 512);
    assert_eq!(block.flow.concurrency, Concurrency::Fixed(7));
    let InputSource::Kafka(input) = &block.input.source else {
        panic!("it is kafka")
    };
    assert_eq!(input.topics, ["a", "b"]);
    assert_eq!(input.connection, "main", "what is not overridden stays");
    let OutputSink::Kafka(output) = &block.output.sink else {
        panic!("it is kafka")
    };
    assert_eq!(output.topic, "123", "a topic is text");
    assert_eq!(block.retry.max_attempts, None);
    assert_eq!(block.retry.backoff_max.as_secs(), 5);
    assert_eq!(block.retry.backoff_initial.as_millis(), 200);
    assert_eq!(block.admin.token, Some(Secret::Env("TOKEN".to_owned())));
}

#[test]
fn an_override_replaces_lists_and_secrets_as_a_whole() {
    let text = format!(
        "{SMALLEST}admin: {{token: {{file: /t}}}}\nnotifications: [{{on: [Failed], webhook: {{url: 'http://a'}}}}]\n"
    );
    let block = parse_with(
        &text,
        &[
            ("MILLRACE__ADMIN__TOKEN", "{env: T}"),
            ("MILLRACE__NOTIFICATIONS", "[]"),
        ],
    )
    .unwrap();
    assert_eq!(block.admin.token, Some(Secret::Env("T".to_owned())));
    assert!(block.notifications.is_empty());
    let block = parse_with(&text, &[("MILLRACE__ADMIN__TOKEN", "null")]).unwrap();
    assert_eq!(block.admin.token, None, "null is absent");
}

#[test]
fn an_override_makes_sections_and_names_on_the_way() {
    let block = smallest(&[
        ("MILLRACE__CONNECTIONS__OTHER__KAFKA__BOOTSTRAP", "['b:1']"),
        (
            "MILLRACE__CONNECTIONS__OTHER__KAFKA__PROPERTIES__CLIENT_ID",
            "7",
        ),
        ("MILLRACE__OUTPUT__KAFKA__CONNECTION", "other"),
    ]);
    let Connection::Kafka(kafka) = block.output_connection() else {
        panic!("it is kafka")
    };
    assert_eq!(kafka.bootstrap, ["b:1"]);
    assert_eq!(kafka.properties["client.id"], "7");
}

#[test]
fn an_override_reaches_the_spec_of_a_whole_object() {
    let spec = SMALLEST.replace('\n', "\n  ");
    let text = format!(
        "apiVersion: millrace.dev/v1alpha1\nkind: PipelineBlock\nmetadata: {{name: iris}}\nspec:{spec}\n"
    );
    assert_eq!(parse_with(&text, &[]).unwrap(), smallest(&[]));
    assert_eq!(
        parse_with(&text, &[("MILLRACE__REPLICAS", "3")])
            .unwrap()
            .replicas,
        3
    );
}

#[test]
fn c1_wrong_overrides_are_reported_with_the_documents_problems() {
    let text = format!("{SMALLEST}replicaz: 1\n");
    let found = paths(parse_with(
        &text,
        &[
            ("MILLRACE__FLOW__MAX_IN_FLIHGT", "1"),
            ("MILLRACE__FLOW__MAX_IN_FLIGHT", "1"),
            ("MILLRACE__FLOW__MAXINFLIGHT", "2"),
            ("MILLRACE__BATCH__LINGER", "[1"),
            ("MILLRACE__DELIVERY__WINDOW", "soon"),
        ],
    ));
    assert_eq!(
        found,
        [
            "MILLRACE__BATCH__LINGER",
            "MILLRACE__FLOW__MAX_IN_FLIGHT",
            "MILLRACE__FLOW__MAX_IN_FLIHGT (flow.MAX_IN_FLIHGT)",
            "delivery.window",
            "replicaz",
        ]
    );
}

#[test]
fn what_is_no_document_says_why() {
    let check = |bytes: &[u8], expect: &str| {
        let error = parse(Path::new("block.yaml"), bytes, &Environment::new()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("block.yaml") && text.contains(expect),
            "{text}"
        );
        assert_eq!(error.exit_code(), 2);
    };
    check(b"a: \xff", "byte 3");
    check(b"a: 1\na: 2\n", "duplicate");
    check(b"flow: {maxInFlight: 1, maxInFlight: 2}\n", "duplicate");
    check(b"a: [1\n", "line 2");
    check(b"1: 2\n", "not text");
    check(b"a: !tag 2\n", "!tag");
    check(b"a: .inf\n", "inf");
    check(b"a: 1\n---\nb: 2\n", "more than one document");
    check(b"", "found null");
    check(b"[]", "found []");
    check(b"\xef\xbb\xbf", "found null");
}

#[test]
fn a_file_that_is_missing_or_too_large_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("block.yaml");
    let load = || load(&path, &Environment::new());
    let error = load().unwrap_err();
    assert!(
        matches!(error, Error::Unreadable { .. }) && error.exit_code() == 1,
        "{error}"
    );
    std::fs::write(
        &path,
        "#".repeat(usize::try_from(DOCUMENT_BYTES_MAX).unwrap() + 1),
    )
    .unwrap();
    assert!(matches!(load().unwrap_err(), Error::TooLarge { .. }));
    std::fs::write(&path, SMALLEST).unwrap();
    assert_eq!(load().unwrap(), smallest(&[]));
}

#[test]
fn a_billion_laughs_are_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..9 {
        let names = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{names}]\n"));
    }
    assert!(matches!(parse_with(&text, &[]), Err(Error::NotYaml { .. })));
}
