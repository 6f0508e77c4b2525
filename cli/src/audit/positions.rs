//! Sets and maps of positions that cost little when positions are dense, as in a log.
//!
//! Invariant: memory follows the span of the positions, not the number of insertions: one bit
//! per position in a set, four bytes in a map.

use std::collections::BTreeMap;

use millrace_core::position::Position;

const WORDS: usize = 512;
const BITS: i64 = 64 * WORDS as i64;
const CELLS: usize = 4_096;

/// A set of positions: one bit each, in pages of 4 KiB.
#[derive(Default, Debug)]
pub(super) struct PositionSet {
    pages: BTreeMap<i64, Box<[u64; WORDS]>>,
}

impl PositionSet {
    /// Adds a position; tells whether it is new.
    pub(super) fn insert(&mut self, position: Position) -> bool {
        let (page, word, bit) = place(position);
        let page = self
            .pages
            .entry(page)
            .or_insert_with(|| Box::new([0; WORDS]));
        let new = page[word] & bit == 0;
        page[word] |= bit;
        new
    }

    /// Whether it is in the set.
    pub(super) fn contains(&self, position: Position) -> bool {
        let (page, word, bit) = place(position);
        self.pages
            .get(&page)
            .is_some_and(|page| page[word] & bit != 0)
    }

    /// All of them, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = Position> + '_ {
        self.pages.iter().flat_map(|(page, words)| {
            words.iter().zip(0_i64..).flat_map(move |(word, index)| {
                let base = page * BITS + index * 64;
                (0_i64..64)
                    .filter(move |bit| word >> bit & 1 == 1)
                    .map(move |bit| Position::new(base + bit))
            })
        })
    }
}

fn place(position: Position) -> (i64, usize, u64) {
    let offset = position.offset();
    let bit = index(offset, BITS);
    (offset.div_euclid(BITS), bit / 64, 1 << (bit % 64))
}

fn index(offset: i64, page: i64) -> usize {
    usize::try_from(offset.rem_euclid(page)).expect("a remainder below the page size fits")
}

/// A small number per position; 0 where none was set.
#[derive(Default, Debug)]
pub(super) struct PositionMap {
    pages: BTreeMap<i64, Box<[u32; CELLS]>>,
}

impl PositionMap {
    /// Sets the number of a position.
    pub(super) fn set(&mut self, position: Position, number: u32) {
        let (page, cell) = cell(position);
        self.pages
            .entry(page)
            .or_insert_with(|| Box::new([0; CELLS]))[cell] = number;
    }

    /// The number of a position.
    pub(super) fn get(&self, position: Position) -> u32 {
        let (page, cell) = cell(position);
        self.pages.get(&page).map_or(0, |page| page[cell])
    }
}

fn cell(position: Position) -> (i64, usize) {
    let cells = CELLS as i64;
    let offset = position.offset();
    (offset.div_euclid(cells), index(offset, cells))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap};

    proptest! {
        #[test]
        fn a_position_set_is_a_set(offsets in proptest::collection::vec(0_i64..200_000, 0..200)) {
            let (mut set, mut model) = (PositionSet::default(), BTreeSet::new());
            for offset in offsets {
                prop_assert_eq!(set.insert(Position::new(offset)), model.insert(offset));
                prop_assert!(set.contains(Position::new(offset)));
                prop_assert_eq!(set.contains(Position::new(offset + 1)), model.contains(&(offset + 1)));
            }
            prop_assert!(set.iter().map(Position::offset).eq(model));
        }

        #[test]
        fn a_position_map_is_a_map(sets in proptest::collection::vec((0_i64..20_000, any::<u32>()), 0..200)) {
            let (mut map, mut model) = (PositionMap::default(), HashMap::new());
            for (offset, number) in sets {
                map.set(Position::new(offset), number);
                model.insert(offset, number);
            }
            for offset in 0..20_000 {
                prop_assert_eq!(map.get(Position::new(offset)), model.get(&offset).copied().unwrap_or(0));
            }
        }
    }
}
