//! What only a cluster of several Kafka nodes can show. It is started here and taken down again,
//! because its nodes are killed.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use millrace_integration_tests::broker::BrokerKind;
use millrace_integration_tests::{App, World, scenario, wait_until};
use tempfile::TempDir;

/// Three nodes, each broker and controller.
struct Nodes {
    folder: TempDir,
    bootstrap: String,
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
    nodes_die_in_turn(world().exactly_once(), &nodes);
}
