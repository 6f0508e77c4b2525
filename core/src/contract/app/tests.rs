//! Calls: the published examples byte by byte, and everything an event can be.

use std::time::Duration;

use super::*;
use crate::event::{EventsBuilder, Timestamp, TimestampKind};
use crate::identity::PartitionIdentity;
use crate::intake::io::{Call, CallId, Called};
use crate::outcome::{Item, Outcome, Output};
use crate::position::{Partition, Position};
use crate::time::Time;
use crate::token::Stamp;

pub(super) type Headers<'a> = &'a [(&'a [u8], Option<&'a [u8]>)];

pub(super) fn context() -> CallContext {
    CallContext {
        push: false,
        content_type_always: true,
        path: "/process".to_owned(),
        release: "r12-77ab0e41".to_owned(),
        max_attempts: 5,
        forward_headers: vec![],
        all_headers: false,
        empty_body: EmptyBody::Error,
        request: RequestMode::Single,
        content: ContentMode::Raw,
        cluster: "demo".to_owned(),
        max_request_bytes: 8 << 20,
        max_response_bytes: 8 << 20,
    }
}

/// The only result of an answer.
pub(super) fn emitted(outcome: Outcome) -> Output {
    match outcome {
        Outcome::Items(mut items) => match items.remove(0) {
            Item::Emit(output) => output,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

pub(super) fn called(
    offset: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: Headers<'_>,
) -> Called {
    let at = Timestamp {
        ms: 1_767_225_600_000 + (offset - 1042) * 10,
        kind: TimestampKind::Create,
    };
    let mut events = EventsBuilder::default();
    events.push(
        Position::new(offset),
        at,
        key,
        value,
        headers.iter().copied(),
    );
    Called {
        partition: Partition::new("orders", 3),
        event: events.finish().remove(0),
        id: PartitionIdentity::new("demo", "orders", 3).event_id(Position::new(offset)),
        attempt: 1,
        first_attempt_ms: 1_767_225_600_200,
    }
}

pub(super) fn call(events: Vec<Called>) -> Call {
    Call {
        correlation: None,
        id: CallId(1),
        stamp: Stamp::Live,
        deadline: Time {
            boot: Duration::from_secs(1),
            wall_ms: 1_767_225_630_200,
        },
        events,
    }
}

/// The call of the contract's batch example.
pub(super) fn example() -> Call {
    let mut events = vec![
        called(
            1042,
            Some(b"cust-1"),
            Some(b"{\"intValue\":1}"),
            &[(b"source", Some(b"web"))],
        ),
        called(1043, None, Some(b"\x00\xff"), &[]),
        called(1044, Some(b"cust-2"), Some(b"{}"), &[]),
        called(1045, Some(b"cust-3"), None, &[]),
    ];
    events[2].attempt = 2;
    call(events)
}

fn headers_of(c: &CallContext, called: Called) -> Vec<(String, String)> {
    let call = call(vec![called]);
    let mut headers = Vec::new();
    single_headers(c, &call.events[0], &call, &mut |name, value| {
        headers.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
    });
    headers
}

fn of_name(headers: &[(String, String)], name: &str) -> Vec<String> {
    headers
        .iter()
        .filter(|(own, _)| own == name)
        .map(|(_, value)| value.clone())
        .collect()
}

fn body_of(call: &Call) -> String {
    let mut body = Vec::new();
    batch_body(&context(), call, &mut body);
    String::from_utf8(body).unwrap()
}

#[test]
fn a_s1_the_published_single_request_is_what_we_send() {
    let parent: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers: Headers<'_> = &[
        (b"content-type", Some(b"application/json")),
        (b"traceparent", Some(parent)),
    ];
    let sent = headers_of(
        &context(),
        called(
            1042,
            Some(b"cust-1"),
            Some(b"{\"key\":\"cust-1\",\"intValue\":1}"),
            headers,
        ),
    );
    let published = "\
Content-Type: application/json
Millrace-Id: stiywp5rs45zgqavk6csdpztk2
Millrace-Topic: orders
Millrace-Partition: 3
Millrace-Offset: 1042
Millrace-Timestamp: 1767225600000
Millrace-Key: Y3VzdC0x
Millrace-Key-Text: cust-1
Millrace-Attempt: 1
Millrace-Max-Attempts: 5
Millrace-First-Attempt: 1767225600200
Millrace-Deadline: 1767225630200
Millrace-Release: r12-77ab0e41
Millrace-Mode: live
traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let published: Vec<(String, String)> = published
        .lines()
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    assert_eq!(sent, published);
}

#[test]
fn a_s1_null_and_empty_differ() {
    let check = |key: Option<&[u8]>, value: Option<&[u8]>, name: &str, expect: &[&str]| {
        let headers = headers_of(&context(), called(1042, key, value, &[]));
        assert_eq!(of_name(&headers, name), expect, "{key:?} {value:?} {name}");
    };
    check(None, None, "millrace-key", &[]);
    check(None, None, "millrace-key-text", &[]);
    check(Some(b""), None, "millrace-key", &[""]);
    check(Some(b"a\xff"), None, "millrace-key", &["Yf8"]);
    check(Some(b"a\xff"), None, "millrace-key-text", &[]);
    check(Some(b"\xfb\xff\xfe"), None, "millrace-key", &["-__-"]);
    check(Some("ä".as_bytes()), None, "millrace-key-text", &[]);
    check(Some(b"a\nb"), None, "millrace-key-text", &[]);
    check(Some(b" a"), None, "millrace-key-text", &[]);
    check(Some(b"a b"), None, "millrace-key-text", &["a b"]);
    check(None, None, "millrace-tombstone", &["true"]);
    check(None, Some(b""), "millrace-tombstone", &[]);
    check(None, None, "content-type", &["application/octet-stream"]);
}

#[test]
fn a_s1_a_content_type_that_http_cannot_carry_is_not_sent() {
    for value in [
        None,
        Some(&b""[..]),
        Some(&b"a\r\nX: y"[..]),
        Some(&b"\xff"[..]),
    ] {
        let headers = headers_of(
            &context(),
            called(
                1042,
                None,
                None,
                &[(b"content-type", value), (b"traceparent", value)],
            ),
        );
        assert_eq!(
            of_name(&headers, "content-type"),
            ["application/octet-stream"]
        );
        assert!(of_name(&headers, "traceparent").is_empty());
    }
}

#[test]
fn an_event_without_time_sends_none() {
    let mut events = EventsBuilder::default();
    events.push(
        Position::new(1),
        Timestamp {
            ms: -1,
            kind: TimestampKind::None,
        },
        None,
        None,
        [],
    );
    let called = Called {
        event: events.finish().remove(0),
        ..called(1042, None, None, &[])
    };
    assert!(
        of_name(
            &headers_of(&context(), called.clone()),
            "millrace-timestamp"
        )
        .is_empty()
    );
    assert!(body_of(&call(vec![called])).contains("\"offset\":1,\"timestamp\":null,\"key\":null"));
}

#[test]
fn a_s2_listed_headers_are_forwarded_and_others_are_not() {
    let c = CallContext {
        forward_headers: vec!["Kind".to_owned(), "n".to_owned(), "bad name".to_owned()],
        ..context()
    };
    let headers: Headers<'_> = &[
        (b"Kind", Some(b"a")),
        (b"Kind", Some(b"b")),
        (b"kind", Some(b"c")),
        (b"n", None),
        (b"n", Some(b"\xff")),
        (b"bad name", Some(b"d")),
        (b"other", Some(b"e")),
    ];
    let sent = headers_of(&c, called(1042, None, None, headers));
    assert_eq!(of_name(&sent, "millrace-header-kind"), ["a", "b"]);
    assert_eq!(
        sent.iter()
            .filter(|(name, _)| name.starts_with("millrace-header-"))
            .count(),
        2
    );
    assert!(of_name(&sent, "millrace-headers").is_empty());
}

#[test]
fn a_s2_all_headers_are_base64_of_json_pairs() {
    let c = CallContext {
        all_headers: true,
        ..context()
    };
    let headers: Headers<'_> = &[
        (b"a", Some(b"1")),
        (b"a", None),
        (b"b", Some(b"\x00\xff")),
        (b"\xff", Some(b"")),
    ];
    let sent = headers_of(&c, called(1042, None, None, headers));
    let pairs = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        &of_name(&sent, "millrace-headers")[0],
    );
    let pairs = String::from_utf8(pairs.unwrap()).unwrap();
    assert_eq!(
        pairs,
        r#"[["a","1"],["a",null],["b",{"base64":"AP8="}],[{"base64":"/w=="},""]]"#
    );
    let none = headers_of(&c, called(1042, None, None, &[]));
    assert_eq!(of_name(&none, "millrace-headers"), ["W10="]);
}

