//! Where the bytes of one partition lie: in memory under a shared cap, or in one file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use crate::limits::{BATCH_OVERHEAD_BYTES, DEAD_BYTES_MIN};

/// The cap over all partitions in memory.
///
/// Changed only under the broker's lock; the atomic lets dropped logs give back their share.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    bytes_max: u64,
}

impl Budget {
    pub(crate) fn new(bytes_max: u64) -> Arc<Budget> {
        Arc::new(Budget {
            used: AtomicU64::new(0),
            bytes_max,
        })
    }

    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.used.load(Ordering::Relaxed) + bytes + BATCH_OVERHEAD_BYTES <= self.bytes_max
    }

    fn take(&self, bytes: u64) {
        self.used
            .fetch_add(bytes + BATCH_OVERHEAD_BYTES, Ordering::Relaxed);
    }

    fn give(&self, bytes: u64) {
        self.used
            .fetch_sub(bytes + BATCH_OVERHEAD_BYTES, Ordering::Relaxed);
    }
}

/// Where one batch lies.
#[derive(Debug)]
pub(crate) enum Place {
    Memory(Bytes),
    /// From this position of the partition's file.
    File(u64),
}

/// Neighbouring batches, taken under the lock and loaded outside of it.
#[derive(Debug)]
pub(crate) enum Slice {
    Memory(Vec<Bytes>),
    File {
        file: Arc<File>,
        position: u64,
        bytes: usize,
    },
}

impl Slice {
    /// Brings the batches together.
    pub(crate) fn load(mut self) -> io::Result<Bytes> {
        match &mut self {
            Slice::Memory(parts) => match parts.len() {
                0 => Ok(Bytes::new()),
                1 => Ok(parts.swap_remove(0)),
                _ => {
                    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
                    for part in parts {
                        whole.extend_from_slice(part);
                    }
                    Ok(whole.freeze())
                }
            },
            Slice::File {
                file,
                position,
                bytes,
            } => {
                let mut whole = vec![0; *bytes];
                file.read_exact_at(&mut whole, *position)?;
                Ok(whole.into())
            }
        }
    }
}

/// The bytes of one partition.
#[derive(Debug)]
pub(crate) enum Store {
    Memory { budget: Arc<Budget>, used: u64 },
    File(FileStore),
}

#[derive(Debug)]
pub(crate) struct FileStore {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    /// Where the next batch goes.
    pub(crate) end: u64,
}

impl FileStore {
    /// Opens or makes the file. The caller finds out where its valid part ends.
    pub(crate) fn open(path: &Path) -> io::Result<FileStore> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let end = file.metadata()?.len();
        Ok(FileStore {
            file: Arc::new(file),
            path: path.to_path_buf(),
            end,
        })
    }

    pub(crate) fn truncate(&mut self, end: u64) -> io::Result<()> {
        self.file.set_len(end)?;
        self.end = end;
        Ok(())
    }
}

impl Store {
    pub(crate) fn memory(budget: Arc<Budget>) -> Store {
        Store::Memory { budget, used: 0 }
    }

    /// Whether a batch of this size may be stored.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        match self {
            Store::Memory { budget, .. } => budget.fits(bytes as u64),
            Store::File(_) => true,
        }
    }

    pub(crate) fn append(&mut self, batch: BytesMut) -> io::Result<Place> {
        match self {
            Store::Memory { budget, used } => {
                let bytes = batch.len() as u64;
                budget.take(bytes);
                *used += bytes + BATCH_OVERHEAD_BYTES;
                Ok(Place::Memory(batch.freeze()))
            }
            Store::File(store) => {
                if let Err(error) = store.file.write_all_at(&batch, store.end) {
                    // A part of the batch may be there. Nothing points to it, and the next
                    // batch goes over it; cut it off all the same for whoever opens the file.
                    if let Err(again) = store.file.set_len(store.end) {
                        tracing::warn!(path = %store.path.display(), error = %again, "cannot cut off a half-written batch");
                    }
                    return Err(error);
                }
                let position = store.end;
                store.end += batch.len() as u64;
                Ok(Place::File(position))
            }
        }
    }

    /// Gives back what a deleted batch used.
    pub(crate) fn release(&mut self, bytes: usize) {
        if let Store::Memory { budget, used } = self {
            budget.give(bytes as u64);
            *used -= bytes as u64 + BATCH_OVERHEAD_BYTES;
        }
    }

    /// How far to move positions after the deleted head of the file was cut off, if it was
    /// long enough to be worth it.
    pub(crate) fn compact(&mut self, first_live: u64) -> io::Result<Option<u64>> {
        let Store::File(store) = self else {
            return Ok(None);
        };
        let live = store.end - first_live;
        let worth_it = first_live >= DEAD_BYTES_MIN && first_live >= live;
        if first_live == 0 || !(worth_it || live == 0) {
            return Ok(None);
        }
        // A new file, never a shorter one: readers that took a slice keep the old file open
        // and must find their bytes where they were.
        let fresh = store.path.with_extension("log.tmp");
        let mut target = File::create(&fresh)?;
        let mut source = &*store.file;
        io::Seek::seek(&mut source, io::SeekFrom::Start(first_live))?;
        io::copy(&mut io::Read::take(source, live), &mut target)?;
        target.sync_all()?;
        std::fs::rename(&fresh, &store.path)?;
        *store = FileStore::open(&store.path)?;
        Ok(Some(first_live))
    }

    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        match self {
            Store::Memory { .. } => None,
            Store::File(store) => Some(&store.file),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Store::Memory { budget, used } = self {
            budget.used.fetch_sub(*used, Ordering::Relaxed);
        }
    }
}
