//! Records as people write and read them: plain lines, or one JSON object per line.
//!
//! Invariant: bytes stay bytes. What is not UTF-8 is spelled in base64, as rule A-S5 spells it,
//! and what [`write_json`] prints is read back by [`parse_json`] byte by byte, null and empty
//! told apart.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use millrace_core::event::{Timestamp, TimestampKind};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A header: its name and its value, which may be null.
pub type Header = (Bytes, Option<Bytes>);

/// A record that somebody wants to send.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Draft {
    /// The key; `None` is null.
    pub key: Option<Bytes>,
    /// The value; `None` is null (a tombstone).
    pub value: Option<Bytes>,
    /// In order, duplicates included.
    pub headers: Vec<Header>,
    /// A partition, or where the key leads.
    pub partition: Option<i32>,
    /// Epoch milliseconds, or now.
    pub timestamp_ms: Option<i64>,
}

/// A record that was read.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a, H> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its position there.
    pub offset: i64,
    /// Epoch milliseconds, if it has a time.
    pub timestamp_ms: Option<i64>,
    /// `create` or `append`.
    pub timestamp_type: &'a str,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// An iterator over the headers.
    pub headers: H,
}

/// Why a line is not a record.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Not the JSON we ask for.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Two spellings of one thing, or none.
    #[error("{0}")]
    Spelling(&'static str),
    /// A member that ends in `_base64` does not hold base64.
    #[error("`{0}` is not base64")]
    Base64(&'static str),
    /// A partition below zero.
    #[error("`partition` is {0}; partitions start at 0")]
    Partition(i32),
    /// No separator in a line that must have a key.
    #[error("no {0:?} in the line, so it has no key")]
    NoSeparator(String),
}

/// Reads a plain line: the value, or key, separator and value.
pub fn parse_line(line: &[u8], separator: Option<&str>) -> Result<Draft, Problem> {
    let Some(separator) = separator else {
        return Ok(Draft {
            value: Some(Bytes::copy_from_slice(line)),
            ..Draft::default()
        });
    };
    let at = line
        .windows(separator.len().max(1))
        .position(|window| window == separator.as_bytes())
        .ok_or_else(|| Problem::NoSeparator(separator.to_owned()))?;
    Ok(Draft {
        key: Some(Bytes::copy_from_slice(&line[..at])),
        value: Some(Bytes::copy_from_slice(&line[at + separator.len()..])),
        ..Draft::default()
    })
}

/// Reads one JSON object, such as `{"key":"a","value_json":{"x":1},"headers":[["kind","x"]]}`.
pub fn parse_json(line: &[u8]) -> Result<Draft, Problem> {
    if line
        .trim_ascii_start()
        .first()
        .is_some_and(|byte| *byte != b'{')
    {
        return Err(Problem::Spelling("a line is one JSON object"));
    }
    let spelled: Spelled<'_> = serde_json::from_slice(line)?;
    let key = match (spelled.key, spelled.key_base64) {
        (Some(_), Some(_)) => {
            return Err(Problem::Spelling("give `key` or `key_base64`, not both"));
        }
        (Some(text), None) => text.map(Bytes::from),
        (None, Some(text)) => Some(decode(&text, "key_base64")?),
        (None, None) => None,
    };
    let value = match (spelled.value, spelled.value_json, spelled.value_base64) {
        (Some(text), None, None) => text.map(Bytes::from),
        (None, Some(json), None) => Some(Bytes::from(compact(json.get()))),
        (None, None, Some(text)) => Some(decode(&text, "value_base64")?),
        (None, None, None) => {
            return Err(Problem::Spelling(
                "give `value`, `value_json` or `value_base64`; `\"value\":null` is a tombstone",
            ));
        }
        _ => {
            return Err(Problem::Spelling(
                "give only one of `value`, `value_json` and `value_base64`",
            ));
        }
    };
    if let Some(partition) = spelled.partition.filter(|partition| *partition < 0) {
        return Err(Problem::Partition(partition));
    }
    Ok(Draft {
        key,
        value,
        headers: spelled.headers.0,
        partition: spelled.partition,
        timestamp_ms: spelled.timestamp,
    })
}

/// A timestamp as [`Shown`] spells it.
pub fn spell(timestamp: Timestamp) -> (Option<i64>, &'static str) {
    match timestamp.kind {
        TimestampKind::None => (None, ""),
        TimestampKind::Create => (Some(timestamp.ms), "create"),
        TimestampKind::Append => (Some(timestamp.ms), "append"),
    }
}

/// Appends a record as one line of JSON, without the line break.
pub fn write_json<'a, H>(into: &mut Vec<u8>, record: Shown<'a, H>)
where
    H: Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
{
    into.extend_from_slice(b"{\"topic\":");
    write_text(into, record.topic);
    let mut place = format!(
        ",\"partition\":{},\"offset\":{}",
        record.partition, record.offset
    );
    if let Some(ms) = record.timestamp_ms {
        place.push_str(&format!(",\"timestamp\":{ms},\"timestamp_type\":"));
    }
    into.extend_from_slice(place.as_bytes());
    if record.timestamp_ms.is_some() {
        write_text(into, record.timestamp_type);
    }
    into.push(b',');
    write_member(into, "key", record.key);
    into.extend_from_slice(b",\"headers\":[");
    for (index, (name, value)) in record.headers.enumerate() {
        into.extend_from_slice(if index == 0 { b"[" } else { b",[" });
        write_item(into, Some(name));
        into.push(b',');
        write_item(into, value);
        into.push(b']');
    }
    into.extend_from_slice(b"],");
    write_member(into, "value", record.value);
    into.push(b'}');
}

