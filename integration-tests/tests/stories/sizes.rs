//! Too large for the app, for the topic, for the dead-letter topic.

use millrace_integration_tests::{App, Event, Out, Say, World, scenario};

const MI: usize = 1 << 20;

/// So many bytes that do not compress away to nothing.
fn large(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|n| b'a' + u8::try_from(n * 7 % 23).expect("a letter"))
        .collect()
}

#[test]
fn f_10_an_event_above_the_limit_of_the_app_is_dead_lettered_and_others_pass() {
    scenario(
        "F-10",
        &["D-C1", "D-D2"],
        "above the fetch limit it is still delivered, above app.maxRequestBytes it is a dead letter",
    );
    for world in [World::embedded(), World::embedded().batch()] {
        let world = world
            .partitions(1)
            .topic_of("in", "12582912")
            .topic_of("out", "12582912")
            .topic_of("dlq", "12582912")
            .app(App::echo())
            .start();
        let values = [large(10), large(2 * MI), large(9 * MI), large(20)];
        world.send(values.clone().map(|value| Event::of("k", value)));
        let verdict = world.assert_each_event_answered_once();
        assert_eq!((verdict.answered, verdict.dead_lettered), (3, 1));
        let results: Vec<_> = world
            .results()
            .into_iter()
            .map(|r| r.value.unwrap_or_default())
            .collect();
        assert!(
            results == [&values[0][..], &values[1], &values[3]],
            "the results differ"
        );
        let letter = &world.dead_letters()[0];
        assert!(
            letter.value.as_deref() == Some(&values[2][..]),
            "the dead letter differs"
        );
        assert_eq!(
            letter.header("millrace-dlq-reason").as_deref(),
            Some("oversized")
        );
        assert_eq!(
            letter.header("millrace-dlq-stage").as_deref(),
            Some("input")
        );
        assert!(
            world
                .app()
                .asked()
                .iter()
                .all(|a| a.value.as_ref().is_none_or(|v| v.len() < 9 * MI))
        );
    }
}

#[test]
fn f_11_a_result_above_the_limit_of_the_topic_is_dead_lettered_and_none_of_its_event_is_sent() {
    scenario(
        "F-11",
        &["D-O3", "P-8"],
        "a result above the topic's limit is refused before any result of its event is sent",
    );
    let app = App::saying(|asked| match asked.text().as_str() {
        "one" => Say::value(large(2 * MI)),
        "second" => Say::results(vec![Out::value("small"), Out::value(large(2 * MI))]),
        text => Say::value(text),
    });
    let world = World::embedded().partitions(1).app(app).start();
    world.send(["before", "one", "second", "after"].map(|value| Event::of("k", value)));
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (2, 2));
    assert_eq!(world.results_of("k"), ["before", "after"]);
    let letters = world.dead_letters();
    let texts: Vec<String> = letters.iter().map(|l| l.text()).collect();
    assert_eq!(texts, ["one", "second"]);
    for (letter, refused) in letters.iter().zip(["0", "1"]) {
        for (header, expected) in [
            ("millrace-dlq-reason", "oversized"),
            ("millrace-dlq-stage", "output"),
            ("millrace-dlq-output-index", refused),
        ] {
            assert_eq!(letter.header(header).as_deref(), Some(expected), "{header}");
        }
    }
}

#[test]
fn an_answer_above_the_limit_is_dead_lettered_at_the_stage_app() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "large" => Say::value(large(MI)),
        text => Say::value(text),
    });
    let world = World::embedded()
        .partitions(1)
        .set("app.maxResponseBytes", "64Ki")
        .app(app)
        .start();
    world.send(["large", "after"].map(|value| Event::of("k", value)));
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (1, 1));
    let letter = &world.dead_letters()[0];
    assert_eq!(
        letter.header("millrace-dlq-reason").as_deref(),
        Some("oversized")
    );
    assert_eq!(letter.header("millrace-dlq-stage").as_deref(), Some("app"));
}

#[test]
fn d_d5_a_dead_letter_that_does_not_fit_is_cut_if_the_block_allows_it() {
    let app = App::saying(|asked| match asked.text().as_str() {
        "fine" => Say::value("fine"),
        _ => Say::status(422),
    });
    let world = World::embedded()
        .partitions(1)
        .topic_of("in", "12582912")
        .set("deadLetter.oversized", "Truncate")
        .app(app)
        .start();
    world.send([Event::of("k", large(2 * MI)), Event::of("k", "fine")]);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (1, 1));
    let letter = &world.dead_letters()[0];
    assert!(letter.value.as_ref().is_none_or(|value| value.len() < MI));
    assert_eq!(
        letter.header("millrace-dlq-orig-offset").as_deref(),
        Some("0")
    );
}
