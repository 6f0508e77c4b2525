//! The command line `millrace`.
//!
//! Each command is a file in `commands/`; [`commands::run`] is the only door.
//!
//! Invariant: exit code 0 means done, 1 failed, 2 wrong usage or a wrong document (C-1);
//! `check-app` adds its own meaning to 1 and 2.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::process::ExitCode;

pub mod audit;
pub mod bench;
pub mod check_app;
pub mod commands;
pub mod connect;
pub mod console;
pub mod dead_letters;
pub mod http;
pub mod preflight;
pub mod records;
pub mod screen;

/// How a command ended, if nothing unforeseen happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Done.
    Ok,
    /// Done, but what it looked at is not as it should be.
    Failed,
    /// It was asked wrongly, or with a wrong document.
    Wrong,
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        Self::from(match ending {
            Ending::Ok => 0,
            Ending::Failed => 1,
            Ending::Wrong => 2,
        })
    }
}

/// An error and its causes, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

/// Whether a command ended because nobody reads its output any more.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_chain_says_each_cause_once() {
        let error = Outer(io::Error::other("inner"));
        assert_eq!(chain(&error), "outer: inner");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_failures() {
        let closed = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_closed_pipe(&closed.context("writing")));
        assert!(!is_closed_pipe(&anyhow::anyhow!("other")));
    }
}
