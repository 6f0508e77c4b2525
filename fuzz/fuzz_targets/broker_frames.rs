//! `cargo +nightly fuzz run broker_frames`; what it claims stands in `src/broker.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::broker::broker_frames(data));
