//! The app dies, hangs, or comes back: nothing is lost and nobody is blamed for it.

use std::time::Duration;

use millrace_integration_tests::wait::wait_until;
use millrace_integration_tests::{App, Event, Say, World, scenario};

#[test]
fn an_app_that_is_killed_and_restarted_costs_no_attempt() {
    let world = World::embedded()
        .app(App::saying(|a| {
            Say::value(a.text()).after(Duration::from_millis(2))
        }))
        .start();
    let load = world.load(500, 40);
    world.has_results(200);
    for _ in 0..2 {
        let before = world.results().len();
        world.app().kill();
        wait_until("the input notices", || {
            world.pods[0].state()["appReachable"] == false
        });
        world.app().start_again();
        world.has_results(before + 200);
    }
    world.assert_load_answered_once(load);
}

fn the_crashing_event_is_found(world: World) {
    scenario(
        "F-5",
        &["D-B6"],
        "the event that kills the app is dead-lettered app_crash, its neighbours are answered",
    );
    let app = App::saying(|asked| match asked.text().as_str() {
        "crash" => Say::crash(),
        text => Say::value(text).after(Duration::from_millis(1)),
    });
    let world = world.partitions(2).app(app).start();
    let text = |n: usize| {
        if n == 120 {
            "crash".to_owned()
        } else {
            n.to_string()
        }
    };
    world.send((0..300).map(|n| Event::of(format!("key-{}", n % 60), text(n))));
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (299, 1));
    let letters = world.dead_letters();
    assert_eq!(letters[0].text(), "crash");
    assert_eq!(
        letters[0].header("millrace-dlq-reason").as_deref(),
        Some("app_crash")
    );
    let crashes = world.app().asked_about("crash").len();
    assert!(
        crashes <= 6,
        "the app was killed {crashes} times by one event"
    );
}

#[test]
fn f_5_the_event_that_kills_the_app_ends_as_app_crash_and_its_neighbours_are_answered() {
    the_crashing_event_is_found(World::embedded());
}

#[test]
fn f_5_the_event_that_kills_the_app_is_found_in_a_batch() {
    the_crashing_event_is_found(World::embedded().batch().set("batch.maxRecords", 50));
}

#[test]
fn f_4_an_app_that_hangs_times_out_and_the_breaker_opens() {
    scenario(
        "F-4",
        &["D-B1", "D-C2", "D-G1"],
        "an app that accepts and never answers: time-outs, an open breaker, single probes, membership kept",
    );
    let hung = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let hangs = std::sync::Arc::clone(&hung);
    let app = App::saying(|a| Say::value(a.text())).but(move |_| {
        hangs
            .load(std::sync::atomic::Ordering::Relaxed)
            .then(Say::never)
    });
    let world = World::embedded()
        .partitions(2)
        .set("app.contract.timeout", "300ms")
        .set("breaker.minRequests", 4)
        .set("breaker.openMin", "200ms")
        .set("breaker.openMax", "500ms")
        .set("retry.maxAttempts", 0)
        .app(app)
        .start();
    world.send_numbers(100, 20);
    wait_until("the breaker is open", || {
        world.pods[0].state()["breaker"] == "failures"
    });
    let before = world.app().requests();
    wait_until("probes", || world.app().requests() >= before + 2);
    let generation = world.generation(0);
    hung.store(false, std::sync::atomic::Ordering::Relaxed);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (100, 0));
    assert_eq!(
        world.generation(0),
        generation,
        "the membership was lost while the app hung"
    );
}

#[test]
fn a_connection_that_is_cut_is_a_failure_of_the_attempt_only() {
    let app = App::saying(|asked| match (asked.text().as_str(), asked.attempt) {
        ("cut", 1) => Say::cut(),
        (text, _) => Say::value(text),
    });
    let world = World::embedded()
        .partitions(1)
        .set("retry.backoff.initial", "20ms")
        .app(app)
        .start();
    world.send([
        Event::of("k", "cut"),
        Event::of("k", "next"),
        Event::of("other", "x"),
    ]);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (3, 0));
    assert_eq!(world.results_of("k"), ["cut", "next"]);
}
