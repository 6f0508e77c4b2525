//! The customer's app, following a script, inside the test process; it remembers every request.
//!
//! Invariant: the script sees single and batch requests alike, event by event; what an event's
//! answer means for a batch (an item's status, or the whole answer) is worked out here.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::free_port;
use crate::pushes::{Posted, post_result};
use crate::wait::{wait_for, wait_until};

/// How long a crashed app needs to come back.
const RESTART: Duration = Duration::from_millis(300);

/// One event as the app was asked about it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `Millrace-Id`.
    pub id: String,
    /// Where the event stands.
    pub place: (String, i32, i64),
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// `Millrace-Attempt`.
    pub attempt: u32,
    /// Events of the same request, this one included.
    pub together: usize,
    /// Number of the request.
    pub request: u64,
    /// When it came.
    pub at: Instant,
    /// Request headers, or the headers of a batch item.
    pub headers: Vec<(String, String)>,
}

impl Asked {
    /// The value as text; for scripts whose events are texts.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    /// The key as text.
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// One result.
#[derive(Clone, Debug, Default)]
pub struct Out {
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Out {
    /// A result with this value and the event's key.
    pub fn value(value: impl Into<Vec<u8>>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// A result without a value.
    pub fn tombstone() -> Self {
        Self::default()
    }

    /// With a key of its own.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With a header of its own.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// What the app says to one event.
#[derive(Clone, Debug)]
pub struct Say {
    what: What,
    after: Duration,
    /// Not before [`RunningApp::let_go`].
    held: bool,
    headers: Vec<(String, String)>,
    /// In push mode, after the results.
    then: Option<Box<Say>>,
}

#[derive(Clone, Debug)]
enum What {
    Results(Vec<Out>),
    Filter,
    Status(u16),
    Body(u16, Vec<u8>),
    Cut,
    Crash,
    Never,
}

impl Say {
    /// One result.
    pub fn value(value: impl Into<Vec<u8>>) -> Self {
        Self::results(vec![Out::value(value)])
    }

    /// These results.
    pub fn results(results: Vec<Out>) -> Self {
        What::Results(results).into()
    }

    /// No result.
    pub fn filter() -> Self {
        What::Filter.into()
    }

    /// A status with an error body.
    pub fn status(code: u16) -> Self {
        What::Status(code).into()
    }

    /// A success whose body is not what it should be: empty, or garbage.
    pub fn body(code: u16, body: &[u8]) -> Self {
        What::Body(code, body.to_vec()).into()
    }

    /// The connection is closed without a word.
    pub fn cut() -> Self {
        What::Cut.into()
    }

    /// The app dies with everything that it works on; somebody starts it again soon.
    pub fn crash() -> Self {
        What::Crash.into()
    }

    /// No answer, ever.
    pub fn never() -> Self {
        What::Never.into()
    }

    /// In push mode: this, whatever became of the results. Without it the app says 200 if all
    /// were stored, else 500.
    #[must_use]
    pub fn then(mut self, say: Say) -> Self {
        self.then = Some(Box::new(say));
        self
    }

    /// After so long.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.after = delay;
        self
    }

    /// Not before [`RunningApp::let_go`] (single requests).
    #[must_use]
    pub fn held(mut self) -> Self {
        self.held = true;
        self
    }

    /// With a response header (single requests).
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl From<What> for Say {
    fn from(what: What) -> Self {
        Self {
            what,
            after: Duration::ZERO,
            held: false,
            headers: Vec::new(),
            then: None,
        }
    }
}

type Script = Box<dyn Fn(&Asked) -> Say + Send + Sync>;
type WholeScript = Box<dyn Fn(&[Asked]) -> Option<Say> + Send + Sync>;

/// An app before it runs.
pub struct App {
    each: Script,
    whole: WholeScript,
    healthy: bool,
    offer: Option<Value>,
    push: Push,
}

/// Where results go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Push {
    /// Into the answer.
    No,
    /// To the output, with the correlation.
    Echo,
    /// To the output, and nothing is echoed.
    Mute,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

impl App {
    /// An app that says this to each event.
    pub fn saying(each: impl Fn(&Asked) -> Say + Send + Sync + 'static) -> Self {
        Self {
            each: Box::new(each),
            whole: Box::new(|_| None),
            healthy: true,
            offer: None,
            push: Push::No,
        }
    }

    /// Answers each event with its own bytes, a tombstone with a tombstone.
    pub fn echo() -> Self {
        Self::saying(|asked| {
            let result = asked.value.clone().map_or_else(Out::tombstone, Out::value);
            Say::results(vec![result])
        })
    }

    /// Answers a number with twice the number.
    pub fn doubler() -> Self {
        Self::saying(|asked| match asked.text().parse::<i64>() {
            Ok(number) => Say::value((2 * number).to_string()),
            Err(_) => Say::status(422),
        })
    }

    /// But to some whole requests it says this.
    #[must_use]
    pub fn but(mut self, whole: impl Fn(&[Asked]) -> Option<Say> + Send + Sync + 'static) -> Self {
        self.whole = Box::new(whole);
        self
    }

    /// But its health endpoint says 503 until told otherwise.
    #[must_use]
    pub fn not_yet_healthy(mut self) -> Self {
        self.healthy = false;
        self
    }

    /// Posts its results to the output (push mode).
    #[must_use]
    pub fn pushing(mut self) -> Self {
        self.push = Push::Echo;
        self
    }

    /// Posts its results, and echoes no correlation (A-P4).
    #[must_use]
    pub fn pushing_without_echo(mut self) -> Self {
        self.push = Push::Mute;
        self
    }

    /// Says this about itself under `/.well-known/millrace`.
    #[must_use]
    pub fn offering(mut self, offer: Value) -> Self {
        self.offer = Some(offer);
        self
    }
}

/// Where an app serves, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Door {
    /// HTTP/1.1 at a port.
    Tcp,
    /// HTTP/2 without TLS at a port.
    Http2,
    /// HTTP/1.1 at a Unix socket.
    Socket(PathBuf),
}

/// An app that serves.
#[derive(Debug)]
pub struct RunningApp {
    /// Where, on 127.0.0.1, unless it is a socket.
    pub port: u16,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    app: App,
    seen: Mutex<Seen>,
    /// Number of this life; 0 while it is down. Whoever serves ends when it changes.
    life: watch::Sender<Life>,
    let_go: watch::Sender<bool>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Life {
    number: u64,
    up: bool,
    listening: bool,
}

#[derive(Default)]
struct Seen {
    asked: Vec<Asked>,
    /// Where the outputs of the pods listen.
    outputs: Vec<u16>,
    posted: Vec<Posted>,
    requests: u64,
    healthy: bool,
    /// Positions per lane that are at the app, each as often as it is.
    open: HashMap<(i32, Option<Vec<u8>>), Vec<i64>>,
    overlaps: usize,
    at_once: usize,
    at_once_max: usize,
}

impl App {
    /// Starts to serve.
    pub(crate) fn start(self, door: Door) -> RunningApp {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let seen = Seen {
            healthy: self.healthy,
            ..Seen::default()
        };
        let life = Life {
            number: 1,
            up: true,
            listening: false,
        };
        let shared = Arc::new(Shared {
            app: self,
            seen: Mutex::new(seen),
            life: watch::channel(life).0,
            let_go: watch::channel(false).0,
        });
        let port = free_port();
        runtime.spawn(serve(Arc::clone(&shared), door, port));
        let app = RunningApp {
            port,
            shared,
            runtime: Some(runtime),
        };
        app.await_listening();
        app
    }
}

impl RunningApp {
    /// Everything that it was asked, in the order of arrival.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.seen().asked.clone()
    }

    /// What it was asked about events with this value.
    pub fn asked_about(&self, value: &str) -> Vec<Asked> {
        let seen = self.shared.seen();
        let about = |a: &&Asked| a.value.as_deref() == Some(value.as_bytes());
        seen.asked.iter().filter(about).cloned().collect()
    }

    /// Everything that it posted, in the order of the answers.
    pub fn posted(&self) -> Vec<Posted> {
        self.shared.seen().posted.clone()
    }

    /// Tells it where the outputs of the pods listen.
    pub fn post_to(&self, outputs: Vec<u16>) {
        self.shared.seen().outputs = outputs;
    }

    /// How many requests it has had.
    pub fn requests(&self) -> u64 {
        self.shared.seen().requests
    }

    /// When it was asked about one more than `count` events; waits for that.
    pub fn first_after(&self, count: usize) -> Instant {
        wait_for(&format!("event {count} at the app"), || {
            self.shared.seen().asked.get(count).map(|asked| asked.at)
        })
    }

    /// How often it was asked about an event while another of the same key was at it. An event
    /// that is at it twice does not count: whoever gets a partition asks again about what its
    /// earlier owner still waits for (D-G4).
    pub fn overlaps(&self) -> usize {
        self.shared.seen().overlaps
    }

    /// The most requests that were at it at once.
    pub fn at_once_max(&self) -> usize {
        self.shared.seen().at_once_max
    }

    /// Says from now on whether it is healthy.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.seen().healthy = healthy;
    }

    /// Gives the answers that it holds back, and holds none back any more.
    pub fn let_go(&self) {
        self.shared.let_go.send_replace(true);
    }

    /// Dies: connections are cut, the port is closed.
    pub fn kill(&self) {
        self.shared.end(false);
        wait_until("the app is gone", || !self.shared.life.borrow().listening);
    }

    /// Comes back after [`RunningApp::kill`].
    pub fn start_again(&self) {
        self.shared.life.send_modify(|life| life.up = true);
        self.await_listening();
    }

    fn await_listening(&self) {
        wait_until("the app listens", || self.shared.life.borrow().listening);
    }
}

impl Drop for RunningApp {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder panics")
    }

