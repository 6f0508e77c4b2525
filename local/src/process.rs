//! Child processes: started in a group of their own, their lines passed on, started again with
//! back-off when they die, ended in good order.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

/// First pause before a dead child is started again; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A child that lived this long has recovered: the next pause is the first again.
const RECOVERED: Duration = Duration::from_secs(20);

/// How a child is started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What people call it: `app`, `input`, `output`.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it runs.
    pub directory: PathBuf,
    /// Set in its environment.
    pub environment: Vec<(String, String)>,
    /// Removed from its environment.
    pub without: Vec<String>,
    /// How long it may take to end after SIGTERM.
    pub grace: Duration,
}

/// A line that a component said.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who: the child's name, or `dev`.
    pub component: &'static str,
    /// What.
    pub text: String,
}

/// A child that is kept running until it is asked to end.
#[derive(Debug)]
pub struct Supervised {
    name: &'static str,
    pid: Arc<AtomicU32>,
    starts: Arc<AtomicU32>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

/// Why a child could not be started at all.
#[derive(Debug, thiserror::Error)]
#[error("failed to start {name}: {}", program.display())]
pub struct StartError {
    name: &'static str,
    program: PathBuf,
    #[source]
    source: std::io::Error,
}

impl Supervised {
    /// Starts the child; later deaths are answered with new starts.
    pub fn start(spec: Spec, lines: mpsc::Sender<Line>) -> Result<Self, StartError> {
        let pid = Arc::new(AtomicU32::new(0));
        let starts = Arc::new(AtomicU32::new(0));
        let (stop, stopped) = watch::channel(false);
        let child = spawn(&spec).map_err(|source| StartError {
            name: spec.name,
            program: spec.program.clone(),
            source,
        })?;
        let name = spec.name;
        let keeper = Keeper {
            spec,
            pid: Arc::clone(&pid),
            starts: Arc::clone(&starts),
            lines,
            stopped,
        };
        keeper.note(&child);
        let task = tokio::spawn(keeper.keep(child));
        Ok(Self {
            name,
            pid,
            starts,
            stop,
            task,
        })
    }

    /// What people call it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its process id; `None` while it is dead.
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }

    /// Ends it: SIGTERM, and SIGKILL after its grace.
    pub async fn stop(self) {
        // The keeper may have ended with its child already.
        self.stop.send_replace(true);
        let _ended = self.task.await;
    }

    /// Kills it with SIGKILL; it is started again. False if it was dead.
    pub fn kill(&self) -> bool {
        let pid = self
            .pid()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    }
}

struct Keeper {
    spec: Spec,
    pid: Arc<AtomicU32>,
    starts: Arc<AtomicU32>,
    lines: mpsc::Sender<Line>,
    stopped: watch::Receiver<bool>,
}

impl Keeper {
    async fn keep(mut self, first: Child) {
        let mut pause = PAUSE_MIN;
        let mut next = Some(first);
        loop {
            let started = tokio::time::Instant::now();
            if let Some(mut child) = next.take() {
                self.note(&child);
                self.listen(&mut child);
                let status = tokio::select! {
                    status = child.wait() => status,
                    () = stopped(&mut self.stopped) => {
                        self.end(child).await;
                        return;
                    }
                };
                self.pid.store(0, Ordering::Relaxed);
                let how =
                    status.map_or_else(|error| error.to_string(), |status| status.to_string());
                if started.elapsed() >= RECOVERED {
                    pause = PAUSE_MIN;
                }
                self.say(format!(
                    "ended ({how}); starting it again in {} ms",
                    pause.as_millis()
                ))
                .await;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped(&mut self.stopped) => return,
            }
            pause = (pause * 2).min(PAUSE_MAX);
            match spawn(&self.spec) {
                Ok(child) => next = Some(child),
                Err(error) => self.say(format!("cannot be started: {error}")).await,
            }
        }
    }

