//! Asks an app exactly as the input proxy would, and remembers every answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Method};
use millrace_core::contract::app::{
    AnswerHead, CallContext, ContentMode, EmptyBody, RequestMode, batch_body, batch_headers,
    read_batch, read_single, single_body, single_headers,
};
use millrace_core::event::{EventsBuilder, Timestamp, TimestampKind};
use millrace_core::identity::PartitionIdentity;
use millrace_core::intake::io::{Call as AppCall, CallId, Called};
use millrace_core::outcome::Outcome;
use millrace_core::position::{Partition, Position};
use millrace_core::time::Time;
use millrace_core::token::Stamp;

use crate::http::{Address, Answer, Call, CallError, Connection};
use crate::records::Draft;

/// The topic that the asked events seem to come from.
const TOPIC: &str = "check-app";

/// How long the health endpoint may take (app-contract.md, limits).
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// Which kind of requests to ask with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Wanted {
    /// What the app offers in its negotiation document; without one, what it answers.
    Auto,
    /// Only `POST /process`.
    Single,
    /// Only `POST /process-batch`.
    Batch,
}

/// How events look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum WantedContent {
    /// Raw bytes, and CloudEvents besides if the app offers them in its negotiation document.
    Auto,
    /// Only raw bytes.
    Raw,
    /// CloudEvents everywhere.
    CloudEvents,
}

/// What to check and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the app listens.
    pub address: Address,
    /// `app.path`.
    pub path: String,
    /// `app.health`.
    pub health: String,
    /// Kind of requests.
    pub wanted: Wanted,
    /// How events look.
    pub content: WantedContent,
    /// `app.contract.timeout`.
    pub timeout: Duration,
    /// `app.maxRequestBytes`.
    pub max_request_bytes: usize,
    /// `app.maxResponseBytes`.
    pub max_response_bytes: usize,
    /// `app.push.port`, if the app is in push mode: it posts its results there.
    pub push: Option<u16>,
    /// `app.contract.emptyBody`.
    pub empty_body: EmptyBody,
    /// `batch.maxRecords`.
    pub batch_max: usize,
    /// Events that the app answers well; may be none.
    pub samples: Vec<Draft>,
}

/// Makes requests as the input proxy makes them, for a load generator.
#[derive(Clone, Debug)]
pub struct Requests(Probe);

impl Requests {
    /// With the defaults of the block document.
    pub fn new() -> Self {
        Self(Probe::new(Plan {
            address: Address::local(0),
            path: "/process".to_owned(),
            health: "/healthz".to_owned(),
            wanted: Wanted::Auto,
            content: WantedContent::Raw,
            timeout: Duration::from_secs(30),
            max_request_bytes: 8 << 20,
            max_response_bytes: 8 << 20,
            push: None,
            empty_body: EmptyBody::Error,
            batch_max: 100,
            samples: Vec::new(),
        }))
    }

    /// The request of one event.
    pub fn single(&self, draft: &Draft, stamp: Stamp) -> Call {
        self.0.single_request(&self.0.app_call(&[draft], 0, stamp))
    }

    /// The request of a batch.
    pub fn batch(&self, drafts: &[&Draft], stamp: Stamp) -> Call {
        self.0.batch_request(&self.0.app_call(drafts, 0, stamp))
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

/// What came of one request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// As the input proxy understands it.
    pub(super) outcome: Outcome,
    /// As it came.
    pub(super) answer: Answer,
}

/// Builds requests and reads answers; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) plan: Arc<Plan>,
    single: Arc<CallContext>,
    batch: Arc<CallContext>,
    calls: Arc<AtomicU64>,
}

impl Probe {
    /// No two calls have the same. Nobody but the app sees it, so it need not be random.
    fn next_correlation(&self) -> [u8; 16] {
        correlation(self.calls.fetch_add(1, Ordering::Relaxed))
    }

    /// That of the next call.
    pub(super) fn upcoming_correlation(&self) -> [u8; 16] {
        correlation(self.calls.load(Ordering::Relaxed))
    }

    pub(super) fn new(plan: Plan) -> Self {
        let context = |request| CallContext {
            content: ContentMode::Raw,
            cluster: "check".to_owned(),
            path: plan.path.clone(),
            release: "check-app".to_owned(),
            max_attempts: 5,
            forward_headers: Vec::new(),
            all_headers: false,
            push: plan.push.is_some(),
            content_type_always: true,
            empty_body: plan.empty_body,
            request,
            max_request_bytes: plan.max_request_bytes,
            max_response_bytes: plan.max_response_bytes,
        };
        Self {
            single: Arc::new(context(RequestMode::Single)),
            batch: Arc::new(context(RequestMode::Batch)),
            plan: Arc::new(plan),
            calls: Arc::default(),
        }
    }

