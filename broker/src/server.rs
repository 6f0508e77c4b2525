//! Connections: accepts them, reads frames, answers them in their order.
//!
//! A connection is one task, and one request of it is worked on at a time, as in Apache
//! Kafka: a client that waits in a fetch or a join uses another connection for the rest.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, RequestKind, ResponseKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::api::{self, Caller, Outcome, refusal};
use crate::faults::Fault;
use crate::ids::now_ms;
use crate::limits::{CONNECTIONS_MAX, FRAME_BYTES_MAX, RETENTION_TICK, TICK};
use crate::state::Shared;
use crate::wire::{self, Frame, Head};

/// How much is read at a time.
const BUFFER_BYTES: usize = 128 * 1024;

/// How much room an idle connection keeps, per direction.
const ROOM_BYTES_MAX: usize = 64 * BUFFER_BYTES;

/// Serves until told to stop. Connections end with this function.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    mut stop: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retention = interval(RETENTION_TICK);
    retention.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Every branch is safe to cancel: nothing is taken off a queue before it is ready.
    loop {
        tokio::select! {
            _ = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < CONNECTIONS_MAX => {
                    let shared = shared.clone();
                    connections.spawn(async move { connection(&shared, stream, peer).await });
                }
                Ok((_, peer)) => {
                    tracing::warn!(%peer, "closed a connection: {CONNECTIONS_MAX} are open");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(TICK).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection ended in a panic");
                }
            }
            _ = tick.tick() => {
                if shared.lock().tick(Instant::now()) {
                    shared.data.notify_waiters();
                }
            }
            _ = retention.tick() => shared.lock().retain(now_ms()),
        }
    }
}

async fn connection(shared: &Arc<Shared>, mut stream: TcpStream, peer: SocketAddr) {
    let outcome = converse(shared, &mut stream, peer).await;
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "closed a connection");
    }
}

/// Why a connection ends before its client ends it.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("a frame says it is {0} bytes long")]
    FrameLength(i32),
    #[error(transparent)]
    Frame(#[from] wire::BadFrame),
    #[error(transparent)]
    Answer(#[from] wire::Unencodable),
    #[error("a request that wants no answer failed, or a fault was set")]
    OnPurpose,
}

async fn converse(
    shared: &Arc<Shared>,
    stream: &mut TcpStream,
    peer: SocketAddr,
) -> Result<(), Closed> {
    stream.set_nodelay(true)?;
    let host = peer.ip().to_string();
    let mut incoming = BytesMut::with_capacity(BUFFER_BYTES);
    let mut outgoing = BytesMut::with_capacity(BUFFER_BYTES);
    while let Some(frame) = read_frame(stream, &mut incoming).await? {
        match Frame::parse(frame.freeze())? {
            Frame::UnknownVersions { correlation_id } => {
                let answer = wire::api_versions(Some(ResponseError::UnsupportedVersion)).into();
                wire::encode(
                    ApiKey::ApiVersions,
                    0,
                    correlation_id,
                    &answer,
                    &mut outgoing,
                )?;
            }
            Frame::Request(head, request) => {
                let answered = respond(shared, &head, *request, &host).await;
                match answered {
                    Outcome::Answer(answer) => wire::encode(
                        head.api,
                        head.version,
                        head.correlation_id,
                        &answer,
                        &mut outgoing,
                    )?,
                    Outcome::Silent => {}
                    Outcome::Close => return Err(Closed::OnPurpose),
                }
            }
        }
        stream.write_all(&outgoing).await?;
        outgoing.clear();
        // One large request must not hold memory for the rest of the connection.
        for buffer in [&mut incoming, &mut outgoing] {
            if buffer.is_empty() && buffer.capacity() > ROOM_BYTES_MAX {
                *buffer = BytesMut::with_capacity(BUFFER_BYTES);
            }
        }
    }
    Ok(())
}

/// Reads one frame; `None` when the client has closed the connection.
async fn read_frame(
    stream: &mut TcpStream,
    incoming: &mut BytesMut,
) -> Result<Option<BytesMut>, Closed> {
    loop {
        if let Some(head) = incoming.first_chunk::<4>() {
            let said = i32::from_be_bytes(*head);
            let length = usize::try_from(said)
                .ok()
                .filter(|length| *length <= FRAME_BYTES_MAX)
                .ok_or(Closed::FrameLength(said))?;
            if incoming.len() >= 4 + length {
                incoming.advance(4);
                return Ok(Some(incoming.split_to(length)));
            }
            // Room for what is still to come, but not on the word of the client alone.
            let missing = 4 + length - incoming.len();
            incoming.reserve(missing.min(incoming.len().max(BUFFER_BYTES)));
        } else {
            incoming.reserve(BUFFER_BYTES);
        }
        if stream.read_buf(incoming).await? == 0 {
            return match incoming.is_empty() {
                true => Ok(None),
                false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            };
        }
    }
}

/// Carries a request out, with the faults that were set for it.
async fn respond(shared: &Arc<Shared>, head: &Head, request: RequestKind, host: &str) -> Outcome {
    let caller = Caller { head, host };
    let faults = shared
        .faults
        .take(head.api, head.client_id.as_deref(), &request);
    if faults.is_empty() {
        return api::carry_out(shared, &caller, request).await;
    }
    let refused = |request: &RequestKind, error| -> Outcome {
        refusal::answer(request, head.version, error)
            .map_or(Outcome::Close, |answer| Outcome::Answer(Box::new(answer)))
    };
    let mut timed_out = None;
    let mut lost = false;
    for fault in faults {
        tracing::debug!(api = ?head.api, ?fault, "a fault that was set happens");
        match fault {
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::Refuse(error) => return refused(&request, error),
            Fault::DropConnection => return Outcome::Close,
            Fault::LoseAnswer => lost = true,
            Fault::TimeOutAfterApplying => {
                timed_out = refusal::answer(&request, head.version, ResponseError::RequestTimedOut);
            }
        }
    }
    let outcome = api::carry_out(shared, &caller, request).await;
    if lost {
        return Outcome::Close;
    }
    replaced(outcome, timed_out)
}

fn replaced(outcome: Outcome, by: Option<ResponseKind>) -> Outcome {
    match (outcome, by) {
        (Outcome::Answer(_), Some(answer)) => Outcome::Answer(Box::new(answer)),
        (outcome, _) => outcome,
    }
}
