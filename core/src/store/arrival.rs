//! What the input sends: leases, results, revocations.

use std::collections::VecDeque;
use std::time::Duration;

use super::answers::{FrameSlot, NewFrame};
use super::event::{Event, failure, held_back, revoked_failure};
use super::lanes::{EventSlot, LaneKey, UNORDERED};
use super::topics::Refusal;
use super::transactions::aborted;
use super::{Failed, Store, counters};
use crate::contract::publish::{Fault, Lease, ResultEvent, Results, Revoked};
use crate::limits::FRAME_BYTES_MAX;
use crate::time::Time;
use crate::token::Stamp;

impl Store {
    pub(super) fn lease(&mut self, lease: &Lease) {
        for partition in &lease.partitions {
            let source = self.sources.of(partition);
            let source = self.sources.at(source);
            // It comes after the revocation, so it is of a new tenure, and a group that began
            // anew counts its generations anew.
            source.revoked = source.revoked.filter(|gone| *gone < lease.generation);
            if source
                .lease
                .is_none_or(|(generation, _)| generation <= lease.generation)
            {
                source.lease = Some((lease.generation, lease.until));
            }
        }
    }

    pub(super) fn results(&mut self, now: Time, results: &Results) -> Result<(), Fault> {
        let fault = |code: &str, message: String| {
            Err(Fault {
                code: code.to_owned(),
                message,
            })
        };
        let bytes = results.frame_bytes() as u64;
        if self.answers.bytes() + bytes > self.settings.credit + FRAME_BYTES_MAX as u64 {
            return fault("Credit", "the input sent more than its credit".to_owned());
        }
        if let Some(session) = &mut self.session {
            if let Some(last) = session.last_seq
                && results.seq != last + 1
            {
                return fault(
                    "Sequence",
                    format!("frame {} follows frame {last}", results.seq),
                );
            }
            session.last_seq = Some(results.seq);
        }
        if self.exactly_once() {
            self.transaction_grows()?;
        }
        self.counters.frames += 1;
        self.counters.frame_bytes += bytes;
        self.counters.events += u64::from(results.len());
        let sources: Vec<u32> = results
            .partitions()
            .iter()
            .map(|p| self.sources.of(p))
            .collect();
        let frame = self.answers.open(NewFrame {
            seq: results.seq,
            stamp: results.stamp,
            generation: results.generation,
            arrived: now.boot,
            bytes,
            events: results.len(),
            push: None,
        });
        for event in results.events() {
            let source = sources[event.partition as usize];
            self.arrive(frame, results.stamp, source, event)?;
        }
        Ok(())
    }

    /// One event of a frame: answered at once, or queued in its lane.
    pub(super) fn arrive(
        &mut self,
        frame: FrameSlot,
        stamp: Stamp,
        source: u32,
        view: ResultEvent,
    ) -> Result<(), Fault> {
        let key = LaneKey {
            lane: view.lane,
            source,
            stamp,
        };
        // In a transaction nothing overtakes: either all of it is seen, or nothing.
        let ordered = view.lane != 0 && !self.exactly_once();
        if ordered && let Some(lane) = self.lanes.find_broken(key) {
            let position = view.position;
            let first = self.lanes.at(lane).owed.first().copied();
            if self.rules.owed
                && view.record_count() > 0
                && first.is_some_and(|first| first < position)
            {
                self.lanes.owe(lane, position);
                self.fail_at_once(frame, view.index, held_back());
                return Ok(());
            }
            self.lanes.pay(lane, position);
            self.lanes.settle(lane);
        }
        if view.record_count() == 0 {
            self.counters.stored += 1;
            self.answers.stored(frame, view.index);
            return Ok(());
        }
        if self.exactly_once() && self.is_spoiled() {
            self.fail_at_once(frame, view.index, aborted());
            return Ok(());
        }
        match self.topics.check(stamp, &view) {
            Ok(()) => {}
            Err(Refusal::Event { failed, oversized }) => {
                if let Some(bytes) = oversized {
                    self.counters.oversized[counters::oversized_bucket(bytes)] += 1;
                }
                self.fail_at_once(frame, view.index, failed);
                self.spoil();
                return Ok(());
            }
            Err(Refusal::Frame(fault)) => return Err(fault),
        }
        let skip = self.stored_before(source, &view);
        let lane = if ordered {
            self.lanes.open(key)
        } else {
            UNORDERED
        };
        let whole = (view.record_count() > 1).then(|| view.clone());
        let slot = self.insert(Event {
            view,
            whole,
            frame: Some(frame),
            lane,
            source,
            open: 0,
            taken: 0,
            waiting: true,
            stored: skip,
            skip,
            since: Duration::ZERO,
            held: None,
            failed: None,
        });
        self.lanes.at(lane).waiting.push_back(slot);
        self.lanes.settle(lane);
        Ok(())
    }

    pub(super) fn revoked(&mut self, revoked: &Revoked) {
        if self.exactly_once() {
            self.spoil_by_revocation();
            return;
        }
        let mut gone = Vec::with_capacity(revoked.partitions.len());
        for partition in &revoked.partitions {
            let number = self.sources.of(partition);
            let source = self.sources.at(number);
            source.revoked = source.revoked.max(Some(revoked.generation));
            if source
                .lease
                .is_some_and(|(generation, _)| generation <= revoked.generation)
            {
                source.lease = None;
            }
            gone.push(number);
        }
        self.calls_revoked(revoked.generation, &gone);
        for lane in self.lanes.of_sources(|source| gone.contains(&source)) {
            let waiting = std::mem::take(&mut self.lanes.at(lane).waiting);
            let mut kept = VecDeque::with_capacity(waiting.len());
            for slot in waiting {
                if self.is_revoked(slot) {
                    let event = self.event(slot);
                    event.waiting = false;
                    event.fail(revoked_failure());
                    self.finish(slot);
                } else {
                    kept.push_back(slot);
                }
            }
            let it = self.lanes.at(lane);
            it.waiting = kept;
            if it.source().is_some() {
                // Whoever owns the partition next begins at the committed position.
                self.lanes.forgive(lane);
            }
            self.lanes.settle(lane);
        }
    }

    pub(super) fn is_revoked(&mut self, slot: EventSlot) -> bool {
        let event = self.event(slot);
        let (source, frame) = (event.source, event.frame);
        let Some(frame) = frame else { return false };
        let frame = self.answers.at(frame);
        let (stamp, generation) = (frame.stamp, frame.generation);
        stamp == Stamp::Live
            && self
                .sources
                .at(source)
                .revoked
                .is_some_and(|gone| generation <= gone)
    }

    pub(super) fn fail_at_once(&mut self, frame: FrameSlot, index: u32, failed: Failed) {
        self.counters.failed += 1;
        self.answers.failed(frame, failure(index, failed));
    }
}
