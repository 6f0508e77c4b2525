//! The hand-over between releases as finite worlds, in which every possible order of steps can be
//! tried: [`owners`] for what pods and brokers do to one partition, [`cluster`] for what the
//! planner does to a whole block.
//!
//! Both call the functions that ship (`role`, the codecs, `plan`); only brokers, pods and people
//! are modelled. The tests explore them and print how many states they saw.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod explore;
pub mod owners;
