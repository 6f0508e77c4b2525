//! `millrace check-app`: does an app keep its side of the contract (app-contract.md,
//! "Conformance")?
//!
//! The requests are built, and the answers judged, by the same code that the input proxy uses:
//! `core::contract::app`. What this module adds are the questions.

mod answers;
mod compare;
mod events;
mod findings;
mod forms;
mod parallel;
mod points;
mod probe;
mod push;
mod push_points;

pub use findings::{Finding, Findings, Verdict};
pub use points::{Unasked, Unreachable, check};
pub use probe::{Plan, Requests, Wanted, WantedContent};

#[cfg(test)]
mod tests;
