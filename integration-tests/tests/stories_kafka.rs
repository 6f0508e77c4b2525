//! The stories that depend on the broker, on the real Kafka that `MILLRACE_TEST_KAFKA` names.

use std::time::Duration;

use millrace_integration_tests::broker::BrokerKind;
use millrace_integration_tests::dice::Dice;
use millrace_integration_tests::line::Line;
use millrace_integration_tests::pod::Pod;
use millrace_integration_tests::soak::{Plan, soak};
use millrace_integration_tests::tales::outages::Outage;
use millrace_integration_tests::tales::{logs, outages};
use millrace_integration_tests::token_endpoint::{CLIENT, SECRET, TokenEndpoint};
use millrace_integration_tests::world::Running;
use millrace_integration_tests::{App, Event, World, acl, scenario, tales, wait_until};
use serde_json::json;

/// A world on the real Kafka; `None`, with the reason printed, if there is none.
fn world() -> Option<World> {
    BrokerKind::kafka().map(World::on)
}

#[test]
fn each_event_is_answered_once_and_in_order() {
    let Some(world) = world() else { return };
    tales::each_event_once(world);
}

#[test]
fn batches_answer_each_event_once_and_in_order() {
    let Some(world) = world() else { return };
    tales::each_event_once(world.batch());
}

#[test]
fn d_f1_bytes_come_back_as_they_went() {
    let Some(world) = world() else { return };
    tales::odd_events_come_back(world);
}

#[test]
fn d_s4_an_input_that_is_asked_to_end_finishes_and_repeats_nothing() {
    let Some(world) = world() else { return };
    tales::a_graceful_end_repeats_nothing(world);
}

#[test]
fn f_2_inputs_come_and_go_and_each_event_is_answered_once() {
    let Some(world) = world() else { return };
    tales::inputs_come_and_go(world);
}

#[test]
fn f_3_an_input_that_was_frozen_does_no_harm_when_it_goes_on() {
    let Some(world) = world() else { return };
    tales::frozen_and_thawed(world);
}

#[test]
fn kill_9_of_everyone_in_turn_loses_nothing_and_keeps_the_order() {
    let Some(world) = world() else { return };
    tales::killed_in_turn(world, false);
}

#[test]
fn kill_9_of_everyone_in_turn_loses_nothing_in_batches() {
    let Some(world) = world() else { return };
    tales::killed_in_turn(world.batch(), false);
}

#[test]
fn d_e2_each_event_is_answered_once_under_exactly_once() {
    let Some(world) = world() else { return };
    tales::each_event_once(world.exactly_once());
}

#[test]
fn f_2_inputs_come_and_go_under_exactly_once() {
    let Some(world) = world() else { return };
    tales::inputs_come_and_go(world.exactly_once());
}

#[test]
fn f_3_the_transaction_of_a_frozen_input_is_refused() {
    let Some(world) = world() else { return };
    tales::frozen_and_thawed(world.exactly_once());
}

#[test]
fn d_e5_results_that_cannot_be_stored_abort_and_are_seen_once() {
    let Some(world) = world() else { return };
    tales::failures_exactly_once(world);
}

#[test]
fn d_e5_an_output_that_is_frozen_beyond_its_transaction_doubles_nothing() {
    let Some(world) = world() else { return };
    tales::output_frozen_beyond_its_transaction(world);
}

#[test]
fn kill_9_of_everyone_in_turn_under_exactly_once_doubles_nothing() {
    let Some(world) = world() else { return };
    tales::killed_in_turn(world.exactly_once(), false);
}

#[test]
fn kill_9_of_everyone_in_turn_under_exactly_once_doubles_nothing_in_batches() {
    let Some(world) = world() else { return };
    tales::killed_in_turn(world.exactly_once().batch(), false);
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} comes with MILLRACE_TEST_KAFKA"))
}

