//! Clocks that disagree: events of 1970 and of tomorrow, and an input whose host has the wrong time.

use std::time::Duration;

use millrace_integration_tests::pod::Pod;
use millrace_integration_tests::wait::PATIENCE;
use millrace_integration_tests::{App, Event, Say, WallClock, World, scenario, tales, wait_until};

const DAY: Duration = Duration::from_secs(86_400);

fn nothing_is_negative(pod: &Pod) {
    for page in [pod.ask_input("/metrics"), pod.ask_output("/metrics")] {
        let (_, page) = page.expect("metrics");
        let negative = page
            .lines()
            .find(|line| !line.starts_with('#') && line.contains(" -"));
        assert_eq!(negative, None);
    }
}

/// Waits until the input says that events were stamped so far ahead of its clock, less the time
/// that they were on their way.
fn says_skew(pod: &Pod, lead: Duration) {
    let lead = lead.as_secs_f64();
    let plausible = lead - PATIENCE.as_secs_f64()..=lead;
    let name = "millrace_clock_skew_seconds";
    wait_until("the skew of the clocks is told", || {
        pod.shows(name) == Some(true) && plausible.contains(&pod.metric(name))
    });
}

/// Brokers refuse what is more than an hour in the future, unless a topic says this.
const ANY_TIME: [&str; 2] = ["message.timestamp.after.max.ms", "9223372036854775807"];

fn tomorrow() -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    i64::try_from(now.as_millis()).expect("small") + 86_400_000
}

#[test]
fn f_18_timestamps_of_1970_and_of_tomorrow_harm_nothing() {
    scenario(
        "F-18",
        &["D-F1", "D-C4", "R4"],
        "odd timestamps come back as they went; no age or lag is negative; the skew is told",
    );
    let world = World::embedded()
        .partitions(1)
        .topic_with("in", ANY_TIME[0], ANY_TIME[1])
        .topic_with("out", ANY_TIME[0], ANY_TIME[1])
        .app(App::echo())
        .start();
    let times = [1, tomorrow(), 2, tomorrow(), 1_700_000_000_000];
    let event = |(n, ms): (usize, &i64)| Event::of("k", n.to_string()).timestamp(*ms);
    world.send(times.iter().enumerate().map(event));
    says_skew(&world.pods[0], DAY);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (5, 0));
    let results: Vec<i64> = world.results().iter().map(|r| r.timestamp_ms).collect();
    assert_eq!(results, times);
    nothing_is_negative(&world.pods[0]);
}

#[test]
fn f_18_a_timestamp_that_the_output_refuses_is_a_dead_letter() {
    scenario(
        "F-18",
        &["D-O4", "D-D1"],
        "a topic that refuses tomorrow gets no result; the dead letter is stored all the same",
    );
    let world = World::embedded()
        .partitions(1)
        .topic_with("in", ANY_TIME[0], ANY_TIME[1])
        .app(App::echo())
        .start();
    world.send([
        Event::of("k", "tomorrow").timestamp(tomorrow()),
        Event::of("k", "today"),
    ]);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (1, 1));
    let letter = &world.dead_letters()[0];
    let header = |name: &str| letter.header(&format!("millrace-dlq-{name}"));
    assert_eq!(letter.text(), "tomorrow");
    assert_eq!(header("stage").as_deref(), Some("output"));
    assert_eq!(header("reason").as_deref(), Some("output_rejected"));
    let original = header("orig-timestamp").and_then(|ms| ms.parse::<i64>().ok());
    assert!(original.is_some_and(|ms| ms > letter.timestamp_ms));
}

#[test]
fn f_18_the_age_of_an_event_decides_only_where_it_is_asked_to() {
    scenario(
        "F-18",
        &["D-D2"],
        "an event of 1970 is too old for a time to live, one of tomorrow is not",
    );
    let world = World::embedded()
        .partitions(1)
        .topic_with("in", ANY_TIME[0], ANY_TIME[1])
        .topic_with("out", ANY_TIME[0], ANY_TIME[1])
        .set("input.ttl", "1h")
        .app(App::echo())
        .start();
    world.send([
        Event::of("k", "old").timestamp(1),
        Event::of("k", "early").timestamp(tomorrow()),
        Event::of("k", "now"),
    ]);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (2, 1));
    let letter = &world.dead_letters()[0];
    assert_eq!(letter.text(), "old");
    assert_eq!(letter.header("millrace-dlq-reason").as_deref(), Some("ttl"));
}

