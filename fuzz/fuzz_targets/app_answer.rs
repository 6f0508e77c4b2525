//! `cargo +nightly fuzz run app_answer`; what it claims stands in `src/core.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::core::app_answer(data));
