//! An embedded broker, the real output proxy, and an input proxy that follows a script.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_broker::{Broker, Options};
use millrace_connectors::kafka::{Reader, Settings, Start, Until};
use millrace_core::contract::block::Block;
use millrace_core::contract::publish::{
    Destination, FateCode, Hello, Lease, Mode, Ready, Reply, Request, ResultsFrame, StoreClass,
    StoreFailure, VERSION, next_frame,
};
use millrace_core::event::Event;
use millrace_core::limits::FRAME_BYTES_MAX;
use millrace_core::position::{Partition, Position};
use millrace_core::token::Stamp;
use millrace_output::{Address, Bound, Environment, Error};
use millrace_service::shutdown::Shutdown;
use millrace_service::time::clock;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Nothing in these tests takes longer unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const GENERATION: i32 = 3;

/// Fails a test that waits for what never comes.
pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("{what} takes too long"))
}

pub(crate) fn broker() -> Broker {
    Broker::start(Options {
        auto_create_topics: false,
        ..Options::memory()
    })
    .unwrap()
}

/// A block document whose output is a broker at `bootstrap`.
pub(crate) fn document(bootstrap: &str) -> Value {
    json!({
        "identity": "local/tests/score",
        "connections": {"main": {"kafka": {"bootstrap": [bootstrap], "tls": "Off"}}},
        "input": {"kafka": {"connection": "main", "topics": ["in"], "startAt": "Earliest"}},
        "output": {"kafka": {"connection": "main", "topic": "out"}},
        "topics": {"create": "Missing", "partitions": 2},
        "delivery": {"messageTimeout": "1500ms"},
        "app": {"shadow": "Safe"},
        "admin": {"outputPort": 0},
        "publish": {"port": 0},
    })
}

/// A running output proxy.
pub(crate) struct Output {
    pub(crate) bound: Bound,
    pub(crate) shutdown: Shutdown,
    task: JoinHandle<Result<(), Error>>,
}

impl Output {
    pub(crate) async fn start(document: &Value) -> Self {
        let block = Block::parse(document).unwrap();
        let environment = Environment {
            release: "r1".to_owned(),
            pod: "pod-1".to_owned(),
            variables: BTreeMap::new(),
            logs: None,
            any_block: false,
        };
        let shutdown = Shutdown::new();
        let (bound, where_bound) = oneshot::channel();
        let ending = shutdown.clone();
        let task =
            tokio::spawn(
                async move { millrace_output::run(&block, environment, ending, bound).await },
            );
        Self {
            bound: where_bound.await.unwrap(),
            shutdown,
            task,
        }
    }

    /// Connects as session `session` and waits for `Ready`.
    pub(crate) async fn connect(&self, session: u64) -> Client {
        let mut client = self.open().await;
        client.send(&hello(session)).await;
        match client.reply().await {
            Reply::Ready(ready) => client.ready = Some(ready),
            other => panic!("{other:?} instead of Ready"),
        }
        client
    }

