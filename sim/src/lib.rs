//! Whole blocks on core alone: the real machines of input and output in a model world with
//! seeded faults and virtual time, under laws that are checked at every step.
//!
//! Read the modules in this order: what a seed means, what the world does, what must hold, how
//! seeds are searched, and what a failing one leaves behind.
#![forbid(unsafe_code)]

pub mod random;

pub mod scenario;

pub mod world;

pub mod laws;

pub mod search;

pub mod event_log;
