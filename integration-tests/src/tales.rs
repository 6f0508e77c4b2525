//! Stories that are told on the embedded broker and on a real Kafka: what happens when processes
//! are killed, frozen, added and taken away.

pub mod logs;
pub mod outages;

use std::time::Duration;

use crate::dice::Dice;
use crate::load::Load;
use crate::process::Process;
use crate::wait::{Deadline, let_pass, wait_until};
use crate::world::Running;
use crate::{App, Event, Say, World, scenario};

/// How long the kill loop goes on.
const KILLING: Duration = Duration::from_secs(25);

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Input,
    Output,
    App,
    Broker,
}

/// `kill -9` of input, output and app in turn, and of the broker now and then if it is ours, while
/// events keep coming: nothing is lost, order stays, repeats have equal ids and are bounded.
pub fn killed_in_turn(world: World, broker_too: bool) {
    let mut world = world.partitions(4).short_sessions().start();
    let mut dice = Dice::of_story();
    let load = world.load(400, 60);
    world.has_results(100);
    let time = Deadline::after(KILLING);
    let mut killed = Vec::new();
    let mut brokers = 0;
    let mut turn = dice.below(3);
    let everyone = [Victim::Input, Victim::Output, Victim::App];
    while !time.is_over() || !everyone.iter().all(|victim| killed.contains(victim)) {
        // In turn, the broker in between.
        let mut victim = everyone[usize::try_from(turn % 3).expect("below 3")];
        if broker_too && brokers < 2 && killed.len() % 4 == 2 {
            victim = Victim::Broker;
            brokers += 1;
        } else {
            turn += 1;
        }
        let down = Duration::from_millis(dice.below(400));
        println!(
            "{:5.1} s: kill -9 {victim:?}, down for {down:?}",
            time.elapsed().as_secs_f64()
        );
        let before = world.results_count();
        let process = process(&mut world, victim);
        process.kill();
        // How long it is away is part of the schedule.
        let_pass(down);
        process.start();
        killed.push(victim);
        world.goes_on_after(before);
    }
    let sent = load.stop();
    let verdict = world.assert_nothing_lost();
    assert_eq!(verdict.events, sent as usize);
    assert_eq!(verdict.dead_lettered, 0, "{verdict:?}");
    println!("killed {killed:?}: {verdict:?}");
}

fn process(world: &mut Running, victim: Victim) -> &mut Process {
    match victim {
        Victim::Input => world.input(),
        Victim::Output => world.output(),
        Victim::App => world.app_process(),
        Victim::Broker => world.broker.process(),
    }
}

/// An input that is stopped beyond its session time-out and then goes on: somebody else works on
/// its partitions, and it notices before it does harm (F-3).
pub fn frozen_and_thawed(world: World) {
    scenario(
        "F-3",
        &["D-G5", "D-G7", "R4"],
        "a frozen input that goes on notices that others took over before it does harm",
    );
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(3)));
    let world = world
        .partitions(4)
        .pods(2)
        .short_sessions()
        .app(app)
        .start();
    let load = world.load(300, 40);
    wait_until("both have partitions", || {
        world.pods.iter().all(|pod| pod.partitions().len() == 2)
    });
    world.has_results(200);
    world.pods[0].input.freeze();
    wait_until("the other has all partitions", || {
        world.pods[1].partitions().len() == 4
    });
    world.has_results(world.results_count() + 200);
    world.pods[0].input.thaw();
    wait_until("both have partitions again", || {
        world.pods.iter().all(|pod| pod.partitions().len() == 2)
    });
    world.has_results(world.results_count() + 200);
    load.stop();
    let verdict = world.assert_nothing_lost();
    println!("{verdict:?}");
    assert_eq!(verdict.dead_lettered, 0);
    // Only what was open at the freeze may come again.
    assert!(verdict.repeats <= 1_024, "{verdict:?}");
}

/// Exactly-once: an output that is stopped until the brokers have given its transaction up, and
/// then goes on: what it held is answered by nobody twice (D-E5).
pub fn output_frozen_beyond_its_transaction(world: World) {
    let mut world = world
        .partitions(4)
        .exactly_once()
        .set("delivery.transaction.timeout", "2s")
        .set("delivery.messageTimeout", "1s")
        .start();
    let load = world.load(300, 40);
    world.has_results(200);
    world.output().freeze();
    // Longer than brokers wait for the end of a transaction.
    let_pass(Duration::from_secs(5));
    let before = world.results_count();
    world.output().thaw();
    world.goes_on_after(before);
    world.assert_load_answered_once(load);
}

