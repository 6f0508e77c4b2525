//! A-B1, A-B2: matching, item statuses, whole failures, sharing of memory.

use std::time::Duration;

use super::super::tests::{call, called, context, example};
use super::*;
use crate::outcome::{Output, OutputKey};

const NOW: i64 = 1_767_225_600_000;
const IDS: [&str; 4] = [
    "stiywp5rs45zgqavk6csdpztk2",
    "cp3xig2odhwtzlgahrgdkux7nn",
    "q4i5bljimg44cvpdx5qg7icu2e",
    "5omehuwsz3uzkbz7cdab5a4xvr",
];

fn read_of(call: &Call, status: u16, headers: &[(&str, &str)], body: Bytes) -> Outcome {
    let headers = headers
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()));
    let c = CallContext {
        request: RequestMode::Batch,
        ..context()
    };
    read_batch(&c, call, &AnswerHead::read(status, headers), body, NOW)
}

fn read(status: u16, body: &str) -> Outcome {
    read_of(
        &example(),
        status,
        &[],
        Bytes::copy_from_slice(body.as_bytes()),
    )
}

fn items(outcome: Outcome) -> Vec<Item> {
    match outcome {
        Outcome::Items(items) => items,
        other => panic!("{other:?}"),
    }
}

fn results(results: &[String]) -> String {
    format!(r#"{{"results":[{}]}}"#, results.join(","))
}

fn ok(index: usize, value: &str) -> String {
    format!(
        r#"{{"id":"{}","status":"ok","outputs":[{{"value":"{value}"}}]}}"#,
        IDS[index]
    )
}

/// What came of each event, in a word.
fn words(items: &[Item]) -> Vec<String> {
    let word = |item: &Item| match item {
        Item::Emit(output) => String::from_utf8(output.value.clone().unwrap().to_vec()).unwrap(),
        Item::EmitMany(outputs) => outputs.len().to_string(),
        Item::Filter => "filter".to_owned(),
        Item::Failed(failure) => format!("{:?} {}", failure.class, failure.code),
    };
    items.iter().map(word).collect()
}

fn malformed(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Failed(failure) if failure.kind == FailureKind::Malformed => {
            assert_eq!(
                (failure.class, failure.attempted),
                (Class::Transient, true),
                "D-R2"
            );
            &failure.message
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_b1_the_published_batch_answer_is_read() {
    let body = r#"{"results":[
{"id":"stiywp5rs45zgqavk6csdpztk2","status":"ok","outputs":[{"value":"{\"intValue\":101}"}]},
{"id":"cp3xig2odhwtzlgahrgdkux7nn","status":"filter"},
{"id":"q4i5bljimg44cvpdx5qg7icu2e","status":"retry","retry_after_ms":2000,"error":{"code":"DB_BUSY","message":"locked"}},
{"id":"5omehuwsz3uzkbz7cdab5a4xvr","status":"fail","error":{"code":"BAD_INPUT","message":"empty"}}]}"#;
    assert_eq!(body.len(), 384);
    let items = items(read(200, body));
    assert_eq!(
        items[0],
        Item::Emit(Output {
            value: Some(Bytes::from_static(b"{\"intValue\":101}")),
            ..Output::default()
        })
    );
    assert_eq!(items[1], Item::Filter);
    let retry = Failure {
        class: Class::Transient,
        kind: FailureKind::Refused,
        code: "DB_BUSY".to_owned(),
        message: "locked".to_owned(),
        body: Bytes::from_static(br#"{"code":"DB_BUSY","message":"locked"}"#),
        attempted: true,
        retry_after: Some(RetryAfter {
            delay: Duration::from_secs(2),
            scope: RetryScope::Event,
        }),
    };
    assert_eq!(items[2], Item::Failed(retry.clone()));
    let fail = Failure {
        class: Class::Permanent,
        code: "BAD_INPUT".to_owned(),
        message: "empty".to_owned(),
        body: Bytes::from_static(br#"{"code":"BAD_INPUT","message":"empty"}"#),
        retry_after: None,
        ..retry
    };
    assert_eq!(items[3], Item::Failed(fail));
}

#[test]
fn a_b1_items_match_by_id_in_any_order() {
    let orders = [
        [0, 1, 2, 3],
        [3, 2, 1, 0],
        [2, 0, 3, 1],
        [1, 0, 3, 2],
        [1, 2, 3, 0],
    ];
    for order in orders {
        let body = results(&order.map(|index| ok(index, &index.to_string())));
        assert_eq!(
            words(&items(read(200, &body))),
            ["0", "1", "2", "3"],
            "{order:?}"
        );
    }
}

#[test]
fn a_b1_what_is_missing_is_tried_again() {
    let check = |given: &[String], expect: [&str; 4]| {
        let items = items(read(200, &results(given)));
        assert_eq!(words(&items), expect, "{given:?}");
        for item in &items {
            if let Item::Failed(failure) = item {
                assert!(failure.attempted, "counted");
            }
        }
    };
    let lost = "Transient missing";
    check(&[], [lost; 4]);
    check(&[ok(3, "d"), ok(1, "b")], [lost, "b", lost, "d"]);
    let bare = |rest: &str| format!(r#"{{"status":"ok","id":"{}"{rest}}}"#, IDS[0]);
    check(&[bare("")], [lost; 4]);
    check(&[bare(r#","outputs":null"#)], [lost; 4]);
    check(&[bare(r#","outputs":[]"#)], ["filter", lost, lost, lost]);
    check(
        &[bare(
            r#","outputs":[{"value":"a"},{"value":"b"},{"value":"c"}]"#,
        )],
        ["3", lost, lost, lost],
    );
}

#[test]
fn a_b1_an_unknown_or_doubled_id_makes_the_whole_answer_malformed() {
    let all: Vec<String> = (0..4).map(|index| ok(index, "x")).collect();
    let with = |more: String| results(&[all.clone(), vec![more]].concat());
    let stranger = ok(0, "x").replace(IDS[0], "aaaaaaaaaaaaaaaaaaaaaaaaaa");
    assert!(malformed(&read(200, &with(stranger))).contains("not in the request"));
    assert!(
        malformed(&read(200, &with(ok(0, "x").replace(IDS[0], "7"))))
            .contains("not in the request")
    );
    for index in 0..4 {
        assert!(malformed(&read(200, &with(ok(index, "x")))).contains("comes twice"));
        assert!(
            malformed(&read(200, &results(&[ok(index, "x"), ok(index, "x")])))
                .contains("comes twice")
        );
    }
}

#[test]
fn a_replayed_event_may_stand_in_a_call_twice() {
    let event = |offset, value: &[u8]| {
        let id = EventId::parse(IDS[0].as_bytes()).unwrap();
        Called {
            id,
            ..called(offset, None, Some(value), &[])
        }
    };
    let twice = call(vec![
        event(7, b"a"),
        called(1043, None, None, &[]),
        event(9, b"b"),
    ]);
    let read = |given: &[String]| read_of(&twice, 200, &[], Bytes::from(results(given)));
    let expect = ["first", "middle", "second"];
    assert_eq!(
        words(&items(read(&[
            ok(0, "first"),
            ok(1, "middle"),
            ok(0, "second")
        ]))),
        expect
    );
    assert_eq!(
        words(&items(read(&[
            ok(0, "first"),
            ok(0, "second"),
            ok(1, "middle")
        ]))),
        expect
    );
    assert_eq!(
        words(&items(read(&[ok(1, "middle"), ok(0, "first")]))),
        ["Transient missing", "middle", "first"]
    );
    malformed(&read(&[ok(0, "a"), ok(0, "b"), ok(0, "c")]));
}

#[test]
fn a_b1_malformed_answers_are_malformed_as_a_whole() {
    let item = |text: &str| format!(r#"{{"results":[{text}]}}"#);
    let id = format!(r#""id":"{}""#, IDS[0]);
    for body in [
        String::new(),
        "[]".to_owned(),
        "{}".to_owned(),
        r#"{"results":null}"#.to_owned(),
        r#"{"results":[],"results":[]}"#.to_owned(),
        r#"{"results":[]}]"#.to_owned(),
        item("1"),
        item(&format!("{{{id}}}")),
        item(r#"{"status":"ok","outputs":[]}"#),
        item(&format!(r#"{{{id},"status":"done"}}"#)),
        item(&format!(r#"{{{id},"status":1}}"#)),
        item(&format!(r#"{{{id},{id},"status":"ok"}}"#)),
        item(&format!(r#"{{{id},"status":"ok","outputs":{{}}}}"#)),
        item(&format!(r#"{{{id},"status":"ok","outputs":[{{}}]}}"#)),
        item(&format!(
            r#"{{{id},"status":"retry","retry_after_ms":"2"}}"#
        )),
    ] {
        malformed(&read(200, &body));
    }
    malformed(&read_of(
        &example(),
        200,
        &[],
        Bytes::from_static(b"{\"results\":[\xff]}"),
    ));
    malformed(&read_of(
        &example(),
        200,
        &[("millrace-result", "?")],
        Bytes::from_static(b"{\"results\":[]}"),
    ));
}

#[test]
fn a_b2_a_status_speaks_for_every_item_and_413_for_the_size() {
    let check = |status, expect: Class| match read(status, "x") {
        Outcome::Failed(failure) => assert_eq!(failure.class, expect, "{status}"),
        other => panic!("{other:?}"),
    };
    check(500, Class::Transient);
    check(400, Class::Permanent);
    check(404, Class::Misconfigured);
    check(302, Class::Misconfigured);
    check(202, Class::Misconfigured);
    let Outcome::TooLarge(failure) = read(413, "x") else {
        panic!("413 halves")
    };
    assert_eq!(
        (failure.class, failure.code.as_str()),
        (Class::Permanent, "413")
    );
    malformed(&read(206, "x"));
    for status in [200, 201, 203, 207] {
        assert_eq!(
            words(&items(read(status, &results(&[]))))[0],
            "Transient missing"
        );
    }
    for status in [204, 205] {
        assert_eq!(items(read(status, "")), vec![Item::Filter; 4]);
    }
    let filter = read_of(
        &example(),
        200,
        &[("Millrace-Result", "filter")],
        Bytes::new(),
    );
    assert_eq!(items(filter), vec![Item::Filter; 4]);
}

#[test]
fn an_answer_above_its_limit_asks_for_smaller_batches() {
    let c = CallContext {
        max_response_bytes: 3,
        ..context()
    };
    let outcome = read_batch(
        &c,
        &example(),
        &AnswerHead::read(200, [].into_iter()),
        Bytes::from_static(b"abcd"),
        NOW,
    );
    assert!(
        matches!(
            outcome,
            Outcome::TooLarge(Failure {
                kind: FailureKind::Oversized,
                ..
            })
        ),
        "{outcome:?}"
    );
}

#[test]
fn a_b1_waits_of_items_are_numbers_of_any_kind() {
    let check = |text: &str, expect: Option<u64>| {
        let body = format!(
            r#"{{"results":[{{"id":"{}","status":"retry"{text}}}]}}"#,
            IDS[0]
        );
        let items = items(read(200, &body));
        let Item::Failed(failure) = &items[0] else {
            panic!("{items:?}")
        };
        assert_eq!(
            failure.retry_after.map(|wait| wait.delay),
            expect.map(Duration::from_micros),
            "{text}"
        );
        assert_eq!((failure.code.as_str(), failure.attempted), ("retry", true));
    };
    check("", None);
    check(r#","retry_after_ms":null"#, None);
    check(r#","retry_after_ms":0"#, Some(0));
    check(r#","retry_after_ms":1.5"#, Some(1_500));
    check(r#","retry_after_ms":-3"#, Some(0));
    check(r#","retry_after_ms":1e300"#, Some(300_000_000));
    check(r#","error":"text""#, None);
    check(r#","error":null,"unknown":[{}]"#, None);
}

#[test]
fn values_share_the_memory_of_the_answer() {
    let plain = results(&[
        ok(0, "plain"),
        ok(1, r#"with \"quotes\""#),
        ok(2, r"and \n more"),
        ok(3, "plain too"),
    ]);
    let body = Bytes::from(plain);
    let memory = body.as_ptr_range();
    let items = items(read_of(&example(), 200, &[], body.clone()));
    let value = |index: usize| match &items[index] {
        Item::Emit(output) => output.value.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    for index in [0, 3] {
        assert!(
            memory.contains(&value(index).as_ptr()),
            "sliced out of the body"
        );
    }
    let (second, third) = (value(1), value(2));
    assert_eq!(
        (&second[..], &third[..]),
        (&b"with \"quotes\""[..], &b"and \n more"[..])
    );
    assert_eq!(
        second.as_ptr_range().end,
        third.as_ptr(),
        "unescaped into one buffer"
    );
}

#[test]
fn keys_headers_and_json_values_of_items_are_read() {
    let body = format!(
        r#"{{"results":[{{"outputs":[{{"value_json":[1, 2],"key":null,"headers":[["a",null]]}}],"id":"{}","status":"ok"}}]}}"#,
        IDS[2]
    );
    let expect = Output {
        value: Some(Bytes::from_static(b"[1,2]")),
        key: OutputKey::Null,
        headers: vec![(Bytes::from_static(b"a"), None)],
        ..Output::default()
    };
    assert_eq!(items(read(200, &body))[2], Item::Emit(expect));
}

proptest::proptest! {
    #[test]
    fn any_batch_answer_has_a_meaning(body in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
        read_of(&example(), 200, &[], Bytes::from(body));
    }

    #[test]
    fn a_damaged_batch_answer_is_read_or_malformed(at in 0_usize..300, byte: u8) {
        let mut body = results(&[ok(0, "a"), ok(1, r"b\n"), ok(2, "c"), ok(3, "d")]).into_bytes();
        let at = at % body.len();
        body[at] = byte;
        match read_of(&example(), 200, &[], Bytes::from(body)) {
            Outcome::Items(items) => assert_eq!(items.len(), 4),
            outcome => { malformed(&outcome); }
        }
    }

    #[test]
    fn a_b5_texts_come_back_as_they_were_sent(texts in proptest::collection::vec(".{0,30}", 4)) {
        let given: Vec<String> = texts.iter().zip(IDS).map(|(text, id)| {
            format!(r#"{{"id":"{id}","status":"ok","outputs":[{{"value":{}}}]}}"#, serde_json::to_string(text).unwrap())
        }).collect();
        assert_eq!(words(&items(read(200, &results(&given)))), texts);
    }
}
