//! The output, the broker, or what they need is away for a while: nothing is lost, nothing is
//! dead-lettered, work goes on by itself.

use millrace_integration_tests::wait::{let_pass, wait_until};
use millrace_integration_tests::{App, World, scenario};

#[test]
fn f_12_an_output_that_is_down_fills_the_budget_and_loses_nothing() {
    scenario(
        "F-12",
        &["D-C1", "D-O4"],
        "the output is down: budgets fill, nothing is lost",
    );
    let mut world = World::embedded()
        .app(App::doubler())
        .set("flow.maxInFlight", 200)
        .start();
    world.send_numbers(100, 20);
    world.settles();
    world.output().kill();
    world.send(
        (100..3_000).map(|n| {
            millrace_integration_tests::Event::of(format!("key-{}", n % 20), n.to_string())
        }),
    );
    wait_until("the budget is full", || {
        world.pods[0].metric("millrace_in_flight") >= 200.0
    });
    let asked = world.app().asked().len();
    // A bound stops a partition behind the fetch that reached it.
    let bound = 100 + 200 + 2 * millrace_core::limits::FETCH_RECORDS_MAX;
    assert!(
        asked <= bound,
        "{asked} events were at the app although nothing can be stored"
    );
    let state = world.pods[0].state();
    assert_eq!(state["outputConnected"], false, "{state:#}");
    world.output().start();
    let verdict = world.assert_nothing_lost();
    assert_eq!((verdict.answered, verdict.dead_lettered), (3_000, 0));
}

#[test]
fn a_broker_that_is_killed_and_restarted_loses_nothing() {
    let mut world = World::embedded_in_files()
        .partitions(4)
        .app(App::doubler())
        .start();
    let load = world.load(500, 40);
    world.has_results(200);
    world.broker.process().kill();
    wait_until("the input notices", || {
        world.pods[0]
            .ask_input("/readyz")
            .is_some_and(|(code, body)| code == 200 && body.contains("degraded"))
    });
    world.broker.process().start();
    let before = world.results_count();
    world.has_results(before + 500);
    world.assert_load_answered(load);
}

#[test]
fn f_1_lag_rises_and_falls_and_is_unknown_while_the_broker_is_away() {
    const GAUGES: [&str; 3] = [
        "millrace_lag_records",
        "millrace_lag_seconds",
        "millrace_desired_replicas",
    ];
    let mut world = World::embedded_in_files().app(App::doubler()).start();
    world.send_numbers(100, 20);
    world.settles();
    let caught_up = |world: &millrace_integration_tests::world::Running| {
        let pod = &world.pods[0];
        GAUGES
            .iter()
            .all(|gauge| pod.shows(gauge) == Some(true) && pod.metric(gauge) == 0.0)
    };
    wait_until("it has caught up", || caught_up(&world));
    let (code, _) = world.pods[0].tell_input("/v1/pause").expect("it answers");
    assert_eq!(code, 200);
    world.send_numbers(300, 20);
    wait_until("the lag rises", || {
        let pod = &world.pods[0];
        // A partition is stopped behind what was under way to it.
        pod.metric("millrace_lag_records") >= 100.0 && pod.metric("millrace_lag_seconds") >= 3.0
    });
    let (code, _) = world.pods[0].tell_input("/v1/resume").expect("it answers");
    assert_eq!(code, 200);
    wait_until("the lag falls", || caught_up(&world));
    world.broker.process().kill();
    wait_until("the gauges vanish", || {
        GAUGES
            .iter()
            .all(|gauge| world.pods[0].shows(gauge) == Some(false))
    });
    world.broker.process().start();
    wait_until("the gauges are back", || caught_up(&world));
    world.assert_nothing_lost();
}

#[test]
fn everything_at_once_killed_and_started_again_goes_on_where_it_was() {
    let mut world = World::embedded_in_files()
        .short_sessions()
        .app(App::doubler())
        .start();
    world.send_numbers(2_000, 30);
    world.has_results(300);
    world.input().kill();
    world.output().kill();
    world.broker.process().kill();
    world.broker.process().start();
    world.pods[0].start();
    let verdict = world.assert_nothing_lost();
    assert_eq!((verdict.answered, verdict.dead_lettered), (2_000, 0));
    // What was settled is not done again: only what was open may repeat.
    assert!(verdict.repeats < 1_500, "{verdict:?}");
}

#[test]
fn f_27_a_broker_that_stalls_beyond_the_message_timeout_goes_on_in_order() {
    scenario(
        "F-27",
        &["D-L3", "D-O1"],
        "a broker process that is frozen beyond the message time-out",
    );
    let mut world = World::embedded_in_files()
        .partitions(4)
        .short_sessions()
        .app(App::doubler())
        .start();
    let load = world.load(400, 60);
    world.has_results(100);
    for stall in [600, 1_100, 1_700] {
        world.broker.process().freeze();
        // The length of the stall is the story: around the message time-out of 500 ms.
        let_pass(std::time::Duration::from_millis(stall));
        world.broker.process().thaw();
        let before = world.results_count();
        world.goes_on_after(before);
    }
    world.assert_load_answered(load);
}
