//! What only a cluster of several Kafka nodes can show. It is started here and taken down again,
//! because its nodes are killed.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use millrace_integration_tests::broker::BrokerKind;
use millrace_integration_tests::process::print_tail;
use millrace_integration_tests::{App, Event, World, scenario, wait_until};
use tempfile::TempDir;

/// One cluster at a time: three virtual machines are enough for a small machine.
static ONE: Mutex<()> = Mutex::new(());

/// Three nodes, each broker and controller.
struct Nodes {
    folder: TempDir,
    bootstrap: String,
    _one: MutexGuard<'static, ()>,
}

impl Nodes {
    /// Starts them; `None`, with the reason printed, where there is no real Kafka.
    fn start() -> Option<Self> {
        BrokerKind::kafka()?;
        let folder = tempfile::Builder::new()
            .prefix("millrace-kafka-")
            .tempdir()
            .expect("a folder");
        let mut nodes = Self {
            folder,
            bootstrap: String::new(),
            _one: ONE.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let said = nodes.script(&["start"]);
        let bootstrap = said
            .lines()
            .find_map(|line| line.strip_prefix("MILLRACE_TEST_KAFKA="));
        nodes.bootstrap = bootstrap.expect("an address").to_owned();
        Some(nodes)
    }

    fn script(&self, arguments: &[&str]) -> String {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("bed/kafka.sh");
        let output = Command::new(path)
            .args(arguments)
            .env("MILLRACE_KAFKA_NODES", "3")
            .env("MILLRACE_KAFKA_DATA", self.folder.path())
            .output()
            .expect("kafka.sh runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn kill(&self, node: &str) {
        self.script(&["kill", node]);
    }

    fn revive(&self, node: &str) {
        self.script(&["revive", node]);
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["kafka.log", "kafka.log-2", "kafka.log-3"] {
                print_tail(&self.folder.path().join(log));
            }
        }
        self.script(&["wipe"]);
    }
}

/// Each node dies in turn, and comes back before the next one does.
fn nodes_die_in_turn(world: World, nodes: &Nodes) {
    let world = world.partitions(4).app(App::doubler()).start();
    let load = world.load(150, 30);
    world.has_results(100);
    let topics = ["in", "out"].map(|part| world.topic(part));
    for node in ["1", "2", "3"] {
        nodes.kill(node);
        let stored = world.results_count();
        // By those partitions too that the dead node led.
        world.has_results(stored + 600);
        nodes.revive(node);
        for topic in &topics {
            wait_until("all replicas are in sync", || {
                let in_sync = world.cluster.in_sync(topic);
                in_sync.is_some_and(|nodes| nodes.len() == 3)
            });
        }
    }
    world.assert_load_answered(load);
}

#[test]
fn f_1_nodes_of_a_cluster_die_in_turn_and_nothing_is_lost_or_doubled_against_the_guarantee() {
    let Some(nodes) = Nodes::start() else { return };
    scenario(
        "F-1",
        &["D-H1", "D-G6", "D-O1", "D-W3", "D-E5"],
        "one node of three is killed after the other under load; leaders and coordinators move",
    );
    let world = || World::on(BrokerKind::Kafka(nodes.bootstrap.clone()));
    nodes_die_in_turn(world(), &nodes);
    // When a transaction does not end because librdkafka waits for a node that is gone.
    let soon = |world: World| world.set("delivery.transaction.timeout", "10s");
    nodes_die_in_turn(soon(world().exactly_once()), &nodes);
}

/// The replica that was away is elected although it lacks what the leader had acknowledged.
#[test]
fn f_16_an_unclean_election_halts_the_partition() {
    let Some(nodes) = Nodes::start() else { return };
    scenario(
        "F-16",
        &["D-G9", "D-G10"],
        "an unclean election cuts the log below our position, with the input there and away",
    );
    let world = || {
        World::on(BrokerKind::Kafka(nodes.bootstrap.clone()))
            .input_kept_by(&[1, 2])
            .topic_with("in", "unclean.leader.election.enable", "true")
            .property("topic.metadata.refresh.interval.ms", 1_000)
            .app(App::echo())
            .start()
    };
    let (reads, mut away) = (world(), world());
    for world in [&reads, &away] {
        world.send_numbers(100, 10);
        world.settles();
    }
    nodes.kill("2");
    for world in [&reads, &away] {
        wait_until("the follower is missed", || {
            let in_sync = world.cluster.in_sync(&world.topic("in"));
            in_sync.is_some_and(|nodes| nodes == [1])
        });
        world.send_numbers(50, 10);
        world.settles();
        assert_eq!(world.results_count(), 150);
    }
    assert_eq!(away.input().end().code(), Some(0));
    nodes.kill("1");
    nodes.revive("2");
    for world in [&reads, &away] {
        let topic = world.topic("in");
        wait_until("the follower leads", || {
            world.cluster.leader(&topic) == Some(2)
        });
        assert_eq!(world.cluster.ends(&topic)[&0], 100, "the log is shorter");
    }
    // Another history grows past the position that was committed: only the leader's epoch tells.
    away.send((0..80).map(|n| Event::of("k", format!("after {n}"))));
    away.input().start();
    reads.send((0..20).map(|n| Event::of("k", format!("after {n}"))));
    for world in [&reads, &away] {
        wait_until("the partition halts", || {
            let state = world.pods[0].state();
            let partition = &state["partitions"][0];
            let reason = partition["reason"].as_str().unwrap_or_default();
            partition["phase"] == "halted" && reason.contains("the log was cut below position 150")
        });
        assert_eq!(
            world.results_count(),
            150,
            "events of another history were answered as if nothing had happened"
        );
    }
}
