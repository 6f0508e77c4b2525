//! Tracks which events of one partition are in flight, terminal, or safe to commit past.
//!
//! Invariant: the watermark never passes an event that is not terminal (D-W1).
//! Invariant: events enter in position order and become terminal in any order.
//! Invariant: what a previous owner finished above its commit is not delivered again (D-W5).

use std::collections::{BTreeSet, VecDeque};

use crate::limits;
use crate::position::Position;
use crate::rules::{Rule, Rules};

/// The events of one partition between the watermark and the last one delivered. `T` is what
/// the owner keeps per event while it is in flight.
#[derive(Debug)]
pub struct Ledger<T> {
    /// From the first event that is not terminal on; `None` is terminal.
    entries: VecDeque<(Position, Option<T>)>,
    /// Number of the front entry.
    first: Number,
    /// Behind the last event delivered, or where the partition started.
    end: Position,
    /// Terminal positions of a previous owner that were not delivered to us yet.
    remembered: BTreeSet<Position>,
    in_flight: usize,
    rules: Rules,
}

/// Counts the events of a ledger in the order in which they entered.
pub type Number = u64;

/// What became of a delivered event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// It is in flight under this number.
    New(Number),
    /// A previous owner finished it already (D-W5).
    Remembered,
}

impl<T> Ledger<T> {
    /// A ledger that starts at the committed position, with what the previous owner finished
    /// above it: bit `i` of `terminal` says that `start + i` is terminal (E1, key `d`).
    pub fn new(start: Position, terminal: &[u8], rules: Rules) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            end: start,
            remembered: bits(terminal).map(|i| start.plus(i)).collect(),
            in_flight: 0,
            rules,
        }
    }

    /// Takes the next event of the log. Positions only rise; gaps are normal.
    pub fn deliver(&mut self, position: Position, event: T) -> Delivered {
        assert!(
            position >= self.end,
            "{position} was delivered after {}",
            self.end
        );
        self.end = position.next();
        if self.remembered.remove(&position) {
            self.entries.push_back((position, None));
            self.settle();
            return Delivered::Remembered;
        }
        self.in_flight += 1;
        self.entries.push_back((position, Some(event)));
        Delivered::New(self.first + self.entries.len() as u64 - 1)
    }

    /// The event in flight under this number; `None` once it is terminal.
    pub fn get(&self, number: Number) -> Option<&T> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get(index)?.1.as_ref()
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, number: Number) -> Option<&mut T> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)?.1.as_mut()
    }

    /// Makes an event terminal; `None` if it was already.
    pub fn finish(&mut self, number: Number) -> Option<T> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let event = self.entries.get_mut(index)?.1.take()?;
        self.in_flight -= 1;
        self.settle();
        Some(event)
    }

    /// The lowest position that is not terminal: the only thing that is ever committed.
    pub fn watermark(&self) -> Position {
        if !self.rules.hold(Rule::ContiguousWatermark) {
            let last = self.entries.iter().rev().find(|(_, event)| event.is_none());
            return last.map_or(self.front(), |(position, _)| position.next());
        }
        self.front()
    }

    /// The watermark as it will be when the events that are `done` are terminal.
    pub fn watermark_as_if(&self, done: impl Fn(&T) -> bool) -> Position {
        if !self.rules.hold(Rule::ContiguousWatermark) {
            return self.watermark();
        }
        self.entries
            .iter()
            .find(|(_, event)| event.as_ref().is_some_and(|event| !done(event)))
            .map_or(self.end, |(position, _)| *position)
    }

    /// Behind the last event delivered.
    pub fn end(&self) -> Position {
        self.end
    }

    /// How many events are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The events in flight, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (Number, Position, &T)> {
        self.entries
            .iter()
            .zip(self.first..)
            .filter_map(|((position, event), number)| Some((number, *position, event.as_ref()?)))
    }

    /// The number of the event in flight at this position.
    pub fn find(&self, position: Position) -> Option<Number> {
        let index = self
            .entries
            .binary_search_by_key(&position, |(position, _)| *position)
            .ok()?;
        self.entries[index].1.as_ref()?;
        Some(self.first + index as u64)
    }

    /// Terminal positions at and above the watermark as a bitmap (E1, key `d`), without
    /// trailing zero bytes. At most `WINDOW_POSITIONS_MAX` bits (D-W6).
    pub fn terminal_bitmap(&self) -> Vec<u8> {
        self.terminal_bitmap_as_if(|_| false)
    }

    /// The same when the events that are `done` are terminal.
    pub fn terminal_bitmap_as_if(&self, done: impl Fn(&T) -> bool) -> Vec<u8> {
        let watermark = self.watermark_as_if(&done);
        let mut bitmap = Vec::new();
        let finished = self
            .entries
            .iter()
            .filter(|(_, event)| event.as_ref().is_none_or(&done))
            .map(|(position, _)| *position);
        for position in finished.chain(self.remembered.iter().copied()) {
            let bit = position.since(watermark);
            if position < watermark || bit >= limits::WINDOW_POSITIONS_MAX {
                continue;
            }
            let byte = usize::try_from(bit / 8).expect("the window is small");
            if bitmap.len() <= byte {
                bitmap.resize(byte + 1, 0);
            }
            bitmap[byte] |= 1 << (bit % 8);
        }
        bitmap
    }

    /// Gives up the positions below `to`: the log lost them (D-G10). Events in flight stay.
    pub fn skip_lost(&mut self, to: Position) {
        self.end = self.end.max(to);
        self.remembered = self.remembered.split_off(&to);
    }

    fn front(&self) -> Position {
        self.entries
            .front()
            .map_or(self.end, |(position, _)| *position)
    }

    fn settle(&mut self) {
        while let Some((_, None)) = self.entries.front() {
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

/// The indices of the bits that are set, least significant first.
fn bits(bitmap: &[u8]) -> impl Iterator<Item = u64> {
    (0u64..).zip(bitmap).flat_map(|(byte, bits)| {
        (0..8)
            .filter(move |i| bits >> i & 1 == 1)
            .map(move |i| byte * 8 + i)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Position {
        Position::new(offset)
    }

    fn number(delivered: Delivered) -> Number {
        match delivered {
            Delivered::New(number) => number,
            Delivered::Remembered => panic!("the event was remembered"),
        }
    }

    #[test]
    fn d_w1_the_watermark_waits_for_the_slowest_event() {
        let mut ledger = Ledger::new(at(5), &[], Rules::ALL);
        let a = number(ledger.deliver(at(5), 'a'));
        let b = number(ledger.deliver(at(6), 'b'));
        assert_eq!(ledger.finish(b), Some('b'));
        assert_eq!(ledger.watermark(), at(5));
        assert_eq!(ledger.terminal_bitmap(), [0b10]);
        assert_eq!(ledger.finish(a), Some('a'));
        assert_eq!(ledger.watermark(), at(7));
        assert!(ledger.terminal_bitmap().is_empty());
        assert_eq!(ledger.finish(a), None);
    }

    #[test]
    fn t4_gaps_in_the_log_are_no_holes() {
        let mut ledger = Ledger::new(at(5), &[], Rules::ALL);
        let a = number(ledger.deliver(at(9), 'a'));
        assert_eq!(ledger.watermark(), at(9));
        ledger.finish(a);
        assert_eq!(ledger.watermark(), at(10));
    }

    #[test]
    fn d_w5_remembered_events_are_skipped_and_stay_remembered_until_delivered() {
        let mut ledger = Ledger::new(at(5), &[0b110], Rules::ALL);
        assert_eq!(ledger.terminal_bitmap(), [0b110]);
        let a = number(ledger.deliver(at(5), 'a'));
        assert_eq!(ledger.deliver(at(6), 'b'), Delivered::Remembered);
        assert_eq!(ledger.terminal_bitmap(), [0b110]);
        ledger.finish(a);
        assert_eq!(ledger.watermark(), at(7));
        assert_eq!(ledger.terminal_bitmap(), [0b1]);
        assert_eq!(ledger.deliver(at(7), 'c'), Delivered::Remembered);
        assert_eq!(ledger.watermark(), at(8));
    }

    #[test]
    fn an_event_is_found_by_its_position_while_it_is_in_flight() {
        let mut ledger = Ledger::new(at(0), &[], Rules::ALL);
        let a = number(ledger.deliver(at(3), 'a'));
        let b = number(ledger.deliver(at(8), 'b'));
        assert_eq!(ledger.find(at(8)), Some(b));
        assert_eq!(ledger.find(at(4)), None);
        ledger.finish(b);
        assert_eq!(ledger.find(at(8)), None);
        assert_eq!(
            ledger
                .iter()
                .map(|(n, p, e)| (n, p, *e))
                .collect::<Vec<_>>(),
            [(a, at(3), 'a')]
        );
    }
}
