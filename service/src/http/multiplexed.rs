//! HTTP/2 without TLS: one connection that all calls share.
//!
//! The connection is driven by a task of its own; whoever holds the connection keeps the task,
//! and the last one to let go ends it. A connection that is in doubt is forgotten: calls that
//! are open on it may still end, new ones get a new connection.

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::connection::{Outgoing, Written, read_answer};
use super::stream::Counted;
use super::{Error, Response, Settings, connect};

/// The connection of one client, if there is one.
pub(super) struct Multiplexed {
    current: Mutex<Option<Arc<Shared>>>,
    /// Only one call connects at a time; the others wait for its connection.
    connecting: Semaphore,
}

impl std::fmt::Debug for Multiplexed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Multiplexed").finish_non_exhaustive()
    }
}

/// A connection and its task.
pub(super) struct Shared {
    sender: http2::SendRequest<Full<Bytes>>,
    task: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Without it a connection to a peer that went silent would wait for ever.
        self.task.abort();
    }
}

impl Multiplexed {
    pub(super) fn new() -> Self {
        Self {
            current: Mutex::new(None),
            connecting: Semaphore::new(1),
        }
    }

    fn current(&self) -> Option<Arc<Shared>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|shared| shared.sender.is_closed());
        current.clone()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.current().is_none()
    }

    /// Gives no more calls to this connection.
    pub(super) fn forget(&self, shared: &Arc<Shared>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.take_if(|current| Arc::ptr_eq(current, shared));
    }

    /// Sends a request on the connection and reads the answer; makes one if there is
    /// none. Notes in `used` which connection has the request, so that whoever gives
    /// the call up can [`forget`](Self::forget) it.
    pub(super) async fn exchange(
        &self,
        mut request: Outgoing,
        settings: &Settings,
        progress: &Written,
        used: &Mutex<Option<Arc<Shared>>>,
    ) -> Result<Response, Error> {
        // A kept connection may be closing. If the request comes back unsent, another one may
        // try; a new connection gets a single chance.
        loop {
            let (shared, is_new) = match self.current() {
                Some(shared) => (shared, false),
                None => self.connected(settings).await?,
            };
            let mut sender = shared.sender.clone();
            if let Err(error) = sender.ready().await {
                self.forget(&shared);
                if is_new {
                    return Err(Error::LostBeforeWrite(Some(error)));
                }
                continue;
            }
            *used.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&shared));
            // From here on the connection's task may write it at any moment.
            progress.note(1);
            let mut failed = match sender.try_send_request(request).await {
                Ok(answer) => return read_answer(answer, settings.response_bytes_max).await,
                Err(failed) => failed,
            };
            match failed.take_message() {
                Some(same) => {
                    self.forget(&shared);
                    progress.note(0);
                    if is_new {
                        return Err(Error::LostBeforeWrite(Some(failed.into_error())));
                    }
                    request = same;
                }
                None => return Err(lost(failed.into_error())),
            }
        }
    }

    /// The connection that another call has made meanwhile, or a new one.
    async fn connected(&self, settings: &Settings) -> Result<(Arc<Shared>, bool), Error> {
        let _turn = self
            .connecting
            .acquire()
            .await
            .expect("the semaphore is never closed");
        if let Some(shared) = self.current() {
            return Ok((shared, false));
        }
        let stream = Counted::new(connect(settings).await?, Arc::default());
        let (sender, driver): (http2::SendRequest<Full<Bytes>>, _) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|error| Error::LostBeforeWrite(Some(error)))?;
        // How the connection ends is told to the calls on it.
        let task = tokio::spawn(async move { drop(driver.await) });
        let shared = Arc::new(Shared {
            sender,
            task: task.abort_handle(),
        });
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&shared));
        Ok((shared, true))
    }
}

/// What became of a request that was given to the connection.
fn lost(error: hyper::Error) -> Error {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    let refused = cause.is_some_and(|cause| {
        // The server says that it has not looked at the stream (RFC 9113, 8.7 and 6.8).
        cause.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (cause.is_go_away() && cause.is_remote())
    });
    if refused {
        Error::LostBeforeWrite(Some(error))
    } else if error.is_parse() || cause.is_some_and(|cause| cause.is_library()) {
        Error::Malformed(error)
    } else {
        Error::LostAfterWrite(Some(error))
    }
}
