//! Records of the verification topic: their spelling, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::limits::EVIDENCE_RECORD_BYTES_MAX;

fn record(class: Class, results: Vec<ResultBody>) -> Record {
    Record {
        source: Source {
            partition: Partition::new("orders", 3),
            position: Position::new(1042),
        },
        release: ReleaseId::new("r12-77ab0e41").unwrap(),
        mode: Stamp::Shadow,
        answer: Answer {
            class,
            latency_us: Some(1_834),
            results: Results::Whole(results),
        },
    }
}

fn body(key: Option<&'static [u8]>, value: Option<&'static [u8]>) -> ResultBody {
    ResultBody {
        topic: None,
        key: key.map(Bytes::from_static),
        value: value.map(Bytes::from_static),
    }
}

type Headers = Vec<(Vec<u8>, Vec<u8>)>;

fn headers(record: &Record) -> Headers {
    let mut headers = Vec::new();
    record.headers(&mut |name, value| headers.push((name.to_vec(), value.to_vec())));
    headers
}

fn decode(headers: &[(Vec<u8>, Vec<u8>)], value: &[u8]) -> Result<Record, Error> {
    let headers = headers
        .iter()
        .map(|(name, value)| (&name[..], Some(&value[..])));
    Record::decode(headers, Some(value))
}