    /// Ends this life; `up`: the next begins by itself.
    fn end(&self, up: bool) {
        self.life.send_modify(|life| {
            life.number += 1;
            life.up = up;
        });
    }
}

/// Lives, one after the other.
async fn serve(shared: Arc<Shared>, door: Door, port: u16) {
    let mut life = shared.life.subscribe();
    loop {
        let Ok(current) = life.wait_for(|life| life.up).await.map(|life| *life) else {
            return;
        };
        let Some(listener) = Listener::bind(&door, port).await else {
            // The port of a life that just ended may take a moment to be free.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        shared.life.send_modify(|life| life.listening = true);
        let mut ends = shared.life.subscribe();
        tokio::select! {
            () = accept(&shared, &door, listener, current.number) => {}
            _ = ends.wait_for(|life| life.number != current.number) => {}
        }
        shared.life.send_modify(|life| life.listening = false);
        // Whoever supervises an app needs a moment to start it again.
        tokio::time::sleep(RESTART).await;
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(door: &Door, port: u16) -> Option<Self> {
        match door {
            Door::Tcp | Door::Http2 => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                TcpListener::bind(address).await.ok().map(Self::Tcp)
            }
            Door::Socket(path) => {
                // The file of an earlier life.
                drop(std::fs::remove_file(path));
                UnixListener::bind(path).ok().map(Self::Unix)
            }
        }
    }
}

async fn accept(shared: &Arc<Shared>, door: &Door, listener: Listener, number: u64) {
    loop {
        match &listener {
            Listener::Tcp(listener) => {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                // Without it a short answer waits for the acknowledgement of the one before.
                if stream.set_nodelay(true).is_ok() {
                    attend(shared, door, stream, number);
                }
            }
            Listener::Unix(listener) => {
                if let Ok((stream, _)) = listener.accept().await {
                    attend(shared, door, stream, number);
                }
            }
        }
    }
}

/// Serves one connection for as long as this life lasts.
fn attend<S>(shared: &Arc<Shared>, door: &Door, stream: S, number: u64)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut ends = shared.life.subscribe();
    let app = Arc::clone(shared);
    let multiplexed = *door == Door::Http2;
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let app = Arc::clone(&app);
            async move { answer(&app, request).await }
        });
        let serving = async {
            // An error is the cut that the script asked for, or that the other side made.
            if multiplexed {
                let builder = http2::Builder::new(TokioExecutor::new());
                drop(
                    builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            } else {
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new());
                drop(
                    builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            }
        };
        tokio::select! {
            () = serving => {}
            _ = ends.wait_for(|life| life.number != number) => {}
        }
    });
}

