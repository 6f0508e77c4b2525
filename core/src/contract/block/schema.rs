//! The JSON Schema of the document (C-5), from the table of keys.
//!
//! It is for editors, the CRD and chart values: it knows types, forms and bounds, while rules
//! across keys stay with [`super::rules`].

use serde_json::{Map, Value, json};

use super::keys::{self, Absent, Form, Key, Kind, Zero};

const DURATION: &str = "^[0-9]+(ms|s|m|h)$";
const DURATION_NOT_ZERO: &str = "^0*[1-9][0-9]*(ms|s|m|h)$";
const SIZE: &str = "^[0-9]+(Ki|Mi|Gi)?$";
const PERCENTAGE: &str = r"^(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?)%$";
const INSTANT: &str = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$";

/// The schema of a bare spec.
pub fn schema() -> Value {
    let mut top = section("");
    top.insert(
        "$schema".to_owned(),
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    top.insert(
        "$id".to_owned(),
        json!("https://millrace.dev/schemas/block-v1alpha1.json"),
    );
    top.insert("title".to_owned(), json!("Millrace block"));
    Value::Object(top)
}

fn section(pattern: &str) -> Map<String, Value> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in keys::children(pattern) {
        properties.insert(key.name().to_owned(), property(key));
        if key.default == Absent::Required {
            required.push(key.name());
        }
    }
    let mut section = Map::new();
    section.insert("type".to_owned(), json!("object"));
    section.insert("additionalProperties".to_owned(), json!(false));
    if !required.is_empty() {
        section.insert("required".to_owned(), json!(required));
    }
    section.insert("properties".to_owned(), Value::Object(properties));
    section
}

fn property(key: &Key) -> Value {
    let mut said = Map::new();
    said.insert("description".to_owned(), json!(key.says));
    let kind = of(key.kind, key.path);
    if key.default == Absent::Required {
        said.extend(kind);
        return Value::Object(said);
    }
    if let Absent::Json(text) = key.default {
        said.insert(
            "default".to_owned(),
            serde_json::from_str(text).unwrap_or(Value::Null),
        );
    }
    said.extend(or_null(kind));
    Value::Object(said)
}

/// A null stands for an absent key.
fn or_null(mut kind: Map<String, Value>) -> Map<String, Value> {
    let words = kind.get("enum").is_some();
    match kind.get_mut("type") {
        Some(Value::String(name)) if !words => {
            let name = std::mem::take(name);
            kind.insert("type".to_owned(), json!([name, "null"]));
            kind
        }
        _ => {
            let mut either = Map::new();
            either.insert("anyOf".to_owned(), json!([kind, {"type": "null"}]));
            either
        }
    }
}

fn of(kind: Kind, path: &str) -> Map<String, Value> {
    let value = match kind {
        Kind::Section => return section(path),
        Kind::Named => json!({
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"},
            "additionalProperties": section(&format!("{path}.<name>")),
        }),
        Kind::Sections => json!({"type": "array", "items": section(path)}),
        Kind::WordOrSection(words) => json!({"anyOf": [word(words), section(path)]}),
        Kind::Word(words) => word(words),
        Kind::WordOr(words, other) => json!({"anyOf": [word(words), of(*other, path)]}),
        Kind::Words(words) => {
            json!({"type": "array", "minItems": 1, "uniqueItems": true, "items": word(words)})
        }
        Kind::Text(form) => text(form),
        Kind::Texts(form) => json!({"type": "array", "items": text(form)}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Whole(_, min, u64::MAX) => json!({"type": "integer", "minimum": min}),
        Kind::Whole(_, min, max) => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Number(min, f64::INFINITY) => json!({"type": "number", "minimum": min}),
        Kind::Number(min, max) => json!({"type": "number", "minimum": min, "maximum": max}),
        Kind::Duration(Zero::Allowed) => json!({"type": "string", "pattern": DURATION}),
        Kind::Duration(Zero::Refused) => json!({"type": "string", "pattern": DURATION_NOT_ZERO}),
        Kind::Size(min) => {
            json!({"anyOf": [{"type": "integer", "minimum": min}, {"type": "string", "pattern": SIZE}]})
        }
        Kind::Percentage => json!({"type": "string", "pattern": PERCENTAGE}),
        Kind::SizeOrPercentage => json!({"anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": SIZE},
            {"type": "string", "pattern": PERCENTAGE},
        ]}),
        Kind::Instant => json!({"type": "string", "pattern": INSTANT}),
        Kind::Secret => json!({"oneOf": [secret("file"), secret("env")]}),
        Kind::Properties => json!({
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        }),
        Kind::Anything => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn word(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

fn text(form: Form) -> Value {
    match form.pattern() {
        Some(pattern) => json!({"type": "string", "pattern": pattern}),
        None => json!({"type": "string"}),
    }
}

fn secret(key: &str) -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": [key],
        "properties": {key: {"type": "string", "minLength": 1}},
    })
}
