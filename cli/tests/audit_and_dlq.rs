//! `millrace audit` and `millrace dlq` on logs whose content is known.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use millrace_broker::{Broker, Options};
use millrace_cli::connect::Cluster;
use millrace_connectors::kafka::Settings;
use millrace_connectors::{Delivery, Record, Sink, TokenStore};
use millrace_core::contract::commit::{LedgerImage, Metadata};
use millrace_core::contract::grant::{Grant, Seeding};
use millrace_core::identity::{PartitionIdentity, ResultId};
use millrace_core::intake::io::{CommitOutcome, Committed};
use millrace_core::position::{Partition, Position};
use millrace_core::token::{ReleaseId, Token};

const BLOCK: &str = "\
identity: local/demo/score
connections: {main: {embedded: {}}}
input: {kafka: {connection: main, topics: [orders], startAt: Earliest}}
output: {kafka: {connection: main, topic: scores}}
app: {shadow: Safe, local: {command: [x]}}
";

/// A broker with what a run of the block `score` would leave behind.
struct Left {
    broker: Broker,
    cluster: Cluster,
    cluster_id: String,
    folder: tempfile::TempDir,
}

impl Left {
    async fn new() -> Self {
        let broker = Broker::start(Options::memory()).unwrap();
        for topic in ["orders", "scores", "score.dlq"] {
            broker.create_topic(topic, 1, &[]).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("block.yaml"), BLOCK).unwrap();
        let settings = Settings::plain(broker.bootstrap(), "test");
        Self {
            cluster: Cluster::new(settings).unwrap(),
            cluster_id: broker.cluster_id(),
            broker,
            folder,
        }
    }

    fn block(&self) -> PathBuf {
        self.folder.path().join("block.yaml")
    }

    fn millrace(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_millrace"))
            .args(arguments)
            .env("MILLRACE_BOOTSTRAP", self.broker.bootstrap())
            .env_remove("MILLRACE_RELEASE")
            .output()
            .unwrap()
    }

    /// Runs an audit; gives back the exit code and the report.
    fn audit(&self, options: &[&str]) -> (i32, serde_json::Value) {
        let block = self.block();
        let arguments = [&["audit", block.to_str().unwrap(), "-o", "json"], options].concat();
        let output = self.millrace(&arguments);
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {output:?}");
        });
        (output.status.code().unwrap(), report)
    }

    async fn append(&self, records: Vec<Record>) {
        let mut sink = self.cluster.sink(Duration::from_secs(10)).unwrap();
        let wanted = records.len();
        for (ticket, record) in (0..).zip(records) {
            assert!(sink.append(ticket, record).is_ok());
        }
        let mut ends = Vec::new();
        while ends.len() < wanted {
            sink.deliveries(&mut ends).await;
        }
        let stored = |end: &(u64, Delivery)| matches!(end.1, Delivery::Stored { .. });
        assert!(ends.iter().all(stored), "{ends:?}");
    }

    fn event_id(&self, position: i64) -> millrace_core::identity::EventId {
        PartitionIdentity::new(&self.cluster_id, "orders", 0).event_id(Position::new(position))
    }

    fn result(&self, position: i64) -> Record {
        let id = ResultId::of(&self.event_id(position), 0);
        record(
            "scores",
            "result",
            &[
                ("millrace-id", id.as_str()),
                ("millrace-src", &format!("orders/0/{position}")),
                ("millrace-release", "r1"),
                ("millrace-epoch", "1"),
            ],
        )
    }

    fn dead_letter(&self, position: i64, reason: &str, redrives: &str) -> Record {
        record(
            "score.dlq",
            &format!("event {position}"),
            &[
                ("mine", "1"),
                ("millrace-dlq-reason", reason),
                ("millrace-dlq-stage", "app"),
                ("millrace-dlq-error-message", "no \u{1b}[31m good"),
                ("millrace-dlq-orig-topic", "orders"),
                ("millrace-dlq-orig-partition", "0"),
                ("millrace-dlq-orig-offset", &position.to_string()),
                ("millrace-dlq-id", self.event_id(position).as_str()),
                ("millrace-dlq-app-release", "r1"),
                ("millrace-dlq-redrive-count", redrives),
            ],
        )
    }

    async fn commit(&self, group: &str, position: i64, metadata: String) {
        let committed = Committed {
            position: Position::new(position),
            metadata,
        };
        let offsets = vec![(Partition::new("orders", 0), committed)];
        let store = self.cluster.store().unwrap();
        let outcome = store.commit_if_empty(group, offsets).await.unwrap();
        assert_eq!(outcome, CommitOutcome::Done);
    }

    /// What the starter and the owner commit: the registry, and the live release's position.
    async fn commit_live(&self, position: i64, ledger: LedgerImage) {
        let grant = Grant {
            root: ReleaseId::new("r1").unwrap(),
            seeding: Some(Seeding::Seeded(1)),
            release: None,
        };
        let registry = "millrace.local/demo/score.registry";
        self.commit(registry, 0, grant.encode()).await;
        let token = Token::Live {
            epoch: 1,
            from: Position::START,
            peer: None,
        };
        let metadata = Metadata {
            ledger,
            ..Metadata::of_outsider(token, None)
        };
        let group = "millrace.local/demo/score.r1";
        self.commit(group, position, metadata.encode()).await;
    }
}

