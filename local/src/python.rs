//! The app's own Python: a virtual environment per set of requirements (architecture.md, Laptop).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// Oldest Python that apps may count on.
const MINOR_MIN: u32 = 10;

/// Why there is no virtual environment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No interpreter.
    #[error(
        "no Python found as {python}; install python3 (3.{MINOR_MIN} or newer), or set MILLRACE_PYTHON"
    )]
    Missing {
        /// What was tried.
        python: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Too old.
    #[error(
        "{python} is Python {version}; 3.{MINOR_MIN} or newer is needed: set MILLRACE_PYTHON to one"
    )]
    TooOld {
        /// Which.
        python: String,
        /// What it says.
        version: String,
    },
    /// `app.local.python.requirements`.
    #[error("failed to read {} (app.local.python.requirements)", path.display())]
    Requirements {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The module venv is a package of its own on Debian.
    #[error(
        "{python} cannot make virtual environments; on Debian and Ubuntu install python3-venv\n{output}"
    )]
    Venv {
        /// Which.
        python: String,
        /// What it said.
        output: String,
    },
    /// pip failed.
    #[error("failed to install {}\n{output}", path.display())]
    Install {
        /// The requirements.
        path: PathBuf,
        /// The end of what pip said.
        output: String,
    },
    /// The file system.
    #[error("failed to prepare {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Makes the virtual environment of these requirements below `state`, or finds it made. Returns
/// its folder. `say` is told what takes long.
pub async fn prepare(
    python: &str,
    requirements: &Path,
    state: &Path,
    mut say: impl FnMut(String),
) -> Result<PathBuf, Error> {
    let version = version(python).await?;
    let wanted = std::fs::read(requirements).map_err(|source| Error::Requirements {
        path: requirements.to_owned(),
        source,
    })?;
    let mut hash = Sha256::new();
    hash.update(&wanted);
    hash.update(python.as_bytes());
    hash.update(version.as_bytes());
    let hash: String = hash
        .finalize()
        .iter()
        .take(4)
        .map(|b| format!("{b:02x}"))
        .collect();
    let folder = state.join(format!("venv-{hash}"));
    let done = folder.join(".complete");
    if done.exists() {
        return Ok(folder);
    }
    let broken = |source| Error::Folder {
        path: folder.clone(),
        source,
    };
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(broken)?;
    }
    std::fs::create_dir_all(state).map_err(broken)?;
    say(format!(
        "making a virtual environment with Python {version}, once for these requirements"
    ));
    let (made, output) = run(
        Command::new(python).arg("-m").arg("venv").arg(&folder),
        &mut say,
    )
    .await
    .map_err(broken)?;
    if !made {
        return Err(Error::Venv {
            python: python.to_owned(),
            output,
        });
    }
    say(format!("installing {}", requirements.display()));
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "-r",
    ])
    .arg(requirements);
    let (installed, output) = run(&mut pip, &mut say).await.map_err(broken)?;
    if !installed {
        return Err(Error::Install {
            path: requirements.to_owned(),
            output,
        });
    }
    std::fs::write(&done, "").map_err(broken)?;
    Ok(folder)
}

async fn version(python: &str) -> Result<String, Error> {
    let missing = |source| Error::Missing {
        python: python.to_owned(),
        source,
    };
    let program = "import sys; print('%d.%d.%d' % sys.version_info[:3])";
    let output = Command::new(python)
        .args(["-c", program])
        .stdin(Stdio::null())
        .output()
        .await;
    let output = output.map_err(missing)?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < (3, MINOR_MIN) {
        return Err(Error::TooOld {
            python: python.to_owned(),
            version,
        });
    }
    Ok(version)
}

/// Runs a command, passes on what it says, and keeps the end of it.
async fn run(
    command: &mut Command,
    say: &mut impl FnMut(String),
) -> std::io::Result<(bool, String)> {
    const LINES_KEPT: usize = 40;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut out = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut err = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let mut kept = std::collections::VecDeque::new();
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let line = tokio::select! {
            line = out.next_line(), if out_open => { let line = line?; out_open = line.is_some(); line }
            line = err.next_line(), if err_open => { let line = line?; err_open = line.is_some(); line }
        };
        let Some(line) = line else {
            continue;
        };
        say(line.clone());
        kept.push_back(line);
        if kept.len() > LINES_KEPT {
            kept.pop_front();
        }
    }
    let status = child.wait().await?;
    Ok((status.success(), Vec::from(kept).join("\n")))
}
