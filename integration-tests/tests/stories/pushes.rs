//! Push mode: the app posts its results to the output (A-P1 to A-P5).

use std::time::Duration;

use millrace_integration_tests::dice::Dice;
use millrace_integration_tests::tales::second_takes_over;
use millrace_integration_tests::wait::{Deadline, let_pass, wait_until};
use millrace_integration_tests::world::Running;
use millrace_integration_tests::{App, Event, Out, Say, World, post};

/// What an app hears whose result was not stored.
const FAILED: &str = "Error: The callback failed to process the message";

/// Posts to the output of the first pod, as an app might.
fn posts(
    world: &Running,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String) {
    let port = world.pods[0].push.expect("push mode");
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let answer = runtime.block_on(post(port, method, path, &headers, body));
    let (status, body) = answer.expect("an answer");
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn a_p2_pushed_results_answer_each_event_once_and_in_order() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "nothing" => Say::filter(),
        "three" => Say::results(vec![
            Out::value("three 0"),
            Out::value("three 1").header("model", "v12"),
            Out::value("three 2").key("other"),
        ]),
        text => Say::value(text),
    });
    let world = World::embedded().push().app(app.pushing()).start();
    world.send_numbers(600, 20);
    world.send([
        Event::of("k", "before").header("source", Some(b"web")),
        Event::of("k", "three"),
        Event::of("k", "nothing"),
        Event::of("k", "after"),
    ]);
    let verdict = world.assert_answered_once_but(1);
    assert_eq!((verdict.answered, verdict.dead_lettered), (603, 0));
    assert_eq!(
        world.results_of("k"),
        ["before", "three 0", "three 1", "after"]
    );
    let results = world.results();
    let of = |value: &str| {
        let found = results
            .iter()
            .find(|r| r.value.as_deref() == Some(value.as_bytes()));
        found.expect("a result").clone()
    };
    // What a reply inherits and sets, a push does too (D-F2, A-P3).
    assert_eq!(of("before").header("source").as_deref(), Some("web"));
    assert_eq!(of("three 1").header("model").as_deref(), Some("v12"));
    assert_eq!(of("three 2").key.as_deref(), Some(&b"other"[..]));
    assert!(of("after").header("millrace-src").is_some());
    // 200 says what was stored.
    for posted in world.app().posted() {
        let expect = [b"msg: ", &posted.value[..]].concat();
        assert_eq!((posted.status, posted.body), (Some(200), expect));
    }
    assert_eq!(world.app().overlaps(), 0);
}

#[test]
fn r10_a_call_that_is_partly_answered_at_its_time_out_is_dead_lettered() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "half" => Say::value("half of it").then(Say::never()),
        "mute" if asked.attempt == 1 => Say::never(),
        text => Say::value(text),
    });
    let world = World::embedded()
        .push()
        .partitions(1)
        .set("app.contract.timeout", "700ms")
        .set("retry.backoff.initial", "10ms")
        .app(app.pushing())
        .start();
    world.send(["a", "half", "mute", "b"].map(|text| Event::of("k", text)));
    world.settles();
    let verdict = world.assert_nothing_lost();
    assert_eq!((verdict.answered, verdict.dead_lettered), (3, 1));
    let dead = &world.dead_letters()[0];
    assert_eq!(dead.value.as_deref(), Some(&b"half"[..]));
    assert_eq!(
        dead.header("millrace-dlq-reason").as_deref(),
        Some("timeout")
    );
    assert_eq!(world.results_of("k"), ["a", "half of it", "mute", "b"]);
}

