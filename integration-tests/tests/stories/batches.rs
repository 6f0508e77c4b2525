//! Batches whose size follows the app (D-C3).

use std::time::Duration;

use millrace_integration_tests::{App, Say, World};

fn largest(world: &millrace_integration_tests::world::Running) -> usize {
    let asked = world.app().asked();
    asked.iter().map(|a| a.together).max().unwrap_or(0)
}

#[test]
fn d_c3_batches_begin_small_and_grow_while_the_app_keeps_up() {
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(2)));
    let world = World::embedded()
        .batch()
        .set("batch.adaptive", true)
        .partitions(2)
        .app(app)
        .start();
    world.send_numbers(6_000, 1_000);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, 6_000);
    let first = world.app().asked()[0].together;
    assert!(first <= 10, "the first batch has {first} events");
    assert!(
        largest(&world) > 20,
        "no batch has more than {} events",
        largest(&world)
    );
}

#[test]
fn d_c3_batches_that_the_app_does_not_answer_in_time_become_smaller() {
    let app =
        App::saying(|a| Say::value(a.text())).but(|asked| (asked.len() > 12).then(Say::never));
    let world = World::embedded()
        .batch()
        .set("batch.adaptive", true)
        .set("app.contract.timeout", "300ms")
        .set("retry.maxAttempts", 0)
        .set("breaker.minRequests", 100_000)
        .partitions(2)
        .app(app)
        .start();
    world.send_numbers(3_000, 500);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (3_000, 0));
    let large = largest(&world);
    assert!(
        (13..=20).contains(&large),
        "the largest batch has {large} events"
    );
}
