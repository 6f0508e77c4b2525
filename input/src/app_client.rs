//! Calls the app over HTTP and turns what comes back into outcomes.
//!
//! Invariant: whether a failed request is tried again is decided in core; from here nothing is
//! sent twice (A-T1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_core::contract::app::{
    AnswerHead, CallContext, OFFER_PATH, Offer, RequestMode, batch_body, batch_headers, read_batch,
    read_single, single_body, single_headers,
};
use millrace_core::contract::block::{App, HealthCheck};
use millrace_core::intake::io::{Call, CallId};
use millrace_core::outcome::{Failure, Item, Outcome, Output};
use millrace_core::time::Time;
use millrace_service::http::{
    Client, Error, HeaderMap, HeaderName, HeaderValue, Protocol, Request, Response, Server,
    Settings,
};
use millrace_service::schema::Schemas;
use millrace_service::telemetry::chain;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tracing::{trace, warn};

use crate::metrics::CallMetrics;
use crate::tap::Tap;

/// How long a health check may take (table of limits in app-contract.md).
const HEALTH: Duration = Duration::from_secs(1);
/// Bytes of a health answer that are read.
const HEALTH_BYTES_MAX: usize = 64 << 10;

/// How the app's health is seen (`app.healthCheck`).
enum Health {
    /// This path answers 2xx.
    Path(Bytes),
    /// This server accepts connections.
    Connect(Server),
}

/// One customer app in this pod. All clones are one.
#[derive(Clone)]
pub(crate) struct AppClient {
    inner: Arc<Inner>,
}

/// What every call passes.
pub(crate) struct Around {
    pub(crate) metrics: CallMetrics,
    pub(crate) schemas: Arc<Schemas>,
    pub(crate) tap: Tap,
}

struct Inner {
    calls: Client,
    probes: Client,
    health: Health,
    target: Bytes,
    context: CallContext,
    around: Around,
}

impl AppClient {
    /// A client that makes at most `calls_max` calls at once.
    pub(crate) fn new(
        server: &Server,
        protocol: Protocol,
        app: &App,
        calls_max: usize,
        context: CallContext,
        around: Around,
    ) -> Result<Self, Error> {
        let settings = |calls_max, bytes_max| {
            Settings::new(server.clone(), calls_max, bytes_max).with(protocol)
        };
        Ok(Self {
            inner: Arc::new(Inner {
                calls: Client::new(settings(calls_max, context.max_response_bytes))?,
                probes: Client::new(settings(1, HEALTH_BYTES_MAX))?,
                health: match app.health_check {
                    HealthCheck::Http => Health::Path(app.health.clone().into()),
                    HealthCheck::Connect => Health::Connect(server.clone()),
                },
                target: context.target().into(),
                context,
                around,
            }),
        })
    }

    /// Performs a call on a task of its own; its end goes into the channel.
    pub(crate) fn start(&self, call: Call, now: Time, done: &mpsc::Sender<(CallId, Outcome)>) {
        let client = self.clone();
        let done = done.clone();
        tokio::spawn(async move {
            let id = call.id;
            // On the heap at once: a task is moved several times until it runs.
            let outcome = Box::pin(client.inner.perform(&call, now)).await;
            // The driver is gone only when the process stops.
            let _gone = done.send((id, outcome)).await;
        });
    }

    /// Whether the health endpoint answers 2xx, or the port accepts connections.
    pub(crate) async fn healthy(&self) -> Result<(), String> {
        let path = match &self.inner.health {
            Health::Path(path) => path,
            Health::Connect(server) => return connects(server).await,
        };
        let request = Request::get(path.clone());
        match self.inner.probes.send(request, HEALTH).await {
            Ok(response) if (200..300).contains(&response.status) => Ok(()),
            Ok(response) => Err(format!(
                "GET {} answered {}",
                String::from_utf8_lossy(path),
                response.status
            )),
            Err(error) => Err(chain(&error).to_string()),
        }
    }
}

impl AppClient {
    /// What the app says about itself; `None` if it says nothing that can be read, which is told.
    ///
    /// # Errors
    /// If it gives no answer at all.
    pub(crate) async fn offer(&self) -> Result<Option<Offer>, String> {
        let asked = self.inner.probes.send(Request::get(OFFER_PATH), HEALTH);
        let answer = asked.await.map_err(|error| chain(&error).to_string())?;
        if answer.status == 404 {
            return Ok(None);
        }
        let read = match answer.status {
            200 => Offer::read(&answer.body).map_err(|error| error.to_string()),
            status => Err(format!("it answered {status}")),
        };
        let ignored = |error: &String| {
            warn!(path = OFFER_PATH, %error, "what the app says about itself cannot be read; the configuration decides");
        };
        Ok(read.inspect_err(ignored).ok())
    }
}

impl Inner {
    async fn perform(&self, call: &Call, now: Time) -> Outcome {
        let started = clock();
        if let Some(failure) = self.breach(call) {
            let outcome = Outcome::TooLarge(failure);
            self.around.tap.saw(call, &outcome, started.elapsed());
            return outcome;
        }
        let answer = self
            .calls
            .send(self.request(call), call.deadline.since(now))
            .await;
        let (outcome, status) = match answer {
            Ok(response) => (self.read(call, &response, now), response.status),
            // The answer to a smaller batch may fit.
            Err(error @ Error::TooLarge { .. }) => (Outcome::TooLarge(self.failure(&error)), 0),
            Err(error) => (Outcome::Failed(self.failure(&error)), 0),
        };
        let outcome = self.checked(outcome);
        let took = started.elapsed();
        let success = matches!(outcome, Outcome::Items(_));
        trace!(target: "millrace::messages", event = "input.message.received", success);
        self.around
            .metrics
            .call_ended(&outcome, status, call.events.len(), took);
        self.around.tap.saw(call, &outcome, took);
        outcome
    }

