//! Keys that are parked behind a dead letter (`deadLetter.onDeadLetter: ParkKey`).

use std::process::Command;

use millrace_integration_tests::process::binary;
use millrace_integration_tests::wait::wait_until;
use millrace_integration_tests::{App, Event, Say, World};

fn reasons(world: &millrace_integration_tests::world::Running) -> Vec<(String, String)> {
    let mut letters: Vec<_> = world
        .dead_letters()
        .iter()
        .map(|letter| {
            let reason = letter.header("millrace-dlq-reason").unwrap_or_default();
            (letter.text(), reason)
        })
        .collect();
    letters.sort();
    letters
}

fn pair(text: &str, reason: &str) -> (String, String) {
    (text.to_owned(), reason.to_owned())
}

#[test]
fn f_6_d_l5_a_parked_key_stays_parked_over_a_restart_until_an_operator_lets_it_go() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "poison" => Say::status(422),
        text => Say::value(text),
    });
    let mut world = World::embedded()
        .partitions(1)
        .set("deadLetter.onDeadLetter", "ParkKey")
        .short_sessions()
        .app(app)
        .start();
    world.send([
        Event::of("k", "before"),
        Event::of("k", "poison"),
        Event::of("k", "after"),
        Event::of("other", "x"),
    ]);
    world.settles();
    assert_eq!(world.results_of("k"), ["before"]);
    assert_eq!(world.results_of("other"), ["x"]);
    assert_eq!(
        reasons(&world),
        [pair("after", "lane_parked"), pair("poison", "permanent")]
    );

    // The commit names the key, so that the next process knows it too.
    world.input().kill_and_restart();
    world.send([Event::of("k", "later"), Event::of("other", "y")]);
    world.settles();
    assert_eq!(world.results_of("k"), ["before"]);
    assert!(world.app().asked_about("later").is_empty());
    wait_until("the input says what is parked", || {
        world.pods[0].state()["partitions"][0]["parkedLanes"] == 1
    });

    let document = world.pods[0].document.display().to_string();
    let unpark = |key: &str| {
        let output = Command::new(binary("millrace"))
            .args(["dlq", "unpark", &document, "--key", key])
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(unpark("nobody"), "0 parked keys go on\n");
    assert_eq!(unpark("k"), "1 parked key goes on\n");
    world.send([Event::of("k", "free")]);
    world.settles();
    assert_eq!(world.results_of("k"), ["before", "free"]);
    assert_eq!(reasons(&world).len(), 3, "{:?}", reasons(&world));
    world.assert_each_event_answered_once();
}

#[test]
fn d_l5_a_parked_key_goes_on_when_its_time_is_over() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "poison" => Say::status(422),
        text => Say::value(text),
    });
    let world = World::embedded()
        .partitions(1)
        .set("deadLetter.onDeadLetter", "ParkKey")
        .set("deadLetter.parkTtl", "2s")
        .app(app)
        .start();
    world.send([Event::of("k", "poison"), Event::of("k", "after")]);
    world.settles();
    assert_eq!(reasons(&world).len(), 2);
    wait_until("the key goes on", || {
        world.pods[0].state()["partitions"][0]["parkedLanes"] == 0
    });
    world.send([Event::of("k", "free")]);
    world.settles();
    assert_eq!(world.results_of("k"), ["free"]);
}
