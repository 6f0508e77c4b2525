//! Proves from the logs alone what became of every event: nothing lost, nothing doubled,
//! nothing out of order (D-V3, release.md V6).
//!
//! The judge is pure: [`commands::audit`](crate::commands::audit) reads the topics and tells it
//! what it saw.

mod judge;
mod positions;
mod report;

pub use judge::{Judge, Ordering, Repeats, Rules, Settled, Source, Unanswered};
pub use report::{Counts, Offence, Offender, PartitionReport, Report};
