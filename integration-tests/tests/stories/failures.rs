//! What an app may do wrong, and what becomes of its events: retries, dead letters, waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use millrace_integration_tests::wait::wait_until;
use millrace_integration_tests::world::Running;
use millrace_integration_tests::{App, Asked, Event, Record, Say, World, scenario};

fn quick_retries(world: World) -> World {
    world
        .set("retry.backoff.initial", "20ms")
        .set("retry.backoff.max", "100ms")
}

fn both() -> [World; 2] {
    [World::embedded(), World::embedded().batch()]
}

/// The only dead letter.
fn dead_letter(world: &Running) -> Record {
    let mut letters = world.dead_letters();
    assert_eq!(letters.len(), 1, "{letters:?}");
    letters.remove(0)
}

fn header(record: &Record, name: &str) -> String {
    record
        .header(&format!("millrace-dlq-{name}"))
        .unwrap_or_else(|| panic!("no {name}: {record:?}"))
}

#[test]
fn f_6_a_poison_event_is_dead_lettered_at_once_and_its_lane_goes_on() {
    scenario(
        "F-6",
        &["D-L5", "D-D1"],
        "a poison event is a dead letter at once, after one attempt; its lane goes on",
    );
    for world in both() {
        let app = App::saying(|asked| match asked.text().as_str() {
            "poison" => Say::status(422),
            text => Say::value(text),
        });
        let world = world.partitions(1).app(app).start();
        let poison = Event::of("k", "poison")
            .header("source", Some(b"web"))
            .timestamp(1_700_000_000_000);
        world.send([
            Event::of("k", "before"),
            poison,
            Event::of("k", "after"),
            Event::of("other", "x"),
        ]);
        let verdict = world.assert_each_event_answered_once();
        assert_eq!((verdict.answered, verdict.dead_lettered), (3, 1));
        assert_eq!(world.results_of("k"), ["before", "after"]);
        assert_eq!(
            world.app().asked_about("poison").len(),
            1,
            "a permanent failure was tried again"
        );
        let letter = dead_letter(&world);
        assert_eq!(
            (letter.key.as_deref(), letter.text().as_str()),
            (Some(&b"k"[..]), "poison")
        );
        assert_eq!(letter.timestamp_ms, 1_700_000_000_000);
        assert_eq!(
            letter.headers_of_others(),
            [("source".to_owned(), Some(b"web".to_vec()))]
        );
    }
}

#[test]
fn d_d1_a_dead_letter_carries_all_its_headers() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "bad" => Say::status(422),
        text => Say::value(text),
    });
    let world = World::embedded().partitions(1).app(app).start();
    let trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let bad = Event::of("k", "bad")
        .timestamp(1_700_000_000_000)
        .header("traceparent", Some(trace));
    world.send([Event::of("k", "good"), bad]);
    world.assert_each_event_answered_once();
    let letter = dead_letter(&world);
    let of_bad = &world.app().asked_about("bad")[0];
    for (name, value) in [
        ("version", "1"),
        ("reason", "permanent"),
        ("stage", "app"),
        ("error-body-encoding", "utf8"),
        ("attempts", "1"),
        ("orig-cluster", &world.cluster.id()),
        ("orig-topic", &world.topic("in")),
        ("orig-partition", "0"),
        ("orig-offset", "1"),
        ("orig-timestamp", "1700000000000"),
        ("group", world.group()),
        ("block", world.name()),
        ("pod", "pod-0"),
        ("app-release", "r1-00000000"),
        ("id", &of_bad.id),
    ] {
        assert_eq!(header(&letter, name), value, "{name}");
    }
    assert!(header(&letter, "error-code").contains("422"), "{letter:?}");
    assert!(
        header(&letter, "error-message").contains("refuses `bad`"),
        "{letter:?}"
    );
    assert!(
        header(&letter, "error-body").contains("SCRIPT_422"),
        "{letter:?}"
    );
    let first: i64 = header(&letter, "first-attempt-ts").parse().unwrap();
    let last: i64 = header(&letter, "last-attempt-ts").parse().unwrap();
    assert!(first > 1_700_000_000_000 && last >= first);
    assert!(!header(&letter, "orig-timestamp-type").is_empty());
    assert!(!header(&letter, "proxy-version").is_empty());
}

