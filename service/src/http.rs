//! An HTTP client for one server nearby: HTTP/1.1 with keep-alive or HTTP/2 without TLS, over TCP
//! or a Unix socket; no redirects, no proxies.
//!
//! Used for the app, by `check-app` and by the load generator. What it promises (A-T1):
//! - a request whose bytes may have left is never sent again; the caller learns whether they
//!   may have ([`Error::may_have_happened`]);
//! - the deadline is wall clock around everything, connecting included, and outside the
//!   connection: one that swallows bytes cannot hold it up;
//! - after a passed deadline new calls get new connections: what else is kept may be dead, too;
//! - nobody else reads the answer: no redirects, cookies, decompression.
//!
//! An HTTP/1.1 connection is driven by the call that uses it, not by a task of its own: that
//! saves two wake-ups per call, and giving a call up closes its connection.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{self, Authority, PathAndQuery, Uri};
pub use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::sync::{Semaphore, SemaphorePermit};

mod connection;
mod multiplexed;
mod stream;

use self::connection::{Connection, Failed};
use self::multiplexed::{Multiplexed, Shared};
use self::stream::Stream;

/// Longest time for a TCP connection (app-contract.md, limits).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Server {
    /// At a port.
    Tcp {
        /// Name or address; mostly `127.0.0.1`.
        host: String,
        /// Port.
        port: u16,
    },
    /// At a Unix socket.
    Socket(PathBuf),
}

impl Server {
    /// A port of this machine.
    pub fn local(port: u16) -> Self {
        Self::Tcp {
            host: "127.0.0.1".to_owned(),
            port,
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Which HTTP a server speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP/1.1: one call at a time on a connection.
    Http1,
    /// HTTP/2 without TLS and without asking first: all calls on one connection.
    Http2,
}

/// Whom a client talks to, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom.
    pub server: Server,
    /// How.
    pub protocol: Protocol,
    /// Calls at once at most, and with HTTP/1.1 connections; further calls wait.
    pub connections_max: usize,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Bytes of an answer's body at most.
    pub response_bytes_max: usize,
}

impl Settings {
    /// A server that speaks HTTP/1.1.
    pub fn new(server: Server, connections_max: usize, response_bytes_max: usize) -> Self {
        Self {
            server,
            protocol: Protocol::Http1,
            connections_max,
            connect_timeout: CONNECT_TIMEOUT,
            response_bytes_max,
        }
    }

    /// A server that speaks HTTP/1.1 at a port of this machine.
    pub fn local(port: u16, connections_max: usize, response_bytes_max: usize) -> Self {
        Self::new(Server::local(port), connections_max, response_bytes_max)
    }

    /// The same, with this HTTP.
    #[must_use]
    pub fn with(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }
}

/// One request. `Host` and `Content-Length` are added.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET, POST.
    pub method: Method,
    /// Path and query.
    pub path: Bytes,
    /// In order.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

impl Request {
    /// A request without body.
    pub fn get(path: impl Into<Bytes>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// A request with a body.
    pub fn post(path: impl Into<Bytes>, headers: HeaderMap, body: Bytes) -> Self {
        Self {
            method: Method::POST,
            path: path.into(),
            headers,
            body,
        }
    }
}

/// The whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code; interim ones (1xx) are skipped.
    pub status: u16,
    /// In order.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens, or the name is unknown, or there is no way.
    #[error("failed to connect to {server}")]
    Connect {
        /// Where.
        server: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody should listen, but does not answer.
    #[error("{server} took no connection within {after:?}")]
    ConnectTimeout {
        /// Where.
        server: String,
        /// How long it was given.
        after: Duration,
    },
    /// The connection broke before a byte of the request left.
    #[error(
        "the connection broke before the request was written, or the server did not look at it"
    )]
    LostBeforeWrite(#[source] Option<hyper::Error>),
    /// The connection broke with the request under way: the server may have worked on it.
    #[error("the connection broke before the answer was complete")]
    LostAfterWrite(#[source] Option<hyper::Error>),
    /// What came back is not HTTP.
    #[error("the answer is not valid HTTP")]
    Malformed(#[source] hyper::Error),
    /// The deadline passed.
    #[error("no complete answer within {after:?}")]
    Timeout {
        /// How long it was given.
        after: Duration,
        /// Whether bytes of the request had left.
        written: bool,
    },
    /// The body is above the limit.
    #[error("the answer is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The path or a header cannot be written down in HTTP.
    #[error("the request cannot be sent: {0}")]
    Unsendable(String),
}

impl Error {
    /// Whether the server could have started on the request: then it counts as an attempt and
    /// must not be sent again without telling.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::LostBeforeWrite(_)
            | Self::Unsendable(_) => false,
            Self::LostAfterWrite(_) | Self::Malformed(_) | Self::TooLarge { .. } => true,
            Self::Timeout { written, .. } => *written,
        }
    }
}

/// A pool of connections to one server.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    authority: Authority,
    host: HeaderValue,
    pool: Pool,
    permits: Semaphore,
}

#[derive(Debug)]
enum Pool {
    /// The one that was used last is on top, so that surplus ones grow old and are closed.
    Http1(Mutex<Vec<Connection>>),
    Http2(Multiplexed),
}