/// The connection ends here.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the script cuts the connection")
    }
}

impl std::error::Error for Cut {}

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

type Answer = Result<Response<Full<Bytes>>, Cut>;

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::GET, "/healthz") => {
            let code = if shared.seen().healthy { 200 } else { 503 };
            return Ok(response(code, Bytes::new()));
        }
        (&Method::GET, "/.well-known/millrace") => {
            return Ok(match &shared.app.offer {
                Some(offer) => response(200, Bytes::from(offer.to_string())),
                None => response(404, Bytes::new()),
            });
        }
        (&Method::POST, "/" | "/process" | "/process-batch") => {}
        // Each pod of push mode has a path of its own.
        (&Method::POST, path) if path.starts_with("/process/") => {}
        _ => return Ok(response(404, Bytes::new())),
    }
    let Ok(body) = body.collect().await else {
        return Err(Cut);
    };
    let body = body.to_bytes();
    let batch = head.uri.path() == "/process-batch";
    let asked = if batch {
        batch_items(&body)
    } else {
        vec![single(&head.headers, &body)]
    };
    let pod = head.uri.path().strip_prefix("/process/");
    let pod = pod.and_then(|pod| pod.parse().ok()).unwrap_or(0);
    let open = Open::new(shared, asked);
    if let Some(whole) = (shared.app.whole)(&open.asked) {
        return carry_out(shared, &open.asked, &whole).await;
    }
    let says: Vec<Say> = open
        .asked
        .iter()
        .map(|asked| (shared.app.each)(asked))
        .collect();
    if shared.app.push != Push::No {
        return post_and_answer(shared, &open.asked, &says[0], pod).await;
    }
    if !batch {
        return carry_out(shared, &open.asked, &says[0]).await;
    }
    let drastic = |say: &&Say| {
        matches!(
            say.what,
            What::Cut | What::Crash | What::Never | What::Body(..)
        )
    };
    if let Some(say) = says.iter().find(drastic) {
        return carry_out(shared, &open.asked, say).await;
    }
    let after = says.iter().map(|say| say.after).max().unwrap_or_default();
    // As slow as the script says.
    tokio::time::sleep(after).await;
    let results: Vec<Value> = open
        .asked
        .iter()
        .zip(&says)
        .map(|(asked, say)| item_answer(asked, say))
        .collect();
    Ok(response(
        200,
        Bytes::from(json!({ "results": results }).to_string()),
    ))
}

