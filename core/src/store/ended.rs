//! What becomes of records that were in the producer, and of their events.

use super::event::{Event, Partly, digest, failure, held_back, split};
use super::lanes::{EventSlot, UNORDERED};
use super::{Ended, Failed, Rebuild, Store};
use crate::contract::publish::{ResultEvent, StoreClass};
use crate::limits::PARTLY_STORED_MAX;
use crate::time::Time;

impl Store {
    /// Records ended in the producer, in the order of their reports.
    pub fn ended(&mut self, now: Time, records: impl IntoIterator<Item = (u64, Ended)>) {
        for (ticket, end) in records {
            self.record_ended(now, ticket, end);
        }
        let mut suspects = std::mem::take(&mut self.suspects);
        for lane in suspects.drain(..) {
            // Records behind the failed one could still be stored, and would overtake it.
            let it = self.lanes.at(lane);
            if it.open > 0 && it.purges_before == self.purges && self.rules.purge {
                self.purge_wanted = true;
            }
        }
        self.suspects = suspects;
    }

    pub(super) fn record_ended(&mut self, now: Time, ticket: u64, end: Ended) {
        let (slot, record, topic) = split(ticket);
        self.full_until = None;
        self.full_and_empty_since = None;
        let event = self.event(slot);
        let since = event.since;
        let failed = match end {
            Ended::Stored => {
                if record < 64 {
                    event.stored |= 1 << record;
                }
                self.topics.stored(topic, now.boot.saturating_sub(since));
                None
            }
            Ended::Failed(failed) => Some(failed.of_record(record)),
            Ended::Fatal(failed) => {
                let with_the_session = event.frame.is_some();
                self.producer_lost(with_the_session);
                Some(failed.of_record(record))
            }
        };
        let failed = failed.map(|failed| self.as_told(failed));
        if let Some(failed) = &failed {
            self.topics.failed(topic, failed.comes_again());
        }
        self.left_producer(slot, failed);
    }

    /// A record of the event is not in the producer any more.
    pub(super) fn left_producer(&mut self, slot: EventSlot, failed: Option<Failed>) {
        self.open -= 1;
        let event = self.event(slot);
        event.open -= 1;
        let lane = event.lane;
        if event.frame.is_none() {
            self.orphan_ended(slot, failed.as_ref());
            return;
        }
        self.lanes.at(lane).open -= 1;
        if let Some(failed) = failed {
            if failed.comes_again() && lane != UNORDERED {
                self.suspects.push(lane);
            }
            self.refuse(slot, failed);
        } else {
            self.finish(slot);
        }
        self.lanes.settle(lane);
    }

    /// A record of a session that is over: a later one of its train must not be stored after
    /// it has failed.
    pub(super) fn orphan_ended(&mut self, slot: EventSlot, failed: Option<&Failed>) {
        self.orphans -= 1;
        // A transaction that is aborted purges by itself.
        let purges = self.rules.purge && !self.exactly_once();
        if failed.is_some_and(Failed::comes_again) && self.orphans > 0 && purges {
            self.purge_wanted = true;
        }
        if self.event(slot).open == 0 {
            self.events[slot as usize] = None;
            self.free.push(slot);
        }
    }

    /// Fails an event. If it will come again, everything behind it in its lane fails with it.
    pub(super) fn refuse(&mut self, slot: EventSlot, failed: Failed) {
        let event = self.event(slot);
        let (lane, position) = (event.lane, event.view.position);
        let comes_again = failed.comes_again();
        event.fail(failed);
        // Whoever owns a revoked partition next does not send this event again.
        let breaks = comes_again && lane != UNORDERED && !self.is_revoked(slot);
        if breaks {
            self.lanes.owe(lane, position);
            let mut waiting = std::mem::take(&mut self.lanes.at(lane).waiting);
            for behind in waiting.drain(..) {
                let event = self.event(behind);
                event.waiting = false;
                if behind == slot {
                    continue;
                }
                let position = event.view.position;
                event.fail(held_back());
                self.lanes.owe(lane, position);
                self.finish(behind);
            }
            self.lanes.at(lane).waiting = waiting;
        } else if self.event(slot).waiting && self.lanes.at(lane).waiting.front() == Some(&slot) {
            self.leave_queue(lane, slot);
        }
        self.finish(slot);
        // Also when other records of the event are still in the producer.
        self.spoil();
    }

    /// Answers an event if nothing of it is open or to come.
    pub(super) fn finish(&mut self, slot: EventSlot) {
        let event = self.event(slot);
        if event.open > 0 || event.waiting {
            return;
        }
        let done =
            event.failed.is_some() || (event.view.record_count() == 0 && event.held.is_none());
        assert!(done, "an event with records to come waits in its lane");
        let Some(mut event) = self.events[slot as usize].take() else {
            return;
        };
        self.free.push(slot);
        let Some(frame) = event.frame else { return };
        match event.failed.take() {
            None => {
                self.counters.stored += 1;
                self.answers.stored(frame, event.view.index);
            }
            Some(failed) => {
                if failed.comes_again() && event.stored != 0 && !self.exactly_once() {
                    self.remember(&event);
                }
                self.counters.failed += 1;
                self.answers
                    .failed(frame, failure(event.view.index, *failed));
            }
        }
    }

    /// The producer was made anew: whatever the old one still held is unknown, and failed.
    pub fn rebuilt(&mut self) {
        self.rebuild = Rebuild::No;
        self.purge_wanted = false;
        self.full_until = None;
        self.full_and_empty_since = None;
        self.counters.rebuilds += 1;
        self.transaction_reset();
        let open: Vec<(EventSlot, u32)> = (0..)
            .zip(&self.events)
            .filter_map(|(slot, event)| {
                Some((slot, event.as_ref()?.open)).filter(|(_, open)| *open > 0)
            })
            .collect();
        for (slot, open) in open {
            for _ in 0..open {
                let failed = Failed::new(
                    StoreClass::Transient,
                    "ProducerRebuilt",
                    "the producer failed for good and was made anew",
                );
                let failed = self.as_told(failed);
                self.left_producer(slot, Some(failed));
            }
        }
        self.suspects.clear();
    }

    pub(super) fn remember(&mut self, event: &Event) {
        if self.partly.len() >= PARTLY_STORED_MAX {
            self.partly.clear();
        }
        let Some(whole) = &event.whole else { return };
        let digest = digest(whole);
        let key = (
            self.sources.at(event.source).partition.clone(),
            event.view.position,
        );
        self.partly.insert(
            key,
            Partly {
                digest,
                stored: event.stored,
            },
        );
    }

    /// The records of this event that an earlier attempt has stored already (D-O2).
    pub(super) fn stored_before(&mut self, source: u32, view: &ResultEvent) -> u64 {
        if self.partly.is_empty() {
            return 0;
        }
        let key = (self.sources.at(source).partition.clone(), view.position);
        match self.partly.remove(&key) {
            Some(partly) if partly.digest == digest(view) => partly.stored,
            _ => 0,
        }
    }
}
