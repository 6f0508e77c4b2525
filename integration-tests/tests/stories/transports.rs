//! The app over a Unix socket and over HTTP/2 (A-T1): the same answers, the same ends.

use std::time::Duration;

use millrace_integration_tests::app::Say;
use millrace_integration_tests::{App, World};

fn answers_everything(world: World) {
    let world = world.app(App::doubler()).start();
    world.send_numbers(500, 20);
    world.assert_each_event_answered_once();
    assert_eq!(world.app().overlaps(), 0);
}

#[test]
fn a_t1_an_app_behind_a_unix_socket_answers() {
    answers_everything(World::embedded().set("app.contract.transport", "UnixSocket"));
}

#[test]
fn a_t1_an_app_that_speaks_http_2_answers() {
    answers_everything(World::embedded().set("app.contract.transport", "Http2"));
}

#[test]
fn a_t1_batches_travel_over_http_2_too() {
    answers_everything(
        World::embedded()
            .batch()
            .set("app.contract.transport", "Http2"),
    );
}

/// The app dies with calls open, and comes back.
fn survives_the_app(transport: &str) {
    let world = World::embedded()
        .set("app.contract.transport", transport)
        .app(App::doubler())
        .start();
    world.send_numbers(100, 10);
    world.has_results(100);
    world.app().kill();
    world.send_numbers(100, 10);
    world.app().start_again();
    world.assert_nothing_lost();
    assert!(world.dead_letters().is_empty());
}

#[test]
fn a_t1_an_app_behind_a_unix_socket_dies_and_comes_back() {
    survives_the_app("UnixSocket");
}

#[test]
fn a_t1_an_app_that_speaks_http_2_dies_and_comes_back() {
    survives_the_app("Http2");
}

/// Some first attempts get no answer, ever: the deadline ends them, and the rest goes on.
fn f_24_stalled_requests(transport: &str) {
    let world = World::embedded()
        .set("app.contract.transport", transport)
        .set("app.contract.timeout", "500ms")
        .set("retry.backoff.initial", "50ms")
        .app(App::saying(|asked| {
            let number: i64 = asked.text().parse().expect("a number");
            if number % 10 == 3 && asked.attempt == 1 {
                return Say::never();
            }
            Say::value((2 * number).to_string()).after(Duration::from_millis(1))
        }))
        .start();
    world.send_numbers(60, 20);
    world.assert_each_event_answered_once();
    let again = world
        .app()
        .asked()
        .iter()
        .filter(|a| a.attempt == 2)
        .count();
    assert_eq!(again, 6, "each stalled request is asked once more");
}

#[test]
fn f_24_a_stalled_connection_meets_the_deadline() {
    f_24_stalled_requests("Tcp");
}

#[test]
fn f_24_a_stalled_http_2_stream_meets_the_deadline() {
    f_24_stalled_requests("Http2");
}