/// A world whose proxies come over TLS with a user and this password; `None` without a Kafka.
fn secure_world(password: &str) -> Option<(World, tempfile::TempDir)> {
    let world = world()?;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, password).expect("a password file");
    let connection = json!({
        "bootstrap": [variable("MILLRACE_TEST_KAFKA_SECURE")],
        "tls": {"ca": variable("MILLRACE_TEST_KAFKA_CA")},
        "sasl": {"mechanism": "ScramSha512", "username": "millrace", "password": {"file": file}},
    });
    Some((world.set("connections.main.kafka", connection), folder))
}

#[test]
fn d_p1_a_block_works_over_tls_with_user_and_password() {
    let Some((world, _folder)) = secure_world("millrace-test") else {
        return;
    };
    tales::each_event_once(world);
}

#[test]
fn c3_a_wrong_password_that_is_corrected_in_its_file_heals_without_a_restart() {
    let Some((world, folder)) = secure_world("not-the-password") else {
        return;
    };
    let mut world = world.app(App::doubler()).start();
    world.output().says_all(&["refuse us"]);
    std::fs::write(folder.path().join("password"), "millrace-test").expect("the right one");
    world.send_numbers(200, 20);
    world.assert_each_event_answered_once();
    world
        .output()
        .says_all(&["the password of the connection has changed"]);
    // A wrong one disturbs nobody who is let in already.
    std::fs::write(folder.path().join("password"), "wrong-again").expect("a wrong one");
    world.send((200..400).map(|n| Event::of(format!("key-{}", n % 20), n.to_string())));
    world.has_results(400);
    std::fs::write(folder.path().join("password"), "millrace-test").expect("the right one");
    world.assert_each_event_answered_once();
    for log in [world.input().log(), world.output().log()] {
        assert!(!log.contains("millrace-test"), "{log}");
    }
}

#[test]
fn c3_new_certificates_are_taken_without_a_restart() {
    let Some((world, folder)) = secure_world("millrace-test") else {
        return;
    };
    let trusted = std::env::var("MILLRACE_TEST_KAFKA_CA").expect("it comes with the others");
    let ca = folder.path().join("ca.pem");
    std::fs::copy(&trusted, &ca).expect("a copy");
    let mut world = world
        .set("connections.main.kafka.tls.ca", ca.display().to_string())
        .app(App::doubler())
        .start();
    world.send_numbers(100, 20);
    world.settles();
    let text = std::fs::read_to_string(&trusted).expect("certificates");
    std::fs::write(&ca, format!("{text}{text}")).expect("more certificates");
    world
        .input()
        .says_all(&["leaving the group to join it anew"]);
    world.output().says_all(&["the producer was made anew"]);
    world.send((100..300).map(|n| Event::of(format!("key-{}", n % 20), n.to_string())));
    let verdict = world.assert_nothing_lost();
    assert_eq!((verdict.answered, verdict.dead_lettered), (300, 0));
}

#[test]
fn d_p1_a_wrong_password_is_named_and_never_shown() {
    let Some((world, _folder)) = secure_world("not-the-password") else {
        return;
    };
    let mut world = world.app(App::doubler()).start();
    world
        .output()
        .says_all(&["refuse us", "check user, password", "main"]);
    let (code, body) = world.pods[0].ask_output("/readyz").expect("it answers");
    assert!(code != 200 && body.contains("refuse us"), "{code} {body}");
    assert_eq!(world.input().end().code(), Some(0));
    assert_eq!(world.output().end().code(), Some(0));
    for log in [world.input().log(), world.output().log()] {
        assert!(!log.contains("panicked"), "{log}");
        assert!(!log.contains("not-the-password"), "{log}");
    }
}

#[test]
fn f_1_all_brokers_are_away_beyond_the_session() {
    let Some(world) = world() else { return };
    outages::all_brokers_away(world);
}

#[test]
fn f_12_the_output_is_cut_off_and_memory_is_flat() {
    let Some(world) = world() else { return };
    outages::output_away(world, &Outage::SHORT);
}

#[test]
fn f_13_a_dead_letter_topic_without_the_right_to_write_holds_its_partition() {
    let Some(world) = world() else { return };
    logs::dead_letters_cannot_be_stored(
        world,
        |world| acl::forbid_writing(&world.broker.bootstrap, &world.topic("dlq")),
        |world| acl::permit_everything(&world.broker.bootstrap, &world.topic("dlq")),
    );
}

