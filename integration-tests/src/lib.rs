//! What the stories under `tests/` share. No shipped code.
#![forbid(unsafe_code)]
