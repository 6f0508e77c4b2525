//! The rules of the source tree that no compiler checks: who may import whom, where `unsafe` and
//! serialization live, how files open and how long they get, that documents point at what exists.
//!
//! Each rule is a function from the tree to a list of complaints, so that one test can show the
//! tree is clean and another that the rule notices a breach.
#![forbid(unsafe_code)]

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/tree.rs"]
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use tree::{Source, has_word, root, sources};

const LINES_MAX: usize = 1_000;
const FFI: &str = "connectors/src/kafka/ffi.rs";

/// Crate, what it may import, what only its tests may import besides.
const EDGES: &[(&str, &[&str], &[&str])] = &[
    ("core", &[], &[]),
    ("broker", &[], &[]),
    ("connectors", &["core"], &["broker"]),
    ("service", &["core"], &[]),
    ("input", &["core", "connectors", "service"], &["broker"]),
    ("output", &["core", "connectors", "service"], &["broker"]),
    (
        "local",
        &["core", "connectors", "broker", "service", "input", "output"],
        &[],
    ),
    (
        "cli",
        &["core", "connectors", "broker", "service", "local"],
        &[],
    ),
    ("sim", &["core"], &[]),
    ("model", &["core"], &[]),
    (
        "integration-tests",
        &[
            "core",
            "connectors",
            "broker",
            "service",
            "input",
            "output",
            "local",
            "cli",
            "sim",
        ],
        &[],
    ),
];

/// What only one crate knows. The integration tests look at everything from outside.
const KNOWN_BY: &[(&str, &[&str])] = &[
    // The command line measures us against a plain client (decision 0003).
    ("rdkafka", &["connectors", "cli"]),
    ("rdkafka-sys", &["connectors"]),
    ("openssl-sys", &["connectors"]),
    // Token endpoints are asked by who knows the clients that want the tokens (decision 0012).
    ("native-tls", &["connectors"]),
    ("tokio-native-tls", &["connectors"]),
    ("kafka-protocol", &["broker"]),
    ("config", &["service"]),
    ("prometheus", &["service"]),
];

/// The one file of the command line that may.
const PLAIN_CLIENT: &str = "cli/src/bench/copy.rs";

/// Where else than in `contract/` types may be serialized, and why.
const SERIALIZED: &[(&str, &str)] = &[
    ("sim/src/event_log.rs", "the replay log"),
    ("service/src/admin", "what operators ask on the admin port"),
    ("cli/src/", "reports and JSON lines for people and scripts"),
    (
        "broker/src/journal.rs",
        "its own file format; the broker imports nothing of ours",
    ),
];

/// Where the process environment may be read.
const ENVIRONMENT: &[&str] = &["service/", "cli/", "local/", "integration-tests/"];

fn assert_clean(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// One complaint for each source that the rule objects to.
fn each(sources: &[Source], rule: impl Fn(&Source) -> Option<String>) -> Vec<String> {
    sources
        .iter()
        .filter_map(|source| Some(format!("{}: {}", source.path, rule(source)?)))
        .collect()
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Edge {
    from: String,
    to: String,
    tests_only: bool,
}

/// The dependencies that the workspace's manifests name, and its members.
fn edges() -> (BTreeSet<String>, Vec<Edge>) {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut members = BTreeSet::new();
    let mut edges = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("name");
        let manifest = package["manifest_path"].as_str().expect("manifest path");
        let folder = manifest.rsplit('/').nth(1).expect("a folder");
        assert_eq!(
            name,
            format!("millrace-{folder}"),
            "a crate is named after its folder"
        );
        members.insert(folder.to_owned());
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            edges.push(Edge {
                from: folder.to_owned(),
                to: dependency["name"].as_str().expect("name").to_owned(),
                tests_only: dependency["kind"] == "dev",
            });
        }
    }
    (members, edges)
}

