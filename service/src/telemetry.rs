//! Logs, metrics and measurements of a process.

use std::error::Error as StdError;
use std::fmt;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace_core::contract::block::{LogFormat, Telemetry};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

pub mod metrics;
pub mod usage;

pub use self::metrics::{Metrics, Scrape};
/// What [`Metrics::histogram`] gives: callers need not know the crate behind it.
pub use prometheus::Histogram;

/// Shows an error with all its causes, on one line: `failed to commit: connection lost: …`.
///
/// ```
/// # use millrace_service::telemetry::chain;
/// let error = std::io::Error::other("disk full");
/// assert_eq!(chain(&error).to_string(), "disk full");
/// ```
pub fn chain(error: &dyn StdError) -> Chain<'_> {
    Chain(error)
}

/// See [`chain`].
#[derive(Debug)]
pub struct Chain<'e>(&'e dyn StdError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries print their source as well; nobody wants to read it twice.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

/// Why logs could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `telemetry.logLevel` is no level.
    #[error(
        "telemetry.logLevel: {level:?} is neither a level (error, warn, info, debug, trace) nor directives such as info,millrace_input=debug"
    )]
    Level {
        /// What it says.
        level: String,
        /// Why not.
        #[source]
        source: Box<tracing_subscriber::filter::ParseError>,
    },
    /// The logs have ended.
    #[error("the logs have ended")]
    Gone,
    /// Somebody else has started logs.
    #[error("logs were started twice in this process")]
    Twice,
}

/// The running logs; changes their level. All clones are one.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    /// The level of the document.
    usual: Arc<str>,
    /// Counts changes: only the last one may end itself.
    changes: Arc<Mutex<u64>>,
}

/// A filter that can be changed later.
fn changeable(level: &str) -> Result<(reload::Layer<EnvFilter, Registry>, Logs), Error> {
    let (layer, handle) = reload::Layer::new(filter(level)?);
    let logs = Logs {
        filter: handle,
        usual: level.into(),
        changes: Arc::default(),
    };
    Ok((layer, logs))
}

/// Starts logs on stderr; once per process.
///
/// # Errors
/// If the level is none, or logs run already.
pub fn start_logs(telemetry: &Telemetry) -> Result<Logs, Error> {
    let (filter, logs) = changeable(&telemetry.log_level)?;
    let lines = match telemetry.log_format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|_| Error::Twice)?;
    Ok(logs)
}

impl Logs {
    /// Changes the level (`POST /v1/log-level`): for a time, after which that of the document
    /// comes back, or until the next change.
    ///
    /// # Errors
    /// If it is none.
    pub fn set_level(&self, level: &str, lasts: Option<Duration>) -> Result<(), Error> {
        let filter = filter(level)?;
        let mut changes = self.changes.lock().expect("no holder panics");
        self.filter.reload(filter).map_err(|_| Error::Gone)?;
        *changes += 1;
        if let Some(lasts) = lasts {
            tokio::spawn(self.clone().return_to_usual(lasts, *changes));
        }
        Ok(())
    }

    async fn return_to_usual(self, after: Duration, change: u64) {
        tokio::time::sleep(after).await;
        let changes = self.changes.lock().expect("no holder panics");
        if *changes != change {
            return;
        }
        let usual = filter(&self.usual).expect("it was a level when the logs started");
        // Without logs there is nothing to change back.
        drop(self.filter.reload(usual));
        drop(changes);
        tracing::info!(level = %self.usual, "the log level of the document is back");
    }
}

/// Checks a level and its directives.
fn filter(level: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|source| Error::Level {
            level: level.to_owned(),
            source: Box::new(source),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to store")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("the broker did not answer: {0}")]
    struct Middle(#[source] std::io::Error);

    #[test]
    fn an_error_is_shown_with_all_its_causes_each_once() {
        let error = Outer(Middle(std::io::Error::other("connection reset")));
        assert_eq!(
            chain(&error).to_string(),
            "failed to store: the broker did not answer: connection reset"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn d_h3_a_log_level_ends_after_its_time_unless_it_was_changed_again() {
        let (layer, logs) = changeable("info").unwrap();
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let debug = || tracing::enabled!(tracing::Level::DEBUG);
        let after = |s| tokio::time::sleep(Duration::from_secs(s));
        assert!(!debug());
        logs.set_level("debug", Some(Duration::from_secs(600)))
            .unwrap();
        after(590).await;
        assert!(debug());
        after(20).await;
        assert!(!debug(), "the time is over");
        logs.set_level("debug", Some(Duration::from_secs(600)))
            .unwrap();
        logs.set_level("trace", None).unwrap();
        after(10_000).await;
        assert!(debug(), "the second change has no end");
        let error = logs.set_level("millrace_input=loud", None).unwrap_err();
        assert!(error.to_string().contains("loud"), "{error}");
        assert!(debug(), "a wrong level changes nothing");
    }

    #[test]
    fn a_wrong_level_names_its_key() {
        assert!(filter("info,millrace_input=debug").is_ok());
        let error = filter("millrace_input=loud").unwrap_err();
        assert!(error.to_string().contains("telemetry.logLevel"), "{error}");
    }
}
