//! The published examples byte by byte, records of every form, answers of every form.

use bytes::Bytes;

use super::*;
use crate::contract::app::tests::{Headers, call, called, context, emitted};
use crate::contract::app::{
    AnswerHead, ContentMode, RequestMode, batch_body, batch_headers, read_batch, read_single,
    single_body, single_headers, too_large,
};
use crate::intake::io::Call;
use crate::outcome::{Class, FailureKind, Item, Outcome, Output};

const JSON: (&[u8], Option<&[u8]>) = (b"content-type", Some(b"application/json"));

fn asking(content: ContentMode) -> CallContext {
    CallContext {
        content,
        ..context()
    }
}

fn sent(c: &CallContext, called: &Called) -> (Vec<(String, String)>, String) {
    let call = call(vec![called.clone()]);
    let mut headers = Vec::new();
    single_headers(c, called, &call, &mut |name, value| {
        headers.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
    });
    let body = String::from_utf8_lossy(&single_body(c, called)).into_owned();
    (headers, body)
}

fn attributes_of(headers: &[(String, String)]) -> Vec<String> {
    let ours = headers.iter().filter(|(name, _)| name.starts_with("ce-"));
    ours.map(|(name, value)| format!("{name}: {value}"))
        .collect()
}

fn batch_of(events: Vec<Called>) -> String {
    let mut body = Vec::new();
    batch_body(&asking(ContentMode::Binary), &call(events), &mut body);
    String::from_utf8(body).unwrap()
}

#[test]
fn a_c1_the_published_binary_request_is_what_we_send() {
    let called = called(1042, Some(b"cust-1"), Some(b"{\"intValue\":1}"), &[JSON]);
    let (headers, body) = sent(&asking(ContentMode::Binary), &called);
    assert_eq!(body, "{\"intValue\":1}");
    assert_eq!(
        attributes_of(&headers),
        [
            "ce-specversion: 1.0",
            "ce-id: stiywp5rs45zgqavk6csdpztk2",
            "ce-source: /kafka/demo/orders",
            "ce-type: millrace.record.v1",
            "ce-subject: cust-1",
            "ce-time: 2026-01-01T00:00:00Z",
        ]
    );
    for line in [
        "content-type: application/json",
        "millrace-id: stiywp5rs45zgqavk6csdpztk2",
        "millrace-attempt: 1",
        "millrace-mode: live",
    ] {
        let (name, value) = line.split_once(": ").unwrap();
        assert!(
            headers.iter().any(|(n, v)| n == name && v == value),
            "{line}"
        );
    }
}

#[test]
fn a_c3_the_published_batch_request_is_what_we_send() {
    // The example's record has no key and no time.
    let mut events = crate::event::EventsBuilder::default();
    events.push(
        crate::position::Position::new(1042),
        crate::event::Timestamp {
            ms: -1,
            kind: TimestampKind::None,
        },
        None,
        Some(b"{\"intValue\":1}"),
        [JSON],
    );
    let called = Called {
        event: events.finish().remove(0),
        ..called(1042, None, None, &[])
    };
    let body = batch_of(vec![called]);
    assert_eq!(
        body,
        r#"[{"specversion":"1.0","id":"stiywp5rs45zgqavk6csdpztk2","source":"/kafka/demo/orders","type":"millrace.record.v1","millraceid":"stiywp5rs45zgqavk6csdpztk2","millraceattempt":1,"datacontenttype":"application/json","data":{"intValue":1}}]"#
    );
    assert_eq!(body.len(), 236);
    let mut kinds = Vec::new();
    let call = call(Vec::new());
    batch_headers(
        &asking(ContentMode::Structured),
        &call,
        &mut |name, value| {
            if name == "content-type" {
                kinds.push(String::from_utf8(value.to_vec()).unwrap());
            }
        },
    );
    assert_eq!(kinds, [BATCH]);
}

