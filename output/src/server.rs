//! Accepts the publish connection: HTTP upgrade, then `Hello` (P-1).
//!
//! Invariant: it listens on 127.0.0.1 or on a Unix socket of mode 0660, never elsewhere (D-P5).
//! Invariant: what has not said `Hello` costs one bounded buffer and a bounded time.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use millrace_core::contract::publish::{self, Fault, Hello, PROTOCOL, Reply, Request, next_frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, warn};

/// Connections that may be between accept and `Hello` at one time.
const GREETING_MAX: usize = 8;

/// How long one may take until its `Hello` is complete.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest first frame: names, a session, a mode.
const HELLO_BYTES_MAX: usize = 64 << 10;

/// Why the publish listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours.
    #[error(
        "cannot listen for the input proxy on {address} (publish.port); is another block running there?"
    )]
    Port {
        /// Which address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket file cannot be made.
    #[error("cannot listen for the input proxy on {} (publish.socket)", path.display())]
    Socket {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where the input proxy finds this output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// 127.0.0.1 and this port.
    Port(SocketAddr),
    /// This socket file.
    Socket(PathBuf),
}

/// The open listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket file, removed at the end.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have removed it already; there is nobody to tell.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Listener {
    /// Listens on the socket, or without one on the port; 0 is any free port.
    pub(crate) async fn bind(socket: Option<&Path>, port: u16) -> Result<Self, Error> {
        if let Some(path) = socket {
            let listener = bind_socket(path).await.map_err(|source| Error::Socket {
                path: path.to_owned(),
                source,
            })?;
            return Ok(Self::Unix(listener, SocketFile(path.to_owned())));
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self::Tcp(listener)),
            Err(source) => Err(Error::Port { address, source }),
        }
    }

    /// Where it really listens.
    pub(crate) fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(listener) => Address::Port(listener.local_addr()?),
            Self::Unix(_, file) => Address::Socket(file.0.clone()),
        })
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

async fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    // A file that nobody listens on was left behind by a process that was killed.
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "somebody listens there already",
            ));
        }
        tokio::fs::remove_file(path).await?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection that has said `Hello`.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) stream: Stream,
    /// What came behind `Hello` already.
    pub(crate) buffer: BytesMut,
    pub(crate) hello: Hello,
}

/// Accepts connections until nobody receives arrivals any more.
pub(crate) async fn serve(listener: Listener, arrivals: mpsc::Sender<Arrival>) {
    let greetings = Arc::new(Semaphore::new(GREETING_MAX));
    loop {
        let stream = tokio::select! {
            () = arrivals.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept a publish connection");
                    // Out of file descriptors: without a pause this loop would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(permit) = Arc::clone(&greetings).try_acquire_owned() else {
            warn!("too many publish connections without Hello; one more is closed");
            continue;
        };
        let arrivals = arrivals.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(GREETING_TIMEOUT, greet(stream)).await {
                // The publisher has ended if nobody takes it; the connection ends with it.
                Ok(Ok(arrival)) => drop(arrivals.send(arrival).await),
                Ok(Err(error)) => {
                    debug!(error = %error, "a connection to the publish port was no input proxy")
                }
                Err(_) => debug!("a connection to the publish port said no Hello in time"),
            }
        });
    }
}

/// Why a connection did not become a session.
#[derive(Debug, thiserror::Error)]
enum Greeting {
    #[error("it is not HTTP/1.1 with an upgrade to {PROTOCOL}: {0}")]
    Http(String),
    #[error("its first frame is not Hello: {0}")]
    Frame(String),
    #[error("it broke: {0}")]
    Io(#[from] io::Error),
}

/// HTTP upgrade, then the first frame.
async fn greet(stream: Stream) -> Result<Arrival, Greeting> {
    let (mut stream, mut buffer) = upgrade(stream).await?;
    let frame = loop {
        match next_frame(&mut buffer, HELLO_BYTES_MAX) {
            Ok(Some(frame)) => break frame,
            Ok(None) => {
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(Greeting::Frame("the connection ended".to_owned()));
                }
            }
            Err(error) => return Err(refuse(stream, error.to_string()).await),
        }
    };
    match Request::decode(frame) {
        Ok(Request::Hello(hello)) => Ok(Arrival {
            stream,
            buffer,
            hello,
        }),
        Ok(_) => Err(refuse(stream, "the first frame has to be Hello".to_owned()).await),
        Err(error) => Err(refuse(stream, error.to_string()).await),
    }
}

async fn refuse(mut stream: Stream, message: String) -> Greeting {
    let mut frame = Vec::new();
    Reply::Error(Fault {
        code: "Malformed".to_owned(),
        message: message.clone(),
    })
    .encode(&mut frame);
    // It is closed either way.
    drop(stream.write_all(&frame).await);
    drop(stream.shutdown().await);
    Greeting::Frame(message)
}

