//! What Millrace promises its users, told as stories: a world of real processes, something that
//! happens in it, one claim. Each runs on the embedded broker; `stories_kafka.rs` tells those
//! that depend on the broker on a real Kafka.

mod answers;
mod app_faults;
mod cloud_events;
mod ends;
mod failures;
mod laptop;
mod once;
mod outages;
mod schemas;
mod sizes;
mod starts;
mod taps;
mod transports;
