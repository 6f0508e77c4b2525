//! Whether two answers to the same event are comparable: equal bytes, or JSON that differs only
//! by numbers that are close (release.md J2, with its default tolerances).

use millrace_core::outcome::{Item, Output};
use serde_json::Value;

const ABSOLUTE: f64 = 1e-6;
const RELATIVE: f64 = 0.01;

/// Whether two items agree.
pub(super) fn items(a: &Item, b: &Item) -> bool {
    let (a, b) = match (results(a), results(b)) {
        (Some(a), Some(b)) => (a, b),
        (None, None) => return failures(a, b),
        _ => return false,
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| outputs(a, b))
}

fn results(item: &Item) -> Option<&[Output]> {
    match item {
        Item::Emit(output) => Some(std::slice::from_ref(output)),
        Item::EmitMany(outputs) => Some(outputs),
        Item::Filter => Some(&[]),
        Item::Failed(_) => None,
    }
}

fn failures(a: &Item, b: &Item) -> bool {
    match (a, b) {
        (Item::Failed(a), Item::Failed(b)) => a.class == b.class,
        _ => false,
    }
}

fn outputs(a: &Output, b: &Output) -> bool {
    (&a.key, &a.topic, a.partition) == (&b.key, &b.topic, b.partition)
        && match (&a.value, &b.value) {
            (Some(a), Some(b)) => a == b || json(a, b),
            (None, None) => true,
            _ => false,
        }
}

fn json(a: &[u8], b: &[u8]) -> bool {
    let parsed = |bytes| serde_json::from_slice::<Value>(bytes);
    match (parsed(a), parsed(b)) {
        (Ok(a), Ok(b)) => values(&a, &b),
        _ => false,
    }
}

fn values(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= ABSOLUTE.max(RELATIVE * a.abs().max(b.abs())),
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| values(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same = |(name, a): (&String, &Value)| b.get(name).is_some_and(|b| values(a, b));
            a.len() == b.len() && a.iter().all(same)
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(a: &str, b: &str, comparable: bool) {
        let item = |text: &str| {
            Item::Emit(Output {
                value: Some(text.to_owned().into()),
                ..Output::default()
            })
        };
        assert_eq!(items(&item(a), &item(b)), comparable, "{a} {b}");
    }

    #[test]
    fn j2_close_numbers_are_comparable_and_changed_types_are_not() {
        check(
            r#"{"a":1.0,"b":[1,2]}"#,
            r#"{"b":[1,2.00001],"a":1.005}"#,
            true,
        );
        check(r#"{"a":1.0}"#, r#"{"a":1.5}"#, false);
        check(r#"{"a":1}"#, r#"{"a":"1"}"#, false);
        check(r#"{"a":null}"#, r"{}", false);
        check("[1]", "[1,1]", false);
        check("not json", "not json", true);
        check("not json", "not jsom", false);
    }

    #[test]
    fn a_filter_equals_an_empty_list_and_no_result() {
        assert!(items(&Item::Filter, &Item::EmitMany(Vec::new())));
        assert!(!items(&Item::Filter, &Item::Emit(Output::default())));
        let one = Item::EmitMany(vec![Output::default()]);
        assert!(items(&one, &Item::Emit(Output::default())));
    }
}
