//! What the stories under `tests/` are told with: a world of real processes around one block, an
//! app that follows a script, and a judge of its own. No shipped code.
//!
//! Nothing in here uses the code under test: records are written and read with rdkafka, ids are
//! computed anew, and the proxies are the real binaries.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test code that is compiled as a library so that every test binary shares it"
)]

pub mod acl;
pub mod app;
pub mod broker;
pub mod dice;
pub mod judge;
pub mod line;
pub mod load;
pub mod pod;
pub mod process;
pub mod pushes;
pub mod records;
pub mod scenario;
pub mod soak;
pub mod tales;
pub mod token_endpoint;
pub mod wait;
pub mod wall_clock;
pub mod world;

pub use app::{App, Asked, Out, Say};
pub use broker::BrokerKind;
pub use judge::Verdict;
pub use line::Line;
pub use pushes::{Posted, post};
pub use records::{Event, Record};
pub use scenario::scenario;
pub use wait::{patience, wait_until};
pub use wall_clock::WallClock;
pub use world::World;
