//! The folder of a broker with files: journal, partition files, the lock against a second
//! broker. A broker in memory has none, and every call is a success that does nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::journal::{Entry, Journal};
use crate::log::Log;
use crate::log::recovery::Stopped;
use crate::log::store::{Budget, Store};
use crate::options::Storage;

#[derive(Debug)]
pub(crate) enum Keeper {
    Memory(Arc<Budget>),
    Files(Folder),
}

#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    journal: Journal,
    fsync: bool,
    /// Files that were written to since the last sync, when syncing is on.
    dirty: Vec<Arc<File>>,
    /// Held as long as the broker lives.
    _lock: File,
}

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another broker works in this folder.
    #[error("another broker uses {}", .0.display())]
    InUse(PathBuf),
    /// The folder or a file in it cannot be used.
    #[error("failed to {doing} {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn failed<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io {
        doing,
        path: path.to_path_buf(),
        source,
    }
}

impl Keeper {
    /// Opens the storage and hands back what its journal says.
    pub(crate) fn open(storage: &Storage) -> Result<(Keeper, Vec<Entry>), OpenError> {
        let (path, fsync) = match storage {
            Storage::Memory { bytes_max } => {
                return Ok((Keeper::Memory(Budget::new(*bytes_max)), Vec::new()));
            }
            Storage::Files { path, fsync } => (path, *fsync),
        };
        std::fs::create_dir_all(path).map_err(failed("create", path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(path.clone())),
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(failed("lock", &lock_path)(error));
            }
        }
        let journal_path = path.join("journal");
        let (journal, entries) =
            Journal::open(&journal_path).map_err(failed("read", &journal_path))?;
        let folder = Folder {
            path: path.clone(),
            journal,
            fsync,
            dirty: Vec::new(),
            _lock: lock,
        };
        Ok((Keeper::Files(folder), entries))
    }

    /// Writes a fact down. Only after that may it be acted on.
    pub(crate) fn record(&mut self, entry: &Entry) -> io::Result<()> {
        match self {
            Keeper::Memory(_) => Ok(()),
            Keeper::Files(folder) => {
                let file = folder.journal.file().clone();
                folder.journal.record(entry)?;
                folder.mark(file);
                Ok(())
            }
        }
    }

    pub(crate) fn has_files(&self) -> bool {
        matches!(self, Keeper::Files(_))
    }

    pub(crate) fn syncs(&self) -> bool {
        matches!(self, Keeper::Files(folder) if folder.fsync)
    }

    pub(crate) fn wants_snapshot(&self) -> bool {
        matches!(self, Keeper::Files(folder) if folder.journal.wants_snapshot())
    }

    pub(crate) fn snapshot(&mut self, entries: &[Entry]) -> io::Result<()> {
        match self {
            Keeper::Memory(_) => Ok(()),
            Keeper::Files(folder) => folder.journal.snapshot(entries),
        }
    }

    /// A file was written to.
    pub(crate) fn mark(&mut self, file: Option<&Arc<File>>) {
        if let (Keeper::Files(folder), Some(file)) = (self, file) {
            folder.mark(file.clone());
        }
    }

    /// Files to sync before what was written may be confirmed.
    pub(crate) fn take_dirty(&mut self) -> Vec<Arc<File>> {
        match self {
            Keeper::Memory(_) => Vec::new(),
            Keeper::Files(folder) => std::mem::take(&mut folder.dirty),
        }
    }

    /// The journal's file, for the last sync.
    pub(crate) fn journal_file(&self) -> Option<&Arc<File>> {
        match self {
            Keeper::Memory(_) => None,
            Keeper::Files(folder) => Some(folder.journal.file()),
        }
    }

    /// A new, empty partition.
    pub(crate) fn create_log(
        &self,
        topic: &str,
        partition: usize,
        leader_epoch: i32,
    ) -> io::Result<Log> {
        match self {
            Keeper::Memory(budget) => Ok(Log::new(Store::memory(budget.clone()), leader_epoch)),
            Keeper::Files(folder) => {
                let path = folder.log_path(topic, partition);
                // What is left of an earlier topic of this name must not come back.
                remove_if_there(&path)?;
                Log::open(&path, 0, leader_epoch, Stopped::Cleanly, 0)
            }
        }
    }

    /// A partition as it was left.
    pub(crate) fn open_log(
        &self,
        topic: &str,
        partition: usize,
        start: i64,
        leader_epoch: i32,
        stopped: Stopped,
        now_ms: i64,
    ) -> Result<Log, OpenError> {
        match self {
            Keeper::Memory(budget) => Ok(Log::new(Store::memory(budget.clone()), leader_epoch)),
            Keeper::Files(folder) => {
                let path = folder.log_path(topic, partition);
                Log::open(&path, start, leader_epoch, stopped, now_ms)
                    .map_err(failed("open", &path))
            }
        }
    }

    /// Removes a partition's file. A leftover is removed when the folder is opened again.
    pub(crate) fn remove_log(&self, topic: &str, partition: usize) {
        if let Keeper::Files(folder) = self {
            let path = folder.log_path(topic, partition);
            if let Err(error) = remove_if_there(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a deleted partition");
            }
        }
    }

    /// Removes partition files that belong to no topic.
    pub(crate) fn sweep(&self, belongs: impl Fn(&str, usize) -> bool) -> Result<(), OpenError> {
        let Keeper::Files(folder) = self else {
            return Ok(());
        };
        let list = std::fs::read_dir(&folder.path).map_err(failed("list", &folder.path))?;
        for item in list {
            let path = item.map_err(failed("list", &folder.path))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let leftover = name.ends_with(".tmp")
                || name
                    .strip_suffix(".log")
                    .and_then(|stem| stem.rsplit_once('-'))
                    .and_then(|(topic, number)| Some((topic, number.parse().ok()?)))
                    .is_some_and(|(topic, partition)| !belongs(topic, partition));
            if leftover {
                remove_if_there(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }
}

impl Folder {
    fn mark(&mut self, file: Arc<File>) {
        if self.fsync && !self.dirty.iter().any(|known| Arc::ptr_eq(known, &file)) {
            self.dirty.push(file);
        }
    }

    fn log_path(&self, topic: &str, partition: usize) -> PathBuf {
        self.path.join(format!("{topic}-{partition}.log"))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
