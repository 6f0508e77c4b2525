//! JSON Schemas at the edges (D-F4): what breaks them is dead at once, with the side named.

use millrace_integration_tests::{App, Event, Out, Say, World};
use serde_json::json;

const NUMBER: &str =
    r#"{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}"#;

fn number(key: &str, value: impl Into<serde_json::Value>) -> Event {
    Event::of(key, json!({"n": value.into()}).to_string())
}

/// Writes the schema into the world's folder before its pods start.
fn started(world: World) -> millrace_integration_tests::world::Running {
    let mut world = world
        .set("input.schema", "event.json")
        .set("output.schema", "result.json")
        .app(App::saying(|asked| match asked.text().as_str() {
            r#"{"n":13}"# => Say::value(r#"{"n":"many"}"#),
            _ => match asked.value.clone() {
                Some(value) => Say::value(value),
                None => Say::results(vec![Out::tombstone()]),
            },
        }))
        .prepare();
    for name in ["event.json", "result.json"] {
        std::fs::write(world.folder().join(name), NUMBER).expect("a schema");
    }
    for pod in &mut world.pods {
        pod.start();
    }
    world
}

fn what_breaks_a_schema_is_dead_at_once(world: World) {
    let world = started(world);
    world.send((0..20).map(|n| number(&format!("key-{n}"), n)));
    world.send([
        Event::of("no json", "hello"),
        number("no number", "x"),
        Event::tombstone("tombstone"),
    ]);
    world.settles();
    let letters = world.dead_letters();
    let letter = |key: &str| {
        let found = letters
            .iter()
            .find(|l| l.key.as_deref() == Some(key.as_bytes()));
        found.unwrap_or_else(|| panic!("no dead letter for {key}"))
    };
    assert_eq!(letters.len(), 3);
    for (key, stage, why) in [
        ("no json", "input", "no JSON"),
        ("no number", "input", "/n"),
        ("key-13", "output", "/n"),
    ] {
        let letter = letter(key);
        let header = |name: &str| letter.header(&format!("millrace-dlq-{name}")).expect(name);
        assert_eq!(
            (header("reason").as_str(), header("stage").as_str()),
            ("schema", stage)
        );
        assert!(
            header("error-message").contains(why),
            "{}",
            header("error-message")
        );
    }
    assert_eq!(world.results_count(), 20, "19 numbers and a tombstone");
    for broken in ["hello", r#"{"n":"x"}"#] {
        let asked = world.app().asked_about(broken);
        assert!(asked.is_empty(), "the app saw {broken}");
    }
    assert_eq!(world.app().asked_about(r#"{"n":13}"#).len(), 1);
}

#[test]
fn d_f4_single_events_and_results_that_break_a_schema_are_dead_at_once() {
    what_breaks_a_schema_is_dead_at_once(World::embedded());
}

#[test]
fn d_f4_in_a_batch_only_those_that_break_the_schema_are_dead() {
    what_breaks_a_schema_is_dead_at_once(World::embedded().batch().set("batch.linger", "50ms"));
}

#[test]
fn a_schema_that_cannot_be_used_stops_the_start_and_check_names_it() {
    let mut world = World::embedded()
        .set("input.schema", "event.json")
        .app(App::doubler())
        .prepare();
    let path = world.folder().join("event.json");
    std::fs::write(&path, r#"{"type": "objekt"}"#).expect("a schema");
    world.input().start();
    assert_eq!(world.input().ended().code(), Some(1));
    let place = path.display().to_string();
    world.input().says_all(&["input.schema", &place, "objekt"]);
    let document = world.pods[0].document.display().to_string();
    let check = std::process::Command::new(millrace_integration_tests::process::binary("millrace"))
        .args(["check", &document])
        .output()
        .expect("millrace check runs");
    let said = String::from_utf8_lossy(&check.stdout);
    assert_eq!(check.status.code(), Some(2), "{said}");
    assert!(
        said.contains("input.schema") && said.contains(&place),
        "{said}"
    );
}
