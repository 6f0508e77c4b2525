//! C-5: the schema and the checker know the same keys and types.

use super::*;

/// Whether `value` fits `schema`, for the words that our schema uses; forms of text are left
/// to the checker's own tests.
fn valid(schema: &Value, value: &Value) -> bool {
    let any = |name: &str, fits: &dyn Fn(&Vec<Value>) -> bool| {
        schema.get(name).and_then(Value::as_array).is_none_or(fits)
    };
    let is = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    };
    let of_type = match schema.get("type") {
        None => true,
        Some(Value::Array(names)) => names.iter().any(is),
        Some(name) => is(name),
    };
    let bound = |name: &str, holds: fn(f64, f64) -> bool| {
        let bound = schema.get(name).and_then(Value::as_f64);
        bound
            .zip(value.as_f64())
            .is_none_or(|(bound, value)| holds(value, bound))
    };
    let members = value.as_object().is_none_or(|map| {
        let required = any("required", &|names| {
            names
                .iter()
                .all(|name| map.contains_key(name.as_str().unwrap()))
        });
        required
            && map.iter().all(|(name, member)| {
                let named = schema
                    .get("properties")
                    .and_then(|properties| properties.get(name));
                match (named, schema.get("additionalProperties")) {
                    (Some(schema), _) => valid(schema, member),
                    (None, Some(Value::Bool(allowed))) => *allowed,
                    (None, Some(schema)) => valid(schema, member),
                    (None, None) => true,
                }
            })
    });
    let items = value.as_array().is_none_or(|items| {
        schema
            .get("items")
            .is_none_or(|schema| items.iter().all(|item| valid(schema, item)))
    });
    of_type
        && members
        && items
        && any("enum", &|words| words.contains(value))
        && any("anyOf", &|schemas| {
            schemas.iter().any(|schema| valid(schema, value))
        })
        && any("oneOf", &|schemas| {
            schemas.iter().filter(|schema| valid(schema, value)).count() == 1
        })
        && bound("minimum", |value, bound| value >= bound)
        && bound("maximum", |value, bound| value <= bound)
}

#[test]
fn c5_the_schema_takes_what_the_checker_takes() {
    let schema = schema();
    assert!(valid(&schema, &all()));
    assert!(valid(&schema, &smallest()));
}

#[test]
fn c5_the_schema_refuses_what_the_checker_refuses() {
    let schema = schema();
    for (path, value) in [
        ("flow.maxInflight", json!(1)),
        ("delivery.window", json!(20_000)),
        ("delivery.guarantee", json!("Sometimes")),
        ("retry.maxAge", json!(10)),
        ("app.shadow", Value::Null),
        ("admin.token", json!("hunter2")),
        ("connections.main.embedded.memory", json!(1)),
        ("notifications", json!([{"on": ["Failed"]}])),
        ("flow.concurrency", json!(0)),
    ] {
        let document = with(&[(path, value)]);
        assert!(!valid(&schema, &document), "{path}");
        assert!(Block::parse(&document).is_err(), "{path}");
    }
}
