//! Calls the app over HTTP/1.1 and turns what comes back into outcomes.
//!
//! Invariant: whether a failed request is tried again is decided in core; from here nothing is
//! sent twice (A-T1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_core::contract::app::{
    AnswerHead, CallContext, OFFER_PATH, Offer, RequestMode, batch_body, batch_headers, read_batch,
    read_single, single_headers,
};
use millrace_core::intake::io::{Call, CallId};
use millrace_core::outcome::{Failure, Outcome};
use millrace_core::time::Time;
use millrace_service::http::{
    Client, Error, HeaderMap, HeaderName, HeaderValue, Request, Response, Settings,
};
use millrace_service::telemetry::chain;
use tokio::sync::mpsc;
use tracing::warn;

use crate::metrics::CallMetrics;

/// How long a health check may take (table of limits in app-contract.md).
const HEALTH: Duration = Duration::from_secs(1);
/// Bytes of a health answer that are read.
const HEALTH_BYTES_MAX: usize = 64 << 10;

/// One customer app on 127.0.0.1. All clones are one.
#[derive(Clone)]
pub(crate) struct AppClient {
    inner: Arc<Inner>,
}

struct Inner {
    calls: Client,
    probes: Client,
    health: String,
    target: String,
    context: CallContext,
    metrics: CallMetrics,
}

impl AppClient {
    /// A client that keeps at most `connections_max` connections.
    pub(crate) fn new(
        port: u16,
        health: &str,
        connections_max: usize,
        context: CallContext,
        metrics: CallMetrics,
    ) -> Result<Self, Error> {
        let calls = Settings::local(port, connections_max, context.max_response_bytes);
        Ok(Self {
            inner: Arc::new(Inner {
                calls: Client::new(calls)?,
                probes: Client::new(Settings::local(port, 1, HEALTH_BYTES_MAX))?,
                health: health.to_owned(),
                target: context.target(),
                context,
                metrics,
            }),
        })
    }

    /// Performs a call on a task of its own; its end goes into the channel.
    pub(crate) fn start(&self, call: Call, now: Time, done: &mpsc::Sender<(CallId, Outcome)>) {
        let client = self.clone();
        let done = done.clone();
        tokio::spawn(async move {
            let id = call.id;
            let outcome = client.inner.perform(&call, now).await;
            // The driver is gone only when the process stops.
            let _gone = done.send((id, outcome)).await;
        });
    }

    /// Whether the health endpoint answers 2xx.
    pub(crate) async fn healthy(&self) -> Result<(), String> {
        let inner = &self.inner;
        match inner.probes.send(Request::get(&inner.health), HEALTH).await {
            Ok(response) if (200..300).contains(&response.status) => Ok(()),
            Ok(response) => Err(format!("GET {} answered {}", inner.health, response.status)),
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
        self.metrics
            .call_ended(&outcome, status, call.events.len(), started.elapsed());
        outcome
    }

    fn request(&self, call: &Call) -> Request {
        let mut headers = HeaderMap::with_capacity(20);
        let mut put = |name: &str, value: &[u8]| {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        };
        let body = match self.context.request {
            RequestMode::Single => {
                let called = &call.events[0];
                single_headers(&self.context, called, call, &mut put);
                Bytes::copy_from_slice(called.event.value().unwrap_or_default())
            }
            RequestMode::Batch => {
                batch_headers(&self.context, call, &mut put);
                let mut body = Vec::new();
                batch_body(&self.context, call, &mut body);
                body.into()
            }
        };
        Request::post(&self.target, headers, body)
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

#[expect(
    clippy::disallowed_methods,
    reason = "measures one call; no lease or age hangs on it"
)]
fn clock() -> Instant {
    Instant::now()
}
