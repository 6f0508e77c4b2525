//! `millrace tap`: somebody watches a block at work, and nobody is disturbed (D-H3).

use std::process::Command;

use millrace_integration_tests::process::binary;
use millrace_integration_tests::{App, Say, World};
use serde_json::Value;

fn app() -> App {
    App::saying(|asked| match asked.text().parse::<i64>() {
        Ok(13) => Say::status(422),
        Ok(number) => Say::value((2 * number).to_string()),
        Err(_) => Say::filter(),
    })
}

/// `millrace tap` on the input of the only pod, while numbers come.
fn watched(world: World, options: &[&str]) -> (Vec<Value>, String) {
    let world = world.app(app()).start();
    world.pods[0].is_ready();
    let load = world.load(200, 5);
    let output = Command::new(binary("millrace"))
        .args([
            "tap",
            &world.pods[0].input_url(),
            "--count",
            "3",
            "-o",
            "json",
        ])
        .args(options)
        .output()
        .expect("millrace tap runs");
    load.stop();
    world.settles();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let events = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    (
        events.collect(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn d_h3_who_taps_sees_what_passes_but_no_payloads() {
    let (events, error) = watched(World::embedded(), &["--filter", "outcome=emitted"]);
    assert_eq!(events.len(), 3, "{error}");
    for event in events {
        assert_eq!(event["outcome"], "emitted");
        assert!(event["resultBytes"][0].as_u64() > Some(0));
        assert!(
            event.get("value").is_none() && event.get("key").is_none(),
            "{event}"
        );
    }
}

#[test]
fn d_h3_payloads_are_shown_only_where_the_block_allows_it() {
    let (events, error) = watched(World::embedded(), &["--payloads"]);
    assert!(
        events.is_empty() && error.contains("admin.tapPayloads"),
        "{error}"
    );
    let allowed = World::embedded().set("admin.tapPayloads", true);
    let (events, error) = watched(allowed, &["--payloads", "--filter", "outcome=emitted"]);
    assert_eq!(events.len(), 3, "{error}");
    for event in events {
        let value: i64 = event["value"]
            .as_str()
            .expect("a value")
            .parse()
            .expect("a number");
        assert_eq!(event["results"][0], (2 * value).to_string());
        assert!(event["key"].as_str().expect("a key").starts_with("key-"));
    }
}
