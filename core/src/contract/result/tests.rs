//! Inheritance, ids, dead-letter headers byte by byte.

use bytes::{Bytes, BytesMut};

use super::*;
use crate::contract::publish::{FateCode, Request, next_frame};
use crate::event::{EventsBuilder, Timestamp};
use crate::identity::PartitionIdentity;
use crate::position::Position;
use crate::token::Stamp;

type Headers<'a> = Vec<(&'a [u8], Option<&'a [u8]>)>;

const CONTEXT: ResultContext<'static> = ResultContext {
    release: "r12-77ab0e41",
    epoch: 24,
    block: "weu/scoring/fraud-score",
    pod: "pod-1",
    group: "millrace.weu/scoring/fraud-score.r12-77ab0e41",
    cluster: "demo",
    proxy_version: "0.1.0",
};

fn event(
    kind: TimestampKind,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &Headers<'_>,
) -> Event {
    let mut events = EventsBuilder::default();
    let at = Timestamp {
        ms: 1_767_225_600_000,
        kind,
    };
    events.push(Position::new(1042), at, key, value, headers.iter().copied());
    events.finish().remove(0)
}

fn id() -> EventId {
    PartitionIdentity::new("demo", "orders", 3).event_id(Position::new(1042))
}

#[derive(Debug, PartialEq)]
struct Written {
    destination: String,
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Written {
    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(own, _)| own == name);
        let (_, value) = found.next()?;
        assert!(found.next().is_none(), "{name} comes twice");
        Some(std::str::from_utf8(value.as_ref().unwrap()).unwrap())
    }

    fn names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }
}

fn written(write: impl FnOnce(&mut ResultsFrame, &Partition)) -> Written {
    let partition = Partition::new("orders", 3);
    let mut frame = ResultsFrame::new(1, Stamp::Live, 41);
    frame.event(&partition, Position::new(1042), 1, FateCode::Emitted);
    write(&mut frame, &partition);
    let frame = next_frame(&mut BytesMut::from(&frame.finish()[..]), 1 << 20)
        .unwrap()
        .unwrap();
    let Ok(Request::Results(results)) = Request::decode(frame) else {
        panic!("no results")
    };
    let event = results.events().next().unwrap();
    let record = event.records().next().unwrap();
    Written {
        destination: format!("{:?}", record.destination),
        partition: record.partition,
        timestamp_ms: record.timestamp_ms,
        key: record.key.map(<[u8]>::to_vec),
        value: record.value.map(<[u8]>::to_vec),
        headers: record
            .headers
            .map(|(name, value)| {
                (
                    String::from_utf8_lossy(name).into_owned(),
                    value.map(<[u8]>::to_vec),
                )
            })
            .collect(),
    }
}

fn result(event: &Event, output: &Output) -> Written {
    written(|frame, partition| write_result(frame, &CONTEXT, partition, event, &id(), 0, output))
}

fn dead_letter(event: &Event, dead: &DeadLetter<'_>) -> Written {
    written(|frame, partition| write_dead_letter(frame, &CONTEXT, partition, event, &id(), dead))
}

fn dead() -> DeadLetter<'static> {
    DeadLetter {
        reason: Reason::Permanent,
        stage: Stage::App,
        code: "BAD_INPUT",
        message: "empty",
        body: b"{}",
        attempts: 2,
        first_attempt_ms: 1_767_225_600_200,
        last_attempt_ms: 1_767_225_600_900,
        output_index: None,
        value_bytes_max: None,
        stamped_now: false,
    }
}

#[test]
fn d_f2_a_result_inherits_key_headers_and_time() {
    let headers: Headers<'_> = vec![
        (
            b"traceparent",
            Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ),
        (b"source", Some(b"web")),
        (b"source", None),
        (b"raw\xff", Some(b"\xff")),
    ];
    let event = event(TimestampKind::Append, Some(b""), None, &headers);
    let output = Output {
        value: Some(Bytes::from_static(b"v")),
        ..Output::default()
    };
    let written = result(&event, &output);
    assert_eq!(
        (written.destination.as_str(), written.partition),
        ("Output", None)
    );
    assert_eq!(written.timestamp_ms, Some(1_767_225_600_000));
    assert_eq!(
        (written.key.as_deref(), written.value.as_deref()),
        (Some(&b""[..]), Some(&b"v"[..]))
    );
    assert_eq!(
        written.names(),
        [
            "traceparent",
            "source",
            "source",
            "raw\u{fffd}",
            "millrace-id",
            "millrace-src",
            "millrace-release",
            "millrace-epoch"
        ]
    );
    assert_eq!(written.headers[2].1, None);
    assert_eq!(written.headers[3].1.as_deref(), Some(&b"\xff"[..]));
}

