//! What Millrace writes beside a result or a dead letter: inherited headers, ids, reasons
//! (D-F1..D-F3, D-I3, D-D1).
//!
//! Invariant: `millrace-*` headers are reserved: neither inherited by a result nor settable by
//! the app (D-F2).
//! Invariant: writing a result costs no allocation.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::beginning;
use super::publish::{Destination, ResultsFrame};
use crate::event::{Event, TimestampKind};
use crate::identity::{EventId, ResultId};
use crate::limits::{
    DEAD_LETTER_BODY_BYTES_MAX, DEAD_LETTER_MESSAGE_BYTES_MAX, DEAD_LETTER_PREVIOUS_MAX,
};
use crate::outcome::{Output, OutputKey};
use crate::position::Partition;

/// The id that a re-driven event keeps (D-I4).
pub const REDRIVE_OF: &[u8] = b"millrace-redrive-of";
/// How often an event was re-driven (D-D6).
pub const REDRIVE_COUNT: &[u8] = b"millrace-redrive-count";
/// The result id (D-I3).
pub const ID: &[u8] = b"millrace-id";
/// `topic/partition/offset` of the event (D-I3).
pub const SRC: &[u8] = b"millrace-src";
/// The release that answered (D-I3).
pub const RELEASE: &[u8] = b"millrace-release";
/// The epoch under which it answered (D-I3).
pub const EPOCH: &[u8] = b"millrace-epoch";

const RESERVED: &[u8] = b"millrace-";
const DEAD_LETTER: &[u8] = b"millrace-dlq-";
/// Bytes of one entry of `millrace-dlq-prev`: a topic has at most 249.
const PREVIOUS_BYTES_MAX: usize = 384;

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResultContext<'a> {
    /// The release of the app.
    pub release: &'a str,
    /// The epoch of the partition's token.
    pub epoch: u64,
    /// The block's identity.
    pub block: &'a str,
    /// The pod.
    pub pod: &'a str,
    /// The consumer group.
    pub group: &'a str,
    /// The cluster id of the input.
    pub cluster: &'a str,
    /// The version of this program.
    pub proxy_version: &'a str,
}

/// Whether a header belongs to Millrace (D-F2).
pub fn is_reserved(name: &[u8]) -> bool {
    name.get(..RESERVED.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

/// Writes the result `index` of an event as a record of the frame's last event.
pub fn write_result(
    frame: &mut ResultsFrame,
    c: &ResultContext<'_>,
    partition: &Partition,
    event: &Event,
    id: &EventId,
    index: u32,
    output: &Output,
) {
    let destination = output
        .topic
        .as_deref()
        .map_or(Destination::Output, Destination::Topic);
    let key = match &output.key {
        OutputKey::Inherit => event.key(),
        OutputKey::Null => None,
        OutputKey::Bytes(key) => Some(&key[..]),
    };
    let timestamp = output.timestamp_ms.or(timestamp_of(event));
    frame.record(
        destination,
        output.partition,
        timestamp,
        key,
        output.value.as_deref(),
    );
    for (name, value) in event.headers() {
        let replaced = output.headers.iter().any(|(own, _)| own == name)
            || (output.cloud_event && is_cloud_event_header(name));
        if !is_reserved(name) && !replaced {
            frame.header(name, value);
        }
    }
    for (name, value) in &output.headers {
        if !is_reserved(name) {
            frame.header(name, value.as_deref());
        }
    }
    frame.header(ID, Some(ResultId::of(id, index).as_str().as_bytes()));
    let (mut number, mut offset) = (itoa::Buffer::new(), itoa::Buffer::new());
    frame.header_of(
        SRC,
        &[
            partition.topic().as_bytes(),
            b"/",
            number.format(partition.number()).as_bytes(),
            b"/",
            offset.format(event.position().offset()).as_bytes(),
        ],
    );
    frame.header(RELEASE, Some(c.release.as_bytes()));
    frame.header(EPOCH, Some(itoa::Buffer::new().format(c.epoch).as_bytes()));
}

/// What makes a record a CloudEvent, or says what its data is (A-C2).
fn is_cloud_event_header(name: &[u8]) -> bool {
    name.starts_with(b"ce_") || name.eq_ignore_ascii_case(b"content-type")
}

fn timestamp_of(event: &Event) -> Option<i64> {
    let timestamp = event.timestamp();
    (timestamp.kind != TimestampKind::None).then_some(timestamp.ms)
}

/// Why an event is dead (D-D2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The app refused it for good.
    Permanent,
    /// `retry.maxAttempts` were made.
    RetriesExhausted,
    /// `retry.maxAge` went by.
    MaxAge,
    /// It was at the app in the third crash.
    AppCrash,
    /// Its bytes could not be read as what they claim to be.
    Undecodable,
    /// It breaks the schema.
    Schema,
    /// The event, the answer or a result is too large.
    Oversized,
    /// The broker never takes the result.
    OutputRejected,
    /// An earlier event of its lane is dead.
    LaneParked,
    /// It was older than `input.ttl`.
    Ttl,
    /// A pushed call was partly answered at its time-out.
    Timeout,
}

impl Reason {
    /// As `millrace-dlq-reason` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::RetriesExhausted => "retries_exhausted",
            Self::MaxAge => "max_age",
            Self::AppCrash => "app_crash",
            Self::Undecodable => "undecodable",
            Self::Schema => "schema",
            Self::Oversized => "oversized",
            Self::OutputRejected => "output_rejected",
            Self::LaneParked => "lane_parked",
            Self::Ttl => "ttl",
            Self::Timeout => "timeout",
        }
    }
}

