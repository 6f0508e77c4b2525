//! JSON as the contract writes and reads it: text where bytes are UTF-8, else base64 (A-B5).
//!
//! Invariant: reading slices texts without escapes out of the body; others share one buffer.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::{Bytes, BytesMut};
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::limits::ANSWER_HEADERS_MAX;
use crate::outcome::{Output, OutputKey};

/// Whether the padding of base64 is there does not matter; apps differ.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Base64url, padded or not (`Millrace-Out-Key`).
pub(super) fn base64url(text: &[u8]) -> Option<Bytes> {
    URL_SAFE_LENIENT.decode(text).ok().map(Bytes::from)
}

/// Whether a topic can have this name.
pub(super) fn is_topic(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(allowed)
}

/// What stands for each byte in a JSON text: 0 itself, `u` a \u escape, else the letter.
const ESCAPES: [u8; 256] = {
    let mut escapes = [0; 256];
    let mut c = 0;
    while c < 0x20 {
        escapes[c] = b'u';
        c += 1;
    }
    escapes[b'\n' as usize] = b'n';
    escapes[b'\r' as usize] = b'r';
    escapes[b'\t' as usize] = b't';
    escapes[0x08] = b'b';
    escapes[0x0c] = b'f';
    escapes[b'"' as usize] = b'"';
    escapes[b'\\' as usize] = b'\\';
    escapes
};

/// Appends a JSON string.
pub(super) fn put_text(into: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    into.reserve(bytes.len() + 2);
    into.push(b'"');
    let mut plain = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(*byte)];
        if escape == 0 {
            continue;
        }
        into.extend_from_slice(&bytes[plain..at]);
        into.extend_from_slice(&[b'\\', escape]);
        if escape == b'u' {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            into.extend_from_slice(b"00");
            into.extend_from_slice(&digits);
        }
        plain = at + 1;
    }
    into.extend_from_slice(&bytes[plain..]);
    into.push(b'"');
}

/// Appends a base64 text (standard alphabet, padded).
pub(super) fn put_base64(into: &mut Vec<u8>, bytes: &[u8]) {
    into.push(b'"');
    let start = into.len();
    into.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD
        .encode_slice(bytes, &mut into[start..])
        .expect("the room was made for it");
    debug_assert_eq!(start + written, into.len());
    into.push(b'"');
}

/// Appends `"name":…` for bytes that may be null: a text, `null`, or `"name_base64"` (A-B5).
pub(super) fn put_member(into: &mut Vec<u8>, name: &str, bytes: Option<&[u8]>) {
    into.push(b'"');
    into.extend_from_slice(name.as_bytes());
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => into.extend_from_slice(b"\":null"),
        Some(Ok(text)) => {
            into.extend_from_slice(b"\":");
            put_text(into, text);
        }
        Some(Err(bytes)) => {
            into.extend_from_slice(b"_base64\":");
            put_base64(into, bytes);
        }
    }
}

/// Appends header pairs: `[["name","text"],["name",null],["name",{"base64":"…"}]]`.
pub(super) fn put_headers<'h>(
    into: &mut Vec<u8>,
    headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)>,
) {
    into.push(b'[');
    for (index, (name, value)) in headers.enumerate() {
        into.extend_from_slice(if index == 0 { b"[" } else { b",[" });
        put_header_part(into, Some(name));
        into.push(b',');
        put_header_part(into, value);
        into.push(b']');
    }
    into.push(b']');
}

fn put_header_part(into: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => into.extend_from_slice(b"null"),
        Some(Ok(text)) => put_text(into, text),
        Some(Err(bytes)) => {
            into.extend_from_slice(b"{\"base64\":");
            put_base64(into, bytes);
            into.push(b'}');
        }
    }
}

/// A body that is being read; texts come out of it as [`Bytes`].
pub(super) struct Source<'b> {
    body: &'b Bytes,
    unescaped: BytesMut,
}

impl<'b> Source<'b> {
    pub(super) fn new(body: &'b Bytes) -> Self {
        Self {
            body,
            unescaped: BytesMut::new(),
        }
    }

    /// A part of the body.
    fn slice(&self, part: &str) -> Bytes {
        self.body.slice_ref(part.as_bytes())
    }

    /// A text that does not stand in the body as it is. Unescaping never makes a text longer,
    /// so one buffer of the body's size serves all.
    fn copy(&mut self, text: &[u8]) -> Bytes {
        if self.unescaped.capacity() < text.len() {
            self.unescaped.reserve(self.body.len().max(text.len()));
        }
        self.unescaped.extend_from_slice(text);
        self.unescaped.split().freeze()
    }