#[test]
fn d_i3_a_result_says_where_it_comes_from() {
    let event = event(TimestampKind::Create, None, Some(b"x"), &vec![]);
    let written = result(&event, &Output::default());
    assert_eq!(written.key, None);
    assert_eq!(
        written.value, None,
        "an output without value is a tombstone"
    );
    assert_eq!(
        written.header("millrace-id"),
        Some("g6vippms42csuyygmgjdrwr62u")
    );
    assert_eq!(written.header("millrace-src"), Some("orders/3/1042"));
    assert_eq!(written.header("millrace-release"), Some("r12-77ab0e41"));
    assert_eq!(written.header("millrace-epoch"), Some("24"));
}

#[test]
fn d_f2_the_app_may_set_all_but_reserved_headers() {
    let headers: Headers<'_> = vec![
        (b"kind", Some(b"old")),
        (b"keep", Some(b"1")),
        (b"kind", Some(b"older")),
        (b"millrace-src", Some(b"upstream/0/1")),
        (b"Millrace-Dlq-Reason", Some(b"permanent")),
    ];
    let event = event(TimestampKind::Create, Some(b"k"), Some(b"x"), &headers);
    let pair = |name: &'static str, value: Option<&'static [u8]>| {
        (
            Bytes::from_static(name.as_bytes()),
            value.map(Bytes::from_static),
        )
    };
    let output = Output {
        topic: Some("orders-alt".to_owned()),
        partition: Some(2),
        timestamp_ms: Some(9),
        key: OutputKey::Bytes(Bytes::from_static(b"k2")),
        value: None,
        headers: vec![
            pair("kind", Some(b"x")),
            pair("millrace-epoch", Some(b"99")),
            pair("kind", None),
            pair("MILLRACE-x", None),
        ],
        cloud_event: false,
    };
    let written = result(&event, &output);
    assert_eq!(written.destination, "Topic(\"orders-alt\")");
    assert_eq!(
        (written.partition, written.timestamp_ms),
        (Some(2), Some(9))
    );
    assert_eq!(written.key.as_deref(), Some(&b"k2"[..]));
    assert_eq!(
        written.names(),
        [
            "keep",
            "kind",
            "kind",
            "millrace-id",
            "millrace-src",
            "millrace-release",
            "millrace-epoch"
        ]
    );
    assert_eq!(
        (
            written.headers[1].1.as_deref(),
            written.headers[2].1.as_deref()
        ),
        (Some(&b"x"[..]), None)
    );
    assert_eq!(written.header("millrace-src"), Some("orders/3/1042"));
    assert_eq!(written.header("millrace-epoch"), Some("24"));
    let null = result(
        &event,
        &Output {
            key: OutputKey::Null,
            ..Output::default()
        },
    );
    assert_eq!(null.key, None);
}

#[test]
fn an_event_without_time_gives_a_result_without_time() {
    let event = event(TimestampKind::None, None, None, &vec![]);
    assert_eq!(result(&event, &Output::default()).timestamp_ms, None);
    let written = dead_letter(&event, &dead());
    assert_eq!(written.timestamp_ms, None);
    assert_eq!(written.header("millrace-dlq-orig-timestamp"), None);
    assert_eq!(
        written.header("millrace-dlq-orig-timestamp-type"),
        Some("none")
    );
}