/// A record in the binary form of the Kafka binding.
fn binary_record() -> Called {
    let headers: Headers<'_> = &[
        (b"ce_specversion", Some(b"1.0")),
        (b"ce_id", Some(b"old")),
        (b"ce_id", Some(b"o-1")),
        (b"ce_source", Some(b"/shop")),
        (b"ce_type", Some("bestellt \"1\" 100% \u{e4}".as_bytes())),
        (b"ce_region", Some(b"eu")),
        (b"ce_Bad", Some(b"x")),
        (b"ce_millraceid", Some(b"forged")),
        (b"ce_null", None),
        (b"other", Some(b"y")),
        (b"content-type", Some(b"text/plain")),
    ];
    called(1042, Some(b"cust-1"), Some(b"{\"n\":1}"), headers)
}

#[test]
fn a_c1_a_binary_record_keeps_its_attributes() {
    let (headers, body) = sent(&asking(ContentMode::Binary), &binary_record());
    assert_eq!(body, "{\"n\":1}");
    assert_eq!(
        attributes_of(&headers),
        [
            "ce-specversion: 1.0",
            "ce-id: o-1",
            "ce-source: /shop",
            "ce-type: bestellt%20%221%22%20100%25%20%C3%A4",
            "ce-region: eu",
        ]
    );
    let (headers, body) = sent(&asking(ContentMode::Structured), &binary_record());
    assert_eq!(headers[0], ("content-type".into(), STRUCTURED.into()));
    assert!(attributes_of(&headers).is_empty());
    assert_eq!(
        body,
        "{\"specversion\":\"1.0\",\"id\":\"o-1\",\"source\":\"/shop\",\"type\":\"bestellt \\\"1\\\" 100% \u{e4}\",\
         \"region\":\"eu\",\"datacontenttype\":\"text/plain\",\"data\":\"{\\\"n\\\":1}\"}"
    );
}

#[test]
fn a_c1_a_structured_record_travels_as_it_is() {
    let kind: &[u8] = b"Application/CloudEvents+json; charset=UTF-8";
    let value = br#"{ "specversion":"1.0", "id":"s", "source":"/s","type":"t","millraceid":"forged","data":[1, 2]}"#;
    let record = called(1042, None, Some(value), &[(b"content-type", Some(kind))]);
    for content in [ContentMode::Binary, ContentMode::Structured] {
        let (headers, body) = sent(&asking(content), &record);
        assert_eq!(body.as_bytes(), value);
        assert_eq!(headers[0].1.as_bytes(), kind);
        assert!(attributes_of(&headers).is_empty());
    }
    assert_eq!(batch_of(vec![record.clone(), record]), {
        let one = r#"{"specversion":"1.0","id":"s","source":"/s","type":"t","data":[1, 2],"millraceid":"stiywp5rs45zgqavk6csdpztk2","millraceattempt":1}"#;
        format!("[{one},{one}]")
    });
    // One that only claims to be an event is data.
    let broken = called(1042, None, Some(b"{"), &[(b"content-type", Some(kind))]);
    let body = batch_of(vec![broken]);
    assert!(body.contains("\"type\":\"millrace.record.v1\""), "{body}");
    assert!(body.contains("\"data_base64\":\"ew==\""), "{body}");
}

#[test]
fn data_is_json_text_or_base64() {
    let check = |kind: Option<&[u8]>, value: Option<&[u8]>, expect: &str| {
        let headers: Headers<'_> = &[(b"content-type", kind)];
        let record = called(1042, None, value, headers);
        let (_, body) = sent(&asking(ContentMode::Structured), &record);
        let (_, data) = body.split_once("\"datacontenttype\":").unwrap();
        assert_eq!(data, format!("{expect}}}"));
        serde_json::from_str::<serde_json::Value>(&body).unwrap();
    };
    let json = Some(&b"application/json; charset=utf-8"[..]);
    check(
        json,
        Some(b" [1] "),
        "\"application/json; charset=utf-8\",\"data\":[1]",
    );
    check(Some(b"x/y+JSON"), Some(b"1"), "\"x/y+JSON\",\"data\":1");
    check(
        json,
        Some(b"no json"),
        "\"application/json; charset=utf-8\",\"data_base64\":\"bm8ganNvbg==\"",
    );
    check(json, None, "\"application/json; charset=utf-8\"");
    check(
        None,
        Some(b"{}"),
        "\"application/octet-stream\",\"data\":\"{}\"",
    );
    check(
        Some(b"text/plain"),
        Some(b"a\"b"),
        "\"text/plain\",\"data\":\"a\\\"b\"",
    );
    check(
        Some(b"text/plain"),
        Some(b"\xff"),
        "\"text/plain\",\"data_base64\":\"/w==\"",
    );
    check(
        Some(b"text/plain"),
        Some(b""),
        "\"text/plain\",\"data\":\"\"",
    );
}

