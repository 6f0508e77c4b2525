//! A world around one block, told in product words: a broker, topics, an app, pods.
//!
//! Each world has topics, a group, ports and a folder of its own, so that stories run beside
//! each other on one broker.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering as Memory};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{App, Door, RunningApp};
use crate::broker::{BrokerKind, RunningBroker, free_port};
use crate::judge::{Evidence, Ordering, Verdict, judge};
use crate::line::Line;
use crate::load::Load;
use crate::pod::Pod;
use crate::process::{Process, binary};
use crate::records::{Cluster, Event, Record};
use crate::wait::{look_for, wait_for, wait_until};
use crate::wall_clock::WallClock;

/// How long a world may take until every event is settled.
const SETTLED: Duration = Duration::from_secs(90);

/// How soon a block has to work again: the session of a killed input has to end first.
const RECOVERED: Duration = Duration::from_secs(18);

/// Results that show that it works again.
const PROGRESS: usize = 25;

/// A world that is being described.
#[derive(Debug)]
pub struct World {
    broker: BrokerKind,
    app: Option<App>,
    partitions: i32,
    pods: usize,
    spec: Value,
    topics: Vec<(&'static str, Vec<(&'static str, &'static str)>)>,
    lines: Vec<Place>,
    properties: Value,
    replicas: Vec<i32>,
    clocks: Vec<(usize, WallClock)>,
}

/// Where a line can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Between the pods and the broker.
    Broker,
    /// Between the output alone and the broker.
    Output,
    /// Between the input and the app.
    App,
}

impl World {
    /// On the embedded broker, in memory.
    pub fn embedded() -> Self {
        Self::on(BrokerKind::Memory)
    }

    /// On the embedded broker, in files.
    pub fn embedded_in_files() -> Self {
        Self::on(BrokerKind::Files)
    }

    /// On this broker.
    pub fn on(broker: BrokerKind) -> Self {
        Self {
            broker,
            app: None,
            partitions: 2,
            pods: 1,
            spec: json!({
                "topics": {"create": "Missing"},
                // Stories wait for commits.
                "delivery": {"commitInterval": "100ms"},
                "app": {"shadow": "Safe"},
            }),
            topics: vec![("in", Vec::new())],
            lines: Vec::new(),
            properties: json!({}),
            replicas: Vec::new(),
            clocks: Vec::new(),
        }
    }

    /// With this app; without one, a separate process that echoes is the app.
    #[must_use]
    pub fn app(mut self, app: App) -> Self {
        self.app = Some(app);
        self
    }

    /// With so many partitions in the input topic.
    #[must_use]
    pub fn partitions(mut self, partitions: i32) -> Self {
        self.partitions = partitions;
        self
    }

    /// With so many pods.
    #[must_use]
    pub fn pods(mut self, pods: usize) -> Self {
        self.pods = pods;
        self
    }

    /// The input of this pod, counted from 0, has a wrong wall clock.
    #[must_use]
    pub fn clock_of_pod(mut self, number: usize, clock: WallClock) -> Self {
        self.clocks.push((number, clock));
        self
    }

    /// The app posts its results.
    #[must_use]
    pub fn push(self) -> Self {
        self.set("app.contract.mode", "Push")
    }

    /// The app is asked about several events at once.
    #[must_use]
    pub fn batch(self) -> Self {
        self.set("app.contract.request", "Batch")
    }