/// A pod whose wall clock is wrong joins, has all partitions, shares them again and is killed: its
/// leases, rebalances and retries are those of any other. `ages`: what it says in seconds about the
/// age of an event that is stuck; `skew`: what it says about its clock.
fn works_with(clock: WallClock, ages: std::ops::Range<f64>, skew: Duration) {
    let app = App::saying(|asked| match (asked.text().as_str(), asked.attempt) {
        ("stuck", _) => Say::value("stuck").held(),
        ("again", 1..=2) => Say::status(503),
        (text, _) => Say::value(text).after(Duration::from_millis(3)),
    });
    let mut world = World::embedded()
        .partitions(4)
        .pods(2)
        .short_sessions()
        // The broker stamps events, and its clock is right.
        .topic_with("in", "message.timestamp.type", "LogAppendTime")
        .clock_of_pod(1, clock)
        .app(app)
        .prepare();
    let load = tales::second_takes_over(&mut world);
    let shifted = &world.pods[1];
    world.send([
        Event::of("again", "again").partition(0),
        Event::of("stuck", "stuck").partition(0),
    ]);
    wait_until("it was tried again", || {
        world.results_of("again").len() == 1
    });
    wait_until("one event is stuck", || {
        world.app().asked_about("stuck").len() == 1
    });
    wait_until("its age is told", || {
        ages.contains(&shifted.metric("millrace_lag_seconds"))
    });
    let oldest = shifted.metric("millrace_oldest_in_flight_seconds");
    assert!(oldest < ages.end, "{oldest}");
    says_skew(shifted, skew);
    nothing_is_negative(shifted);
    world.app().let_go();
    world.pods[0].input.start();
    wait_until("both have partitions again", || {
        world.pods.iter().all(|pod| pod.partitions().len() == 2)
    });
    world.has_results(world.results_count() + 60);
    says_skew(&world.pods[0], Duration::ZERO);
    assert_eq!(world.verdict().repeats, 0, "nobody failed so far");
    world.pods[1].input.kill();
    wait_until("the first has all partitions", || {
        world.pods[0].partitions().len() == 4
    });
    world.pods[1].input.start();
    wait_until("both have partitions once more", || {
        world.pods.iter().all(|pod| pod.partitions().len() == 2)
    });
    world.has_results(world.results_count() + 60);
    let sent = load.stop() as usize;
    let verdict = world.assert_nothing_lost();
    assert_eq!((verdict.answered, verdict.dead_lettered), (sent + 2, 0));
    for pod in &world.pods {
        wait_until("it is seen to have caught up", || {
            pod.shows("millrace_lag_seconds") == Some(true)
                && pod.metric("millrace_lag_records") == 0.0
        });
        assert_eq!(pod.metric("millrace_lag_seconds"), 0.0);
        nothing_is_negative(pod);
    }
}

#[test]
fn f_18_an_input_a_day_behind_works_like_the_others_and_says_so() {
    scenario(
        "F-18",
        &["R4", "D-G2", "D-G4", "D-C4"],
        "an input whose wall clock is a day behind: nothing lost, its lag is right, it tells the skew",
    );
    // Events of now are of tomorrow to it: they age from when it came to know of them. What is not
    // stuck is committed ten times a second, and never gets as old as this.
    let ages = 2.0..PATIENCE.as_secs_f64();
    works_with(WallClock::Behind(DAY), ages, DAY);
}

#[test]
fn f_18_an_input_a_day_ahead_works_like_the_others() {
    scenario(
        "F-18",
        &["R4", "D-G2", "D-G4", "D-D2"],
        "an input whose wall clock is a day ahead: nothing lost, retries are not too old for it",
    );
    // To it, every event is a day old; one of each partition may wait just then.
    let day = DAY.as_secs_f64();
    let ages = day..4.0 * (day + PATIENCE.as_secs_f64());
    works_with(WallClock::Ahead(DAY), ages, Duration::ZERO);
}