    /// JSON without the whitespace between its tokens (A-S5, `value_json`).
    fn compact(&mut self, json: &str) -> Bytes {
        let spaces = |in_text: &mut bool, escaped: &mut bool, byte: u8| {
            if *in_text {
                *in_text = *escaped || byte != b'"';
                *escaped = !*escaped && byte == b'\\';
                false
            } else {
                *in_text = byte == b'"';
                byte.is_ascii_whitespace()
            }
        };
        let (mut in_text, mut escaped) = (false, false);
        if !json
            .bytes()
            .any(|byte| spaces(&mut in_text, &mut escaped, byte))
        {
            return self.slice(json);
        }
        (in_text, escaped) = (false, false);
        let compact = json
            .bytes()
            .filter(|byte| !spaces(&mut in_text, &mut escaped, *byte));
        self.unescaped.reserve(json.len());
        self.unescaped.extend(compact);
        self.unescaped.split().freeze()
    }
}

/// Reads a text as bytes.
pub(super) struct Text<'s, 'b>(pub(super) &'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for Text<'_, 'de> {
    type Value = Bytes;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text<'_, 'de> {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Bytes, E> {
        Ok(self.0.slice(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Bytes, E> {
        Ok(self.0.copy(text.as_bytes()))
    }
}

/// Reads a text, null, or (where allowed) `{"base64":"…"}`.
struct Nullable<'s, 'b> {
    source: &'s mut Source<'b>,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    TextOrObject,
}

impl<'de> DeserializeSeed<'de> for Nullable<'_, 'de> {
    type Value = Option<Bytes>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nullable<'_, 'de> {
    type Value = Option<Bytes>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.form {
            Form::Text => "a text or null",
            Form::TextOrObject => "a text, null or {\"base64\":\"...\"}",
        })
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(self.source.slice(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(self.source.copy(text.as_bytes())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if self.form == Form::Text {
            return Err(de::Error::invalid_type(de::Unexpected::Map, &self));
        }
        let mut decoded = None;
        while let Some(member) = map.next_key_seed(Member)? {
            if member == "base64" {
                let value = map.next_value_seed(Base64(&mut *self.source))?;
                once("base64", &mut decoded, value)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        decoded
            .ok_or_else(|| de::Error::missing_field("base64"))
            .map(Some)
    }
}

/// Reads a base64 text.
struct Base64<'s, 'b>(&'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for Base64<'_, 'de> {
    type Value = Bytes;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Bytes, D::Error> {
        let text = Text(self.0).deserialize(deserializer)?;
        STANDARD_LENIENT
            .decode(&text)
            .map(Bytes::from)
            .map_err(|error| de::Error::custom(format_args!("not base64: {error}")))
    }
}

/// The name of a member of an object. Only names that are a piece of the body can be known
/// ones; a name with escapes is read as another.
pub(super) struct Member;

impl<'de> DeserializeSeed<'de> for Member {
    type Value = &'de str;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<&'de str, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de> Visitor<'de> for Member {
    type Value = &'de str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<&'de str, E> {
        Ok(name)
    }

    fn visit_str<E>(self, _: &str) -> Result<&'de str, E> {
        Ok("")
    }
}

/// Stores the value of a member that may come once.
pub(super) fn once<T, E: de::Error>(
    name: &'static str,
    slot: &mut Option<T>,
    value: T,
) -> Result<(), E> {
    if slot.replace(value).is_some() {
        return Err(E::duplicate_field(name));
    }
    Ok(())
}

/// Reads one output object (A-S5).
struct OneOutput<'s, 'b>(&'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for OneOutput<'_, 'de> {
    type Value = Output;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Output, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneOutput<'_, 'de> {
    type Value = Output;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an output object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Output, A::Error> {
        let source = self.0;
        let mut value: Option<Option<Bytes>> = None;
        let mut key: Option<OutputKey> = None;
        let mut topic: Option<Option<String>> = None;
        let mut partition: Option<Option<i32>> = None;
        let mut timestamp: Option<Option<i64>> = None;
        let mut headers: Option<Vec<(Bytes, Option<Bytes>)>> = None;
        while let Some(member) = map.next_key_seed(Member)? {
            match member {
                "value" => {
                    let text = map.next_value_seed(Nullable {
                        source,
                        form: Form::Text,
                    })?;
                    once("value", &mut value, text)?;
                }
                "value_base64" => {
                    let bytes = map.next_value_seed(Base64(source))?;
                    once("value", &mut value, Some(bytes))?;
                }
                "value_json" => {
                    let json = map.next_value::<&'de RawValue>()?;
                    once("value", &mut value, Some(source.compact(json.get())))?;
                }
                "key" => {
                    let text = map.next_value_seed(Nullable {
                        source,
                        form: Form::Text,
                    })?;
                    once(
                        "key",
                        &mut key,
                        text.map_or(OutputKey::Null, OutputKey::Bytes),
                    )?;
                }
                "key_base64" => {
                    let bytes = map.next_value_seed(Base64(source))?;
                    once("key", &mut key, OutputKey::Bytes(bytes))?;
                }
                "topic" => {
                    let name = map.next_value::<Option<String>>()?;
                    if name.as_deref().is_some_and(|name| !is_topic(name)) {
                        return Err(de::Error::custom("`topic` is no topic's name"));
                    }
                    once("topic", &mut topic, name)?;
                }
                "partition" => {
                    let number = map.next_value::<Option<i32>>()?;
                    if number.is_some_and(|number| number < 0) {
                        return Err(de::Error::custom("`partition` is negative"));
                    }
                    once("partition", &mut partition, number)?;
                }
                "timestamp" => {
                    let ms = map.next_value::<Option<i64>>()?;
                    if ms.is_some_and(|ms| ms < 0) {
                        return Err(de::Error::custom("`timestamp` is negative"));
                    }
                    once("timestamp", &mut timestamp, ms)?;
                }
                "headers" => {
                    let pairs = map.next_value_seed(OutputHeaders(source))?;
                    once("headers", &mut headers, pairs)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let Some(value) = value else {
            return Err(de::Error::custom(
                "an output needs `value`, `value_base64` or `value_json`",
            ));
        };
        Ok(Output {
            topic: topic.flatten(),
            partition: partition.flatten(),
            timestamp_ms: timestamp.flatten(),
            key: key.unwrap_or_default(),
            value,
            headers: headers.unwrap_or_default(),
            cloud_event: false,
        })
    }
}

/// Reads pairs of header name and value; null is no header.
struct OutputHeaders<'s, 'b>(&'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for OutputHeaders<'_, 'de> {
    type Value = Vec<(Bytes, Option<Bytes>)>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OutputHeaders<'_, 'de> {
    type Value = Vec<(Bytes, Option<Bytes>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pairs of header name and value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pairs: A) -> Result<Self::Value, A::Error> {
        let mut headers = Vec::new();
        while let Some(header) = pairs.next_element_seed(HeaderPair(&mut *self.0))? {
            if headers.len() == ANSWER_HEADERS_MAX {
                return Err(de::Error::custom("an output has too many headers"));
            }
            headers.push(header);
        }
        Ok(headers)
    }
}

struct HeaderPair<'s, 'b>(&'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for HeaderPair<'_, 'de> {
    type Value = (Bytes, Option<Bytes>);

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for HeaderPair<'_, 'de> {
    type Value = (Bytes, Option<Bytes>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pair of header name and value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
        let source = self.0;
        let Some(name) = pair.next_element_seed(Text(source))? else {
            return Err(de::Error::invalid_length(0, &"a pair"));
        };
        let Some(value) = pair.next_element_seed(Nullable {
            source,
            form: Form::TextOrObject,
        })?
        else {
            return Err(de::Error::invalid_length(1, &"a pair"));
        };
        if pair.next_element::<IgnoredAny>()?.is_some() {
            return Err(de::Error::invalid_length(3, &"a pair"));
        }
        Ok((name, value))
    }
}

/// What an `outputs` list holds, without a list where one output is the rule.
#[derive(Debug)]
pub(super) enum OutputList {
    None,
    One(Output),
    Many(Vec<Output>),
}

/// Reads an `outputs` list.
pub(super) struct Outputs<'s, 'b>(pub(super) &'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for Outputs<'_, 'de> {
    type Value = OutputList;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<OutputList, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Outputs<'_, 'de> {
    type Value = OutputList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of outputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut outputs: A) -> Result<OutputList, A::Error> {
        let source = self.0;
        let Some(first) = outputs.next_element_seed(OneOutput(source))? else {
            return Ok(OutputList::None);
        };
        let Some(second) = outputs.next_element_seed(OneOutput(source))? else {
            return Ok(OutputList::One(first));
        };
        let mut many = vec![first, second];
        while let Some(next) = outputs.next_element_seed(OneOutput(source))? {
            many.push(next);
        }
        Ok(OutputList::Many(many))
    }
}
