//! Who may answer live on a partition.

/// What the input puts on every result (R10).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stamp {
    /// Answers of the release that holds the token.
    Live,
    /// Answers of a candidate, in silence.
    Shadow,
    /// Green asked again, to measure noise (J4).
    Baseline,
}
