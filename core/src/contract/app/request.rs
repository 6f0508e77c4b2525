//! What a call sends to the app: headers and body of a single event or of a batch (A-S1..A-S3,
//! A-B5).
//!
//! Header names are lower case, as HTTP libraries keep them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;

use super::json::{put_headers, put_member, put_text};
use super::push::{CORRELATION, correlation_text};
use super::{CallContext, ContentMode, RequestMode, cloud_events};
use crate::event::{Event, TimestampKind};
use crate::intake::io::{Call, Called};
use crate::limits::FORWARDED_HEADER_BYTES_MAX;
use crate::token::Stamp;

/// The media type of a batch request.
pub const BATCH_CONTENT_TYPE: &str = "application/vnd.millrace.batch+json";

/// Names every header of the request for one event.
pub fn single_headers(
    c: &CallContext,
    called: &Called,
    call: &Call,
    each: &mut dyn FnMut(&str, &[u8]),
) {
    let event = &called.event;
    let content_type = match c.content {
        ContentMode::Raw | ContentMode::Binary => {
            let usual = c
                .content_type_always
                .then_some(&b"application/octet-stream"[..]);
            readable_header(event, b"content-type").or(usual)
        }
        ContentMode::Structured => Some(cloud_events::structured_type(event)),
    };
    if let Some(content_type) = content_type {
        each("content-type", content_type);
    }
    if c.content == ContentMode::Binary {
        cloud_events::binary_headers(c, called, each);
    }
    each("millrace-id", called.id.as_str().as_bytes());
    each("millrace-topic", called.partition.topic().as_bytes());
    number("millrace-partition", called.partition.number(), each);
    number("millrace-offset", event.position().offset(), each);
    if event.timestamp().kind != TimestampKind::None {
        number("millrace-timestamp", event.timestamp().ms, each);
    }
    if let Some(key) = event.key() {
        each("millrace-key", URL_SAFE_NO_PAD.encode(key).as_bytes());
        if is_plain(key) {
            each("millrace-key-text", key);
        }
    }
    if event.value().is_none() {
        each("millrace-tombstone", b"true");
    }
    number("millrace-attempt", called.attempt, each);
    number("millrace-max-attempts", c.max_attempts, each);
    number("millrace-first-attempt", called.first_attempt_ms, each);
    call_headers(c, call, each);
    record_headers(c, event, each);
    // The event's own context goes on as it is: as long as the proxies write no spans of their
    // own, a new parent would point to nothing (D-F3).
    for name in ["traceparent", "tracestate"] {
        if let Some(value) = readable_header(event, name.as_bytes()) {
            each(name, value);
        }
    }
}

/// The body of the request for one event: its value, empty for a null, unless it is a structured
/// CloudEvent.
pub fn single_body(c: &CallContext, called: &Called) -> Bytes {
    match c.content {
        ContentMode::Raw | ContentMode::Binary => {
            Bytes::copy_from_slice(called.event.value().unwrap_or_default())
        }
        ContentMode::Structured => {
            let mut body = Vec::with_capacity(called.event.bytes() * 2 + 512);
            cloud_events::structured_body(c, called, &mut body);
            body.into()
        }
    }
}

/// Names every header of the request for a batch.
pub fn batch_headers(c: &CallContext, call: &Call, each: &mut dyn FnMut(&str, &[u8])) {
    let content_type = match c.content {
        ContentMode::Raw => BATCH_CONTENT_TYPE,
        ContentMode::Binary | ContentMode::Structured => cloud_events::BATCH,
    };
    each("content-type", content_type.as_bytes());
    call_headers(c, call, each);
}

/// Appends the body of a batch.
pub fn batch_body(c: &CallContext, call: &Call, into: &mut Vec<u8>) {
    let events: usize = call.events.iter().map(|called| called.event.bytes()).sum();
    into.reserve(events + events / 8 + call.events.len() * 192 + 16);
    if c.content != ContentMode::Raw {
        for (index, called) in call.events.iter().enumerate() {
            into.push(if index == 0 { b'[' } else { b',' });
            cloud_events::put_item(c, called, into);
        }
        into.push(b']');
        return;
    }
    into.extend_from_slice(b"{\"items\":[");
    for (index, called) in call.events.iter().enumerate() {
        into.extend_from_slice(if index == 0 { b"\n" } else { b",\n" });
        put_item(into, called);
    }
    into.extend_from_slice(b"]}");
}