fn record(topic: &str, value: &str, headers: &[(&str, &str)]) -> Record {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let headers = headers.iter().map(|(n, v)| (bytes(n), Some(bytes(v))));
    Record {
        topic: topic.into(),
        partition: Some(0),
        timestamp_ms: Some(1_767_225_600_000),
        key: Some("k".into()),
        value: Some(bytes(value)),
        headers: headers.collect(),
    }
}

async fn with_orders(count: i64) -> Left {
    let left = Left::new().await;
    let orders = (0..count).map(|number| record("orders", &number.to_string(), &[]));
    left.append(orders.collect()).await;
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d_v3_every_settled_event_is_accounted_for() {
    let left = with_orders(8).await;
    // 0-3 are answered, 4 died, 5 has no outcome, 6 is answered above the watermark, 7 is open.
    let results = [0, 1, 2, 3, 6].map(|position| left.result(position));
    left.append(results.to_vec()).await;
    left.append(vec![left.dead_letter(4, "permanent", "0")])
        .await;
    let mut ledger = LedgerImage::default();
    ledger.set_terminal(1);
    left.commit_live(5, ledger).await;

    let (code, report) = left.audit(&[]);
    assert_eq!((code, &report["ok"]), (0, &true.into()), "{report:#}");
    let counts = [
        "events",
        "answered",
        "dead_lettered",
        "filtered",
        "pending",
        "lost",
    ];
    let counts = counts.map(|name| report[name].as_u64().unwrap());
    // 5 is at the watermark, so it is pending like 7.
    assert_eq!(counts, [8, 5, 1, 0, 2, 0], "{report:#}");

    left.commit_live(7, LedgerImage::default()).await;
    let (code, report) = left.audit(&[]);
    assert_eq!((code, &report["filtered"]), (0, &1.into()), "{report:#}");
    assert!(report["notes"].to_string().contains("--no-filter"));
    let (code, report) = left.audit(&["--filtered", "1"]);
    assert_eq!((code, &report["filtered"]), (0, &1.into()), "{report:#}");
    let (code, report) = left.audit(&["--no-filter"]);
    assert_eq!((code, &report["lost"]), (1, &1.into()), "{report:#}");
    assert_eq!(report["offenders"][0]["event"], "orders/0/5");
    let (code, report) = left.audit(&["--settled", "--no-filter"]);
    assert_eq!((code, &report["lost"]), (1, &2.into()), "{report:#}");
    left.broker.shutdown().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_and_disorder_are_found_in_the_topics() {
    let left = with_orders(4).await;
    let results = [0, 1, 0, 1, 3, 2].map(|position| left.result(position));
    left.append(results.to_vec()).await;
    left.commit_live(4, LedgerImage::default()).await;
    let (code, report) = left.audit(&["--no-filter"]);
    assert_eq!(code, 1);
    assert_eq!(report["duplicated"], 2, "{report:#}");
    assert_eq!(report["out_of_order"], 1, "{report:#}");
    assert_eq!(report["repeat_span_max"], 1, "{report:#}");
    let (code, _) = left.audit(&["--allow-duplicates"]);
    assert_eq!(code, 1, "disorder is never allowed");
    let (code, report) = left.audit(&["--allow-duplicates", "--ordering", "none"]);
    assert_eq!(code, 0, "{report:#}");
    let block = left.block();
    let text = left.millrace(&["audit", block.to_str().unwrap(), "--no-filter"]);
    let text = String::from_utf8(text.stdout).unwrap();
    let last =
        "audit: events=4 answered=4 filtered=0 dead_lettered=0 lost=0 duplicated=2 out_of_order=1";
    assert_eq!(text.lines().last(), Some(last), "{text}");
    left.broker.shutdown().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_never_ran_has_only_pending_events() {
    let left = with_orders(3).await;
    let (code, report) = left.audit(&["--no-filter"]);
    assert_eq!((code, &report["pending"]), (0, &3.into()), "{report:#}");
    assert!(
        report["notes"]
            .to_string()
            .contains("has the block ever run?")
    );
    left.broker.shutdown().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d_d6_dead_letters_are_listed_shown_and_sent_again() {
    let left = with_orders(3).await;
    let dead = vec![
        left.dead_letter(0, "permanent", "0"),
        left.dead_letter(1, "retries_exhausted", "2"),
        left.dead_letter(2, "retries_exhausted", "3"),
    ];
    left.append(dead).await;
    let block = left.block();
    let block = block.to_str().unwrap();
    let said = |arguments: &[&str]| {
        let output = left.millrace(&[&["dlq"], arguments].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, list) = said(&["ls", block]);
    assert_eq!(code, 0);
    assert!(
        list.contains("score.dlq/0/1 retries_exhausted (app)"),
        "{list}"
    );
    assert!(
        list.contains("3 dead letters: permanent 1, retries_exhausted 2"),
        "{list}"
    );
    assert!(
        !list.contains('\u{1b}'),
        "control characters of others are not shown"
    );
    let (_, list) = said(&[
        "ls",
        "--topic",
        "score.dlq",
        "--reason",
        "permanent",
        "-o",
        "json",
    ]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["offset"], 0);

    let (code, shown) = said(&["show", block, "0/1"]);
    assert_eq!(code, 0);
    assert!(shown.contains("millrace-dlq-orig-offset: 1") && shown.contains("value: event 1"));
    assert_eq!(said(&["show", block, "0/99"]).0, 1);
    let (_, lines) = said(&["export", block, "--reason", "retries_exhausted"]);
    assert_eq!(lines.lines().count(), 2);

    let (code, plan) = said(&["replay", block, "0/0", "--dry-run"]);
    assert_eq!((code, plan.lines().count()), (0, 2), "{plan}");
    assert_eq!(left.broker.partition("orders", 0).unwrap().end, 3);
    // The third was sent again three times already (deadLetter.maxRedrives).
    let (code, summary) = said(&["replay", block, "--all"]);
    assert_eq!(
        (code, summary.as_str()),
        (1, "2 sent again, 1 refused, 0 failed\n")
    );
    assert_eq!(left.broker.partition("orders", 0).unwrap().end, 5);
    let output = left.millrace(&["tail", "orders", "--from", "4", "--json"]);
    let event: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let headers = event["headers"].as_array().unwrap();
    let value = |name: &str| {
        let header = headers.iter().find(|header| header[0] == name);
        header.map(|header| header[1].as_str().unwrap().to_owned())
    };
    assert_eq!(event["value"], "event 1");
    assert_eq!(event["timestamp"], 1_767_225_600_000_i64);
    assert_eq!(value("mine").as_deref(), Some("1"));
    let id = left.event_id(1);
    assert_eq!(value("millrace-redrive-of").as_deref(), Some(id.as_str()));
    assert_eq!(value("millrace-redrive-count").as_deref(), Some("3"));
    left.broker.shutdown().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflight_asks_brokers_and_app() {
    let left = with_orders(1).await;
    let block = left.block();
    let block = block.to_str().unwrap();
    let output = left.millrace(&["check", block, "--connect", "--no-app", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    for name in [
        "input brokers",
        "input topic",
        "output topic",
        "dead-letter topic",
        "commit metadata",
    ] {
        assert!(names.contains(&name), "{name} is missing: {found:#}");
    }
    let output = left.millrace(&["check", block, "--connect", "--app", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("app health: http://127.0.0.1:1/healthz"),
        "{said}"
    );
    left.broker.shutdown().unwrap();
}
