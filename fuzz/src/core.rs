//! Targets in `core`: what brokers, the other proxy, the app and people may send us. Each takes
//! any bytes; it panics when a claim does not hold.

use bytes::{Bytes, BytesMut};
use millrace_core::contract::app::{
    AnswerHead, CallContext, ContentMode, EmptyBody, RequestMode, read_batch, read_push,
    read_single,
};
use millrace_core::contract::block::{Block, keys};
use millrace_core::contract::commit::{Metadata, UnknownKeys};
use millrace_core::contract::grant::Grant;
use millrace_core::contract::publish::{Reply, Request, next_frame};
use millrace_core::event::{EventsBuilder, Timestamp, TimestampKind};
use millrace_core::identity::PartitionIdentity;
use millrace_core::intake::io::{Call, CallId, Called};
use millrace_core::limits::{COMMIT_METADATA_BYTES_MAX, FRAME_BYTES_MAX};
use millrace_core::outcome::Outcome;
use millrace_core::position::{Partition, Position};
use millrace_core::time::Time;
use millrace_core::token::Stamp;
use serde_json::{Map, Value, json};
use std::time::Duration;

const NOW_MS: i64 = 1_767_225_600_000;
const CONTENTS: [ContentMode; 3] = [
    ContentMode::Raw,
    ContentMode::Binary,
    ContentMode::Structured,
];

/// E1, E4: a string is what encoding writes, or it is refused; it never reads as another.
pub fn commit_metadata(data: &[u8]) {
    let damaged = String::from_utf8_lossy(data).into_owned();
    // Most changes end at the checksum; the repaired twin goes on to the fields.
    let body = damaged.rsplit_once(";c=").map_or(&damaged[..], |(b, _)| b);
    let repaired = format!("{body};c={:08x}", crc32c::crc32c(body.as_bytes()));
    for text in [&damaged, &repaired] {
        for unknown in [UnknownKeys::Ignore, UnknownKeys::Refuse] {
            if let Ok(metadata) = Metadata::decode(text, unknown) {
                let again = metadata.encode();
                assert!(again.len() <= COMMIT_METADATA_BYTES_MAX);
                assert_eq!(
                    Metadata::decode(&again, UnknownKeys::Refuse).as_ref(),
                    Ok(&metadata)
                );
                assert!(unknown == UnknownKeys::Ignore || again == *text);
            }
            if let Ok(grant) = Grant::decode(text, unknown) {
                let again = grant.encode();
                assert_eq!(Grant::decode(&again, UnknownKeys::Refuse), Ok(grant));
                assert!(unknown == UnknownKeys::Ignore || again == *text);
            }
        }
    }
}

/// P-2: decoding accepts exactly what encoding writes, and what it accepts can be read.
pub fn publish_frames(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    let mut frames = vec![Bytes::copy_from_slice(data)];
    // Each frame takes bytes away, so this ends.
    while let Ok(Some(frame)) = next_frame(&mut buffer, FRAME_BYTES_MAX) {
        frames.push(frame);
    }
    for frame in frames {
        let mut again = Vec::new();
        if let Ok(request) = Request::decode(frame.clone()) {
            request.encode(&mut again);
            assert_eq!(&again[4..], &frame[..]);
            if let Request::Results(results) = &request {
                let events = results.events().map(|event| {
                    let headers = event.records().map(|r| r.headers.count());
                    headers.sum::<usize>()
                });
                assert!(events.sum::<usize>() <= frame.len());
            }
        }
        again.clear();
        if let Ok(reply) = Reply::decode(frame.clone()) {
            reply.encode(&mut again);
            assert_eq!(&again[4..], &frame[..]);
        }
    }
}

/// A status, headers up to an empty line, and a body, as bytes make them.
fn answer(data: &[u8]) -> (u16, Vec<(String, Vec<u8>)>, Bytes) {
    let (head, body) = data
        .windows(2)
        .position(|w| w == b"\n\n")
        .map_or((data, &b""[..]), |at| (&data[..at], &data[at + 2..]));
    let mut lines = head.split(|b| *b == b'\n');
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let status = first.trim().parse().unwrap_or(200);
    let header = |line: &[u8]| {
        let at = line.iter().position(|b| *b == b':')?;
        let name = String::from_utf8_lossy(&line[..at]).to_lowercase();
        Some((name, line[at + 1..].trim_ascii().to_vec()))
    };
    (
        status,
        lines.filter_map(header).collect(),
        Bytes::copy_from_slice(body),
    )
}

fn context(request: RequestMode, content: ContentMode) -> CallContext {
    CallContext {
        path: "/process".to_owned(),
        push: false,
        content_type_always: true,
        release: "r1-00000000".to_owned(),
        max_attempts: 5,
        forward_headers: Vec::new(),
        all_headers: false,
        empty_body: EmptyBody::Error,
        request,
        content,
        cluster: "demo".to_owned(),
        max_request_bytes: 8 << 20,
        max_response_bytes: 8 << 10,
    }
}

