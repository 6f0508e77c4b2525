//! The output proxy against the embedded broker, with a scripted input proxy at the other end
//! of the publish connection.
#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::time::Duration;

use millrace_broker::{ApiKey, Fault, ResponseError, Target, Times};
use millrace_core::contract::publish::{
    Destination, FateCode, Reply, Request, Revoked, StoreClass,
};
use millrace_core::position::Position;
use millrace_core::token::Stamp;
use serde_json::json;

mod world;

use world::{
    GENERATION, Output, Planned, assert_in_order, broker, document, hello, result, source, stored,
    values,
};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn results_and_dead_letters_are_stored_as_they_came_and_answered_once() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    let ready = input.ready.clone().unwrap();
    assert_eq!(ready.credit, 8 << 20);
    let topics: Vec<&str> = ready
        .limits
        .iter()
        .map(|(topic, _)| topic.as_str())
        .collect();
    assert_eq!(topics, ["out", "score.dlq", "score.verify"]);
    input.lease(MINUTE).await;

    let mut frame = input.frame();
    frame.event(&source(), Position::new(1), 7, FateCode::Emitted);
    frame.record(Destination::Output, Some(1), Some(1_234), Some(b""), None);
    frame.header(b"a", None);
    frame.header(b"a", Some(b""));
    frame.header(b"\xff", Some(b"\x00\xff"));
    frame.event(&source(), Position::new(2), 7, FateCode::Filtered);
    frame.event(&source(), Position::new(3), 0, FateCode::DeadLettered);
    frame.record(Destination::DeadLetter, None, Some(5), None, Some(b"\xfe"));
    input.send_frame(frame).await;
    let (stored_events, failures) = input.answers(1, 3).await;
    assert_eq!((stored_events, failures), (vec![0, 1, 2], vec![]));

    let results = stored(&broker.bootstrap(), "out", 2).await;
    let one = &results[1][0];
    assert_eq!(
        (one.key(), one.value(), one.timestamp().ms),
        (Some(&b""[..]), None, 1_234)
    );
    let headers: Vec<_> = one.headers().collect();
    assert_eq!(
        headers,
        [
            (&b"a"[..], None),
            (b"a", Some(&b""[..])),
            (b"\xff", Some(b"\x00\xff"))
        ]
    );
    let dead = stored(&broker.bootstrap(), "score.dlq", 2).await;
    let dead: Vec<_> = dead.iter().flatten().collect();
    assert_eq!(
        (dead.len(), dead[0].key(), dead[0].value()),
        (1, None, Some(&b"\xfe"[..]))
    );

    while input.credit > 0 {
        match input.reply().await {
            Reply::Credit(bytes) => input.credit -= bytes,
            other => panic!("{other:?}"),
        }
    }
    let metrics = output
        .until("/metrics", |_, body| body.contains(r#"topic="out"} 1"#))
        .await;
    for line in [
        r#"millrace_output_records_total{block="score",release="r1",role="output",topic="score.dlq"} 1"#,
        "millrace_output_seconds_bucket",
        "millrace_publish_events_total",
        "millrace_build_info",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    drop(input);
    output.end().await.unwrap();
}

#[tokio::test]
async fn p_8_an_oversized_result_is_refused_before_any_record_of_its_event() {
    let broker = broker();
    broker
        .create_topic("out", 1, &[("max.message.bytes", "20000")])
        .unwrap();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    assert_eq!(
        input.ready.clone().unwrap().limits[0],
        ("out".to_owned(), 20_000)
    );
    input.lease(MINUTE).await;
    let large = Planned {
        values: vec![b"small".to_vec(), vec![b'x'; 30_000]],
        ..result(2, 5, "")
    };
    input
        .results(&[result(1, 5, "first"), large, result(3, 5, "third")])
        .await;
    let (stored_events, failures) = input.answers(1, 3).await;
    assert_eq!(stored_events, [0, 2]);
    assert_eq!(
        (failures[0].event, failures[0].record, failures[0].class),
        (1, Some(1), StoreClass::Rejected)
    );
    assert_eq!(failures[0].code, "MessageSizeTooLarge");
    assert!(
        failures[0].message.contains("topic out"),
        "{}",
        failures[0].message
    );
    assert_eq!(
        values(&broker.bootstrap(), "out", 1).await,
        ["first", "third"]
    );
    let oversized = r#"stage="output",bucket="le_1Mi"} 1"#;
    output
        .until("/metrics", |_, body| body.contains(oversized))
        .await;
}

#[tokio::test]
async fn p_4_without_a_lease_nothing_is_produced() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    input.results(&[result(1, 5, "early")]).await;
    let (_, failures) = input.answers(1, 1).await;
    assert_eq!(
        (
            failures[0].class,
            failures[0].code.as_str(),
            failures[0].record
        ),
        (StoreClass::Lease, "NoLease", None)
    );

    input.lease(Duration::ZERO).await;
    input.results(&[result(1, 5, "late")]).await;
    let (_, failures) = input.answers(2, 1).await;
    assert_eq!(failures[0].code, "LeaseEnded");

    input.lease(MINUTE).await;
    input.results(&[result(1, 5, "in time")]).await;
    assert_eq!(input.answers(3, 1).await.0, [0]);

    input
        .send(&Request::Revoked(Revoked {
            generation: GENERATION,
            partitions: vec![source()],
        }))
        .await;
    input.results(&[result(2, 5, "gone")]).await;
    assert_eq!(input.answers(4, 1).await.1[0].class, StoreClass::Revoked);
    assert_eq!(values(&broker.bootstrap(), "out", 2).await, ["in time"]);
}

#[tokio::test]
async fn r10_a_shadow_result_never_leaves_the_verification_topic() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    let mut frame =
        millrace_core::contract::publish::ResultsFrame::new(1, Stamp::Shadow, GENERATION);
    frame.event(&source(), Position::new(1), 0, FateCode::Emitted);
    frame.record(
        Destination::Verification,
        None,
        None,
        Some(b"k"),
        Some(b"shadow"),
    );
    input.send_frame(frame).await;
    assert_eq!(
        input.answers(1, 1).await.0,
        [0],
        "shadow results need no lease"
    );
    let shadow = stored(&broker.bootstrap(), "score.verify", 2).await;
    assert_eq!(
        shadow[0].len(),
        1,
        "the partition is that of the source (D-O7)"
    );

    let mut frame =
        millrace_core::contract::publish::ResultsFrame::new(2, Stamp::Shadow, GENERATION);
    frame.event(&source(), Position::new(1), 0, FateCode::Emitted);
    frame.record(Destination::Output, None, None, Some(b"k"), Some(b"shadow"));
    input.send_frame(frame).await;
    loop {
        match input.reply().await {
            Reply::Error(fault) => break assert_eq!(fault.code, "Stamp"),
            Reply::Credit(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(input.next().await, None);
    assert!(values(&broker.bootstrap(), "out", 2).await.is_empty());
}

#[tokio::test]
async fn p_6_a_newer_session_replaces_the_older_one_and_sends_again() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut first = output.connect(1).await;
    first.lease(MINUTE).await;
    first.results(&[result(1, 5, "a"), result(2, 5, "b")]).await;
    first.answers(1, 2).await;
    let mut second = output.connect(2).await;
    loop {
        match first.next().await {
            Some(Reply::Error(fault)) => assert_eq!(fault.code, "Replaced"),
            Some(Reply::Credit(_)) => {}
            Some(other) => panic!("{other:?}"),
            None => break,
        }
    }
    // The lease went with its session.
    second
        .results(&[result(2, 5, "b"), result(3, 5, "c")])
        .await;
    assert_eq!(second.answers(1, 2).await.1[0].code, "NoLease");
    second.lease(MINUTE).await;
    second
        .results(&[result(2, 5, "b"), result(3, 5, "c")])
        .await;
    assert_eq!(second.answers(2, 2).await.0, [0, 1]);
    assert_eq!(
        values(&broker.bootstrap(), "out", 2).await,
        ["a", "b", "b", "c"]
    );

    let mut stale = output.open().await;
    stale.send(&hello(1)).await;
    match stale.reply().await {
        Reply::Error(fault) => assert_eq!(fault.code, "Replaced"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn p_6_a_lost_connection_in_the_middle_of_a_stall_loses_and_reorders_nothing() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut first = output.connect(1).await;
    first.lease(MINUTE).await;
    first.results(&[result(1, 5, "1")]).await;
    first.answers(1, 1).await;
    let stall = broker.faults().delay(
        ApiKey::Produce,
        Duration::from_millis(400),
        Times::UntilCleared,
    );
    let events: Vec<Planned> = (1..=30).map(|n| result(n, 5, n.to_string())).collect();
    first.results(&events[1..10]).await;
    first.results(&events[10..20]).await;
    drop(first);
    let mut second = output.connect(2).await;
    second.store_all(&events, 1_000).await;
    broker.faults().clear(stall);
    assert_in_order(&broker.bootstrap(), "out", 2, &events).await;
}

#[tokio::test]
async fn p_2_what_is_no_frame_ends_the_connection_with_an_error() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    for (what, code) in [
        (&b"\x02\x00\x00\x00\xee\x00"[..], "Malformed"),
        (b"\xff\xff\xff\xff\x04", "Malformed"),
        (b"\x01\x00\x00\x00\x04", "Malformed"),
    ] {
        let mut input = output.connect(9).await;
        input.raw(what).await;
        match input.reply().await {
            Reply::Error(fault) => assert_eq!(fault.code, code, "{what:?}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(input.next().await, None);
    }
    let mut input = output.connect(9).await;
    input.seq = 4;
    input.results(&[]).await;
    input.seq = 6;
    input.results(&[]).await;
    loop {
        match input.reply().await {
            Reply::Error(fault) => break assert_eq!(fault.code, "Sequence"),
            Reply::Credit(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let millrace_output::Address::Port(port) = output.bound.publish.clone() else {
        panic!()
    };
    assert!(
        world::http_get(port, "/publish")
            .await
            .starts_with("HTTP/1.1 426")
    );
    assert!(world::http_get(port, "/").await.starts_with("HTTP/1.1 404"));
    let mut foreign = output.open().await;
    foreign.raw(b"\x01\x00\x00\x00\x0e").await;
    match foreign.reply().await {
        Reply::Error(fault) => assert!(fault.message.contains("Hello"), "{fault:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_block_or_mode_that_is_not_this_outputs_is_refused_by_name() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let Request::Hello(good) = hello(1) else {
        panic!()
    };
    let foreign = millrace_core::contract::publish::Hello {
        release: "r2".to_owned(),
        ..good.clone()
    };
    let once = millrace_core::contract::publish::Hello {
        mode: millrace_core::contract::publish::Mode::ExactlyOnce,
        ..good
    };
    for (hello, code) in [(foreign, "ForeignBlock"), (once, "Mode")] {
        let mut input = output.open().await;
        input.send(&Request::Hello(hello)).await;
        match input.reply().await {
            Reply::Error(fault) => assert_eq!(fault.code, code),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn d_s4_a_drain_stores_what_was_sent_and_then_ends() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    input.lease(MINUTE).await;
    broker
        .faults()
        .delay(ApiKey::Produce, Duration::from_millis(300), Times::Count(2));
    input.results(&[result(1, 5, "a")]).await;
    output.shutdown.request();
    input.results(&[result(2, 5, "b"), result(3, 6, "c")]).await;
    input.send(&Request::Drain).await;
    let mut answered = 0;
    loop {
        match input.reply().await {
            Reply::Stored(part) => answered += part.stored.into_iter().flatten().count(),
            Reply::Credit(_) => {}
            Reply::Drained => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, 3);
    drop(input);
    output.end().await.unwrap();
    assert_eq!(values(&broker.bootstrap(), "out", 2).await.len(), 3);
}

#[tokio::test]
async fn f_12_while_the_broker_is_down_nothing_is_lost_and_the_proxy_is_degraded() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    input.lease(MINUTE).await;
    input.results(&[result(1, 5, "1")]).await;
    input.answers(1, 1).await;
    let down = broker
        .faults()
        .drop_connection(ApiKey::Produce, Times::UntilCleared);
    input
        .results(&[result(2, 5, "2"), result(3, 5, "3"), result(4, 6, "4")])
        .await;
    let (stored_events, failures) = input.answers(2, 3).await;
    assert!(stored_events.is_empty());
    assert!(
        failures
            .iter()
            .all(|failure| failure.class == StoreClass::Transient),
        "{failures:?}"
    );
    let body = output
        .until("/readyz", |_, body| body.contains("degraded"))
        .await;
    assert!(body.contains("results cannot be stored"), "{body}");
    assert_eq!(output.admin("/readyz").await.0, 200);
    assert_eq!(output.admin("/livez").await.0, 200);
    broker.faults().clear(down);
    let events: Vec<Planned> = vec![result(2, 5, "2"), result(3, 5, "3"), result(4, 6, "4")];
    input.store_all(&events, 100).await;
    output
        .until("/readyz", |_, body| body.contains("\"ready\""))
        .await;
    let all: Vec<Planned> = (1..=4).map(|n| result(n, 5, "")).collect();
    assert_in_order(&broker.bootstrap(), "out", 2, &all).await;
}

#[tokio::test]
async fn f_27_a_stall_of_about_one_message_time_out_keeps_every_lane_in_order() {
    let broker = broker();
    let mut block = document(&broker.bootstrap());
    block["delivery"] = json!({"messageTimeout": "600ms"});
    let output = Output::start(&block).await;
    let mut input = output.connect(1).await;
    input.store_all(&[result(0, 0, "warm")], 1).await;
    let mut next = 1;
    let mut all = vec![result(0, 0, "warm")];
    let mut failed = 0;
    // The stall ends before, at and behind the time-out of what waits.
    for stall in (400..=900).step_by(100) {
        let events: Vec<Planned> = (0..60)
            .map(|n| result(next + n, 1 + (n as u64 % 4), n.to_string()))
            .collect();
        next += 60;
        broker.faults().delay(
            ApiKey::Produce,
            Duration::from_millis(stall),
            Times::Count(1),
        );
        failed += input.store_all(&events, 40).await;
        all.extend(events);
    }
    for fault in [
        Fault::DropConnection,
        Fault::LoseAnswer,
        Fault::TimeOutAfterApplying,
    ] {
        let events: Vec<Planned> = (0..60)
            .map(|n| result(next + n, 1 + (n as u64 % 4), n.to_string()))
            .collect();
        next += 60;
        broker
            .faults()
            .add(Target::kind(ApiKey::Produce), fault, Times::Count(3));
        failed += input.store_all(&events, 40).await;
        all.extend(events);
    }
    assert!(failed > 0, "no stall made a record expire");
    assert_in_order(&broker.bootstrap(), "out", 2, &all).await;
}

#[tokio::test]
async fn d_o4_a_refusal_of_rights_is_misconfigured_and_passes_when_granted() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    input.lease(MINUTE).await;
    let denied = broker.faults().refuse(
        ApiKey::Produce,
        ResponseError::TopicAuthorizationFailed,
        Times::UntilCleared,
    );
    input.results(&[result(1, 5, "1"), result(2, 5, "2")]).await;
    let (_, failures) = input.answers(1, 2).await;
    assert_eq!(failures[0].class, StoreClass::Misconfigured, "{failures:?}");
    broker.faults().clear(denied);
    let events = [result(1, 5, "1"), result(2, 5, "2")];
    input.store_all(&events, 10).await;
    assert_in_order(&broker.bootstrap(), "out", 2, &events).await;
}

#[tokio::test]
async fn d_s1_a_missing_topic_is_named_with_its_remedy_and_waited_for() {
    let broker = broker();
    let mut block = document(&broker.bootstrap());
    block["topics"] = json!({"create": "Never"});
    let output = Output::start(&block).await;
    let body = output
        .until("/readyz", |status, body| {
            status == 503 && body.contains("topic out")
        })
        .await;
    assert!(
        body.contains("output.kafka.topic") && body.contains("topics.create"),
        "{body}"
    );
    assert_eq!(output.admin("/startupz").await.0, 200);
    broker.create_topic("out", 1, &[]).unwrap();
    output
        .until("/readyz", |status, body| {
            status == 503 && body.contains("score.dlq")
        })
        .await;
    broker.create_topic("score.dlq", 1, &[]).unwrap();
    output.until("/readyz", |status, _| status == 200).await;
    output.connect(1).await;
}

#[tokio::test]
async fn an_unreachable_broker_is_named_with_its_remedy_and_a_drain_still_ends() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let output = Output::start(&document(&address)).await;
    let body = output
        .until("/readyz", |status, body| {
            status == 503 && body.contains(&address)
        })
        .await;
    assert!(
        body.contains("connections.main") && body.contains("cannot be reached"),
        "{body}"
    );
    output.end().await.unwrap();
}

#[tokio::test]
async fn d_p5_a_publish_socket_is_for_its_group_only_and_is_removed_at_the_end() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sockets/publish");
    let broker = broker();
    let mut block = document(&broker.bootstrap());
    block["publish"] = json!({"socket": path});
    let output = Output::start(&block).await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut input = output.connect(1).await;
    input.store_all(&[result(1, 5, "over a socket")], 1).await;
    drop(input);
    output.end().await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn d_o2_only_the_failed_results_of_an_event_are_sent_again() {
    let broker = broker();
    broker.create_topic("out", 2, &[]).unwrap();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    input.lease(MINUTE).await;
    // Retried until it expires, so the other record is stored long before.
    let right = Target::kind(ApiKey::Produce).partition("out", 1);
    let lonely = Fault::Refuse(ResponseError::NotEnoughReplicas);
    let lonely = broker.faults().add(right, lonely, Times::UntilCleared);
    let both = |frame: &mut millrace_core::contract::publish::ResultsFrame| {
        frame.event(&source(), Position::new(1), 5, FateCode::Emitted);
        frame.record(
            Destination::Output,
            Some(0),
            Some(1),
            Some(b"k"),
            Some(b"left"),
        );
        frame.record(
            Destination::Output,
            Some(1),
            Some(1),
            Some(b"k"),
            Some(b"right"),
        );
    };
    let mut frame = input.frame();
    both(&mut frame);
    input.send_frame(frame).await;
    let (_, failures) = input.answers(1, 1).await;
    assert_eq!(failures[0].class, StoreClass::Transient, "{failures:?}");
    broker.faults().clear(lonely);
    let mut frame = input.frame();
    both(&mut frame);
    input.send_frame(frame).await;
    assert_eq!(input.answers(2, 1).await, (vec![0], vec![]));
    let mut all = values(&broker.bootstrap(), "out", 2).await;
    all.sort();
    assert_eq!(all, ["left", "right"]);
}

#[tokio::test]
async fn b_k4_a_full_producer_queue_waits_for_deliveries_and_keeps_order() {
    let broker = broker();
    let mut block = document(&broker.bootstrap());
    block["connections"]["main"]["kafka"]["properties"] =
        json!({"queue.buffering.max.messages": "5"});
    let output = Output::start(&block).await;
    let mut input = output.connect(1).await;
    let events: Vec<Planned> = (0..200)
        .map(|n| result(n, 1 + (n.cast_unsigned() % 3), n.to_string()))
        .collect();
    let failed = input.store_all(&events, 200).await;
    assert_eq!(failed, 0);
    assert_in_order(&broker.bootstrap(), "out", 2, &events).await;
    output
        .until("/metrics", |_, body| {
            body.lines().any(|line| {
                line.starts_with("millrace_producer_queue_full_total{") && !line.ends_with(" 0")
            })
        })
        .await;
}

#[tokio::test]
async fn d_o1_after_a_fatal_error_the_producer_is_made_anew_and_nothing_is_lost() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let fatal = ResponseError::ClusterAuthorizationFailed;
    broker
        .faults()
        .refuse(ApiKey::InitProducerId, fatal, Times::Count(2));
    let mut input = output.connect(1).await;
    let events: Vec<Planned> = (0..50).map(|n| result(n, 1, n.to_string())).collect();
    let failed = input.store_all(&events, 20).await;
    assert!(failed > 0);
    assert_in_order(&broker.bootstrap(), "out", 2, &events).await;
    output
        .until("/metrics", |_, body| {
            body.lines().any(|line| {
                line.starts_with("millrace_producer_rebuilds_total{") && !line.ends_with(" 0")
            })
        })
        .await;
}

#[tokio::test]
async fn f_13_a_dead_letter_topic_that_may_not_be_written_fails_the_event_and_is_counted() {
    let broker = broker();
    let output = Output::start(&document(&broker.bootstrap())).await;
    let mut input = output.connect(1).await;
    input.lease(MINUTE).await;
    let denied = broker.faults().add(
        Target::kind(ApiKey::Produce).topic("score.dlq"),
        Fault::Refuse(ResponseError::TopicAuthorizationFailed),
        Times::UntilCleared,
    );
    let mut frame = input.frame();
    frame.event(&source(), Position::new(1), 5, FateCode::DeadLettered);
    frame.record(
        Destination::DeadLetter,
        None,
        Some(1),
        Some(b"k"),
        Some(b"poison"),
    );
    frame.event(&source(), Position::new(2), 6, FateCode::Emitted);
    frame.record(
        Destination::Output,
        None,
        Some(1),
        Some(b"k"),
        Some(b"fine"),
    );
    input.send_frame(frame).await;
    let (stored_events, failures) = input.answers(1, 2).await;
    assert_eq!(stored_events, [1], "other lanes go on");
    assert_eq!(failures[0].class, StoreClass::Misconfigured);
    output
        .until("/metrics", |_, body| {
            body.contains(r#"millrace_dlq_produce_failures_total{block="score",release="r1",role="output",topic="score.dlq"} 1"#)
        })
        .await;
    broker.faults().clear(denied);
}
