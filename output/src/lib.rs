//! Millrace: output.