    /// With a key of the block document, as `delivery.window`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut node = &mut self.spec;
        for part in key.split('.') {
            node = &mut node[part];
        }
        *node = value.into();
        self
    }

    /// With the shortest times that obey R4, for stories that wait for a session to end.
    #[must_use]
    pub fn short_sessions(self) -> Self {
        self.set("delivery.sessionTimeout", "6s")
            .set("delivery.lease", "500ms")
            .set("delivery.messageTimeout", "500ms")
    }

    /// Exactly-once, with times that suit a story.
    #[must_use]
    pub fn exactly_once(self) -> Self {
        self.set("delivery.guarantee", "ExactlyOnce")
            .set("delivery.transaction.interval", "100ms")
    }

    /// With one partition in the input topic, which these nodes keep; the first leads.
    #[must_use]
    pub fn input_kept_by(mut self, nodes: &[i32]) -> Self {
        self.replicas = nodes.to_vec();
        self.partitions(1)
    }

    /// With a property of librdkafka, to shorten its times.
    #[must_use]
    pub fn property(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.properties[name] = value.into();
        self
    }

    /// With a line between the pods and the broker; writers and judges go round it.
    #[must_use]
    pub fn line_to_broker(mut self) -> Self {
        self.lines.push(Place::Broker);
        self
    }

    /// With a line between the output and the broker, and a connection of its own.
    #[must_use]
    pub fn line_of_output(mut self) -> Self {
        self.lines.push(Place::Output);
        self
    }

    /// With a line between the input and the app.
    #[must_use]
    pub fn line_to_app(mut self) -> Self {
        self.lines.push(Place::App);
        self
    }

    /// Nobody creates the topics.
    #[must_use]
    pub fn without_topics(mut self) -> Self {
        self.topics.clear();
        self.set("topics.create", "Never")
    }

    /// The topic that is called `in`, `out` or `dlq` is there before the start, and takes records
    /// of so many bytes.
    #[must_use]
    pub fn topic_of(self, part: &'static str, bytes_max: &'static str) -> Self {
        self.topic_with(part, "max.message.bytes", bytes_max)
    }

    /// The topic that is called `in`, `out` or `dlq` is there before the start, configured so.
    #[must_use]
    pub fn topic_with(
        mut self,
        part: &'static str,
        name: &'static str,
        value: &'static str,
    ) -> Self {
        self.topics.retain(|(other, _)| *other != part);
        self.topics.push((part, vec![(name, value)]));
        self
    }

    /// Writes everything down and starts broker and app, but no pod.
    pub fn prepare(self) -> Running {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "s{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Memory::Relaxed)
        );
        let folder = tempfile::Builder::new()
            .prefix("millrace-")
            .tempdir()
            .expect("a folder");
        let broker = RunningBroker::start(&self.broker, folder.path());
        let cluster = Cluster::at(&broker.bootstrap);
        let topic = |part: &str| format!("{name}-{part}");
        for (part, config) in &self.topics {
            if *part == "in" && !self.replicas.is_empty() {
                cluster.create_topic_at(&topic(part), &self.replicas, config);
            } else {
                cluster.create_topic(&topic(part), self.partitions, config);
            }
        }
        let socket = folder.path().join("app");
        let door = match self.spec["app"]["contract"]["transport"].as_str() {
            Some("UnixSocket") => Door::Socket(socket.clone()),
            Some("Http2") => Door::Http2,
            _ => Door::Tcp,
        };
        let app = self.app.map(|app| app.start(door));
        let app_process = app.is_none().then(|| echo_process(&folder));
        let mut port = match (&app, &app_process) {
            (Some(app), _) => app.port,
            (None, Some((_, port))) => *port,
            (None, None) => unreachable!("one of the two"),
        };
        let has = |place| self.lines.contains(&place);
        let to_broker = has(Place::Broker).then(|| Line::to_kafka(&broker.bootstrap));
        let of_output = has(Place::Output).then(|| Line::to_kafka(&broker.bootstrap));
        let to_app = has(Place::App).then(|| Line::to(port));
        port = to_app.as_ref().map_or(port, |line| line.port);
        let mut spec = self.spec;
        spec["identity"] = format!("tests/stories/{name}").into();
        if spec["connections"].is_null() {
            let properties = &self.properties;
            let at = |address: String| {
                let bootstrap: Vec<&str> = address.split(',').collect();
                json!({"kafka": {"bootstrap": bootstrap, "tls": "Off", "properties": properties}})
            };
            let direct = broker.bootstrap.clone();
            let address = to_broker.as_ref().map_or(direct, Line::address);
            spec["connections"] = json!({"main": at(address)});
            if let Some(line) = &of_output {
                spec["connections"]["output"] = at(line.address());
            }
        }
        spec["topics"]["partitions"] = self.partitions.into();
        spec["app"]["port"] = port.into();
        spec["app"]["socket"] = json!(socket);
        let input = json!({"connection": "main", "topics": [topic("in")], "startAt": "Earliest"});
        let connection = of_output.as_ref().map_or("main", |_| "output");
        let output =
            json!({"connection": connection, "topic": topic("out"), "deadLetter": topic("dlq")});
        merge(&mut spec["input"]["kafka"], input);
        merge(&mut spec["output"]["kafka"], output);
        let ordering = match spec["delivery"]["ordering"].as_str() {
            None | Some("Key") => Ordering::Key,
            Some("Partition") => Ordering::Partition,
            Some(_) => Ordering::None,
        };
        let pods: Vec<Pod> = (0..self.pods)
            .map(|number| {
                let pod = Pod::new(number, spec.clone(), folder.path());
                let clock = self.clocks.iter().find(|(of, _)| *of == number);
                match clock {
                    Some((_, clock)) => pod.shift_clock(&clock.library(folder.path())),
                    None => pod,
                }
            })
            .collect();
        if let Some(app) = &app {
            app.post_to(pods.iter().filter_map(|pod| pod.push).collect());
        }
        Running {
            pods,
            app,
            app_process: app_process.map(|(process, _)| process),
            window: spec["delivery"]["window"].as_i64().unwrap_or(5_000),
            group: format!("millrace.tests/stories/{name}.{}", crate::pod::RELEASE),
            broker,
            cluster,
            once: spec["delivery"]["guarantee"] == "ExactlyOnce",
            to_broker,
            of_output,
            to_app,
            ordering,
            name,
            partitions: self.partitions,
            folder,
        }
    }

    /// Starts everything.
    pub fn start(self) -> Running {
        let mut running = self.prepare();
        for pod in &mut running.pods {
            pod.start();
        }
        running
    }
}

