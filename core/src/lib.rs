//! Every decision of Millrace about an event, a position or a release, as pure machines.
//!
//! No async, no IO, no clock, no randomness, no environment, no logging: times and seeds come
//! in, effects come out. Read the modules in the order in which they are listed.
#![forbid(unsafe_code)]

pub mod position;

pub mod event;

pub mod time;

pub mod skew;

pub mod limits;

mod random;

pub mod rules;

pub mod ledger;

pub mod lanes;

pub mod batcher;

pub mod window;

pub mod outcome;

pub mod fate;

pub mod breaker;

pub mod lease;

pub mod scaling;

pub mod identity;

pub mod token;

pub mod auth_token;

pub mod seeding;

pub mod intake;

pub mod contract;

pub mod release;

pub mod store;

pub mod evidence;
