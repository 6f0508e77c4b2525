//! Tests of the block document as a whole.
