//! Wire forms: versioned, golden-tested, and the only types that are serialized
//! (architecture invariant 13).

pub mod publish;