    /// The same, asking with events of this form.
    pub(super) fn asking(&self, content: ContentMode) -> Self {
        let with = |context: &CallContext| {
            Arc::new(CallContext {
                content,
                ..context.clone()
            })
        };
        Self {
            plan: Arc::clone(&self.plan),
            single: with(&self.single),
            batch: with(&self.batch),
            calls: Arc::clone(&self.calls),
        }
    }

    /// Makes a call of these events, whose positions start at `first`.
    pub(super) fn app_call(&self, drafts: &[&Draft], first: i64, stamp: Stamp) -> AppCall {
        let now = now_ms();
        let partition = Partition::new(TOPIC, 0);
        let identity = PartitionIdentity::new("check", TOPIC, 0);
        let mut builder = EventsBuilder::default();
        for (position, draft) in (first..).zip(drafts) {
            let at = Timestamp {
                ms: draft.timestamp_ms.unwrap_or(now),
                kind: TimestampKind::Create,
            };
            let headers = draft.headers.iter().map(|(n, v)| (&n[..], v.as_deref()));
            builder.push(
                Position::new(position),
                at,
                draft.key.as_deref(),
                draft.value.as_deref(),
                headers,
            );
        }
        let events = builder.finish().into_iter().map(|event| Called {
            partition: partition.clone(),
            id: identity.event_id(event.position()),
            attempt: 1,
            first_attempt_ms: now,
            event,
        });
        let start = Time {
            boot: Duration::ZERO,
            wall_ms: now,
        };
        AppCall {
            id: CallId(0),
            stamp,
            deadline: start.plus(self.plan.timeout),
            correlation: self.plan.push.map(|_| self.next_correlation()),
            events: events.collect(),
        }
    }

    /// The request of one event.
    pub(super) fn single_request(&self, call: &AppCall) -> Call {
        let called = &call.events[0];
        let mut headers = Vec::new();
        single_headers(&self.single, called, call, &mut |name, value| {
            headers.push((name.to_owned(), value.to_vec()));
        });
        Call {
            method: Method::POST,
            path: self.single.target(),
            headers,
            body: single_body(&self.single, called),
        }
    }

    /// The request of a batch.
    pub(super) fn batch_request(&self, call: &AppCall) -> Call {
        let mut headers = Vec::new();
        batch_headers(&self.batch, call, &mut |name, value| {
            headers.push((name.to_owned(), value.to_vec()));
        });
        let mut body = Vec::new();
        batch_body(&self.batch, call, &mut body);
        Call {
            method: Method::POST,
            path: self.batch.target(),
            headers,
            body: body.into(),
        }
    }

    /// Reads an answer to a single request.
    pub(super) fn read_single(&self, answer: Answer) -> Asked {
        let head = head(answer.status, &answer.headers);
        let outcome = read_single(&self.single, &head, answer.body.clone(), now_ms());
        Asked { outcome, answer }
    }

    /// Reads an answer to a batch.
    pub(super) fn read_batch(&self, call: &AppCall, answer: Answer) -> Asked {
        let head = head(answer.status, &answer.headers);
        let outcome = read_batch(&self.batch, call, &head, answer.body.clone(), now_ms());
        Asked { outcome, answer }
    }

    /// Sends a request on a new connection.
    pub(super) async fn send(&self, request: &Call) -> Result<Answer, CallError> {
        let mut connection = Connection::open(&self.plan.address).await?;
        self.send_on(&mut connection, request).await
    }

    /// Sends a request on a connection.
    pub(super) async fn send_on(
        &self,
        connection: &mut Connection,
        request: &Call,
    ) -> Result<Answer, CallError> {
        let body_max = self.plan.max_response_bytes;
        connection.call(request, self.plan.timeout, body_max).await
    }

    /// Asks with one event on a new connection.
    pub(super) async fn ask(&self, draft: &Draft, stamp: Stamp) -> Result<Asked, CallError> {
        let call = self.app_call(&[draft], 0, stamp);
        let answer = self.send(&self.single_request(&call)).await?;
        Ok(self.read_single(answer))
    }

    /// Asks with a batch on a new connection.
    pub(super) async fn ask_batch(&self, call: &AppCall) -> Result<Asked, CallError> {
        let answer = self.send(&self.batch_request(call)).await?;
        Ok(self.read_batch(call, answer))
    }

    /// Whether the app is healthy.
    pub(super) async fn healthy(&self) -> Result<Answer, CallError> {
        let call = Call::get(&self.plan.health);
        crate::http::once(&self.plan.address, &call, HEALTH_TIMEOUT, 1 << 20).await
    }
}

fn correlation(call: u64) -> [u8; 16] {
    let mut correlation = *b"check-app-------";
    correlation[8..].copy_from_slice(&call.to_be_bytes());
    correlation
}

fn head(status: u16, headers: &HeaderMap) -> AnswerHead<'_> {
    let headers = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    AnswerHead::read(status, headers)
}

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}
