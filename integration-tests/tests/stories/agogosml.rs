//! An app that was written for agogosml runs unchanged, and so does its environment (A-K1 to A-K8):
//! the proxies get nothing but those variables, and free ports.

use std::time::Duration;

use millrace_integration_tests::broker::free_port;
use millrace_integration_tests::process::{Process, binary};
use millrace_integration_tests::wait::wait_until;
use millrace_integration_tests::world::Running;
use millrace_integration_tests::{App, Event, Out, Record, Say, World, post};

const FAILED: &str = "Error: The callback failed to process the message";

/// The deployment: two proxies beside the app of a world whose own pods do not run.
struct Deployment {
    world: Running,
    input: Process,
    output: Process,
    writer: u16,
}

impl Deployment {
    /// With other variables besides, for the one or the other.
    fn new(app: App, input: &[(&str, &str)], output: &[(&str, &str)]) -> Self {
        let world = World::embedded()
            .partitions(1)
            .app(app.pushing_without_echo())
            .prepare();
        let publish = free_port().to_string();
        let (writer, bootstrap) = (free_port(), world.broker.bootstrap.clone());
        world.app().post_to(vec![writer]);
        let proxy = |name: &str, own: &[(&str, &str)], more: &[(&str, &str)]| {
            let program = binary(&format!("millrace-{name}"));
            let admin = free_port().to_string();
            let port = format!("MILLRACE__ADMIN__{}_PORT", name.to_uppercase());
            let process = Process::new(&format!("agogosml-{name}"), program, &[], world.folder())
                .env("MESSAGING_TYPE", "kafka")
                .env("KAFKA_ADDRESS", &bootstrap)
                .env("MILLRACE__PUBLISH__PORT", &publish)
                .env(&port, &admin);
            own.iter()
                .chain(more)
                .fold(process, |process, (name, value)| process.env(name, value))
        };
        let (from, to) = (world.topic("in"), world.topic("out"));
        let group = world.name().to_owned();
        let app_port = world.app().port.to_string();
        let reader = [
            ("KAFKA_TOPIC", from.as_str()),
            ("KAFKA_CONSUMER_GROUP", group.as_str()),
            ("APP_HOST", "localhost"),
            ("APP_PORT", app_port.as_str()),
        ];
        let port = writer.to_string();
        let sink = [
            ("KAFKA_TOPIC", to.as_str()),
            ("OUTPUT_WRITER_HOST", "localhost"),
            ("OUTPUT_WRITER_PORT", port.as_str()),
        ];
        let input = proxy("input", &reader, input);
        let output = proxy("output", &sink, output);
        Self {
            world,
            input,
            output,
            writer,
        }
    }

    fn start(mut self) -> Self {
        self.output.start();
        self.input.start();
        self
    }

    fn has_results(&self, count: usize) -> Vec<Record> {
        self.world.has_results(count);
        self.world.results()
    }

    fn has_dead_letters(&self, count: usize) -> Vec<Record> {
        let topic = format!("{}.dlq", self.world.topic("out"));
        let read = || {
            let there = self.world.cluster.has_topic(&topic);
            there.then(|| self.world.cluster.read(&topic))
        };
        wait_until("dead letters", || {
            read().is_some_and(|letters| letters.len() >= count)
        });
        read().unwrap_or_default()
    }

    /// A post of the app, whenever it likes.
    fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let answer = runtime.block_on(post(self.writer, "POST", "/", &headers, body));
        let (status, body) = answer.expect("an answer");
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(Record::text).collect()
}

#[test]
fn a_k1_both_spellings_of_a_name_must_agree_and_topics_stay_text() {
    let app = App::saying(|asked| Say::value(asked.text()));
    let deployment = Deployment::new(app, &[], &[]);
    let mut wrong = Process::new(
        "agogosml-two-secrets",
        binary("millrace-input"),
        &[],
        deployment.world.folder(),
    )
    .env("MESSAGING_TYPE", "kafka")
    .env("KAFKA_ADDRESS", &deployment.world.broker.bootstrap)
    .env("KAFKA_TOPIC", "t")
    .env("KAFKA_CONSUMER_GROUP", "g")
    .env("EVENT_HUB_KAFKA_CONNECTION_STRING", "Endpoint=sb://one")
    .env("EVENTHUB_KAFKA_CONNECTION_STRING", "Endpoint=sb://two");
    wrong.start();
    assert_eq!(wrong.ended().code(), Some(2), "{}", wrong.log());
    wrong.says("EVENT_HUB_KAFKA_CONNECTION_STRING");
    assert!(!wrong.log().contains("sb://"), "secrets stay out of logs");
    // A topic whose name looks like a number is that topic.
    let mut deployment = deployment;
    deployment.world.cluster.create_topic("123", 1, &[]);
    deployment.output = deployment.output.env("KAFKA_TOPIC", "123");
    let deployment = deployment.start();
    deployment.world.send([Event::of("k", "text")]);
    let read = || values(&deployment.world.cluster.read("123"));
    wait_until("the result in topic 123", || read() == ["text"]);
}