#[test]
fn j1_a_record_is_spelt_like_this() {
    let mut results = vec![
        body(Some(b"cust-1"), Some(br#"{"score":0.5}"#)),
        body(None, Some(b"\x00\xff")),
        body(Some(b"\xff"), None),
    ];
    results[1].topic = Some("orders-alt".to_owned());
    let record = record(Class::Emitted, results);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let headers = headers(&record);
    let shown: Vec<_> = headers
        .iter()
        .map(|(n, v)| format!("{}: {}", text(n), text(v)))
        .collect();
    assert_eq!(
        shown,
        [
            "millrace-src: orders/3/1042",
            "millrace-release: r12-77ab0e41",
            "millrace-mode: shadow",
            "millrace-class: emitted",
            "millrace-latency-us: 1834",
        ]
    );
    let value = record.value(usize::MAX);
    assert_eq!(
        text(&value),
        r#"[{"key":"cust-1","value":"{\"score\":0.5}"},{"topic":"orders-alt","key":null,"value_base64":"AP8="},{"key_base64":"/w==","value":null}]"#
    );
    assert_eq!(decode(&headers, &value), Ok(record));
}

#[test]
fn j1_an_answer_beyond_the_limit_becomes_its_fingerprint() {
    let whole = record(Class::Emitted, vec![body(Some(b"k"), Some(&[b'x'; 200]))]);
    let exact = whole.value(usize::MAX).len();
    assert_eq!(whole.value(exact).len(), exact);
    let value = whole.value(exact - 1);
    // SHA-256 of three lengths (big-endian u64, all ones for null) and their bytes, by Python.
    assert_eq!(
        String::from_utf8(value.clone()).unwrap(),
        r#"{"results":1,"bytes":201,"sha256":"595318ffac79d822a5cf20fc8cbc90d1b24e87b5a2a26e83fee0470c888c5df0"}"#
    );
    let read = decode(&headers(&whole), &value).unwrap();
    let Results::Whole(results) = &whole.answer.results else {
        unreachable!()
    };
    assert_eq!(read.answer.results, Results::Cut(Fingerprint::of(results)));
    assert_eq!(read.value(usize::MAX), value);
}

#[test]
fn j1_no_value_exceeds_the_limit_of_a_record() {
    let huge = ResultBody {
        value: Some(Bytes::from(vec![1; EVIDENCE_RECORD_BYTES_MAX])),
        ..ResultBody::default()
    };
    // Control characters take six bytes each when they are spelt.
    let swells = ResultBody {
        value: Some(Bytes::from(vec![1; EVIDENCE_RECORD_BYTES_MAX / 2])),
        ..ResultBody::default()
    };
    for result in [huge, swells] {
        let value = record(Class::Emitted, vec![result]).value(usize::MAX);
        assert!(value.starts_with(b"{\"results\":1,"));
    }
    let error = Record::decode(
        headers(&record(Class::Filtered, vec![]))
            .iter()
            .map(|(n, v)| (&n[..], Some(&v[..]))),
        Some(&vec![b' '; EVIDENCE_RECORD_BYTES_MAX + 1]),
    );
    assert!(matches!(error, Err(Error::TooLarge { .. })));
}

#[test]
fn j1_a_wrong_header_is_named() {
    let good = headers(&record(Class::Filtered, vec![]));
    let check = |change: &dyn Fn(&mut Headers), expect: &str| {
        let mut headers = good.clone();
        change(&mut headers);
        let error = decode(&headers, b"[]").unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    for (i, name) in [
        "millrace-src",
        "millrace-release",
        "millrace-mode",
        "millrace-class",
        "millrace-latency-us",
    ]
    .iter()
    .enumerate()
    {
        check(&|h| drop(h.remove(i)), &format!("has no header `{name}`"));
        check(
            &|h| h.push(h[i].clone()),
            &format!("`{name}` more than once"),
        );
        check(&|h| h[i].1 = b"\xff".to_vec(), &format!("`{name}` is"));
    }
    for (i, wrong) in [
        (0, "orders/3"),
        (0, "orders/3/1/1"),
        (0, "/3/1"),
        (0, "orders/-1/1"),
        (0, "orders/03/1"),
        (0, "orders/3/9223372036854775808"),
        (0, "orders/2147483648/1"),
        (1, "-"),
        (1, ""),
        (2, "Live"),
        (2, ""),
        (3, "dead-lettered"),
        (4, "+1"),
        (4, "01"),
        (4, "1.5"),
        (4, ""),
        (4, "18446744073709551616"),
    ] {
        check(&|h| h[i].1 = wrong.as_bytes().to_vec(), "but should be");
    }
}

#[test]
fn j1_the_latency_may_miss_only_where_the_app_gave_no_answer() {
    for class in Class::ALL {
        let results = match class {
            Class::Emitted => vec![ResultBody::default()],
            _ => vec![],
        };
        let mut record = record(class, results);
        record.answer.latency_us = None;
        let read = decode(&headers(&record), &record.value(usize::MAX));
        assert_eq!(read.is_ok(), !class.is_answered(), "{class:?}");
    }
}

#[test]
fn j1_a_wrong_value_says_what_is_wrong() {
    let check = |class, value: &str, expect: &str| {
        let error = decode(&headers(&record(class, vec![])), value.as_bytes());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    use Class::{Emitted, Filtered};
    check(Filtered, "", "no JSON");
    check(Filtered, "7", "neither an array");
    check(Filtered, "{}", "not results, bytes and sha256");
    check(
        Emitted,
        r#"{"results":1,"bytes":1,"sha256":"00"}"#,
        "not results",
    );
    check(Emitted, "[7]", "result 0 is no object");
    check(
        Emitted,
        r#"[{"key":null,"value":""},{}]"#,
        "result 1 needs either `key`",
    );
    check(Emitted, r#"[{"key":null,"value":7}]"#, "either `value` or");
    check(
        Emitted,
        r#"[{"key":null,"value":"","value_base64":"/w=="}]"#,
        "either `value` or",
    );
    check(
        Emitted,
        r#"[{"key":null,"value_base64":"QQ=="}]"#,
        "beyond UTF-8",
    );
    check(Emitted, r#"[{"key":null,"value_base64":"!"}]"#, "no base64");
    check(
        Emitted,
        r#"[{"key":null,"value":null,"extra":1}]"#,
        "unknown member `extra`",
    );
    check(
        Emitted,
        r#"[{"key":null,"value":null,"topic":""}]"#,
        "no name",
    );
    check(Emitted, "[]", "says `emitted`, but holds 0");
    check(
        Filtered,
        r#"[{"key":null,"value":null}]"#,
        "says `filtered`, but holds 1",
    );
}

fn bytes() -> impl Strategy<Value = Option<Bytes>> {
    prop::option::of(prop_oneof![
        ".{0,12}".prop_map(Bytes::from),
        prop::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from),
    ])
}

proptest! {
    #[test]
    fn j1_what_is_written_reads_back(
        topic in "[a-zA-Z0-9._-]{1,20}", number in 0..=i32::MAX, offset in 0..=i64::MAX,
        latency in prop::option::of(any::<u64>()), mode in 0..3_usize, class in 0..5_usize,
        parts in prop::collection::vec((prop::option::of("[a-z]{1,5}"), bytes(), bytes()), 1..4),
        max in prop_oneof![Just(usize::MAX), 0..100_usize],
    ) {
        let class = Class::ALL[class];
        let results = match class {
            Class::Emitted => parts.into_iter().map(|(topic, key, value)| ResultBody { topic, key, value }).collect(),
            _ => vec![],
        };
        let record = Record {
            source: Source { partition: Partition::new(topic, number), position: Position::new(offset) },
            release: ReleaseId::new("r1-00000000").unwrap(),
            mode: [Stamp::Live, Stamp::Shadow, Stamp::Baseline][mode],
            answer: Answer { class, latency_us: latency.or(Some(1)), results: Results::Whole(results.clone()) },
        };
        let read = decode(&headers(&record), &record.value(max)).unwrap();
        match &read.answer.results {
            Results::Whole(_) => prop_assert_eq!(&read, &record),
            Results::Cut(cut) => prop_assert_eq!(cut, &Fingerprint::of(&results)),
        }
        prop_assert_eq!((read.source, read.mode), (record.source, record.mode));
    }

    #[test]
    fn j1_no_bytes_make_the_reader_panic(value in prop::collection::vec(any::<u8>(), 0..64), text in r#"[\[{:,"a-z0-9\]}]{0,40}"#) {
        let good = headers(&record(Class::Emitted, vec![ResultBody::default()]));
        drop(decode(&good, &value));
        drop(decode(&good, text.as_bytes()));
    }
}
