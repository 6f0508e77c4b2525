//! A line between clients and a server that does what a script says: cut, delay, stall, swallow
//! bytes, drop what was idle, and change the answers of a Kafka broker.
//!
//! A Kafka broker tells its clients where it is, so a line before one also rewrites the addresses
//! in its answers; without that every client would go round the line.
//!
//! Invariant: bytes are passed on in order, or their connection passes nothing more that way.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::free_port;
use crate::wait::wait_until;

mod kafka;
#[cfg(test)]
mod tests;

pub use kafka::{Edits, Times};

/// Most bytes that a line that does not understand what it carries passes on at once.
const CHUNK: usize = 64 << 10;

/// What is true of every connection now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Script {
    /// Connections of an earlier life end.
    life: u64,
    /// Whether somebody listens; otherwise connecting is refused.
    up: bool,
    listening: bool,
    stalled: bool,
    delay: Duration,
    swallow_requests: bool,
    swallow_answers: bool,
    idle_max: Option<Duration>,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Request,
    Answer,
}

/// A line that serves.
#[derive(Debug)]
pub struct Line {
    /// Where, on 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    script: watch::Sender<Script>,
    /// `None`: the bytes are not Kafka's.
    edits: Option<Arc<Edits>>,
}

impl Line {
    /// A line that does not look into the bytes.
    pub fn to(target: u16) -> Self {
        Self::start(free_port(), target, None)
    }

    /// A line to a Kafka broker of one node.
    pub fn to_kafka(bootstrap: &str) -> Self {
        let (mut lines, _) = Self::to_kafka_nodes(&[bootstrap]);
        lines.remove(0)
    }

    /// A line to each node of a cluster; their answers name the lines. What the lines do with
    /// answers is scripted for all of them at once.
    pub fn to_kafka_nodes(nodes: &[&str]) -> (Vec<Self>, Arc<Edits>) {
        let port = |node: &&str| -> u16 {
            let port = node.rsplit_once(':').expect("host:port").1;
            port.parse().expect("a port")
        };
        let faces: Vec<(u16, u16)> = nodes.iter().map(|n| (port(n), free_port())).collect();
        let edits = Arc::new(Edits::new(faces.clone()));
        let line = |&(real, face)| Self::start(face, real, Some(Arc::clone(&edits)));
        (faces.iter().map(line).collect(), edits)
    }

