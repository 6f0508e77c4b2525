//! Drives the broker over TCP with requests built by hand, so that each rule is shown on the
//! wire and not through the patience of a client library.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop at once"
)]

mod admin;
mod client;
mod faults;
mod frames;
mod groups;
mod offsets;
mod records;
mod recovery;
mod transactions;
