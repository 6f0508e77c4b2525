//! What people see: colours and progress on terminals, plain text everywhere else.
//!
//! Invariant: standard output carries only what was asked for; progress and remarks go to
//! standard error, so a pipe stays clean.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

/// How often a progress line is drawn again.
const REDRAW: Duration = Duration::from_millis(200);

/// What a command prints at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON document.
    Json,
}

/// Where a command writes to.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    colour: bool,
    colour_remarks: bool,
    progress: bool,
}

impl Screen {
    /// Looks at what standard output and standard error are.
    pub fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let remarks = io::stderr().is_terminal();
        Self {
            colour: io::stdout().is_terminal() && !plain,
            colour_remarks: remarks && !plain,
            progress: remarks,
        }
    }

    /// Whether people look at standard output directly.
    pub fn is_terminal(self) -> bool {
        io::stdout().is_terminal()
    }

    /// Writes text to standard output.
    pub fn print(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Writes a value as indented JSON to standard output.
    pub fn print_json(self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        Ok(self.print(&text)?)
    }

    /// Says something on standard error. A closed standard error is nobody to tell.
    pub fn remark(self, text: &str) {
        drop(writeln!(io::stderr().lock(), "{text}"));
    }

    /// Says on standard error that something is wrong.
    pub fn complain(self, text: &str) {
        let (red, end) = paint(self.colour_remarks, "\x1b[31m");
        self.remark(&format!("{red}millrace: {text}{end}"));
    }

    /// Green text on a terminal.
    pub fn good(self, text: &str) -> String {
        let (on, off) = paint(self.colour, "\x1b[32m");
        format!("{on}{text}{off}")
    }

    /// Red text on a terminal.
    pub fn bad(self, text: &str) -> String {
        let (on, off) = paint(self.colour, "\x1b[31m");
        format!("{on}{text}{off}")
    }

    /// Faint text on a terminal.
    pub fn faint(self, text: &str) -> String {
        let (on, off) = paint(self.colour, "\x1b[2m");
        format!("{on}{text}{off}")
    }

    /// A progress line, drawn only on terminals.
    pub fn progress(self, what: &'static str, total: Option<u64>) -> Progress {
        let now = Instant::now();
        Progress {
            what,
            total,
            done: 0,
            bytes: 0,
            drawn: None,
            started: now,
            visible: self.progress,
        }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

fn paint(colour: bool, code: &'static str) -> (&'static str, &'static str) {
    if colour { (code, "\x1b[0m") } else { ("", "") }
}

/// A line on standard error that tells how far a long task is.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: Option<u64>,
    done: u64,
    bytes: u64,
    drawn: Option<Instant>,
    started: Instant,
    visible: bool,
}

impl Progress {
    /// Counts work done, and draws now and then.
    pub fn add(&mut self, done: u64, bytes: u64) {
        self.done += done;
        self.bytes += bytes;
        // Looking at the clock costs more than counting.
        if self.visible && (self.done.is_multiple_of(64) || done != 1) {
            self.draw();
        }
    }

    /// How much was done.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// For how long.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Done per second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed().as_secs_f64().max(1e-9)
    }

    fn draw(&mut self) {
        let now = Instant::now();
        // Short tasks stay silent.
        let due = self.drawn.unwrap_or(self.started) + REDRAW;
        if now < due {
            return;
        }
        self.drawn = Some(now);
        let share = self.total.filter(|total| *total > 0).map(|total| {
            let percent = 100 * self.done.min(total) / total;
            format!(" of {total} ({percent}%)")
        });
        let line = format!(
            "\r\x1b[K{} {}{}, {:.0}/s, {}",
            self.what,
            self.done,
            share.unwrap_or_default(),
            self.rate(),
            human_bytes(self.bytes)
        );
        let mut err = io::stderr().lock();
        drop(err.write_all(line.as_bytes()));
        drop(err.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            drop(io::stderr().lock().write_all(b"\r\x1b[K"));
        }
    }
}

/// Bytes as people write them.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 1 };
    format!("{amount:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_people_write_them() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(3 << 40), "3.0 TiB");
        assert_eq!(human_bytes(u64::MAX), "16777216.0 TiB");
    }
}
