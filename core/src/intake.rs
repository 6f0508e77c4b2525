//! The input proxy's machine: ledger, lanes, batcher, window, retries, breaker, lease, doubt
//! and the link to the output, composed.

pub mod io;
