//! What happens to the input's log and to its group.

use millrace_integration_tests::tales::logs;
use millrace_integration_tests::{App, World, scenario};

#[test]
fn f_14_partitions_are_added_while_events_come() {
    logs::partitions_are_added(World::embedded());
}

#[test]
fn f_15_a_topic_made_anew_while_the_block_runs_is_noticed() {
    logs::topic_is_made_anew(World::embedded());
}

#[test]
fn f_15_restored_commits_of_another_topic_halt_the_partition() {
    logs::commits_of_another_topic_are_restored(World::embedded());
}

#[test]
fn f_16_records_that_are_gone_stop_the_partition() {
    logs::records_are_gone(World::embedded(), "Stop");
}

#[test]
fn f_16_records_that_are_gone_are_passed_over_if_the_block_says_so() {
    logs::records_are_gone(World::embedded(), "EarliestWithAlarm");
}

#[test]
fn f_25_metadata_of_a_newer_version_is_read_past() {
    logs::newer_metadata(World::embedded());
}

#[test]
fn f_26_a_group_of_another_program_is_not_joined() {
    logs::foreign_member(World::embedded());
}

#[test]
fn f_13_a_missing_dead_letter_topic_is_named_at_the_start() {
    scenario(
        "F-13",
        &["D-D4", "D-S1"],
        "a missing dead-letter topic is named and waited for",
    );
    let mut world = World::embedded()
        .set("topics.create", "Never")
        .app(App::echo());
    world = world.topic_of("out", "1048576");
    let mut world = world.start();
    let letters = world.topic("dlq");
    world
        .output()
        .says_all(&[&letters, "does not exist", "topics.create: Missing"]);
    let (code, body) = world.pods[0].ask_output("/readyz").expect("it answers");
    assert!(code != 200 && body.contains(&letters), "{code} {body}");
    world.create_topic("dlq");
    world.send_numbers(20, 5);
    world.assert_each_event_answered_once();
}

#[test]
fn f_13_a_dead_letter_topic_that_goes_away_holds_its_partition() {
    logs::dead_letters_cannot_be_stored(
        World::embedded(),
        |world| world.cluster.delete_topic(&world.topic("dlq")),
        |world| world.create_topic("dlq"),
    );
}
