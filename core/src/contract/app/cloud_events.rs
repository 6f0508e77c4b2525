//! Events as CloudEvents 1.0 in requests to the app (A-C1, A-C3); [`answer`] reads what comes
//! back.
//!
//! A record is a CloudEvent already if it has the header `ce_specversion` (binary), or if its
//! `content-type` is `application/cloudevents+json` (structured): the Kafka binding's two forms.
//!
//! Invariant: a record that is a CloudEvent keeps its attributes; `millrace*` attributes are ours.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{put_base64, put_text};
use super::request::readable_header;
use super::{CallContext, date};
use crate::event::{Event, TimestampKind};
use crate::intake::io::Called;

pub(super) mod answer;

/// The media type of one event in JSON.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// The media type of several.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// Attributes that every CloudEvent has.
const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
/// What attributes of ours begin with.
const OURS: &str = "millrace";
/// What the type of a record that is no CloudEvent is called.
const RECORD_TYPE: &str = "millrace.record.v1";

/// How a record stands in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// Attributes in `ce_*` headers.
    Binary,
    /// The value is the whole event in JSON.
    Structured,
    /// No CloudEvent.
    Plain,
}

fn form(event: &Event) -> Form {
    if event.header(b"ce_specversion").flatten().is_some() {
        Form::Binary
    } else if text(event, b"content-type").is_some_and(|kind| is_type(kind, STRUCTURED)) {
        Form::Structured
    } else {
        Form::Plain
    }
}

/// Whether a media type, without its parameters, is this one.
pub(super) fn is_type(value: &str, media_type: &str) -> bool {
    let own = value.split(';').next().unwrap_or_default();
    own.trim().eq_ignore_ascii_case(media_type)
}

/// Names the `ce-*` headers of a binary request; a structured record has none, it travels as
/// it is.
pub(super) fn binary_headers(c: &CallContext, called: &Called, each: &mut dyn FnMut(&str, &[u8])) {
    if form(&called.event) == Form::Structured {
        return;
    }
    for (name, value) in attributes(c, called) {
        each(&format!("ce-{name}"), percent_encoded(&value).as_bytes());
    }
}

/// The `content-type` of a structured request.
pub(super) fn structured_type(event: &Event) -> &[u8] {
    match form(event) {
        // It may have parameters.
        Form::Structured => readable_header(event, b"content-type"),
        Form::Binary | Form::Plain => None,
    }
    .unwrap_or(STRUCTURED.as_bytes())
}

/// Appends the body of a structured request.
pub(super) fn structured_body(c: &CallContext, called: &Called, into: &mut Vec<u8>) {
    match form(&called.event) {
        Form::Structured => into.extend_from_slice(called.event.value().unwrap_or_default()),
        Form::Binary | Form::Plain => put_event(c, called, false, into),
    }
}

/// Appends one event of a batch.
pub(super) fn put_item(c: &CallContext, called: &Called, into: &mut Vec<u8>) {
    if form(&called.event) == Form::Structured
        && let Some(members) = called.event.value().and_then(members)
    {
        into.push(b'{');
        for (name, value) in &members {
            if !name.starts_with(OURS) {
                put_text(into, name);
                into.push(b':');
                into.extend_from_slice(value.get().as_bytes());
                into.push(b',');
            }
        }
        put_ours(called, into);
        into.push(b'}');
        return;
    }
    put_event(c, called, true, into);
}

/// Attributes and data of an event that is no structured one (or a broken one).
fn put_event(c: &CallContext, called: &Called, ours: bool, into: &mut Vec<u8>) {
    let event = &called.event;
    into.push(b'{');
    for (name, value) in attributes(c, called) {
        put_text(into, &name);
        into.push(b':');
        put_text(into, &value);
        into.push(b',');
    }
    if ours {
        put_ours(called, into);
        into.push(b',');
    }
    let kind = text(event, b"content-type")
        .filter(|kind| !kind.is_empty())
        .unwrap_or("application/octet-stream");
    into.extend_from_slice(b"\"datacontenttype\":");
    put_text(into, kind);
    if let Some(value) = event.value() {
        put_data(into, kind, value);
    }
    into.push(b'}');
}

/// What tells us which event an answer of a batch is for.
fn put_ours(called: &Called, into: &mut Vec<u8>) {
    into.extend_from_slice(b"\"millraceid\":\"");
    into.extend_from_slice(called.id.as_str().as_bytes());
    into.extend_from_slice(b"\",\"millraceattempt\":");
    into.extend_from_slice(itoa::Buffer::new().format(called.attempt).as_bytes());
}

