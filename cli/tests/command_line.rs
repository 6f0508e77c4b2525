//! The binary as people and scripts meet it: help, exit codes, bytes in and out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use millrace_broker::{Broker, Options};

const COMMANDS: &[&[&str]] = &[
    &[],
    &["broker"],
    &["send"],
    &["tail"],
    &["dlq"],
    &["dlq", "ls"],
    &["dlq", "show"],
    &["dlq", "export"],
    &["dlq", "replay"],
    &["audit"],
    &["check"],
    &["check-app"],
    &["bench"],
    &["schema"],
];

fn millrace(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command
        .args(arguments)
        .env_remove("MILLRACE_BOOTSTRAP")
        .env_remove("MILLRACE_RELEASE")
        .env("COLUMNS", "100");
    command
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = millrace(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads no input may be gone already.
    drop(child.stdin.take().unwrap().write_all(input));
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command and checks its exit code and a part of what it says.
fn check(arguments: &[&str], code: i32, part: &str) {
    let output = run(arguments, b"");
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(part), "{arguments:?} said: {said}");
    assert!(!said.contains('\x1b'), "colours without a terminal: {said}");
}

#[test]
fn help_is_as_written_down() {
    let mut stale = Vec::new();
    for command in COMMANDS {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let output = run(&arguments, b"");
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        let name = if command.is_empty() {
            "millrace".to_owned()
        } else {
            command.join("-")
        };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/help/{name}.txt"));
        let help = text(&output.stdout);
        assert!(
            help.contains("Example") || command.is_empty(),
            "{command:?} shows no example"
        );
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &help).unwrap();
        } else if std::fs::read_to_string(&file).unwrap_or_default() != help {
            stale.push(file);
        }
    }
    assert!(
        stale.is_empty(),
        "run the test with UPDATE=1 and look at the changes: {stale:?}"
    );
}

#[test]
fn c_1_wrong_usage_exits_with_2() {
    check(&[], 2, "Usage: millrace");
    check(&["nosuch"], 2, "unrecognized subcommand");
    check(&["send"], 2, "<TOPIC>");
    check(&["send", "t", "--rate", "0"], 2, "above 0");
    check(
        &["send", "t", "--json", "--key-separator", ":"],
        2,
        "cannot be used with",
    );
    check(&["tail", "t", "--from", "yesterday"], 2, "earliest, latest");
    check(&["audit"], 2, "required");
    check(&["broker", "--topic", "a:0"], 2, "NAME:PARTITIONS");
    check(&["dlq", "ls"], 2, "--topic");
    check(&["dlq", "replay", "--topic", "t"], 2, "--all");
    check(&["check-app", "ftp://x"], 2, "http://127.0.0.1:8080");
    check(&["check-app", "http://127.0.0.1:1"], 2, "is it running?");
}

#[test]
fn c_1_every_mistake_of_a_document_is_shown_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("block.yaml");
    let wrong = "\
identity: local/demo/x
connections: {main: {embedded: {}}}
input: {kafka: {connection: main, topics: [a], startAt: Erliest}}
output: {kafka: {connection: man, topic: b}}
flow: {maxInFlght: 3}
batch: {maxRecords: many}
app: {shadow: Perhaps, local: {command: [x]}}
";
    std::fs::write(&file, wrong).unwrap();
    let file = file.to_str().unwrap();
    let output = run(&["check", file], b"");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stdout);
    for path in [
        "input.kafka.startAt",
        "output.kafka.connection",
        "flow.maxInFlght",
        "batch.maxRecords",
        "app.shadow",
    ] {
        assert!(said.contains(path), "{path} is missing in: {said}");
    }
    let output = run(&["check", file, "-o", "json"], b"");
    assert_eq!(output.status.code(), Some(2));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["problems"].as_array().unwrap().len() >= 5, "{found}");
    for command in [&["audit", file][..], &["dlq", "ls", file]] {
        check(command, 2, "input.kafka.startAt");
    }
    check(&["check", "/nowhere/block.yaml"], 1, "/nowhere/block.yaml");
}

#[test]
fn c_5_the_schema_is_json() {
    let output = run(&["schema"], b"");
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(schema["properties"]["connections"].is_object(), "{schema}");
}