#[test]
fn a_structured_request_above_its_limit_is_known_before_it_is_sent() {
    for request in [RequestMode::Single, RequestMode::Batch] {
        let record = called(1042, None, Some(b"{}"), &[JSON]);
        let c = CallContext {
            request,
            ..asking(ContentMode::Structured)
        };
        let length = match request {
            RequestMode::Single => single_body(&c, &record).len(),
            RequestMode::Batch => batch_of(vec![record.clone()]).len(),
        };
        for (max_request_bytes, expect) in [(length, false), (length - 1, true)] {
            let c = CallContext {
                max_request_bytes,
                ..c.clone()
            };
            assert_eq!(too_large(&c, &record), expect, "{request:?}");
        }
    }
}

fn answer(headers: &[(&str, &str)], body: &'static str) -> Outcome {
    let c = asking(ContentMode::Binary);
    let headers = headers.iter().map(|(n, v)| (*n, v.as_bytes()));
    let head = AnswerHead::read(200, headers);
    read_single(&c, &head, Bytes::from_static(body.as_bytes()), 0)
}

fn header_pairs(output: &Output) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let pairs = output.headers.iter();
    pairs
        .map(|(n, v)| (text(n), text(v.as_ref().unwrap())))
        .collect()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

const SCORED: &str = r#"{"specversion":"1.0","id":"s-1","source":"/apps/score","type":"order.scored","datacontenttype":"application/json","data":{"intValue":101}}"#;

#[test]
fn a_c2_a_structured_answer_is_published_as_it_came() {
    assert_eq!(SCORED.len(), 138, "the published example");
    let output = emitted(answer(&[("Content-Type", STRUCTURED)], SCORED));
    assert!(output.cloud_event);
    assert_eq!(output.value.as_deref(), Some(SCORED.as_bytes()));
    assert_eq!(header_pairs(&output), [pair("content-type", STRUCTURED)]);
}

#[test]
fn a_c2_a_binary_answer_becomes_ce_headers() {
    let headers = [
        ("ce-specversion", "1.0"),
        ("Ce-Id", "s-1"),
        ("ce-source", "/apps/score"),
        ("ce-type", "a%20%22b%22%C3%A4 100%"),
        ("content-type", "application/json"),
        ("millrace-out-header-kind", "x"),
        ("millrace-out-topic", "alt"),
    ];
    let output = emitted(answer(&headers, "{}"));
    assert!(output.cloud_event);
    assert_eq!(output.value.as_deref(), Some(&b"{}"[..]));
    assert_eq!(output.topic.as_deref(), Some("alt"));
    assert_eq!(
        header_pairs(&output),
        [
            pair("ce_specversion", "1.0"),
            pair("ce_id", "s-1"),
            pair("ce_source", "/apps/score"),
            pair("ce_type", "a \"b\"\u{e4} 100%"),
            pair("content-type", "application/json"),
            pair("kind", "x"),
        ]
    );
    let empty = emitted(answer(&headers[..4], ""));
    assert_eq!(empty.value.as_deref(), Some(&b""[..]));
}

#[test]
fn what_is_no_cloud_event_is_malformed() {
    let check =
        |headers: &[(&str, &str)], body: &'static str, what: &str| match answer(headers, body) {
            Outcome::Failed(failure) => {
                assert_eq!(failure.kind, FailureKind::Malformed);
                assert!(failure.message.contains(what), "{}", failure.message);
            }
            other => panic!("{other:?}"),
        };
    let json = [("content-type", "application/json")];
    check(&json, "{}", "it is no CloudEvent");
    check(
        &[("ce-specversion", "1.0"), ("ce-id", "1")],
        "{}",
        "no `source`",
    );
    check(&[("content-type", STRUCTURED)], "[]", "no JSON object");
    check(
        &[("content-type", STRUCTURED)],
        r#"{"specversion":"1.0"}"#,
        "no `id`",
    );
    check(&[("content-type", BATCH)], "[]", "answers a batch only");
    check(&json, "", "it is empty");
}