#[test]
fn f_14_partitions_are_added_while_events_come() {
    let Some(world) = world() else { return };
    logs::partitions_are_added(world);
}

#[test]
fn f_15_a_topic_made_anew_while_the_block_runs_is_noticed() {
    let Some(world) = world() else { return };
    logs::topic_is_made_anew(world);
}

#[test]
fn f_15_restored_commits_of_another_topic_halt_the_partition() {
    let Some(world) = world() else { return };
    logs::commits_of_another_topic_are_restored(world);
}

#[test]
fn f_16_records_that_are_gone_stop_the_partition() {
    let Some(world) = world() else { return };
    logs::records_are_gone(world, "Stop");
}

#[test]
fn f_16_records_that_are_gone_are_passed_over_if_the_block_says_so() {
    let Some(world) = world() else { return };
    logs::records_are_gone(world, "EarliestWithAlarm");
}

#[test]
fn f_23_the_first_send_after_a_silence_works_at_once() {
    let Some(world) = world() else { return };
    outages::idle_connections_forgotten(world);
}

#[test]
fn f_23_a_broker_that_throttles_breaks_nothing() {
    let Some(world) = world() else { return };
    outages::throttled(world);
}

#[test]
fn f_25_metadata_of_a_newer_version_is_read_past() {
    let Some(world) = world() else { return };
    logs::newer_metadata(world);
}

#[test]
fn f_26_a_group_of_another_program_is_not_joined() {
    let Some(world) = world() else { return };
    logs::foreign_member(world);
}

#[test]
fn f_27_stalls_around_the_message_timeout_keep_lanes_in_order() {
    let Some(world) = world() else { return };
    outages::stalls_around_the_message_timeout(world);
}

#[test]
fn f_27_stalls_around_the_message_timeout_keep_lanes_in_order_in_batches() {
    let Some(world) = world() else { return };
    outages::stalls_around_the_message_timeout(world.batch());
}

#[test]
fn a_short_soak_loses_nothing_and_keeps_the_order() {
    let Some(broker) = BrokerKind::kafka() else {
        return;
    };
    let guarantee = "AtLeastOnce";
    let tally = soak(&Plan {
        length: std::time::Duration::from_secs(18),
        broker,
        guarantee: guarantee.into(),
        seed: Dice::any_seed(),
    });
    assert!(tally.is_good(guarantee), "{tally:?}");
    assert!(tally.kills > 3, "{tally:?}");
}

/// A world whose proxies show tokens of this endpoint; `None` without a Kafka.
fn world_with_tokens(endpoint: &TokenEndpoint) -> Option<(World, tempfile::TempDir)> {
    let world = world()?;
    Some(with_tokens(
        world,
        endpoint,
        &variable("MILLRACE_TEST_KAFKA_TOKENS"),
    ))
}

fn with_tokens(
    world: World,
    endpoint: &TokenEndpoint,
    bootstrap: &str,
) -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, SECRET).expect("a secret");
    let connection = json!({
        "bootstrap": [bootstrap],
        "tls": "Off",
        "sasl": {"mechanism": "OAuthBearer", "oauth": {
            "tokenUrl": endpoint.url(), "clientId": CLIENT, "clientSecret": {"file": file},
            "scope": "events",
        }},
    });
    (world.set("connections.main.kafka", connection), folder)
}

/// How long the tokens of both proxies still serve; `None` while one does not show it.
fn tokens_left(pod: &Pod) -> Option<[f64; 2]> {
    let left = |page: Option<(u16, String)>| {
        let (_, page) = page?;
        let line = page
            .lines()
            .find(|line| line.starts_with("millrace_auth_token_expiry_seconds{"))?;
        assert!(line.contains("connection=\"main\""), "{line}");
        line.rsplit_once(' ')?.1.parse().ok()
    };
    let left = [
        left(pod.ask_input("/metrics"))?,
        left(pod.ask_output("/metrics"))?,
    ];
    assert!(left.iter().all(|left: &f64| *left >= 0.0), "{left:?}");
    Some(left)
}

