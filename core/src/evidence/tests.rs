//! The whole fold: from records of the topic to numbers that a restart does not change.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::contract::block::{Compare, CompareMode};
use crate::evidence::digest::document;
use crate::evidence::record::{Class, ResultBody, Results};
use crate::evidence::verdict::{Circumstances, judge};
use crate::position::{Partition, Position};
use crate::token::Stamp;

pub(super) fn verification(mode: CompareMode) -> Verification {
    Verification {
        min_events: 10,
        min_duration: Duration::from_secs(60),
        max_duration: Duration::from_secs(600),
        min_partitions: 1,
        compare: Compare {
            mode,
            ignore: vec![],
            numeric_abs: 1e-6,
            numeric_rel: 0.01,
            fields: vec![],
            noise_baseline: 0.25,
            redact_keep: vec![],
        },
        gates: vec![],
    }
}

pub(super) fn evidence(verification: &Verification) -> Evidence {
    let release = |id| ReleaseId::new(id).unwrap();
    Evidence::new(release("green"), release("blue"), verification, 4).unwrap()
}

pub(super) fn record(mode: Stamp, partition: i32, offset: i64, value: Option<String>) -> Record {
    let class = if value.is_some() {
        Class::Emitted
    } else {
        Class::DeadLettered
    };
    let release = if mode == Stamp::Shadow {
        "blue"
    } else {
        "green"
    };
    let body = |value: String| ResultBody {
        value: Some(value.into()),
        ..ResultBody::default()
    };
    Record {
        source: Source {
            partition: Partition::new("orders", partition),
            position: Position::new(offset),
        },
        release: ReleaseId::new(release).unwrap(),
        mode,
        answer: Answer {
            class,
            latency_us: Some(1_000 + offset.unsigned_abs()),
            results: Results::Whole(value.into_iter().map(body).collect()),
        },
    }
}

#[test]
fn j1_to_j6_the_numbers_of_a_small_story() {
    let mut evidence = evidence(&verification(CompareMode::Json));
    let value = |label: &str, score: f64| Some(format!(r#"{{"label":"{label}","score":{score}}}"#));
    for offset in 0..100 {
        evidence.take(record(Stamp::Live, 0, offset, value("a", 0.5)));
        let blue = match offset {
            // Within 1 %.
            0..90 => value("a", 0.504),
            90..95 => value("a", 0.6),
            95..98 => value("b", 0.5),
            _ => None,
        };
        evidence.take(record(Stamp::Shadow, 0, offset, blue));
        // Green is consistent but at one event of those that are asked again.
        evidence.take(record(
            Stamp::Baseline,
            0,
            offset,
            value("a", if offset < 5 { 0.9 } else { 0.5 }),
        ));
    }
    evidence.unreadable();
    let summary = evidence.summary();
    assert_eq!((summary.agreement.total, summary.agreement.hits), (100, 90));
    assert_eq!(summary.counts.asked_again, summary.noise.total);
    assert_eq!(summary.counts.asked_again + summary.counts.unasked, 100);
    assert_eq!((summary.partitions, summary.unreadable), (1, 1));
    assert_eq!(summary.errors.map(|tally| tally.hits), [0, 2]);
    let worst: Vec<_> = summary
        .worst
        .iter()
        .map(|one| (one.severity.as_str(), one.source.position.offset()))
        .collect();
    let expect: Vec<_> = [("class", 98..100), ("value", 95..98), ("number", 90..95)]
        .into_iter()
        .flat_map(|(severity, offsets)| offsets.map(move |offset| (severity, offset)))
        .collect();
    assert_eq!(worst, expect);
    assert_eq!(summary.fields.len(), 1);
    assert_eq!(summary.fields[0].green.mean, Some(0.5));
    assert_eq!(
        (summary.fields[0].green.count, summary.fields[0].blue.count),
        (100, 98)
    );
    assert_eq!(summary.latency_ratio, Some(1.0));
}

#[test]
fn j2_labels_become_a_confusion_matrix() {
    let mut evidence = evidence(&verification(CompareMode::Label("label".to_owned())));
    for (offset, (green, blue)) in [("a", "a"), ("a", "b"), ("a", "a"), ("b", "a")]
        .into_iter()
        .enumerate()
    {
        let label = |label| Some(format!(r#"{{"label":"{label}"}}"#));
        let offset = i64::try_from(offset).unwrap();
        evidence.take(record(Stamp::Live, 0, offset, label(green)));
        evidence.take(record(Stamp::Shadow, 0, offset, label(blue)));
    }
    let summary = evidence.summary();
    let cell = |g: &str, b: &str, n| (Some(g.to_owned()), Some(b.to_owned()), n);
    assert_eq!(
        summary.confusion,
        [cell("a", "a", 2), cell("a", "b", 1), cell("b", "a", 1)]
    );
    assert_eq!((summary.agreement.hits, summary.no_label), (2, 0));
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let value = prop_oneof![
        1 => Just(None),
        9 => (0..3_u8, -1.0..1.0_f64).prop_map(|(label, score)| Some(format!(
            r#"{{"label":"l{label}","score":{score},"more":[{},{}]}}"#, score * 1e9, score / 3.0
        ))),
    ];
    let record =
        (0..3_usize, 0..3_i32, 0..40_i64, value).prop_map(|(mode, partition, offset, value)| {
            record(
                [Stamp::Live, Stamp::Shadow, Stamp::Baseline][mode],
                partition,
                offset,
                value,
            )
        });
    // The first copy counts, so which of two different copies is first matters: one of each.
    prop::collection::vec(record, 0..300).prop_map(|mut records| {
        records.sort_by(|a, b| (&a.source, a.mode.as_str()).cmp(&(&b.source, b.mode.as_str())));
        records.dedup_by(|a, b| a.source == b.source && a.mode == b.mode);
        records
    })
}

fn fold(verification: &Verification, records: &[Record]) -> (Summary, String) {
    let mut evidence = evidence(verification);
    records
        .iter()
        .for_each(|record| evidence.take(record.clone()));
    let summary = evidence.summary();
    let circumstances = Circumstances {
        elapsed: Duration::from_secs(100),
        guard_gave_up: false,
        words: Default::default(),
    };
    let judgement = judge(verification, &summary, &circumstances);
    let digest = document(&summary, &judgement).unwrap().digest;
    (summary, digest)
}

proptest! {
    #[test]
    fn j1_and_j8_neither_restart_nor_order_of_arrival_changes_evidence_or_digest(
        (once, shuffled) in records().prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle())),
        label in any::<bool>(),
    ) {
        let mode = if label { CompareMode::Label("label".to_owned()) } else { CompareMode::Json };
        let verification = verification(mode);
        let found = fold(&verification, &once);
        prop_assert_eq!(&fold(&verification, &once), &found);
        prop_assert_eq!(&fold(&verification, &shuffled), &found);
    }
}