impl Client {
    /// A client without connections; they are made when needed.
    ///
    /// # Errors
    /// If the host cannot stand in a header.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let name = match &settings.server {
            Server::Tcp { .. } => settings.server.to_string(),
            Server::Socket(_) => "localhost".to_owned(),
        };
        let unsendable = |error: &dyn fmt::Display| Error::Unsendable(error.to_string());
        Ok(Self {
            authority: name
                .parse::<Authority>()
                .map_err(|error| unsendable(&error))?,
            host: HeaderValue::from_str(&name).map_err(|error| unsendable(&error))?,
            pool: match settings.protocol {
                Protocol::Http1 => Pool::Http1(Mutex::new(Vec::new())),
                Protocol::Http2 => Pool::Http2(Multiplexed::new()),
            },
            permits: Semaphore::new(settings.connections_max.max(1)),
            settings,
        })
    }

    /// Sends a request and reads the whole answer, all within `timeout`.
    ///
    /// Dropping the future closes the connection that it used, or with HTTP/2 its stream.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(&self, request: Request, timeout: Duration) -> Result<Response, Error> {
        let progress = connection::Written::default();
        match &self.pool {
            Pool::Http1(idle) => {
                // In place: moving it costs more than driving it.
                let call = pin!(self.exchange(idle, request, &progress));
                match tokio::time::timeout(timeout, call).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        // Whatever keeps this one silent may have hit those, too.
                        let idle = std::mem::take(&mut *lock(idle));
                        drop(idle);
                        Err(timed_out(timeout, &progress))
                    }
                }
            }
            Pool::Http2(shared) => {
                let used = Mutex::new(None);
                let call = pin!(self.share(shared, request, &progress, &used));
                match tokio::time::timeout(timeout, call).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        if let Some(used) = &*lock(&used) {
                            shared.forget(used);
                        }
                        Err(timed_out(timeout, &progress))
                    }
                }
            }
        }
    }

    /// A call on the connection of all calls.
    async fn share(
        &self,
        shared: &Multiplexed,
        request: Request,
        written: &connection::Written,
        used: &Mutex<Option<Arc<Shared>>>,
    ) -> Result<Response, Error> {
        let _permit = self.permit().await;
        let request = self.request(request)?;
        shared
            .exchange(request, &self.settings, written, used)
            .await
    }

    /// A call on a connection of its own.
    async fn exchange(
        &self,
        idle: &Mutex<Vec<Connection>>,
        request: Request,
        written: &connection::Written,
    ) -> Result<Response, Error> {
        let _permit = self.permit().await;
        let mut request = self.request(request)?;
        let limit = self.settings.response_bytes_max;
        let keep = |connection: Connection, answer: Response| {
            if connection.is_open() {
                lock(idle).push(connection);
            }
            answer
        };
        let take = || lock(idle).pop();
        // A kept connection may have been closed by the server just now. If no byte has left,
        // another one may try; a new connection gets a single chance.
        while let Some(mut kept) = take() {
            if !kept.is_usable().await {
                continue;
            }
            match kept.exchange(request, limit, written).await {
                Ok(answer) => return Ok(keep(kept, answer)),
                Err(Failed::Told(error)) => return Err(error),
                Err(Failed::Unsent(same)) => request = *same,
            }
        }
        let stream = connect(&self.settings).await?;
        let mut fresh = Connection::start(stream)
            .await
            .map_err(|error| Error::LostBeforeWrite(Some(error)))?;
        match fresh.exchange(request, limit, written).await {
            Ok(answer) => Ok(keep(fresh, answer)),
            Err(Failed::Told(error)) => Err(error),
            Err(Failed::Unsent(_)) => Err(Error::LostBeforeWrite(None)),
        }
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        self.permits
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }

    fn request(&self, request: Request) -> Result<connection::Outgoing, Error> {
        let unsendable = |error: &dyn fmt::Display| Error::Unsendable(error.to_string());
        let path = PathAndQuery::from_maybe_shared(request.path).map_err(|e| unsendable(&e))?;
        let mut outgoing = http::Request::new(http_body_util::Full::new(request.body));
        *outgoing.method_mut() = request.method;
        *outgoing.headers_mut() = request.headers;
        let mut target = uri::Parts::default();
        target.path_and_query = Some(path);
        match self.settings.protocol {
            Protocol::Http1 => {
                let headers = outgoing.headers_mut();
                headers.insert(http::header::HOST, self.host.clone());
            }
            Protocol::Http2 => {
                target.scheme = Some(uri::Scheme::HTTP);
                target.authority = Some(self.authority.clone());
            }
        }
        *outgoing.uri_mut() = Uri::from_parts(target).map_err(|e| unsendable(&e))?;
        Ok(outgoing)
    }
}

async fn connect(settings: &Settings) -> Result<Stream, Error> {
    let Settings {
        server,
        connect_timeout,
        ..
    } = settings;
    tokio::time::timeout(*connect_timeout, Stream::connect(server))
        .await
        .map_err(|_| Error::ConnectTimeout {
            server: server.to_string(),
            after: *connect_timeout,
        })?
        .map_err(|source| Error::Connect {
            server: server.to_string(),
            source,
        })
}

fn timed_out(after: Duration, written: &connection::Written) -> Error {
    Error::Timeout {
        after,
        written: written.any(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
