//! `app`: the customer's container, and how the proxies talk to it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::values::Port;

/// `app`.
#[derive(Clone, PartialEq, Debug)]
pub struct App {
    /// Needed on clusters only (C-6).
    pub image: Option<String>,
    /// Where it listens on 127.0.0.1.
    pub port: Port,
    /// Where it listens instead, with `transport: UnixSocket`.
    pub socket: PathBuf,
    /// Path of single requests; see [`App::batch_path`].
    pub path: String,
    /// Path of the health check.
    pub health: String,
    /// What shows that it works.
    pub health_check: HealthCheck,
    /// How we talk to it.
    pub contract: AppContract,
    /// Push mode only.
    pub push: Push,
    /// Largest request body.
    pub max_request_bytes: u64,
    /// Largest response body.
    pub max_response_bytes: u64,
    /// What becomes of an event above `max_request_bytes`.
    pub oversized: OversizedRequest,
    /// Record headers to send along (A-S2).
    pub forward_headers: Vec<String>,
    /// Send all of them (A-S2).
    pub all_headers: bool,
    /// What it remembers.
    pub state: AppState,
    /// Whether it may be asked in silence.
    pub shadow: ShadowSafety,
    /// A word for what it computes with.
    pub model_version: Option<String>,
    /// Its environment.
    pub env: Vec<EnvironmentVariable>,
    /// As in a Pod.
    pub resources: Value,
    /// How `millrace dev` starts it.
    pub local: Option<LocalApp>,
}

impl App {
    /// Path of batch requests.
    pub fn batch_path(&self) -> String {
        format!("{}-batch", self.path)
    }
}

/// `app.contract`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppContract {
    /// Who sends the results.
    pub mode: ContractMode,
    /// One event or many per request.
    pub request: RequestKind,
    /// How an event looks.
    pub content: Content,
    /// CloudEvents: structured requests.
    pub structured: bool,
    /// Content type of an event that has none.
    pub content_type: ContentType,
    /// Of one request, wall clock.
    pub timeout: Duration,
    /// Requests that may be open.
    pub max_in_flight: u32,
    /// How the bytes travel.
    pub transport: Transport,
    /// What an empty 200 means.
    pub empty_body: EmptyBody,
}

/// `app.healthCheck`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum HealthCheck {
    /// Its health endpoint answers 2xx.
    Http,
    /// Its port accepts connections.
    Connect,
}

/// `app.contract.contentType`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ContentType {
    /// `application/octet-stream` where the event says nothing.
    Always,
    /// Only what the event says.
    IfKnown,
}

/// `app.contract.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ContractMode {
    /// Results are in the response.
    Reply,
    /// The app posts them to the output proxy.
    Push,
}

/// `app.contract.request`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RequestKind {
    /// One event.
    Single,
    /// Many.
    Batch,
}

/// `app.contract.content`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Content {
    /// The value's bytes.
    Raw,
    /// CloudEvents.
    CloudEvents,
}

/// `app.contract.transport`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Transport {
    /// HTTP/1.1 on 127.0.0.1.
    Tcp,
    /// HTTP/1.1 on a socket.
    UnixSocket,
    /// HTTP/2 without TLS.
    Http2,
}

/// `app.contract.emptyBody`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EmptyBody {
    /// A malformed answer.
    Error,
    /// No result.
    Filter,
    /// A result with an empty value.
    Emit,
}

/// `app.push`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Push {
    /// Where the output listens; 0: any free one.
    pub port: Port,
    /// How results find their event.
    pub correlate: Correlate,
    /// Whether results without a correlation pass.
    pub allow_uncorrelated: bool,
    /// Topics that get each posted result beside the output's.
    pub copies: Vec<String>,
}

/// `app.push.correlate`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Correlate {
    /// The app echoes a header.
    Echo,
    /// One event at a time.
    Serial,
}

/// `app.oversized`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OversizedRequest {
    /// Store the event, reason `oversized`.
    DeadLetter,
    /// Hold its lane and alert.
    Block,
}

/// `app.state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AppState {
    /// Nothing.
    None,
    /// Each release its own.
    PerRelease,
    /// All releases the same.
    Shared,
}

/// `app.shadow`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ShadowSafety {
    /// It has no side effects.
    Safe,
    /// It obeys `Millrace-Mode`.
    Aware,
    /// Neither.
    Unsafe,
}

/// One of `app.env`.
#[derive(Clone, PartialEq, Debug)]
pub struct EnvironmentVariable {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub value: EnvironmentValue,
}

/// The value of an [`EnvironmentVariable`].
#[derive(Clone, PartialEq, Debug)]
pub enum EnvironmentValue {
    /// Written down.
    Text(String),
    /// A reference as in a Pod (`valueFrom`); clusters only.
    Reference(Value),
}

/// `app.local`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalApp {
    /// Relative to the document.
    pub directory: PathBuf,
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// Its requirements file, relative to `directory`, when it wants a virtual environment.
    pub python_requirements: Option<PathBuf>,
}