#[test]
fn d_d1_a_dead_letter_is_the_event_and_why_it_died() {
    let headers: Headers<'_> = vec![
        (
            b"traceparent",
            Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ),
        (b"a", None),
        (b"millrace-id", Some(b"upstream")),
        (b"a", Some(b"\xff")),
    ];
    let event = event(TimestampKind::Create, None, Some(b"\xff\x00"), &headers);
    let written = dead_letter(&event, &dead());
    assert_eq!(
        (written.destination.as_str(), written.partition),
        ("DeadLetter", None)
    );
    assert_eq!(written.timestamp_ms, Some(1_767_225_600_000));
    assert_eq!(
        (written.key.as_deref(), written.value.as_deref()),
        (None, Some(&b"\xff\x00"[..]))
    );
    let text: Vec<_> = written.headers[4..]
        .iter()
        .map(|(name, value)| {
            (
                name.as_str(),
                std::str::from_utf8(value.as_ref().unwrap()).unwrap(),
            )
        })
        .collect();
    assert_eq!(
        written.names()[..4],
        ["traceparent", "a", "millrace-id", "a"]
    );
    assert_eq!(written.headers[1].1, None);
    assert_eq!(written.headers[3].1.as_deref(), Some(&b"\xff"[..]));
    assert_eq!(
        text,
        [
            ("millrace-dlq-version", "1"),
            ("millrace-dlq-reason", "permanent"),
            ("millrace-dlq-stage", "app"),
            ("millrace-dlq-error-code", "BAD_INPUT"),
            ("millrace-dlq-error-message", "empty"),
            ("millrace-dlq-error-body", "{}"),
            ("millrace-dlq-error-body-encoding", "utf8"),
            ("millrace-dlq-attempts", "2"),
            ("millrace-dlq-first-attempt-ts", "1767225600200"),
            ("millrace-dlq-last-attempt-ts", "1767225600900"),
            ("millrace-dlq-orig-cluster", "demo"),
            ("millrace-dlq-orig-topic", "orders"),
            ("millrace-dlq-orig-partition", "3"),
            ("millrace-dlq-orig-offset", "1042"),
            ("millrace-dlq-orig-timestamp", "1767225600000"),
            ("millrace-dlq-orig-timestamp-type", "create"),
            ("millrace-dlq-group", CONTEXT.group),
            ("millrace-dlq-block", CONTEXT.block),
            ("millrace-dlq-pod", "pod-1"),
            ("millrace-dlq-app-release", "r12-77ab0e41"),
            ("millrace-dlq-proxy-version", "0.1.0"),
            ("millrace-dlq-id", "stiywp5rs45zgqavk6csdpztk2"),
            ("millrace-dlq-redrive-count", "0"),
            (
                "millrace-dlq-traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            ),
        ]
    );
    let rejected = DeadLetter {
        output_index: Some(2),
        stage: Stage::Output,
        ..dead()
    };
    assert_eq!(
        dead_letter(&event, &rejected).header("millrace-dlq-output-index"),
        Some("2")
    );
}

#[test]
fn d_d1_message_and_body_are_cut_between_characters() {
    let event = event(TimestampKind::Create, None, None, &vec![]);
    let long = "ä".repeat(5_000);
    let shifted = format!("x{long}");
    for text in [&long, &shifted] {
        let written = dead_letter(
            &event,
            &DeadLetter {
                message: text,
                body: text.as_bytes(),
                ..dead()
            },
        );
        let message = written.header("millrace-dlq-error-message").unwrap();
        assert!(text.starts_with(message) && (1_023..=1_024).contains(&message.len()));
        let body = written.header("millrace-dlq-error-body").unwrap();
        assert!(text.starts_with(body) && (4_095..=4_096).contains(&body.len()));
        assert_eq!(
            written.header("millrace-dlq-error-body-encoding"),
            Some("utf8")
        );
    }
    let half = &long.as_bytes()[..4_095];
    let written = dead_letter(
        &event,
        &DeadLetter {
            body: half,
            ..dead()
        },
    );
    assert_eq!(
        written.header("millrace-dlq-error-body").map(str::len),
        Some(4_094)
    );
    assert_eq!(
        written.header("millrace-dlq-error-body-encoding"),
        Some("utf8")
    );
}

#[test]
fn d_d1_a_body_that_is_no_text_is_base64() {
    let event = event(TimestampKind::Create, None, None, &vec![]);
    let check = |body: &[u8], expect: Option<&str>| {
        let written = dead_letter(&event, &DeadLetter { body, ..dead() });
        assert_eq!(written.header("millrace-dlq-error-body"), expect);
        let encoding = written.header("millrace-dlq-error-body-encoding");
        assert_eq!(encoding, expect.map(|_| "base64"));
    };
    check(b"\x00\xff", Some("AP8="));
    check(b"", None);
    let large = vec![0xff; 9_000];
    check(&large, Some(&"/".repeat(4_096)));
}

