//! A block on one machine, without a cluster: embedded broker, app, input and output.
//!
//! What `millrace dev`, the demo and the stories run on. Input and output run as tasks of this
//! process, or as the real binaries, for tests that kill them.
#![forbid(unsafe_code)]

pub mod block;

pub mod document;

pub mod process;

pub mod python;
