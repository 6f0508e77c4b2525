//! The terminal of `millrace dev` and the demo: lines of all components, each in its colour, and
//! a status line below them.
//!
//! Invariant: a line of a component never tears the status line; without a terminal there is none.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Where everything is written. All clones are one.
#[derive(Clone, Debug)]
pub struct Console {
    inner: Arc<Mutex<Inner>>,
    colour: bool,
    terminal: bool,
}

#[derive(Debug, Default)]
struct Inner {
    status: String,
    /// Lines of components go here instead, when the terminal is to stay quiet.
    file: Option<std::fs::File>,
}

/// Colours of the components, so that each keeps its own.
const COLOURS: [(&str, &str); 6] = [
    ("input", "\x1b[36m"),
    ("app", "\x1b[33m"),
    ("output", "\x1b[35m"),
    ("broker", "\x1b[34m"),
    ("kafka", "\x1b[34m"),
    ("dev", "\x1b[32m"),
];

impl Console {
    /// Standard error; lines of components go into `quiet` instead, if it is given.
    pub fn new(quiet: Option<std::fs::File>) -> Self {
        let terminal = io::stderr().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            inner: Arc::new(Mutex::new(Inner {
                status: String::new(),
                file: quiet,
            })),
            colour: terminal && !plain,
            terminal,
        }
    }

    /// Whether somebody watches.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A line of a component.
    pub fn line(&self, component: &str, text: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            // The log of a demo is a convenience: a full disk must not end it.
            drop(writeln!(file, "{component:>7} | {text}"));
            return;
        }
        let colour = COLOURS.iter().find(|(name, _)| *name == component);
        let (on, off) = match colour {
            Some((_, colour)) if self.colour => (*colour, "\x1b[0m"),
            _ => ("", ""),
        };
        inner.write(
            self.terminal,
            &format!("{on}{component:>7} |{off} {text}\n"),
        );
    }

    /// A line of the command itself; always shown.
    pub fn say(&self, text: &str) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.write(self.terminal, &format!("{text}\n"));
    }

    /// Shows this below all lines; only on a terminal. Empty: nothing.
    pub fn status(&self, text: &str) {
        if !self.terminal {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone_into(&mut inner.status);
        inner.write(true, "");
    }

    /// Sends the logs of this process here.
    pub fn take_logs(&self, level: &str) {
        // A second call, as in tests, leaves the first one in place.
        drop(self.logs(level).try_init());
    }

    /// What turns log events of this level into lines.
    ///
    /// The filter stands before all layers, not at the one layer: such a filter keeps its last
    /// "no" per thread until an event asks for it. A call site that two threads meet at the same
    /// moment is asked about but has no event, and the next line of that thread would be lost.
    fn logs(&self, level: &str) -> impl Subscriber + Send + Sync + use<> {
        let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
        let lines = Lines {
            console: self.clone(),
        };
        tracing_subscriber::registry().with(filter).with(lines)
    }
}

impl Inner {
    /// Clears the status line, writes, and draws it again. A closed terminal is nobody to tell.
    fn write(&self, terminal: bool, text: &str) {
        let mut out = io::stderr().lock();
        let clear = if terminal { "\r\x1b[K" } else { "" };
        drop(write!(out, "{clear}{text}{}", self.status));
        drop(out.flush());
    }
}

/// Turns log events into lines.
struct Lines {
    console: Console,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let module = metadata.target().split("::").next().unwrap_or_default();
        let component = match module {
            "millrace_input" => "input",
            "millrace_output" => "output",
            "millrace_broker" => "broker",
            "millrace_connectors" | "rdkafka" | "librdkafka" => "kafka",
            _ => "dev",
        };
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *metadata.level() {
            Level::ERROR => "ERROR ",
            Level::WARN => "WARN  ",
            _ => "",
        };
        self.console.line(
            component,
            &format!("{level}{}{}", text.message, text.fields),
        );
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

impl Text {
    fn put(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        let written = if field.name() == "message" {
            write!(self.message, "{value}")
        } else {
            write!(self.fields, " {}={value}", field.name())
        };
        written.expect("writing to a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_lost_behind_a_call_site_that_is_only_asked_about() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let console = Console::new(Some(std::fs::File::create(&path).unwrap()));
        // Somebody who wants to know more makes every call site ask each time, as a call site is
        // while another thread registers it.
        let curious = tracing_subscriber::registry().with(EnvFilter::new("trace"));
        let _curious = tracing::Dispatch::new(curious);
        tracing::subscriber::with_default(console.logs("info"), || {
            for n in 0..3 {
                tracing::debug!("hidden");
                tracing::info!("line {n}");
            }
        });
        let shown = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines[0].ends_with("line 0"), "{shown}");
    }
}
