//! `millrace bench`: how fast a block is, beside two yardsticks of the same run: a plain copy
//! from topic to topic by librdkafka, and what the app takes from a load generator.
//!
//! Invariant: broker, app and both proxies are processes of their own, so what the proxies cost
//! is read from the kernel, and nothing of the bench runs in them.

pub mod children;
pub mod copy;
pub mod drain;
pub mod echo;
pub mod load;
pub mod report;
