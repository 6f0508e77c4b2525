//! Millrace: cli.
