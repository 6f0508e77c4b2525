//! `millrace dev` as a newcomer uses it, with kcat as a client that knows nothing of Millrace.

use std::io::Write;
use std::process::{Command, Stdio};

use millrace_integration_tests::process::{Process, binary};
use millrace_integration_tests::wait::{wait_for, wait_until};

const BLOCK: &str = "\
identity: local/stories/echo
connections:
  main: {embedded: {}}
input: {kafka: {connection: main, topics: [words], startAt: Earliest}}
output: {kafka: {connection: main, topic: echoes}}
app:
  shadow: Safe
  local: {command: [MILLRACE, echo-app]}
";

/// Whether kcat is there; says why not.
#[expect(
    clippy::print_stdout,
    reason = "`make test` counts what was skipped by this line"
)]
fn kcat_is_there() -> bool {
    if Command::new("kcat").arg("-V").output().is_ok() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "kcat is missing; install it: apt-get install kcat"
    );
    println!("skipped: kcat is missing");
    false
}

/// What kcat prints. A machine that pauses for seconds costs kcat its connections: it then asks
/// again like every other client (`-E`) and doubles nothing.
fn kcat(bootstrap: &str, arguments: &[&str], input: &str) -> String {
    let patient = ["-E", "-m", "60", "-X", "enable.idempotence=true"];
    let mut child = Command::new("kcat")
        .args(["-b", bootstrap])
        .args(patient)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kcat starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("kcat reads");
    drop(stdin);
    let output = child.wait_with_output().expect("kcat ends");
    assert!(
        output.status.success(),
        "kcat {arguments:?} ends with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn kcat_and_dev_understand_each_other(options: &[&str]) {
    if !kcat_is_there() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let millrace = binary("millrace");
    let block = folder.path().join("block.yaml");
    std::fs::write(
        &block,
        BLOCK.replace("MILLRACE", &millrace.display().to_string()),
    )
    .expect("a document");
    let path = block.display().to_string();
    let arguments = [&["dev", &path, "--port", "0"], options].concat();
    let mut dev = Process::new("dev", millrace.clone(), &arguments, folder.path());
    dev.start();
    let bootstrap = wait_for("the address of the broker", || {
        std::fs::read_to_string(folder.path().join(".millrace/bootstrap")).ok()
    });
    dev.says("partition started");
    let lines: String = (0..500)
        .map(|n| format!("key-{}:word {n}\n", n % 7))
        .collect();
    kcat(&bootstrap, &["-P", "-t", "words", "-K:"], &lines);
    let read = || {
        kcat(
            &bootstrap,
            &["-C", "-q", "-e", "-t", "echoes", "-f", "%k:%s\n"],
            "",
        )
    };
    wait_until("500 echoes", || read().lines().count() >= 500);
    let of_key = |text: &str| {
        text.lines()
            .filter(|l| l.starts_with("key-3:"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(of_key(&read()), of_key(&lines));
    let headers = kcat(
        &bootstrap,
        &["-C", "-q", "-e", "-t", "echoes", "-f", "%h\n"],
        "",
    );
    assert!(
        headers
            .lines()
            .all(|line| line.contains("millrace-src=words/")),
        "{headers}"
    );

    let report = wait_for("the audit sees everything settled", || {
        let output = Command::new(&millrace)
            .args(["audit", &path, "-o", "json", "--no-filter"])
            .env("MILLRACE_BOOTSTRAP", &bootstrap)
            .output()
            .expect("millrace audit runs");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (report["pending"] == 0).then_some(report)
    });
    for (count, value) in [
        ("events", 500),
        ("answered", 500),
        ("lost", 0),
        ("duplicated", 0),
        ("out_of_order", 0),
    ] {
        assert_eq!(report[count], value, "{report:#}");
    }
    let document = std::fs::read_to_string(&block).expect("the document");
    std::fs::write(&block, format!("{document}\n# c3: a remark\n")).expect("written");
    dev.says_all(&["block.yaml has changed; restart to apply"]);
    assert_eq!(dev.end().code(), Some(0), "{}", dev.log());
}

#[test]
fn kcat_and_millrace_dev_understand_each_other() {
    kcat_and_dev_understand_each_other(&[]);
}

#[test]
fn kcat_and_millrace_dev_with_processes_understand_each_other() {
    kcat_and_dev_understand_each_other(&["--processes"]);
}
