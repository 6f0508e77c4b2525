//! Takes the results that the app posts in push mode (A-P1..A-P5): `POST /` on 127.0.0.1.
//!
//! Invariant: it listens on 127.0.0.1 only (D-P5).
//! Invariant: posts that wait are bounded in number and in bytes; the rest waits in the kernel.
//! Invariant: 200 is answered after the acknowledgement, never before.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use millrace_core::contract::app::{Malformed, Pushed, read_correlation, read_push};
use millrace_core::contract::publish::StoreClass;
use millrace_core::limits::{PUSH_BYTES_MAX, PUSHES_OPEN_MAX};
use millrace_core::store::{Failed, PushAnswer};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::{debug, trace, warn};

/// How long the head of a request may take, and an idle connection live.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What an app hears whose result was not stored. Apps that were written for it look for this
/// text (A-K2).
const FAILED: &str = "Error: The callback failed to process the message";

/// Why the push listener cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for the app's results on {address} (app.push.port); is another block running there?"
)]
pub struct Error {
    /// Which address.
    address: SocketAddr,
    /// Why.
    #[source]
    source: io::Error,
}

/// What the app posted.
#[derive(Debug)]
pub(crate) enum Post {
    /// A result that waits to be stored; the sender hears what became of it.
    Result(Pushed, oneshot::Sender<PushAnswer>),
    /// Something that could not be read: the call that it belongs to must not end as if there
    /// had been nothing.
    Unread(Option<[u8; 16]>, Failed),
}

/// What all connections share.
#[derive(Clone)]
struct Desk {
    posts: mpsc::Sender<Post>,
    bytes: Arc<Semaphore>,
    takes: Takes,
}

/// What the app may post.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Takes {
    /// Largest value.
    pub(crate) value_bytes_max: usize,
    /// Results are CloudEvents (`app.contract.content`).
    pub(crate) cloud_events: bool,
}

/// Opens the port; 0 is any free one.
pub(crate) async fn bind(port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address)
        .await
        .map_err(|source| Error { address, source })
}

/// Takes posts until nobody receives them any more.
pub(crate) async fn serve(listener: TcpListener, takes: Takes, posts: mpsc::Sender<Post>) {
    let connections = Arc::new(Semaphore::new(PUSHES_OPEN_MAX));
    let desk = Desk {
        bytes: Arc::new(Semaphore::new(PUSH_BYTES_MAX)),
        takes,
        posts,
    };
    loop {
        let room = Arc::clone(&connections).acquire_owned();
        let permit = tokio::select! {
            () = desk.posts.closed() => return,
            permit = room => permit.expect("nobody closes it"),
        };
        let stream = tokio::select! {
            () = desk.posts.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept a connection of the app");
                    // Out of file descriptors: without a pause this loop would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // An answer is one small packet: it is not to wait for another one.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection of the app is gone already");
            continue;
        }
        let desk = desk.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = hyper::service::service_fn(move |request| {
                let desk = desk.clone();
                async move { Ok::<_, Infallible>(desk.answer(request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                debug!(%error, "a connection of the app broke");
            }
        });
    }
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/" {
            return text(StatusCode::NOT_FOUND, "Error: results are posted to /");
        }
        if request.method() != Method::POST {
            let mut response = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "Error: results are posted, with POST /",
            );
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let (head, body) = request.into_parts();
        let headers: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let read = self.read(body).await;
        let cloud_events = self.takes.cloud_events;
        let read = read.and_then(|(value, room)| {
            let pushed = read_push(&headers, &value, cloud_events).map_err(Unread::Malformed)?;
            Ok((pushed, value, room))
        });
        let (pushed, value, _room) = match read {
            Ok(read) => read,
            Err(unread) => {
                let correlation = read_correlation(&headers).unwrap_or(None);
                let post = Post::Unread(correlation, unread.failed());
                // Nobody takes it when the process ends.
                let _gone = self.posts.send(post).await;
                return unread.response();
            }
        };
        let (answer, answered) = oneshot::channel();
        let ended = match self.posts.send(Post::Result(pushed, answer)).await {
            Ok(()) => answered.await.unwrap_or(PushAnswer::NotStored),
            // The process ends.
            Err(_) => PushAnswer::NotStored,
        };
        let success = ended == PushAnswer::Stored;
        trace!(target: "millrace::messages", event = "output.message.received", success);
        match ended {
            PushAnswer::Stored => {
                let mut echo = Vec::with_capacity(5 + value.len());
                echo.extend_from_slice(b"msg: ");
                echo.extend_from_slice(&value);
                plain(StatusCode::OK, echo.into())
            }
            PushAnswer::NotStored => text(StatusCode::INTERNAL_SERVER_ERROR, FAILED),
            PushAnswer::Missing => text(
                StatusCode::BAD_REQUEST,
                "Error: the header Millrace-Correlation of the request is missing",
            ),
            PushAnswer::Unknown => text(
                StatusCode::CONFLICT,
                "Error: no request in flight waits for this result; it came too late, or twice",
            ),
            PushAnswer::TooLarge => too_large(),
        }
    }

    /// The body, with the room that it takes.
    async fn read(&self, body: Incoming) -> Result<(Bytes, OwnedSemaphorePermit), Unread> {
        let size = body.size_hint();
        if size.lower() > self.takes.value_bytes_max as u64 {
            return Err(Unread::TooLarge);
        }
        let most = size.exact().unwrap_or(self.takes.value_bytes_max as u64);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let room = u32::try_from(most.min(PUSH_BYTES_MAX)).expect("it is far below 2^32");
        let room = Arc::clone(&self.bytes)
            .acquire_many_owned(room)
            .await
            .expect("nobody closes it");
        let limited = Limited::new(body, self.takes.value_bytes_max);
        let read = tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await;
        match read {
            Ok(Ok(body)) => Ok((body.to_bytes(), room)),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Unread::TooLarge),
            Ok(Err(error)) => {
                debug!(%error, "a post of the app broke off");
                Err(Unread::BrokeOff)
            }
            Err(_) => Err(Unread::BrokeOff),
        }
    }
}

/// Why a post could not be read.
#[derive(Clone, Debug)]
enum Unread {
    /// Above the limit of the topic.
    TooLarge,
    /// It ended too early, or did not come in time.
    BrokeOff,
    /// Its headers are wrong.
    Malformed(Malformed),
}

impl Unread {
    /// What it means for its call.
    fn failed(&self) -> Failed {
        let (class, code, message) = match self {
            Self::TooLarge => (
                StoreClass::Rejected,
                "MessageSizeTooLarge",
                "the result is above the limit of its topic".to_owned(),
            ),
            Self::BrokeOff => (
                StoreClass::Transient,
                "BrokeOff",
                "the post of a result broke off".to_owned(),
            ),
            Self::Malformed(error) => (StoreClass::Rejected, "Malformed", error.to_string()),
        };
        Failed::new(class, code, message)
    }

    fn response(self) -> Response<Full<Bytes>> {
        match self {
            Self::TooLarge => too_large(),
            Self::BrokeOff => text(
                StatusCode::BAD_REQUEST,
                "Error: the body broke off, or did not come in time",
            ),
            Self::Malformed(error) => text(StatusCode::BAD_REQUEST, &format!("Error: {error}")),
        }
    }
}

fn too_large() -> Response<Full<Bytes>> {
    text(
        StatusCode::PAYLOAD_TOO_LARGE,
        "Error: the result is above the limit of its topic (output.kafka.maxBytes)",
    )
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    plain(status, Bytes::copy_from_slice(text.as_bytes()))
}

fn plain(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