/// A request that is at the app; counts what runs beside it.
struct Open {
    shared: Arc<Shared>,
    asked: Vec<Asked>,
}

impl Open {
    fn new(shared: &Arc<Shared>, mut asked: Vec<Asked>) -> Self {
        let mut seen = shared.seen();
        seen.requests += 1;
        seen.at_once += 1;
        seen.at_once_max = seen.at_once_max.max(seen.at_once);
        let (request, together) = (seen.requests, asked.len());
        for event in &mut asked {
            event.request = request;
            event.together = together;
            seen.asked.push(event.clone());
            let open = seen.open.entry(lane(event)).or_default();
            let others = open.iter().any(|position| *position != event.place.2);
            open.push(event.place.2);
            let overlaps = others && event.key.is_some();
            seen.overlaps += usize::from(overlaps);
        }
        drop(seen);
        Self {
            shared: Arc::clone(shared),
            asked,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut seen = self.shared.seen();
        seen.at_once -= 1;
        for event in &self.asked {
            if let Some(open) = seen.open.get_mut(&lane(event))
                && let Some(ended) = open.iter().position(|position| *position == event.place.2)
            {
                open.swap_remove(ended);
            }
        }
    }
}

fn lane(asked: &Asked) -> (i32, Option<Vec<u8>>) {
    (asked.place.1, asked.key.clone())
}

fn single(headers: &HeaderMap, body: &Bytes) -> Asked {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    };
    let number = |name: &str| text(name).parse::<i64>().unwrap_or(-1);
    let key = headers.get("millrace-key").map(|key| {
        URL_SAFE_NO_PAD
            .decode(key.as_bytes())
            .expect("Millrace-Key is base64url (A-S1)")
    });
    let all = headers.iter().map(|(name, value)| {
        (
            name.as_str().to_owned(),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        )
    });
    Asked {
        id: text("millrace-id").to_owned(),
        place: (
            text("millrace-topic").to_owned(),
            i32::try_from(number("millrace-partition")).expect("a partition"),
            number("millrace-offset"),
        ),
        key,
        value: (!headers.contains_key("millrace-tombstone")).then(|| body.to_vec()),
        attempt: u32::try_from(number("millrace-attempt")).expect("an attempt"),
        together: 1,
        request: 0,
        at: Instant::now(),
        headers: all.collect(),
    }
}