fn write_member(into: &mut Vec<u8>, name: &str, bytes: Option<&[u8]>) {
    let text = bytes.map(std::str::from_utf8);
    into.push(b'"');
    into.extend_from_slice(name.as_bytes());
    match text {
        None => into.extend_from_slice(b"\":null"),
        Some(Ok(text)) => {
            into.extend_from_slice(b"\":");
            write_text(into, text);
        }
        Some(Err(_)) => {
            into.extend_from_slice(b"_base64\":");
            write_text(into, &BASE64.encode(bytes.unwrap_or_default()));
        }
    }
}

fn write_item(into: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => into.extend_from_slice(b"null"),
        Some(Ok(text)) => write_text(into, text),
        Some(Err(_)) => {
            into.extend_from_slice(b"{\"base64\":");
            write_text(into, &BASE64.encode(bytes.unwrap_or_default()));
            into.push(b'}');
        }
    }
}

fn write_text(into: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(into, text).expect("text always becomes JSON, and a Vec takes it");
}

/// A JSON text without the white space between its tokens. Numbers keep their digits, which a
/// round trip through a parsed value would not promise.
fn compact(json: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(json.len());
    let (mut inside, mut escaped) = (false, false);
    for byte in json.bytes() {
        if !inside && byte.is_ascii_whitespace() {
            continue;
        }
        if escaped {
            escaped = false;
        } else if byte == b'\\' {
            escaped = inside;
        } else if byte == b'"' {
            inside = !inside;
        }
        bytes.push(byte);
    }
    bytes
}

fn decode(text: &str, member: &'static str) -> Result<Bytes, Problem> {
    BASE64
        .decode(text)
        .map(Bytes::from)
        .map_err(|_| Problem::Base64(member))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spelled<'a> {
    #[serde(default, deserialize_with = "present")]
    key: Option<Option<String>>,
    key_base64: Option<String>,
    #[serde(default, deserialize_with = "present")]
    value: Option<Option<String>>,
    #[serde(borrow, default, deserialize_with = "present")]
    value_json: Option<&'a RawValue>,
    value_base64: Option<String>,
    #[serde(default)]
    headers: Headers,
    partition: Option<i32>,
    timestamp: Option<i64>,
    // What `millrace tail --json` adds; where a record came from does not decide where it goes.
    #[serde(default, rename = "topic")]
    _topic: de::IgnoredAny,
    #[serde(default, rename = "offset")]
    _offset: de::IgnoredAny,
    #[serde(default, rename = "timestamp_type")]
    _timestamp_type: de::IgnoredAny,
}

/// Tells a member that is null from one that is absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[derive(Default)]
struct Headers(Vec<Header>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Headers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("headers as [[\"name\",\"value\"],…] or {\"name\":\"value\"}")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some((Item(name), Item(value))) = items.next_element()? {
                    let name = name.ok_or_else(|| de::Error::custom("a header name is null"))?;
                    headers.push((name, value));
                }
                Ok(Headers(headers))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some((name, Item(value))) = items.next_entry::<String, Item>()? {
                    headers.push((Bytes::from(name), value));
                }
                Ok(Headers(headers))
            }
        }
        from.deserialize_any(Pairs)
    }
}