#[test]
fn retries_end_in_success_and_hold_only_their_lane() {
    for world in both() {
        let app = App::saying(|asked| match (asked.text().as_str(), asked.attempt) {
            ("flaky", 1..=3) => Say::status(503),
            (text, _) => Say::value(text),
        });
        let world = quick_retries(world).partitions(1).app(app).start();
        world.send([
            Event::of("k", "flaky"),
            Event::of("k", "next"),
            Event::of("other", "x"),
        ]);
        let verdict = world.assert_each_event_answered_once();
        assert_eq!((verdict.answered, verdict.dead_lettered), (3, 0));
        assert_eq!(world.results_of("k"), ["flaky", "next"]);
        let attempts: Vec<u32> = world
            .app()
            .asked_about("flaky")
            .iter()
            .map(|a| a.attempt)
            .collect();
        assert_eq!(attempts, [1, 2, 3, 4]);
        let asked = world.app().asked();
        let place = |value: &str, attempt| {
            let is = |a: &Asked| a.text() == value && a.attempt == attempt;
            asked.iter().position(is).expect("it was asked")
        };
        assert!(
            place("next", 1) > place("flaky", 4),
            "an event overtook one of its lane"
        );
        assert!(place("x", 1) < place("flaky", 4), "another lane waited");
    }
}

#[test]
fn retries_exhausted_become_a_dead_letter() {
    for world in both() {
        let app = App::saying(|asked| match asked.text().as_str() {
            "never" => Say::status(500),
            text => Say::value(text),
        });
        let world = quick_retries(world)
            .partitions(1)
            .set("retry.maxAttempts", 3)
            .app(app)
            .start();
        world.send([Event::of("k", "never"), Event::of("k", "next")]);
        let verdict = world.assert_each_event_answered_once();
        assert_eq!((verdict.answered, verdict.dead_lettered), (1, 1));
        let attempts: Vec<u32> = world
            .app()
            .asked_about("never")
            .iter()
            .map(|a| a.attempt)
            .collect();
        assert_eq!(attempts, [1, 2, 3]);
        let letter = dead_letter(&world);
        assert_eq!(
            (header(&letter, "reason"), header(&letter, "attempts")),
            ("retries_exhausted".into(), "3".into())
        );
    }
}

#[test]
fn a_b2_a_batch_that_is_too_large_is_halved_until_the_culprit_is_alone() {
    let app = App::echo().but(|asked| {
        let culprit = asked.iter().any(|a| a.text() == "huge");
        (culprit || asked.len() > 8).then(|| Say::status(413))
    });
    let world = World::embedded().partitions(1).batch().app(app).start();
    let text = |n: usize| {
        if n == 20 {
            "huge".to_owned()
        } else {
            n.to_string()
        }
    };
    world.send((0..60).map(|n| Event::of(format!("key-{n}"), text(n))));
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (59, 1));
    assert_eq!(dead_letter(&world).text(), "huge");
    let of_huge = world.app().asked_about("huge");
    assert_eq!(of_huge.last().map(|a| a.together), Some(1));
    assert!(
        of_huge.iter().all(|a| a.attempt == 1),
        "halving counted attempts: {of_huge:?}"
    );
}

#[test]
fn d_r2_malformed_answers_are_tried_again_and_then_dead_lettered() {
    let app = App::saying(|asked| match (asked.text().as_str(), asked.attempt) {
        ("empty once", 1) => Say::body(200, b""),
        ("odd once", 1) => Say::body(206, b"part"),
        ("torn results once", 1) => Say::body(200, b"{\"outputs\": [")
            .header("content-type", "application/vnd.millrace.results+json"),
        ("always empty", _) => Say::body(200, b""),
        (text, _) => Say::value(text),
    });
    let world = quick_retries(World::embedded())
        .partitions(1)
        .set("retry.maxAttempts", 3)
        .app(app)
        .start();
    let values = [
        "empty once",
        "odd once",
        "torn results once",
        "always empty",
        "fine",
    ];
    world.send(values.map(|value| Event::of(value, value)));
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (4, 1));
    let letter = dead_letter(&world);
    assert_eq!(letter.text(), "always empty");
    assert_eq!(header(&letter, "attempts"), "3");
}

