//! What one partition knows of its producers: which batches it has already stored, and
//! which transactions are open.
//!
//! Invariant: a batch is stored once, in sequence, per producer id and epoch.
//! Invariant: nothing at or above the first offset of an open transaction is stable.

use std::collections::{BTreeMap, HashMap, VecDeque};

use kafka_protocol::ResponseError;

use crate::batch::{Header, Marker};
use crate::limits::{PRODUCER_BATCHES_MAX, PRODUCER_IDLE_MAX};

/// A transaction that was aborted: its records are skipped by readers of committed data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aborted {
    pub(crate) producer_id: i64,
    pub(crate) first_offset: i64,
    /// The offset of the marker.
    pub(crate) last_offset: i64,
}

/// Whether a batch is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sequence {
    New,
    /// It was stored before, here.
    Repeated {
        base_offset: i64,
    },
}

#[derive(Debug)]
struct Stored {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
}

#[derive(Debug)]
struct Producer {
    epoch: i16,
    batches: VecDeque<Stored>,
    open_since: Option<i64>,
    seen_ms: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Producers {
    known: HashMap<i64, Producer>,
    /// First offset of each open transaction, to its producer.
    open: BTreeMap<i64, i64>,
    /// In the order of their markers.
    aborted: VecDeque<Aborted>,
}

impl Producers {
    /// Decides about a batch of an idempotent producer before it is stored.
    pub(crate) fn check(&self, header: &Header) -> Result<Sequence, ResponseError> {
        let Some(producer) = self.known.get(&header.producer_id) else {
            return Ok(Sequence::New);
        };
        if producer.epoch == header.producer_epoch {
            let repeated = producer.batches.iter().find(|stored| {
                stored.first_sequence == header.base_sequence
                    && stored.last_sequence == header.last_sequence()
            });
            if let Some(stored) = repeated {
                return Ok(Sequence::Repeated {
                    base_offset: stored.base_offset,
                });
            }
        }
        if header.producer_epoch < producer.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        // A new epoch starts at zero; so does a producer whose only trace is a marker.
        let last = if header.producer_epoch == producer.epoch {
            producer.batches.back().map(|stored| stored.last_sequence)
        } else {
            None
        };
        let expected = match last {
            None | Some(i32::MAX) => 0,
            Some(last) => last + 1,
        };
        if header.base_sequence != expected {
            return Err(ResponseError::OutOfOrderSequenceNumber);
        }
        if producer.open_since.is_some() && !header.is_transactional() {
            return Err(ResponseError::InvalidTxnState);
        }
        Ok(Sequence::New)
    }

    /// Takes note of a stored batch. `marker` is what a control batch says.
    pub(crate) fn note(&mut self, header: &Header, marker: Option<Marker>, now_ms: i64) {
        if header.producer_id < 0 {
            return;
        }
        if header.is_control() {
            self.note_marker(header, marker, now_ms);
            return;
        }
        let producer = self.known.entry(header.producer_id).or_insert(Producer {
            epoch: header.producer_epoch,
            batches: VecDeque::new(),
            open_since: None,
            seen_ms: now_ms,
        });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.seen_ms = now_ms;
        producer.batches.push_back(Stored {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
        });
        if producer.batches.len() > PRODUCER_BATCHES_MAX {
            producer.batches.pop_front();
        }
        if header.is_transactional() && producer.open_since.is_none() {
            producer.open_since = Some(header.base_offset);
            self.open.insert(header.base_offset, header.producer_id);
        }
    }

    fn note_marker(&mut self, header: &Header, marker: Option<Marker>, now_ms: i64) {
        let producer = self.known.entry(header.producer_id).or_insert(Producer {
            epoch: header.producer_epoch,
            batches: VecDeque::new(),
            open_since: None,
            seen_ms: now_ms,
        });
        if header.producer_epoch > producer.epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.seen_ms = now_ms;
        let Some(first_offset) = producer.open_since.take() else {
            return;
        };
        self.open.remove(&first_offset);
        if marker == Some(Marker::Abort) {
            self.aborted.push_back(Aborted {
                producer_id: header.producer_id,
                first_offset,
                last_offset: header.base_offset,
            });
        }
    }

    /// The first offset that a reader of committed data must not see yet.
    pub(crate) fn first_open(&self) -> Option<i64> {
        self.open.keys().next().copied()
    }

    /// Producers with an open transaction, and their epochs.
    pub(crate) fn open(&self) -> Vec<(i64, i16)> {
        self.open
            .values()
            .filter_map(|id| Some((*id, self.known.get(id)?.epoch)))
            .collect()
    }

    pub(crate) fn has_open(&self, producer_id: i64) -> bool {
        self.known
            .get(&producer_id)
            .is_some_and(|producer| producer.open_since.is_some())
    }