#[test]
fn a_k2_bodies_go_byte_for_byte_both_ways() {
    let bodies: [&[u8]; 4] = [
        b"a=1&b=%C3%A4&c=+",
        b"{\"key\":\"x\", \"intValue\": 1}\r\n",
        &[0xff, 0x00, 0xfe, b'\n'],
        b"plain",
    ];
    let app = App::saying(|asked| {
        let value = asked.value.clone().unwrap_or_default();
        Say::results(vec![Out::value(value)])
    });
    let deployment = Deployment::new(app, &[], &[]).start();
    deployment
        .world
        .send(bodies.iter().map(|body| Event::of("k", *body)));
    let results = deployment.has_results(bodies.len());
    for (result, body) in results.iter().zip(bodies) {
        assert_eq!(result.value.as_deref(), Some(body));
    }
    for asked in deployment.world.app().asked() {
        assert_eq!(
            asked.header("content-type"),
            None,
            "no type was in the record"
        );
    }
    for posted in deployment.world.app().posted() {
        let echo = [b"msg: ", &posted.value[..]].concat();
        assert_eq!((posted.status, posted.body), (Some(200), echo));
    }
}

#[test]
fn a_k3_retries_and_dead_letters_are_as_they_were() {
    let app = App::saying(|asked| match (asked.text().as_str(), asked.attempt) {
        ("twice busy", 1 | 2) | ("always busy", _) => Say::status(503),
        ("bad", _) => Say::status(400),
        (text, _) => Say::value(text),
    });
    // The waits of 1 s and more would only make the story longer.
    let quick = [
        ("MILLRACE__RETRY__BACKOFF__INITIAL", "20ms"),
        ("MILLRACE__RETRY__BACKOFF__MAX", "50ms"),
    ];
    let deployment = Deployment::new(app, &quick, &[]).start();
    let events = ["first", "twice busy", "always busy", "bad", "last"];
    deployment
        .world
        .send(events.map(|text| Event::of("k", text)));
    let results = deployment.has_results(3);
    assert_eq!(values(&results), ["first", "twice busy", "last"]);
    let letters = deployment.has_dead_letters(2);
    assert_eq!(values(&letters), ["always busy", "bad"]);
    let reasons: Vec<_> = letters
        .iter()
        .map(|letter| letter.header("millrace-dlq-reason").unwrap_or_default())
        .collect();
    assert_eq!(reasons, ["retries_exhausted", "permanent"]);
    let asked = |text| deployment.world.app().asked_about(text).len();
    assert_eq!(
        events.map(asked),
        [1, 3, 4, 1, 1],
        "how often the app was asked about each"
    );
}

#[test]
fn a_k4_a_broadcast_needs_every_topic() {
    let app = App::echo();
    let mut deployment = Deployment::new(app, &[], &[]);
    let (one, two) = (
        deployment.world.topic("out"),
        deployment.world.topic("second"),
    );
    let bootstrap = deployment.world.broker.bootstrap.clone();
    let client = |topic: &str| {
        format!(
            "{{'type': 'kafka', 'config': {{'KAFKA_ADDRESS': '{bootstrap}', 'KAFKA_TOPIC': '{topic}'}}}}"
        )
    };
    let clients = format!("[{}, {}]", client(&one), client(&two));
    deployment.output = deployment
        .output
        .env("MESSAGING_TYPE", "broadcast")
        .env("BROADCAST_CLIENTS", &clients)
        // A topic that is not there is waited for this long.
        .env("MILLRACE__DELIVERY__MESSAGE_TIMEOUT", "500ms")
        .env("MILLRACE__DELIVERY__LEASE", "2s");
    let deployment = deployment.start();
    deployment
        .world
        .send(["a", "b"].map(|text| Event::of("k", text)));
    assert_eq!(values(&deployment.has_results(2)), ["a", "b"]);
    assert_eq!(values(&deployment.world.cluster.read(&two)), ["a", "b"]);
    // One that nobody can store is a failure; the others keep the record.
    let missing = [("Millrace-Out-Topic", "nobody-made-it")];
    assert_eq!(deployment.post(&missing, b"c"), (500, FAILED.to_owned()));
    assert_eq!(
        values(&deployment.world.cluster.read(&two)),
        ["a", "b", "c"]
    );
}