#[test]
fn filters_refusals_and_result_lists_are_what_they_are_without_cloud_events() {
    let list = [("content-type", "application/vnd.millrace.results+json")];
    let output = emitted(answer(&list, r#"{"outputs":[{"value":"a"}]}"#));
    assert!(!output.cloud_event);
    assert_eq!(
        answer(&[("millrace-result", "filter")], ""),
        Outcome::Items(vec![Item::Filter])
    );
}

fn of_batch(call: &Call, body: &str) -> Outcome {
    let c = CallContext {
        request: RequestMode::Batch,
        ..asking(ContentMode::Binary)
    };
    let head = AnswerHead::read(200, [("content-type", BATCH.as_bytes())].into_iter());
    read_batch(&c, call, &head, Bytes::from(body.to_owned()), 0)
}

fn two() -> Call {
    call(vec![
        called(1042, None, Some(b"{}"), &[JSON]),
        called(1043, None, Some(b"{}"), &[JSON]),
    ])
}

const FIRST: &str = "stiywp5rs45zgqavk6csdpztk2";
const SECOND: &str = "cp3xig2odhwtzlgahrgdkux7nn";

#[test]
fn a_c3_the_published_batch_answer_is_one_result_without_our_attributes() {
    let body = r#"[{"specversion":"1.0","id":"s-1","source":"/apps/score","type":"order.scored","millraceparent":"stiywp5rs45zgqavk6csdpztk2","millracestatus":"ok","datacontenttype":"application/json","data":{"intValue":101}}]"#;
    assert_eq!(body.len(), 208, "the published example");
    let call = call(vec![called(1042, None, Some(b"{}"), &[JSON])]);
    let output = emitted(of_batch(&call, body));
    assert_eq!(output.value.as_deref(), Some(SCORED.as_bytes()));
    assert_eq!(header_pairs(&output), [pair("content-type", STRUCTURED)]);
    assert!(output.cloud_event);
}

#[test]
fn a_c3_several_answers_may_name_one_parent_and_others_say_why_there_is_none() {
    let event = |parent: &str, id: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","millraceparent":"{parent}"}}"#
        )
    };
    let body = format!(
        r#"[{},{{"millraceparent":"{SECOND}","millracestatus":"retry","millraceretryafterms":250,"millraceerrorcode":"BUSY","millraceerrormessage":"locked"}},{},{}]"#,
        event(FIRST, "1"),
        event(FIRST, "2"),
        event(FIRST, "3"),
    );
    let Outcome::Items(items) = of_batch(&two(), &body) else {
        panic!("items");
    };
    let Item::EmitMany(results) = &items[0] else {
        panic!("{:?}", items[0]);
    };
    let ids: Vec<_> = results
        .iter()
        .map(|r| String::from_utf8_lossy(r.value.as_ref().unwrap()).into_owned())
        .collect();
    assert!(
        ids.iter()
            .zip(["\"1\"", "\"2\"", "\"3\""])
            .all(|(r, id)| r.contains(id)),
        "{ids:?}"
    );
    let Item::Failed(failure) = &items[1] else {
        panic!("{:?}", items[1]);
    };
    assert_eq!(
        (
            failure.class,
            failure.code.as_str(),
            failure.message.as_str()
        ),
        (Class::Transient, "BUSY", "locked")
    );
    assert_eq!(failure.retry_after.unwrap().delay.as_millis(), 250);
    let body = format!(
        r#"[{{"millraceparent":"{FIRST}","millracestatus":"filter"}},{{"millraceparent":"{SECOND}","millracestatus":"fail"}}]"#
    );
    let Outcome::Items(items) = of_batch(&two(), &body) else {
        panic!("items");
    };
    assert_eq!(items[0], Item::Filter);
    assert!(
        matches!(&items[1], Item::Failed(f) if f.class == Class::Permanent && f.code == "fail")
    );
}

