//! One pod of the block: the two real proxies with a document of their own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::broker::free_port;
use crate::process::{Process, binary};
use crate::wait::wait_until;

/// The release of every story.
pub const RELEASE: &str = "r1-00000000";

/// An input and an output proxy.
#[derive(Debug)]
pub struct Pod {
    /// `millrace-input --standalone`.
    pub input: Process,
    /// `millrace-output`.
    pub output: Process,
    /// What both were given.
    pub document: PathBuf,
    input_admin: u16,
    output_admin: u16,
    /// Where the app posts its results, in push mode.
    pub push: Option<u16>,
}

impl Pod {
    /// Writes the document; nothing runs yet.
    pub(crate) fn new(number: usize, mut spec: Value, folder: &Path) -> Self {
        let name = |part: &str| {
            if number == 0 {
                part.to_owned()
            } else {
                format!("{part}-{number}")
            }
        };
        let (input_admin, output_admin) = (free_port(), free_port());
        let socket = folder.join(name("publish"));
        for (name, port) in [("inputPort", input_admin), ("outputPort", output_admin)] {
            spec["admin"][name] = port.into();
        }
        spec["publish"] = json!({ "socket": socket });
        let push = (spec["app"]["contract"]["mode"] == "Push").then(free_port);
        if let Some(port) = push {
            spec["app"]["push"]["port"] = port.into();
            spec["app"]["path"] = format!("/process/{number}").into();
        }
        let document = folder.join(format!("{}.json", name("block")));
        std::fs::write(&document, format!("{spec:#}")).expect("a document");
        let path = document.display().to_string();
        let process = |part: &str, arguments: &[&str]| {
            let program = binary(&format!("millrace-{part}"));
            Process::new(&name(part), program, arguments, folder)
                .env("MILLRACE_RELEASE", RELEASE)
                .env("MILLRACE_POD", &format!("pod-{number}"))
        };
        Self {
            input: process("input", &["--standalone", &path]),
            output: process("output", &[&path]),
            document,
            input_admin,
            output_admin,
            push,
        }
    }

    /// Its input sees the clocks of this library; its output and the others see the right ones.
    pub(crate) fn shift_clock(mut self, library: &Path) -> Self {
        let library = library.display().to_string();
        self.input = self.input.env("LD_PRELOAD", &library);
        self
    }

    /// Starts both.
    pub fn start(&mut self) {
        self.output.start();
        self.input.start();
    }

    /// Where the input's admin port is.
    pub fn input_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.input_admin)
    }

    /// Asks the input's admin port; `None` while it does not answer.
    pub fn ask_input(&self, path: &str) -> Option<(u16, String)> {
        http(self.input_admin, "GET", path)
    }

    /// Asks the output's admin port.
    pub fn ask_output(&self, path: &str) -> Option<(u16, String)> {
        http(self.output_admin, "GET", path)
    }

    /// Tells the input's admin port something.
    pub fn tell_input(&self, path: &str) -> Option<(u16, String)> {
        http(self.input_admin, "POST", path)
    }

    /// What the input says about its partitions, breaker and calls; null while it does not answer.
    pub fn state(&self) -> Value {
        let page = self.ask_input("/v1/partitions");
        page.and_then(|(_, body)| serde_json::from_str(&body).ok())
            .unwrap_or_default()
    }

    /// Partitions that this pod works on.
    pub fn partitions(&self) -> Vec<i64> {
        let state = self.state();
        let live = |p: &&Value| p["phase"] == "live";
        let all = state["partitions"].as_array().cloned().unwrap_or_default();
        all.iter()
            .filter(live)
            .filter_map(|p| p["partition"].as_i64())
            .collect()
    }

    /// Whether the input shows this metric at all; `None` while it does not answer.
    pub fn shows(&self, name: &str) -> Option<bool> {
        let (_, page) = self.ask_input("/metrics")?;
        Some(
            page.lines()
                .any(|line| line.split(['{', ' ']).next() == Some(name)),
        )
    }

    /// A counter or gauge of the input, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        sum(self.ask_input("/metrics"), name)
    }

    /// A counter or gauge of the output, summed over its labels.
    pub fn output_metric(&self, name: &str) -> f64 {
        sum(self.ask_output("/metrics"), name)
    }

    /// Waits until the input is ready.
    pub fn is_ready(&self) {
        wait_until("the input is ready", || {
            self.ask_input("/readyz")
                .is_some_and(|(code, _)| code == 200)
        });
    }
}

/// The sum of one metric of a page.
fn sum(page: Option<(u16, String)>, name: &str) -> f64 {
    let page = page.map(|(_, body)| body).unwrap_or_default();
    let of_it = |line: &&str| line.split(['{', ' ']).next() == Some(name);
    let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
    page.lines().filter(of_it).filter_map(value).sum()
}

/// One request to an admin port.
fn http(port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let code = text.split(' ').nth(1)?.parse().ok()?;
    Some((code, text.split_once("\r\n\r\n")?.1.to_owned()))
}
