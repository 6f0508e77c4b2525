//! Every event is answered once, in order, byte by byte.

use millrace_integration_tests::{App, Event, Out, Say, World, tales};

#[test]
fn single_requests_answer_each_event_once_in_order_per_key() {
    let world = World::embedded().partitions(4).app(App::doubler()).start();
    world.send_numbers(2_000, 23);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.events, verdict.answered), (2_000, 2_000));
    let expected: Vec<String> = (0..2_000)
        .filter(|n| n % 23 == 5)
        .map(|n| (2 * n).to_string())
        .collect();
    assert_eq!(world.results_of("key-5"), expected);
    assert_eq!(
        world.app().overlaps(),
        0,
        "two events of one key were at the app at once"
    );
    assert!(
        world.app().at_once_max() > 1,
        "keys do not run beside each other"
    );
}

#[test]
fn batches_answer_each_event_once_in_order_per_key() {
    let world = World::embedded()
        .partitions(4)
        .batch()
        .app(App::doubler())
        .start();
    world.send_numbers(5_000, 150);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.events, verdict.answered), (5_000, 5_000));
    let expected: Vec<String> = (0..5_000)
        .filter(|n| n % 150 == 7)
        .map(|n| (2 * n).to_string())
        .collect();
    assert_eq!(world.results_of("key-7"), expected);
    assert_eq!(
        world.app().overlaps(),
        0,
        "two events of one key were at the app at once"
    );
    assert!(
        world.app().requests() < 2_500,
        "{} requests are no batches",
        world.app().requests()
    );
}

#[test]
fn ordering_by_partition_keeps_the_order_of_the_whole_partition() {
    for batch in [false, true] {
        let mut world = World::embedded()
            .partitions(2)
            .app(App::doubler())
            .set("delivery.ordering", "Partition");
        if batch {
            world = world.batch();
        }
        let world = world.start();
        world.send_numbers(400, 9);
        let verdict = world.assert_each_event_answered_once();
        assert_eq!(verdict.answered, 400);
    }
}

#[test]
fn without_ordering_events_of_one_key_run_beside_each_other() {
    let slow = App::saying(|asked| {
        Say::value(asked.value.clone().unwrap_or_default())
            .after(std::time::Duration::from_millis(30))
    });
    let world = World::embedded()
        .app(slow)
        .set("delivery.ordering", "None")
        .start();
    world.send_numbers(300, 1);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, 300);
    assert!(
        world.app().overlaps() > 0,
        "one key is still worked on in turn"
    );
}

#[test]
fn a_lane_goes_on_as_soon_as_its_event_is_answered() {
    // Nothing is fetched any more and commits are far apart, so only the answer can wake the lane.
    let world = World::embedded()
        .partitions(1)
        .app(App::doubler())
        .set("delivery.commitInterval", "1h")
        .start();
    world.send_numbers(200, 1);
    let first = world.app().first_after(0);
    let last = world.app().first_after(199);
    assert!(
        last - first < std::time::Duration::from_secs(6),
        "200 events of one key took {:?}",
        last - first
    );
    world.assert_each_event_answered_once();
}

#[test]
fn d_f1_bytes_come_back_as_they_went_one_by_one() {
    tales::odd_events_come_back(World::embedded());
}

#[test]
fn d_f1_bytes_come_back_as_they_went_in_batches() {
    tales::odd_events_come_back(World::embedded().batch());
}

#[test]
fn d_f1_an_empty_value_is_not_a_missing_one() {
    let world = World::embedded()
        .partitions(1)
        .app(App::echo())
        .batch()
        .start();
    world.send([Event::of("empty", ""), Event::tombstone("null")]);
    world.assert_each_event_answered_once();
    let values = |key: &str| {
        let results = world.results();
        let of_key = results
            .iter()
            .filter(|r| r.key.as_deref() == Some(key.as_bytes()));
        of_key.map(|r| r.value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(values("empty"), [Some(Vec::new())]);
    assert_eq!(values("null"), [None]);
}

/// Odd numbers are filtered, multiples of ten have three results, the others one.
fn several() -> App {
    App::saying(|asked| {
        let number: i64 = asked.text().parse().expect("a number");
        match number {
            n if n % 2 == 1 => Say::filter(),
            n if n % 10 == 0 => Say::results(vec![
                Out::value(format!("{n}a")).header("kind", "first"),
                Out::value(format!("{n}b")).key("other"),
                Out::value(format!("{n}c")).header("source", "app"),
            ]),
            n => Say::value(n.to_string()),
        }
    })
}

fn an_app_may_answer_with_none_or_several(world: World) {
    let world = world.app(several()).start();
    world.send((0..100).map(|n| {
        Event::of(format!("key-{}", n % 7), n.to_string())
            .header("source", Some(b"web"))
            .header("trace", Some(b"1"))
    }));
    let verdict = world.assert_answered_once_but(50);
    assert_eq!((verdict.answered, verdict.dead_lettered), (50, 0));
    let results = world.results();
    assert_eq!(results.len(), 40 + 10 * 3);
    let find = |value: &str| {
        results
            .iter()
            .find(|r| r.text() == value)
            .expect("a result")
    };
    // Inherited unless the app says otherwise (D-F2).
    assert_eq!(find("20a").header("source").as_deref(), Some("web"));
    assert_eq!(find("20a").header("kind").as_deref(), Some("first"));
    assert_eq!(find("20b").key.as_deref(), Some(&b"other"[..]));
    assert_eq!(find("20c").header("source").as_deref(), Some("app"));
    assert_eq!(find("20c").header("trace").as_deref(), Some("1"));
    assert_eq!(find("22").header("source").as_deref(), Some("web"));
}

#[test]
fn d_f2_filters_several_results_and_own_headers_one_by_one() {
    an_app_may_answer_with_none_or_several(World::embedded());
}

#[test]
fn d_f2_filters_several_results_and_own_headers_in_batches() {
    an_app_may_answer_with_none_or_several(World::embedded().batch());
}
