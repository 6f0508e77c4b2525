//! Releases: who may answer which partition, and how that changes without losing, doubling or
//! reordering anything (release.md).
//!
//! [`role`] tells the owner of one partition what it is, from tokens alone; [`history`] tells who
//! answered a position; [`plan`] tells the controller what to do next. The forms that travel are
//! in [`crate::contract`]: tokens (`commit`), grants (`grant`), intents (`intent`).

pub mod history;
pub mod name;
pub mod plan;
pub mod role;

#[cfg(test)]
mod sample;
