//! What is kept of a disagreement for people, and what is not (J6).

use super::*;

pub(super) fn shown(compare: &Compare, green: &Answer, blue: &Answer) -> Vec<String> {
    let comparator = Comparator::new(compare).unwrap();
    let fields = comparator.show(&Reading::of(green), &Reading::of(blue));
    let text = |side: &Option<String>| side.clone().unwrap_or("-".to_owned());
    fields
        .iter()
        .map(|f| {
            let mark = if f.differs { "!" } else { "" };
            format!(
                "{mark}{}:{}={}|{}",
                f.result,
                f.path,
                text(&f.green),
                text(&f.blue)
            )
        })
        .collect()
}

#[test]
fn j6_differing_fields_come_first_then_kept_then_other_compared_ones() {
    let mut compare = json();
    compare.ignore = vec!["customer".to_owned(), "at".to_owned()];
    compare.redact_keep = vec!["customer.country".to_owned()];
    let green = one(r#"{"a":1,"at":5,"customer":{"country":"NL","name":"Ann"},"label":"cat"}"#);
    let blue = one(r#"{"a":1,"at":6,"customer":{"country":"BE","name":"Ann"},"label":"dog"}"#);
    assert_eq!(
        shown(&compare, &green, &blue),
        [
            "!0:label=\"cat\"|\"dog\"",
            "0:customer.country=\"NL\"|\"BE\"",
            "0:a=1|1",
        ]
    );
}

#[test]
fn j6_what_is_not_compared_never_stays() {
    let secret = one(r#"{"label":"cat","name":"Ann"}"#);
    let other = one(r#"{"label":"dog","name":"Bob"}"#);
    let label = compare(CompareMode::Label("label".to_owned()));
    assert_eq!(shown(&label, &secret, &other), ["!0:label=\"cat\"|\"dog\""]);
    assert_eq!(
        shown(&compare(CompareMode::Bytes), &secret, &other),
        ["!0:(value)=28 bytes|28 bytes"]
    );
    let keyed = |key| answer(&[(Some(key), Some("1"))]);
    assert_eq!(
        shown(&json(), &keyed("ann"), &keyed("bo")),
        ["!0:(key)=3 bytes|2 bytes", "0:$=1|1"]
    );
    assert_eq!(
        shown(&json(), &one("secret"), &one("other")),
        ["!0:(value)=6 bytes|5 bytes"]
    );
}

#[test]
fn j6_what_is_shown_is_bounded() {
    let long = "x".repeat(1_000);
    let green = one(&format!(r#"{{"{long}":1,"é":"{}"}}"#, "é".repeat(200)));
    let fields = shown(&json(), &green, &answer(&[]));
    assert_eq!(fields.len(), 1 + 1, "{fields:?}");
    assert!(fields[0].starts_with("!0:(value)="));
    assert!(
        fields[1].ends_with("…|-") && fields[1].len() < 160,
        "{}",
        fields[1]
    );
    let many: Vec<_> = (0..100).map(|i| format!("\"f{i:02}\":{i}")).collect();
    let many = one(&format!("{{{}}}", many.join(",")));
    assert_eq!(shown(&json(), &many, &one("{}")).len(), 16);
}