#[test]
fn a_s2_headers_above_8_kib_are_left_out() {
    let large = vec![b'x'; 8 << 10];
    let check = |c: CallContext, value: &[u8], expect: usize| {
        let sent = headers_of(&c, called(1042, None, None, &[(b"h", Some(value))]));
        let carried = sent
            .iter()
            .filter(|(name, _)| name == "millrace-header-h" || name == "millrace-headers")
            .count();
        assert_eq!(carried, expect);
        let omitted = of_name(&sent, "millrace-headers-omitted");
        assert_eq!(omitted, if expect == 0 { vec!["true"] } else { vec![] });
    };
    let forward = || CallContext {
        forward_headers: vec!["h".to_owned()],
        ..context()
    };
    check(forward(), &large, 0);
    check(forward(), &large[..(8 << 10) - 17], 1);
    check(forward(), &large[..(8 << 10) - 16], 0);
    check(
        CallContext {
            all_headers: true,
            ..context()
        },
        &large,
        0,
    );
    check(
        CallContext {
            all_headers: true,
            ..forward()
        },
        &large[..3_000],
        2,
    );
    check(
        CallContext {
            all_headers: true,
            ..forward()
        },
        &large[..4_000],
        0,
    );
}

#[test]
fn a_s3_shadow_and_baseline_ask_for_an_answer_without_side_effects() {
    for (stamp, expect) in [
        (Stamp::Live, "live"),
        (Stamp::Shadow, "shadow"),
        (Stamp::Baseline, "shadow"),
    ] {
        let call = Call {
            stamp,
            ..call(vec![called(1042, None, None, &[])])
        };
        let mut modes = Vec::new();
        let mut each = |name: &str, value: &[u8]| {
            if name == "millrace-mode" {
                modes.push(String::from_utf8(value.to_vec()).unwrap());
            }
        };
        single_headers(&context(), &call.events[0], &call, &mut each);
        batch_headers(&context(), &call, &mut each);
        assert_eq!(modes, [expect, expect]);
    }
}

