//! When answers agree, and when they do not (J2).

use proptest::prelude::*;

use super::*;
use crate::contract::block::FieldRule;
use crate::evidence::json::Number;

mod shown;

use shown::shown;

fn compare(mode: CompareMode) -> Compare {
    Compare {
        mode,
        ignore: vec![],
        numeric_abs: 1e-6,
        numeric_rel: 0.01,
        fields: vec![],
        noise_baseline: 0.0,
        redact_keep: vec![],
    }
}

fn json() -> Compare {
    compare(CompareMode::Json)
}

fn one(value: &str) -> Answer {
    answer(&[(None, Some(value))])
}

fn answer(results: &[(Option<&str>, Option<&str>)]) -> Answer {
    let bytes = |text: &&str| Bytes::copy_from_slice(text.as_bytes());
    Answer {
        class: if results.is_empty() {
            Class::Filtered
        } else {
            Class::Emitted
        },
        latency_us: Some(1),
        results: Results::Whole(
            results
                .iter()
                .map(|(key, value)| ResultBody {
                    topic: None,
                    key: key.as_ref().map(bytes),
                    value: value.as_ref().map(bytes),
                })
                .collect(),
        ),
    }
}

fn compared(compare: &Compare, green: &Answer, blue: &Answer) -> Comparison {
    let comparator = Comparator::new(compare).unwrap();
    comparator.compare(&Reading::of(green), &Reading::of(blue))
}

/// Compares two values both ways round, and each with itself.
fn check(compare: &Compare, green: &str, blue: &str, expect: Comparison) {
    let (green, blue) = (one(green), one(blue));
    assert_eq!(
        compared(compare, &green, &blue),
        expect,
        "{green:?} {blue:?}"
    );
    assert_eq!(
        compared(compare, &blue, &green),
        expect,
        "{blue:?} {green:?}"
    );
    for same in [&green, &blue] {
        assert!(!matches!(
            compared(compare, same, same),
            Comparison::Disagree(_)
        ));
    }
}

const VALUE: Comparison = Comparison::Disagree(Severity::Value);

#[test]
fn j2_class_and_number_of_results_come_first() {
    let class = Comparison::Disagree(Severity::Class);
    for compare in [
        json(),
        compare(CompareMode::Bytes),
        compare(CompareMode::Label("a".to_owned())),
    ] {
        let (none, two) = (answer(&[]), answer(&[(None, Some("1")), (None, Some("1"))]));
        assert_eq!(compared(&compare, &none, &none), Comparison::Agree);
        assert_eq!(compared(&compare, &none, &one("1")), class);
        assert_eq!(compared(&compare, &two, &one("1")), class);
        let mut dead = none.clone();
        dead.class = Class::DeadLettered;
        assert_eq!(compared(&compare, &none, &dead), class);
        assert_eq!(compared(&compare, &dead, &dead), Comparison::Agree);
        let mut failed = dead.clone();
        failed.class = Class::Failed;
        assert_eq!(compared(&compare, &dead, &failed), class);
    }
}

#[test]
fn j2_bytes_compares_keys_and_values_to_the_last_byte() {
    let compare = compare(CompareMode::Bytes);
    check(&compare, "{\"a\":1}", "{\"a\":1}", Comparison::Agree);
    check(&compare, "{\"a\":1}", "{\"a\": 1}", VALUE);
    let (k, l) = (answer(&[(Some("k"), None)]), answer(&[(Some("l"), None)]));
    assert_eq!(compared(&compare, &k, &l), VALUE);
    assert_eq!(compared(&compare, &k, &answer(&[(None, None)])), VALUE);
    assert_eq!(
        compared(&compare, &one(""), &answer(&[(None, None)])),
        VALUE,
        "a tombstone is not empty"
    );
}

#[test]
fn j2_numbers_are_equal_within_the_larger_of_both_tolerances() {
    let excess = |excess: f64| Comparison::Disagree(Severity::Number(excess));
    let mut compare = json();
    (compare.numeric_abs, compare.numeric_rel) = (0.5, 0.25);
    check(&compare, "100", "75", Comparison::Agree);
    check(&compare, "100", "74", excess(26.0 / 25.0));
    check(&compare, "-100", "-75", Comparison::Agree);
    check(&compare, "1", "0.5", Comparison::Agree);
    check(&compare, "1", "0.25", excess(1.5));
    check(&compare, "1", "-1", excess(4.0));
    check(&compare, "1", "1.0", Comparison::Agree);
    check(&compare, "0", "-0.0", Comparison::Agree);
    (compare.numeric_abs, compare.numeric_rel) = (0.0, 0.0);
    check(&compare, "0.1", "0.1", Comparison::Agree);
    check(&compare, "0.1", "0.10000000000000002", excess(f64::MAX));
    check(
        &compare,
        "9007199254740993",
        "9007199254740992",
        excess(f64::MAX),
    );
}

