//! Between the pods and the broker: cut, stalled, idle, throttled.

use millrace_integration_tests::World;
use millrace_integration_tests::tales::outages::{self, Outage};

#[test]
fn f_1_all_brokers_are_away_beyond_the_session() {
    outages::all_brokers_away(World::embedded());
}

#[test]
fn f_12_the_output_is_cut_off_and_memory_is_flat() {
    outages::output_away(World::embedded(), &Outage::SHORT);
}

#[test]
fn f_23_the_first_send_after_a_silence_works_at_once() {
    outages::idle_connections_forgotten(World::embedded());
}

#[test]
fn f_23_a_broker_that_throttles_breaks_nothing() {
    outages::throttled(World::embedded());
}

#[test]
fn f_27_stalls_around_the_message_timeout_keep_lanes_in_order() {
    outages::stalls_around_the_message_timeout(World::embedded());
}

#[test]
fn f_27_stalls_around_the_message_timeout_keep_lanes_in_order_in_batches() {
    outages::stalls_around_the_message_timeout(World::embedded().batch());
}

#[test]
fn f_27_stalls_around_the_message_timeout_keep_partitions_in_order() {
    outages::stalls_around_the_message_timeout(
        World::embedded().set("delivery.ordering", "Partition"),
    );
}
