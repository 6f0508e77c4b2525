//! One partition: batches in offset order, with what readers and producers must know of them.
//!
//! Invariant: offsets only grow; a stored batch is never changed.
//! Invariant: recovery notes each batch through the same function as an append, so that a
//! reopened partition knows what it knew before.

pub(crate) mod producers;
pub(crate) mod recovery;
pub(crate) mod store;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;

use crate::batch::{self, Header, Marker};
use producers::{Aborted, Producers, Sequence};
use store::{Place, Slice, Store};

/// One stored batch.
#[derive(Debug)]
struct Entry {
    base_offset: i64,
    last_offset: i64,
    bytes: usize,
    max_timestamp: i64,
    place: Place,
}

#[derive(Debug)]
pub(crate) struct Log {
    store: Store,
    entries: VecDeque<Entry>,
    start: i64,
    end: i64,
    bytes: u64,
    producers: Producers,
    /// Leader epochs and the first offset of each.
    epochs: Vec<(i32, i64)>,
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) slice: Slice,
    pub(crate) bytes: usize,
    /// The offset after the last one read.
    pub(crate) end: i64,
}

/// A batch that was found by a search: offset and timestamp.
pub(crate) type Found = (i64, i64);

impl Log {
    pub(crate) fn new(store: Store, leader_epoch: i32) -> Log {
        Log {
            store,
            entries: VecDeque::new(),
            start: 0,
            end: 0,
            bytes: 0,
            producers: Producers::default(),
            epochs: vec![(leader_epoch, 0)],
        }
    }

    /// The first offset that can be read.
    pub(crate) fn start(&self) -> i64 {
        self.start
    }