#[test]
fn j2_nan_equals_nan_and_infinity_equals_only_itself() {
    let far = Comparison::Disagree(Severity::Number(f64::MAX));
    check(&json(), "NaN", "NaN", Comparison::Agree);
    check(
        &json(),
        "[Infinity,-Infinity]",
        "[Infinity,-Infinity]",
        Comparison::Agree,
    );
    check(&json(), "NaN", "1", far.clone());
    check(&json(), "NaN", "Infinity", far.clone());
    check(&json(), "Infinity", "1", far.clone());
    check(&json(), "Infinity", "-Infinity", far);
    check(&json(), "NaN", "\"NaN\"", VALUE);
    check(&json(), "NaN", "null", VALUE);
}

#[test]
fn j2_missing_is_not_null_and_another_type_disagrees() {
    check(&json(), r#"{"a":null}"#, "{}", VALUE);
    check(&json(), r#"{"a":null}"#, r#"{"a":0}"#, VALUE);
    check(&json(), r#"{"a":1}"#, r#"{"a":"1"}"#, VALUE);
    check(&json(), r#"{"a":true}"#, r#"{"a":1}"#, VALUE);
    check(&json(), r#"{"a":[1]}"#, r#"{"a":1}"#, VALUE);
    check(&json(), r#"{"a":[1]}"#, r#"{"a":[1,2]}"#, VALUE);
    check(&json(), "[]", "{}", VALUE);
    check(
        &json(),
        r#"{"a":1,"b":2}"#,
        r#"{ "b": 2, "a": 1 }"#,
        Comparison::Agree,
    );
    check(&json(), r#""a""#, r#""\u0061""#, Comparison::Agree);
}

#[test]
fn j2_values_that_are_no_json_are_compared_as_bytes() {
    check(&json(), "plain", "plain", Comparison::Agree);
    check(&json(), "plain", "plan", VALUE);
    check(&json(), "plain", "1", VALUE);
    check(&json(), "", "", Comparison::Agree);
    let tombstone = answer(&[(None, None)]);
    assert_eq!(compared(&json(), &tombstone, &tombstone), Comparison::Agree);
    assert_eq!(compared(&json(), &tombstone, &one("null")), VALUE);
    let keyed = |key| answer(&[(Some(key), Some("1"))]);
    assert_eq!(compared(&json(), &keyed("a"), &keyed("b")), VALUE);
}

#[test]
fn j2_ignored_paths_are_not_looked_at() {
    let mut compare = json();
    compare.ignore = vec!["at".to_owned(), "items[*].id".to_owned(), "meta".to_owned()];
    check(
        &compare,
        r#"{"at":1,"x":1}"#,
        r#"{"at":9,"x":1}"#,
        Comparison::Agree,
    );
    check(
        &compare,
        r#"{"at":1,"x":1}"#,
        r#"{"x":1}"#,
        Comparison::Agree,
    );
    check(
        &compare,
        r#"{"meta":{"a":[1]}}"#,
        r#"{"meta":7}"#,
        Comparison::Agree,
    );
    check(
        &compare,
        r#"{"items":[{"id":1,"n":1}]}"#,
        r#"{"items":[{"id":2,"n":1}]}"#,
        Comparison::Agree,
    );
    check(
        &compare,
        r#"{"items":[{"id":1,"n":"a"}]}"#,
        r#"{"items":[{"id":2,"n":"b"}]}"#,
        VALUE,
    );
    check(&compare, r#"{"a":{"at":1}}"#, r#"{"a":{"at":"x"}}"#, VALUE);
}

#[test]
fn j2_field_rules_override_and_the_last_one_counts() {
    let mut compare = json();
    let rule = |path: &str, abs, rel| FieldRule {
        path: path.to_owned(),
        abs,
        rel,
    };
    compare.fields = vec![
        rule("scores", Some(0.5), None),
        rule("scores[1]", Some(0.0), Some(0.0)),
    ];
    check(
        &compare,
        r#"{"scores":[1,1]}"#,
        r#"{"scores":[1.5,1]}"#,
        Comparison::Agree,
    );
    check(
        &compare,
        r#"{"scores":[1,1]}"#,
        r#"{"scores":[1,1.001]}"#,
        Comparison::Disagree(Severity::Number(f64::MAX)),
    );
    // The relative tolerance that the first rule leaves out is the general one.
    check(
        &compare,
        r#"{"scores":[100,1]}"#,
        r#"{"scores":[101,1]}"#,
        Comparison::Agree,
    );
    check(
        &compare,
        r#"{"other":1}"#,
        r#"{"other":1.5}"#,
        Comparison::Disagree(Severity::Number(0.5 / 0.015)),
    );
}

#[test]
fn j2_label_looks_at_one_place_only() {
    let compare = compare(CompareMode::Label("out.label".to_owned()));
    let with = |label: &str, score| format!(r#"{{"out":{{"label":{label}}},"score":{score}}}"#);
    check(
        &compare,
        &with("\"cat\"", 1),
        &with("\"cat\"", 9),
        Comparison::Agree,
    );
    check(&compare, &with("\"cat\"", 1), &with("\"dog\"", 1), VALUE);
    check(&compare, &with("1", 1), &with("1.0", 1), Comparison::Agree);
    check(&compare, &with("1", 1), &with("1.0000001", 1), VALUE);
    check(&compare, &with("null", 1), "{}", VALUE);
    check(
        &compare,
        &with("[1]", 1),
        &with("[1.0]", 2),
        Comparison::Agree,
    );
    check(&compare, &with("\"cat\"", 1), "no json", VALUE);
}

#[test]
fn j2_without_any_label_nothing_is_said() {
    // A misspelt path must not look like perfect agreement.
    let compare = compare(CompareMode::Label("lable".to_owned()));
    let no_label = Comparison::Impossible(Obstacle::NoLabel);
    check(
        &compare,
        r#"{"label":1}"#,
        r#"{"label":2}"#,
        no_label.clone(),
    );
    check(&compare, "plain", "text", no_label);
    assert_eq!(
        compared(&compare, &answer(&[]), &answer(&[])),
        Comparison::Agree
    );
}

#[test]
fn j2_labels_are_told_for_the_confusion_matrix() {
    let labels = |mode, green: &Answer, blue: &Answer| {
        let comparator = Comparator::new(&compare(mode)).unwrap();
        let mut labels = Vec::new();
        comparator.labels(&Reading::of(green), &Reading::of(blue), &mut |g, b| {
            labels.push((g, b))
        });
        labels
    };
    let label = || CompareMode::Label("l".to_owned());
    let two = answer(&[(None, Some(r#"{"l":"cat"}"#)), (None, Some("{}"))]);
    let other = answer(&[(None, Some(r#"{"l":true}"#)), (None, Some(r#"{"l":2.0}"#))]);
    let expect = [("cat", "true"), ("(none)", "2")].map(|(g, b)| (g.to_owned(), b.to_owned()));
    assert_eq!(labels(label(), &two, &other), expect);
    assert_eq!(labels(label(), &two, &one("{}")), []);
    assert_eq!(labels(CompareMode::Json, &two, &other), []);
}

#[test]
fn j2_a_named_topic_is_part_of_the_answer() {
    let mut moved = one("1");
    let Results::Whole(results) = &mut moved.results else {
        unreachable!()
    };
    results[0].topic = Some("other".to_owned());
    for mode in [
        CompareMode::Bytes,
        CompareMode::Json,
        CompareMode::Label("$".to_owned()),
    ] {
        assert_eq!(
            compared(&compare(mode.clone()), &one("1"), &moved),
            VALUE,
            "{mode:?}"
        );
        assert_eq!(compared(&compare(mode), &moved, &moved), Comparison::Agree);
    }
}

#[test]
fn j2_answers_too_large_for_a_record_agree_by_fingerprint_or_are_not_compared() {
    let cut = |answer: &Answer| {
        let Results::Whole(results) = &answer.results else {
            unreachable!()
        };
        Answer {
            results: Results::Cut(Fingerprint::of(results)),
            ..answer.clone()
        }
    };
    let (a, b) = (one("[1.0]"), one("[1.000001]"));
    assert_eq!(compared(&json(), &cut(&a), &cut(&a)), Comparison::Agree);
    assert_eq!(compared(&json(), &cut(&a), &a), Comparison::Agree);
    let impossible = Comparison::Impossible(Obstacle::TooLarge);
    assert_eq!(compared(&json(), &cut(&a), &cut(&b)), impossible);
    assert_eq!(compared(&json(), &a, &cut(&b)), impossible);
    let two = answer(&[(None, Some("1")), (None, Some("1"))]);
    assert_eq!(
        compared(&json(), &cut(&a), &two),
        Comparison::Disagree(Severity::Class)
    );
}

#[test]
fn j2_a_wrong_path_names_its_key() {
    let error = |change: &dyn Fn(&mut Compare)| {
        let mut compare = json();
        change(&mut compare);
        Comparator::new(&compare).unwrap_err().to_string()
    };
    let wrong = || vec!["ok".to_owned(), "a[".to_owned()];
    let check = |error: String, key: &str| assert!(error.starts_with(key), "{error}");
    check(
        error(&|c| c.ignore = wrong()),
        "release.verification.compare.ignore[1]: \"a[\" is no path",
    );
    check(
        error(&|c| c.redact_keep = wrong()),
        "release.verification.compare.redact.keep[1]: ",
    );
    check(
        error(&|c| {
            c.fields = vec![FieldRule {
                path: String::new(),
                abs: None,
                rel: None,
            }]
        }),
        "release.verification.compare.fields[0].path: ",
    );
    check(
        error(&|c| c.mode = CompareMode::Label("a..b".to_owned())),
        "release.verification.compare.path: ",
    );
    check(
        error(&|c| c.mode = CompareMode::Label("a[*]".to_owned())),
        "release.verification.compare.path: \"a[*]\" names several",
    );
}

fn value() -> impl Strategy<Value = Json> {
    let number = prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        any::<f64>(),
        -2.0..2.0_f64,
        (-3..3).prop_map(f64::from)
    ];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Flag),
        number.prop_map(|float| Json::Number(Number { float, whole: None })),
        "[ab]{0,2}".prop_map(Json::Text),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::List),
            prop::collection::btree_map("[abc]", inner, 0..3).prop_map(Json::Map),
        ]
    })
}

fn any_compare() -> impl Strategy<Value = Compare> {
    let path =
        || prop::sample::select(vec!["a", "b.a", "a[*]", "c", "[0]", "*"]).prop_map(str::to_owned);
    let mode = prop_oneof![
        Just(CompareMode::Bytes),
        Just(CompareMode::Json),
        Just(CompareMode::Label("a".to_owned()))
    ];
    let tolerance = || prop::sample::select(vec![0.0, 1e-6, 0.1, 2.0]);
    let rule = (
        path(),
        prop::option::of(tolerance()),
        prop::option::of(tolerance()),
    )
        .prop_map(|(path, abs, rel)| FieldRule { path, abs, rel });
    (
        mode,
        prop::collection::vec(path(), 0..2),
        tolerance(),
        tolerance(),
        prop::collection::vec(rule, 0..2),
    )
        .prop_map(|(mode, ignore, numeric_abs, numeric_rel, fields)| Compare {
            mode,
            ignore,
            numeric_abs,
            numeric_rel,
            fields,
            noise_baseline: 0.0,
            redact_keep: vec![],
        })
}

proptest! {
    #[test]
    fn j2_every_answer_agrees_with_itself(value in value(), compare in any_compare()) {
        let answer = one(&value.to_string());
        prop_assert!(!matches!(compared(&compare, &answer, &answer), Comparison::Disagree(_)));
        let shown = shown(&compare, &answer, &answer);
        prop_assert!(shown.iter().all(|field| !field.starts_with('!')), "{shown:?}");
    }

    #[test]
    fn j2_who_is_asked_first_does_not_matter(a in value(), b in value(), compare in any_compare()) {
        let (a, b) = (one(&a.to_string()), one(&b.to_string()));
        prop_assert_eq!(compared(&compare, &a, &b), compared(&compare, &b, &a));
    }

    #[test]
    fn j2_tolerance_is_symmetric_and_wider_ones_forgive_more(
        a in any::<f64>(), b in any::<f64>(), abs in 0.0..10.0_f64, rel in 0.0..2.0_f64
    ) {
        let number = |float| Number { float, whole: None };
        let tolerance = Tolerance { abs, rel };
        let found = tolerance.excess(number(a), number(b));
        prop_assert_eq!(found, tolerance.excess(number(b), number(a)));
        prop_assert_eq!(tolerance.excess(number(a), number(a)), None);
        prop_assert!(found.is_none_or(|excess| excess > 1.0 && excess.is_finite()));
        let wider = Tolerance { abs: abs * 2.0, rel: rel * 2.0 };
        prop_assert!(found.is_some() || wider.excess(number(a), number(b)).is_none());
        if a.is_finite() && b.is_finite() {
            let close = (a - b).abs() <= abs.max(rel * a.abs().max(b.abs()));
            prop_assert_eq!(found.is_none(), close, "the formula of the design");
        }
    }

    #[test]
    fn j2_numbers_near_each_other_agree_within_the_formula(
        a in -1e6..1e6_f64, part in -0.02..0.02_f64
    ) {
        let b = a * (1.0 + part);
        let number = |float| Number { float, whole: None };
        let close = (a - b).abs() <= 1e-6_f64.max(0.01 * a.abs().max(b.abs()));
        let found = Tolerance { abs: 1e-6, rel: 0.01 }.excess(number(a), number(b));
        prop_assert_eq!(found.is_none(), close);
    }
}
