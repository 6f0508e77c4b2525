//! Millrace: service.
