//! Millrace: sim.