fn forbidden_edges(edges: &[Edge]) -> Vec<String> {
    let table: BTreeMap<_, _> = EDGES
        .iter()
        .map(|(from, always, tests)| (*from, (always, tests)))
        .collect();
    let forbidden = |edge: &&Edge| {
        if let Some((_, know)) = KNOWN_BY.iter().find(|(what, _)| *what == edge.to) {
            return !know.contains(&edge.from.as_str()) && edge.from != "integration-tests";
        }
        let Some(to) = edge.to.strip_prefix("millrace-") else {
            return false;
        };
        let Some((always, tests)) = table.get(edge.from.as_str()) else {
            return true;
        };
        !(always.contains(&to) || edge.tests_only && tests.contains(&to))
    };
    edges
        .iter()
        .filter(forbidden)
        .map(|edge| format!("{} must not import {}", edge.from, edge.to))
        .collect()
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let (members, edges) = edges();
    assert_eq!(
        members,
        EDGES.iter().map(|(name, ..)| (*name).to_owned()).collect()
    );
    assert_clean(forbidden_edges(&edges));
}

#[test]
fn the_command_line_speaks_to_kafka_through_the_connectors() {
    assert_clean(each(&sources(), plain_client));
}

#[test]
fn a_forbidden_import_is_noticed() {
    let edge = |from: &str, to: &str, tests_only| Edge {
        from: from.into(),
        to: to.into(),
        tests_only,
    };
    let check = |edge: Edge, complaints| assert_eq!(forbidden_edges(&[edge]).len(), complaints);
    check(edge("input", "millrace-output", false), 1);
    check(edge("connectors", "millrace-broker", false), 1);
    check(edge("connectors", "millrace-broker", true), 0);
    check(edge("input", "rdkafka", false), 1);
    check(edge("connectors", "rdkafka", false), 0);
    check(edge("core", "serde", false), 0);
}

#[test]
fn core_and_sim_need_no_runtime_no_c_code_and_no_dice() {
    for (package, banned) in [
        (
            "millrace-core",
            &["tokio", "rdkafka", "rand", "cc", "cmake"][..],
        ),
        ("millrace-sim", &["tokio", "rdkafka", "cc", "cmake"][..]),
        ("millrace-model", &["tokio", "rdkafka", "cc", "cmake"][..]),
    ] {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "tree",
                "--offline",
                "--locked",
                "-e",
                "normal,build",
                "--prefix",
                "none",
                "-p",
                package,
            ])
            .current_dir(root())
            .output()
            .expect("cargo tree runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let tree = String::from_utf8(output.stdout).expect("text");
        let names: BTreeSet<&str> = tree
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert!(names.contains(package));
        for name in banned {
            assert!(!names.contains(name), "{package} pulls in {name}");
        }
    }
}

fn plain_client(source: &Source) -> Option<String> {
    let cli = source.path.starts_with("cli/src/") && source.path != PLAIN_CLIENT;
    (cli && source.code.contains("rdkafka::"))
        .then(|| format!("only {PLAIN_CLIENT} speaks to Kafka past the connectors"))
}

fn header_missing(source: &Source) -> Option<String> {
    (!source.text.starts_with("//! ")).then(|| "does not open with a `//!` sentence".into())
}

fn too_long(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > LINES_MAX).then(|| format!("{lines} lines, {LINES_MAX} are allowed"))
}

fn misplaced_unsafe(source: &Source) -> Option<String> {
    let dense: String = source.code.split_whitespace().collect();
    let crate_root = ["/src/lib.rs", "/src/main.rs"]
        .iter()
        .any(|end| source.path.ends_with(end));
    if source.path == FFI {
        return (!dense.contains("expect(unsafe_code,reason="))
            .then(|| "`unsafe` without expect(unsafe_code, reason = …)".into());
    }
    if has_word(&source.code, "unsafe") {
        return Some(format!("`unsafe` belongs in {FFI} only"));
    }
    // The crate around the one module can only deny it, which the workspace's lints do.
    let forbids =
        dense.contains("#![forbid(unsafe_code)]") || source.path == "connectors/src/lib.rs";
    (crate_root && !forbids).then(|| "a crate root without #![forbid(unsafe_code)]".into())
}