    /// Aborted transactions that touch offsets from `from` up to, not including, `to`,
    /// ordered by their first offset as readers expect.
    pub(crate) fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        let mut found: Vec<Aborted> = self
            .aborted
            .iter()
            .skip(self.aborted.partition_point(|one| one.last_offset < from))
            .filter(|one| one.first_offset < to)
            .copied()
            .collect();
        found.sort_by_key(|one| one.first_offset);
        found
    }

    /// Forgets what lies wholly below the start of the log.
    pub(crate) fn trim(&mut self, start: i64) {
        while self
            .aborted
            .front()
            .is_some_and(|one| one.last_offset < start)
        {
            self.aborted.pop_front();
        }
    }

    /// Forgets producers that have been silent for long.
    pub(crate) fn expire(&mut self, now_ms: i64) {
        let idle_max = i64::try_from(PRODUCER_IDLE_MAX.as_millis()).unwrap_or(i64::MAX);
        self.known.retain(|_, producer| {
            producer.open_since.is_some() || now_ms.saturating_sub(producer.seen_ms) < idle_max
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::marker_batch;

    fn data(
        base_offset: i64,
        epoch: i16,
        sequence: i32,
        records: i32,
        transactional: bool,
    ) -> Header {
        let template = marker_batch(1, epoch, Marker::Commit, 0);
        let mut header = Header::parse(&template).expect("valid");
        header.attributes = if transactional { 0b1_0000 } else { 0 };
        header.base_offset = base_offset;
        header.base_sequence = sequence;
        header.records = records;
        header.last_offset_delta = records - 1;
        header
    }

    fn mark(base_offset: i64, epoch: i16, marker: Marker) -> Header {
        let mut header = Header::parse(&marker_batch(1, epoch, marker, 0)).expect("valid");
        header.base_offset = base_offset;
        header
    }

    #[test]
    fn a_repeated_batch_is_answered_with_its_old_offset() {
        let mut producers = Producers::default();
        producers.note(&data(10, 0, 0, 3, false), None, 0);
        producers.note(&data(13, 0, 3, 2, false), None, 0);
        assert_eq!(
            producers.check(&data(0, 0, 0, 3, false)),
            Ok(Sequence::Repeated { base_offset: 10 })
        );
        assert_eq!(producers.check(&data(0, 0, 5, 1, false)), Ok(Sequence::New));
        assert_eq!(
            producers.check(&data(0, 0, 6, 1, false)),
            Err(ResponseError::OutOfOrderSequenceNumber)
        );
    }

    #[test]
    fn only_the_last_batches_are_recognised() {
        let mut producers = Producers::default();
        for number in 0..6 {
            producers.note(&data(i64::from(number), 0, number, 1, false), None, 0);
        }
        assert_eq!(
            producers.check(&data(0, 0, 0, 1, false)),
            Err(ResponseError::OutOfOrderSequenceNumber)
        );
        assert_eq!(
            producers.check(&data(0, 0, 1, 1, false)),
            Ok(Sequence::Repeated { base_offset: 1 })
        );
    }

    #[test]
    fn an_old_epoch_is_fenced_and_a_new_one_starts_at_zero() {
        let mut producers = Producers::default();
        producers.note(&data(0, 4, 0, 1, false), None, 0);
        assert_eq!(
            producers.check(&data(0, 3, 1, 1, false)),
            Err(ResponseError::InvalidProducerEpoch)
        );
        assert_eq!(
            producers.check(&data(0, 5, 1, 1, false)),
            Err(ResponseError::OutOfOrderSequenceNumber)
        );
        assert_eq!(producers.check(&data(0, 5, 0, 1, false)), Ok(Sequence::New));
    }

    #[test]
    fn an_open_transaction_holds_back_what_is_stable_until_its_marker() {
        let mut producers = Producers::default();
        producers.note(&data(5, 0, 0, 1, true), None, 0);
        producers.note(&data(6, 0, 1, 1, true), None, 0);
        assert_eq!(producers.first_open(), Some(5));
        producers.note(&mark(7, 0, Marker::Abort), Some(Marker::Abort), 0);
        assert_eq!(producers.first_open(), None);
        let aborted = Aborted {
            producer_id: 1,
            first_offset: 5,
            last_offset: 7,
        };
        assert_eq!(producers.aborted(0, 100), vec![aborted]);
        assert_eq!(producers.aborted(7, 100), vec![aborted]);
        assert_eq!(producers.aborted(8, 100), vec![]);
        assert_eq!(producers.aborted(0, 5), vec![]);
    }

    #[test]
    fn a_commit_leaves_no_aborted_transaction() {
        let mut producers = Producers::default();
        producers.note(&data(5, 0, 0, 1, true), None, 0);
        producers.note(&mark(6, 0, Marker::Commit), Some(Marker::Commit), 0);
        assert_eq!(producers.aborted(0, 100), vec![]);
    }
}