/// A single answer comes to one item, or to a failure with a reason.
pub fn app_answer(data: &[u8]) {
    let (status, headers, body) = answer(data);
    let head = AnswerHead::read(status, headers.iter().map(|(n, v)| (n.as_str(), &v[..])));
    for content in CONTENTS {
        let context = context(RequestMode::Single, content);
        let outcome = read_single(&context, &head, body.clone(), NOW_MS);
        check(&outcome, 1);
    }
    // The same as a post of push mode: a result, or a sentence for the app.
    let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), &v[..])).collect();
    for are_cloud_events in [false, true] {
        if let Err(error) = read_push(&headers, &body, are_cloud_events) {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A batch answer comes to one item per event, in the call's order, or to a failure.
pub fn batch_answer(data: &[u8]) {
    let (status, headers, body) = answer(data);
    let head = AnswerHead::read(status, headers.iter().map(|(n, v)| (n.as_str(), &v[..])));
    let call = call();
    for content in CONTENTS {
        let context = context(RequestMode::Batch, content);
        let outcome = read_batch(&context, &call, &head, body.clone(), NOW_MS);
        check(&outcome, call.events.len());
    }
}

fn check(outcome: &Outcome, events: usize) {
    match outcome {
        Outcome::Items(items) => assert_eq!(items.len(), events),
        Outcome::Failed(failure) | Outcome::TooLarge(failure) => {
            assert!(!failure.code.is_empty() && !failure.message.is_empty());
        }
        Outcome::Abandoned => panic!("an answer is no abandoned call"),
    }
}

/// Three events of one call, with the ids that the corpus names.
fn call() -> Call {
    let identity = PartitionIdentity::new("demo", "orders", 3);
    let called = |offset: i64| {
        let at = Timestamp {
            ms: 1_767_225_600_000,
            kind: TimestampKind::Create,
        };
        let mut events = EventsBuilder::default();
        let position = Position::new(offset);
        let headers: [(&[u8], Option<&[u8]>); 0] = [];
        events.push(position, at, Some(b"k"), Some(b"v"), headers);
        Called {
            partition: Partition::new("orders", 3),
            event: events.finish().remove(0),
            id: identity.event_id(position),
            attempt: 1,
            first_attempt_ms: 1_767_225_600_000,
        }
    };
    Call {
        id: CallId(1),
        correlation: None,
        stamp: Stamp::Live,
        deadline: Time {
            boot: Duration::from_secs(1),
            wall_ms: 1_767_225_630_000,
        },
        events: (1042..1045).map(called).collect(),
    }
}

/// C-1: a document is a block, or a list of problems; nothing else happens.
pub fn block_document(data: &[u8]) {
    if let Ok(document) = serde_json::from_slice::<Value>(data) {
        parse(&document);
    }
    // Text rarely stays JSON, so the same bytes also say what to put where in a whole document.
    let mut document: Value =
        serde_json::from_str(include_str!("../../core/src/contract/block/all.json"))
            .expect("the document with all keys");
    let paths: Vec<&str> = keys::all().iter().map(|key| key.path).collect();
    for pair in data.chunks_exact(4).take(8) {
        let path = paths[(usize::from(pair[0]) << 8 | usize::from(pair[1])) % paths.len()];
        set(&mut document, path, odd_value(pair[2], pair[3]));
        parse(&document);
    }
}

fn parse(document: &Value) {
    match Block::parse(document) {
        Err(problems) => assert!(!problems.to_string().is_empty()),
        Ok(block) => {
            assert!(block.redacted().is_object());
            assert!(block.problems_on_a_cluster().len() < 1_000);
        }
    }
}

fn set(document: &mut Value, path: &str, value: Value) {
    let mut node = document;
    for part in path.split('.') {
        let name = if part.starts_with('<') { "main" } else { part };
        if !node.is_object() {
            *node = Value::Object(Map::new());
        }
        node = &mut node[name];
    }
    *node = value;
}

fn odd_value(kind: u8, detail: u8) -> Value {
    let number = i64::from(detail);
    match kind % 14 {
        0 => Value::Null,
        1 => json!(detail.is_multiple_of(2)),
        2 => json!(number - 1),
        3 => json!(i64::MAX - number),
        4 => json!(f64::MAX / (number + 1) as f64),
        5 => json!(""),
        6 => json!(format!("{number}s")),
        7 => json!(format!("{}h", u64::MAX - detail as u64)),
        8 => json!(format!("{number}Mi")),
        9 => json!(format!("{number}.5%")),
        10 => json!([number, {"a": null}, "x"]),
        11 => json!({"file": "", "env": number}),
        12 => json!("\u{0}\u{1F600}".repeat(usize::from(detail))),
        _ => json!({"<name>": {"kafka": {}}, "": []}),
    }
}
