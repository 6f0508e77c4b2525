//! The value of a verification record: results spelt as A-S5 and A-B5 spell bytes.
//!
//! Invariant: bytes that are UTF-8 are text, others base64, never the other way round, so that
//! every answer has exactly one spelling.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Error, Fingerprint, ResultBody, Results};
use crate::limits::EVIDENCE_RECORD_BYTES_MAX;

pub(super) fn write(results: &Results, bytes_max: usize) -> Vec<u8> {
    let max = bytes_max.min(EVIDENCE_RECORD_BYTES_MAX);
    let fingerprint = match results {
        Results::Whole(results) => {
            let raw = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
            let raw: usize = results.iter().map(|r| raw(&r.key) + raw(&r.value)).sum();
            // What is too large before it is spelt is not spelt.
            let whole = (raw <= max).then(|| spell(results));
            match whole {
                Some(whole) if whole.len() <= max => return whole,
                _ => Fingerprint::of(results),
            }
        }
        Results::Cut(fingerprint) => *fingerprint,
    };
    let mut sha256 = String::new();
    for byte in fingerprint.sha256 {
        write!(sha256, "{byte:02x}").expect("writing to a String never fails");
    }
    let Fingerprint { results, bytes, .. } = fingerprint;
    format!(r#"{{"results":{results},"bytes":{bytes},"sha256":"{sha256}"}}"#).into_bytes()
}

fn spell(results: &[ResultBody]) -> Vec<u8> {
    let results = results.iter().map(|result| {
        let mut members = Map::new();
        if let Some(topic) = &result.topic {
            members.insert("topic".to_owned(), Value::from(topic.as_str()));
        }
        for (name, bytes) in [("key", &result.key), ("value", &result.value)] {
            let (name, value) = match bytes.as_deref().map(std::str::from_utf8) {
                None => (name.to_owned(), Value::Null),
                Some(Ok(text)) => (name.to_owned(), Value::from(text)),
                Some(Err(_)) => {
                    let bytes = bytes.as_deref().unwrap_or_default();
                    (
                        format!("{name}_base64"),
                        Value::from(STANDARD.encode(bytes)),
                    )
                }
            };
            members.insert(name, value);
        }
        Value::Object(members)
    });
    Value::Array(results.collect()).to_string().into_bytes()
}

pub(super) fn read(value: &[u8]) -> Result<Results, Error> {
    if value.len() > EVIDENCE_RECORD_BYTES_MAX {
        return Err(Error::TooLarge {
            bytes: value.len(),
            max: EVIDENCE_RECORD_BYTES_MAX,
        });
    }
    match serde_json::from_slice(value) {
        Ok(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| result(i, item))
            .collect::<Result<_, _>>()
            .map(Results::Whole),
        Ok(Value::Object(members)) => cut(&members).map(Results::Cut).ok_or_else(|| Error::Value {
            problem: "an object, but not results, bytes and sha256 of an answer".to_owned(),
        }),
        Ok(_) => Err(Error::Value {
            problem: "neither an array of results nor a fingerprint".to_owned(),
        }),
        Err(error) => Err(Error::Value {
            problem: format!("no JSON ({error})"),
        }),
    }
}

fn result(i: usize, item: Value) -> Result<ResultBody, Error> {
    let wrong = |problem: &str| Error::Value {
        problem: format!("result {i} {problem}"),
    };
    let Value::Object(mut members) = item else {
        return Err(wrong("is no object"));
    };
    let topic = match members.remove("topic") {
        None => None,
        Some(Value::String(topic)) if !topic.is_empty() => Some(topic),
        Some(_) => return Err(wrong("has a `topic` that is no name")),
    };
    let mut bytes =
        |name: &str, encoded: &str| match (members.remove(name), members.remove(encoded)) {
            (Some(Value::Null), None) => Ok(None),
            (Some(Value::String(text)), None) => Ok(Some(Bytes::from(text))),
            (None, Some(Value::String(text))) => STANDARD
                .decode(&text)
                .ok()
                .filter(|bytes| std::str::from_utf8(bytes).is_err())
                .map(|bytes| Some(Bytes::from(bytes)))
                .ok_or_else(|| {
                    wrong(&format!(
                        "has a `{encoded}` that is no base64 of bytes beyond UTF-8"
                    ))
                }),
            _ => Err(wrong(&format!(
                "needs either `{name}` or `{encoded}`, a string"
            ))),
        };
    let key = bytes("key", "key_base64")?;
    let value = bytes("value", "value_base64")?;
    match members.keys().next() {
        Some(name) => Err(wrong(&format!("has the unknown member `{name}`"))),
        None => Ok(ResultBody { topic, key, value }),
    }
}

fn cut(members: &Map<String, Value>) -> Option<Fingerprint> {
    let sha256 = members
        .get("sha256")?
        .as_str()
        .filter(|hex| hex.len() == 64)?;
    let mut bytes = [0; 32];
    for (byte, hex) in bytes.iter_mut().zip(sha256.as_bytes().chunks(2)) {
        let digit = |c: &u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        let hex = std::str::from_utf8(hex)
            .ok()
            .filter(|hex| hex.bytes().all(|c| digit(&c)))?;
        *byte = u8::from_str_radix(hex, 16).ok()?;
    }
    let fingerprint = Fingerprint {
        results: members.get("results")?.as_u64()?,
        bytes: members.get("bytes")?.as_u64()?,
        sha256: bytes,
    };
    (members.len() == 3).then_some(fingerprint)
}
