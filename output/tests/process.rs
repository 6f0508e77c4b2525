//! The binary itself: exit codes, messages, signals.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use millrace_broker::{Broker, Options};

const BINARY: &str = env!("CARGO_BIN_EXE_millrace-output");

fn document(bootstrap: &str, folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("block.yaml");
    let text = format!(
        "identity: local/tests/score\n\
         connections: {{main: {{kafka: {{bootstrap: [\"{bootstrap}\"], tls: \"Off\"}}}}}}\n\
         input: {{kafka: {{connection: main, topics: [in], startAt: Earliest}}}}\n\
         output: {{kafka: {{connection: main, topic: out}}}}\n\
         topics: {{create: Missing}}\n\
         app: {{shadow: Safe}}\n\
         admin: {{outputPort: 0}}\n\
         publish: {{port: 0}}\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn c_1_a_wrong_document_names_every_problem_and_exits_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("block.yaml");
    std::fs::write(
        &path,
        "identity: local/tests/score\nflow: {maxInFlght: 3}\nreplicas: many\n",
    )
    .unwrap();
    let output = Command::new(BINARY)
        .arg(&path)
        .args(["--release", "r1"])
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("flow.maxInFlght") && message.contains("replicas"),
        "{message}"
    );
}

#[test]
fn a_taken_port_is_named_and_exits_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = document("127.0.0.1:1", folder.path());
    let output = Command::new(BINARY)
        .arg(&path)
        .args(["--release", "r1"])
        .env(
            "MILLRACE__PUBLISH__PORT",
            taken.local_addr().unwrap().port().to_string(),
        )
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("publish.port"), "{message}");
}

#[test]
fn d_s4_sigterm_drains_and_exits_0() {
    let broker = Broker::start(Options::memory()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = document(&broker.bootstrap(), folder.path());
    let mut child = Command::new(BINARY)
        .arg(&path)
        .args(["--release", "r1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    log.find(|line| {
        line.as_ref()
            .unwrap()
            .contains("the output topics are there")
    })
    .expect("it gets ready")
    .unwrap();
    let killed = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let rest: Vec<String> = log.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
}