async fn upgrade(stream: Stream) -> Result<(Stream, BytesMut), Greeting> {
    let (upgrades, mut upgraded) = mpsc::channel(1);
    let service = hyper::service::service_fn(move |mut request: HttpRequest<Incoming>| {
        let response = answer(&request);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // At most one request of a connection is an upgrade, so there is room.
            drop(upgrades.try_send(hyper::upgrade::on(&mut request)));
        }
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(|error| Greeting::Http(error.to_string()))?;
    let Ok(upgraded) = upgraded.try_recv() else {
        return Err(Greeting::Http("the request was refused".to_owned()));
    };
    let upgraded = upgraded
        .await
        .map_err(|error| Greeting::Http(error.to_string()))?;
    let parts = upgraded
        .downcast::<TokioIo<Stream>>()
        .map_err(|_| Greeting::Http("the upgraded connection is of another kind".to_owned()))?;
    Ok((parts.io.into_inner(), BytesMut::from(&parts.read_buf[..])))
}

fn answer(request: &HttpRequest<Incoming>) -> Response<Full<Bytes>> {
    let upgrades = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()));
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/publish") if upgrades => (StatusCode::SWITCHING_PROTOCOLS, ""),
        (&Method::GET, "/publish") => (
            StatusCode::UPGRADE_REQUIRED,
            "this port speaks millrace-publish/1\n",
        ),
        _ => (
            StatusCode::NOT_FOUND,
            "this port speaks millrace-publish/1 at GET /publish\n",
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    if status != StatusCode::NOT_FOUND {
        let headers = response.headers_mut();
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static(PROTOCOL));
        headers.insert(
            CONNECTION,
            hyper::header::HeaderValue::from_static("upgrade"),
        );
    }
    response
}

/// The session's connection: frames in, replies out, both without waiting for the other.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    inbound: BytesMut,
    outbound: Vec<u8>,
    /// How much of `outbound` has left.
    written: usize,
    /// After the last frame: write what is left, then close.
    closing: bool,
}

/// What [`Link::progress`] achieved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// Bytes came.
    Received,
    /// Everything has left.
    Sent,
    /// The connection is over.
    Closed,
}

/// Bytes that the read buffer grows by; frames share its memory while they are open.
const READ_BYTES: usize = 256 << 10;

/// Bytes of replies at which no more frames are read until the input has taken some.
const REPLY_BYTES_MAX: usize = 4 << 20;

impl Link {
    pub(crate) fn new(stream: Stream, inbound: BytesMut) -> Self {
        Self {
            stream,
            inbound,
            outbound: Vec::new(),
            written: 0,
            closing: false,
        }
    }

    /// The next frame that is here completely.
    pub(crate) fn next(&mut self) -> Option<Result<Request, publish::Error>> {
        if self.closing {
            return None;
        }
        let frame = next_frame(&mut self.inbound, millrace_core::limits::FRAME_BYTES_MAX);
        frame
            .transpose()
            .map(|frame| frame.and_then(Request::decode))
    }

    /// Queues a reply.
    pub(crate) fn send(&mut self, reply: &Reply) {
        if !self.closing {
            reply.encode(&mut self.outbound);
        }
    }

    /// Queues the last reply; the connection ends when it has left.
    pub(crate) fn end(&mut self, fault: Fault) {
        self.send(&Reply::Error(fault));
        self.closing = true;
    }

    /// Whether nothing is left to do with it.
    pub(crate) fn is_over(&self) -> bool {
        self.closing && self.outbound.is_empty()
    }

    /// Reads and writes until something is worth a look. Cancel-safe: what was read or written
    /// is kept in the link.
    pub(crate) async fn progress(&mut self) -> Progress {
        std::future::poll_fn(|cx| self.poll_progress(cx)).await
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        let mut sent = false;
        while self.written < self.outbound.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.outbound[self.written..]) {
                Poll::Ready(Ok(bytes)) if bytes > 0 => self.written += bytes,
                Poll::Ready(_) => return Poll::Ready(Progress::Closed),
                Poll::Pending => break,
            }
        }
        if self.written == self.outbound.len() && self.written > 0 {
            self.outbound.clear();
            self.written = 0;
            sent = true;
        }
        let waiting = self.outbound.len() - self.written;
        if !self.closing && waiting < REPLY_BYTES_MAX {
            if self.inbound.capacity() - self.inbound.len() < READ_BYTES / 4 {
                self.inbound.reserve(READ_BYTES);
            }
            let mut read = std::pin::pin!(self.stream.read_buf(&mut self.inbound));
            match std::future::Future::poll(read.as_mut(), cx) {
                Poll::Ready(Ok(bytes)) if bytes > 0 => return Poll::Ready(Progress::Received),
                Poll::Ready(_) => return Poll::Ready(Progress::Closed),
                Poll::Pending => {}
            }
        }
        if sent {
            Poll::Ready(Progress::Sent)
        } else {
            Poll::Pending
        }
    }
}