    fn note(&self, child: &Child) {
        let pid = child.id().unwrap_or(0);
        if self.pid.swap(pid, Ordering::Relaxed) != pid {
            self.starts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Passes the child's lines on.
    fn listen(&self, child: &mut Child) {
        if let Some(out) = child.stdout.take() {
            tokio::spawn(pass_on(out, self.spec.name, self.lines.clone()));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(pass_on(err, self.spec.name, self.lines.clone()));
        }
    }

    async fn end(&self, mut child: Child) {
        let group = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(group) = group {
            // It may have ended on its own by now.
            let _gone = kill_process_group(group, Signal::TERM);
        }
        if tokio::time::timeout(self.spec.grace, child.wait())
            .await
            .is_err()
        {
            self.say(format!(
                "did not end within {} s, killing it",
                self.spec.grace.as_secs()
            ))
            .await;
            if let Some(group) = group {
                let _gone = kill_process_group(group, Signal::KILL);
            }
            let _status = child.wait().await;
        }
        self.pid.store(0, Ordering::Relaxed);
    }

    async fn say(&self, text: String) {
        let line = Line {
            component: self.spec.name,
            text,
        };
        // Nobody listens any more when the command ends.
        let _gone = self.lines.send(line).await;
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An owner that was dropped wants the child to end, too.
    let _dropped = stop.wait_for(|stop| *stop).await;
}

fn spawn(spec: &Spec) -> std::io::Result<Child> {
    let mut command = Command::new(&spec.program);
    for name in &spec.without {
        command.env_remove(name);
    }
    command
        .args(&spec.arguments)
        .current_dir(&spec.directory)
        .envs(spec.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Longest line that is passed on; a longer one is cut into several.
const LINE_BYTES_MAX: usize = 16 << 10;

async fn pass_on(from: impl AsyncRead + Unpin, component: &'static str, lines: mpsc::Sender<Line>) {
    let mut from = BufReader::with_capacity(LINE_BYTES_MAX, from);
    let mut rest = Vec::new();
    while let Ok(bytes) = from.fill_buf().await {
        if bytes.is_empty() {
            return;
        }
        let end = bytes.iter().position(|b| *b == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        rest.extend_from_slice(&bytes[..taken]);
        from.consume(taken);
        if end.is_none() && rest.len() < LINE_BYTES_MAX {
            continue;
        }
        let text = String::from_utf8_lossy(&rest).trim_end().to_owned();
        rest.clear();
        if lines.send(Line { component, text }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Spec {
        Spec {
            name: "app",
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            directory: "/".into(),
            environment: vec![("GREETING".into(), "hello".into())],
            without: Vec::new(),
            grace: Duration::from_secs(5),
        }
    }

    async fn line(lines: &mut mpsc::Receiver<Line>) -> String {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.recv()).await;
        line.expect("a line comes").expect("the child lives").text
    }

    #[tokio::test]
    async fn lines_are_passed_on_and_a_dead_child_is_started_again() {
        let (sender, mut lines) = mpsc::channel(16);
        let child = Supervised::start(shell("echo $GREETING $$; exec sleep 60"), sender).unwrap();
        let first = line(&mut lines).await;
        assert!(first.starts_with("hello "), "{first}");
        assert!(child.kill());
        assert!(line(&mut lines).await.contains("starting it again"));
        let second = line(&mut lines).await;
        assert!(second.starts_with("hello ") && second != first, "{second}");
        assert_eq!(child.starts(), 2);
        child.stop().await;
    }

    #[tokio::test]
    async fn stopping_asks_first_and_then_kills() {
        let (sender, mut lines) = mpsc::channel(16);
        let mut deaf = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
        deaf.grace = Duration::from_millis(200);
        let child = Supervised::start(deaf, sender).unwrap();
        assert_eq!(line(&mut lines).await, "ready");
        child.stop().await;
        assert!(line(&mut lines).await.contains("killing it"));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_told() {
        let (sender, _lines) = mpsc::channel(16);
        let mut spec = shell("");
        spec.program = "/nowhere/app".into();
        let error = Supervised::start(spec, sender).unwrap_err();
        assert!(error.to_string().contains("/nowhere/app"), "{error}");
    }
}