    /// The offset of the next record; with a single node also the high watermark.
    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    /// The first offset that is not decided yet.
    pub(crate) fn stable_end(&self) -> i64 {
        self.producers.first_open().unwrap_or(self.end)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn leader_epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |(epoch, _)| *epoch)
    }

    pub(crate) fn producers(&self) -> &Producers {
        &self.producers
    }

    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        self.store.file()
    }

    pub(crate) fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        self.producers.aborted(from, to)
    }

    /// Whether a batch is new, in sequence and fits.
    pub(crate) fn check(&self, header: &Header) -> Result<Sequence, ResponseError> {
        if header.producer_id >= 0 {
            let sequence = self.producers.check(header)?;
            if sequence != Sequence::New {
                return Ok(sequence);
            }
        }
        if !self.store.fits(header.bytes) {
            return Err(ResponseError::PolicyViolation);
        }
        Ok(Sequence::New)
    }

    /// Stores a checked batch and returns its base offset.
    pub(crate) fn append(
        &mut self,
        mut header: Header,
        mut batch: BytesMut,
        now_ms: i64,
    ) -> io::Result<i64> {
        header.base_offset = self.end;
        header.leader_epoch = self.leader_epoch();
        batch::patch_place(&mut batch, header.base_offset, header.leader_epoch);
        let marker = if header.is_control() {
            batch::read_marker(&batch)
        } else {
            None
        };
        let place = self.store.append(batch)?;
        self.note(&header, marker, place, now_ms);
        Ok(header.base_offset)
    }

    /// Ends a producer's transaction in this partition.
    pub(crate) fn append_marker(
        &mut self,
        producer_id: i64,
        producer_epoch: i16,
        marker: Marker,
        now_ms: i64,
    ) -> io::Result<()> {
        let batch = batch::marker_batch(producer_id, producer_epoch, marker, now_ms);
        let header = Header::parse(&batch).expect("a marker has a valid header");
        self.append(header, batch, now_ms)?;
        Ok(())
    }

    /// Takes a batch into the index.
    fn note(&mut self, header: &Header, marker: Option<Marker>, place: Place, now_ms: i64) {
        assert!(
            header.base_offset >= self.end,
            "offsets only grow: {} after {}",
            header.base_offset,
            self.end
        );
        if self.entries.is_empty() && self.bytes == 0 && self.end < header.base_offset {
            self.start = self.start.max(header.base_offset);
        }
        if header.leader_epoch > self.leader_epoch() {
            self.epochs.push((header.leader_epoch, header.base_offset));
        }
        self.producers.note(header, marker, now_ms);
        self.entries.push_back(Entry {
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            bytes: header.bytes,
            max_timestamp: header.max_timestamp,
            place,
        });
        self.bytes += header.bytes as u64;
        self.end = header.last_offset() + 1;
    }

    /// Batches from the one that holds `offset`, up to `bytes_max`, none that starts at or
    /// above `below`. At least one batch is taken if `at_least_one`.
    pub(crate) fn read(
        &self,
        offset: i64,
        below: i64,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Read {
        let first = self
            .entries
            .partition_point(|entry| entry.last_offset < offset);
        let mut bytes = 0;
        let mut end = offset;
        let mut parts = Vec::new();
        let mut position = None;
        for entry in self.entries.range(first..) {
            let force = at_least_one && bytes == 0;
            if entry.base_offset >= below || (bytes + entry.bytes > bytes_max && !force) {
                break;
            }
            match &entry.place {
                Place::Memory(batch) => parts.push(batch.clone()),
                Place::File(start) => {
                    position.get_or_insert(*start);
                }
            }
            bytes += entry.bytes;
            end = entry.last_offset + 1;
        }
        let slice = match (position, self.store.file()) {
            (Some(position), Some(file)) => Slice::File {
                file: file.clone(),
                position,
                bytes,
            },
            _ => Slice::Memory(parts),
        };
        Read { slice, bytes, end }
    }

    /// How many bytes a read would find, looking no further than `enough`.
    pub(crate) fn available(&self, offset: i64, below: i64, enough: usize) -> usize {
        let first = self
            .entries
            .partition_point(|entry| entry.last_offset < offset);
        let mut bytes = 0;
        for entry in self.entries.range(first..) {
            if entry.base_offset >= below || bytes >= enough {
                break;
            }
            bytes += entry.bytes;
        }
        bytes
    }

    /// The first record that is not older than `timestamp`. Inside a compressed batch the
    /// first record of the batch stands for it: the broker does not unpack.
    pub(crate) fn find_time(&self, timestamp: i64, below: i64) -> io::Result<Option<Found>> {
        for entry in &self.entries {
            if entry.max_timestamp < timestamp || entry.base_offset >= below {
                continue;
            }
            let batch = self.load(entry)?;
            let Ok(header) = Header::parse(&batch) else {
                continue;
            };
            if header.is_control() {
                continue;
            }
            let found = if header.has_append_time() {
                Some((header.base_offset, header.max_timestamp))
            } else if header.is_compressed() {
                Some((header.base_offset, header.base_timestamp.max(timestamp)))
            } else {
                batch::find_time(&header, &batch, timestamp)
            };
            if let Some((offset, time)) = found {
                return Ok(Some((offset.max(self.start), time)));
            }
        }
        Ok(None)
    }

    /// The record with the largest timestamp.
    pub(crate) fn find_latest(&self, below: i64) -> io::Result<Option<Found>> {
        let mut latest: Option<&Entry> = None;
        for entry in self
            .entries
            .iter()
            .filter(|entry| entry.base_offset < below)
        {
            if latest.is_none_or(|best| entry.max_timestamp > best.max_timestamp) {
                latest = Some(entry);
            }
        }
        let Some(entry) = latest else {
            return Ok(None);
        };
        let batch = self.load(entry)?;
        let exact = Header::parse(&batch).ok().and_then(|header| {
            if header.is_compressed() || header.has_append_time() {
                None
            } else {
                batch::find_time(&header, &batch, entry.max_timestamp)
            }
        });
        Ok(exact.or(Some((entry.last_offset, entry.max_timestamp))))
    }

    fn load(&self, entry: &Entry) -> io::Result<Bytes> {
        match (&entry.place, self.store.file()) {
            (Place::Memory(batch), _) => Ok(batch.clone()),
            (Place::File(position), Some(file)) => Slice::File {
                file: file.clone(),
                position: *position,
                bytes: entry.bytes,
            }
            .load(),
            (Place::File(_), None) => Err(io::Error::other("a file place without a file")),
        }
    }

    /// The end of a leader epoch, as a client asks that wants to know whether its position
    /// still belongs to this log: the largest epoch not above the asked one, and its end.
    pub(crate) fn epoch_end(&self, asked: i32) -> Option<(i32, i64)> {
        if asked == self.leader_epoch() {
            return Some((asked, self.end));
        }
        let above = self.epochs.partition_point(|(epoch, _)| *epoch <= asked);
        let (_, end) = self.epochs.get(above)?;
        let epoch = match above.checked_sub(1) {
            Some(below) => self.epochs[below].0,
            None => asked,
        };
        Some((epoch, *end))
    }

    /// Starts a new leader epoch at the end of the log.
    pub(crate) fn begin_epoch(&mut self, epoch: i32) {
        self.epochs
            .retain(|(known, start)| *start < self.end && *known < epoch);
        self.epochs.push((epoch, self.end));
    }

    /// Deletes what lies wholly below `start`. Offsets below it can no longer be read.
    pub(crate) fn delete_before(&mut self, start: i64) -> io::Result<()> {
        self.start = self.start.max(start);
        self.end = self.end.max(self.start);
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.last_offset < self.start)
        {
            if let Some(entry) = self.entries.pop_front() {
                self.store.release(entry.bytes);
                self.bytes -= entry.bytes as u64;
            }
        }
        self.producers.trim(self.start);
        let first_live = match (self.entries.front(), &self.store) {
            (
                Some(Entry {
                    place: Place::File(position),
                    ..
                }),
                _,
            ) => *position,
            (None, Store::File(store)) => store.end,
            _ => return Ok(()),
        };
        if let Some(moved) = self.store.compact(first_live)? {
            for entry in &mut self.entries {
                if let Place::File(position) = &mut entry.place {
                    *position -= moved;
                }
            }
        }
        Ok(())
    }

    /// Where the log should start so that it holds at most `bytes_max` bytes and nothing
    /// older than `oldest_ms`. `None` if it may stay as it is.
    pub(crate) fn retained_start(
        &self,
        bytes_max: Option<u64>,
        oldest_ms: Option<i64>,
    ) -> Option<i64> {
        let stable = self.stable_end();
        let mut bytes = self.bytes;
        let mut start = None;
        for entry in &self.entries {
            let too_many = bytes_max.is_some_and(|limit| bytes > limit);
            let too_old = oldest_ms
                .is_some_and(|oldest| entry.max_timestamp >= 0 && entry.max_timestamp < oldest);
            // What is not decided yet stays: a transaction must not lose its beginning.
            if !(too_many || too_old) || entry.last_offset >= stable {
                break;
            }
            bytes -= entry.bytes as u64;
            start = Some(entry.last_offset + 1);
        }
        start
    }

    pub(crate) fn expire_producers(&mut self, now_ms: i64) {
        self.producers.expire(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::recovery::Stopped;
    use super::store::Budget;
    use super::*;
    use crate::batch::test_batch;

    fn append(log: &mut Log, bytes: usize, timestamp: i64, transactional: bool) -> i64 {
        let batch = test_batch(bytes, timestamp, transactional);
        let header = Header::parse(&batch).expect("valid");
        log.append(header, batch, 0).expect("stored")
    }

    fn offsets(log: &Log, from: i64) -> Vec<i64> {
        let bytes = log
            .read(from, log.end(), usize::MAX, true)
            .slice
            .load()
            .expect("read");
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let header = Header::parse(rest).expect("valid");
            Header::parse_whole(&rest[..header.bytes]).expect("whole");
            found.push(header.base_offset);
            rest = &rest[header.bytes..];
        }
        found
    }

    #[test]
    fn a_file_gives_back_its_deleted_head_while_readers_go_on() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("orders-0.log");
        let open = |start| Log::open(&path, start, 0, Stopped::Crashed, 0).expect("open");
        let mut log = open(0);
        for _ in 0..80 {
            append(&mut log, 1 << 20, 0, false);
        }
        let before = log.read(3, 5, usize::MAX, true);
        log.delete_before(70).expect("deleted");
        assert_eq!(before.slice.load().expect("old file").len(), before.bytes);
        append(&mut log, 100, 0, false);
        let expected: Vec<i64> = (70..81).collect();
        assert_eq!(offsets(&log, 70), expected);
        let length = std::fs::metadata(&path).expect("file").len();
        assert_eq!(length, log.bytes());
        drop(log);
        let log = open(70);
        assert_eq!((log.start(), log.end()), (70, 81));
        assert_eq!(offsets(&log, 70), expected);
    }

    #[test]
    fn retention_never_takes_the_beginning_of_an_open_transaction() {
        let mut log = Log::new(Store::memory(Budget::new(1 << 20)), 0);
        append(&mut log, 100, 10, false);
        append(&mut log, 100, 20, true);
        append(&mut log, 100, 30, false);
        assert_eq!(log.stable_end(), 1);
        assert_eq!(log.retained_start(Some(0), None), Some(1));
        assert_eq!(log.retained_start(None, Some(1_000)), Some(1));
        assert_eq!(log.retained_start(None, Some(5)), None);
        log.append_marker(1, 0, Marker::Commit, 40).expect("stored");
        assert_eq!(log.retained_start(Some(0), None), Some(4));
        assert_eq!(log.retained_start(None, Some(25)), Some(2));
    }

    #[test]
    fn memory_is_given_back_when_batches_or_logs_go() {
        let budget = Budget::new(1_000);
        let mut log = Log::new(Store::memory(budget.clone()), 0);
        append(&mut log, 400, 0, false);
        assert!(!budget.fits(400));
        log.delete_before(1).expect("deleted");
        assert!(budget.fits(800));
        append(&mut log, 400, 0, false);
        drop(log);
        assert!(budget.fits(800));
    }
}