#[test]
fn a_p1_results_of_a_call_that_is_over_are_refused() {
    // It answers only when nobody waits any more.
    let app = App::saying(|asked| {
        let late = asked.attempt == 1;
        Say::value(format!("attempt {}", asked.attempt)).after(Duration::from_millis(if late {
            1_200
        } else {
            0
        }))
    });
    let world = World::embedded()
        .push()
        .partitions(1)
        .set("app.contract.timeout", "500ms")
        .set("retry.backoff.initial", "10ms")
        .app(app.pushing())
        .start();
    world.send([Event::of("k", "slow")]);
    wait_until("both attempts have posted", || {
        world.app().posted().len() == 2
    });
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, 1);
    assert_eq!(world.results_of("k"), ["attempt 2"]);
    let mut statuses: Vec<_> = world.app().posted().iter().map(|p| p.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [Some(200), Some(409)]);
}

#[test]
fn a_p2_an_attempt_whose_last_post_failed_comes_again_even_after_a_2xx() {
    // The result topic takes little: the output refuses, and the app says that all is well.
    let app = App::saying(|asked| {
        let value = match asked.text().as_str() {
            "large" => "x".repeat(20_000),
            text => text.to_owned(),
        };
        Say::value(value).then(Say::filter())
    });
    let world = World::embedded()
        .push()
        .partitions(1)
        .topic_of("out", "10000")
        .app(app.pushing())
        .start();
    world.send(["a", "large", "b"].map(|text| Event::of("k", text)));
    world.settles();
    let verdict = world.assert_nothing_lost();
    assert_eq!((verdict.answered, verdict.dead_lettered), (2, 1));
    // What no broker takes is not tried again (D-O4).
    let dead = &world.dead_letters()[0];
    assert_eq!(
        dead.header("millrace-dlq-reason").as_deref(),
        Some("oversized")
    );
    assert_eq!(dead.header("millrace-dlq-stage").as_deref(), Some("output"));
    assert_eq!(world.app().asked_about("large").len(), 1);
    let refused = world
        .app()
        .posted()
        .into_iter()
        .find(|p| p.value.len() > 10_000);
    assert_eq!(refused.expect("a post").status, Some(413));
}

#[test]
fn a_p2_results_that_a_broker_does_not_take_for_now_are_posted_again_without_limit() {
    let app = App::saying(|asked| Say::value(asked.text()).then(Say::filter()));
    let mut world = World::embedded_in_files()
        .push()
        .partitions(1)
        .set("delivery.messageTimeout", "500ms")
        .set("delivery.lease", "2s")
        .set("retry.maxAttempts", 1)
        .set("retry.backoff.initial", "10ms")
        .app(app.pushing())
        .start();
    world.send([Event::of("k", "before")]);
    world.has_results(1);
    world.send([Event::of("k", "during")]);
    world.broker.process().kill();
    wait_until("a post failed", || {
        let posted = world.app().posted();
        posted
            .iter()
            .any(|p| p.status == Some(500) && p.body == FAILED.as_bytes())
            || posted.len() >= 2
    });
    world.broker.process().start();
    world.send([Event::of("k", "after")]);
    world.settles();
    let verdict = world.assert_nothing_lost();
    assert_eq!((verdict.events, verdict.dead_lettered), (3, 0));
}

#[test]
fn the_output_answers_posts_by_the_table_of_the_contract() {
    let world = World::embedded().push().app(App::echo().pushing()).start();
    world.send([Event::of("k", "v")]);
    world.has_results(1);
    let correlation = ("Millrace-Correlation", "q3VZ0n8mTk2Jx1cR7eYbLw");
    #[track_caller]
    fn check(answer: (u16, String), status: u16) {
        assert_eq!(answer.0, status, "{}", answer.1);
        assert!(answer.1.starts_with("Error: "), "{}", answer.1);
    }
    check(posts(&world, "POST", "/", &[], b"v"), 400);
    check(
        posts(
            &world,
            "POST",
            "/",
            &[("Millrace-Correlation", "mine")],
            b"v",
        ),
        400,
    );
    check(posts(&world, "POST", "/", &[correlation], b"v"), 409);
    check(
        posts(&world, "POST", "/", &[correlation], &vec![b'x'; 2 << 20]),
        413,
    );
    check(posts(&world, "GET", "/", &[], b""), 405);
    check(posts(&world, "PUT", "/", &[correlation], b"v"), 405);
    check(posts(&world, "POST", "/results", &[correlation], b"v"), 404);
    assert_eq!(world.results_count(), 1);
    assert_eq!(world.assert_each_event_answered_once().answered, 1);
}

