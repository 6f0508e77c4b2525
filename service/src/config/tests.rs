//! Documents and overrides, from text to a block.