#[test]
fn a_b5_the_published_batch_request_is_what_we_send() {
    let body = body_of(&example());
    assert_eq!(
        body,
        r#"{"items":[
{"id":"stiywp5rs45zgqavk6csdpztk2","topic":"orders","partition":3,"offset":1042,"timestamp":1767225600000,"key":"cust-1","headers":[["source","web"]],"attempt":1,"value":"{\"intValue\":1}"},
{"id":"cp3xig2odhwtzlgahrgdkux7nn","topic":"orders","partition":3,"offset":1043,"timestamp":1767225600010,"key":null,"headers":[],"attempt":1,"value_base64":"AP8="},
{"id":"q4i5bljimg44cvpdx5qg7icu2e","topic":"orders","partition":3,"offset":1044,"timestamp":1767225600020,"key":"cust-2","headers":[],"attempt":2,"value":"{}"},
{"id":"5omehuwsz3uzkbz7cdab5a4xvr","topic":"orders","partition":3,"offset":1045,"timestamp":1767225600030,"key":"cust-3","headers":[],"attempt":1,"value":null}]}"#
    );
    assert_eq!(body.len(), 690);
    let mut headers = Vec::new();
    batch_headers(&context(), &example(), &mut |name, value| {
        headers.push(format!("{name}: {}", std::str::from_utf8(value).unwrap()));
    });
    assert_eq!(
        headers,
        [
            "content-type: application/vnd.millrace.batch+json",
            "millrace-deadline: 1767225630200",
            "millrace-release: r12-77ab0e41",
            "millrace-mode: live",
        ]
    );
    let batch = CallContext {
        request: RequestMode::Batch,
        ..context()
    };
    assert_eq!(
        (batch.target().as_str(), context().target().as_str()),
        ("/process-batch", "/process")
    );
}