#[test]
fn a_k5_a_wrong_environment_ends_with_2_and_names_the_variable() {
    let mut world = World::embedded().app(App::echo()).prepare();
    #[track_caller]
    fn check(world: &mut Running, name: &str, variables: &[(&str, &str)], named: &str) {
        let program = binary(&format!("millrace-{name}"));
        let process = Process::new(&format!("wrong-{named}"), program, &[], world.folder());
        let mut process = variables
            .iter()
            .fold(process, |process, (name, value)| process.env(name, value));
        process.start();
        assert_eq!(process.ended().code(), Some(2), "{}", process.log());
        process.says(named);
    }
    let kafka = ("MESSAGING_TYPE", "kafka");
    let address = ("KAFKA_ADDRESS", "127.0.0.1:1");
    check(
        &mut world,
        "input",
        &[("MESSAGING_TYPE", "pigeon")],
        "MESSAGING_TYPE",
    );
    check(&mut world, "input", &[kafka], "KAFKA_ADDRESS");
    check(
        &mut world,
        "input",
        &[kafka, address],
        "KAFKA_CONSUMER_GROUP",
    );
    check(&mut world, "output", &[kafka, address], "KAFKA_TOPIC");
    let port = ("OUTPUT_WRITER_PORT", "0");
    let topic = ("KAFKA_TOPIC", "t");
    check(
        &mut world,
        "output",
        &[kafka, address, topic, port],
        "OUTPUT_WRITER_PORT",
    );
    let redis = [("MESSAGING_TYPE", "redis"), ("REDIS_URL", "redis://r")];
    check(&mut world, "output", &redis, "not in this version");
    check(&mut world, "output", &[], "give the path of its document");
}

#[test]
fn a_k6_sigterm_loses_no_event_in_flight_and_the_old_group_is_continued() {
    let app = App::saying(|asked| Say::value(asked.text()).after(Duration::from_millis(150)));
    let deployment = Deployment::new(app, &[], &[]);
    deployment
        .world
        .send((0..10).map(|n| Event::of("k", n.to_string())));
    // The old reader had answered three.
    let (topic, group) = (
        deployment.world.topic("in"),
        deployment.world.name().to_owned(),
    );
    deployment.world.cluster.commit(&group, &topic, 0, 3);
    let mut deployment = deployment.start();
    deployment.has_results(2);
    assert_eq!(deployment.input.end().code(), Some(0));
    let answered = deployment.world.results().len();
    let asked = deployment.world.app().asked().len();
    assert_eq!(
        asked, answered,
        "what was at the app is answered, nothing else"
    );
    deployment.input.start();
    let results = deployment.has_results(7);
    let expect: Vec<String> = (3..10).map(|n| n.to_string()).collect();
    assert_eq!(values(&results), expect, "each once and in order");
    assert_eq!(deployment.input.end().code(), Some(0));
    assert_eq!(deployment.output.end().code(), Some(0));
    assert_eq!(deployment.world.results().len(), 7);
}

#[test]
fn a_k7_the_log_events_stay() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "bad" => Say::status(400),
        text => Say::value(text),
    });
    let deployment = Deployment::new(app, &[("LOG_CFG", "x")], &[]).start();
    let mut deployment = deployment;
    deployment
        .world
        .send(["good", "bad"].map(|text| Event::of("k", text)));
    deployment.has_results(1);
    deployment.has_dead_letters(1);
    assert!(deployment.input.end().success() && deployment.output.end().success());
    let input = deployment.input.log();
    for event in ["input.lifecycle.start", "input.lifecycle.stop", "LOG_CFG"] {
        assert!(input.contains(event), "{event}: {input}");
    }
    let of = |log: &str, event: &str, success: &str| {
        log.lines()
            .filter(|line| line.contains(event) && line.contains(success))
            .count()
    };
    assert_eq!(of(&input, "input.message.received", "\"success\":true"), 1);
    assert_eq!(of(&input, "input.message.received", "\"success\":false"), 1);
    let output = deployment.output.log();
    for event in ["output.lifecycle.start", "output.lifecycle.stop"] {
        assert!(output.contains(event), "{event}: {output}");
    }
    assert_eq!(
        of(&output, "output.message.received", "\"success\":true"),
        1
    );
}

#[test]
fn a_k8_two_hundreds_are_successes_and_200_means_that_the_record_is_there() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "created" => Say::value("created").then(Say::body(201, b"")),
        "no content" => Say::value("no content").then(Say::filter()),
        "nothing" => Say::filter(),
        text => Say::value(text),
    });
    let deployment = Deployment::new(app, &[], &[]).start();
    let events = ["created", "nothing", "no content", "end"];
    deployment
        .world
        .send(events.map(|text| Event::of("k", text)));
    let results = deployment.has_results(3);
    assert_eq!(values(&results), ["created", "no content", "end"]);
    assert!(
        events
            .iter()
            .all(|text| deployment.world.app().asked_about(text).len() == 1)
    );
    // What belongs to no event is stored, too, and is there when the app hears of it.
    let answer = deployment.post(&[], b"by itself");
    assert_eq!(answer, (200, "msg: by itself".to_owned()));
    assert_eq!(deployment.world.results().len(), 4);
}
