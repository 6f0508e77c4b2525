//! Slow, stuck, hot and silent: one event, one key or one connection must not hold the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_integration_tests::wait::let_pass;
use millrace_integration_tests::world::Running;
use millrace_integration_tests::{App, Event, Say, World, scenario, wait_until};

#[test]
fn f_10_an_event_above_the_limit_holds_its_lane_if_the_block_says_so() {
    scenario(
        "F-10",
        &["D-D2", "D-W1", "D-H3"],
        "app.oversized: Block holds the lane of an event that is too large, and only that",
    );
    let world = World::embedded()
        .partitions(1)
        .set("app.maxRequestBytes", "64Ki")
        .set("app.oversized", "Block")
        .app(App::echo())
        .start();
    world.send([
        Event::of("k", "x".repeat(100 << 10)),
        Event::of("k", "behind"),
        Event::of("other", "fine"),
    ]);
    world.has_results(1);
    let path = format!("/v1/records/{}/0/0", world.topic("in"));
    wait_until("it is blocked", || {
        let page = world.pods[0].ask_input(&path);
        page.is_some_and(|(code, body)| code == 200 && body.contains("blocked"))
    });
    assert_eq!(world.results_of("other"), ["fine"]);
    assert!(world.results_of("k").is_empty() && world.dead_letters().is_empty());
    let state = world.pods[0].state();
    assert_eq!(state["partitions"][0]["watermark"], 0, "{state:#}");
}

#[test]
fn f_19_a_call_longer_than_the_poll_interval_evicts_nobody() {
    const POLL_INTERVAL_MS: u64 = 7_000;
    scenario(
        "F-19",
        &["D-G1", "D-G7", "D-L2"],
        "one call outlasts max.poll.interval.ms: no eviction, other lanes flow, its result counts",
    );
    let app = App::saying(|asked| match asked.text().as_str() {
        "slow" => Say::value("slow").held(),
        text => Say::value(text),
    });
    let world = World::embedded()
        .partitions(1)
        .short_sessions()
        .property("max.poll.interval.ms", POLL_INTERVAL_MS)
        .app(app)
        .start();
    world.send([Event::of("slow", "slow"), Event::of("slow", "behind")]);
    wait_until("it is at the app", || !world.app().asked().is_empty());
    let generation = world.generation(0);
    let load = world.load(100, 20);
    world.has_results(500);
    assert!(
        world.results_of("slow").is_empty(),
        "it is still at the app"
    );
    let_pass(Duration::from_millis(POLL_INTERVAL_MS + 1_000));
    world.app().let_go();
    wait_until("it is answered", || world.results_of("slow").len() == 2);
    assert_eq!(world.results_of("slow"), ["slow", "behind"]);
    let sent = load.stop();
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, sent as usize + 2);
    assert_eq!(world.app().asked_about("slow").len(), 1);
    assert_eq!(world.generation(0), generation, "somebody was evicted");
}

#[test]
fn f_20_an_event_that_is_stuck_holds_only_its_partition() {
    scenario(
        "F-20",
        &["D-C1", "D-W9", "D-H3", "D-L2"],
        "one event is stuck: its partition stops at the window, memory is flat, its age resolves it",
    );
    let app = App::saying(|asked| match asked.text().as_str() {
        "stuck" => Say::status(503),
        text => Say::value(text),
    });
    let mut world = World::embedded()
        .partitions(2)
        .set("delivery.window", 1_000)
        .set("retry.maxAttempts", 0)
        .set("retry.maxAge", "12s")
        .set("retry.backoff.initial", "100ms")
        .set("retry.backoff.max", "500ms")
        .app(app)
        .start();
    world.send([Event::of("k", "stuck").partition(0)]);
    world.send(
        (0..20_000).map(|n| Event::of(format!("key-{}", n % 300), n.to_string()).partition(n % 2)),
    );
    let paused = |world: &Running| {
        let state = world.pods[0].state();
        state["partitions"][0]["paused"] == "window"
    };
    wait_until("its partition stops", || paused(&world));
    wait_until("the other one is done", || {
        let state = world.pods[0].state();
        state["partitions"][1]["committed"] == 10_000
    });
    let path = format!("/v1/records/{}/0/0", world.topic("in"));
    let (code, body) = world.pods[0].ask_input(&path).expect("it answers");
    assert!(code == 200 && body.contains("503"), "{code} {body}");
    let before = world.input().memory();
    wait_until("its age resolves it", || world.dead_letters().len() == 1);
    let after = world.input().memory();
    assert!(after < before + (8 << 20), "from {before} to {after} bytes");
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (20_000, 1));
    let letter = &world.dead_letters()[0];
    assert_eq!(
        letter.header("millrace-dlq-reason").as_deref(),
        Some("max_age")
    );
}

