//! What bytes from outside must never be able to do: the targets of the fuzzers.
#![forbid(unsafe_code)]

pub mod broker;
pub mod core;
pub mod mutate;
