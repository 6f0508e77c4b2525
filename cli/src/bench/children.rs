//! Child processes of a bench: started, watched, and stopped at the end, whatever happens.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The release that every process of a bench is told.
pub(super) const RELEASE: &str = "bench";

/// How long a child may take to say that it is there, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a child does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there or cannot run.
    #[error("cannot start {}; build it with `cargo build -p {name}`", program.display())]
    Start {
        /// Its name.
        name: String,
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended, or said nothing in time.
    #[error("{0} did not start")]
    Silent(String),
    /// It ended on its own.
    #[error("{name} ended with {status}; its last words are in {}", log.display())]
    Ended {
        /// Its name.
        name: String,
        /// How.
        status: std::process::ExitStatus,
        /// Where its output went.
        log: PathBuf,
    },
    /// The system says no.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A process that ends when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `name`, which stands beside this program; its standard error goes to a file.
    pub fn start(name: &str, arguments: &[&str], folder: &Path) -> Result<Self, Error> {
        let program = beside_us(name)?;
        let what = arguments
            .first()
            .map_or("", |first| first.trim_start_matches('-'));
        let what = Path::new(what)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let log = folder.join(format!("{name}-{what}.log"));
        let file = std::fs::File::create(&log).map_err(|source| Error::System {
            doing: "cannot write a log file",
            source,
        })?;
        let child = Command::new(&program)
            .args(arguments)
            .env("MILLRACE_RELEASE", RELEASE)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn();
        Ok(Self {
            child: child.map_err(|source| Error::Start {
                name: name.to_owned(),
                program,
                source,
            })?,
            name: name.to_owned(),
            log,
        })
    }

    /// The first line that it prints.
    pub async fn first_line(&mut self) -> Result<String, Error> {
        let silent = || Error::Silent(self.name.clone());
        let out = self.child.stdout.take().ok_or_else(silent)?;
        let mut lines = BufReader::new(out).lines();
        match timeout(PATIENCE, lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            _ => Err(silent()),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// An error if it has ended.
    pub fn alive(&mut self) -> Result<(), Error> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Error::Ended {
                name: self.name.clone(),
                status,
                log: self.log.clone(),
            }),
            Err(source) => Err(Error::System {
                doing: "cannot watch a process",
                source,
            }),
        }
    }

    /// Asks it to stop, and waits for that.
    pub async fn stop(mut self) -> Result<(), Error> {
        let asked = Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status()
            .await;
        let system = |doing| move |source| Error::System { doing, source };
        asked.map_err(system("cannot stop a process"))?;
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(ended) => ended.map(drop).map_err(system("cannot wait for a process")),
            Err(_) => self
                .child
                .kill()
                .await
                .map_err(system("cannot kill a process")),
        }
    }
}

/// A program in the folder of this one.
fn beside_us(name: &str) -> Result<PathBuf, Error> {
    let us = std::env::current_exe().map_err(|source| Error::System {
        doing: "cannot find this program",
        source,
    })?;
    Ok(us.with_file_name(name))
}

/// A port that nobody uses at the moment.
pub fn free_port() -> Result<u16, Error> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    bound
        .map(|address| address.port())
        .map_err(|source| Error::System {
            doing: "there is no free port",
            source,
        })
}
