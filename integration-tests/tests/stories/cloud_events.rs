//! CloudEvents to and from the app (A-C1..A-C3), as records and readers see them.

use millrace_integration_tests::{App, Asked, Event, Record, Say, World};
use serde_json::{Value, json};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// Records of every form: binary, structured, and no CloudEvent at all.
fn three_forms() -> [Event; 3] {
    let event =
        json!({"specversion": "1.0", "id": "o-2", "source": "/shop", "type": "ordered", "data": 2});
    [
        Event::of("binary", "1")
            .header("ce_specversion", Some(b"1.0"))
            .header("ce_id", Some(b"o-1"))
            .header("ce_source", Some(b"/shop"))
            .header("ce_type", Some(b"ordered"))
            .header("ce_region", Some(b"eu"))
            .header("content-type", Some(b"application/json")),
        Event::of("structured", event.to_string())
            .header("content-type", Some(STRUCTURED.as_bytes())),
        Event::of("plain", "3").header("source", Some(b"web")),
    ]
}

fn answer_of<'a>(results: &'a [Record], key: &str) -> &'a Record {
    let found = results
        .iter()
        .find(|r| r.key.as_deref() == Some(key.as_bytes()));
    found.unwrap_or_else(|| panic!("no result for {key}"))
}

fn attribute(asked: &Asked, name: &str) -> Option<String> {
    asked.header(name).map(str::to_owned)
}

#[test]
fn a_c1_a_c2_binary_requests_keep_attributes_and_binary_answers_become_headers() {
    let app = App::saying(|asked| {
        Say::value(format!("{}!", asked.text()))
            .header("ce-specversion", "1.0")
            .header("ce-id", &format!("a-{}", asked.key_text()))
            .header("ce-source", "/apps/score")
            .header("ce-type", "order%20scored")
            .header("content-type", "text/plain")
    });
    let world = World::embedded()
        .set("app.contract.content", "CloudEvents")
        .app(app)
        .start();
    world.send(three_forms());
    world.assert_each_event_answered_once();
    let asked = world.app().asked();
    let of = |key: &str| asked.iter().find(|a| a.key_text() == key).expect("asked");
    assert_eq!(attribute(of("binary"), "ce-id").as_deref(), Some("o-1"));
    assert_eq!(attribute(of("binary"), "ce-region").as_deref(), Some("eu"));
    assert_eq!(attribute(of("structured"), "ce-id"), None);
    assert_eq!(
        attribute(of("structured"), "content-type").as_deref(),
        Some(STRUCTURED)
    );
    let plain = of("plain");
    assert_eq!(
        attribute(plain, "ce-id").as_deref(),
        Some(plain.id.as_str())
    );
    assert_eq!(attribute(plain, "ce-subject").as_deref(), Some("plain"));
    assert!(
        attribute(plain, "ce-source")
            .expect("made")
            .ends_with(&world.topic("in"))
    );
    let results = world.results();
    for key in ["binary", "structured", "plain"] {
        let result = answer_of(&results, key);
        assert_eq!(result.header("ce_id"), Some(format!("a-{key}")));
        assert_eq!(result.header("ce_type").as_deref(), Some("order scored"));
        assert_eq!(result.header("content-type").as_deref(), Some("text/plain"));
        assert_eq!(
            result.header("ce_region"),
            None,
            "attributes are not inherited"
        );
    }
    let plain = answer_of(&results, "plain");
    assert_eq!(
        plain.header("source").as_deref(),
        Some("web"),
        "other headers are"
    );
}

#[test]
fn a_c2_structured_requests_and_answers_are_json() {
    let app = App::saying(|asked| {
        let event: Value = serde_json::from_str(&asked.text()).expect("a structured request");
        let answer = json!({
            "specversion": "1.0", "id": "s", "source": "/apps/score", "type": "scored",
            "data": {"of": event["id"], "was": event["data"]},
        });
        Say::value(answer.to_string()).header("content-type", STRUCTURED)
    });
    let world = World::embedded()
        .set("app.contract.content", "CloudEvents")
        .set("app.contract.structured", true)
        .app(app)
        .start();
    world.send(three_forms());
    world.assert_each_event_answered_once();
    let results = world.results();
    let data = |key: &str| {
        let result = answer_of(&results, key);
        assert_eq!(result.header("content-type").as_deref(), Some(STRUCTURED));
        assert_eq!(result.header("ce_id"), None);
        let event: Value = serde_json::from_str(&result.text()).expect("JSON");
        event["data"].clone()
    };
    assert_eq!(data("binary"), json!({"of": "o-1", "was": 1}));
    assert_eq!(data("structured"), json!({"of": "o-2", "was": 2}));
    assert_eq!(data("plain")["was"], json!("3"));
}

#[test]
fn a_c3_batches_of_cloud_events_are_answered_by_parent() {
    let app = App::echo().but(|asked| {
        let event = |asked: &Asked, part: &str| {
            json!({
                "specversion": "1.0", "id": format!("{part}-{}", asked.id), "source": "/apps/score",
                "type": "scored", "millraceparent": asked.id, "data": asked.text(),
            })
        };
        let answers = asked.iter().flat_map(|asked| match asked.text().as_str() {
            "filter" => vec![json!({"millraceparent": asked.id, "millracestatus": "filter"})],
            "fail" => vec![json!({
                "millraceparent": asked.id, "millracestatus": "fail", "millraceerrorcode": "BAD",
            })],
            "later" if asked.attempt == 1 => {
                vec![json!({"millraceparent": asked.id, "millracestatus": "retry"})]
            }
            "twice" => vec![event(asked, "a"), event(asked, "b")],
            _ => vec![event(asked, "a")],
        });
        let answers: Vec<Value> = answers.collect();
        Some(
            Say::body(200, Value::from(answers).to_string().as_bytes())
                .header("content-type", BATCH),
        )
    });
    let world = World::embedded()
        .batch()
        .set("app.contract.content", "CloudEvents")
        .set("retry.backoff.initial", "20ms")
        .app(app)
        .start();
    let text =
        |key: &str, value: &str| Event::of(key, value).header("content-type", Some(b"text/plain"));
    world.send([
        text("one", "one"),
        text("twice", "twice"),
        text("filter", "filter"),
        text("later", "later"),
        text("fail", "fail"),
    ]);
    world.settles();
    let results = world.results();
    let keys = |key: &str| {
        results
            .iter()
            .filter(|r| r.key.as_deref() == Some(key.as_bytes()))
            .count()
    };
    assert_eq!(
        (keys("one"), keys("twice"), keys("filter"), keys("later")),
        (1, 2, 0, 1)
    );
    let one: Value = serde_json::from_str(&answer_of(&results, "one").text()).expect("JSON");
    assert_eq!(one["data"], "one");
    assert!(one.get("millraceparent").is_none(), "{one}");
    let letters = world.dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(
        letters[0].header("millrace-dlq-error-code").as_deref(),
        Some("BAD")
    );
}

#[test]
fn an_answer_that_is_no_cloud_event_is_not_published() {
    let world = World::embedded()
        .set("app.contract.content", "CloudEvents")
        .set("retry.maxAttempts", 2)
        .set("retry.backoff.initial", "20ms")
        .app(App::echo())
        .start();
    world.send([Event::of("k", "plain")]);
    world.settles();
    assert_eq!(world.results_count(), 0);
    let letters = world.dead_letters();
    let message = letters[0]
        .header("millrace-dlq-error-message")
        .expect("a message");
    assert!(message.contains("no CloudEvent"), "{message}");
}
