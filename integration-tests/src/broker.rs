//! The broker of a world: the embedded one as a process of its own, so that it outlives or
//! outdies everybody else, or a real Kafka that somebody started.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::process::{Process, binary};

/// Which broker.
#[derive(Clone, Debug)]
pub enum BrokerKind {
    /// `millrace broker`, records in memory.
    Memory,
    /// `millrace broker --path`, which keeps everything when it is killed.
    Files,
    /// A Kafka at this address.
    Kafka(String),
}

/// Variable that names a real Kafka.
pub const KAFKA: &str = "MILLRACE_TEST_KAFKA";

impl BrokerKind {
    /// The real Kafka; `None`, with the reason printed: there is none on this machine.
    ///
    /// # Panics
    /// In CI, where it has to be there.
    pub fn kafka() -> Option<Self> {
        if let Ok(bootstrap) = std::env::var(KAFKA) {
            return Some(Self::Kafka(bootstrap));
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "{KAFKA} must name a Kafka in CI"
        );
        println!("skipped: {KAFKA} does not name a Kafka");
        None
    }

    /// What `BROKER` asks for: `kafka`, or `embedded`, in files.
    ///
    /// # Errors
    /// It is neither, or no Kafka is named.
    pub fn wanted() -> Result<Self, String> {
        match variable("BROKER").as_deref() {
            None | Some("kafka") => variable(KAFKA)
                .map(Self::Kafka)
                .ok_or(format!("{KAFKA} does not name a Kafka")),
            Some("embedded") => Ok(Self::Files),
            Some(other) => Err(format!("BROKER={other}; there are kafka and embedded")),
        }
    }
}

/// An environment variable that says something.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// How long a run is to last, from `MINUTES`.
///
/// # Errors
/// It is no length of time.
pub fn minutes() -> Result<Duration, String> {
    let minutes = variable("MINUTES").unwrap_or("5".into());
    let length = minutes.parse().ok();
    length
        .filter(|m| (0.1..=10_000.0).contains(m))
        .map(|m: f64| Duration::from_secs_f64(60.0 * m))
        .ok_or(format!("MINUTES={minutes} is no length of time"))
}

/// A broker that runs.
#[derive(Debug)]
pub struct RunningBroker {
    /// `host:port`.
    pub bootstrap: String,
    process: Option<Process>,
}

impl RunningBroker {
    pub(crate) fn start(kind: &BrokerKind, folder: &Path) -> Self {
        let port = free_port().to_string();
        let path = folder.join("broker").display().to_string();
        let mut arguments = vec!["broker", "--no-auto-create", "--port", &port];
        match kind {
            BrokerKind::Kafka(bootstrap) => {
                return Self {
                    bootstrap: bootstrap.clone(),
                    process: None,
                };
            }
            BrokerKind::Memory => {}
            BrokerKind::Files => arguments.extend(["--path", &path]),
        }
        let mut process = Process::new("broker", binary("millrace"), &arguments, folder);
        process.start();
        let bootstrap = process.first_line();
        assert!(bootstrap.starts_with("127.0.0.1:"), "{bootstrap}");
        Self {
            bootstrap,
            process: Some(process),
        }
    }

    /// Whether it is an embedded one, which a story may kill.
    pub fn is_ours(&self) -> bool {
        self.process.is_some()
    }

    /// The process of an embedded broker.
    ///
    /// # Panics
    /// If it is a real Kafka, which is not ours to kill.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("an embedded broker")
    }
}

/// A port that stays free while its owner is away: below those that the system gives to clients,
/// or a client that tries to reconnect could take it, or connect to itself.
///
/// # Panics
/// If the machine has none.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at the same time begin at different places.
    let begin = u16::try_from(std::process::id() * 97 % u32::from(COUNT)).expect("below COUNT");
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (begin + step) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT);
}
