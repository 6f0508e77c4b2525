//! One child process: its log, its signals, its end.
//!
//! Invariant: a child does not outlive its owner.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{PATIENCE, look_for, wait_for};

/// Where the binaries are: above the folder of the test executables.
///
/// # Panics
/// If it has not been built; says how to.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test has a path");
    let mut folder = own.parent().expect("a folder of executables");
    if folder.ends_with("deps") {
        folder = folder.parent().expect("target/debug");
    }
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing; build the binaries first: make build",
        path.display()
    );
    path
}

/// A child that can be killed, frozen, asked to end, and started again with the same words.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Describes a child; it does not run yet. What it prints goes to `NAME.log` in `folder`.
    pub fn new(name: &str, program: PathBuf, arguments: &[&str], folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            environment: Vec::new(),
            log: folder.join(format!("{name}.log")),
            child: None,
        }
    }

    /// With a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With other arguments from its next start on.
    pub fn set_arguments(&mut self, arguments: Vec<String>) {
        self.arguments = arguments;
    }

    /// Starts it.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log: File = log.expect("a log file");
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_remove("MILLRACE_BOOTSTRAP")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|e| panic!("{} does not start: {e}", self.name)));
    }

    /// Whether it runs (a frozen one does).
    pub fn runs(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| child.try_wait().expect("a child can be asked").is_none())
    }

    /// `kill -9`, and awaits its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let mut child = self.child.take().expect("it ran");
        child.wait().expect("a killed child ends");
    }

    /// `kill -9`, and starts it again at once.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.start();
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGTERM, and the way in which it ends.
    pub fn end(&mut self) -> ExitStatus {
        self.ask_to_end();
        self.ended()
    }

    /// Awaits its end.
    pub fn ended(&mut self) -> ExitStatus {
        let ended = self.ended_within(PATIENCE);
        ended.unwrap_or_else(|| panic!("{} does not end:\n{}", self.name, self.log()))
    }

    /// Awaits its end for so long.
    pub fn ended_within(&mut self, length: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("it was started");
        let status = look_for(length, || child.try_wait().expect("a child can be asked"))?;
        self.child = None;
        Some(status)
    }

    /// What it holds in memory, in bytes.
    pub fn memory(&self) -> usize {
        let id = self.child.as_ref().expect("it was started").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|l| l.trim().strip_suffix(" kB"));
        1024 * kilobytes
            .and_then(|k| k.trim().parse::<usize>().ok())
            .expect("a size")
    }

    fn signal(&self, signal: Signal) {
        let id = self
            .child
            .as_ref()
            .unwrap_or_else(|| panic!("{} does not run", self.name))
            .id();
        let pid = i32::try_from(id)
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id");
        // The child is ours and not yet waited for, so its id cannot be another's.
        kill_process(pid, signal).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// Everything it printed, of all its lives.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has printed this.
    pub fn says(&self, text: &str) {
        self.says_all(&[text]);
    }

    /// Waits until one line holds all of these.
    pub fn says_all(&self, texts: &[&str]) {
        let found = look_for(PATIENCE, || {
            let log = self.log();
            let says = log
                .lines()
                .any(|line| texts.iter().all(|text| line.contains(text)));
            says.then_some(())
        });
        assert!(
            found.is_some(),
            "{} does not say {texts:?}:\n{}",
            self.name,
            self.log()
        );
    }

    /// Its first line.
    pub fn first_line(&self) -> String {
        wait_for(&format!("a first line of {}", self.name), || {
            let log = self.log();
            log.split_once('\n').map(|(line, _)| line.to_owned())
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may be gone by now, and nobody waits for what it has to say.
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            print_tail(&self.log);
        }
    }
}

/// Prints the last lines of a log, for whoever reads of a failure.
pub fn print_tail(log: &Path) {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(60)..].join("\n");
    println!("--- {}\n{tail}", log.display());
}
