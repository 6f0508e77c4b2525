//! The journal of a broker with files: everything that is not a record batch.
//!
//! One entry is a length, a CRC-32C and a JSON body. An entry that is torn or damaged ends
//! the journal; what comes behind it is cut off when the broker opens it. A snapshot
//! replaces the whole file by a rename.
//!
//! Invariant: an entry is in the file before the change it describes can be seen.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{JOURNAL_BYTES_MIN, JOURNAL_ENTRY_BYTES_MAX};

/// One fact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub(crate) enum Entry {
    Cluster {
        id: String,
    },
    /// The broker began to serve, with this leader epoch.
    Opened {
        leader_epoch: i32,
    },
    /// The broker stopped after everything was written.
    Closed,
    TopicCreated {
        name: String,
        partitions: usize,
        configs: BTreeMap<String, String>,
    },
    TopicDeleted {
        name: String,
    },
    PartitionsSet {
        name: String,
        partitions: usize,
    },
    ConfigsSet {
        name: String,
        configs: BTreeMap<String, String>,
    },
    LogStart {
        name: String,
        partition: usize,
        offset: i64,
    },
    OffsetsCommitted {
        group: String,
        offsets: Vec<OffsetEntry>,
    },
    OffsetsDeleted {
        group: String,
        partitions: Vec<(String, i32)>,
    },
    GroupDeleted {
        group: String,
    },
    /// A group after a rebalance.
    Group {
        group: String,
        generation: i32,
        protocol_type: String,
        protocol: String,
        leader: String,
        members: Vec<MemberEntry>,
    },
    ProducerIds {
        next: i64,
    },
    Transactional {
        id: String,
        producer_id: i64,
        epoch: i16,
        timeout_ms: i32,
    },
    /// The outcome is decided; the markers follow.
    TransactionDecided {
        id: String,
        producer_id: i64,
        epoch: i16,
        commit: bool,
        partitions: Vec<(String, i32)>,
        offsets: Vec<(String, Vec<OffsetEntry>)>,
    },
    TransactionEnded {
        id: String,
    },
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OffsetEntry {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
}

/// A member of a stable group. Bytes are base64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MemberEntry {
    pub(crate) id: String,
    pub(crate) instance: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_ms: u64,
    pub(crate) rebalance_ms: u64,
    pub(crate) protocols: Vec<(String, String)>,
    pub(crate) assignment: String,
}

#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Arc<File>,
    bytes: u64,
    snapshot_bytes: u64,
}

const PREFIX_BYTES: usize = 8;

fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(entry)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= JOURNAL_ENTRY_BYTES_MAX)
        .ok_or_else(|| io::Error::other("a journal entry is too long"))?;
    let mut out = Vec::with_capacity(PREFIX_BYTES + body.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// Takes the next entry off `bytes`; `None` at the end or at the first damage.
fn decode(bytes: &mut &[u8]) -> Option<Entry> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if length > rest.len() {
        return None;
    }
    let (body, rest) = rest.split_at(length);
    if crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
        return None;
    }
    let entry = serde_json::from_slice(body).ok()?;
    *bytes = rest;
    Some(entry)
}

impl Journal {
    /// Reads all entries, and opens the file for more. A missing file is an empty journal.
    pub(crate) fn open(path: &Path) -> io::Result<(Journal, Vec<Entry>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let mut rest = content.as_slice();
        let mut entries = Vec::new();
        while let Some(entry) = decode(&mut rest) {
            entries.push(entry);
        }
        let good = (content.len() - rest.len()) as u64;
        if !rest.is_empty() {
            tracing::warn!(path = %path.display(), lost_bytes = rest.len(), "cut off a torn journal");
            file.set_len(good)?;
        }
        let journal = Journal {
            path: path.to_path_buf(),
            file: Arc::new(file),
            bytes: good,
            snapshot_bytes: good,
        };
        Ok((journal, entries))
    }

    pub(crate) fn record(&mut self, entry: &Entry) -> io::Result<()> {
        let bytes = encode(entry)?;
        if let Err(error) = (&*self.file).write_all(&bytes) {
            // Half an entry would hide all later ones.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn wants_snapshot(&self) -> bool {
        self.bytes > JOURNAL_BYTES_MIN && self.bytes > 4 * self.snapshot_bytes
    }

    /// Replaces the journal by the entries that lead to the present state.
    pub(crate) fn snapshot(&mut self, entries: &[Entry]) -> io::Result<()> {
        let fresh = self.path.with_extension("tmp");
        let mut file = File::create(&fresh)?;
        let mut bytes = 0;
        for entry in entries {
            let body = encode(entry)?;
            file.write_all(&body)?;
            bytes += body.len() as u64;
        }
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        self.file = Arc::new(OpenOptions::new().append(true).open(&self.path)?);
        self.bytes = bytes;
        self.snapshot_bytes = bytes;
        Ok(())
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: i64) -> Entry {
        Entry::LogStart {
            name: "orders".into(),
            partition: 0,
            offset,
        }
    }

    #[test]
    fn entries_come_back_and_a_torn_one_ends_the_journal() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal");
        let (mut journal, entries) = Journal::open(&path).expect("open");
        assert_eq!(entries, vec![]);
        for offset in 0..3 {
            journal.record(&entry(offset)).expect("record");
        }
        drop(journal);
        let whole = std::fs::read(&path).expect("read");
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("write");
        let (mut journal, entries) = Journal::open(&path).expect("open");
        assert_eq!(entries, vec![entry(0), entry(1)]);
        journal.record(&entry(9)).expect("record");
        drop(journal);
        let (_, entries) = Journal::open(&path).expect("open");
        assert_eq!(entries, vec![entry(0), entry(1), entry(9)]);
    }

    #[test]
    fn a_snapshot_replaces_what_was_there() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).expect("open");
        journal.record(&entry(0)).expect("record");
        journal.snapshot(&[entry(7)]).expect("snapshot");
        journal.record(&entry(8)).expect("record");
        drop(journal);
        let (_, entries) = Journal::open(&path).expect("open");
        assert_eq!(entries, vec![entry(7), entry(8)]);
    }
}
