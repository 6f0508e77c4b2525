//! A wall clock that is wrong for one process, while its boot clock is right: what a host with
//! badly set time looks like.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How wrong it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WallClock {
    /// It shows what the others will show so much later.
    Ahead(Duration),
    /// It shows what the others showed so long ago.
    Behind(Duration),
}

impl WallClock {
    /// Builds the library that a process has to load (`LD_PRELOAD`) to see this clock.
    ///
    /// # Panics
    /// If there is no C compiler, without which the proxies could not be built either.
    pub(crate) fn library(self, folder: &Path) -> PathBuf {
        let (name, shift) = match self {
            Self::Ahead(by) => ("ahead", format!("{}", by.as_secs())),
            Self::Behind(by) => ("behind", format!("-{}", by.as_secs())),
        };
        let library = folder.join(format!("clock-{name}.so"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bed/shifted_clock.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"])
            .arg(format!("-DSHIFT_SECONDS={shift}"))
            .arg("-o")
            .arg(&library)
            .arg(source)
            .output()
            .expect("cc runs");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "no clock: {said}");
        library
    }
}