/// Whether the request for this event alone is above `app.maxRequestBytes`.
pub fn too_large(c: &CallContext, called: &Called) -> bool {
    match c.request {
        RequestMode::Single => {
            let bytes = match c.content {
                ContentMode::Raw | ContentMode::Binary => {
                    called.event.value().map_or(0, <[u8]>::len)
                }
                ContentMode::Structured => single_body(c, called).len(),
            };
            bytes > c.max_request_bytes
        }
        RequestMode::Batch => {
            // A byte takes at most six in JSON, and the rest of an item is small.
            if called.event.bytes() * 6 + 1024 <= c.max_request_bytes {
                return false;
            }
            let mut item = Vec::new();
            let around = if c.content == ContentMode::Raw {
                put_item(&mut item, called);
                "{\"items\":[\n]}".len()
            } else {
                cloud_events::put_item(c, called, &mut item);
                "[]".len()
            };
            item.len() + around > c.max_request_bytes
        }
    }
}

fn call_headers(c: &CallContext, call: &Call, each: &mut dyn FnMut(&str, &[u8])) {
    number("millrace-deadline", call.deadline.wall_ms, each);
    each("millrace-release", c.release.as_bytes());
    let mode: &[u8] = match call.stamp {
        Stamp::Live => b"live",
        // Apps know two modes; a baseline, too, asks for an answer without side effects.
        Stamp::Shadow | Stamp::Baseline => b"shadow",
    };
    each("millrace-mode", mode);
    if let Some(correlation) = &call.correlation {
        each(CORRELATION, correlation_text(correlation).as_bytes());
    }
}

/// `Millrace-Header-*` and `Millrace-Headers` (A-S2).
fn record_headers(c: &CallContext, event: &Event, each: &mut dyn FnMut(&str, &[u8])) {
    const PREFIX: &str = "millrace-header-";
    if c.forward_headers.is_empty() && !c.all_headers {
        return;
    }
    let forwarded = || {
        event.headers().filter_map(|(name, value)| {
            let listed = c
                .forward_headers
                .iter()
                .any(|listed| listed.as_bytes() == name);
            let name = std::str::from_utf8(name)
                .ok()
                .filter(|name| listed && is_token(name))?;
            Some((name, value.filter(|value| is_plain(value))?))
        })
    };
    let all = c.all_headers.then(|| {
        let mut pairs = Vec::new();
        put_headers(&mut pairs, event.headers());
        STANDARD.encode(pairs)
    });
    let bytes: usize = forwarded()
        .map(|(name, value)| PREFIX.len() + name.len() + value.len())
        .sum();
    if bytes + all.as_ref().map_or(0, String::len) > FORWARDED_HEADER_BYTES_MAX {
        each("millrace-headers-omitted", b"true");
        return;
    }
    for (name, value) in forwarded() {
        each(&format!("{PREFIX}{}", name.to_ascii_lowercase()), value);
    }
    if let Some(all) = all {
        each("millrace-headers", all.as_bytes());
    }
}

fn put_item(into: &mut Vec<u8>, called: &Called) {
    let event = &called.event;
    into.extend_from_slice(b"{\"id\":\"");
    into.extend_from_slice(called.id.as_str().as_bytes());
    into.extend_from_slice(b"\",\"topic\":");
    put_text(into, called.partition.topic());
    into.extend_from_slice(b",\"partition\":");
    put_number(into, called.partition.number());
    into.extend_from_slice(b",\"offset\":");
    put_number(into, event.position().offset());
    into.extend_from_slice(b",\"timestamp\":");
    if event.timestamp().kind == TimestampKind::None {
        into.extend_from_slice(b"null");
    } else {
        put_number(into, event.timestamp().ms);
    }
    into.push(b',');
    put_member(into, "key", event.key());
    into.extend_from_slice(b",\"headers\":");
    put_headers(into, event.headers());
    into.extend_from_slice(b",\"attempt\":");
    put_number(into, called.attempt);
    into.push(b',');
    put_member(into, "value", event.value());
    into.push(b'}');
}

fn put_number(into: &mut Vec<u8>, number: impl itoa::Integer) {
    into.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn number(name: &str, number: impl itoa::Integer, each: &mut dyn FnMut(&str, &[u8])) {
    each(name, itoa::Buffer::new().format(number).as_bytes());
}

/// The last value of a record header, if HTTP carries it unchanged.
pub(super) fn readable_header<'e>(event: &'e Event, name: &[u8]) -> Option<&'e [u8]> {
    event.header(name)?.filter(|value| is_plain(value))
}

/// Printable ASCII that HTTP carries unchanged: it drops spaces at either end.
fn is_plain(value: &[u8]) -> bool {
    let printable = value.iter().all(|c| (0x20..=0x7e).contains(c));
    printable && !value.is_empty() && value.first() != Some(&b' ') && value.last() != Some(&b' ')
}

/// Whether HTTP takes this as (the end of) a header's name.
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c))
}
