//! The stories that depend on the broker, on the real Kafka that `MILLRACE_TEST_KAFKA` names.

use millrace_integration_tests::broker::BrokerKind;
use millrace_integration_tests::{World, tales};

/// A world on the real Kafka; `None`, with the reason printed, if there is none.
fn world() -> Option<World> {
    BrokerKind::kafka().map(World::on)
}

#[test]
fn each_event_is_answered_once_and_in_order() {
    let Some(world) = world() else { return };
    tales::each_event_once(world);
}

#[test]
fn batches_answer_each_event_once_and_in_order() {
    let Some(world) = world() else { return };
    tales::each_event_once(world.batch());
}

#[test]
fn d_f1_bytes_come_back_as_they_went() {
    let Some(world) = world() else { return };
    tales::odd_events_come_back(world);
}

#[test]
fn d_s4_an_input_that_is_asked_to_end_finishes_and_repeats_nothing() {
    let Some(world) = world() else { return };
    tales::a_graceful_end_repeats_nothing(world);
}

#[test]
fn f_2_inputs_come_and_go_and_each_event_is_answered_once() {
    let Some(world) = world() else { return };
    tales::inputs_come_and_go(world);
}

#[test]
fn f_3_an_input_that_was_frozen_does_no_harm_when_it_goes_on() {
    let Some(world) = world() else { return };
    tales::frozen_and_thawed(world);
}

#[test]
fn kill_9_of_everyone_in_turn_loses_nothing_and_keeps_the_order() {
    let Some(world) = world() else { return };
    tales::killed_in_turn(world, false);
}

#[test]
fn kill_9_of_everyone_in_turn_loses_nothing_in_batches() {
    let Some(world) = world() else { return };
    tales::killed_in_turn(world.batch(), false);
}
