//! What an answer of the app means: status table, class table, result headers, error bodies.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use super::json::{self, Member, OutputList, Outputs, Source, once};
use super::{CallContext, ContentMode, EmptyBody, RequestMode, cloud_events, date};
use crate::contract::beginning;
use crate::limits::{
    ANSWER_HEADERS_MAX, DEAD_LETTER_BODY_BYTES_MAX, DEAD_LETTER_MESSAGE_BYTES_MAX,
    RETRY_AFTER_SECONDS_MAX,
};
use crate::outcome::{
    Class, Failure, FailureKind, Item, Outcome, Output, OutputKey, RetryAfter, RetryScope,
    TIMED_OUT,
};

/// The media type of several results in one answer.
pub const RESULTS_CONTENT_TYPE: &str = "application/vnd.millrace.results+json";

/// Frames of a stream are not part of this version.
const STREAM_CONTENT_TYPE: &str = "application/x-ndjson";

/// Error bodies above this are kept but not searched for a code.
const ERROR_BODY_BYTES_MAX: usize = 64 << 10;

/// Longest error code that is kept.
const CODE_BYTES_MAX: usize = 256;

/// Status and headers of an answer, as far as the contract knows them. Unknown headers are
/// ignored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnswerHead<'a> {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// `Millrace-Result`.
    pub result: Option<&'a str>,
    /// `Millrace-Error-Class`, where it is a known one.
    pub error_class: Option<Class>,
    /// `Retry-After`.
    pub retry_after: Option<&'a str>,
    /// `Millrace-Retry-Scope`, where it is a known one.
    pub retry_scope: Option<RetryScope>,
    /// `Millrace-Out-Topic`.
    pub out_topic: Option<&'a [u8]>,
    /// `Millrace-Out-Key`, still base64url.
    pub out_key: Option<&'a [u8]>,
    /// `Millrace-Out-Key-Null: true`.
    pub out_key_null: bool,
    /// `Millrace-Out-Tombstone: true`.
    pub out_tombstone: bool,
    /// `Millrace-Out-Header-<name>`, in order.
    pub out_headers: Vec<(&'a str, &'a [u8])>,
    /// `ce-<name>`, in order: the attributes of a CloudEvent.
    pub cloud_event: Vec<(&'a str, &'a [u8])>,
    /// Whether there were more headers than are read.
    pub too_many_headers: bool,
}

impl<'a> AnswerHead<'a> {
    /// Picks what the contract knows out of an answer's headers. A name's case does not count;
    /// of several equal ones the last one does, but result headers are all kept.
    pub fn read(status: u16, headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut head = Self {
            status,
            ..Self::default()
        };
        for (index, (name, value)) in headers.enumerate() {
            if index == ANSWER_HEADERS_MAX {
                head.too_many_headers = true;
                break;
            }
            head.take(name, value);
        }
        head
    }

    fn take(&mut self, name: &'a str, value: &'a [u8]) {
        const PREFIX: &str = "millrace-";
        const OUT_HEADER: &str = "out-header-";
        let word = std::str::from_utf8(value).ok().map(str::trim);
        let Some(own) = without_prefix(name, PREFIX) else {
            if name.eq_ignore_ascii_case("content-type") {
                self.content_type = word;
            } else if name.eq_ignore_ascii_case("retry-after") {
                self.retry_after = word;
            } else if let Some(attribute) = without_prefix(name, "ce-") {
                self.cloud_event.push((attribute, value));
            }
            return;
        };
        let is = |known: &str| own.eq_ignore_ascii_case(known);
        let is_true = || word.is_some_and(|word| word.eq_ignore_ascii_case("true"));
        if let Some(header) = without_prefix(own, OUT_HEADER) {
            self.out_headers.push((header, value));
        } else if is("result") {
            self.result = word;
        } else if is("error-class") {
            self.error_class = word.and_then(class_named);
        } else if is("retry-scope") {
            self.retry_scope = word.and_then(scope_named);
        } else if is("out-topic") {
            self.out_topic = Some(value.trim_ascii());
        } else if is("out-key") {
            self.out_key = Some(value.trim_ascii());
        } else if is("out-key-null") {
            self.out_key_null = is_true();
        } else if is("out-tombstone") {
            self.out_tombstone = is_true();
        }
    }

    /// Whether the media type, without its parameters, is this one.
    pub(super) fn is_type(&self, media_type: &str) -> bool {
        self.content_type
            .is_some_and(|own| cloud_events::is_type(own, media_type))
    }

