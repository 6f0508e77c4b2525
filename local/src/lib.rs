//! Millrace: local.