#[test]
fn a_p4_apps_that_echo_nothing_get_one_event_at_a_time() {
    let world = World::embedded()
        .push()
        .partitions(3)
        .set("app.push.correlate", "Serial")
        .set("release.strategy", "Recreate")
        .app(App::doubler().pushing_without_echo())
        .start();
    world.send_numbers(300, 17);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (300, 0));
    assert_eq!(world.app().at_once_max(), 1);
}

#[test]
fn a_p5_results_that_belong_to_no_event_are_stored_only_where_that_is_allowed() {
    let with = |allowed: bool| {
        let world = World::embedded()
            .push()
            .partitions(1)
            .set("app.push.correlate", "Serial")
            .set("app.push.allowUncorrelated", allowed)
            .set("release.strategy", "Recreate")
            .app(App::echo().pushing_without_echo())
            .start();
        world.send([Event::of("k", "v")]);
        world.has_results(1);
        world.settles();
        world
    };
    let world = with(false);
    assert_eq!(posts(&world, "POST", "/", &[], b"by itself").0, 409);
    assert_eq!(world.results_count(), 1);
    let world = with(true);
    let headers = [
        ("Millrace-Out-Header-kind", "heartbeat"),
        ("Millrace-Out-Header-millrace-src", "x"),
    ];
    let answer = posts(&world, "POST", "/", &headers, b"by itself");
    assert_eq!(answer, (200, "msg: by itself".to_owned()));
    let results = world.results();
    let own = results
        .iter()
        .find(|r| r.value.as_deref() == Some(b"by itself"));
    let own = own.expect("it is stored");
    assert_eq!(own.header("kind").as_deref(), Some("heartbeat"));
    assert_eq!(own.header("millrace-src"), None);
    assert_eq!(
        own.header("millrace-release").as_deref(),
        Some("r1-00000000")
    );
    wait_until("it is counted", || {
        world.pods[0].output_metric("millrace_uncorrelated_results_total") >= 1.0
    });
}

#[test]
fn f_2_inputs_of_push_mode_come_and_go_and_each_event_is_answered_once() {
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(100)));
    let mut world = World::embedded()
        .push()
        .partitions(4)
        .pods(2)
        .set("flow.concurrency", 16)
        .app(app.pushing())
        .prepare();
    let load = second_takes_over(&mut world);
    // A call whose partition is taken away is made again by the next owner (D-G4).
    world.assert_load_answered(load);
}

#[test]
fn kill_9_of_everyone_in_turn_loses_nothing_in_push_mode() {
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(2)));
    let mut world = World::embedded_in_files()
        .push()
        .partitions(4)
        .short_sessions()
        .app(app.pushing())
        .start();
    let load = world.load(300, 60);
    world.has_results(100);
    let time = Deadline::after(Duration::from_secs(20));
    let mut dice = Dice::of_story();
    let mut kills = 0;
    while !time.is_over() || kills < 4 {
        let down = Duration::from_millis(dice.below(400));
        let before = world.results_count();
        match kills % 4 {
            0 => restart(world.input(), down),
            1 => restart(world.output(), down),
            2 => {
                world.app().kill();
                let_pass(down);
                world.app().start_again();
            }
            _ => restart(world.broker.process(), down),
        }
        kills += 1;
        world.goes_on_after(before);
    }
    let sent = load.stop();
    world.settles();
    let verdict = world.assert_nothing_lost();
    assert_eq!(verdict.events, sent as usize);
    assert_eq!(verdict.dead_lettered, 0, "{verdict:?}");
    println!("{kills} kills: {verdict:?}");
}

fn restart(process: &mut millrace_integration_tests::process::Process, down: Duration) {
    process.kill();
    let_pass(down);
    process.start();
}
