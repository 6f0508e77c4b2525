//! The events of one partition that wait for another answer, and the memory of settled ones.
//!
//! Invariant: never more events or bytes than the room's size, but for one event alone.
//! Invariant: an event that is settled or has left never waits again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Completed, Counts, RoomSize, Side};
use crate::evidence::record::{Answer, Results};
use crate::limits::EVIDENCE_SETTLED_WORDS_MAX;
use crate::position::Position;

/// What an event costs besides its keys and values.
const EVENT_BYTES: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Room {
    waiting: BTreeMap<Position, Waiting>,
    bytes: usize,
    settled: Settled,
    lowest: Position,
    highest: Position,
    /// Different positions of which a record came and was not late.
    met: u64,
    counts: Counts,
}

/// One event. An answer is kept until everybody who needs it has come.
#[derive(Clone, Debug, Default)]
struct Waiting {
    green: Slot,
    blue: Slot,
    baseline: Slot,
}

/// One of its answers.
#[derive(Clone, Debug, Default)]
enum Slot {
    #[default]
    Missing,
    Here(Arc<Answer>),
    /// It came, and nobody needs it any more.
    Used,
}

impl Slot {
    fn here(&self) -> Option<&Arc<Answer>> {
        match self {
            Self::Here(answer) => Some(answer),
            Self::Missing | Self::Used => None,
        }
    }

    fn came(&self) -> bool {
        !matches!(self, Self::Missing)
    }
}

impl Room {
    pub(super) fn new(first: Position) -> Self {
        Self {
            waiting: BTreeMap::new(),
            bytes: 0,
            settled: Settled::default(),
            lowest: first,
            highest: first,
            met: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn take(
        &mut self,
        size: RoomSize,
        position: Position,
        side: Side,
        asked_again: bool,
        answer: Arc<Answer>,
    ) -> Completed {
        if !self.waiting.contains_key(&position) {
            if self.settled.holds(position) {
                self.counts.repeats += 1;
                return Completed::default();
            }
            if position < self.settled.floor {
                self.counts.late += 1;
                return Completed::default();
            }
            self.met += 1;
            self.lowest = self.lowest.min(position);
            self.highest = self.highest.max(position);
            self.bytes += EVENT_BYTES;
        }
        let event = self.waiting.entry(position).or_default();
        let slot = match side {
            Side::Green => &mut event.green,
            Side::Blue => &mut event.blue,
            Side::Baseline => &mut event.baseline,
        };
        if slot.came() {
            self.counts.repeats += 1;
            return Completed::default();
        }
        self.bytes += bytes(&answer);
        *slot = Slot::Here(answer);
        let completed = self.complete(position, asked_again);
        while self.waiting.len() > size.events
            || (self.bytes > size.bytes && self.waiting.len() > 1)
        {
            self.leave();
        }
        completed
    }

    /// Takes what is complete out of the event, and the event out of the room once all is.
    fn complete(&mut self, position: Position, asked_again: bool) -> Completed {
        let mut completed = Completed::default();
        let Some(event) = self.waiting.get_mut(&position) else {
            return completed;
        };
        let before = event.bytes();
        if let (Some(green), Some(blue)) = (event.green.here(), event.blue.here()) {
            completed.pair = Some((Arc::clone(green), Arc::clone(blue)));
            self.counts.paired += 1;
            event.blue = Slot::Used;
        }
        if let (Some(green), Some(again)) = (event.green.here(), event.baseline.here()) {
            completed.noise = Some((Arc::clone(green), Arc::clone(again)));
            self.counts.asked_again += 1;
            event.baseline = Slot::Used;
        }
        self.bytes -= before - event.bytes();
        let all =
            event.green.came() && event.blue.came() && (event.baseline.came() || !asked_again);
        if all && let Some(event) = self.waiting.remove(&position) {
            self.bytes -= event.bytes() + EVENT_BYTES;
            self.settled.insert(position);
        }
        completed
    }

    /// The event at the lowest position gives up waiting.
    fn leave(&mut self) {
        let Some((position, event)) = self.waiting.pop_first() else {
            return;
        };
        self.bytes -= event.bytes() + EVENT_BYTES;
        match (event.green.came(), event.blue.came()) {
            (true, false) => self.counts.left_with_green += 1,
            (false, true) => self.counts.left_with_blue += 1,
            _ => self.counts.left_without_baseline += 1,
        }
        self.settled.floor = self.settled.floor.max(position.next());
    }

    pub(super) fn counts(&self) -> Counts {
        let waits = |of: fn(&Waiting) -> bool| {
            let n = self.waiting.values().filter(|event| of(event)).count();
            n as u64
        };
        let span = match self.met {
            0 => 0,
            _ => self.highest.since(self.lowest) + 1,
        };
        Counts {
            waiting_for_blue: waits(|event| !event.blue.came()),
            waiting_for_green: waits(|event| !event.green.came()),
            gaps: span - self.met,
            ..self.counts
        }
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        let slots = [&self.green, &self.blue, &self.baseline];
        slots
            .iter()
            .filter_map(|slot| slot.here())
            .map(|answer| bytes(answer))
            .sum()
    }
}

fn bytes(answer: &Answer) -> usize {
    match &answer.results {
        Results::Cut(_) => EVENT_BYTES,
        Results::Whole(results) => results
            .iter()
            .map(|result| {
                let length = |part: &Option<bytes::Bytes>| part.as_ref().map_or(0, |p| p.len());
                let topic = result.topic.as_ref().map_or(0, String::len);
                EVENT_BYTES + topic + length(&result.key) + length(&result.value)
            })
            .sum(),
    }
}

/// The settled positions, in words of 64: those of the lowest words are forgotten when there are
/// too many.
#[derive(Clone, Debug)]
struct Settled {
    words: BTreeMap<i64, u64>,
    /// What is below and not waiting comes too late.
    floor: Position,
}

impl Default for Settled {
    fn default() -> Self {
        Self {
            words: BTreeMap::new(),
            floor: Position::START,
        }
    }
}

impl Settled {
    fn place(position: Position) -> (i64, u64) {
        let offset = position.offset();
        (offset.div_euclid(64), 1 << offset.rem_euclid(64))
    }

    fn holds(&self, position: Position) -> bool {
        let (word, bit) = Self::place(position);
        self.words.get(&word).is_some_and(|bits| bits & bit != 0)
    }

    fn insert(&mut self, position: Position) {
        let (word, bit) = Self::place(position);
        *self.words.entry(word).or_default() |= bit;
        if self.words.len() > EVIDENCE_SETTLED_WORDS_MAX
            && let Some((word, _)) = self.words.pop_first()
        {
            // What stood in this word and was not settled yet, and does not wait, comes too late.
            let end = Position::new(word.saturating_mul(64).saturating_add(64));
            self.floor = self.floor.max(end);
        }
    }
}