    /// The wish to be left alone, where the status allows one (D-B5).
    fn wait(&self, now_wall_ms: i64) -> Option<RetryAfter> {
        if !matches!(self.status, 429 | 503) {
            return None;
        }
        let delay = retry_after(self.retry_after?, now_wall_ms)?;
        Some(RetryAfter {
            delay,
            scope: self.retry_scope.unwrap_or(RetryScope::All),
        })
    }

    /// The result that the headers describe (A-S4).
    pub(super) fn output(&self, value: Option<Bytes>) -> Result<Output, &'static str> {
        let topic = match self.out_topic {
            None => None,
            Some(name) => {
                let name = std::str::from_utf8(name)
                    .ok()
                    .filter(|name| json::is_topic(name));
                Some(
                    name.ok_or("`Millrace-Out-Topic` is no topic's name")?
                        .to_owned(),
                )
            }
        };
        let key = match (self.out_key_null, self.out_key) {
            (true, None) => OutputKey::Null,
            (false, None) => OutputKey::Inherit,
            (false, Some(key)) => {
                OutputKey::Bytes(json::base64url(key).ok_or("`Millrace-Out-Key` is not base64url")?)
            }
            (true, Some(_)) => {
                return Err("`Millrace-Out-Key` contradicts `Millrace-Out-Key-Null`");
            }
        };
        let headers = self.out_headers.iter().map(|(name, value)| {
            let name = Bytes::copy_from_slice(name.as_bytes());
            (name, Some(Bytes::copy_from_slice(value)))
        });
        Ok(Output {
            topic,
            partition: None,
            timestamp_ms: None,
            key,
            value,
            headers: headers.collect(),
            cloud_event: false,
        })
    }
}

fn without_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let start = name.get(..prefix.len())?;
    start
        .eq_ignore_ascii_case(prefix)
        .then(|| &name[prefix.len()..])
}

fn class_named(name: &str) -> Option<Class> {
    match name {
        "transient" => Some(Class::Transient),
        "permanent" => Some(Class::Permanent),
        "misconfigured" => Some(Class::Misconfigured),
        _ => None,
    }
}

fn scope_named(name: &str) -> Option<RetryScope> {
    match name {
        "event" => Some(RetryScope::Event),
        "lane" => Some(RetryScope::Lane),
        "all" => Some(RetryScope::All),
        _ => None,
    }
}

/// What a status says before its body is read.
pub(super) enum Meaning {
    /// The body answers.
    Body,
    /// There is no result.
    Nothing,
    /// 202, which only push mode knows.
    Accepted,
    /// 3xx, 4xx, 5xx.
    Refused,
    /// No other status is an answer.
    Malformed,
}

pub(super) fn meaning(status: u16, request: RequestMode) -> Meaning {
    match status {
        200 | 201 | 203 => Meaning::Body,
        207 if request == RequestMode::Batch => Meaning::Body,
        204 | 205 => Meaning::Nothing,
        202 => Meaning::Accepted,
        300..=599 => Meaning::Refused,
        _ => Meaning::Malformed,
    }
}

/// Whether `Millrace-Result` asks to filter.
pub(super) fn is_filter(head: &AnswerHead<'_>) -> Result<bool, String> {
    match head.result {
        None => Ok(false),
        Some(word) if word.eq_ignore_ascii_case("filter") => Ok(true),
        Some(word) => Err(format!("`Millrace-Result: {word}` is unknown")),
    }
}

/// What the answer to a single event means.
pub fn read_single(
    c: &CallContext,
    head: &AnswerHead<'_>,
    body: Bytes,
    now_wall_ms: i64,
) -> Outcome {
    match meaning(head.status, RequestMode::Single) {
        Meaning::Body | Meaning::Nothing | Meaning::Accepted if c.push => super::push::accepted(),
        Meaning::Body if body.len() > c.max_response_bytes => {
            Outcome::Failed(Failure::response_too_large(c.max_response_bytes))
        }
        Meaning::Body => match success(c, head, &body) {
            Ok(item) => Outcome::Items(vec![item]),
            Err(message) => Outcome::Failed(Failure::malformed(&message, &body)),
        },
        Meaning::Nothing => Outcome::Items(vec![Item::Filter]),
        Meaning::Accepted => Outcome::Failed(accepted(&body)),
        Meaning::Refused => Outcome::Failed(refused(head, &body, now_wall_ms)),
        Meaning::Malformed => Outcome::Failed(unknown_status(head.status, &body)),
    }
}

