//! The admin port: probes, metrics, drain, and what operators may ask (`/v1/*`).
//!
//! The server knows who may ask (D-P6) and how health reads (D-H1). What `/v1/*` answers comes
//! as routes from the input or the output proxy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use millrace_core::contract::block::{Secret, parse_duration};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::config::Environment;
use crate::secret::{self, SecretText};
use crate::shutdown::{DRAIN_DEADLINE, Shutdown};
use crate::telemetry::{Logs, Metrics, chain};

pub mod health;

pub use self::health::{Health, Readiness};

/// The header that carries the drain token (D-S3).
pub const DRAIN_TOKEN_HEADER: &str = "Millrace-Drain-Token";

/// Longest time that a log level can be changed for.
const LOG_LEVEL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Who may ask what.
#[derive(Clone, Debug)]
pub struct Access {
    /// The address that the port is bound to.
    pub bind: IpAddr,
    /// `admin.token`; read again at each request, so a changed file counts at once (C-3).
    pub token: Option<Secret>,
    /// Where `{env: NAME}` is looked up.
    pub environment: Environment,
    /// What `/drain` asks for; without one it is closed.
    pub drain_token: Option<SecretText>,
}

/// What an admin port serves.
#[derive(Debug)]
pub struct Admin {
    /// Who may ask what.
    pub access: Access,
    /// What the probes answer.
    pub health: Health,
    /// What `/metrics` answers.
    pub metrics: Metrics,
    /// What `/drain` asks for, and what ends the server.
    pub shutdown: Shutdown,
    /// What `POST /v1/log-level` changes; `None` if the logs belong to somebody else.
    pub logs: Option<Logs>,
    /// Routes under `/v1`, without that prefix: `/partitions`, `/pause`, …
    pub v1: Router,
}

/// Why the admin port does not open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else has the port, or the address is not ours.
    #[error(
        "failed to open the admin port {address} (admin.bind, admin.inputPort, admin.outputPort)"
    )]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It broke while it ran.
    #[error("the admin port broke")]
    Serve(#[source] std::io::Error),
}

/// Opens the port; 0 is any free one.
///
/// # Errors
/// [`Error::Bind`].
pub async fn bind(address: IpAddr, port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(address, port);
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Bind { address, source })
}

/// Serves until `until` ends; open requests are answered first.
///
/// # Errors
/// [`Error::Serve`].
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    axum::serve(listener, routes(admin))
        .with_graceful_shutdown(until)
        .await
        .map_err(Error::Serve)
}

#[derive(Debug)]
struct Shared {
    access: Access,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
}

fn routes(admin: Admin) -> Router {
    let shared = Arc::new(Shared {
        access: admin.access,
        health: admin.health,
        metrics: admin.metrics,
        shutdown: admin.shutdown,
    });
    let level = post(log_level).with_state(admin.logs);
    let v1 = admin
        .v1
        .route("/log-level", level)
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(middleware::from_fn_with_state(
            Arc::clone(&shared),
            operators_only,
        ));
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route("/metrics", get(metrics))
        .route("/drain", get(drain).post(drain))
        .with_state(shared)
        .nest("/v1", v1)
}

async fn livez(State(shared): State<Arc<Shared>>) -> Response {
    probe(shared.health.live())
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    probe(shared.health.ready())
}

async fn startupz(State(shared): State<Arc<Shared>>) -> Response {
    probe(shared.health.started())
}

fn probe(answer: health::Answer) -> Response {
    let code = if answer.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = match answer.reason {
        None => json!({"status": answer.status}),
        Some(reason) => json!({"status": answer.status, "reason": reason}),
    };
    (code, Json(body)).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, shared.metrics.text()).into_response()
}

#[derive(Deserialize)]
struct Wait {
    wait: Option<u8>,
}

/// Asks for a drain, and with `wait=1` returns when nothing is in flight, or at the deadline.
async fn drain(
    State(shared): State<Arc<Shared>>,
    Query(wait): Query<Wait>,
    headers: HeaderMap,
) -> Response {
    let given = headers.get(DRAIN_TOKEN_HEADER);
    let Some(token) = &shared.access.drain_token else {
        return refused(
            StatusCode::FORBIDDEN,
            "this process has no drain token; use POST /v1/drain",
        );
    };
    if !given.is_some_and(|given| token.is(given.as_bytes())) {
        return refused(
            StatusCode::UNAUTHORIZED,
            "the drain token is missing or wrong",
        );
    }
    shared.shutdown.request();
    if wait.wait == Some(1) {
        let drained = tokio::time::timeout(DRAIN_DEADLINE, shared.shutdown.when_drained()).await;
        return Json(json!({"drained": drained.is_ok()})).into_response();
    }
    (StatusCode::ACCEPTED, Json(json!({"drained": false}))).into_response()
}

fn refused(code: StatusCode, message: &str) -> Response {
    (code, Json(json!({"error": {"message": message}}))).into_response()
}

#[derive(Deserialize)]
struct LogLevel {
    level: String,
    #[serde(rename = "for")]
    lasts: Option<String>,
}

/// `{"level": "debug", "for": "10m"}`; without a time it lasts until the next change.
async fn log_level(State(logs): State<Option<Logs>>, Json(wish): Json<LogLevel>) -> Response {
    let Some(logs) = logs else {
        return refused(
            StatusCode::CONFLICT,
            "this process shows its logs elsewhere; start it with --processes to change their level",
        );
    };
    let lasts = match wish.lasts.as_deref().map(parse_duration) {
        None => None,
        Some(Some(lasts)) if lasts <= LOG_LEVEL_MAX => Some(lasts),
        Some(_) => {
            return refused(
                StatusCode::UNPROCESSABLE_ENTITY,
                "for: a time such as 10m, at most 24h",
            );
        }
    };
    match logs.set_level(&wish.level, lasts) {
        Ok(()) => {
            tracing::info!(level = %wish.level, lasts = wish.lasts, "the log level was changed");
            Json(json!({"accepted": true})).into_response()
        }
        Err(error) => refused(StatusCode::UNPROCESSABLE_ENTITY, &chain(&error).to_string()),
    }
}

/// D-P6: a bearer token, which may be missing only on loopback.
async fn operators_only(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let access = &shared.access;
    let Some(token) = &access.token else {
        return if access.bind.is_loopback() {
            next.run(request).await
        } else {
            refused(
                StatusCode::FORBIDDEN,
                "admin.token is not set, and admin.bind is not loopback",
            )
        };
    };
    let token = match secret::read(token, &access.environment) {
        Ok(token) => token,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "nobody may use /v1, because admin.token cannot be read");
            return refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "admin.token cannot be read; see the log",
            );
        }
    };
    let given = request.headers().get(header::AUTHORIZATION);
    let bearer = given.and_then(|value| value.as_bytes().split_at_checked(7));
    let right = bearer
        .is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case(b"Bearer ") && token.is(given));
    if right {
        next.run(request).await
    } else {
        let mut response = refused(
            StatusCode::UNAUTHORIZED,
            "the bearer token is missing or wrong",
        );
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            header::HeaderValue::from_static("Bearer"),
        );
        response
    }
}

#[cfg(test)]
mod tests;
