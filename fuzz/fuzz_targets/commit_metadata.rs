//! `cargo +nightly fuzz run commit_metadata`; what it claims stands in `src/core.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::core::commit_metadata(data));