#[test]
fn lines_are_sent_and_shown_byte_by_byte() {
    let broker = Broker::start(Options::memory()).unwrap();
    let at = broker.bootstrap();
    broker.create_topic("plain", 1, &[]).unwrap();
    broker.create_topic("copy", 1, &[]).unwrap();
    let lines = b"one\n\ntwo\r\n\xff\x00\xfe\nlast";
    let output = run(&["send", "plain", "-b", &at], lines);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).starts_with("sent 5 events to plain"));
    let output = run(&["tail", "plain", "-b", &at, "--from", "earliest"], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, [&lines[..], b"\n"].concat());

    let lines = [
        r#"{"key":null,"value":null}"#,
        r#"{"key":"","value":"","headers":[["a","1"],["a",null],["b",{"base64":"/w=="}]]}"#,
        r#"{"key_base64":"AP8=","value_json":{"x" : 1},"timestamp":1767225600000}"#,
    ];
    let output = run(
        &["send", "copy", "-b", &at, "--json"],
        lines.join("\n").as_bytes(),
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = run(
        &["tail", "copy", "-b", &at, "--from", "earliest", "--json"],
        b"",
    )
    .stdout;
    let shown = text(&shown);
    let parts = [
        r#""key":null,"headers":[],"value":null}"#,
        r#""key":"","headers":[["a","1"],["a",null],["b",{"base64":"/w=="}]],"value":""}"#,
        r#""timestamp":1767225600000,"timestamp_type":"create","key_base64":"AP8=","headers":[],"value":"{\"x\":1}"}"#,
    ];
    for (line, part) in shown.lines().zip(parts) {
        assert!(line.ends_with(part), "{line}");
    }
    assert_eq!(shown.lines().count(), 3);
    // What was shown can be sent again, and is the same then.
    broker.create_topic("again", 1, &[]).unwrap();
    let output = run(&["send", "again", "-b", &at, "--json"], shown.as_bytes());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let again = run(
        &["tail", "again", "-b", &at, "--from", "earliest", "--json"],
        b"",
    )
    .stdout;
    assert_eq!(
        text(&again),
        shown.replace(r#""topic":"copy""#, r#""topic":"again""#)
    );
    broker.shutdown().unwrap();
}

#[test]
fn bad_lines_are_named_and_the_others_are_sent() {
    let broker = Broker::start(Options::memory()).unwrap();
    let at = broker.bootstrap();
    let lines = b"{\"value\":\"a\"}\n{\"vlaue\":\"b\"}\n\n{\"value\":\"c\"}\nnonsense\n";
    let output = run(
        &[
            "send", "t", "-b", &at, "--json", "--create", "2", "-o", "json",
        ],
        lines,
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["sent"], 2);
    assert_eq!(summary["bad_lines"], 2);
    let said = text(&output.stderr);
    assert!(
        said.contains("line 2:") && said.contains("line 5:"),
        "{said}"
    );
    let shown = run(&["tail", "t", "-b", &at, "--from", "earliest"], b"").stdout;
    assert_eq!(shown.len(), 4);
    broker.shutdown().unwrap();
}

#[test]
fn places_and_counts_limit_what_is_shown() {
    let broker = Broker::start(Options::memory()).unwrap();
    let at = broker.bootstrap();
    let lines: String = (0..10).map(|number| format!("{number}\n")).collect();
    let sent = run(
        &["send", "t", "-b", &at, "--create", "1", "--count", "8"],
        lines.as_bytes(),
    );
    assert_eq!(sent.status.code(), Some(0), "{sent:?}");
    for (arguments, shown) in [
        (&["--from", "6"][..], "6\n7\n"),
        (&["--from", "-1"], "7\n"),
        (&["--from", "earliest", "--count", "2"], "0\n1\n"),
        (&["--from", "2000-01-01T00:00:00Z", "--count", "1"], "0\n"),
        (&["--from", "8"], ""),
    ] {
        let output = run(&[&["tail", "t", "-b", &at], arguments].concat(), b"");
        assert_eq!(text(&output.stdout), shown, "{arguments:?}");
    }
    check(
        &["tail", "t", "-b", &at, "--partition", "3", "--from", "0"],
        1,
        "no partition 3",
    );
    check(
        &["tail", "missing", "-b", &at, "--from", "0"],
        1,
        "`missing` does not exist",
    );
    check(&["send", "missing", "-b", &at], 1, "--create");
    broker.shutdown().unwrap();
}

#[test]
fn the_broker_prints_its_address_and_stops_when_asked() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let mut seen = String::new();
    for round in 0..2 {
        let mut child = millrace(&["broker", "--port", "0", "--path", path, "--topic", "t:2"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let at = lines.next().unwrap().unwrap();
        let sent = run(&["send", "t", "-b", &at], format!("{round}\n").as_bytes());
        assert_eq!(sent.status.code(), Some(0), "{sent:?}");
        let shown = run(&["tail", "t", "-b", &at, "--from", "earliest"], b"");
        seen = text(&shown.stdout);
        let asked = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(asked.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    let mut seen: Vec<&str> = seen.lines().collect();
    seen.sort_unstable();
    assert_eq!(seen, ["0", "1"], "files outlive the broker");
}