    /// Connects and upgrades; says nothing.
    pub(crate) async fn open(&self) -> Client {
        let stream: Box<dyn Stream> = match &self.bound.publish {
            Address::Port(address) => Box::new(TcpStream::connect(address).await.unwrap()),
            Address::Socket(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        };
        let mut client = Client {
            stream,
            buffer: BytesMut::new(),
            seq: 0,
            credit: 0,
            ready: None,
        };
        client
            .raw(b"GET /publish HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: millrace-publish/1\r\n\r\n")
            .await;
        let head = client.http_head().await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        client
    }

    /// `GET path` of the admin port: status and body.
    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        let text = http_get(self.bound.admin, path).await;
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Waits until the admin port answers so that `wanted` holds.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
        soon(path, async {
            loop {
                let (status, body) = self.admin(path).await;
                if wanted(status, &body) {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Asks for a drain and waits for the end.
    pub(crate) async fn end(self) -> Result<(), Error> {
        self.shutdown.request();
        soon("the end", self.task).await.unwrap()
    }
}

pub(crate) async fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

pub(crate) fn hello(session: u64) -> Request {
    Request::Hello(Hello {
        version: VERSION,
        block: "local/tests/score".to_owned(),
        release: "r1".to_owned(),
        pod: "pod-1".to_owned(),
        session,
        mode: Mode::AtLeastOnce,
    })
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The scripted input proxy.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    pub(crate) seq: u64,
    /// Bytes of results sent, less what came back.
    pub(crate) credit: u64,
    pub(crate) ready: Option<Ready>,
}

/// What a test wants to be stored.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) position: i64,
    pub(crate) lane: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) values: Vec<Vec<u8>>,
}

pub(crate) fn result(position: i64, lane: u64, value: impl Into<Vec<u8>>) -> Planned {
    Planned {
        position,
        lane,
        key: format!("key-{lane}").into_bytes(),
        values: vec![value.into()],
    }
}

pub(crate) fn source() -> Partition {
    Partition::new("in", 0)
}

impl Client {
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn http_head(&mut self) -> String {
        soon("the answer to the upgrade", async {
            loop {
                if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                    let head = self.buffer.split_to(end + 4);
                    return String::from_utf8(head.to_vec()).unwrap();
                }
                assert!(
                    self.stream.read_buf(&mut self.buffer).await.unwrap() > 0,
                    "closed"
                );
            }
        })
        .await
    }

    pub(crate) async fn send(&mut self, request: &Request) {
        let mut frame = Vec::new();
        request.encode(&mut frame);
        self.raw(&frame).await;
    }

    pub(crate) async fn lease(&mut self, length: Duration) {
        self.send(&Request::Lease(Lease {
            generation: GENERATION,
            until: clock().boot + length,
            partitions: vec![source()],
        }))
        .await;
    }

    pub(crate) fn frame(&mut self) -> ResultsFrame {
        self.seq += 1;
        ResultsFrame::new(self.seq, Stamp::Live, GENERATION)
    }

    pub(crate) async fn send_frame(&mut self, frame: ResultsFrame) {
        let frame = frame.finish();
        self.credit += frame.len() as u64;
        self.raw(&frame).await;
    }

    /// Sends these events in one frame.
    pub(crate) async fn results(&mut self, results: &[Planned]) {
        let mut frame = self.frame();
        for event in results {
            frame.event(
                &source(),
                Position::new(event.position),
                event.lane,
                FateCode::Emitted,
            );
            for value in &event.values {
                frame.record(
                    Destination::Output,
                    None,
                    Some(1_000 + event.position),
                    Some(&event.key),
                    Some(value),
                );
                frame.header(b"millrace-id", Some(event.position.to_string().as_bytes()));
            }
        }
        self.send_frame(frame).await;
    }

    /// The next frame of the output; `None`: the connection is closed.
    pub(crate) async fn next(&mut self) -> Option<Reply> {
        soon("a reply", async {
            loop {
                if let Some(frame) = next_frame(&mut self.buffer, FRAME_BYTES_MAX).unwrap() {
                    return Some(Reply::decode(frame).unwrap());
                }
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        self.next().await.expect("the output closed the connection")
    }

    /// Answers to `events` events of frame `seq`: stored indices, and failures.
    pub(crate) async fn answers(
        &mut self,
        seq: u64,
        events: usize,
    ) -> (Vec<u32>, Vec<StoreFailure>) {
        let (mut stored, mut failures) = (Vec::new(), Vec::new());
        while stored.len() + failures.len() < events {
            match self.reply().await {
                Reply::Stored(part) => {
                    assert_eq!(part.seq, seq);
                    stored.extend(part.stored.into_iter().flatten());
                    failures.extend(part.failures);
                }
                Reply::Credit(bytes) => self.credit -= bytes,
                other => panic!("{other:?}"),
            }
        }
        stored.sort_unstable();
        failures.sort_by_key(|failure| failure.event);
        (stored, failures)
    }

    /// Sends results again and again, failed ones first and in order, until all are stored.
    /// Returns how often an event failed.
    pub(crate) async fn store_all(&mut self, results: &[Planned], ahead: usize) -> usize {
        let mut open: BTreeMap<(u64, u32), usize> = BTreeMap::new();
        let mut waiting: std::collections::BTreeSet<usize> = (0..results.len()).collect();
        let mut failed = 0;
        while !waiting.is_empty() || !open.is_empty() {
            self.lease(Duration::from_secs(60)).await;
            while open.len() < ahead && !waiting.is_empty() {
                let batch: Vec<usize> = waiting.iter().copied().take(7).collect();
                let seq = self.seq + 1;
                for (index, event) in (0..).zip(&batch) {
                    waiting.remove(event);
                    open.insert((seq, index), *event);
                }
                let batch: Vec<_> = batch
                    .into_iter()
                    .map(|event| results[event].clone())
                    .collect();
                self.results(&batch).await;
            }
            match self.reply().await {
                Reply::Stored(part) => {
                    for index in part.stored.into_iter().flatten() {
                        open.remove(&(part.seq, index))
                            .expect("an event is answered once");
                    }
                    for failure in part.failures {
                        assert_ne!(failure.class, StoreClass::Rejected, "{failure:?}");
                        failed += 1;
                        let event = open.remove(&(part.seq, failure.event));
                        waiting.insert(event.expect("an event is answered once"));
                    }
                }
                Reply::Credit(bytes) => self.credit -= bytes,
                other => panic!("{other:?}"),
            }
        }
        failed
    }
}

/// Everything in a topic, per partition in order.
pub(crate) async fn stored(bootstrap: &str, topic: &str, partitions: i32) -> Vec<Vec<Event>> {
    let starts = (0..partitions)
        .map(|n| (Partition::new(topic, n), Start::Earliest))
        .collect();
    let mut reader = Reader::open(Settings::plain(bootstrap, "test"), starts, Until::Ends);
    let mut events = vec![Vec::new(); usize::try_from(partitions).unwrap()];
    while let Some(fetched) = soon("reading", reader.next()).await {
        for part in fetched.unwrap() {
            events[usize::try_from(part.partition.number()).unwrap()].extend(part.events);
        }
    }
    events
}

/// Values of a topic, all partitions, in order per partition.
pub(crate) async fn values(bootstrap: &str, topic: &str, partitions: i32) -> Vec<String> {
    let events = stored(bootstrap, topic, partitions).await;
    events
        .iter()
        .flatten()
        .map(|event| String::from_utf8(event.value().unwrap().to_vec()).unwrap())
        .collect()
}

/// The order law: for each key, first deliveries are in order, and none is missing.
pub(crate) async fn assert_in_order(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    expected: &[Planned],
) {
    let mut seen: BTreeMap<Bytes, Vec<i64>> = BTreeMap::new();
    for event in stored(bootstrap, topic, partitions).await.iter().flatten() {
        let positions = seen
            .entry(Bytes::copy_from_slice(event.key().unwrap()))
            .or_default();
        let position = event.timestamp().ms - 1_000;
        if !positions.contains(&position) {
            assert!(
                positions.last().is_none_or(|last| *last < position),
                "{position} of {:?} came behind {:?}",
                event.key(),
                positions.last()
            );
            positions.push(position);
        }
    }
    let total: usize = seen.values().map(Vec::len).sum();
    assert_eq!(total, expected.len(), "events are missing");
}