/// Adds the members of `more` to an object that may not be there yet.
fn merge(into: &mut Value, more: Value) {
    let Value::Object(more) = more else { return };
    for (name, value) in more {
        into[name] = value;
    }
}

/// An app that can be killed with signal 9, because it is a process.
fn echo_process(folder: &TempDir) -> (Process, u16) {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["echo-app", "--listen", &listen];
    let mut process = Process::new("app", binary("millrace"), &arguments, folder.path());
    process.start();
    (process, port)
}

/// A world that runs.
#[derive(Debug)]
pub struct Running {
    // Dropped in this order: proxies first, the folder with their logs last.
    /// Its pods.
    pub pods: Vec<Pod>,
    /// The app, if it follows a script.
    app: Option<RunningApp>,
    app_process: Option<Process>,
    /// Its broker.
    pub broker: RunningBroker,
    /// The broker as clients see it.
    pub cluster: Cluster,
    once: bool,
    to_broker: Option<Line>,
    of_output: Option<Line>,
    to_app: Option<Line>,
    ordering: Ordering,
    window: i64,
    name: String,
    group: String,
    partitions: i32,
    folder: TempDir,
}

impl Running {
    /// The scripted app.
    pub fn app(&self) -> &RunningApp {
        self.app.as_ref().expect("an app that follows a script")
    }

    /// The app that is a process.
    pub fn app_process(&mut self) -> &mut Process {
        self.app_process.as_mut().expect("an app that is a process")
    }

    /// The input proxy of the only pod.
    pub fn input(&mut self) -> &mut Process {
        &mut self.pods[0].input
    }

    /// The output proxy of the only pod.
    pub fn output(&mut self) -> &mut Process {
        &mut self.pods[0].output
    }

    /// The line between the pods and the broker.
    pub fn line_to_broker(&self) -> &Line {
        self.to_broker.as_ref().expect("a line to the broker")
    }

    /// The line between the output and the broker.
    pub fn line_of_output(&self) -> &Line {
        self.of_output.as_ref().expect("a line of the output")
    }

    /// The line between the input and the app.
    pub fn line_to_app(&self) -> &Line {
        self.to_app.as_ref().expect("a line to the app")
    }

