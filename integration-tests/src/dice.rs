//! Numbers that look random and come again for the same seed.

/// A reproducible sequence of numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Of this seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Of a seed that nobody has chosen.
    pub fn any_seed() -> u64 {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(clock.expect("after 1970").subsec_nanos())
    }

    /// Seeded by `MILLRACE_STORY_SEED`, else by the clock; printed, to be used again.
    pub fn of_story() -> Self {
        let seed = std::env::var("MILLRACE_STORY_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(Self::any_seed);
        println!("MILLRACE_STORY_SEED={seed}");
        Self(seed)
    }

    /// The next number, below this one.
    pub fn below(&mut self, end: u64) -> u64 {
        // SplitMix64: every seed will do.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}
