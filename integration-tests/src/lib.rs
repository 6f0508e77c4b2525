//! Millrace: integration-tests.
