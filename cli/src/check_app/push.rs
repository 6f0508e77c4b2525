//! Point 9: what an app of push mode posts, and when. This command stands where the output proxy
//! would (`app.push.port`), and can be told to store nothing.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use millrace_core::contract::app::read_push;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Posts that are remembered.
const POSTS_MAX: usize = 10_000;

/// What an app hears whose result was not stored.
const FAILED: &str = "Error: The callback failed to process the message";

/// The stand-in for the output proxy; ends with its last handle.
#[derive(Debug)]
pub(super) struct Desk {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    posts: Mutex<Vec<Post>>,
    failing: AtomicBool,
    value_bytes_max: usize,
    cloud_events: bool,
}

/// One post.
#[derive(Clone, Debug)]
pub(super) struct Post {
    /// What it echoed, if it did.
    pub(super) correlation: Option<[u8; 16]>,
    /// What is wrong with it.
    pub(super) problem: Option<String>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    /// Listens on 127.0.0.1.
    pub(super) async fn open(
        port: u16,
        value_bytes_max: usize,
        cloud_events: bool,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let shared = Arc::new(Shared {
            posts: Mutex::new(Vec::new()),
            failing: AtomicBool::new(false),
            value_bytes_max,
            cloud_events,
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    /// From now on results are stored, or not.
    pub(super) fn fail(&self, failing: bool) {
        self.shared.failing.store(failing, Ordering::SeqCst);
    }

    /// Takes what has been posted since the last time.
    pub(super) fn take(&self) -> Vec<Post> {
        std::mem::take(&mut self.shared.posts())
    }
}

impl Shared {
    fn posts(&self) -> MutexGuard<'_, Vec<Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let say = |status: StatusCode, body: Bytes| {
            let mut response = Response::new(Full::new(body));
            *response.status_mut() = status;
            response
        };
        let Ok(body) = Limited::new(body, self.value_bytes_max).collect().await else {
            return say(StatusCode::PAYLOAD_TOO_LARGE, Bytes::new());
        };
        let body = body.to_bytes();
        let headers: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let (method, path) = (&head.method, head.uri.path());
        let (correlation, problem) = match read_push(&headers, &body, self.cloud_events) {
            _ if method != Method::POST || path != "/" => (
                None,
                Some(format!("it came as {method} {path}, not as POST /")),
            ),
            Ok(pushed) => (pushed.correlation, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let good = problem.is_none();
        let mut posts = self.posts();
        if posts.len() < POSTS_MAX {
            posts.push(Post {
                correlation,
                problem,
            });
        }
        drop(posts);
        if !good {
            return say(StatusCode::BAD_REQUEST, Bytes::new());
        }
        if self.failing.load(Ordering::SeqCst) {
            return say(StatusCode::INTERNAL_SERVER_ERROR, FAILED.into());
        }
        say(StatusCode::OK, [b"msg: ", &body[..]].concat().into())
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            });
            // A connection that breaks ends alone.
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}
