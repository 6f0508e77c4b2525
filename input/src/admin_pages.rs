//! What operators may ask the input proxy (D-H3): `/v1/*`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_core::intake::io::Operator;
use millrace_core::intake::state::State;
use millrace_core::lanes::{LaneHash, Ordering};
use millrace_core::position::{Partition, Position};
use millrace_service::shutdown::Shutdown;
use millrace_service::time::clock;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::driver::Command;
use crate::tap::{Tap, WATCHERS_MAX, Wish};

/// Longest time that the storm guard can be switched off for.
const STORM_GUARD_OFF_MAX: Duration = Duration::from_secs(24 * 3600);

/// What the routes need.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) driver: mpsc::Sender<Command>,
    /// The document, redacted.
    pub(crate) document: Value,
    pub(crate) shutdown: Shutdown,
    pub(crate) tap: Tap,
    /// `admin.tapPayloads`.
    pub(crate) tap_payloads: bool,
    /// `delivery.ordering`: what a key's lane is.
    pub(crate) ordering: Ordering,
}

/// The routes below `/v1`.
pub(crate) fn routes(desk: Desk) -> Router {
    Router::new()
        .route("/partitions", get(partitions))
        .route("/records/{topic}/{partition}/{offset}", get(record))
        .route(
            "/config",
            get(|Shared(desk): Shared<Desk>| async move { Json(desk.document) }),
        )
        .route("/tap", get(tap))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/skip", post(skip))
        .route("/unpark", post(unpark))
        .route("/drain", post(drain))
        .with_state(desk)
}

impl Desk {
    /// A snapshot of the machine; `None` if the driver has ended.
    pub(crate) async fn state(&self) -> Option<State> {
        let (answer, state) = oneshot::channel();
        self.driver.send(Command::State(answer)).await.ok()?;
        state.await.ok()
    }

    async fn operate(&self, operator: Operator) -> Response {
        match self.driver.send(Command::Operate(operator)).await {
            Ok(()) => Json(json!({"accepted": true})).into_response(),
            Err(_) => ended(),
        }
    }
}

fn ended() -> Response {
    problem(StatusCode::SERVICE_UNAVAILABLE, "the proxy has stopped")
}

fn problem(code: StatusCode, message: &str) -> Response {
    (code, Json(json!({"error": {"message": message}}))).into_response()
}

async fn partitions(Shared(desk): Shared<Desk>) -> Response {
    let Some(state) = desk.state().await else {
        return ended();
    };
    let partitions: Vec<Value> = state
        .partitions
        .iter()
        .map(|p| {
            json!({
                "topic": p.partition.topic(),
                "partition": p.partition.number(),
                "phase": p.phase,
                "reason": p.reason,
                "paused": p.paused.map(millrace_core::intake::state::Pause::as_str),
                "inFlight": p.in_flight,
                "committed": p.committed.offset(),
                "watermark": p.watermark.offset(),
                "end": p.end.offset(),
                "lag": p.lag.map(|lag| lag.records),
                "inDoubt": p.in_doubt,
                "conservationGap": p.conservation_gap(),
                "records": p.counters.records,
                "emitted": p.counters.emitted,
                "filtered": p.counters.filtered,
                "deadLettered": p.counters.dead_lettered,
                "dropped": p.counters.dropped,
                "parkedLanes": p.parked.len(),
            })
        })
        .collect();
    Json(json!({
        "partitions": partitions,
        "desiredReplicas": state.desired_replicas,
        "stalledPartitions": state.stalled,
        "breaker": state.breaker.map(millrace_core::breaker::Cause::as_str),
        "appReachable": state.app_reachable,
        "outputConnected": state.output_connected,
        "concurrencyLimit": state.concurrency_limit,
        "batchLimit": state.batch_limit,
        "callsOpen": state.calls_open,
        "retries": state.retries,
        "resends": state.resends,
    }))
    .into_response()
}

async fn record(
    Shared(desk): Shared<Desk>,
    Path((topic, number, offset)): Path<(String, i32, i64)>,
) -> Response {
    let (answer, record) = oneshot::channel();
    let partition = Partition::new(topic, number);
    let asked = desk
        .driver
        .send(Command::Record(partition, Position::new(offset), answer));
    if asked.await.is_err() {
        return ended();
    }
    match record.await {
        Err(_) => ended(),
        Ok(None) => problem(StatusCode::NOT_FOUND, "this event is not in flight here"),
        Ok(Some(record)) => Json(json!({
            "place": record.place,
            "attempts": record.attempts,
            "firstAttemptMs": record.first_attempt_ms,
            "error": record.error.as_deref(),
        }))
        .into_response(),
    }
}

