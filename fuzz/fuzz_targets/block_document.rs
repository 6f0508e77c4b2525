//! `cargo +nightly fuzz run block_document`; what it claims stands in `src/core.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::core::block_document(data));