/// 90% of the events have one key; how far the hot lane had come when the last other event was
/// answered, and how long everything took.
fn hot_key(world: World) -> f64 {
    const EVENTS: usize = 1_000;
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(10)));
    let world = world
        .partitions(1)
        .set("flow.concurrency", 16)
        .set("flow.maxInFlight", 4_000)
        .app(app)
        .start();
    let key = |n: usize| {
        if n.is_multiple_of(10) {
            format!("key-{}", n / 10 % 50)
        } else {
            "hot".to_owned()
        }
    };
    world.send((0..EVENTS).map(|n| Event::of(key(n), n.to_string())));
    wait_until("the hot lane shows", || {
        world.pods[0].metric("millrace_hot_lane_share") > 0.5
    });
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, EVENTS);
    let asked = world.app().asked();
    let is_hot = |a: &&millrace_integration_tests::Asked| a.key_text() == "hot";
    let began = asked[0].at;
    let ended = asked.iter().filter(is_hot).map(|a| a.at).max();
    let hot = ended.expect("hot events") - began;
    let mut others: HashMap<String, Duration> = HashMap::new();
    for other in asked.iter().filter(|a| !is_hot(a)) {
        others.insert(other.text(), other.at - began);
    }
    let slowest = others.values().max().expect("other events");
    assert!(*slowest < hot / 2, "others waited {slowest:?} of {hot:?}");
    hot.as_secs_f64()
}

#[test]
fn f_21_a_hot_key_does_not_hold_the_others() {
    scenario(
        "F-21",
        &["D-L2", "D-C1", "D-C3"],
        "a key with 90% of the events waits in its lane, the others do not wait for it",
    );
    let alone = hot_key(World::embedded().batch());
    let together = hot_key(World::embedded().batch().set("batch.maxPerLane", 10));
    assert!(
        together < alone / 2.0,
        "batch.maxPerLane does not help: {together} s against {alone} s"
    );
}

#[test]
fn f_22_an_app_that_dies_before_the_drain_costs_nothing() {
    scenario(
        "F-22",
        &["D-S3", "D-S4", "D-S5"],
        "the app is killed, then the input is asked to end: it exits drained, nothing is counted",
    );
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(20)));
    let mut world = World::embedded().partitions(2).app(app).start();
    let load = world.load(200, 40);
    for between in [0, 15, 60, 250] {
        let before = world.results_count();
        world.has_results(before + 60);
        world.app().kill();
        // The node takes its time between the two.
        let_pass(Duration::from_millis(between));
        let ended = world.input().end();
        assert_eq!(ended.code(), Some(0), "{}", world.input().log());
        world.app().start_again();
        world.input().start();
    }
    let verdict = world.assert_load_answered(load);
    assert_eq!(verdict.repeats, 0, "{verdict:?}");
}

#[test]
fn f_24_answers_that_vanish_end_at_the_deadline() {
    scenario(
        "F-24",
        &["A-T1", "D-H2", "D-C2"],
        "half-open connections to the app end at the deadline, later requests succeed",
    );
    for requests in [true, false] {
        let world = World::embedded()
            .partitions(2)
            .set("app.contract.timeout", "700ms")
            .set("retry.maxAttempts", 0)
            .set("retry.backoff.max", "500ms")
            .set("breaker.openMin", "200ms")
            .set("breaker.openMax", "500ms")
            .line_to_app()
            .app(App::doubler())
            .start();
        let load = world.load(100, 20);
        world.has_results(50);
        if requests {
            world.line_to_app().swallow_requests();
        } else {
            world.line_to_app().swallow_answers();
        }
        wait_until("deadlines fire", || {
            world.pods[0].metric("millrace_retries_total") > 3.5
        });
        // Those that lost bytes stay half-open for ever.
        world.line_to_app().listen_again();
        let before = world.results_count();
        world.goes_on_after(before);
        world.assert_load_answered_once(load);
    }
}

#[test]
fn f_9_a_date_in_retry_after_is_obeyed_too() {
    scenario(
        "F-9",
        &["D-B5", "D-R1"],
        "Retry-After as a date: dispatch pauses, no attempt is counted, the membership stays",
    );
    let told = Arc::new(AtomicBool::new(false));
    let once = Arc::clone(&told);
    let app = App::echo().but(move |_| {
        let first = !once.swap(true, Ordering::Relaxed);
        let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3));
        first.then(|| Say::status(503).header("Retry-After", &date))
    });
    let world = World::embedded()
        .partitions(2)
        .set("flow.concurrency", 1)
        .app(app)
        .start();
    world.send_numbers(20, 20);
    wait_until("the app has told to wait", || world.app().requests() == 1);
    let generation = world.generation(0);
    let paused = tokio::time::Instant::now();
    wait_until("the app is asked again", || world.app().requests() > 1);
    assert!(
        paused.elapsed() > Duration::from_millis(1_500),
        "asked again after {:?}",
        paused.elapsed()
    );
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (20, 0));
    assert!(world.app().asked().iter().all(|a| a.attempt == 1));
    assert_eq!(world.generation(0), generation, "the membership was lost");
}