fn batch_items(body: &Bytes) -> Vec<Asked> {
    let body: Value = serde_json::from_slice(body).expect("a batch request is JSON (A-B5)");
    if let Value::Array(events) = &body {
        return events.iter().map(batch_event).collect();
    }
    let items = body["items"].as_array().expect("items");
    items.iter().map(batch_item).collect()
}

/// One CloudEvent of a batch (A-C3). It does not say where the event stands.
fn batch_event(event: &Value) -> Asked {
    let data = match (&event["data"], event["data_base64"].as_str()) {
        (Value::Null, None) => None,
        (Value::Null, Some(text)) => Some(STANDARD.decode(text).expect("base64")),
        (Value::String(text), _) => Some(text.clone().into_bytes()),
        (json, _) => Some(json.to_string().into_bytes()),
    };
    let members = event.as_object().expect("an object").iter();
    let attempt = event["millraceattempt"].as_u64().expect("an attempt");
    Asked {
        id: event["millraceid"].as_str().expect("an id").to_owned(),
        place: (String::new(), -1, -1),
        key: None,
        value: data,
        attempt: u32::try_from(attempt).expect("small"),
        together: 0,
        request: 0,
        at: Instant::now(),
        headers: members.map(|(n, v)| (n.clone(), v.to_string())).collect(),
    }
}