/// Where it died.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// Before the app.
    Input,
    /// At the app.
    App,
    /// Behind the app.
    Output,
}

impl Stage {
    /// As `millrace-dlq-stage` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::App => "app",
            Self::Output => "output",
        }
    }
}

/// Why and how an event died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadLetter<'a> {
    /// Why.
    pub reason: Reason,
    /// Where.
    pub stage: Stage,
    /// HTTP status, the app's code, the broker's code, or a word of ours.
    pub code: &'a str,
    /// For people; cut to 1 KiB.
    pub message: &'a str,
    /// The app's last answer; cut to 4 KiB as it stands in the header. Empty: none.
    pub body: &'a [u8],
    /// Attempts made.
    pub attempts: u32,
    /// Epoch milliseconds of the first attempt; 0 without one.
    pub first_attempt_ms: i64,
    /// Epoch milliseconds of the last attempt; 0 without one.
    pub last_attempt_ms: i64,
    /// The result that could not be stored.
    pub output_index: Option<u32>,
    /// The value is cut to this many bytes (D-D5, `deadLetter.oversized: Truncate`).
    pub value_bytes_max: Option<usize>,
    /// The topic refuses the event's timestamp: the record gets the time of its storing (D-D1).
    pub stamped_now: bool,
}

/// Writes an event as a dead letter into the frame's last event: key, value and headers as they
/// came, with the headers of D-D1 behind them in place of earlier ones.
pub fn write_dead_letter(
    frame: &mut ResultsFrame,
    c: &ResultContext<'_>,
    partition: &Partition,
    event: &Event,
    id: &EventId,
    dead: &DeadLetter<'_>,
) {
    let cut = dead.value_bytes_max.unwrap_or(usize::MAX);
    let value = event.value().map(|value| &value[..value.len().min(cut)]);
    frame.record(
        Destination::DeadLetter,
        None,
        timestamp_of(event).filter(|_| !dead.stamped_now),
        event.key(),
        value,
    );
    for (name, value) in event.headers() {
        if !is_dead_letter_header(name) {
            frame.header(name, value);
        }
    }
    text(frame, b"millrace-dlq-version", "1");
    text(frame, b"millrace-dlq-reason", dead.reason.as_str());
    text(frame, b"millrace-dlq-stage", dead.stage.as_str());
    text(
        frame,
        b"millrace-dlq-error-code",
        beginning(dead.code, DEAD_LETTER_MESSAGE_BYTES_MAX),
    );
    text(
        frame,
        b"millrace-dlq-error-message",
        beginning(dead.message, DEAD_LETTER_MESSAGE_BYTES_MAX),
    );
    write_body(frame, dead.body);
    number(frame, b"millrace-dlq-attempts", dead.attempts);
    number(
        frame,
        b"millrace-dlq-first-attempt-ts",
        dead.first_attempt_ms,
    );
    number(frame, b"millrace-dlq-last-attempt-ts", dead.last_attempt_ms);
    text(frame, b"millrace-dlq-orig-cluster", c.cluster);
    text(frame, b"millrace-dlq-orig-topic", partition.topic());
    number(frame, b"millrace-dlq-orig-partition", partition.number());
    number(
        frame,
        b"millrace-dlq-orig-offset",
        event.position().offset(),
    );
    let timestamp = event.timestamp();
    let kind = match timestamp.kind {
        TimestampKind::None => "none",
        TimestampKind::Create => "create",
        TimestampKind::Append => "append",
    };
    if timestamp.kind != TimestampKind::None {
        number(frame, b"millrace-dlq-orig-timestamp", timestamp.ms);
    }
    text(frame, b"millrace-dlq-orig-timestamp-type", kind);
    text(frame, b"millrace-dlq-group", c.group);
    text(frame, b"millrace-dlq-block", c.block);
    text(frame, b"millrace-dlq-pod", c.pod);
    text(frame, b"millrace-dlq-app-release", c.release);
    text(frame, b"millrace-dlq-proxy-version", c.proxy_version);
    if let Some(index) = dead.output_index {
        number(frame, b"millrace-dlq-output-index", index);
    }
    if let Some(whole) = event.value().map(<[u8]>::len).filter(|whole| *whole > cut) {
        number(frame, b"millrace-dlq-truncated-from", whole);
    }
    text(frame, b"millrace-dlq-id", id.as_str());
    number(frame, b"millrace-dlq-redrive-count", redrive_count(event));
    if let Some(previous) = previous(event) {
        text(frame, b"millrace-dlq-prev", &previous);
    }
    // The app gets the event's own context (D-F3), so this is that of the failing attempt.
    if let Some(Some(parent)) = event.header(b"traceparent") {
        frame.header(b"millrace-dlq-traceparent", Some(parent));
    }
}