    /// The first event of a call that breaks `input.schema`. The machine halves the call until
    /// that event is alone (D-F4).
    fn breach(&self, call: &Call) -> Option<Failure> {
        let schema = self.around.schemas.event.as_ref()?;
        call.events.iter().find_map(|called| {
            // A tombstone has no value that could break anything.
            let why = schema.check(called.event.value()?).err()?;
            Some(Failure::event_breaks_schema(&why))
        })
    }

    /// An outcome without results that break `output.schema`.
    fn checked(&self, outcome: Outcome) -> Outcome {
        let Some(schema) = &self.around.schemas.result else {
            return outcome;
        };
        let Outcome::Items(mut items) = outcome else {
            return outcome;
        };
        let why = |output: &Output| schema.check(output.value.as_deref()?).err();
        for item in &mut items {
            let breach = match item {
                Item::Emit(output) => why(output),
                Item::EmitMany(outputs) => outputs.iter().find_map(why),
                Item::Filter | Item::Failed(_) => None,
            };
            if let Some(why) = breach {
                *item = Item::Failed(Failure::result_breaks_schema(&why));
            }
        }
        Outcome::Items(items)
    }

    fn request(&self, call: &Call) -> Request {
        let (headers, body) = match self.context.request {
            RequestMode::Single => {
                let called = &call.events[0];
                let headers = headers(|put| single_headers(&self.context, called, call, put));
                (headers, single_body(&self.context, called))
            }
            RequestMode::Batch => {
                let mut body = Vec::new();
                batch_body(&self.context, call, &mut body);
                let headers = headers(|put| batch_headers(&self.context, call, put));
                (headers, body.into())
            }
        };
        Request::post(self.target.clone(), headers, body)
    }

    fn read(&self, call: &Call, response: &Response, now: Time) -> Outcome {
        let headers = response.headers.iter();
        let headers = headers.map(|(name, value)| (name.as_str(), value.as_bytes()));
        let head = AnswerHead::read(response.status, headers);
        let body = response.body.clone();
        match self.context.request {
            RequestMode::Single => read_single(&self.context, &head, body, now.wall_ms),
            RequestMode::Batch => read_batch(&self.context, call, &head, body, now.wall_ms),
        }
    }

    /// The class of a request without an answer (class table of delivery.md).
    fn failure(&self, error: &Error) -> Failure {
        let message = chain(error).to_string();
        match error {
            Error::Connect { .. } | Error::ConnectTimeout { .. } | Error::LostBeforeWrite(_) => {
                Failure::connect_refused(message)
            }
            Error::LostAfterWrite(_) | Error::Malformed(_) => Failure::connection_lost(message),
            Error::Timeout { .. } => Failure::timeout(),
            Error::TooLarge { limit_bytes } => Failure::response_too_large(*limit_bytes),
            Error::Unsendable(_) => Failure::request_too_large(self.context.max_request_bytes),
        }
    }
}

/// What `fill` names; what HTTP cannot write down is left out. All values share one piece of memory.
fn headers(fill: impl FnOnce(&mut dyn FnMut(&str, &[u8]))) -> HeaderMap {
    let mut text = Vec::with_capacity(512);
    let mut ends = Vec::with_capacity(20);
    fill(&mut |name, value| {
        let known = known_name(name).ok_or(());
        if let Ok(name) = known.or_else(|()| HeaderName::from_bytes(name.as_bytes())) {
            text.extend_from_slice(value);
            ends.push((name, text.len()));
        }
    });
    let text = Bytes::from(text);
    let mut headers = HeaderMap::with_capacity(ends.len() + 2);
    let mut start = 0;
    for (name, end) in ends {
        if let Ok(value) = HeaderValue::from_maybe_shared(text.slice(start..end)) {
            headers.append(name, value);
        }
        start = end;
    }
    headers
}

/// The names that every call has, which need no memory of their own.
fn known_name(name: &str) -> Option<HeaderName> {
    macro_rules! known {
        ($($text:literal)*) => {
            match name {
                $($text => {
                    static NAME: HeaderName = HeaderName::from_static($text);
                    Some(NAME.clone())
                })*
                _ => None,
            }
        };
    }
    known!(
        "content-type" "millrace-id" "millrace-topic" "millrace-partition" "millrace-offset"
        "millrace-timestamp" "millrace-key" "millrace-key-text" "millrace-attempt"
        "millrace-max-attempts" "millrace-first-attempt" "millrace-deadline" "millrace-release"
        "millrace-mode" "millrace-correlation"
    )
}

async fn connects(server: &Server) -> Result<(), String> {
    let connect = async {
        match server {
            Server::Tcp { host, port } => {
                TcpStream::connect((host.as_str(), *port)).await.map(drop)
            }
            Server::Socket(path) => UnixStream::connect(path).await.map(drop),
        }
    };
    match tokio::time::timeout(HEALTH, connect).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("nothing listens at {server}: {error}")),
        Err(_) => Err(format!("{server} accepts no connection in time")),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures one call; no lease or age hangs on it"
)]
fn clock() -> Instant {
    Instant::now()
}