fn batch_item(item: &Value) -> Asked {
    let bytes = |name: &str| -> Option<Vec<u8>> {
        match (item.get(name), item.get(format!("{name}_base64"))) {
            (Some(Value::String(text)), None) => Some(text.clone().into_bytes()),
            (Some(Value::Null) | None, None) => None,
            (None, Some(Value::String(text))) => Some(STANDARD.decode(text).expect("base64")),
            other => panic!("{name} is spelled {other:?}"),
        }
    };
    let header = |pair: &Value| {
        (
            pair[0].as_str().unwrap_or_default().to_owned(),
            pair[1].to_string(),
        )
    };
    Asked {
        id: item["id"].as_str().expect("an id").to_owned(),
        place: (
            item["topic"].as_str().expect("a topic").to_owned(),
            i32::try_from(item["partition"].as_i64().expect("a partition")).expect("small"),
            item["offset"].as_i64().expect("an offset"),
        ),
        key: bytes("key"),
        value: bytes("value"),
        attempt: u32::try_from(item["attempt"].as_u64().expect("an attempt")).expect("small"),
        together: 0,
        request: 0,
        at: Instant::now(),
        headers: item["headers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(header)
            .collect(),
    }
}

/// Push mode: the results first, then the answer.
async fn post_and_answer(shared: &Arc<Shared>, asked: &[Asked], say: &Say, pod: usize) -> Answer {
    let results: &[Out] = match &say.what {
        What::Results(results) => results,
        _ => return carry_out(shared, asked, say).await,
    };
    let port = shared.seen().outputs.get(pod).copied();
    let port = port.expect("push mode says where to post");
    let (results, asked_one) = (results.to_vec(), asked[0].clone());
    let (app, after) = (Arc::clone(shared), say.after);
    // An app goes on posting when nobody waits for its answer any more.
    let posting = tokio::spawn(async move {
        // As slow as the script says.
        tokio::time::sleep(after).await;
        let mut stored = true;
        for out in &results {
            let echo = app.app.push == Push::Echo;
            let posted = post_result(port, &asked_one, out, echo).await;
            stored &= posted.status == Some(200);
            app.seen().posted.push(posted);
        }
        stored
    });
    let stored = posting.await.is_ok_and(|stored| stored);
    match &say.then {
        Some(then) => carry_out(shared, asked, then).await,
        None if stored => Ok(response(200, Bytes::from_static(b"ok"))),
        None => carry_out(shared, asked, &Say::status(500)).await,
    }
}

/// One answer to the whole request.
async fn carry_out(shared: &Arc<Shared>, asked: &[Asked], say: &Say) -> Answer {
    // As slow as the script says.
    tokio::time::sleep(say.after).await;
    if say.held {
        let mut let_go = shared.let_go.subscribe();
        let_go.wait_for(|go| *go).await.map_err(|_| Cut)?;
    }
    let mut response = match &say.what {
        What::Results(results) => single_results(results),
        What::Filter => response(204, Bytes::new()),
        What::Status(code) => response(*code, Bytes::from(error(*code, asked).to_string())),
        What::Body(code, body) => response(*code, Bytes::from(body.clone())),
        What::Cut => return Err(Cut),
        What::Crash => {
            shared.end(true);
            return std::future::pending().await;
        }
        What::Never => return std::future::pending().await,
    };
    for (name, value) in &say.headers {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        response
            .headers_mut()
            .insert(name, value.parse().expect("a header value"));
    }
    Ok(response)
}

fn error(code: u16, asked: &[Asked]) -> Value {
    let about = asked.first().map(Asked::text).unwrap_or_default();
    json!({"error": {"code": format!("SCRIPT_{code}"), "message": format!("the script refuses `{about}`")}})
}

/// One plain result is the body itself; anything else needs the results form (A-S5).
fn single_results(results: &[Out]) -> Response<Full<Bytes>> {
    if let [
        Out {
            value: Some(value),
            key: None,
            headers,
        },
    ] = results
        && headers.is_empty()
        && !value.is_empty()
    {
        return response(200, Bytes::from(value.clone()));
    }
    let body = json!({ "outputs": results.iter().map(output).collect::<Vec<_>>() });
    let mut response = response(200, Bytes::from(body.to_string()));
    let kind = "application/vnd.millrace.results+json";
    response
        .headers_mut()
        .insert("content-type", kind.parse().expect("a media type"));
    response
}

fn output(out: &Out) -> Value {
    let mut object = Map::new();
    match &out.value {
        None => object.insert("value".into(), Value::Null),
        Some(value) => match std::str::from_utf8(value) {
            Ok(text) => object.insert("value".into(), text.into()),
            Err(_) => object.insert("value_base64".into(), STANDARD.encode(value).into()),
        },
    };
    if let Some(key) = &out.key {
        object.insert("key_base64".into(), STANDARD.encode(key).into());
    }
    if !out.headers.is_empty() {
        object.insert("headers".into(), json!(out.headers));
    }
    object.into()
}

fn item_answer(asked: &Asked, say: &Say) -> Value {
    let id = &asked.id;
    match &say.what {
        What::Results(results) => {
            json!({"id": id, "status": "ok", "outputs": results.iter().map(output).collect::<Vec<_>>()})
        }
        What::Filter => json!({"id": id, "status": "filter"}),
        What::Status(code) => {
            let status = if matches!(code, 408 | 409 | 425 | 429 | 500..=599) {
                "retry"
            } else {
                "fail"
            };
            let error = error(*code, std::slice::from_ref(asked));
            json!({"id": id, "status": status, "error": error["error"]})
        }
        other => panic!("{other:?} is an answer to a whole batch"),
    }
}

fn response(code: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}