/// Exactly-once with an app that fails in every way: results that cannot be stored abort their
/// transaction, and neither they nor their neighbours are seen twice (D-E5, D-O4).
pub fn failures_exactly_once(world: World) {
    let app = App::saying(|asked| {
        let text = asked.text();
        match (text.parse::<u32>().unwrap_or(0) % 50, asked.attempt) {
            (7, _) => Say::status(422),
            (13, 1) => Say::status(503),
            (21, _) => Say::value("x".repeat(1_500_000)),
            _ => Say::value(text),
        }
    });
    let world = world
        .partitions(2)
        .exactly_once()
        .topic_of("out", "1000000")
        .set("stormGuard.ratio", 1.0)
        .set("retry.backoff.initial", "20ms")
        .app(app)
        .start();
    world.send_numbers(1_000, 40);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (960, 40));
}

/// A second pod joins under load, and the first one leaves in order.
pub fn second_takes_over(world: &mut Running) -> Load {
    world.pods[0].start();
    let load = world.load(100, 80);
    world.has_results(60);
    world.pods[1].start();
    wait_until("both have partitions", || {
        world.pods.iter().all(|pod| pod.partitions().len() == 2)
    });
    world.has_results(world.results_count() + 60);
    assert!(world.pods[0].input.end().success());
    wait_until("the second has all partitions", || {
        world.pods[1].partitions().len() == 4
    });
    world.has_results(world.results_count() + 60);
    load
}

/// Inputs come and go while events are at the app; nothing fails, so each event is answered once
/// (F-2, A-K6).
pub fn inputs_come_and_go(world: World) {
    scenario(
        "F-2",
        &["D-G4", "D-G2", "D-G8"],
        "inputs come and go while events are at the app, and each is answered once",
    );
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(250)));
    let mut world = world
        .partitions(4)
        .pods(2)
        .set("flow.concurrency", 16)
        .app(app)
        .prepare();
    let load = second_takes_over(&mut world);
    world.pods[0].input.start();
    wait_until("both have partitions again", || {
        world.pods.iter().all(|pod| pod.partitions().len() == 2)
    });
    world.assert_load_answered_once(load);
    assert_eq!(
        world.app().overlaps(),
        0,
        "two events of one key were at the app at once"
    );
}

/// A first block: everything is answered once and in order.
pub fn each_event_once(world: World) {
    let world = world.partitions(4).app(App::doubler()).start();
    world.send_numbers(3_000, 40);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, 3_000);
    assert_eq!(world.app().overlaps(), 0);
}

/// The input is asked to end while events are at the app: it finishes them, commits, and exits
/// with 0; whoever comes next repeats nothing (D-S4, A-K6).
pub fn a_graceful_end_repeats_nothing(world: World) {
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(100)));
    let mut world = world.partitions(2).app(app).start();
    let load = world.load(200, 50);
    world.has_results(50);
    for _ in 0..2 {
        assert!(world.input().end().success(), "{}", world.input().log());
        let stored = world.results_count();
        world.input().start();
        world.has_results(stored + 50);
    }
    let verdict = world.assert_load_answered_once(load);
    let asked = world.app().asked();
    assert_eq!(
        asked.len(),
        verdict.answered,
        "an event was at the app twice"
    );
    assert!(world.input().end().success() && world.output().end().success());
}

/// Bytes that are no text.
const NOT_UTF8: &[u8] = &[0xff, 0x00, 0xfe, b'\n', 0x80];

/// Events that look odd, and nothing about them may change (D-F1).
fn odd_events() -> Vec<Event> {
    vec![
        Event::of("plain", "text")
            .header("source", Some(b"web"))
            .timestamp(1_700_000_000_123),
        Event::of("", "an empty key"),
        Event::keyless("a null key"),
        Event::of(NOT_UTF8, NOT_UTF8).header("bytes", Some(NOT_UTF8)),
        Event::tombstone("gone"),
        Event::of("headers", "v")
            .header("twice", Some(b"1"))
            .header("null", None)
            .header("empty", Some(b""))
            .header("twice", Some(b"2")),
        Event::of("ünï", "{\"a\": \"\\u0000 \u{1F600}\"}"),
        Event::of("long", vec![b'x'; 600_000]),
    ]
}

/// Odd events come back as they went, with the headers of Millrace added (D-F1).
pub fn odd_events_come_back(world: World) {
    let world = world.partitions(1).app(App::echo()).start();
    world.send(odd_events());
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, odd_events().len());
    let mut results = world.results();
    // Keys do not share a lane, so their results may pass each other.
    results.sort_by_key(|r| {
        let src = r
            .header("millrace-src")
            .expect("every result names its event");
        src.rsplit_once('/')
            .and_then(|(_, offset)| offset.parse::<i64>().ok())
    });
    for (event, result) in world.events().iter().zip(&results) {
        assert_eq!(result.key, event.key);
        assert_eq!(result.value, event.value);
        assert_eq!(result.headers_of_others(), event.headers);
    }
    assert_eq!(
        results[0].header("millrace-release").as_deref(),
        Some("r1-00000000")
    );
}