/// How often an event was re-driven already (D-D6); 0 if the header is missing or no number.
pub fn redrive_count(event: &Event) -> u32 {
    header_text(event, REDRIVE_COUNT)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

fn is_dead_letter_header(name: &[u8]) -> bool {
    name.get(..DEAD_LETTER.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(DEAD_LETTER))
}

fn text(frame: &mut ResultsFrame, name: &[u8], value: &str) {
    frame.header(name, Some(value.as_bytes()));
}

fn number(frame: &mut ResultsFrame, name: &[u8], value: impl itoa::Integer) {
    frame.header(name, Some(itoa::Buffer::new().format(value).as_bytes()));
}

fn write_body(frame: &mut ResultsFrame, body: &[u8]) {
    if body.is_empty() {
        return;
    }
    let readable = match std::str::from_utf8(body) {
        Ok(body) => Some(body),
        // Whoever cut the body may have cut a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&body[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    if let Some(body) = readable {
        text(
            frame,
            b"millrace-dlq-error-body",
            beginning(body, DEAD_LETTER_BODY_BYTES_MAX),
        );
        text(frame, b"millrace-dlq-error-body-encoding", "utf8");
    } else {
        let fits = DEAD_LETTER_BODY_BYTES_MAX / 4 * 3;
        let body = STANDARD.encode(&body[..body.len().min(fits)]);
        text(frame, b"millrace-dlq-error-body", &body);
        text(frame, b"millrace-dlq-error-body-encoding", "base64");
    }
}

/// The last earlier dead-letterings, oldest first: `reason@topic/partition/offset@last-attempt`,
/// separated by commas. They come from the dead letter's headers, which a replay keeps.
fn previous(event: &Event) -> Option<String> {
    let earlier = header_text(event, b"millrace-dlq-prev").unwrap_or_default();
    let mut entries: Vec<&str> = earlier
        .split(',')
        .filter(|entry| !entry.is_empty() && entry.len() <= PREVIOUS_BYTES_MAX)
        .collect();
    let mut last = String::new();
    if let Some(reason) = header_text(event, b"millrace-dlq-reason") {
        let part = |name: &[u8]| header_text(event, name).unwrap_or("?");
        write!(
            last,
            "{reason}@{}/{}/{}@{}",
            part(b"millrace-dlq-orig-topic"),
            part(b"millrace-dlq-orig-partition"),
            part(b"millrace-dlq-orig-offset"),
            part(b"millrace-dlq-last-attempt-ts"),
        )
        .expect("writing to a String never fails");
        if last.len() <= PREVIOUS_BYTES_MAX && !last.contains(',') {
            entries.push(&last);
        }
    }
    let first = entries.len().saturating_sub(DEAD_LETTER_PREVIOUS_MAX);
    (!entries.is_empty()).then(|| entries[first..].join(","))
}

fn header_text<'e>(event: &'e Event, name: &[u8]) -> Option<&'e str> {
    std::str::from_utf8(event.header(name)??).ok()
}

#[cfg(test)]
mod tests;