#[test]
fn a_b1_missing_and_unknown_parents_are_told_as_in_other_batches() {
    let Outcome::Items(items) = of_batch(&two(), "[]") else {
        panic!("items");
    };
    assert!(items.iter().all(
        |item| matches!(item, Item::Failed(f) if f.code == "missing" && f.class == Class::Transient)
    ));
    let fails = |body: &str, what: &str| match of_batch(&two(), body) {
        Outcome::Failed(failure) => assert!(failure.message.contains(what), "{}", failure.message),
        other => panic!("{other:?}"),
    };
    fails("{}", "malformed");
    fails("[1]", "no JSON object");
    fails("[{}]", "no millraceparent");
    fails(
        r#"[{"millraceparent":"x","millracestatus":"filter"}]"#,
        "not in the request",
    );
    fails(
        r#"[{"millraceparent":"q4i5bljimg44cvpdx5qg7icu2e","millracestatus":"filter"}]"#,
        "not in the request",
    );
    fails(
        &format!(r#"[{{"millraceparent":"{FIRST}","millracestatus":"maybe"}}]"#),
        "maybe",
    );
    fails(
        &format!(r#"[{{"millraceparent":"{FIRST}"}}]"#),
        "no `specversion`",
    );
    let twice = format!(r#"{{"millraceparent":"{FIRST}","millracestatus":"filter"}}"#);
    fails(&format!("[{twice},{twice}]"), "comes twice");
}

#[test]
fn a_batch_of_cloud_events_may_be_answered_in_the_plain_form() {
    let c = CallContext {
        request: RequestMode::Batch,
        ..asking(ContentMode::Binary)
    };
    let head = AnswerHead::read(
        200,
        [("content-type", &b"application/json"[..])].into_iter(),
    );
    let body = format!(
        r#"{{"results":[{{"id":"{FIRST}","status":"filter"}},{{"id":"{SECOND}","status":"filter"}}]}}"#
    );
    assert_eq!(
        read_batch(&c, &two(), &head, body.into(), 0),
        Outcome::Items(vec![Item::Filter, Item::Filter])
    );
}

proptest::proptest! {
    #[test]
    fn a_c1_every_value_comes_through_and_json_stays_json(
        value in proptest::option::of(proptest::collection::vec(proptest::num::u8::ANY, 0..60)),
        kind in proptest::option::of(proptest::sample::select(vec!["application/json", "text/plain", "a/b+json", "\u{e4}", STRUCTURED])),
        key in proptest::option::of(".{0,9}"),
    ) {
        let kind = kind.map(str::as_bytes);
        let record = called(1042, key.as_deref().map(str::as_bytes), value.as_deref(), &[(b"content-type", kind)]);
        let events: Vec<serde_json::Value> = serde_json::from_str(&batch_of(vec![record])).unwrap();
        let event = &events[0];
        proptest::prop_assert_eq!(event["millraceid"].as_str(), Some(FIRST));
        let decoded = match (&event["data"], &event["data_base64"]) {
            (serde_json::Value::Null, serde_json::Value::String(text)) => Some(
                base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap(),
            ),
            (serde_json::Value::String(text), _) if !is_json_type(event["datacontenttype"].as_str().unwrap()) => {
                Some(text.clone().into_bytes())
            }
            _ => value.clone().filter(|value| serde_json::from_slice::<serde_json::Value>(value).is_ok()),
        };
        proptest::prop_assert_eq!(decoded, value);
    }

    #[test]
    fn no_answer_breaks_the_reader(body in ".{0,80}", kind in proptest::sample::select(vec![STRUCTURED, BATCH, "text/plain"])) {
        let head = AnswerHead::read(200, [("content-type", kind.as_bytes())].into_iter());
        read_single(&asking(ContentMode::Structured), &head, Bytes::from(body.clone()), 0);
        let c = CallContext { request: RequestMode::Batch, ..asking(ContentMode::Structured) };
        read_batch(&c, &two(), &head, Bytes::from(body), 0);
    }

    #[test]
    fn percent_encoding_comes_back(value in ".{0,30}") {
        let encoded = percent_encoded(&value);
        proptest::prop_assert!(encoded.bytes().all(|c| (0x21..=0x7e).contains(&c)));
        proptest::prop_assert_eq!(answer::decoded(encoded.as_bytes()), value.as_str());
    }
}