/// `?filter=outcome=failed,partition=3&rate=50&payloads=true`, all optional.
async fn tap(
    Shared(desk): Shared<Desk>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let wish = match Wish::read(&query, desk.tap_payloads) {
        Ok(wish) => wish,
        Err(message) => return problem(StatusCode::UNPROCESSABLE_ENTITY, &message),
    };
    match desk.tap.watch(wish, desk.shutdown) {
        Some(lines) => {
            let kind = [(axum::http::header::CONTENT_TYPE, "text/event-stream")];
            (kind, Body::new(lines)).into_response()
        }
        None => problem(
            StatusCode::TOO_MANY_REQUESTS,
            &format!("{WATCHERS_MAX} are watching already"),
        ),
    }
}

async fn pause(Shared(desk): Shared<Desk>) -> Response {
    desk.operate(Operator::Pause).await
}

/// `{"stormGuardOff": "10m"}`, or nothing.
async fn resume(Shared(desk): Shared<Desk>, body: Option<Json<Value>>) -> Response {
    let off = body
        .as_ref()
        .and_then(|Json(body)| body.get("stormGuardOff"));
    let off = match off.map(|text| {
        text.as_str()
            .and_then(millrace_core::contract::block::parse_duration)
    }) {
        None => None,
        Some(Some(off)) if off <= STORM_GUARD_OFF_MAX => Some(clock().plus(off)),
        Some(_) => {
            return problem(
                StatusCode::UNPROCESSABLE_ENTITY,
                "stormGuardOff: a time such as 10m, at most 24h",
            );
        }
    };
    desk.operate(Operator::Resume {
        storm_guard_off_until: off,
    })
    .await
}

/// `{"topic": "t", "partition": 0, "offset": 7, "reason": "why"}`.
async fn skip(Shared(desk): Shared<Desk>, Json(body): Json<Value>) -> Response {
    let topic = body.get("topic").and_then(Value::as_str);
    let number = body
        .get("partition")
        .and_then(Value::as_i64)
        .and_then(|n| i32::try_from(n).ok());
    let offset = body.get("offset").and_then(Value::as_i64);
    let reason = body
        .get("reason")
        .and_then(Value::as_str)
        .filter(|r| !r.trim().is_empty());
    let (Some(topic), Some(number), Some(offset), Some(reason)) = (topic, number, offset, reason)
    else {
        let message = "skip needs topic, partition, offset and a reason";
        return problem(StatusCode::UNPROCESSABLE_ENTITY, message);
    };
    desk.operate(Operator::Skip {
        partition: Partition::new(topic, number),
        position: Position::new(offset),
        reason: reason.to_owned(),
    })
    .await
}

/// `{"topic": "t", "partition": 0, "key": "k"}` or `keyBase64`; what is left out means all (D-L5).
async fn unpark(Shared(desk): Shared<Desk>, body: Option<Json<Value>>) -> Response {
    let body = body.map_or(Value::Null, |Json(body)| body);
    let (partition, lane) = match unparked(&body, desk.ordering) {
        Ok(chosen) => chosen,
        Err(message) => return problem(StatusCode::UNPROCESSABLE_ENTITY, message),
    };
    let Some(state) = desk.state().await else {
        return ended();
    };
    let chosen = state.partitions.iter().filter(|p| {
        partition
            .as_ref()
            .is_none_or(|wanted| *wanted == p.partition)
    });
    let lanes: usize = chosen
        .map(|p| {
            let parked = p.parked.iter();
            parked
                .filter(|parked| lane.is_none_or(|lane| **parked == lane))
                .count()
        })
        .sum();
    let operator = Operator::Unpark { partition, lane };
    match desk.driver.send(Command::Operate(operator)).await {
        Ok(()) => Json(json!({"unparked": lanes})).into_response(),
        Err(_) => ended(),
    }
}

/// The partition and the lane that a body names.
fn unparked(
    body: &Value,
    ordering: Ordering,
) -> Result<(Option<Partition>, Option<LaneHash>), &'static str> {
    let topic = body.get("topic").map(Value::as_str);
    let number = body.get("partition").map(|number| {
        number
            .as_i64()
            .and_then(|number| i32::try_from(number).ok())
    });
    let partition = match (topic, number) {
        (None, None) => None,
        (Some(Some(topic)), Some(Some(number))) => Some(Partition::new(topic, number)),
        _ => return Err("topic and partition go together, a text and a number"),
    };
    let key = match (body.get("key"), body.get("keyBase64")) {
        (None, None) => None,
        (Some(Value::String(key)), None) => Some(key.clone().into_bytes()),
        (None, Some(Value::String(key))) => Some(
            STANDARD
                .decode(key)
                .map_err(|_| "keyBase64 is not base64")?,
        ),
        _ => return Err("give key as text, or keyBase64"),
    };
    let lane = match &key {
        None => None,
        Some(key) => {
            let lane = LaneHash::of(ordering, Some(key));
            Some(lane.ok_or("with delivery.ordering: None there are no lanes to park")?)
        }
    };
    Ok((partition, lane))
}

async fn drain(Shared(desk): Shared<Desk>) -> Response {
    desk.shutdown.request();
    (StatusCode::ACCEPTED, Json(json!({"accepted": true}))).into_response()
}
