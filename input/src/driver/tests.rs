//! The real driver between a log in memory, an app and an output of this process.
//!
//! The sockets are real, so time is too: every wait has an end.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use millrace_connectors::TokenStore as _;
use millrace_connectors::memory::{CommitFault, MemoryLog};
use millrace_core::contract::block::Block;
use millrace_core::contract::commit::{Metadata, UnknownKeys};
use millrace_core::contract::publish::{
    Hello, Mode, Ready, Reply, Request, Stored, VERSION, next_frame,
};
use millrace_core::limits::{FRAME_BYTES_MAX, PUBLISH_CREDIT_BYTES};
use millrace_core::seeding;
use millrace_core::token::ReleaseId;
use millrace_service::http::{Protocol, Server};
use millrace_service::schema::Schemas;
use millrace_service::telemetry::Metrics;
use millrace_service::time::clock;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::app_client::Around;
use crate::metrics::CallMetrics;
use crate::publish_client::Address;
use crate::settings;
use crate::tap::Tap;

const GROUP: &str = "millrace.test.demo.block.r1-00000000";
const REGISTRY: &str = "millrace.test.demo.block.registry";
const PATIENCE: Duration = Duration::from_secs(20);

fn partition(number: i32) -> Partition {
    Partition::new("in", number)
}

struct Unwatched;

impl Watch for Unwatched {
    fn turned(&mut self) {}
    fn log_ends(&self) -> Option<HashMap<Partition, Position>> {
        None
    }
    fn brokers(&mut self, _: bool, _: &str) {}
}

/// A driver at work.
struct World {
    log: MemoryLog,
    /// Source partition and position of every event that was stored, in order.
    stored: Arc<Mutex<Vec<(i32, i64)>>>,
    commands: mpsc::Sender<Command>,
    driver: JoinHandle<()>,
}

impl World {
    async fn start(partitions: i32) -> Self {
        let log = MemoryLog::new();
        log.create_topic("in", partitions.unsigned_abs());
        let offsets = (0..partitions)
            .map(|number| (partition(number), seeding::live(Position::START, None)))
            .collect();
        let seeded = log.token_store().commit_if_empty(GROUP, offsets).await;
        seeded.expect("the store works");
        let stored = Arc::new(Mutex::new(Vec::new()));
        let output = serve(Arc::clone(&stored), output).await;
        let app = serve((), app).await;
        let block = Block::parse(&json!({
            "identity": "test/demo/block",
            "connections": {"main": {"kafka": {"bootstrap": ["unused:1"]}}},
            "input": {"kafka": {"connection": "main", "topics": ["in"], "startAt": "Earliest"}},
            "output": {"kafka": {"connection": "main", "topic": "out"}},
            "delivery": {"commitInterval": "50ms"},
            "app": {"shadow": "Safe"},
        }))
        .expect("a block");
        let release = ReleaseId::new("r1-00000000").expect("a release");
        let names = settings::names(&block, &release, "pod", "cluster");
        let intake = Intake::new(settings::intake(&block, names, 1 << 20, None, [7; 16]), 7);
        let around = Around {
            metrics: CallMetrics::new(&Metrics::new("block", "r1-00000000", "input")),
            schemas: Arc::new(Schemas::load(&block).expect("it has none")),
            tap: Tap::new(),
        };
        let calls = settings::calls(&block, &release, "cluster");
        let server = Server::Tcp {
            host: "127.0.0.1".to_owned(),
            port: app,
        };
        let app = AppClient::new(&server, Protocol::Http1, &block.app, 32, calls, around)
            .expect("a client");
        let hello = Hello {
            version: VERSION,
            block: "test/demo/block".into(),
            release: "r1-00000000".into(),
            pod: "pod".into(),
            session: 0,
            mode: Mode::AtLeastOnce,
        };
        let mut publisher = Publisher::start(Address::Port(output), hello);
        publisher.connected().await;
        let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let driver = Driver {
            source: log.source(GROUP, REGISTRY, &["in"]),
            intake,
            app,
            publisher,
            commands: receiver,
            watch: Unwatched,
            clock,
            reachable: true,
        };
        Self {
            log,
            stored,
            commands,
            driver: tokio::spawn(driver.run()),
        }
    }

    fn append(&self, number: i32, count: usize) {
        for n in 0..count {
            let key = format!("key-{}", n % 5);
            self.log
                .append(&partition(number), Some(key.as_bytes()), Some(b"value"));
        }
    }

    fn stored(&self) -> Vec<(i32, i64)> {
        let mut stored = self.stored.lock().expect("no holder panics").clone();
        stored.sort_unstable();
        stored
    }

    fn committed(&self, number: i32) -> i64 {
        let committed = self.log.committed(GROUP, &partition(number));
        committed.expect("it was seeded").position.offset()
    }

    async fn state(&self) -> State {
        let (answer, state) = oneshot::channel();
        let asked = self.commands.send(Command::State(answer)).await;
        asked.expect("the driver runs");
        state.await.expect("the driver answers")
    }

    async fn drain(self) -> (MemoryLog, Vec<(i32, i64)>) {
        let deadline = PATIENCE;
        let told = self.commands.send(Command::Drain { deadline }).await;
        told.expect("the driver runs");
        let ended = tokio::time::timeout(PATIENCE, self.driver).await;
        ended.expect("it ends in time").expect("it does not panic");
        let mut stored = self.stored.lock().expect("no holder panics").clone();
        stored.sort_unstable();
        (self.log, stored)
    }
}

/// Looks again until it holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let look = async {
        let mut every = tokio::time::interval(Duration::from_millis(5));
        while !holds().await {
            every.tick().await;
        }
    };
    let held = tokio::time::timeout(PATIENCE, look).await;
    held.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

