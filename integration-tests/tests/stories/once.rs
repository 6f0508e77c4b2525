//! `delivery.guarantee: ExactlyOnce`: what readers of committed results see when everything that
//! can break breaks.

use millrace_integration_tests::{App, Event, World, tales};

#[test]
fn d_e2_each_event_is_answered_once_and_in_order() {
    tales::each_event_once(World::embedded().exactly_once());
}

#[test]
fn d_e2_batches_answer_each_event_once_and_in_order() {
    tales::each_event_once(World::embedded().exactly_once().batch());
}

#[test]
fn d_e2_results_of_one_transaction_are_seen_together_with_its_offsets() {
    let world = World::embedded()
        .exactly_once()
        .partitions(1)
        .app(App::echo())
        .start();
    world.send([Event::of("k", "a"), Event::of("k", "b")]);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (2, 0));
    assert_eq!(world.results_of("k"), ["a", "b"]);
    let (_, metrics) = world.pods[0].ask_output("/metrics").expect("it answers");
    let committed = metrics
        .lines()
        .find(|line| line.starts_with("millrace_transactions_total") && line.contains("committed"))
        .and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(committed >= Some(1.0), "{committed:?}");
    let log = world.pods[0].output.log();
    assert!(
        log.contains("refuse a forged group generation"),
        "the start-up test left no word: {log}"
    );
}

#[test]
fn d_s4_an_input_that_is_asked_to_end_commits_its_last_transaction() {
    tales::a_graceful_end_repeats_nothing(World::embedded().exactly_once());
}

#[test]
fn f_2_inputs_come_and_go_under_exactly_once() {
    tales::inputs_come_and_go(World::embedded().exactly_once());
}

#[test]
fn f_3_the_transaction_of_a_frozen_input_is_refused() {
    tales::frozen_and_thawed(World::embedded().exactly_once());
}

#[test]
fn d_e5_results_that_cannot_be_stored_abort_and_are_seen_once() {
    tales::failures_exactly_once(World::embedded());
}

#[test]
fn d_e5_an_output_that_is_frozen_beyond_its_transaction_doubles_nothing() {
    tales::output_frozen_beyond_its_transaction(World::embedded());
}

#[test]
fn kill_9_of_everyone_in_turn_under_exactly_once_doubles_nothing() {
    tales::killed_in_turn(World::embedded_in_files().exactly_once(), true);
}

#[test]
fn kill_9_of_everyone_in_turn_under_exactly_once_doubles_nothing_in_batches() {
    tales::killed_in_turn(World::embedded_in_files().exactly_once().batch(), true);
}