fn success(
    c: &CallContext,
    head: &AnswerHead<'_>,
    body: &Bytes,
) -> Result<Item, Cow<'static, str>> {
    if head.too_many_headers {
        return Err("it has too many headers".into());
    }
    if is_filter(head)? {
        return Ok(Item::Filter);
    }
    if head.is_type(RESULTS_CONTENT_TYPE) {
        return several(body).map_err(|error| error.to_string().into());
    }
    if head.is_type(STREAM_CONTENT_TYPE) {
        return Err("a stream of results was not asked for".into());
    }
    if c.content != ContentMode::Raw {
        // A CloudEvent without data has an empty body.
        let says_nothing = body.is_empty() && head.cloud_event.is_empty() && !head.out_tombstone;
        if !says_nothing {
            return cloud_events::answer::single(head, body);
        }
    }
    let value = match (head.out_tombstone, body.is_empty(), c.empty_body) {
        (true, _, _) => None,
        (false, false, _) | (false, true, EmptyBody::Emit) => Some(body.clone()),
        (false, true, EmptyBody::Filter) => return Ok(Item::Filter),
        (false, true, EmptyBody::Error) => return Err("it is empty".into()),
    };
    Ok(Item::Emit(head.output(value)?))
}

/// `{"outputs":[…]}`
fn several(body: &Bytes) -> Result<Item, serde_json::Error> {
    let mut source = Source::new(body);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let outputs = SeveralOutputs(&mut source).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(item_of(outputs))
}

/// What a list of outputs says about its event.
pub(super) fn item_of(outputs: OutputList) -> Item {
    match outputs {
        OutputList::None => Item::Filter,
        OutputList::One(output) => Item::Emit(output),
        OutputList::Many(outputs) => Item::EmitMany(outputs),
    }
}

struct SeveralOutputs<'s, 'b>(&'s mut Source<'b>);

impl<'de> DeserializeSeed<'de> for SeveralOutputs<'_, 'de> {
    type Value = OutputList;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<OutputList, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for SeveralOutputs<'_, 'de> {
    type Value = OutputList;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object with `outputs`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OutputList, A::Error> {
        let mut outputs = None;
        while let Some(member) = map.next_key_seed(Member)? {
            if member == "outputs" {
                let list = map.next_value_seed(Outputs(&mut *self.0))?;
                once("outputs", &mut outputs, list)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        outputs.ok_or_else(|| de::Error::missing_field("outputs"))
    }
}

/// The class of a refusal that says nothing else (delivery.md, section Retry).
fn class_of(status: u16) -> Class {
    match status {
        401 | 403 | 404 | 405 | 407 | 426 | 501 | 505 | 300..=399 => Class::Misconfigured,
        408 | 409 | 425 | 429 => Class::Transient,
        400..=499 => Class::Permanent,
        _ => Class::Transient,
    }
}

/// A 3xx, 4xx or 5xx. The header wins over the body, the body over the status (D-R1).
pub(super) fn refused(head: &AnswerHead<'_>, body: &Bytes, now_wall_ms: i64) -> Failure {
    let error = AppError::in_body(body);
    let by_body = error.retryable.map(|again| {
        if again {
            Class::Transient
        } else {
            Class::Permanent
        }
    });
    let class = head
        .error_class
        .or(by_body)
        .unwrap_or_else(|| class_of(head.status));
    let retry_after = head.wait(now_wall_ms).filter(|_| class == Class::Transient);
    Failure {
        class,
        kind: FailureKind::Refused,
        code: error.code.unwrap_or_else(|| head.status.to_string()),
        message: error
            .message
            .unwrap_or_else(|| format!("the app answered {}", head.status)),
        body: kept(body),
        attempted: match class {
            // Who asks to be left alone only lets the event age.
            Class::Transient => retry_after.is_none(),
            Class::Permanent => true,
            Class::Misconfigured | Class::Infra => false,
        },
        retry_after,
    }
}

/// 202 in reply mode.
pub(super) fn accepted(body: &[u8]) -> Failure {
    Failure {
        class: Class::Misconfigured,
        attempted: false,
        code: "202".to_owned(),
        ..Failure::refusal(
            "the app answered 202, but results belong into the response in reply mode",
            body,
        )
    }
}

/// A status that no app may use.
pub(super) fn unknown_status(status: u16, body: &[u8]) -> Failure {
    Failure::malformed(&format!("the status {status} is no answer"), body)
}

/// How long `Retry-After` asks to wait: seconds or an HTTP date.
fn retry_after(text: &str, now_wall_ms: i64) -> Option<Duration> {
    let cap = Duration::from_secs(RETRY_AFTER_SECONDS_MAX);
    if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
        return Some(text.parse().map_or(cap, Duration::from_secs).min(cap));
    }
    let delay = date::parse(text)?.saturating_sub(now_wall_ms);
    Some(Duration::from_millis(u64::try_from(delay).unwrap_or(0)).min(cap))
}

/// `{"code":…,"message":…,"retryable":…}`, as far as it is there.
#[derive(Default)]
pub(super) struct AppError {
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) retryable: Option<bool>,
}

impl AppError {
    /// The member `error` of a JSON body; anything else says nothing.
    fn in_body(body: &[u8]) -> Self {
        if body.len() > ERROR_BODY_BYTES_MAX {
            return Self::default();
        }
        match serde_json::from_slice::<serde_json::Value>(body) {
            Ok(body) => Self::of(&body["error"]),
            Err(_) => Self::default(),
        }
    }