/// Listens on a free port and serves each connection on a task of its own.
async fn serve<S, F>(state: S, each: fn(TcpStream, S) -> F) -> u16
where
    S: Clone + Send + 'static,
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it listens").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = each(stream, state.clone());
            // Whoever asked has gone if this fails.
            tokio::spawn(async move { drop(serving.await) });
        }
    });
    port
}

/// Reads to the end of a request's head, and what follows of its body.
async fn head(stream: &mut TcpStream, buffer: &mut BytesMut) -> std::io::Result<Option<Bytes>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(Some(buffer.split_to(end + 4).freeze()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Answers every event with itself.
async fn app(mut stream: TcpStream, (): ()) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    while let Some(head) = head(&mut stream, &mut buffer).await? {
        let text = String::from_utf8_lossy(&head).to_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|length| length.trim().parse().ok())
            .unwrap_or(0);
        while buffer.len() < length {
            stream.read_buf(&mut buffer).await?;
        }
        let body = buffer.split_to(length);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
        stream.write_all(&body).await?;
    }
    Ok(())
}

/// Stores everything at once, and says so.
async fn output(mut stream: TcpStream, stored: Arc<Mutex<Vec<(i32, i64)>>>) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    head(&mut stream, &mut buffer).await?;
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                   upgrade: millrace-publish/1\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await?;
    loop {
        let mut answers = Vec::new();
        while let Some(frame) = next_frame(&mut buffer, FRAME_BYTES_MAX).expect("a frame") {
            match Request::decode(frame).expect("a request") {
                Request::Hello(_) => Reply::Ready(Ready {
                    version: VERSION,
                    credit: PUBLISH_CREDIT_BYTES,
                    limits: Vec::new(),
                })
                .encode(&mut answers),
                Request::Results(results) => {
                    let places = results.events().map(|event| {
                        let source = &results.partitions()[event.partition as usize];
                        (source.number(), event.position.offset())
                    });
                    stored.lock().expect("no holder panics").extend(places);
                    Reply::Stored(Stored {
                        seq: results.seq,
                        stored: std::iter::once(0..results.len()).collect(),
                        failures: Vec::new(),
                    })
                    .encode(&mut answers);
                    Reply::Credit(results.frame_bytes() as u64).encode(&mut answers);
                }
                _ => {}
            }
        }
        stream.write_all(&answers).await?;
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

fn each(number: i32, count: i64) -> impl Iterator<Item = (i32, i64)> {
    (0..count).map(move |offset| (number, offset))
}

#[tokio::test]
async fn d_s1_events_from_before_and_after_the_start_are_answered_and_committed() {
    let world = World::start(2).await;
    world.append(0, 50);
    until("the first are committed", async || world.committed(0) == 50).await;
    world.append(1, 30);
    until("the others are committed", async || {
        world.committed(1) == 30
    })
    .await;
    let expected: Vec<_> = each(0, 50).chain(each(1, 30)).collect();
    assert_eq!(world.stored(), expected, "each is stored once");
    let partitions = world.state().await.partitions;
    assert!(partitions.iter().all(|p| p.in_flight == 0));
}

#[tokio::test]
async fn d_s4_a_drain_commits_everything_that_is_stored_and_leaves_the_group() {
    let world = World::start(1).await;
    world.append(0, 2_000);
    until("some are stored", async || world.stored().len() > 20).await;
    let (log, stored) = world.drain().await;
    assert!(log.members(GROUP).is_empty(), "it is still a member");
    let committed = log.committed(GROUP, &partition(0)).expect("a commit");
    let metadata = Metadata::decode(&committed.metadata, UnknownKeys::Refuse).expect("metadata");
    for (_, offset) in stored {
        let above = offset - committed.position.offset();
        let known = u64::try_from(above).is_ok_and(|delta| metadata.ledger.is_terminal(delta));
        assert!(
            above < 0 || known,
            "{offset} is stored, the commit is {committed:?}"
        );
    }
    // It left in order, so the next owner has nothing to suspect (D-B7).
    assert_eq!(metadata.ledger.crash, None);
}

#[tokio::test]
async fn d_g4_a_partition_is_given_up_with_its_progress_committed_and_comes_back() {
    let world = World::start(2).await;
    world.append(0, 20);
    world.append(1, 20);
    until("both are committed", async || {
        world.committed(0) == 20 && world.committed(1) == 20
    })
    .await;
    let live = async || {
        let partitions = world.state().await.partitions;
        partitions.iter().filter(|p| p.phase == "live").count()
    };
    let ghost = world.log.join_ghost(GROUP);
    until("one partition is given up", async || live().await == 1).await;
    world.append(0, 10);
    world.append(1, 10);
    let sum = || world.committed(0) + world.committed(1);
    until("the other one goes on", async || sum() == 50).await;
    world.log.evict(GROUP, ghost);
    until("it comes back", async || live().await == 2).await;
    until("and goes on", async || sum() == 60).await;
    let expected: Vec<_> = each(0, 30).chain(each(1, 30)).collect();
    assert_eq!(world.stored(), expected, "each is stored once");
}

#[tokio::test]
async fn r4c_a_commit_without_an_outcome_makes_the_client_anew_and_nothing_is_lost() {
    let world = World::start(1).await;
    world.append(0, 10);
    until("the first are committed", async || world.committed(0) == 10).await;
    let before = world.log.members(GROUP);
    world
        .log
        .fail_commits([CommitFault::Unknown { applied: false }]);
    world.append(0, 10);
    until("the rest is committed", async || world.committed(0) == 20).await;
    assert_ne!(world.log.members(GROUP), before, "the same client goes on");
    let mut stored = world.stored();
    stored.dedup();
    assert_eq!(stored, each(0, 20).collect::<Vec<_>>());
}
