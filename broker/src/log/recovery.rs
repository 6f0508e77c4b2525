//! Opens the file of a partition: reads every header, checks the bodies if the broker did
//! not stop cleanly, and cuts off a torn tail.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Log;
use super::store::{FileStore, Place, Store};
use crate::batch::{self, HEADER_BYTES, Header, Malformed};

/// How the broker stopped the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    Cleanly,
    Crashed,
}

#[derive(Debug, thiserror::Error)]
enum Torn {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the batch ends behind the end of the file")]
    Short,
    #[error("offset {found} comes after {expected}")]
    Offset { found: i64, expected: i64 },
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
}

impl Log {
    /// Opens a partition's file. `start` is the first readable offset as last recorded.
    pub(crate) fn open(
        path: &Path,
        start: i64,
        leader_epoch: i32,
        stopped: Stopped,
        now_ms: i64,
    ) -> io::Result<Log> {
        let store = FileStore::open(path)?;
        let length = store.end;
        let file = store.file.clone();
        let mut log = Log::new(Store::File(store), 0);
        let mut position = 0;
        while position < length {
            match read_batch(&file, position, length, log.end, stopped) {
                Ok((header, marker)) => {
                    log.note(&header, marker, Place::File(position), now_ms);
                    position += header.bytes as u64;
                }
                Err(Torn::Read(error)) => return Err(error),
                Err(torn) => {
                    tracing::warn!(
                        path = %path.display(), position, lost_bytes = length - position, reason = %torn,
                        "cut off a torn tail"
                    );
                    break;
                }
            }
        }
        if let Store::File(store) = &mut log.store
            && position < length
        {
            store.truncate(position)?;
        }
        log.delete_before(start)?;
        log.begin_epoch(leader_epoch);
        Ok(log)
    }
}

fn read_batch(
    file: &File,
    position: u64,
    length: u64,
    expected: i64,
    stopped: Stopped,
) -> Result<(Header, Option<batch::Marker>), Torn> {
    let mut head = [0; HEADER_BYTES];
    let left = usize::try_from(length - position).unwrap_or(usize::MAX);
    if left < HEADER_BYTES {
        return Err(Torn::Short);
    }
    file.read_exact_at(&mut head, position)
        .map_err(Torn::Read)?;
    let header = Header::parse(&head)?;
    if header.bytes > left {
        return Err(Torn::Short);
    }
    if header.base_offset < expected {
        return Err(Torn::Offset {
            found: header.base_offset,
            expected,
        });
    }
    let mut marker = None;
    if stopped == Stopped::Crashed || header.is_control() {
        let mut whole = vec![0; header.bytes];
        file.read_exact_at(&mut whole, position)
            .map_err(Torn::Read)?;
        Header::parse_whole(&whole)?;
        if header.is_control() {
            marker = batch::read_marker(&whole);
        }
    }
    Ok((header, marker))
}