fn ignored_without_reason(source: &Source) -> Option<String> {
    source
        .code
        .contains("#[ignore]")
        .then(|| "#[ignore] without a reason".into())
}

fn loose_end(source: &Source) -> Option<String> {
    let place = source.text.lines().position(|line| {
        let comment = line.find("//").map_or("", |at| &line[at..]);
        let open = has_word(comment, "TODO") || has_word(comment, "FIXME");
        open && !comment.contains("(#") && !comment.contains("https://")
    })?;
    Some(format!(
        "line {}: an open end without a reference",
        place + 1
    ))
}

fn mod_file(source: &Source) -> Option<String> {
    source
        .path
        .ends_with("/mod.rs")
        .then(|| "a module is `name.rs` beside `name/`".into())
}

fn queue_without_cap(source: &Source) -> Option<String> {
    [
        "unbounded_channel",
        "unbounded(",
        "UnboundedSender",
        "mpsc::channel()",
    ]
    .iter()
    .find(|word| source.code.contains(*word))
    .map(|word| format!("`{word}`: every queue has a cap"))
}

fn environment(source: &Source) -> Option<String> {
    let allowed = ENVIRONMENT
        .iter()
        .any(|folder| source.path.starts_with(folder))
        || source.in_tests_folder();
    let reads = ["env::var(", "env::var_os(", "env::vars(", "env::vars_os("];
    let shipped = source.shipped_code();
    (!allowed && reads.iter().any(|read| shipped.contains(read)))
        .then(|| "reads the environment, which only service, local and cli know".into())
}

/// A sleep in a test hides a race, unless it stands between two looks at a condition, a comment
/// beside it says what else it is for, or time is paused and jumps.
fn sleeping_test(source: &Source) -> Option<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let code: Vec<&str> = source.code.lines().collect();
    let from = source.tests_from_line()?;
    let paused = source.code.contains("start_paused") || source.code.contains("time::pause()");
    (from..code.len())
        .find(|&at| {
            let sleeps =
                code[at].contains("thread::sleep(") || !paused && code[at].contains("time::sleep(");
            let explained =
                lines[at].contains("//") || at > 0 && lines[at - 1].trim_start().starts_with("//");
            sleeps && !explained && !is_last_of_a_loop(&code, at)
        })
        .map(|at| format!("line {}: a test sleeps without saying why", at + 1))
}

/// Whether the line ends the body of a `loop` or `while`, so that what is waited for is looked at
/// next.
fn is_last_of_a_loop(code: &[&str], at: usize) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let inner = indent(code[at]);
    let closes = code
        .get(at + 1)
        .is_some_and(|next| next.trim() == "}" && indent(next) < inner);
    let opens = code[..at]
        .iter()
        .rev()
        .find(|line| !line.trim().is_empty() && indent(line) < inner);
    closes
        && opens.is_some_and(|line| {
            ["loop ", "while "]
                .iter()
                .any(|word| line.trim_start().starts_with(word))
        })
}

fn misplaced_serialization(source: &Source) -> Option<String> {
    let contract = source.path.contains("/contract/") || source.path.ends_with("/contract.rs");
    let excused = SERIALIZED
        .iter()
        .any(|(place, _)| source.path.starts_with(place));
    if contract || excused || source.in_tests_folder() {
        return None;
    }
    let code = source.shipped_code();
    let derives = code.match_indices("derive(").any(|(at, _)| {
        let list = code[at..].split(')').next().unwrap_or_default();
        has_word(list, "Serialize") || has_word(list, "Deserialize")
    });
    let implements = ["Serialize for ", "Deserialize<'de> for "]
        .iter()
        .any(|words| code.contains(words));
    (derives || implements).then(|| "only `contract/` types are serialized".into())
}

