//! What happened in a run, readable; and the file that a failing seed leaves behind.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_core::contract::publish::{Reply, Request, next_frame};
use millrace_core::intake::io::{Effect, Input};
use millrace_core::limits::FRAME_BYTES_MAX;
use millrace_core::outcome::Outcome;
use serde::{Deserialize, Serialize};

use crate::laws::Violation;

/// Where a run writes what happens.
#[derive(Debug, Default)]
pub struct Trace {
    wanted: bool,
    from: u64,
    step: u64,
    at: Duration,
    lines: Vec<String>,
}

impl Trace {
    /// Nothing is kept.
    pub fn off() -> Self {
        Self::default()
    }

    /// Everything from a step on is kept.
    pub fn from_step(from: u64) -> Self {
        Self {
            wanted: true,
            from,
            ..Self::default()
        }
    }

    pub(crate) fn step(&mut self, step: u64, at: Duration) {
        self.step = step;
        self.at = at;
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.wanted && self.step >= self.from {
            self.lines.push(format!(
                "{:>7} {:>11.6} {}",
                self.step,
                self.at.as_secs_f64(),
                text()
            ));
        }
    }

    /// The lines that were kept.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

/// A seed that broke a law once; a test replays it for ever.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Regression {
    /// The seed; scenario and faults follow from it.
    pub seed: u64,
    /// The law that it broke.
    pub law: String,
    /// How.
    pub message: String,
    /// At which step.
    pub step: u64,
}

impl Regression {
    /// A regression from a failure.
    pub fn new(seed: u64, step: u64, violation: &Violation) -> Self {
        let message = violation.message.chars().take(200).collect();
        Self {
            seed,
            law: format!("{:?}", violation.law),
            message,
            step,
        }
    }

    /// Writes it into a folder; gives the file's name.
    pub fn write(&self, folder: &Path) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("seed-{}.json", self.seed));
        let mut text = serde_json::to_string_pretty(self).map_err(std::io::Error::other)?;
        text.push('\n');
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Reads every one in a folder, in the order of their seeds.
    pub fn read_all(folder: &Path) -> std::io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let text = std::fs::read_to_string(&path)?;
                all.push(serde_json::from_str::<Self>(&text).map_err(std::io::Error::other)?);
            }
        }
        all.sort_by_key(|regression| regression.seed);
        Ok(all)
    }
}

/// One input in a line.
pub(crate) fn input(input: &Input) -> String {
    match input {
        Input::Fetched { batches } => {
            let mut text = "Fetched".to_owned();
            for batch in batches {
                let at = |event: Option<&millrace_core::event::Event>| {
                    event.map_or(-1, |e| e.position().offset())
                };
                let (first, last) = (at(batch.events.first()), at(batch.events.last()));
                put(
                    &mut text,
                    format_args!(
                        " {} {first}..={last} ({})",
                        batch.partition,
                        batch.events.len()
                    ),
                );
            }
            text
        }
        Input::Answered(answers) => {
            let mut text = "Answered".to_owned();
            for (call, outcome) in answers {
                put(&mut text, format_args!(" {}:", call.0));
                match outcome {
                    Outcome::Items(items) => {
                        for item in items {
                            let mut word = format!("{item:?}");
                            word.truncate(word.find([' ', '(', '{']).unwrap_or(word.len()));
                            if let millrace_core::outcome::Item::Failed(failure) = item {
                                put(&mut word, format_args!("({:?})", failure.class));
                            }
                            put(&mut text, format_args!(" {word}"));
                        }
                    }
                    Outcome::Failed(failure) => put(
                        &mut text,
                        format_args!(" all {:?} {}", failure.class, failure.code),
                    ),
                    Outcome::TooLarge(_) => text.push_str(" too large"),
                    Outcome::Abandoned => text.push_str(" abandoned"),
                }
            }
            text
        }
        Input::Replies(replies) => {
            let mut text = "Replies".to_owned();
            for reply in replies {
                match reply {
                    Reply::Stored(stored) => {
                        put(
                            &mut text,
                            format_args!(" stored {} {:?}", stored.seq, stored.stored),
                        );
                        for failure in &stored.failures {
                            put(
                                &mut text,
                                format_args!(
                                    " !{}:{:?}:{}",
                                    failure.event, failure.class, failure.code
                                ),
                            );
                        }
                    }
                    other => put(&mut text, format_args!(" {other:?}")),
                }
            }
            text
        }
        other => format!("{other:?}"),
    }
}

/// One effect in a line.
pub(crate) fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Call(call) => {
            let mut text = format!("Call {}:", call.id.0);
            for called in &call.events {
                put(
                    &mut text,
                    format_args!(
                        " {}/{}#{}",
                        called.partition,
                        called.event.position(),
                        called.attempt
                    ),
                );
            }
            text
        }
        Effect::Publish(frame) => {
            let mut buffer = bytes::BytesMut::from(&frame[..]);
            let request = next_frame(&mut buffer, FRAME_BYTES_MAX)
                .and_then(|f| Request::decode(f.unwrap_or_default()));
            match request {
                Ok(Request::Results(results)) => {
                    let mut text = format!(
                        "Publish results {} generation {}:",
                        results.seq, results.generation
                    );
                    for event in results.events() {
                        let partition = &results.partitions()[event.partition as usize];
                        put(
                            &mut text,
                            format_args!(" {partition}/{}:{:?}", event.position, event.fate),
                        );
                    }
                    text
                }
                other => format!("Publish {other:?}"),
            }
        }
        other => format!("{other:?}"),
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("writing to a String never fails");
}