    /// An `error` object.
    pub(super) fn of(error: &serde_json::Value) -> Self {
        let text = |name: &str, bytes_max| {
            let value = &error[name];
            let number = value.as_number().map(ToString::to_string);
            let text = value.as_str().or(number.as_deref())?;
            Some(beginning(text, bytes_max).to_owned()).filter(|text| !text.is_empty())
        };
        Self {
            code: text("code", CODE_BYTES_MAX),
            message: text("message", DEAD_LETTER_MESSAGE_BYTES_MAX),
            retryable: error["retryable"].as_bool(),
        }
    }
}

/// The part of a body that a dead letter can hold, in memory of its own.
pub(super) fn kept(body: &[u8]) -> Bytes {
    let kept = match std::str::from_utf8(body) {
        Ok(text) => beginning(text, DEAD_LETTER_BODY_BYTES_MAX).as_bytes(),
        Err(_) => &body[..body.len().min(DEAD_LETTER_BODY_BYTES_MAX)],
    };
    Bytes::copy_from_slice(kept)
}

impl Failure {
    /// No answer before the deadline.
    pub fn timeout() -> Self {
        Self {
            kind: FailureKind::TimedOut,
            code: TIMED_OUT.to_owned(),
            ..Self::refusal("the app did not answer in time", b"")
        }
    }

    /// The app was not reached: connect refused, name unknown, TLS refused.
    pub fn connect_refused(message: impl Into<String>) -> Self {
        Self {
            class: Class::Infra,
            attempted: false,
            code: "connect".to_owned(),
            ..Self::refusal(&message.into(), b"")
        }
    }

    /// The connection ended after bytes of the request were written.
    pub fn connection_lost(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::ConnectionLost,
            code: "connection_lost".to_owned(),
            ..Self::refusal(&message.into(), b"")
        }
    }

    /// The answer is above `app.maxResponseBytes`. For a batch, wrap it in
    /// [`Outcome::TooLarge`]: its halves may fit.
    pub fn response_too_large(bytes_max: usize) -> Self {
        Self {
            class: Class::Permanent,
            kind: FailureKind::Oversized,
            code: "response_too_large".to_owned(),
            ..Self::refusal(
                &format!("the app's answer is above app.maxResponseBytes ({bytes_max} bytes)"),
                b"",
            )
        }
    }

    /// The request would be above `app.maxRequestBytes`; the app never saw it.
    pub fn request_too_large(bytes_max: usize) -> Self {
        Self {
            class: Class::Permanent,
            kind: FailureKind::Oversized,
            attempted: false,
            code: "request_too_large".to_owned(),
            ..Self::refusal(
                &format!("the event is above app.maxRequestBytes ({bytes_max} bytes)"),
                b"",
            )
        }
    }

    /// The event breaks `input.schema`; the app never saw it.
    pub fn event_breaks_schema(why: &str) -> Self {
        Self {
            class: Class::Permanent,
            kind: FailureKind::EventSchema,
            attempted: false,
            code: "schema".to_owned(),
            ..Self::refusal(&format!("the event breaks input.schema: {why}"), b"")
        }
    }

    /// A result of the app breaks `output.schema`.
    pub fn result_breaks_schema(why: &str) -> Self {
        Self {
            class: Class::Permanent,
            kind: FailureKind::ResultSchema,
            code: "schema".to_owned(),
            ..Self::refusal(&format!("a result breaks output.schema: {why}"), b"")
        }
    }

    /// A success that breaks the contract (D-R2).
    pub(super) fn malformed(what: &str, body: &[u8]) -> Self {
        Self {
            kind: FailureKind::Malformed,
            code: "malformed".to_owned(),
            ..Self::refusal(&format!("the answer is malformed: {what}"), body)
        }
    }

    fn refusal(message: &str, body: &[u8]) -> Self {
        Self {
            class: Class::Transient,
            kind: FailureKind::Refused,
            code: String::new(),
            message: beginning(message, DEAD_LETTER_MESSAGE_BYTES_MAX).to_owned(),
            body: kept(body),
            attempted: true,
            retry_after: None,
        }
    }
}

#[cfg(test)]
mod tests;