/// Waits until no proxy has a token, and each says that it is misconfigured, and runs.
fn nobody_has_a_token(world: &mut Running) {
    let pod = &world.pods[0];
    let full = TOKEN_LIFE.as_secs_f64();
    let falls = |part: f64| {
        wait_until("the life of the tokens falls", || {
            tokens_left(pod).is_some_and(|left| left.iter().all(|left| *left <= full * part))
        });
    };
    // Below what a renewal leaves, then nothing.
    falls(0.15);
    falls(0.0);
    for ask in [Pod::ask_input, Pod::ask_output] {
        wait_until("the proxy says that it has no token", || {
            ask(pod, "/readyz").is_some_and(|(code, body)| {
                // Once ready, a restart would not help: degraded.
                code == 200
                    && body.contains("degraded")
                    && body.contains("no SASL OAUTHBEARER token")
            })
        });
    }
    world
        .input()
        .says_all(&["the input cannot work until this is changed"]);
    assert!(world.input().runs() && world.output().runs());
}

/// Waits until both proxies have tokens again, and say that all is well.
fn everybody_has_a_token(world: &Running) {
    let pod = &world.pods[0];
    wait_until("both have a token again", || {
        tokens_left(pod).is_some_and(|left| left.iter().all(|left| *left > 0.0))
    });
    for ask in [Pod::ask_input, Pod::ask_output] {
        wait_until("the proxy is ready again", || {
            ask(pod, "/readyz")
                .is_some_and(|(code, body)| code == 200 && !body.contains("degraded"))
        });
    }
}

/// Brokers ask again every four seconds, tokens live for eight.
const TOKEN_LIFE: Duration = Duration::from_secs(8);

#[test]
fn d_p2_tokens_are_renewed_before_they_end_and_nothing_stops() {
    let endpoint = TokenEndpoint::start(TOKEN_LIFE);
    let Some((world, _folder)) = world_with_tokens(&endpoint) else {
        return;
    };
    let world = world.app(App::doubler()).start();
    let load = world.load(200, 20);
    world.has_results(50);
    let first = endpoint.given();
    // Every client of both proxies has had two more tokens.
    wait_until("tokens are renewed", || endpoint.given() >= 3 * first);
    let stored = world.results_count();
    world.has_results(stored + 100);
    load.stop();
    world.assert_each_event_answered_once();
    let asked = endpoint.last_request();
    assert!(
        asked.contains("grant_type=client_credentials") && asked.contains("scope=events"),
        "{asked}"
    );
    assert_eq!(endpoint.refused(), 0);
}

#[test]
fn d_p2_without_a_token_a_block_waits_and_goes_on_with_the_first_one() {
    let endpoint = TokenEndpoint::start(TOKEN_LIFE);
    endpoint.refuse(true);
    let Some((world, _folder)) = world_with_tokens(&endpoint) else {
        return;
    };
    let mut world = world.app(App::doubler()).start();
    world.output().says_all(&["OAUTHBEARER", "unknown client"]);
    wait_until("the output is not ready, and says why", || {
        let asked = world.pods[0].ask_output("/readyz");
        asked.is_some_and(|(code, body)| code != 200 && body.contains("OAUTHBEARER"))
    });
    assert!(world.input().runs() && world.output().runs());
    endpoint.refuse(false);
    world.send_numbers(200, 20);
    world.assert_each_event_answered_once();
    for log in [world.input().log(), world.output().log()] {
        assert!(!log.contains("panicked") && !log.contains(SECRET), "{log}");
    }
}

#[test]
fn f_17_a_token_endpoint_that_is_away_beyond_the_life_of_its_tokens_loses_nothing() {
    scenario(
        "F-17",
        &["D-P2", "D-H1", "D-C4"],
        "tokens end while their endpoint refuses; work goes on by itself with the next one",
    );
    let endpoint = TokenEndpoint::start(TOKEN_LIFE);
    let Some((world, _folder)) = world_with_tokens(&endpoint) else {
        return;
    };
    let mut world = world.app(App::doubler()).start();
    let load = world.load(200, 20);
    world.has_results(50);
    endpoint.refuse(true);
    let refused = endpoint.refused();
    wait_until("nobody has a good token any more", || {
        endpoint.refused() >= refused + 6
    });
    nobody_has_a_token(&mut world);
    endpoint.refuse(false);
    let stored = world.results_count();
    world.has_results(stored + 300);
    everybody_has_a_token(&world);
    load.stop();
    world.assert_nothing_lost();
    assert!(world.dead_letters().is_empty());
    assert!(world.input().runs() && world.output().runs());
}