/// `data` as JSON where it says it is and is, as text where it is UTF-8; else `data_base64`.
fn put_data(into: &mut Vec<u8>, kind: &str, value: &[u8]) {
    let readable = std::str::from_utf8(value).ok();
    if is_json_type(kind) {
        let json = readable.and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
        if let Some(json) = json {
            into.extend_from_slice(b",\"data\":");
            into.extend_from_slice(json.get().as_bytes());
            return;
        }
    } else if let Some(text) = readable {
        into.extend_from_slice(b",\"data\":");
        put_text(into, text);
        return;
    }
    into.extend_from_slice(b",\"data_base64\":");
    put_base64(into, value);
}

/// Whether data of this type stands in JSON as it is.
fn is_json_type(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let ends = |end: &str| {
        kind.len() >= end.len()
            && kind.as_bytes()[kind.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
    };
    ends("/json") || ends("+json")
}

/// The attributes of a record that is no structured CloudEvent: its own, and made ones where it
/// lacks what every CloudEvent has.
fn attributes<'e>(c: &CallContext, called: &'e Called) -> Vec<(Cow<'e, str>, Cow<'e, str>)> {
    let event = &called.event;
    let mut attributes: Vec<(Cow<'e, str>, Cow<'e, str>)> = Vec::with_capacity(8);
    let binary = form(event) == Form::Binary;
    if binary {
        for (name, value) in event.headers() {
            let name = name.strip_prefix(b"ce_").and_then(attribute_name);
            let value = value.and_then(|value| std::str::from_utf8(value).ok());
            let (Some(name), Some(value)) = (name, value) else {
                continue;
            };
            match attributes.iter_mut().find(|(known, _)| known == name) {
                // As everywhere, the last header of a name counts.
                Some((_, earlier)) => *earlier = value.into(),
                None => attributes.push((name.into(), value.into())),
            }
        }
    }
    let made = |name: &str| -> Cow<'e, str> {
        match name {
            "specversion" => "1.0".into(),
            "id" => called.id.as_str().to_owned().into(),
            "source" => format!("/kafka/{}/{}", c.cluster, called.partition.topic()).into(),
            _ => RECORD_TYPE.into(),
        }
    };
    for name in REQUIRED {
        let lacks = !attributes
            .iter()
            .any(|(known, value)| known == name && !value.is_empty());
        if lacks {
            attributes.retain(|(known, _)| known != name);
            attributes.push((name.into(), made(name)));
        }
    }
    if !binary {
        let key = event.key().and_then(|key| std::str::from_utf8(key).ok());
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            attributes.push(("subject".into(), key.into()));
        }
        let timestamp = event.timestamp();
        if timestamp.kind != TimestampKind::None
            && let Some(time) = date::rfc_3339(timestamp.ms)
        {
            attributes.push(("time".into(), time.into()));
        }
    }
    attributes
}

/// A name that CloudEvents allow and that is not ours.
fn attribute_name(name: &[u8]) -> Option<&str> {
    let plain = !name.is_empty()
        && name
            .iter()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let name = std::str::from_utf8(name).ok().filter(|_| plain)?;
    // These would say twice what the body says.
    let taken = matches!(name, "data" | "datacontenttype") || name.starts_with(OURS);
    (!taken).then_some(name)
}

fn text<'e>(event: &'e Event, name: &[u8]) -> Option<&'e str> {
    std::str::from_utf8(event.header(name)??).ok()
}

/// As the HTTP binding writes attribute values: what is no visible ASCII, and `"` and `%`.
fn percent_encoded(value: &str) -> Cow<'_, str> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let plain = |c: u8| (0x21..=0x7e).contains(&c) && c != b'"' && c != b'%';
    if value.bytes().all(plain) {
        return value.into();
    }
    let mut encoded = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    encoded.into()
}

/// The members of a JSON object, in order; `None` if it is none.
fn members(json: &[u8]) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a CloudEvent")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::with_capacity(8);
            while let Some(name) = map.next_key::<String>()? {
                members.push((name.into(), map.next_value::<&'de RawValue>()?));
            }
            Ok(members)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let members = deserializer.deserialize_map(Members).ok()?;
    deserializer.end().ok()?;
    Some(members)
}

#[cfg(test)]
mod tests;
