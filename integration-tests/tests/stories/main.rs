//! What Millrace promises its users, told as stories: a world of real processes, something that
//! happens in it, one claim. Each runs on the embedded broker; `stories_kafka.rs` tells those
//! that depend on the broker on a real Kafka.

mod agogosml;
mod answers;
mod app_faults;
mod batches;
mod brokers;
mod clocks;
mod cloud_events;
mod ends;
mod failures;
mod laptop;
mod logs;
mod once;
mod outages;
mod parked;
mod pod_crashes;
mod pushes;
mod schemas;
mod sizes;
mod slow;
mod soak;
mod starts;
mod taps;
mod transports;
