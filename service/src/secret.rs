//! Secrets: read by file or environment reference, never printed (D-P4, C-3).
//!
//! Invariant: a secret's text leaves [`SecretText`] only through [`SecretText::expose`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_core::contract::block::Secret;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::config::Environment;
use crate::telemetry::chain;

/// Bytes of a secret at most; a certificate chain fits.
const SECRET_BYTES_MAX: u64 = 256 << 10;

/// How often files are looked at. Kubernetes takes up to a minute to renew a mounted secret.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The text of a secret. Prints as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a secret that did not come from a document, such as a random one.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Hand it to the one who needs it, not to a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `other` is the same, in a time that does not tell how much of it is.
    pub fn is(&self, other: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differ = own.iter().zip(other).fold(0, |bits, (a, b)| bits | (a ^ b));
        own.len() == other.len() && differ == 0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("•••")
    }
}

/// Why a secret could not be read. Says where it should stand, never what stands there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing, too large, or may not be read.
    #[error("failed to read the secret file {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The variable is not set.
    #[error("the environment variable {name} with a secret is not set")]
    Unset {
        /// Which.
        name: String,
    },
    /// There is nothing in it.
    #[error("the secret {place} is empty")]
    Empty {
        /// File or variable.
        place: String,
    },
}

/// Reads a secret now.
///
/// # Errors
/// See [`Error`].
pub fn read(secret: &Secret, environment: &Environment) -> Result<SecretText, Error> {
    let (text, place) = match secret {
        Secret::File(path) => {
            let read = read_file(path).map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?;
            (read, path.display().to_string())
        }
        Secret::Env(name) => {
            let value = environment.get(name).cloned();
            (
                value.ok_or_else(|| Error::Unset { name: name.clone() })?,
                name.clone(),
            )
        }
    };
    // Editors and `echo` end files with a line break that belongs to no password.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Error::Empty { place });
    }
    Ok(SecretText(text.to_owned()))
}

/// Reads a secret that has changed; what cannot be read is told, and the old one goes on.
pub fn read_again(secret: Option<&Secret>, environment: &Environment) -> Option<SecretText> {
    read(secret?, environment)
        .inspect_err(|error| {
            warn!(error = %chain(error), "the changed secret cannot be read, going on with the old one");
        })
        .ok()
}

fn read_file(path: &Path) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind, Read as _};
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::FileTooLarge,
            format!("more than {SECRET_BYTES_MAX} bytes"),
        ));
    }
    Ok(text)
}

/// Looks at files and tells when the content of one has changed. Stops when dropped.
///
/// It compares contents rather than times: a mounted secret changes by a symbolic link, whose
/// target may be older than what it replaces.
#[derive(Debug)]
pub struct Watch {
    changes: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts to look at `paths`, every [`LOOK_EVERY`] or as often as a test wants.
    pub fn start(paths: Vec<PathBuf>, every: Duration) -> Self {
        let (changed, changes) = watch::channel(0);
        let mut known = look(&paths);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let seen = look(&paths);
                // A file that is being replaced may be away for a moment: keep what was known.
                let fresh = seen
                    .iter()
                    .zip(&known)
                    .any(|(now, then)| now.is_some() && now != then);
                if fresh {
                    for (then, now) in known.iter_mut().zip(seen) {
                        *then = now.or(then.take());
                    }
                    changed.send_modify(|count| *count += 1);
                }
            }
        });
        Self { changes, task }
    }

    /// The files that `secrets` name.
    pub fn files<'s>(secrets: impl IntoIterator<Item = &'s Secret>) -> Vec<PathBuf> {
        let file = |secret: &Secret| match secret {
            Secret::File(path) => Some(path.clone()),
            Secret::Env(_) => None,
        };
        secrets.into_iter().filter_map(file).collect()
    }

    /// Waits until a file has changed since the last call. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The task ends only with the runtime; then nobody waits for files any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn look(paths: &[PathBuf]) -> Vec<Option<String>> {
    paths.iter().map(|path| read_file(path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment::from([
            ("TOKEN".to_owned(), "hunter2".to_owned()),
            ("NONE".to_owned(), String::new()),
        ])
    }

    #[test]
    fn c3_a_secret_comes_by_file_or_environment_without_its_last_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "hunter2\r\n").unwrap();
        for secret in [Secret::File(path), Secret::Env("TOKEN".to_owned())] {
            let text = read(&secret, &environment()).unwrap();
            assert_eq!(text.expose(), "hunter2");
            assert!(text.is(b"hunter2") && !text.is(b"hunter3") && !text.is(b"hunter22"));
        }
    }

    #[test]
    fn d_p4_a_secret_is_never_printed() {
        let text = read(&Secret::Env("TOKEN".to_owned()), &environment()).unwrap();
        assert!(!format!("{text:?}").contains("hunter2"));
    }

    #[test]
    fn a_missing_secret_names_its_place() {
        let check = |secret: Secret, expect: &str| {
            let error = read(&secret, &environment()).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(Secret::File("/nowhere/at/all".into()), "/nowhere/at/all");
        check(Secret::Env("OTHER".to_owned()), "OTHER");
        check(Secret::Env("NONE".to_owned()), "NONE is empty");
    }

    #[tokio::test]
    async fn c3_a_changed_file_is_noticed_and_a_missing_one_is_not_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "one").unwrap();
        let secret = Secret::File(path.clone());
        let mut watch = Watch::start(Watch::files([&secret]), Duration::from_millis(5));
        std::fs::remove_file(&path).unwrap();
        let none = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(none.is_err(), "removing a file is no new secret");
        std::fs::write(&path, "two").unwrap();
        tokio::time::timeout(Duration::from_secs(10), watch.changed())
            .await
            .unwrap();
        assert_eq!(read(&secret, &Environment::new()).unwrap().expose(), "two");
    }
}