#[test]
fn a_b1_a_malformed_batch_answer_loses_nothing() {
    let torn = Arc::new(AtomicU16::new(0));
    let count = Arc::clone(&torn);
    let app = App::echo().but(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Say::body(
            200,
            b"{\"results\": [{\"id\": \"nobody\", \"status\": \"ok\"}]}",
        )),
        1 => Some(Say::body(200, b"not JSON")),
        2 => Some(Say::body(200, b"{\"results\": []}")),
        _ => None,
    });
    let world = quick_retries(World::embedded())
        .partitions(1)
        .batch()
        .app(app)
        .start();
    world.send_numbers(50, 50);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (50, 0));
    assert!(torn.load(Ordering::Relaxed) > 3);
}

#[test]
fn f_9_retry_after_pauses_everything_and_counts_no_attempt() {
    scenario(
        "F-9",
        &["D-B5"],
        "Retry-After in seconds pauses the dispatch and counts no attempt",
    );
    let app = App::saying(|asked| Say::value(asked.text())).but({
        let told = AtomicBool::new(false);
        move |_| {
            let first = !told.swap(true, Ordering::Relaxed);
            first.then(|| Say::status(429).header("Retry-After", "2"))
        }
    });
    let world = World::embedded()
        .partitions(2)
        .set("flow.concurrency", 1)
        .app(app)
        .start();
    world.send_numbers(20, 20);
    let began = tokio::time::Instant::now();
    wait_until("the app has told to wait", || world.app().requests() == 1);
    wait_until("the app is asked again", || world.app().requests() > 1);
    let paused = began.elapsed();
    assert!(
        paused > Duration::from_millis(1_500),
        "asked again after {paused:?}"
    );
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, 20);
    let asked = world.app().asked();
    assert!(
        asked.iter().all(|a| a.attempt == 1),
        "Retry-After counted an attempt"
    );
}

fn misconfigured_and_mended(code: u16) {
    scenario(
        "F-8",
        &["D-B2", "D-R1"],
        "a wrong route or secret pauses the block; nothing is acked or dead-lettered; a probe resumes it",
    );
    let status = Arc::new(AtomicU16::new(code));
    let now = Arc::clone(&status);
    let app = App::echo().but(move |_| match now.load(Ordering::Relaxed) {
        200 => None,
        code => Some(Say::status(code)),
    });
    let world = World::embedded()
        .set("breaker.openMin", "200ms")
        .set("breaker.openMax", "500ms")
        .app(app)
        .start();
    world.send_numbers(300, 30);
    wait_until("the breaker is open", || {
        world.pods[0].state()["breaker"] == "misconfigured"
    });
    let before = world.app().requests();
    wait_until("probes", || world.app().requests() >= before + 2);
    assert!(
        world.dead_letters().is_empty(),
        "a wrong route is no fault of the events"
    );
    assert!(
        world.app().requests() < 40,
        "the app is asked on and on: {}",
        world.app().requests()
    );
    status.store(200, Ordering::Relaxed);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (300, 0));
    assert!(
        world.app().asked().iter().all(|a| a.attempt == 1),
        "a probe counted an attempt"
    );
    wait_until("the breaker is closed", || {
        world.pods[0].state()["breaker"].is_null()
    });
}

#[test]
fn f_8_an_app_that_answers_404_pauses_the_block_until_it_is_mended() {
    misconfigured_and_mended(404);
}

#[test]
fn f_8_an_app_that_answers_401_pauses_the_block_until_it_is_mended() {
    misconfigured_and_mended(401);
}

#[test]
fn f_7_the_storm_guard_keeps_a_bad_release_from_dead_lettering_everything() {
    scenario(
        "F-7",
        &["D-B3"],
        "a bad release opens the breaker near 100 dead letters; what is held is answered afterwards",
    );
    let bad = Arc::new(AtomicBool::new(true));
    let is_bad = Arc::clone(&bad);
    let app = App::saying(move |asked| {
        if is_bad.load(Ordering::Relaxed) {
            Say::status(422)
        } else {
            Say::value(asked.text())
        }
    });
    let world = World::embedded()
        .partitions(4)
        .set("breaker.openMin", "200ms")
        .set("breaker.openMax", "500ms")
        .app(app)
        .start();
    world.send_numbers(3_000, 300);
    wait_until("the breaker is open", || {
        world.pods[0].state()["breaker"] == "storm"
    });
    let probing = world.app().requests();
    wait_until("probes", || world.app().requests() > probing);
    let held = world.dead_letters().len();
    assert!((90..=150).contains(&held), "{held} dead letters");
    bad.store(false, Ordering::Relaxed);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered + verdict.dead_lettered, 3_000);
    assert!(verdict.dead_lettered <= 150, "{verdict:?}");
}
