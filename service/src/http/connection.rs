//! One keep-alive HTTP/1.1 connection, driven by the call that uses it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use millrace_core::limits::ANSWER_HEADERS_MAX;

use super::stream::{Counted, Stream};
use super::{Error, Response};

pub(super) type Outgoing = http::Request<Full<Bytes>>;

type Driver = http1::Connection<TokioIo<Counted>, Full<Bytes>>;

/// Whether bytes of a request have left, readable after the call was given up.
#[derive(Default, Debug)]
pub(super) struct Written(AtomicU64);

impl Written {
    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    pub(super) fn note(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// A connection between two calls, or within one.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Does the reading and writing; `None` once the connection has ended.
    driver: Option<Pin<Box<Driver>>>,
    written: Arc<AtomicU64>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) async fn start(stream: Stream) -> Result<Self, hyper::Error> {
        let written = Arc::new(AtomicU64::new(0));
        let counted = Counted::new(stream, Arc::clone(&written));
        let (sender, driver) = http1::Builder::new()
            .max_headers(ANSWER_HEADERS_MAX)
            .handshake(TokioIo::new(counted))
            .await?;
        Ok(Self {
            sender,
            driver: Some(Box::pin(driver)),
            written,
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.driver.is_some()
    }

    /// Whether it still takes a request: reads what the server sent since the last call, such
    /// as its farewell.
    pub(super) async fn is_usable(&mut self) -> bool {
        poll_fn(|context| {
            self.drive(context);
            if self.driver.is_none() {
                return Poll::Ready(false);
            }
            self.sender.poll_ready(context).map(|ready| ready.is_ok())
        })
        .await
    }

    /// Sends a request and reads its answer. After an error the connection is of no use.
    ///
    /// A request of which nothing has left comes back, for another connection.
    pub(super) async fn exchange(
        &mut self,
        request: Outgoing,
        response_bytes_max: usize,
        progress: &Written,
    ) -> Result<Response, Failed> {
        let before = self.written.load(Ordering::Relaxed);
        let sent = self.sender.try_send_request(request);
        let answer = self
            .driven(read(sent, response_bytes_max), before, progress)
            .await;
        answer.map_err(|broken| match broken {
            Broken::TooLarge => Failed::Told(Error::TooLarge {
                limit_bytes: response_bytes_max,
            }),
            Broken::Unsent(request) if !progress.any() => Failed::Unsent(request),
            Broken::Unsent(_) => Failed::Told(Error::LostAfterWrite(None)),
            Broken::Io(error) if error.is_parse() => Failed::Told(Error::Malformed(error)),
            Broken::Io(error) if progress.any() => Failed::Told(Error::LostAfterWrite(Some(error))),
            Broken::Io(error) => Failed::Told(Error::LostBeforeWrite(Some(error))),
        })
    }

    /// Polls `work` and the connection together, and notes when the first byte leaves.
    async fn driven<T>(
        &mut self,
        work: impl Future<Output = Result<T, Broken>>,
        before: u64,
        progress: &Written,
    ) -> Result<T, Broken> {
        let mut work = std::pin::pin!(work);
        poll_fn(|context| {
            self.drive(context);
            progress.note(self.written.load(Ordering::Relaxed) - before);
            let answer = work.as_mut().poll(context);
            // Reading the answer makes room for more of it, which only the driver brings.
            if answer.is_pending() {
                self.drive(context);
                progress.note(self.written.load(Ordering::Relaxed) - before);
                return work.as_mut().poll(context);
            }
            answer
        })
        .await
    }

    fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(context).is_ready()
        {
            // How it ended is told to the call that waits for an answer, if one does.
            self.driver = None;
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing of it has left.
    Unsent(Box<Outgoing>),
    /// What the caller is told.
    Told(Error),
}

/// Why an answer could not be read.
#[derive(Debug)]
enum Broken {
    TooLarge,
    Unsent(Box<Outgoing>),
    Io(hyper::Error),
}

async fn read(
    sent: impl Future<Output = Result<http::Response<Incoming>, TrySendError<Outgoing>>>,
    response_bytes_max: usize,
) -> Result<Response, Broken> {
    let answer = sent
        .await
        .map_err(|mut failed| match failed.take_message() {
            Some(request) => Broken::Unsent(Box::new(request)),
            None => Broken::Io(failed.into_error()),
        });
    read_parts(answer?, response_bytes_max).await
}

/// Reads the body of an answer of which the head is there.
pub(super) async fn read_answer(
    answer: http::Response<Incoming>,
    response_bytes_max: usize,
) -> Result<Response, Error> {
    let read = read_parts(answer, response_bytes_max).await;
    read.map_err(|broken| match broken {
        Broken::TooLarge => Error::TooLarge {
            limit_bytes: response_bytes_max,
        },
        Broken::Io(error) => Error::LostAfterWrite(Some(error)),
        Broken::Unsent(_) => unreachable!("an answer has begun"),
    })
}

async fn read_parts(
    answer: http::Response<Incoming>,
    response_bytes_max: usize,
) -> Result<Response, Broken> {
    let (head, mut incoming) = answer.into_parts();
    // An answer that announces its size is refused without waiting for it.
    if incoming.size_hint().lower() > response_bytes_max as u64 {
        return Err(Broken::TooLarge);
    }
    let mut body = Body::Nothing;
    while let Some(frame) = incoming.frame().await {
        if let Ok(data) = frame.map_err(Broken::Io)?.into_data() {
            body = body.plus(data);
            if body.len() > response_bytes_max {
                return Err(Broken::TooLarge);
            }
        }
    }
    Ok(Response {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.finish(),
    })
}

/// Collects a body; most have one part, which is not copied.
enum Body {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(part) => part.len(),
            Self::Many(parts) => parts.len(),
        }
    }

    fn plus(self, part: Bytes) -> Self {
        match self {
            Self::Nothing => Self::One(part),
            Self::One(first) => {
                let mut parts = BytesMut::with_capacity((first.len() + part.len()) * 2);
                parts.extend_from_slice(&first);
                parts.extend_from_slice(&part);
                Self::Many(parts)
            }
            Self::Many(mut parts) => {
                parts.extend_from_slice(&part);
                Self::Many(parts)
            }
        }
    }

    fn finish(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(part) => part,
            Self::Many(parts) => parts.freeze(),
        }
    }
}
