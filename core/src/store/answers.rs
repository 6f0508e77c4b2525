//! Which events of which frames have been answered, and what that gives back in credit (P-2).
//!
//! Invariant: each event of a frame is answered exactly once.

use std::time::Duration;

use super::pushes::PushId;
use crate::contract::publish::{StoreFailure, Stored};
use crate::token::Stamp;

/// Number of a frame in the store.
pub(super) type FrameSlot = u32;

/// A `Results` frame with events that are not answered yet.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) seq: u64,
    pub(super) stamp: Stamp,
    pub(super) generation: i32,
    pub(super) arrived: Duration,
    bytes: u64,
    /// It holds one result that the app pushed: nobody at the input waits for it.
    push: Option<PushId>,
    unanswered: u32,
    dirty: bool,
    /// A bit per event that was stored since the last reply.
    stored: Vec<u64>,
    /// Events that failed since the last reply.
    failures: Vec<StoreFailure>,
}

/// All frames that wait for answers.
#[derive(Debug, Default)]
pub(super) struct Answers {
    slots: Vec<Frame>,
    free: Vec<FrameSlot>,
    dirty: Vec<FrameSlot>,
    /// Pushed results that have ended.
    pushes: Vec<(PushId, Option<StoreFailure>)>,
    unanswered: u64,
    credit: u64,
    bytes: u64,
}

/// What a frame that is answered completely tells the counters.
pub(super) struct Finished {
    pub(super) arrived: Duration,
}

impl Answers {
    /// A frame of `events` events has come.
    pub(super) fn open(&mut self, frame: NewFrame) -> FrameSlot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Frame {
                seq: 0,
                stamp: Stamp::Live,
                generation: 0,
                arrived: Duration::ZERO,
                bytes: 0,
                push: None,
                unanswered: 0,
                dirty: false,
                stored: Vec::new(),
                failures: Vec::new(),
            });
            u32::try_from(self.slots.len() - 1).expect("credit bounds the frames far below 2^32")
        });
        let it = &mut self.slots[slot as usize];
        it.seq = frame.seq;
        it.stamp = frame.stamp;
        it.generation = frame.generation;
        it.arrived = frame.arrived;
        it.bytes = frame.bytes;
        it.push = frame.push;
        it.unanswered = frame.events;
        it.stored.clear();
        it.stored.resize((frame.events as usize).div_ceil(64), 0);
        it.failures.clear();
        // An empty frame is answered by an empty part, so that its credit comes back.
        it.dirty = true;
        self.dirty.push(slot);
        self.unanswered += u64::from(frame.events);
        self.bytes += frame.bytes;
        slot
    }

    pub(super) fn at(&self, slot: FrameSlot) -> &Frame {
        &self.slots[slot as usize]
    }

    /// Events that wait for an answer.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// Bytes of the frames that hold them.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An event's records are all stored.
    pub(super) fn stored(&mut self, slot: FrameSlot, event: u32) {
        self.slots[slot as usize].stored[event as usize / 64] |= 1 << (event % 64);
        self.answered(slot);
    }

    /// An event failed.
    pub(super) fn failed(&mut self, slot: FrameSlot, failure: StoreFailure) {
        self.slots[slot as usize].failures.push(failure);
        self.answered(slot);
    }

    fn answered(&mut self, slot: FrameSlot) {
        let frame = &mut self.slots[slot as usize];
        assert!(
            frame.unanswered > 0,
            "frame {} was answered twice",
            frame.seq
        );
        frame.unanswered -= 1;
        self.unanswered -= 1;
        if !frame.dirty {
            frame.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Takes what has to be told; `each` gets a part per frame, and the frame's end.
    pub(super) fn take(&mut self, mut each: impl FnMut(Stored, Option<Finished>)) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            let frame = &mut self.slots[slot as usize];
            frame.dirty = false;
            if let Some(push) = frame.push {
                if frame.unanswered == 0 {
                    self.pushes.push((push, frame.failures.pop()));
                    self.free.push(slot);
                }
                continue;
            }
            let part = Stored {
                seq: frame.seq,
                stored: ranges(&mut frame.stored),
                failures: std::mem::take(&mut frame.failures),
            };
            let finished = (frame.unanswered == 0).then_some(Finished {
                arrived: frame.arrived,
            });
            if finished.is_some() {
                self.credit += frame.bytes;
                self.bytes -= frame.bytes;
                self.free.push(slot);
            } else if part.stored.is_empty() && part.failures.is_empty() {
                continue;
            }
            each(part, finished);
        }
        self.dirty = dirty;
    }

    /// Takes the pushed results that [`Self::take`] has found ended, with what went wrong.
    pub(super) fn take_pushes(&mut self) -> Vec<(PushId, Option<StoreFailure>)> {
        std::mem::take(&mut self.pushes)
    }

    /// Bytes that the input may send again.
    pub(super) fn take_credit(&mut self) -> Option<u64> {
        let credit = std::mem::take(&mut self.credit);
        (credit > 0).then_some(credit)
    }
}

/// What is known of a frame when it comes.
pub(super) struct NewFrame {
    pub(super) seq: u64,
    pub(super) stamp: Stamp,
    pub(super) generation: i32,
    pub(super) arrived: Duration,
    pub(super) bytes: u64,
    pub(super) events: u32,
    pub(super) push: Option<PushId>,
}

/// The set bits as ranges; clears them.
fn ranges(bits: &mut [u64]) -> Vec<std::ops::Range<u32>> {
    let mut ranges: Vec<std::ops::Range<u32>> = Vec::new();
    let mut base = 0u32;
    for word in bits {
        let mut rest = std::mem::take(word);
        while rest != 0 {
            let start = rest.trailing_zeros();
            let length = (rest >> start).trailing_ones();
            rest &= u64::MAX.checked_shl(start + length).unwrap_or(0);
            let (start, end) = (base + start, base + start + length);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        base += 64;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_events_are_told_as_ranges_across_words() {
        #[track_caller]
        fn check(set: &[u32], expect: &[(u32, u32)]) {
            let mut bits = vec![0u64; 4];
            for bit in set {
                bits[*bit as usize / 64] |= 1 << (bit % 64);
            }
            let ranges = ranges(&mut bits);
            let ends: Vec<_> = ranges
                .iter()
                .map(|range| (range.start, range.end))
                .collect();
            assert_eq!(ends, expect);
            assert_eq!(bits, [0; 4]);
        }
        check(&[], &[]);
        check(&[0], &[(0, 1)]);
        check(&[63, 64], &[(63, 65)]);
        check(&[0, 1, 3, 255], &[(0, 2), (3, 4), (255, 256)]);
        check(&(0..256).collect::<Vec<_>>(), &[(0, 256)]);
    }
}
