//! Drift, latency and rates (J5). Indexes were computed with 60 digits by Python's `decimal`.

use super::*;
use crate::contract::block::{Compare, CompareMode, FieldRule};
use crate::evidence::record::{ResultBody, Results};

fn comparator(ignore: &[&str], named: &[&str]) -> Comparator {
    let own = |paths: &[&str]| {
        paths
            .iter()
            .map(|path| (*path).to_owned())
            .collect::<Vec<_>>()
    };
    let rule = |path| FieldRule {
        path,
        abs: None,
        rel: None,
    };
    Comparator::new(&Compare {
        mode: CompareMode::Json,
        ignore: own(ignore),
        numeric_abs: 0.0,
        numeric_rel: 0.0,
        fields: own(named).into_iter().map(rule).collect(),
        noise_baseline: 0.0,
        redact_keep: vec![],
    })
    .unwrap()
}

fn answer(value: &str, latency_us: Option<u64>) -> Answer {
    Answer {
        class: Class::Emitted,
        latency_us,
        results: Results::Whole(vec![ResultBody {
            value: Some(value.to_owned().into()),
            ..ResultBody::default()
        }]),
    }
}

fn observe(drift: &mut Drift, comparator: &Comparator, green: &str, blue: &str) {
    let (green, blue) = (answer(green, None), answer(blue, None));
    drift.observe(comparator, &Reading::of(&green), &Reading::of(&blue));
}

fn index(blue: impl Fn(u32) -> f64) -> f64 {
    let mut histogram = Histogram::default();
    for number in 1..=1_000 {
        histogram.add(Whose::Green, f64::from(number));
        histogram.add(Whose::Blue, blue(number));
    }
    stability(&histogram).unwrap()
}

#[test]
fn j5_the_stability_index_is_that_of_green_quantiles() {
    let check =
        |found: f64, expect: f64| assert!((found - expect).abs() < 1e-12, "{found} {expect}");
    check(index(f64::from), 0.0);
    check(index(|_| 500.0), 7.149833879063908);
    check(index(|_| 2_000.0), 12.089582237926762);
    // 1,050 numbers are more than a histogram tells apart: parts may hold a few numbers less.
    let shifted = index(|number| f64::from(number) + 50.0);
    assert!((shifted - 0.4567165281386699).abs() < 0.02, "{shifted}");
    let mut one = Histogram::default();
    (0..100).for_each(|_| one.add(Whose::Green, 7.0));
    assert_eq!(stability(&one), None, "one release alone cannot drift");
    (0..90).for_each(|_| one.add(Whose::Blue, 7.0));
    (0..10).for_each(|_| one.add(Whose::Blue, 8.0));
    check(stability(&one).unwrap(), 0.3118148826254132);
}

#[test]
fn j5_every_numeric_field_is_followed_where_it_stands() {
    let comparator = comparator(&["at"], &[]);
    let mut drift = Drift::default();
    observe(
        &mut drift,
        &comparator,
        r#"{"at":1,"p":[0.25,0.75],"label":"x"}"#,
        r#"{"at":9,"p":[0.5,0.5]}"#,
    );
    observe(
        &mut drift,
        &comparator,
        r#"{"p":[0.75,0.25]}"#,
        r#"{"p":[NaN,0.0],"new":1e200}"#,
    );
    let fields = drift.fields();
    let paths: Vec<_> = fields.iter().map(|field| field.path.as_str()).collect();
    assert_eq!(paths, ["new", "p[0]", "p[1]"]);
    let (new, first, second) = (&fields[0], &fields[1], &fields[2]);
    assert_eq!(
        (new.blue.odd, new.blue.count, new.mean_difference),
        (1, 0, None)
    );
    assert_eq!(
        (first.green.mean, first.green.deviation),
        (Some(0.5), Some(0.25))
    );
    assert_eq!(
        (first.blue.count, first.blue.odd, first.mean_difference),
        (1, 1, Some(0.0))
    );
    assert_eq!(
        (second.mean_difference, second.blue.deviation),
        (Some(-0.25), Some(0.25))
    );
    assert!(!drift.left_out());
}

#[test]
fn j5_of_too_many_fields_the_same_stay_in_whatever_order_they_come() {
    let comparator = comparator(&[], &["z99"]);
    let fields: Vec<_> = (0..100)
        .map(|i| format!("{{\"z{i:02}\":{i},\"list\":[{i}]}}"))
        .collect();
    let fold = |fields: &mut dyn Iterator<Item = &String>| {
        let mut drift = Drift::default();
        fields.for_each(|field| observe(&mut drift, &comparator, field, field));
        drift
    };
    let drift = fold(&mut fields.iter());
    assert_eq!(fold(&mut fields.iter().rev()), drift);
    let paths: Vec<_> = drift.fields().into_iter().map(|field| field.path).collect();
    assert_eq!(paths.len(), EVIDENCE_FIELDS_MAX);
    assert!(
        paths.contains(&"z99".to_owned()),
        "a field that a rule names stays"
    );
    assert!(paths.contains(&"z62".to_owned()) && !paths.contains(&"z63".to_owned()));
    assert!(
        !paths.contains(&"list[0]".to_owned()),
        "elements of lists leave first"
    );
    assert!(drift.left_out());
}

#[test]
fn j5_a_field_with_an_endless_name_is_left_out() {
    let mut drift = Drift::default();
    let name = "x".repeat(EVIDENCE_PATH_BYTES_MAX + 1);
    observe(
        &mut drift,
        &comparator(&[], &[]),
        &format!("{{\"{name}\":1}}"),
        "{}",
    );
    assert_eq!((drift.fields().len(), drift.left_out()), (0, true));
}

#[test]
fn j5_the_latency_ratio_is_over_events_that_both_apps_were_asked() {
    let mut latency = Latency::default();
    for i in 1..=100 {
        latency.observe(&answer("", Some(i * 100)), &answer("", Some(i * 130)));
        latency.observe(&answer("", None), &answer("", Some(99_999_999)));
    }
    assert_eq!(latency.p95_us(Whose::Green), Some(9_500.0));
    assert_eq!(latency.p95_us(Whose::Blue), Some(12_350.0));
    assert_eq!(latency.ratio(), Some(1.3));
    assert_eq!(Latency::default().ratio(), None);
    let mut instant = Latency::default();
    instant.observe(&answer("", Some(0)), &answer("", Some(3)));
    assert_eq!(instant.ratio(), Some(3.0));
}

#[test]
fn j5_rates_count_what_has_no_answer_in_percentage_points() {
    let mut rates = Rates::default();
    for _ in 0..995 {
        rates.observe(Class::Emitted, Class::Filtered);
    }
    for blue in [Class::DeadLettered, Class::Dropped, Class::Failed] {
        rates.observe(Class::Filtered, blue);
    }
    rates.observe(Class::DeadLettered, Class::Emitted);
    rates.observe(Class::Dropped, Class::DeadLettered);
    let hits = |both: [Tally; 2]| both.map(|tally| (tally.hits, tally.total));
    assert_eq!(hits(rates.errors()), [(2, 1_000), (4, 1_000)]);
    assert_eq!(hits(rates.dead_letters()), [(1, 1_000), (2, 1_000)]);
    assert_eq!(delta_points(rates.errors()), Some(0.2));
    assert_eq!(delta_points(rates.dead_letters()), Some(0.1));
    assert_eq!(delta_points(Rates::default().errors()), None);
}
