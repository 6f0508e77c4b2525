//! The input's end of `millrace-publish/1`: one connection to the output, made again when lost.
//!
//! Invariant: a frame goes only to the session for which the machine made it; frames of a lost
//! session are dropped here, and the machine sends their events again (P-6).
//! Invariant: what waits here is bounded by the credit that the output gave (P-7).

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Empty;
use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use millrace_core::contract::publish::{self, Fault, Hello, Reply, Request, next_frame};
use millrace_core::limits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

/// Pause between two attempts to reach the output.
const RECONNECT: Duration = Duration::from_millis(200);
/// How long one attempt may take: the output answers Hello only when its broker is reached, so
/// the answer itself is awaited without a limit.
const CONNECT: Duration = Duration::from_secs(2);
/// Read buffer; a larger frame grows it.
const READ_BYTES: usize = 64 << 10;
/// Batches of replies that wait for the driver; beyond it the connection is not read.
const REPLIES_QUEUED_MAX: usize = 64;

/// Where the output listens (`publish`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A Unix socket.
    Socket(PathBuf),
    /// A port of 127.0.0.1.
    Port(u16),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Port(port) => write!(f, "127.0.0.1:{port}"),
        }
    }
}

/// What the connection tells the driver.
#[derive(Debug)]
pub(crate) enum News {
    /// A new session, with its first credit.
    Up { session: u64, credit: u64 },
    /// Frames of the output.
    Replies(Vec<Reply>),
    /// The session is over.
    Down,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the output proxy at {0} cannot be reached")]
    Connect(Address, #[source] std::io::Error),
    #[error("the output proxy at {0} did not answer in time")]
    Slow(Address),
    #[error("the output proxy refused the upgrade to {}", publish::PROTOCOL)]
    Upgrade(#[source] hyper::Error),
    #[error("the output proxy answered {0} to the upgrade; is something else listening there?")]
    NotAnOutput(StatusCode),
    #[error("the connection to the output proxy broke")]
    Broken(#[source] std::io::Error),
    #[error("the output proxy closed the connection")]
    Closed,
    #[error("the output proxy sent a frame that cannot be read")]
    Frame(#[source] publish::Error),
    #[error("the output proxy did not answer Hello with Ready")]
    NotReady,
    #[error("the output proxy ended the session: {} ({})", .0.message, .0.code)]
    Refused(Fault),
}

/// The driver's end.
pub(crate) struct Publisher {
    outgoing: Arc<Outgoing>,
    news: mpsc::Receiver<News>,
    session: u64,
    /// Taken by [`Self::connected`], not handed on yet.
    first: Option<News>,
    task: tokio::task::JoinHandle<()>,
}

/// Frames on their way, of one session.
#[derive(Default)]
struct Outgoing {
    frames: Mutex<(u64, BytesMut)>,
    filled: Notify,
}

impl Publisher {
    /// Connects, and goes on connecting until it is dropped.
    pub(crate) fn start(address: Address, hello: Hello) -> Self {
        let outgoing = Arc::new(Outgoing::default());
        let (sender, news) = mpsc::channel(REPLIES_QUEUED_MAX);
        let task = tokio::spawn(keep_connected(
            address,
            hello,
            Arc::clone(&outgoing),
            sender,
        ));
        Self {
            outgoing,
            news,
            session: 0,
            first: None,
            task,
        }
    }

    /// Waits for the first session without taking the news of it. Cancel-safe.
    pub(crate) async fn connected(&mut self) {
        if self.first.is_none() {
            let news = self.next().await;
            self.first = Some(news);
        }
    }

    /// The next news. Cancel-safe.
    pub(crate) async fn next(&mut self) -> News {
        if let Some(first) = self.first.take() {
            return first;
        }
        let news = self
            .news
            .recv()
            .await
            .expect("the task ends only with its owner");
        if let News::Up { session, .. } = news {
            self.session = session;
        }
        news
    }

    /// Sends a frame of the present session.
    pub(crate) fn send(&self, frame: &[u8]) {
        let mut frames = self.outgoing.frames.lock().expect("no holder panics");
        if frames.0 == self.session {
            frames.1.extend_from_slice(frame);
            drop(frames);
            self.outgoing.filled.notify_one();
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_connected(
    address: Address,
    mut hello: Hello,
    outgoing: Arc<Outgoing>,
    news: mpsc::Sender<News>,
) {
    let mut told = None;
    loop {
        hello.session += 1;
        let ended = session(&address, &hello, &outgoing, &news).await;
        outgoing.frames.lock().expect("no holder panics").0 = 0;
        let (was_up, error) = match ended {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        if was_up && news.send(News::Down).await.is_err() {
            return;
        }
        let text = millrace_service::telemetry::chain(&error).to_string();
        if was_up || told.as_deref() != Some(text.as_str()) {
            warn!(error = %text, "no connection to the output proxy, trying again");
            told = Some(text);
        } else {
            debug!(error = %text, "still no connection to the output proxy");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Runs one session to its end; tells whether it was up.
async fn session(
    address: &Address,
    hello: &Hello,
    outgoing: &Outgoing,
    news: &mpsc::Sender<News>,
) -> Result<std::convert::Infallible, (bool, SessionError)> {
    let down = |error| (false, error);
    let (mut reader, mut writer, mut buffer) = connect(address).await.map_err(down)?;
    let mut frame = Vec::new();
    Request::Hello(hello.clone()).encode(&mut frame);
    let broken = |error| (false, SessionError::Broken(error));
    writer.write_all(&frame).await.map_err(broken)?;
    writer.flush().await.map_err(broken)?;
    let mut first = replies(&mut reader, &mut buffer)
        .await
        .map_err(down)?
        .into_iter();
    let ready = match first.next() {
        Some(Reply::Ready(ready)) => ready,
        Some(Reply::Error(fault)) => return Err(down(SessionError::Refused(fault))),
        Some(_) | None => return Err(down(SessionError::NotReady)),
    };
    *outgoing.frames.lock().expect("no holder panics") = (hello.session, BytesMut::new());
    info!(%address, "connected to the output proxy");
    let up = News::Up {
        session: hello.session,
        credit: ready.credit,
    };
    for news_now in [up, News::Replies(first.collect())] {
        if news.send(news_now).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
    let ended = tokio::select! {
        error = write(&mut writer, outgoing) => error,
        error = read(&mut reader, &mut buffer, news) => error,
    };
    Err((true, ended))
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Connects and upgrades (P-1).
async fn connect(address: &Address) -> Result<(Reader, Writer, BytesMut), SessionError> {
    let slow = |_| SessionError::Slow(address.clone());
    let refused = |error| SessionError::Connect(address.clone(), error);
    match address {
        Address::Socket(path) => {
            let connected = tokio::time::timeout(CONNECT, UnixStream::connect(path)).await;
            let stream = connected.map_err(slow)?.map_err(refused)?;
            let (stream, rest) = upgrade(stream).await?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer), rest))
        }
        Address::Port(port) => {
            let connected =
                tokio::time::timeout(CONNECT, TcpStream::connect(("127.0.0.1", *port))).await;
            let stream = connected.map_err(slow)?.map_err(refused)?;
            stream.set_nodelay(true).map_err(refused)?;
            let (stream, rest) = upgrade(stream).await?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer), rest))
        }
    }
}

async fn upgrade<S>(stream: S) -> Result<(S, BytesMut), SessionError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(io)
        .await
        .map_err(SessionError::Upgrade)?;
    let connection = tokio::spawn(connection.with_upgrades());
    let request = hyper::Request::get("/publish")
        .header("host", "millrace")
        .header("connection", "upgrade")
        .header("upgrade", publish::PROTOCOL)
        .body(Empty::new())
        .expect("the request is well-formed");
    let response = sender
        .send_request(request)
        .await
        .map_err(SessionError::Upgrade)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        connection.abort();
        return Err(SessionError::NotAnOutput(response.status()));
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(SessionError::Upgrade)?;
    let parts = upgraded
        .downcast::<TokioIo<S>>()
        .expect("the connection was made from this type");
    Ok((parts.io.into_inner(), BytesMut::from(&parts.read_buf[..])))
}

async fn write(writer: &mut Writer, outgoing: &Outgoing) -> SessionError {
    loop {
        let frames = outgoing.frames.lock().expect("no holder panics").1.split();
        if frames.is_empty() {
            outgoing.filled.notified().await;
            continue;
        }
        if let Err(error) = writer.write_all(&frames).await {
            return SessionError::Broken(error);
        }
        if let Err(error) = writer.flush().await {
            return SessionError::Broken(error);
        }
    }
}

async fn read(
    reader: &mut Reader,
    buffer: &mut BytesMut,
    news: &mpsc::Sender<News>,
) -> SessionError {
    loop {
        let replies = match replies(reader, buffer).await {
            Ok(replies) => replies,
            Err(error) => return error,
        };
        let fault = replies.iter().find_map(|reply| match reply {
            Reply::Error(fault) => Some(fault.clone()),
            _ => None,
        });
        if news.send(News::Replies(replies)).await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(fault) = fault {
            return SessionError::Refused(fault);
        }
    }
}

/// All frames that have come; waits for at least one.
async fn replies(reader: &mut Reader, buffer: &mut BytesMut) -> Result<Vec<Reply>, SessionError> {
    let mut replies = Vec::new();
    loop {
        while let Some(frame) =
            next_frame(buffer, limits::FRAME_BYTES_MAX).map_err(SessionError::Frame)?
        {
            replies.push(Reply::decode(frame).map_err(SessionError::Frame)?);
        }
        if !replies.is_empty() {
            return Ok(replies);
        }
        buffer.reserve(READ_BYTES);
        if reader
            .read_buf(buffer)
            .await
            .map_err(SessionError::Broken)?
            == 0
        {
            return Err(SessionError::Closed);
        }
    }
}
