//! Processes end: asked to, killed, frozen; several inputs share the work.

use millrace_integration_tests::wait::wait_until;
use millrace_integration_tests::{App, Event, Say, World, scenario, tales};

#[test]
fn d_s4_an_input_that_is_asked_to_end_finishes_and_repeats_nothing() {
    tales::a_graceful_end_repeats_nothing(World::embedded());
}

#[test]
fn d_s5_a_drain_abandons_retries_without_counting_them() {
    let app = App::saying(|asked| match (asked.text().as_str(), asked.attempt) {
        ("locked", 1 | 2) => Say::status(503),
        (text, _) => Say::value(text),
    });
    let mut world = World::embedded()
        .partitions(1)
        .set("retry.backoff.initial", "30s")
        .set("retry.backoff.max", "30s")
        .app(app)
        .start();
    world.send([Event::of("k", "locked"), Event::of("k", "next")]);
    wait_until("the first attempt", || {
        world.app().asked_about("locked").len() == 1
    });
    // The wait of 30 s is abandoned; the attempt that was made stays counted.
    assert_eq!(world.input().end().code(), Some(0));
    world.input().start();
    wait_until("the second attempt", || {
        world.app().asked_about("locked").len() == 2
    });
    assert_eq!(world.input().end().code(), Some(0));
    world.input().start();
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (2, 0));
    let attempts: Vec<u32> = world
        .app()
        .asked_about("locked")
        .iter()
        .map(|a| a.attempt)
        .collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(world.results_of("k"), ["locked", "next"]);
}

#[test]
fn f_2_inputs_come_and_go_and_each_event_is_answered_once() {
    tales::inputs_come_and_go(World::embedded());
}

#[test]
fn f_2_answers_that_come_too_late_for_a_rebalance_are_dropped_and_made_anew() {
    scenario(
        "F-2",
        &["D-G4", "D-W5"],
        "answers later than delivery.drainRevoke are stale: asked again by the next owner, uncounted",
    );
    let app = App::saying(|a| Say::value(a.text()).held());
    let mut world = World::embedded()
        .partitions(4)
        .pods(2)
        .set("delivery.drainRevoke", "300ms")
        .set("flow.concurrency", 16)
        .app(app)
        .prepare();
    world.pods[0].start();
    wait_until("the first has all partitions", || {
        world.pods[0].partitions().len() == 4
    });
    world.send((0..8).map(|n| Event::of(format!("key-{n}"), format!("slow {n}")).partition(n % 4)));
    wait_until("all are at the app", || world.app().asked().len() == 8);
    world.pods[1].start();
    wait_until("both have partitions", || {
        world.pods.iter().all(|pod| pod.partitions().len() == 2)
    });
    wait_until("the second asks again", || world.app().asked().len() == 12);
    world.app().let_go();
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (8, 0));
    let asked = world.app().asked();
    assert_eq!(
        asked.len(),
        12,
        "the four events of the partitions that moved are asked again, no others"
    );
    assert!(
        asked.iter().all(|a| a.attempt == 1),
        "a rebalance counted an attempt: {asked:?}"
    );
}

#[test]
fn f_3_an_input_that_was_frozen_does_no_harm_when_it_goes_on() {
    tales::frozen_and_thawed(World::embedded());
}

#[test]
fn kill_9_of_everyone_in_turn_loses_nothing_and_keeps_the_order() {
    tales::killed_in_turn(World::embedded_in_files(), true);
}

#[test]
fn kill_9_of_everyone_in_turn_loses_nothing_in_batches() {
    tales::killed_in_turn(World::embedded_in_files().batch(), true);
}