#[test]
fn every_file_opens_with_what_and_why() {
    assert_clean(each(&sources(), header_missing));
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    assert_clean(each(&sources(), too_long));
}

#[test]
fn unsafe_code_has_one_home() {
    assert_clean(each(&sources(), misplaced_unsafe));
}

#[test]
fn ignored_tests_and_open_ends_say_why() {
    assert_clean(each(&sources(), ignored_without_reason));
    assert_clean(each(&sources(), loose_end));
}

#[test]
fn modules_are_files_named_after_themselves() {
    assert_clean(each(&sources(), mod_file));
}

#[test]
fn every_queue_is_bounded() {
    assert_clean(each(&sources(), queue_without_cap));
}

#[test]
fn only_service_local_and_cli_read_the_environment() {
    assert_clean(each(&sources(), environment));
}

#[test]
fn tests_wait_for_conditions_not_for_time() {
    assert_clean(each(&sources(), sleeping_test));
}

#[test]
fn only_contract_types_are_serialized() {
    assert_clean(each(&sources(), misplaced_serialization));
    for (place, reason) in SERIALIZED {
        assert!(
            sources()
                .iter()
                .any(|source| source.path.starts_with(place)),
            "{place} is gone"
        );
        assert!(!reason.is_empty());
    }
}

#[test]
fn each_rule_notices_its_breach() {
    let check = |rule: fn(&Source) -> Option<String>, path: &str, bad: &str, good: &str| {
        assert!(
            rule(&Source::new(path, bad)).is_some(),
            "not noticed: {bad}"
        );
        assert_eq!(
            rule(&Source::new(path, good)),
            None,
            "wrongly noticed: {good}"
        );
    };
    check(
        header_missing,
        "core/src/a.rs",
        "use std::io;",
        "//! What this is.\n",
    );
    check(
        too_long,
        "core/src/a.rs",
        &"\n".repeat(1_001),
        &"\n".repeat(1_000),
    );
    check(
        misplaced_unsafe,
        "core/src/a.rs",
        "unsafe { f() }",
        "// unsafe\n\"unsafe\"; r#\"unsafe\"#; unsafe_code",
    );
    check(
        misplaced_unsafe,
        "core/src/lib.rs",
        "//! x",
        "#![forbid(unsafe_code)]",
    );
    check(
        misplaced_unsafe,
        FFI,
        "unsafe { f() }",
        "#![expect(unsafe_code, reason = \"C\")] unsafe { f() }",
    );
    check(
        ignored_without_reason,
        "core/src/a.rs",
        "#[ignore]",
        "#[ignore = \"slow\"]",
    );
    check(
        loose_end,
        "core/src/a.rs",
        concat!("// TO", "DO mend"),
        "// TODO(#12) mend",
    );
    assert!(mod_file(&Source::new("core/src/a/mod.rs", "")).is_some());
    assert_eq!(mod_file(&Source::new("core/src/a.rs", "")), None);
    check(
        queue_without_cap,
        "core/src/a.rs",
        "mpsc::unbounded_channel()",
        "mpsc::channel(7)",
    );
    check(
        environment,
        "input/src/a.rs",
        "std::env::var(\"X\")",
        "#[cfg(test)]\nmod tests { std::env::var(\"X\") }",
    );
    check(
        sleeping_test,
        "input/tests/a.rs",
        "if x {\n    tokio::time::sleep(x).await;\n}",
        "loop {\n    if x {\n        return;\n    }\n    tokio::time::sleep(x).await;\n}",
    );
    check(
        sleeping_test,
        "input/tests/a.rs",
        "tokio::time::sleep(x)",
        "// Longer than the lease.\ntokio::time::sleep(x)",
    );
    check(
        misplaced_serialization,
        "input/src/a.rs",
        "#[derive(Debug, Serialize)]",
        "#[derive(Debug)] // Serialize",
    );
    check(
        misplaced_serialization,
        "input/src/a.rs",
        "impl Serialize for X",
        "fn x(serializer: S)",
    );
}
