//! `cargo +nightly fuzz run publish_frames`; what it claims stands in `src/core.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::core::publish_frames(data));