/// Text, null or `{"base64":"…"}`.
struct Item(Option<Bytes>);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Encoded {
            base64: String,
        }
        struct Spelling;
        impl<'de> Visitor<'de> for Spelling {
            type Value = Item;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, null or {\"base64\":\"…\"}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item(Some(Bytes::copy_from_slice(text.as_bytes()))))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Item, E> {
                Ok(Item(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, items: A) -> Result<Item, A::Error> {
                let encoded = Encoded::deserialize(de::value::MapAccessDeserializer::new(items))?;
                decode(&encoded.base64, "base64")
                    .map(|bytes| Item(Some(bytes)))
                    .map_err(de::Error::custom)
            }
        }
        from.deserialize_any(Spelling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(line: &str, key: Option<&[u8]>, value: Option<&[u8]>) {
        let draft = parse_json(line.as_bytes()).unwrap();
        assert_eq!(draft.key.as_deref(), key, "{line}");
        assert_eq!(draft.value.as_deref(), value, "{line}");
    }

    #[test]
    fn every_spelling_of_key_and_value_is_read_byte_by_byte() {
        check(r#"{"value":"a"}"#, None, Some(b"a"));
        check(r#"{"key":null,"value":null}"#, None, None);
        check(r#"{"key":"","value":""}"#, Some(b""), Some(b""));
        check(
            r#"{"key_base64":"AP8=","value_base64":"/w"}"#,
            Some(b"\x00\xff"),
            Some(b"\xff"),
        );
        check(
            r#"{"key":"ü","value_json":null}"#,
            Some("ü".as_bytes()),
            Some(b"null"),
        );
        check(
            r#"{"value_json": {"a b" : [1.0, 12345678901234567890123e400 ], "c\" ": "\\" } }"#,
            None,
            Some(br#"{"a b":[1.0,12345678901234567890123e400],"c\" ":"\\"}"#),
        );
        check(
            r#"{"topic":"t","offset":3,"timestamp_type":"create","value":"a"}"#,
            None,
            Some(b"a"),
        );
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        for (line, part) in [
            ("", "EOF"),
            ("[]", "one JSON object"),
            ("{\"value\":1}", "expected a string"),
            ("{}", "tombstone"),
            (r#"{"value":"a","value_json":1}"#, "only one"),
            (r#"{"key":"a","key_base64":"","value":"a"}"#, "not both"),
            (r#"{"value_base64":"*"}"#, "not base64"),
            (r#"{"value":"a","vlaue":"b"}"#, "vlaue"),
            (r#"{"value":"a","value":"b"}"#, "duplicate"),
            (r#"{"value":"a","headers":[["a"]]}"#, "invalid length"),
            (r#"{"value":"a","headers":[["a",1]]}"#, "text, null"),
            (r#"{"value":"a","headers":[[null,"a"]]}"#, "name is null"),
            (r#"{"value":"a","partition":-1}"#, "start at 0"),
            (r#"{"value":"a"} {}"#, "trailing"),
        ] {
            let problem = parse_json(line.as_bytes()).unwrap_err().to_string();
            assert!(problem.contains(part), "{line} gave: {problem}");
        }
        assert!(parse_json(b"{\"value\":\"\xff\"}").is_err());
    }

    #[test]
    fn headers_keep_order_duplicates_and_nulls() {
        let line = r#"{"value":"v","headers":[["a","1"],["a",null],["",""],[{"base64":"/w"},{"base64":"AA=="}]]}"#;
        let draft = parse_json(line.as_bytes()).unwrap();
        let bytes = |b: &'static [u8]| Bytes::from_static(b);
        assert_eq!(
            draft.headers,
            vec![
                (bytes(b"a"), Some(bytes(b"1"))),
                (bytes(b"a"), None),
                (bytes(b""), Some(bytes(b""))),
                (bytes(b"\xff"), Some(bytes(b"\x00"))),
            ]
        );
        let draft = parse_json(br#"{"value":"v","headers":{"b":"2","a":null}}"#).unwrap();
        assert_eq!(draft.headers.len(), 2);
        assert_eq!(draft.headers[0].0, "b");
    }

    #[test]
    fn plain_lines_are_values_and_a_separator_splits_at_its_first_place() {
        assert_eq!(
            parse_line(b"a:b\r", None).unwrap().value.unwrap(),
            &b"a:b\r"[..]
        );
        let draft = parse_line(b"k=>v=>w\xff", Some("=>")).unwrap();
        assert_eq!(draft.key.unwrap(), &b"k"[..]);
        assert_eq!(draft.value.unwrap(), &b"v=>w\xff"[..]);
        assert_eq!(parse_line(b":", Some(":")).unwrap().key.unwrap(), &b""[..]);
        assert!(parse_line(b"kv", Some(":")).is_err());
        assert!(parse_line(b"", Some("::")).is_err());
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            "\\PC{0,10}".prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn what_tail_prints_send_reads_back_byte_by_byte(
            (key, value, headers, partition, timestamp_ms) in (
                proptest::option::of(bytes()),
                proptest::option::of(bytes()),
                proptest::collection::vec((bytes(), proptest::option::of(bytes())), 0..4),
                0..i32::MAX,
                proptest::option::of(any::<i64>()),
            )
        ) {
            let mut line = Vec::new();
            write_json(&mut line, Shown {
                topic: "t\"\u{1}", partition, offset: 7, timestamp_ms, timestamp_type: "create",
                key: key.as_deref(), value: value.as_deref(),
                headers: headers.iter().map(|(n, v)| (&n[..], v.as_deref())),
            });
            prop_assert!(!line.contains(&b'\n'));
            let draft = parse_json(&line).unwrap();
            prop_assert_eq!(draft.key.as_deref(), key.as_deref());
            prop_assert_eq!(draft.value.as_deref(), value.as_deref());
            prop_assert_eq!(draft.partition, Some(partition));
            prop_assert_eq!(draft.timestamp_ms, timestamp_ms);
            let read: Vec<_> = draft.headers.iter()
                .map(|(n, v)| (n.to_vec(), v.as_ref().map(|v| v.to_vec()))).collect();
            prop_assert_eq!(read, headers);
        }
    }
}
