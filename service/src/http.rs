//! An HTTP/1.1 client for one server nearby: keep-alive connections, no redirects, no proxies.
//!
//! Used for the app, by `check-app` and by the load generator. What it promises (A-T1):
//! - a request whose bytes may have left is never sent again; the caller learns whether they
//!   may have ([`Error::may_have_happened`]);
//! - the deadline is wall clock around everything, connecting included;
//! - nobody else reads the answer: no redirects, cookies, decompression.
//!
//! A connection is driven by the call that uses it, not by a task of its own: that saves two
//! wake-ups per call, and giving a call up closes its connection.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
pub use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

mod connection;

use self::connection::{Connection, Failed};

/// Longest time for a TCP connection (app-contract.md, limits).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Whom a client talks to, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name or address; mostly `127.0.0.1`.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Connections at most; further calls wait for a free one.
    pub connections_max: usize,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Bytes of an answer's body at most.
    pub response_bytes_max: usize,
}

impl Settings {
    /// The app on this machine.
    pub fn local(port: u16, connections_max: usize, response_bytes_max: usize) -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port,
            connections_max,
            connect_timeout: CONNECT_TIMEOUT,
            response_bytes_max,
        }
    }
}

/// One request. `Host` and `Content-Length` are added.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET, POST.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// In order.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

impl Request {
    /// A request without body.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// A request with a body.
    pub fn post(path: impl Into<String>, headers: HeaderMap, body: Bytes) -> Self {
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
        /// `host:port`.
        server: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody should listen, but does not answer.
    #[error("{server} took no connection within {after:?}")]
    ConnectTimeout {
        /// `host:port`.
        server: String,
        /// How long it was given.
        after: Duration,
    },
    /// The connection broke before a byte of the request left.
    #[error("the connection broke before the request was written")]
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
    host: HeaderValue,
    /// The one that was used last is on top, so that surplus ones grow old and are closed.
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

impl Client {
    /// A client without connections; they are made when needed.
    ///
    /// # Errors
    /// If the host cannot stand in a header.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let server = format!("{}:{}", settings.host, settings.port);
        Ok(Self {
            host: HeaderValue::from_str(&server)
                .map_err(|error| Error::Unsendable(error.to_string()))?,
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(settings.connections_max.max(1)),
            settings,
        })
    }

    /// Sends a request and reads the whole answer, all within `timeout`.
    ///
    /// Dropping the future closes the connection that it used.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(&self, request: Request, timeout: Duration) -> Result<Response, Error> {
        let progress = connection::Written::default();
        let answer = tokio::time::timeout(timeout, self.exchange(request, &progress)).await;
        answer.unwrap_or_else(|_| {
            Err(Error::Timeout {
                after: timeout,
                written: progress.any(),
            })
        })
    }

    async fn exchange(
        &self,
        request: Request,
        written: &connection::Written,
    ) -> Result<Response, Error> {
        let _permit = self
            .permits
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let mut request = self.request(request)?;
        let limit = self.settings.response_bytes_max;
        // A kept connection may have been closed by the server just now. If no byte has left,
        // another one may try; a new connection gets a single chance.
        while let Some(mut kept) = self.take() {
            if !kept.is_usable().await {
                continue;
            }
            match kept.exchange(request, limit, written).await {
                Ok(answer) => return Ok(self.keep(kept, answer)),
                Err(Failed::Told(error)) => return Err(error),
                Err(Failed::Unsent(same)) => request = *same,
            }
        }
        let mut fresh = self.connect().await?;
        match fresh.exchange(request, limit, written).await {
            Ok(answer) => Ok(self.keep(fresh, answer)),
            Err(Failed::Told(error)) => Err(error),
            Err(Failed::Unsent(_)) => Err(Error::LostBeforeWrite(None)),
        }
    }

    fn request(&self, request: Request) -> Result<connection::Outgoing, Error> {
        let mut outgoing = http::Request::new(http_body_util::Full::new(request.body));
        *outgoing.method_mut() = request.method;
        *outgoing.uri_mut() = request
            .path
            .parse()
            .map_err(|error: http::uri::InvalidUri| Error::Unsendable(error.to_string()))?;
        *outgoing.headers_mut() = request.headers;
        outgoing
            .headers_mut()
            .insert(http::header::HOST, self.host.clone());
        Ok(outgoing)
    }

    fn take(&self) -> Option<Connection> {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    fn keep(&self, connection: Connection, answer: Response) -> Response {
        if connection.is_open() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(connection);
        }
        answer
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let Settings {
            host,
            port,
            connect_timeout,
            ..
        } = &self.settings;
        let server = || format!("{host}:{port}");
        let stream =
            tokio::time::timeout(*connect_timeout, TcpStream::connect((host.as_str(), *port)))
                .await
                .map_err(|_| Error::ConnectTimeout {
                    server: server(),
                    after: *connect_timeout,
                })?
                .map_err(|source| Error::Connect {
                    server: server(),
                    source,
                })?;
        // Small requests must not wait for the acknowledgement of earlier ones.
        stream.set_nodelay(true).map_err(|source| Error::Connect {
            server: server(),
            source,
        })?;
        Connection::start(stream)
            .await
            .map_err(|error| Error::LostBeforeWrite(Some(error)))
    }
}

#[cfg(test)]
mod tests;
