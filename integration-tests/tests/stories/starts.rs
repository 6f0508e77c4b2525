//! What is missing at the start is named with its remedy and waited for; a wrong document ends
//! the process with 2. Nobody panics, nobody hangs in silence.

use millrace_integration_tests::broker::{BrokerKind, free_port};
use millrace_integration_tests::wait::wait_until;
use millrace_integration_tests::world::Running;
use millrace_integration_tests::{App, World};
use serde_json::json;

fn nobody_panicked(world: &mut Running) {
    for log in [world.input().log(), world.output().log()] {
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn both_end_well(world: &mut Running) {
    assert_eq!(
        world.input().end().code(),
        Some(0),
        "{}",
        world.input().log()
    );
    assert_eq!(
        world.output().end().code(),
        Some(0),
        "{}",
        world.output().log()
    );
    nobody_panicked(world);
}

#[test]
fn d_s1_missing_topics_are_named_and_waited_for() {
    let mut world = World::embedded()
        .without_topics()
        .app(App::doubler())
        .start();
    let (input, output, letters) = (world.topic("in"), world.topic("out"), world.topic("dlq"));
    world
        .output()
        .says_all(&[&output, "does not exist", "topics.create: Missing"]);
    let (code, body) = world.pods[0]
        .ask_output("/readyz")
        .expect("the output answers");
    assert!(code != 200 && body.contains(&output), "{code} {body}");
    world.create_topic("out");
    world
        .output()
        .says_all(&[&letters, "does not exist", "topics.create: Missing"]);
    world.create_topic("dlq");
    world
        .input()
        .says_all(&[&input, "does not exist", "topics.create: Missing"]);
    let (code, _) = world.pods[0]
        .ask_input("/readyz")
        .expect("the input answers");
    assert_ne!(code, 200);
    world.create_topic("in");
    world.send_numbers(50, 5);
    world.assert_each_event_answered_once();
    both_end_well(&mut world);
}

#[test]
fn a_broker_that_cannot_be_reached_is_named_and_waited_for() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let mut world = World::on(BrokerKind::Kafka(nobody.clone()))
        .without_topics()
        .app(App::doubler())
        .start();
    world
        .output()
        .says_all(&[&nobody, "main", "cannot be reached", "check"]);
    let (code, body) = world.pods[0]
        .ask_output("/readyz")
        .expect("the output answers");
    assert!(
        code != 200 && body.contains("cannot be reached"),
        "{code} {body}"
    );
    wait_until("the input tells what it waits for", || {
        world.pods[0]
            .ask_input("/readyz")
            .is_some_and(|(code, body)| code != 200 && body.contains("output proxy"))
    });
    both_end_well(&mut world);
}

#[test]
fn an_app_that_is_not_healthy_is_named_and_waited_for() {
    let mut world = World::embedded()
        .app(App::doubler().not_yet_healthy())
        .start();
    let port = world.app().port.to_string();
    world
        .input()
        .says_all(&["waiting for the app to become healthy", &port, "/healthz"]);
    let (code, body) = world.pods[0]
        .ask_input("/readyz")
        .expect("the input answers");
    assert!(code != 200 && body.contains("the app"), "{code} {body}");
    let (code, _) = world.pods[0]
        .ask_input("/startupz")
        .expect("the input answers");
    assert_eq!(code, 200, "D-S2: start-up does not wait for the app");
    world.send_numbers(50, 5);
    assert_eq!(
        world.app().requests(),
        0,
        "an app that is not healthy was asked"
    );
    world.app().set_healthy(true);
    world.assert_each_event_answered_once();
    both_end_well(&mut world);
}

#[test]
fn waiting_for_the_app_ends_when_asked_to() {
    let mut world = World::embedded()
        .app(App::doubler().not_yet_healthy())
        .start();
    world.input().says("waiting for the app to become healthy");
    both_end_well(&mut world);
}

#[test]
fn c_1_a_wrong_document_lists_all_its_problems_and_ends_with_2() {
    let mut world = World::embedded()
        .set("delivery.windw", 5)
        .set("delivery.ordering", "Keys")
        .set("batch.maxRecords", "many")
        .set("app.contract.timeout", "soon")
        .set("flow.concurrency", 0)
        .app(App::doubler())
        .prepare();
    for part in ["input", "output"] {
        let process = if part == "input" {
            &mut world.pods[0].input
        } else {
            &mut world.pods[0].output
        };
        process.start();
        assert_eq!(process.ended().code(), Some(2), "{}", process.log());
        let log = process.log();
        let paths = [
            "delivery.windw",
            "delivery.ordering",
            "batch.maxRecords",
            "app.contract.timeout",
            "flow.concurrency",
        ];
        for path in paths {
            assert!(log.contains(path), "{part} does not name {path}:\n{log}");
        }
        assert!(
            log.contains("window"),
            "{part} does not suggest the key that was meant:\n{log}"
        );
    }
}

#[test]
fn a_block_that_the_app_does_not_offer_does_not_start() {
    let mut world = World::embedded()
        .batch()
        .app(App::doubler().offering(json!({
            "contract": "1", "modes": ["push"], "requests": ["single"], "content": ["raw"],
        })))
        .start();
    world.send_numbers(5, 5);
    let ended = world.input().ended();
    assert_eq!(ended.code(), Some(1), "{}", world.input().log());
    for said in [
        "/.well-known/millrace",
        "app.contract.mode is Reply, but the app offers only: push",
        "app.contract.request is Batch, but the app offers only: single",
    ] {
        world.input().says(said);
    }
    assert_eq!(world.app().requests(), 0, "the app was asked all the same");
    nobody_panicked(&mut world);
}

#[test]
fn an_app_of_another_contract_is_not_asked() {
    let mut world = World::embedded()
        .app(App::doubler().offering(json!({"contract": "2"})))
        .start();
    assert_eq!(world.input().ended().code(), Some(1));
    world
        .input()
        .says_all(&["contract \"2\"", "this version speaks \"1\""]);
    assert_eq!(world.app().requests(), 0);
}

#[test]
fn batches_never_exceed_what_the_app_takes_at_once() {
    let world = World::embedded()
        .batch()
        .set("batch.maxRecords", 100)
        .set("batch.linger", "50ms")
        .app(App::doubler().offering(json!({
            "contract": "1", "modes": ["reply"], "requests": ["single", "batch"], "max_batch": 3,
        })))
        .start();
    world.send_numbers(60, 30);
    world.assert_each_event_answered_once();
    let together = world.app().asked().iter().map(|asked| asked.together).max();
    assert_eq!(together, Some(3), "the app takes three at once");
}