#[test]
fn d_d1_a_second_death_replaces_the_headers_and_remembers_the_first() {
    let first = dead_letter(&event(TimestampKind::Create, None, None, &vec![]), &dead());
    let mut headers = first.headers.clone();
    headers.push((
        "millrace-redrive-of".to_owned(),
        Some(b"stiywp5rs45zgqavk6csdpztk2".to_vec()),
    ));
    headers.push(("millrace-redrive-count".to_owned(), Some(b"1".to_vec())));
    let borrowed = headers
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_deref()))
        .collect();
    let redriven = event(TimestampKind::Create, None, None, &borrowed);
    assert_eq!(redrive_count(&redriven), 1);
    let second = dead_letter(
        &redriven,
        &DeadLetter {
            reason: Reason::MaxAge,
            ..dead()
        },
    );
    assert_eq!(second.header("millrace-dlq-reason"), Some("max_age"));
    assert_eq!(second.header("millrace-dlq-redrive-count"), Some("1"));
    assert_eq!(
        second.header("millrace-redrive-of"),
        Some("stiywp5rs45zgqavk6csdpztk2")
    );
    assert_eq!(second.header("millrace-redrive-count"), Some("1"));
    assert_eq!(
        second.header("millrace-dlq-prev"),
        Some("permanent@orders/3/1042@1767225600900")
    );
    let borrowed = second
        .headers
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_deref()))
        .collect();
    let third = dead_letter(
        &event(TimestampKind::Create, None, None, &borrowed),
        &dead(),
    );
    assert_eq!(
        third.header("millrace-dlq-prev"),
        Some("permanent@orders/3/1042@1767225600900,max_age@orders/3/1042@1767225600900")
    );
}

#[test]
fn d_d1_the_list_of_earlier_deaths_is_bounded_whatever_a_producer_sends() {
    let check = |prev: &[u8], reason: &[u8], expect: Option<&str>| {
        let headers: Headers<'_> = vec![
            (b"millrace-dlq-prev", Some(prev)),
            (b"millrace-dlq-reason", Some(reason)),
            (b"millrace-redrive-count", Some(b"many")),
        ];
        let written = dead_letter(&event(TimestampKind::Create, None, None, &headers), &dead());
        assert_eq!(written.header("millrace-dlq-prev"), expect);
        assert_eq!(written.header("millrace-dlq-redrive-count"), Some("0"));
    };
    check(
        b"1,2,3,4,5,6,7,8,9",
        b"ttl",
        Some("3,4,5,6,7,8,9,ttl@?/?/?@?"),
    );
    check(b"\xff", b"ttl", Some("ttl@?/?/?@?"));
    check(b",,", b"a,b", None);
    check(&[b'x'; 1_000], &[b'x'; 1_000], None);
    check(b"", b"\xff", None);
}

#[test]
fn d_d5_a_truncated_dead_letter_keeps_the_beginning_of_its_value() {
    let event = event(
        TimestampKind::Create,
        Some(b"key"),
        Some(b"abcdef"),
        &vec![],
    );
    let check = |value_bytes_max, expect: &[u8]| {
        let written = dead_letter(
            &event,
            &DeadLetter {
                value_bytes_max,
                ..dead()
            },
        );
        assert_eq!(
            (written.key.as_deref(), written.value.as_deref()),
            (Some(&b"key"[..]), Some(expect))
        );
    };
    check(None, b"abcdef");
    check(Some(7), b"abcdef");
    check(Some(2), b"ab");
}

#[test]
fn d_d1_a_dead_letter_has_the_events_timestamp_unless_its_topic_refuses_it() {
    let event = event(TimestampKind::Create, Some(b"key"), None, &vec![]);
    let stamped = |stamped_now| {
        let letter = DeadLetter {
            stamped_now,
            ..dead()
        };
        dead_letter(&event, &letter).timestamp_ms
    };
    assert_eq!(stamped(false), Some(event.timestamp().ms));
    assert_eq!(stamped(true), None);
}

#[test]
fn d_d2_reasons_have_their_names() {
    let reasons = [
        Reason::Permanent,
        Reason::RetriesExhausted,
        Reason::MaxAge,
        Reason::AppCrash,
        Reason::Undecodable,
        Reason::Schema,
        Reason::Oversized,
        Reason::OutputRejected,
        Reason::LaneParked,
        Reason::Ttl,
        Reason::Timeout,
    ];
    assert_eq!(
        reasons.map(Reason::as_str).join(", "),
        "permanent, retries_exhausted, max_age, app_crash, undecodable, schema, oversized, output_rejected, \
         lane_parked, ttl, timeout"
    );
    assert_eq!(
        [Stage::Input, Stage::App, Stage::Output].map(Stage::as_str),
        ["input", "app", "output"]
    );
}