    /// Name of the topic that is called `in`, `out` or `dlq`.
    pub fn topic(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    /// The name of the block: the last part of its identity.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The consumer group of the release.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Its folder.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Sends events and waits until the broker has them.
    pub fn send(&self, events: impl IntoIterator<Item = Event>) {
        let writer = self.cluster.writer(&self.topic("in"));
        let mut sent = 0;
        for event in events {
            writer.write(&event);
            sent += 1;
        }
        assert_eq!(writer.flush(), sent);
    }

    /// Sends the numbers below `count`, spread over so many keys.
    pub fn send_numbers(&self, count: usize, keys: usize) {
        self.send((0..count).map(|n| Event::of(format!("key-{}", n % keys), n.to_string())));
    }

    /// Starts to send numbers at this pace, until told to stop.
    pub fn load(&self, per_second: u32, keys: u32) -> Load {
        Load::start(self.cluster.writer(&self.topic("in")), per_second, keys)
    }

    /// Waits until every event is settled: the committed positions are the ends of the logs.
    pub fn settles(&self) {
        let topic = self.topic("in");
        let partitions: Vec<i32> = (0..self.partitions).collect();
        let commits = self.cluster.commits(&self.group);
        let ends = self.cluster.ends(&topic);
        let mut committed = None;
        let settled = look_for(SETTLED, || {
            committed = commits.of(&topic, &partitions);
            let all = committed.as_ref()?;
            let done = ends
                .iter()
                .all(|(p, end)| *end == 0 || all.get(p) == Some(end));
            done.then_some(())
        });
        let state = || {
            self.pods
                .iter()
                .map(|pod| format!("{:#}", pod.state()))
                .collect::<Vec<_>>()
        };
        assert!(
            settled.is_some(),
            "not settled within {} s: committed {committed:?} of {ends:?}\n{}",
            SETTLED.as_secs(),
            state().join("\n")
        );
    }

    /// The events as they stand in the input topic.
    pub fn events(&self) -> Vec<Record> {
        self.cluster.read(&self.topic("in"))
    }

    /// The group's generation when a member committed this partition last (E1, key `g`); waits
    /// for that.
    pub fn generation(&self, partition: i32) -> i32 {
        let commits = self.cluster.commits(&self.group);
        wait_for("a commit of a member", || {
            let (_, metadata) = commits.with_metadata(&self.topic("in"), partition)?;
            let field = metadata.split(';').find_map(|f| f.strip_prefix("g="));
            // The starter, who is no member, writes 0.
            field.and_then(|g| g.parse().ok()).filter(|g| *g > 0)
        })
    }

    /// Adds partitions to the input topic; later senders know them.
    pub fn add_partitions(&mut self, count: i32) {
        self.partitions += count;
        self.cluster
            .set_partitions(&self.topic("in"), self.partitions);
    }

    /// Creates a topic that was left out.
    pub fn create_topic(&self, part: &str) {
        self.cluster
            .create_topic(&self.topic(part), self.partitions, &[]);
    }

    /// The results so far.
    pub fn results(&self) -> Vec<Record> {
        self.cluster.read(&self.topic("out"))
    }

    /// The values of the results with this key, in order.
    pub fn results_of(&self, key: &str) -> Vec<String> {
        let results = self.results();
        let of_key = |r: &&Record| r.key.as_deref() == Some(key.as_bytes());
        results.iter().filter(of_key).map(Record::text).collect()
    }

    /// The dead letters so far.
    pub fn dead_letters(&self) -> Vec<Record> {
        let topic = self.topic("dlq");
        if self.cluster.has_topic(&topic) {
            self.cluster.read(&topic)
        } else {
            Vec::new()
        }
    }

    /// Waits until there are so many results.
    pub fn has_results(&self, count: usize) {
        let what = format!("{count} results in {}", self.topic("out"));
        wait_until(&what, || self.results_count() >= count);
    }

    /// The block works again soon after it had so many results.
    pub fn goes_on_after(&self, results: usize) {
        let goes_on = || (self.results_count() >= results + PROGRESS).then_some(());
        let again = look_for(RECOVERED, goes_on);
        let pages = || {
            let pages = self.pods.iter().map(|pod| {
                let (_, metrics) = pod.ask_output("/metrics").unwrap_or_default();
                let telling =
                    |l: &&str| !l.starts_with('#') && !l.contains("_bucket") && !l.ends_with(" 0");
                let metrics: Vec<&str> = metrics.lines().filter(telling).collect();
                format!("{:#}\n{}", pod.state(), metrics.join("\n"))
            });
            pages.collect::<Vec<_>>().join("\n")
        };
        assert!(
            again.is_some(),
            "no results within {RECOVERED:?}\n{}",
            pages()
        );
    }

    /// How many results there are; none while the broker does not answer.
    pub fn results_count(&self) -> usize {
        let ends = self
            .cluster
            .ends_now(&self.topic("out"))
            .unwrap_or_default();
        usize::try_from(ends.values().sum::<i64>()).expect("a small number")
    }

    /// What this world's own judge says.
    pub fn verdict(&self) -> Verdict {
        let evidence = Evidence {
            cluster: self.cluster.id(),
            topic: self.topic("in"),
            events: self.events(),
            results: self.results(),
            dead_letters: self.dead_letters(),
        };
        judge(&evidence, self.ordering)
    }

    /// Waits until everything is settled; then every event has a result or a dead letter, once,
    /// in order. `millrace audit` agrees.
    pub fn assert_each_event_answered_once(&self) -> Verdict {
        self.settles();
        let verdict = self.verdict();
        assert_eq!(verdict.repeats, 0, "{verdict:?}");
        self.assert_sound(&verdict, &["--no-filter"]);
        assert!(verdict.unanswered.is_empty(), "{verdict:?}");
        verdict
    }

    /// The same, but the app filtered exactly so many events.
    pub fn assert_answered_once_but(&self, filtered: usize) -> Verdict {
        self.settles();
        let verdict = self.verdict();
        assert_eq!(verdict.repeats, 0, "{verdict:?}");
        assert_eq!(verdict.unanswered.len(), filtered, "{verdict:?}");
        self.assert_sound(&verdict, &["--filtered", &filtered.to_string()]);
        verdict
    }

    /// The same after something broke: nothing is lost or out of order; repeats have equal ids
    /// and lie within the window. Under exactly-once there are none.
    pub fn assert_nothing_lost(&self) -> Verdict {
        if self.once {
            return self.assert_each_event_answered_once();
        }
        self.settles();
        let verdict = self.verdict();
        assert!(verdict.unanswered.is_empty(), "lost: {verdict:?}");
        assert!(verdict.furthest_repeat < self.window, "{verdict:?}");
        self.assert_sound(&verdict, &["--no-filter", "--allow-duplicates"]);
        verdict
    }

    /// The load ends; each of its events, and there are no others, is answered once.
    pub fn assert_load_answered_once(&self, load: Load) -> Verdict {
        let sent = load.stop();
        Self::assert_answered(sent, self.assert_each_event_answered_once())
    }

    /// The load ends; each of its events, and there are no others, is answered, maybe more than
    /// once.
    pub fn assert_load_answered(&self, load: Load) -> Verdict {
        let sent = load.stop();
        Self::assert_answered(sent, self.assert_nothing_lost())
    }

    fn assert_answered(sent: u32, verdict: Verdict) -> Verdict {
        assert_eq!(
            (verdict.answered, verdict.dead_lettered),
            (sent as usize, 0)
        );
        verdict
    }

    fn assert_sound(&self, verdict: &Verdict, options: &[&str]) {
        assert!(verdict.out_of_order.is_empty(), "{verdict:?}");
        assert!(verdict.unexplained.is_empty(), "{verdict:?}");
        let (code, report) = self.audit(options);
        let count =
            |name: &str| usize::try_from(report[name].as_u64().expect("a count")).expect("small");
        let agrees = count("events") == verdict.events
            && count("answered") == verdict.answered
            && count("dead_lettered") == verdict.dead_lettered
            && count("lost") + count("filtered") + count("pending") == verdict.unanswered.len()
            && count("duplicated") == verdict.repeats
            && count("out_of_order") == verdict.out_of_order.len()
            && count("wrong_id") + count("unknown_event") == verdict.unexplained.len();
        assert!(agrees, "audit and judge disagree\n{report:#}\n{verdict:?}");
        assert_eq!(code, 0, "{report:#}\n{verdict:?}");
    }

    /// `millrace audit BLOCK -o json`: exit code and report.
    pub fn audit(&self, options: &[&str]) -> (i32, Value) {
        let document = self.pods[0].document.display().to_string();
        let output = Command::new(binary("millrace"))
            .args(["audit", &document, "-o", "json"])
            .args(options)
            .output()
            .expect("millrace audit runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        (output.status.code().unwrap_or(-1), report)
    }
}
