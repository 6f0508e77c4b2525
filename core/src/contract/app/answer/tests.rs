//! The status table, precedence, result headers, results bodies.

use std::time::Duration;

use super::super::tests::{context, emitted};
use super::*;

const NOW: i64 = 1_767_225_600_000;

type Given<'a> = &'a [(&'a str, &'a str)];

fn head<'a>(status: u16, headers: Given<'a>) -> AnswerHead<'a> {
    AnswerHead::read(
        status,
        headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes())),
    )
}

fn read(status: u16, headers: Given<'_>, body: &str) -> Outcome {
    read_single(
        &context(),
        &head(status, headers),
        Bytes::copy_from_slice(body.as_bytes()),
        NOW,
    )
}

fn failed(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

/// What an answer came to, in a word.
fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Items(items) => match &items[..] {
            [Item::Emit(_)] => "one".to_owned(),
            [Item::EmitMany(outputs)] => format!("{}", outputs.len()),
            [Item::Filter] => "filter".to_owned(),
            other => panic!("{other:?}"),
        },
        Outcome::Failed(failure) => {
            let class = match (failure.class, failure.kind) {
                (_, FailureKind::Malformed) => "malformed",
                (_, FailureKind::Oversized) => "oversized",
                (Class::Transient, _) => "transient",
                (Class::Permanent, _) => "permanent",
                (Class::Misconfigured, _) => "misconfigured",
                (Class::Infra, _) => "infra",
            };
            format!(
                "{class}{}",
                if failure.attempted { "" } else { ", uncounted" }
            )
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_status_table_holds() {
    const RESULTS: Given<'static> = &[("content-type", "application/vnd.millrace.results+json")];
    const FILTER: Given<'static> = &[("millrace-result", "filter")];
    const WAIT: Given<'static> = &[("retry-after", "1")];
    let check = |status: u16, headers: Given<'_>, body: &str, expect: &str| {
        assert_eq!(
            word(&read(status, headers, body)),
            expect,
            "{status} {headers:?} {body:?}"
        );
    };
    for status in [200, 201, 203] {
        check(status, &[], "x", "one");
        check(status, &[], "", "malformed");
    }
    check(200, RESULTS, r#"{"outputs":[]}"#, "filter");
    check(200, RESULTS, r#"{"outputs":[{"value":"a"}]}"#, "one");
    check(
        200,
        RESULTS,
        r#"{"outputs":[{"value":"a"},{"value":null}]}"#,
        "2",
    );
    check(200, RESULTS, "x", "malformed");
    check(
        200,
        &[("content-type", "application/x-ndjson")],
        "{}",
        "malformed",
    );
    check(200, FILTER, "", "filter");
    check(200, FILTER, "x", "filter");
    check(200, &[("millrace-result", "fitler")], "x", "malformed");
    check(200, &[("millrace-unknown", "x")], "x", "one");
    for status in [204, 205] {
        check(status, &[], "", "filter");
    }
    check(202, &[], "", "misconfigured, uncounted");
    for status in [100, 199, 206, 207, 208, 226, 299, 600, 999] {
        check(status, &[], "x", "malformed");
    }
    for status in [
        300, 301, 302, 304, 307, 399, 401, 403, 404, 405, 407, 426, 501, 505,
    ] {
        check(status, &[], "x", "misconfigured, uncounted");
    }
    for status in [408, 409, 425, 429, 500, 502, 503, 504, 506, 507, 511, 599] {
        check(status, &[], "x", "transient");
    }
    for status in [
        400, 402, 406, 410, 411, 412, 413, 414, 415, 416, 418, 422, 428, 431, 451, 499,
    ] {
        check(status, &[], "x", "permanent");
    }
    check(429, WAIT, "", "transient, uncounted");
    check(503, WAIT, "", "transient, uncounted");
    check(500, WAIT, "", "transient");
    check(400, WAIT, "", "permanent");
}

#[test]
fn an_empty_body_means_what_the_block_says() {
    let check = |empty_body, status, expect: &str| {
        let c = CallContext {
            empty_body,
            ..context()
        };
        let outcome = read_single(&c, &head(status, &[]), Bytes::new(), NOW);
        assert_eq!(word(&outcome), expect);
        if expect == "one" {
            assert_eq!(
                emitted(outcome).value.as_deref(),
                Some(&b""[..]),
                "empty, not null"
            );
        }
    };
    check(EmptyBody::Error, 200, "malformed");
    check(EmptyBody::Filter, 200, "filter");
    check(EmptyBody::Emit, 200, "one");
    check(EmptyBody::Emit, 204, "filter");
    assert_eq!(
        emitted(read(200, &[("millrace-out-tombstone", "true")], "")).value,
        None
    );
}

#[test]
fn d_r1_the_header_wins_over_the_body_and_the_body_over_the_status() {
    let check = |status, header: Option<&str>, retryable: Option<bool>, expect: &str| {
        let headers: Vec<_> = header
            .into_iter()
            .map(|class| ("Millrace-Error-Class", class))
            .collect();
        let body = retryable.map_or("{}".to_owned(), |r| {
            format!(r#"{{"error":{{"retryable":{r}}}}}"#)
        });
        assert_eq!(
            word(&read(status, &headers, &body)),
            expect,
            "{status} {header:?} {retryable:?}"
        );
    };
    check(400, None, Some(true), "transient");
    check(500, None, Some(false), "permanent");
    check(404, None, Some(false), "permanent");
    check(500, Some("permanent"), Some(true), "permanent");
    check(400, Some("transient"), Some(false), "transient");
    check(
        400,
        Some("misconfigured"),
        Some(true),
        "misconfigured, uncounted",
    );
    check(500, Some("unheard of"), Some(false), "permanent");
    check(500, Some("unheard of"), None, "transient");
    check(202, Some("transient"), None, "misconfigured, uncounted");
}

#[test]
fn an_error_body_gives_code_and_message() {
    let check = |body: &str, code: &str, message: &str| {
        let failure = failed(read(500, &[], body));
        assert_eq!(
            (failure.code.as_str(), failure.message.as_str()),
            (code, message),
            "{body}"
        );
        assert_eq!(failure.body, body.as_bytes());
    };
    check(
        r#"{"error":{"code":"DB_BUSY","message":"locked","retryable":true}}"#,
        "DB_BUSY",
        "locked",
    );
    check(r#"{"error":{"code":7}}"#, "7", "the app answered 500");
    check(
        r#"{"error":{"code":"","message":null,"retryable":"yes"}}"#,
        "500",
        "the app answered 500",
    );
    check(r#"{"error":"text"}"#, "500", "the app answered 500");
    check(r#"{"detail":"x"}"#, "500", "the app answered 500");
    check("[1]", "500", "the app answered 500");
    check("<html>", "500", "the app answered 500");
    check("", "500", "the app answered 500");
}

#[test]
fn what_is_kept_of_an_error_is_bounded() {
    let long = "ä".repeat(10_000);
    let body = format!(r#"{{"error":{{"code":"{long}","message":"x{long}"}}}}"#);
    let failure = failed(read(500, &[], &body));
    assert_eq!(
        (
            failure.code.len(),
            failure.message.len(),
            failure.body.len()
        ),
        (256, 1_023, 4_096)
    );
    assert!(std::str::from_utf8(&failure.body).is_ok());
    let huge = format!(
        r#"{{"error":{{"code":"A","message":"{}"}}}}"#,
        "x".repeat(1 << 20)
    );
    let failure = failed(read(500, &[], &huge));
    assert_eq!((failure.code.as_str(), failure.body.len()), ("500", 4_096));
    let binary = read_single(
        &context(),
        &head(500, &[]),
        Bytes::from(vec![0xff; 5_000]),
        NOW,
    );
    assert_eq!(failed(binary).body.len(), 4_096);
}

#[test]
fn d_b5_retry_after_is_seconds_or_a_date_and_has_a_scope() {
    let check = |text: &str, expect: Option<u64>| {
        let failure = failed(read(503, &[("Retry-After", text)], ""));
        let expect = expect.map(|ms| RetryAfter {
            delay: Duration::from_millis(ms),
            scope: RetryScope::All,
        });
        assert_eq!(failure.retry_after, expect, "{text}");
        assert_eq!(failure.attempted, expect.is_none(), "a wait only ages");
    };
    check("0", Some(0));
    check("7", Some(7_000));
    check(" 7 ", Some(7_000));
    check("301", Some(300_000));
    check("99999999999999999999999", Some(300_000));
    check("Thu, 01 Jan 2026 00:00:09 GMT", Some(9_000));
    check("Thursday, 01-Jan-26 00:00:09 GMT", Some(9_000));
    check("Thu Jan  1 00:00:09 2026", Some(9_000));
    check("Fri, 02 Jan 2026 00:00:00 GMT", Some(300_000));
    check("Wed, 31 Dec 2025 23:59:59 GMT", Some(0));
    check("-1", None);
    check("1.5", None);
    check("soon", None);
    check("", None);
    let scope = |name: &str| {
        failed(read(
            429,
            &[("retry-after", "1"), ("millrace-retry-scope", name)],
            "",
        ))
        .retry_after
        .unwrap()
        .scope
    };
    assert_eq!(
        ["event", "lane", "all", "other"].map(scope),
        [
            RetryScope::Event,
            RetryScope::Lane,
            RetryScope::All,
            RetryScope::All
        ]
    );
    let permanent = failed(read(
        503,
        &[("retry-after", "1"), ("millrace-error-class", "permanent")],
        "",
    ));
    assert_eq!((permanent.retry_after, permanent.attempted), (None, true));
}

#[test]
fn a_s4_result_headers_describe_the_result() {
    let output = emitted(read(
        200,
        &[
            ("Millrace-Out-Topic", "orders-alt"),
            ("MILLRACE-OUT-KEY", "AP8"),
            ("Millrace-Out-Header-Model", "v12"),
            ("Millrace-Out-Header-model", " v13"),
            ("Content-Length", "1"),
        ],
        "x",
    ));
    assert_eq!(output.topic.as_deref(), Some("orders-alt"));
    assert_eq!(
        output.key,
        OutputKey::Bytes(Bytes::from_static(b"\x00\xff"))
    );
    assert_eq!(output.value.as_deref(), Some(&b"x"[..]));
    let headers: Vec<_> = output
        .headers
        .iter()
        .map(|(n, v)| (&n[..], v.as_deref().unwrap()))
        .collect();
    let expect: [(&[u8], &[u8]); 2] = [(b"Model", b"v12"), (b"model", b" v13")];
    assert_eq!(headers, expect);
    let key = |headers: Given<'_>| emitted(read(200, headers, "x")).key;
    assert_eq!(key(&[]), OutputKey::Inherit);
    assert_eq!(
        key(&[("millrace-out-key", "")]),
        OutputKey::Bytes(Bytes::new())
    );
    assert_eq!(
        key(&[("millrace-out-key", "AP8=")]),
        OutputKey::Bytes(Bytes::from_static(b"\x00\xff"))
    );
    assert_eq!(key(&[("millrace-out-key-null", "true")]), OutputKey::Null);
    assert_eq!(
        key(&[("millrace-out-key-null", "false")]),
        OutputKey::Inherit
    );
    let tombstone = emitted(read(200, &[("millrace-out-tombstone", "true")], "null"));
    assert_eq!(tombstone.value, None);
    for wrong in [
        ("millrace-out-key", "A"),
        ("millrace-out-key", "+/"),
        ("millrace-out-topic", ""),
        ("millrace-out-topic", "a b"),
        ("millrace-out-topic", ".."),
    ] {
        assert_eq!(word(&read(200, &[wrong], "x")), "malformed", "{wrong:?}");
    }
    let both: Given<'_> = &[
        ("millrace-out-key", "AP8"),
        ("millrace-out-key-null", "true"),
    ];
    assert_eq!(word(&read(200, both, "x")), "malformed");
}

#[test]
fn headers_above_the_cap_make_a_success_malformed() {
    let one = ("millrace-out-header-a", "b");
    assert_eq!(word(&read(200, &vec![one; 100], "x")), "one");
    assert_eq!(word(&read(200, &vec![one; 101], "x")), "malformed");
}

#[test]
fn an_answer_above_its_limit_is_oversized() {
    let c = CallContext {
        max_response_bytes: 3,
        ..context()
    };
    let read =
        |body: &'static [u8]| read_single(&c, &head(200, &[]), Bytes::from_static(body), NOW);
    assert_eq!(word(&read(b"abc")), "one");
    assert_eq!(word(&read(b"abcd")), "oversized");
}

fn outputs(body: &str) -> Outcome {
    read(
        200,
        &[(
            "content-type",
            "Application/vnd.Millrace.results+json; charset=utf-8",
        )],
        body,
    )
}

#[test]
fn a_s5_the_published_results_body_is_read() {
    let body = r#"{"outputs":[{"value":"a"},{"value_base64":"AP8=","key":"k2","topic":"orders-alt","headers":[["kind","x"]]}]}"#;
    let Outcome::Items(items) = outputs(body) else {
        panic!("no items")
    };
    let expect = Item::EmitMany(vec![
        Output {
            value: Some(Bytes::from_static(b"a")),
            ..Output::default()
        },
        Output {
            value: Some(Bytes::from_static(b"\x00\xff")),
            key: OutputKey::Bytes(Bytes::from_static(b"k2")),
            topic: Some("orders-alt".to_owned()),
            headers: vec![(Bytes::from_static(b"kind"), Some(Bytes::from_static(b"x")))],
            ..Output::default()
        },
    ]);
    assert_eq!(items, [expect]);
}

#[test]
fn a_s5_outputs_have_many_forms() {
    let check = |output: &str, expect: Output| {
        let body = format!(r#"{{"later":[1,{{}}],"outputs":[{output}]}}"#);
        assert_eq!(emitted(outputs(&body)), expect, "{output}");
    };
    let value = |value: &'static [u8]| Output {
        value: Some(Bytes::from_static(value)),
        ..Output::default()
    };
    check(r#"{"value":null}"#, Output::default());
    check(r#"{"value":""}"#, value(b""));
    check(
        r#"{"value":"a\"\u00e4\ud83d\ude00\n"}"#,
        value("a\"ä😀\n".as_bytes()),
    );
    check(r#"{"value":"a","unknown":{"value":1}}"#, value(b"a"));
    check(r#"{"value_base64":"AP8"}"#, value(b"\x00\xff"));
    check(
        r#"{"value_json":{"a":[1,2.50,"x"]}}"#,
        value(br#"{"a":[1,2.50,"x"]}"#),
    );
    check(
        "{\"value_json\": { \"a b\" : [ 1 ,\n\t\"x \\\" y\\\\\" , null ] } }",
        value(br#"{"a b":[1,"x \" y\\",null]}"#),
    );
    check(r#"{"value_json":null}"#, value(b"null"));
    check(r#"{"value_json": "a b" }"#, value(b"\"a b\""));
    check(
        r#"{"value":"a","key":null,"partition":3,"timestamp":5,"topic":null,"headers":null}"#,
        Output {
            key: OutputKey::Null,
            partition: Some(3),
            timestamp_ms: Some(5),
            ..value(b"a")
        },
    );
    check(
        r#"{"key_base64":"/w==","value":"a","partition":null,"timestamp":null}"#,
        Output {
            key: OutputKey::Bytes(Bytes::from_static(b"\xff")),
            ..value(b"a")
        },
    );
    check(
        r#"{"value":"a","headers":[["a","\n"],["a",null],["b",{"base64":"AP8=","later":1}],["\u0062",""]]}"#,
        Output {
            headers: vec![
                (Bytes::from_static(b"a"), Some(Bytes::from_static(b"\n"))),
                (Bytes::from_static(b"a"), None),
                (
                    Bytes::from_static(b"b"),
                    Some(Bytes::from_static(b"\x00\xff")),
                ),
                (Bytes::from_static(b"b"), Some(Bytes::new())),
            ],
            ..value(b"a")
        },
    );
}

#[test]
fn a_s5_anything_else_is_malformed() {
    let check = |body: &str| assert_eq!(word(&outputs(body)), "malformed", "{body}");
    check("");
    check("[]");
    check("{}");
    check(r#"{"outputs":null}"#);
    check(r#"{"outputs":{}}"#);
    check(r#"{"outputs":[1]}"#);
    check(r#"{"outputs":[],"outputs":[]}"#);
    check(r#"{"outputs":[]} x"#);
    check(r#"{"outputs":[{"value":"a"}"#);
    for output in [
        "{}",
        r#"{"value":"a","value_base64":"AP8="}"#,
        r#"{"value":null,"value_json":1}"#,
        r#"{"value":"a","value":"b"}"#,
        r#"{"value":1}"#,
        r#"{"value":{"base64":"AP8="}}"#,
        r#"{"value_base64":null}"#,
        r#"{"value_base64":"A"}"#,
        r#"{"value_base64":"-_"}"#,
        r#"{"value":"\ud800"}"#,
        r#"{"value":"a","key":1}"#,
        r#"{"value":"a","key":"k","key_base64":"AP8="}"#,
        r#"{"value":"a","topic":"a b"}"#,
        r#"{"value":"a","topic":7}"#,
        r#"{"value":"a","partition":-1}"#,
        r#"{"value":"a","partition":1.5}"#,
        r#"{"value":"a","timestamp":-1}"#,
        r#"{"value":"a","headers":{}}"#,
        r#"{"value":"a","headers":[["a"]]}"#,
        r#"{"value":"a","headers":[["a","b","c"]]}"#,
        r#"{"value":"a","headers":[[null,"b"]]}"#,
        r#"{"value":"a","headers":[["a",{"base64":null}]]}"#,
        r#"{"value":"a","headers":[["a",{}]]}"#,
    ] {
        check(&format!(r#"{{"outputs":[{output}]}}"#));
    }
    let many = vec![r#"["a","b"]"#; 101].join(",");
    check(&format!(
        r#"{{"outputs":[{{"value":"a","headers":[{many}]}}]}}"#
    ));
    let deep = "[".repeat(100_000);
    check(&format!(r#"{{"outputs":[{{"value":"a","x":{deep}"#));
    let invalid = Bytes::from_static(b"{\"outputs\":[{\"value\":\"\xff\"}]}");
    let head = head(200, &[("content-type", RESULTS_CONTENT_TYPE)]);
    assert_eq!(
        word(&read_single(&context(), &head, invalid, NOW)),
        "malformed"
    );
}

#[test]
fn failures_of_the_connection_have_their_classes() {
    let check = |failure: Failure, class, kind, attempted| {
        assert_eq!(
            (failure.class, failure.kind, failure.attempted),
            (class, kind, attempted),
            "{failure:?}"
        );
        assert!(!failure.code.is_empty() && !failure.message.is_empty());
    };
    check(
        Failure::timeout(),
        Class::Transient,
        FailureKind::TimedOut,
        true,
    );
    check(
        Failure::connect_refused("refused"),
        Class::Infra,
        FailureKind::Refused,
        false,
    );
    check(
        Failure::connection_lost("reset"),
        Class::Transient,
        FailureKind::ConnectionLost,
        true,
    );
    check(
        Failure::response_too_large(8),
        Class::Permanent,
        FailureKind::Oversized,
        true,
    );
    check(
        Failure::request_too_large(8),
        Class::Permanent,
        FailureKind::Oversized,
        false,
    );
    assert_eq!(
        Failure::connect_refused("x".repeat(2_000)).message.len(),
        1_024
    );
}

proptest::proptest! {
    #[test]
    fn any_answer_has_a_meaning(
        status in 100_u16..1000,
        name in "(content-type|retry-after|millrace-[a-z-]{0,12}|millrace-out-key|millrace-out-topic)",
        value in "(application/vnd.millrace.results\\+json|.{0,20})",
        body in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
    ) {
        read_single(&context(), &head(status, &[(&name, &value)]), Bytes::from(body), NOW);
    }
}
