//! What came of a call to the app, before anybody decides what follows from it.

use std::time::Duration;

use bytes::Bytes;

/// What a call came to. `contract::app` makes these from HTTP answers; `fate` turns them into
/// what happens to the events.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// A well-formed answer: one item per event of the call, in the order of the call.
    Items(Vec<Item>),
    /// The call failed as a whole; it applies to each of its events (A-B2).
    Failed(Failure),
    /// The request was too large for the app (413), or one of its events breaks the schema: halve
    /// a batch and send again, uncounted; a single event is permanent (A-B2, D-F4).
    TooLarge(Failure),
    /// Nobody waits for it any more: the call was given up before the app could start on it.
    Abandoned,
}

/// What came of one event of a call.
#[derive(Clone, PartialEq, Debug)]
pub enum Item {
    /// The app answered with one result.
    Emit(Output),
    /// The app answered with several results; an empty list is a filter.
    EmitMany(Vec<Output>),
    /// The app answered that there is nothing to say.
    Filter,
    /// The app could not answer this event.
    Failed(Failure),
}

/// One result as the app gave it (A-S4, A-S5), before anything is inherited from the event.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Output {
    /// Another topic than the configured one.
    pub topic: Option<String>,
    /// A partition of that topic.
    pub partition: Option<i32>,
    /// Epoch milliseconds.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: OutputKey,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers of the app; they come after the inherited ones and replace those of the same name.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
    /// Whether it is a CloudEvent of its own: it inherits no attributes of the event.
    pub cloud_event: bool,
}

/// The key of an [`Output`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum OutputKey {
    /// The event's (D-F2).
    #[default]
    Inherit,
    /// Null.
    Null,
    /// These bytes.
    Bytes(Bytes),
}

/// The class table of delivery.md, section Retry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Worth another attempt.
    Transient,
    /// Will fail again; dead letter at once.
    Permanent,
    /// The app or the platform is set up wrongly: pause and tell somebody.
    Misconfigured,
    /// The app was not reached: hold, probe, resume.
    Infra,
}

/// Why a call or an item failed.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// What follows from it.
    pub class: Class,
    /// Whether it is a well-formed refusal or an answer that breaks the contract.
    pub kind: FailureKind,
    /// HTTP status, the app's error code, or a word of ours such as `timeout` or `connect`.
    pub code: String,
    /// For people, at most `DEAD_LETTER_MESSAGE_BYTES_MAX` bytes.
    pub message: String,
    /// The answer's body, cut to `DEAD_LETTER_BODY_BYTES_MAX`.
    pub body: Bytes,
    /// Whether the app could have started on it (class table, column "Attempt?").
    pub attempted: bool,
    /// When and for whom the app asked to wait (D-B5).
    pub retry_after: Option<RetryAfter>,
}

/// The code of a failure without an answer before the deadline.
pub const TIMED_OUT: &str = "timeout";

/// What sort of failure it is, where the class alone does not say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FailureKind {
    /// A status, an item status or a connection error.
    Refused,
    /// There was no answer before the deadline.
    TimedOut,
    /// A 2xx answer that breaks the contract; ten in a row are misconfigured (D-R2).
    Malformed,
    /// The connection died with the call in flight: the app may have crashed (D-B6).
    ConnectionLost,
    /// The request or the response is above its limit (dead letter reason `oversized`).
    Oversized,
    /// The event breaks `input.schema`; the app was not asked (D-F4).
    EventSchema,
    /// A result breaks `output.schema` (D-F4).
    ResultSchema,
}

/// A wish of the app to be left alone (D-B5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryAfter {
    /// For how long.
    pub delay: Duration,
    /// What has to wait.
    pub scope: RetryScope,
}

/// What a [`RetryAfter`] stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryScope {
    /// Only the event.
    Event,
    /// The event's lane.
    Lane,
    /// Every call to the app.
    All,
}
