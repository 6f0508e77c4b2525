//! The HTTP contract between the input proxy and the app (`app-contract.md`): what a call sends
//! and what its answer means.
//!
//! [`request`] writes calls, [`answer`] reads heads and single answers, [`batch`] reads batches,
//! [`offer`] what the app says about itself, [`cloud_events`] the other form of both.
//!
//! Invariant: every answer, whatever its bytes, becomes an [`Outcome`](crate::outcome::Outcome)
//! with a class of delivery.md's table.
//! Invariant: a batch costs no allocation per event when answers come in order and without
//! several results per event.

pub mod answer;
pub mod batch;
pub mod cloud_events;
mod date;
mod json;
pub mod offer;
pub mod push;
pub mod request;

pub use answer::{AnswerHead, read_single};
pub use batch::read_batch;
pub use offer::{OFFER_PATH, Offer, Refusal};
pub use push::{Malformed, Pushed, read_correlation, read_push};
pub use request::{batch_body, batch_headers, single_body, single_headers, too_large};

/// What an empty body of a success means (`app.contract.emptyBody`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EmptyBody {
    /// It is malformed.
    Error,
    /// There is no result.
    Filter,
    /// There is one result with an empty value.
    Emit,
}

/// How events are sent (`app.contract.request`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestMode {
    /// One event per request.
    Single,
    /// Several.
    Batch,
}

/// How an event looks (`app.contract.content`, `app.contract.structured`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentMode {
    /// The value's bytes.
    Raw,
    /// A CloudEvent: attributes in headers, the value as body.
    Binary,
    /// A CloudEvent in JSON.
    Structured,
}

/// What all calls of a block share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallContext {
    /// `app.path`; a batch goes to this plus `-batch` ([`CallContext::target`]).
    pub path: String,
    /// The release of the app.
    pub release: String,
    /// `retry.maxAttempts`.
    pub max_attempts: u32,
    /// Record headers that are sent one by one (A-S2).
    pub forward_headers: Vec<String>,
    /// Whether all record headers are sent in one (A-S2).
    pub all_headers: bool,
    /// Whether an event that names no content type is sent as `application/octet-stream`.
    pub content_type_always: bool,
    /// What an empty success means.
    pub empty_body: EmptyBody,
    /// One event per request, or several.
    pub request: RequestMode,
    /// How an event looks; a batch of CloudEvents is always in JSON.
    pub content: ContentMode,
    /// The cluster id of the input, part of the source of made CloudEvents.
    pub cluster: String,
    /// Results are posted to the output; the answer only says how it went (`app.contract.mode`).
    pub push: bool,
    /// `app.maxRequestBytes`.
    pub max_request_bytes: usize,
    /// `app.maxResponseBytes`.
    pub max_response_bytes: usize,
}

impl CallContext {
    /// The path of the request.
    pub fn target(&self) -> String {
        match self.request {
            RequestMode::Single => self.path.clone(),
            RequestMode::Batch => format!("{}-batch", self.path),
        }
    }
}

#[cfg(test)]
mod tests;
