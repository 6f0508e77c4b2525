//! Which record enters the producer next (P-3, P-4).

use std::time::Duration;

use super::event::{revoked_failure, split, ticket};
use super::lanes::{EventSlot, LaneSlot, UNORDERED};
use super::{Failed, Rebuild, Record, Store, Train, topics};
use crate::contract::publish::StoreClass;
use crate::limits::{TRAIN_BYTES_MAX, TRAIN_RECORDS_MAX};
use crate::time::Time;
use crate::token::Stamp;

/// How long a full queue is left alone when no delivery comes.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// How long a queue may be full although nothing is in it, before the record is to blame.
const FULL_AND_EMPTY_MAX: Duration = Duration::from_secs(1);

impl Store {
    /// The next record for the producer, if one may enter now.
    pub fn take(&mut self, now: Time) -> Option<Record> {
        if self.orphans > 0 || self.rebuild != Rebuild::No || self.purge_wanted {
            return None;
        }
        if self.exactly_once() && !self.transactions.takes_records() {
            return None;
        }
        if self.full_until.is_some_and(|until| now.boot < until) {
            return None;
        }
        self.full_until = None;
        loop {
            let mut train = match self.train.take() {
                Some(train) => train,
                None => {
                    let lane = self.lanes.next_ready()?;
                    self.lanes.at(lane).purges_before = self.purges;
                    Train {
                        lane,
                        topic: None,
                        records: 0,
                        bytes: 0,
                    }
                }
            };
            if let Some(record) = self.couple(now, &mut train) {
                self.train = Some(train);
                return Some(record);
            }
            self.lanes.settle(train.lane);
        }
    }

    /// The next record of a train; `None`: the train is complete.
    pub(super) fn couple(&mut self, now: Time, train: &mut Train) -> Option<Record> {
        loop {
            let slot = *self.lanes.at(train.lane).waiting.front()?;
            if self.event(slot).failed.is_some() {
                self.leave_queue(train.lane, slot);
                self.finish(slot);
                continue;
            }
            if let Err(failed) = self.permitted(now, slot) {
                self.refuse(slot, failed);
                continue;
            }
            if train.lane != UNORDERED
                && (train.bytes >= TRAIN_BYTES_MAX || train.records >= TRAIN_RECORDS_MAX)
            {
                return None;
            }
            let record = self.next_record(slot, now);
            if let Some(record) = &record
                && train.lane != UNORDERED
            {
                let (_, _, topic) = split(record.ticket);
                if *train.topic.get_or_insert(topic) != topic {
                    // A dead letter that is lost must not leave a later result behind: the
                    // next owner may answer its event with a result.
                    self.event(slot).held = Some(Box::new(record.clone()));
                    return None;
                }
            }
            let event = self.event(slot);
            let complete = event.view.record_count() == 0;
            if record.is_some() {
                event.open += 1;
                self.open += 1;
                self.lanes.at(train.lane).open += 1;
                if self.exactly_once() {
                    self.transactions.entered(now);
                }
            }
            if complete {
                self.leave_queue(train.lane, slot);
            }
            if let Some(record) = record {
                train.records += 1;
                train.bytes += topics::record_bytes(&record);
                return Some(record);
            }
            self.finish(slot);
        }
    }

    pub(super) fn leave_queue(&mut self, lane: LaneSlot, slot: EventSlot) {
        let first = self.lanes.at(lane).waiting.pop_front();
        assert_eq!(
            first,
            Some(slot),
            "only the first event of a lane leaves its queue"
        );
        self.event(slot).waiting = false;
    }

    /// P-4: stamp, generation and lease, against the clock of this very moment.
    pub(super) fn permitted(&mut self, now: Time, slot: EventSlot) -> Result<(), Failed> {
        let event = self.event(slot);
        let (source, frame) = (event.source, event.frame);
        let frame = self
            .answers
            .at(frame.expect("only events of the session wait"));
        let (stamp, generation) = (frame.stamp, frame.generation);
        // Exactly-once: brokers refuse a zombie's transaction (R4).
        if stamp != Stamp::Live || !self.rules.lease || self.exactly_once() {
            return Ok(());
        }
        let source = self.sources.at(source);
        if source.revoked.is_some_and(|gone| generation <= gone) {
            return Err(revoked_failure());
        }
        match source.lease {
            Some((known, until)) if generation <= known && now.boot < until => Ok(()),
            Some((known, _)) if generation > known => Err(Failed::new(
                StoreClass::Lease,
                "UnknownGeneration",
                format!(
                    "there is a lease of generation {known} on {}, none of {generation}",
                    source.partition
                ),
            )),
            Some(_) => Err(Failed::new(
                StoreClass::Lease,
                "LeaseEnded",
                format!(
                    "the lease on {} ended before the record left",
                    source.partition
                ),
            )),
            None => Err(Failed::new(
                StoreClass::Lease,
                "NoLease",
                format!("there is no lease on {}", source.partition),
            )),
        }
    }

    /// The next record of an event that no earlier attempt has stored.
    pub(super) fn next_record(&mut self, slot: EventSlot, now: Time) -> Option<Record> {
        let event = self.events[slot as usize]
            .as_mut()
            .expect("lanes name living events");
        let source = self.sources.list[event.source as usize].partition.number();
        let topics = &self.topics;
        if let Some(record) = event.held.take() {
            return Some(*record);
        }
        if event.taken == 0 {
            event.since = now.boot;
        }
        loop {
            let index = event.taken;
            let skipped = index < 64 && event.skip & (1 << index) != 0;
            let record = event.view.next_record(|view, record| {
                (!skipped).then(|| {
                    topics.record(view, &record, source, |topic| ticket(slot, index, topic))
                })
            })?;
            event.taken += 1;
            if let Some(record) = record {
                return Some(record);
            }
        }
    }

    /// The producer's queue is full: the record comes back and is handed out again later.
    /// It waits for a delivery, or for a moment: the client makes room a little later than it
    /// reports.
    pub fn refused(&mut self, now: Time, record: Record) {
        let (slot, _, _) = split(record.ticket);
        self.counters.queue_full += 1;
        self.open -= 1;
        self.train = None;
        let event = self.event(slot);
        event.open -= 1;
        event.held = Some(Box::new(record));
        let (lane, was_waiting) = (event.lane, event.waiting);
        event.waiting = true;
        let it = self.lanes.at(lane);
        it.open -= 1;
        if !was_waiting {
            it.waiting.push_front(slot);
        }
        self.full_until = Some(now.boot + FULL_PAUSE);
        if self.open > 0 {
            self.full_and_empty_since = None;
        } else {
            let since = *self.full_and_empty_since.get_or_insert(now.boot);
            if now.boot.saturating_sub(since) >= FULL_AND_EMPTY_MAX {
                self.full_and_empty_since = None;
                self.refuse(slot, Failed::new(
                    StoreClass::Misconfigured,
                    "QueueTooSmall",
                    "the producer's empty queue has no room for this record; raise queue.buffering.max.kbytes in the connection's properties",
                ));
            }
        }
        self.lanes.settle(lane);
    }
}