#[test]
fn a_b5_bytes_are_text_where_they_are_utf8() {
    let headers: Headers<'_> = &[(b"a\"", Some(b"\x01")), (b"b", None), (b"c", Some(b"\xff"))];
    let body = body_of(&call(vec![called(
        1042,
        Some(b"\xc3"),
        Some("ä\u{2028}\\\r".as_bytes()),
        headers,
    )]));
    assert!(body.contains(
        "\"key_base64\":\"ww==\",\"headers\":[[\"a\\\"\",\"\\u0001\"],[\"b\",null],[\"c\",{\"base64\":\"/w==\"}]],\
         \"attempt\":1,\"value\":\"ä\u{2028}\\\\\\r\"}]}"
    ), "{body}");
    let empty = body_of(&call(vec![called(1042, Some(b""), Some(b""), &[])]));
    assert!(empty.contains("\"key\":\"\"") && empty.contains("\"value\":\"\""));
}

#[test]
fn a_request_above_its_limit_is_known_before_it_is_sent() {
    let check = |request, max_request_bytes, value: &[u8], expect| {
        let c = CallContext {
            request,
            max_request_bytes,
            ..context()
        };
        assert_eq!(
            too_large(&c, &called(1042, None, Some(value), &[])),
            expect,
            "{request:?} {max_request_bytes}"
        );
    };
    check(RequestMode::Single, 3, b"abc", false);
    check(RequestMode::Single, 2, b"abc", true);
    let alone = body_of(&call(vec![called(1042, None, Some(b"\x01\x02"), &[])])).len();
    check(RequestMode::Batch, alone, b"\x01\x02", false);
    check(RequestMode::Batch, alone - 1, b"\x01\x02", true);
    check(RequestMode::Batch, 1 << 20, &[1; 1_000], false);
    let tombstone = called(1042, None, None, &[]);
    assert!(!too_large(
        &CallContext {
            max_request_bytes: 0,
            ..context()
        },
        &tombstone
    ));
}

proptest::proptest! {
    #[test]
    fn a_b5_every_byte_comes_through_json(
        key in proptest::option::of(proptest::collection::vec(proptest::num::u8::ANY, 0..40)),
        text in proptest::option::of(".{0,40}"),
        name in ".{0,9}",
    ) {
        let headers: Headers<'_> = &[(name.as_bytes(), key.as_deref())];
        let called = called(1042, key.as_deref(), text.as_ref().map(|text| text.as_bytes()), headers);
        let body: serde_json::Value = serde_json::from_str(&body_of(&call(vec![called]))).unwrap();
        let item = &body["items"][0];
        let decode = |text: &serde_json::Value| {
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text.as_str().unwrap()).unwrap()
        };
        let bytes = |plain: &serde_json::Value, base64: &serde_json::Value| match (plain, base64) {
            (serde_json::Value::String(text), _) => Some(text.clone().into_bytes()),
            (_, serde_json::Value::String(_)) => Some(decode(base64)),
            _ => None,
        };
        proptest::prop_assert_eq!(bytes(&item["key"], &item["key_base64"]), key.clone());
        proptest::prop_assert_eq!(item["value"].as_str(), text.as_deref());
        let pair = &item["headers"][0];
        proptest::prop_assert_eq!(pair[0].as_str(), Some(name.as_str()));
        proptest::prop_assert_eq!(bytes(&pair[1], &pair[1]["base64"]), key);
    }
}
