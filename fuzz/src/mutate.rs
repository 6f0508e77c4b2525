//! A small seeded mutator, so that `make test` can throw the same garbage twice.
//!
//! Invariant: the same seed and the same corpus give the same inputs on every machine.

use std::path::Path;

/// Bytes that parsers trip over.
const ODD: &[&[u8]] = &[
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0",
    b"\0\0\0\x80",
    b"-1",
    b"9223372036854775808",
    b"1e999",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"[[[[[[[[",
    b"{\"",
    b";;",
    b"=",
    b"\xf0\x9f\x98\x80",
    b"\xc3(",
    b"\r\n",
    b"null",
];

/// Longest input that mutation lets grow.
const LENGTH_MAX: usize = 16 << 10;

/// Makes inputs from a corpus.
pub struct Mutator {
    state: u64,
    corpus: Vec<Vec<u8>>,
}

impl Mutator {
    /// From these inputs.
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "nothing to begin with");
        Self {
            state: seed,
            corpus,
        }
    }

    /// From the files of `fuzz/corpus/TARGET`, which also are the first inputs.
    pub fn of_folder(seed: u64, folder: &Path) -> Self {
        let entries = std::fs::read_dir(folder).expect("a corpus");
        let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
        // Folders have no order of their own.
        paths.sort();
        let read = |path| std::fs::read(path).expect("a readable file");
        Self::new(seed, paths.into_iter().map(read).collect())
    }

    /// The corpus as it is.
    pub fn corpus(&self) -> Vec<Vec<u8>> {
        self.corpus.clone()
    }

    /// The next input: one of the corpus, changed in one to eight places.
    pub fn next_input(&mut self) -> Vec<u8> {
        let index = self.below(self.corpus.len());
        let mut input = self.corpus[index].clone();
        for _ in 0..=self.below(8) {
            self.change(&mut input);
        }
        input.truncate(LENGTH_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let until = (at + 1 + self.below(16)).min(input.len());
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => input.truncate(at),
            3 if at < until => drop(input.drain(at..until)),
            4 if at < until => {
                let twice = input[at..until].to_vec();
                input.splice(at..at, twice);
            }
            5 => {
                let odd = ODD[self.below(ODD.len())];
                input.splice(at..at, odd.iter().copied());
            }
            6 => {
                let odd = ODD[self.below(ODD.len())];
                let until = (at + odd.len()).min(input.len());
                input.splice(at..until, odd.iter().copied());
            }
            _ => {
                let other = self.below(self.corpus.len());
                let from = self.below(self.corpus[other].len() + 1);
                let tail = self.corpus[other][from..].to_vec();
                input.splice(at.., tail);
            }
        }
    }

    fn byte(&mut self) -> u8 {
        self.next_number().to_le_bytes()[7]
    }

    fn below(&mut self, end: usize) -> usize {
        let wide = u64::try_from(end).expect("a small number");
        usize::try_from(self.next_number() % wide).expect("below a usize")
    }

    fn next_number(&mut self) -> u64 {
        // SplitMix64: every seed will do.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