    fn start(port: u16, target: u16, edits: Option<Arc<Edits>>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let script = Script {
            life: 1,
            up: true,
            listening: false,
            stalled: false,
            delay: Duration::ZERO,
            swallow_requests: false,
            swallow_answers: false,
            idle_max: None,
        };
        let shared = Arc::new(Shared {
            target: SocketAddr::from((Ipv4Addr::LOCALHOST, target)),
            script: watch::channel(script).0,
            edits,
        });
        runtime.spawn(serve(Arc::clone(&shared), port));
        let line = Self {
            port,
            shared,
            runtime: Some(runtime),
        };
        line.await_listening(true);
        line
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Every connection ends and new ones are refused.
    pub fn cut(&self) {
        self.change(|script| {
            script.life += 1;
            script.up = false;
        });
        self.await_listening(false);
    }

    /// Every connection ends; new ones are welcome.
    pub fn reset(&self) {
        self.change(|script| script.life += 1);
        // The next life listens again by itself.
        self.await_listening(true);
    }

    /// Undoes everything: connections that lost bytes are closed, new ones work.
    pub fn mend(&self) {
        self.change(|script| {
            let lost = script.swallow_requests || script.swallow_answers;
            script.life += u64::from(lost);
            script.up = true;
            script.stalled = false;
            script.delay = Duration::ZERO;
            script.swallow_requests = false;
            script.swallow_answers = false;
            script.idle_max = None;
        });
        self.await_listening(true);
    }

    /// Nothing passes, nothing is lost: bytes wait until [`Line::mend`].
    pub fn stall(&self) {
        self.change(|script| script.stalled = true);
    }

    /// Everything passes so much later, one piece after the other.
    pub fn delay(&self, delay: Duration) {
        self.change(|script| script.delay = delay);
    }

    /// What clients say vanishes, also on connections that come. Whoever lost bytes hears nothing
    /// more; unlike [`Line::mend`], [`Line::listen_again`] leaves them like that.
    pub fn swallow_requests(&self) {
        self.change(|script| script.swallow_requests = true);
    }

    /// Requests arrive, their answers vanish.
    pub fn swallow_answers(&self) {
        self.change(|script| script.swallow_answers = true);
    }

    /// Ends the swallowing: new connections work, and those that lost bytes stay half-open.
    pub fn listen_again(&self) {
        self.change(|script| {
            script.swallow_requests = false;
            script.swallow_answers = false;
        });
    }

    /// A connection that was silent for so long passes nothing any more, and nobody is told: what
    /// load balancers do.
    pub fn forget_idle(&self, idle_max: Duration) {
        self.change(|script| script.idle_max = Some(idle_max));
    }

    /// What it does with a broker's answers.
    ///
    /// # Panics
    /// If it does not lead to a broker.
    pub fn edits(&self) -> &Edits {
        self.shared.edits.as_ref().expect("a line to a broker")
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        self.shared.script.send_modify(change);
    }

    fn await_listening(&self, listening: bool) {
        wait_until("the line obeys", || {
            self.shared.script.borrow().listening == listening
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(shared: Arc<Shared>, port: u16) {
    let mut script = shared.script.subscribe();
    loop {
        if script.wait_for(|script| script.up).await.is_err() {
            return;
        }
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await else {
            // A port that was closed a moment ago may not be free yet.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        shared.script.send_modify(|script| script.listening = true);
        let mut ends = shared.script.subscribe();
        tokio::select! {
            () = accept(&shared, &listener) => {}
            _ = ends.wait_for(|script| !script.up) => {}
        }
        drop(listener);
        shared.script.send_modify(|script| script.listening = false);
    }
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let shared = Arc::clone(shared);
        let life = shared.script.borrow().life;
        tokio::spawn(async move {
            let mut ends = shared.script.subscribe();
            tokio::select! {
                () = connect(&shared, client) => {}
                // Who comes while it is being cut is in the new life already.
                _ = ends.wait_for(|script| script.life != life || !script.up) => {}
            }
        });
    }
}

/// What both ways of one connection know of it.
#[derive(Debug)]
struct Connection {
    /// It lost bytes that went this way, so nothing more may pass.
    deaf: [AtomicBool; 2],
    last: Mutex<Instant>,
    asked: kafka::Asked,
    /// Until then the broker reads nothing: its answer said so (KIP-219).
    mute: Mutex<Instant>,
}

impl Connection {
    fn is_deaf(&self, way: Way) -> bool {
        self.deaf[way as usize].load(Ordering::Relaxed)
    }

    fn deafen(&self, way: Way) {
        self.deaf[way as usize].store(true, Ordering::Relaxed);
    }

    /// Notes a sign of life; tells how long there was none.
    fn idle(&self) -> Duration {
        let mut last = self.last.lock().expect("no holder panics");
        let now = Instant::now();
        let idle = now - *last;
        *last = now;
        idle
    }
}

async fn connect(shared: &Arc<Shared>, client: TcpStream) {
    let Ok(server) = TcpStream::connect(shared.target).await else {
        return;
    };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let connection = Connection {
        deaf: [AtomicBool::new(false), AtomicBool::new(false)],
        last: Mutex::new(Instant::now()),
        asked: kafka::Asked::default(),
        mute: Mutex::new(Instant::now()),
    };
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        () = pass(shared, &connection, Way::Request, client_in, server_out) => {}
        () = pass(shared, &connection, Way::Answer, server_in, client_out) => {}
    }
}

/// Passes bytes on, this way, until one side ends.
async fn pass(
    shared: &Shared,
    connection: &Connection,
    way: Way,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
) {
    let mut script = shared.script.subscribe();
    let mut buffer = BytesMut::new();
    loop {
        let read = if shared.edits.is_some() {
            kafka::read_frame(&mut from, &mut buffer).await
        } else {
            read_chunk(&mut from, &mut buffer).await
        };
        let Some(bytes) = read else { return };
        let idle = connection.idle();
        let Ok(now) = script.wait_for(|script| !script.stalled).await.map(|s| *s) else {
            return;
        };
        // As slow as the script says.
        tokio::time::sleep(now.delay).await;
        if now.idle_max.is_some_and(|max| idle > max) {
            connection.deafen(Way::Request);
            connection.deafen(Way::Answer);
        }
        let swallow = match way {
            Way::Request => now.swallow_requests,
            Way::Answer => now.swallow_answers,
        };
        if swallow {
            connection.deafen(way);
        }
        if connection.is_deaf(way) {
            continue;
        }
        let edited = match (&shared.edits, way) {
            (None, _) => Some(bytes),
            (Some(edits), Way::Request) => {
                let mute = *connection.mute.lock().expect("no holder panics");
                // A broker that throttles a client answers at once and then does not read on.
                tokio::time::sleep_until(mute).await;
                edits.request(&connection.asked, bytes)
            }
            (Some(edits), Way::Answer) => {
                let mute = Instant::now() + edits.throttled();
                *connection.mute.lock().expect("no holder panics") = mute;
                edits.answer(&connection.asked, bytes)
            }
        };
        let Some(bytes) = edited else { return };
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_chunk(from: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Option<Bytes> {
    buffer.reserve(CHUNK);
    match from.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(buffer.split().freeze()),
    }
}
