//! Millrace: input.