#[test]
fn f_17_a_client_secret_that_is_changed_after_the_tokens_ended_heals_without_a_restart() {
    scenario(
        "F-17",
        &["D-P2", "C-3"],
        "the endpoint wants another secret; tokens end; a new secret file brings the next one",
    );
    let endpoint = TokenEndpoint::start(TOKEN_LIFE);
    let Some((world, folder)) = world_with_tokens(&endpoint) else {
        return;
    };
    let mut world = world.app(App::doubler()).start();
    let load = world.load(100, 20);
    world.has_results(50);
    endpoint.change_secret("the-next-secret");
    nobody_has_a_token(&mut world);
    std::fs::write(folder.path().join("secret"), "the-next-secret").expect("a secret");
    everybody_has_a_token(&world);
    let stored = world.results_count();
    world.has_results(stored + 100);
    load.stop();
    world.assert_nothing_lost();
    for log in [world.input().log(), world.output().log()] {
        assert!(
            log.contains("the secret of the token endpoint has changed"),
            "{log}"
        );
        assert!(
            !log.contains("panicked") && !log.contains("the-next-secret"),
            "{log}"
        );
    }
}

#[test]
fn f_17_tokens_are_renewed_while_brokers_are_away_beyond_their_life() {
    scenario(
        "F-17",
        &["D-P2"],
        "brokers are cut off for longer than a token lives; clients come back with a later one",
    );
    let endpoint = TokenEndpoint::start(TOKEN_LIFE);
    let Some(world) = world() else { return };
    let line = Line::to_kafka(&variable("MILLRACE_TEST_KAFKA_TOKENS"));
    let (world, _folder) = with_tokens(world, &endpoint, &line.address());
    let mut world = world.app(App::doubler()).start();
    let load = world.load(100, 20);
    world.has_results(50);
    line.cut();
    let given = endpoint.given();
    wait_until("both proxies have had two more tokens", || {
        endpoint.given() >= given + 4
    });
    line.mend();
    let stored = world.results_count();
    world.has_results(stored + 100);
    load.stop();
    world.assert_nothing_lost();
    assert_eq!(endpoint.refused(), 0);
    assert!(world.input().runs() && world.output().runs());
}

/// A world whose proxies show a certificate, or none; `None` without a Kafka.
fn world_with_certificate(certificate: bool) -> Option<World> {
    let world = world()?;
    let own = variable("MILLRACE_TEST_KAFKA_CLIENT");
    let mut tls = json!({"ca": variable("MILLRACE_TEST_KAFKA_CA")});
    if certificate {
        tls["cert"] = own.clone().into();
        tls["key"] = own.into();
    }
    let bootstrap = variable("MILLRACE_TEST_KAFKA_MUTUAL");
    let connection = json!({"bootstrap": [bootstrap], "tls": tls});
    Some(world.set("connections.main.kafka", connection))
}

#[test]
fn d_p1_a_block_works_with_a_certificate_of_its_own() {
    let Some(world) = world_with_certificate(true) else {
        return;
    };
    tales::each_event_once(world);
}

#[test]
fn d_p1_a_certificate_that_is_missing_is_named_and_waited_for() {
    let Some(world) = world_with_certificate(false) else {
        return;
    };
    let mut world = world.app(App::doubler()).start();
    world
        .output()
        .says_all(&["refuse us", "bad certificate", "main"]);
    let (code, _) = world.pods[0].ask_output("/readyz").expect("it answers");
    assert_ne!(code, 200);
    assert_eq!(world.input().end().code(), Some(0));
    assert_eq!(world.output().end().code(), Some(0));
}
