//! The document: stable, small, and gates never dropped (J8).

use std::time::Duration;

use super::*;
use crate::contract::block::{CompareMode, Gate, GateSource, Verification};
use crate::evidence::compare::Field;
use crate::evidence::record::Source;
use crate::evidence::tests::{evidence, record, verification};
use crate::evidence::verdict::{Circumstances, judge};
use crate::position::{Partition, Position};
use crate::token::Stamp;

fn after(seconds: u64) -> Circumstances {
    Circumstances {
        elapsed: Duration::from_secs(seconds),
        guard_gave_up: false,
        words: Default::default(),
    }
}

fn gated(gates: usize) -> Verification {
    let gate = |i| {
        let source = GateSource::Webhook {
            name: format!("gate {i} {}", "x".repeat(200)),
            url: String::new(),
            timeout: Duration::ZERO,
        };
        Gate::without_bounds(source, OnFail::Reject)
    };
    Verification {
        gates: (0..gates).map(gate).collect(),
        ..verification(CompareMode::Json)
    }
}

/// Everything as large as it can be.
fn huge() -> Summary {
    let text = || Some("\u{1}".repeat(crate::limits::EVIDENCE_SHOWN_BYTES_MAX));
    let disagreement = |offset| Disagreement {
        severity: Severity::Number(f64::MAX),
        source: Source {
            partition: Partition::new("t".repeat(249), i32::MAX),
            position: Position::new(offset),
        },
        green: (Class::DeadLettered, 0),
        blue: (Class::DeadLettered, 0),
        fields: (0..16)
            .map(|i| Field {
                result: i,
                path: "p".repeat(256),
                green: text(),
                blue: text(),
                differs: i < 8,
            })
            .collect(),
    };
    let spread = Spread {
        count: 1 << 50,
        mean: Some(-1.234567890123456e-100),
        deviation: Some(1.234567890123456e-100),
        odd: 1 << 50,
    };
    let field = |i: usize| FieldDrift {
        path: format!("{i:0>256}"),
        green: spread,
        blue: spread,
        mean_difference: Some(1e-100),
        stability: Some(i as f64),
    };
    Summary {
        fields: (0..64).map(field).collect(),
        confusion: (0..1_089).map(|i| (text(), text(), 1_089 - i)).collect(),
        worst: (0..50).map(disagreement).collect(),
        ..evidence(&verification(CompareMode::Json)).summary()
    }
}

fn read(document: &Document) -> Value {
    assert!(document.text.len() <= EVIDENCE_DOCUMENT_BYTES_MAX);
    serde_json::from_str(&document.text).unwrap()
}

#[test]
fn j8_the_document_is_canonical_and_its_digest_is_its_hash() {
    let verification = verification(CompareMode::Json);
    let mut evidence = evidence(&verification);
    for offset in 0..20 {
        let score = |score: f64| Some(format!("{{\"score\":{score}}}"));
        evidence.take(record(Stamp::Live, 0, offset, score(0.5)));
        evidence.take(record(
            Stamp::Shadow,
            0,
            offset,
            score(if offset == 7 { 0.9 } else { 0.5 }),
        ));
    }
    let summary = evidence.summary();
    let document = document(&summary, &judge(&verification, &summary, &after(60))).unwrap();
    let value = read(&document);
    // Another reader and writer of ours, which sorts names and never loses a digit.
    let reread = crate::evidence::json::Json::parse(document.text.as_bytes()).unwrap();
    assert_eq!(reread.to_string(), document.text);
    assert_eq!(canonical::digest(&document.text), document.digest);
    assert_eq!(
        (
            value["verdict"].as_str(),
            value["agreement"]["agreeing"].as_u64()
        ),
        (Some("Pass"), Some(19))
    );
    assert_eq!(value["worst"][0]["source"], "orders/0/7");
    assert_eq!(value["worst"][0]["fields"][0]["path"], "score");
    assert_eq!(value["leftOut"]["worst"], 0);
}

#[test]
fn j8_how_long_it_took_does_not_change_the_digest() {
    let verification = verification(CompareMode::Json);
    let summary = evidence(&verification).summary();
    let digest = |seconds| {
        document(&summary, &judge(&verification, &summary, &after(seconds)))
            .unwrap()
            .digest
    };
    assert_eq!(digest(1), digest(59));
    assert_ne!(digest(59), digest(60), "whether the minimum was met does");
}

#[test]
fn j8_what_is_least_important_is_dropped_first_and_said() {
    let summary = huge();
    let judgement = judge(&gated(3), &summary, &after(60));
    let document = document(&summary, &judgement).unwrap();
    let value = read(&document);
    let length = |name: &str| value[name].as_array().unwrap().len();
    assert_eq!(length("gates"), 3);
    assert_eq!(
        length("worst") as u64 + value["leftOut"]["worst"].as_u64().unwrap(),
        50
    );
    assert_eq!(
        length("fields") as u64 + value["leftOut"]["fields"].as_u64().unwrap(),
        64
    );
    assert_eq!(
        length("confusion") as u64 + value["leftOut"]["confusion"].as_u64().unwrap(),
        1_089
    );
    assert_eq!(value["leftOut"]["fieldsThatAgree"], true);
    assert!(
        length("worst") > 0,
        "the worst disagreements are the last to go"
    );
    assert_eq!(
        value["worst"][0]["source"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next(),
        Some("0")
    );
    if length("fields") > 0 {
        assert_eq!(
            value["fields"][0]["stability"], 63.0,
            "the most moved field stays"
        );
    }
}

#[test]
fn j8_each_step_of_shrinking_drops_something_and_ends() {
    let mut room = Room {
        context: true,
        confusion: 1_089,
        fields: 64,
        worst: 50,
    };
    let mut rooms = vec![room];
    while let Some(smaller) = room.smaller() {
        assert_ne!(smaller, room);
        assert!(smaller.confusion <= room.confusion && smaller.fields <= room.fields);
        assert!(smaller.worst <= room.worst);
        room = smaller;
        rooms.push(room);
        assert!(rooms.len() < 50);
    }
    let nothing = Room {
        context: false,
        confusion: 0,
        fields: 0,
        worst: 0,
    };
    assert_eq!(room, nothing);
    let steady = rooms.iter().position(|room| room.worst < 50).unwrap();
    assert_eq!((rooms[steady].fields, rooms[steady].confusion), (8, 16));
}

#[test]
fn j8_gates_are_never_dropped_and_too_many_are_refused() {
    let summary = huge();
    let fits = judge(&gated(100), &summary, &after(60));
    let value = read(&document(&summary, &fits).unwrap());
    assert_eq!(value["gates"].as_array().unwrap().len(), 100);
    assert!(
        value["worst"].as_array().unwrap().len() < 5,
        "what else there is gives way"
    );
    let error = document(&summary, &judge(&gated(300), &summary, &after(60))).unwrap_err();
    assert!(error.to_string().contains("fewer gates"), "{error}");
}

#[test]
fn j8_a_count_beyond_json_is_refused_not_rounded() {
    let mut summary = huge();
    summary.counts.gaps = (1 << 53) + 1;
    let judgement = judge(&gated(0), &summary, &after(60));
    assert!(matches!(
        document(&summary, &judgement),
        Err(Error::Number(_))
    ));
}
