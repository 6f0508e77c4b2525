//! What each long-running process needs besides its work: configuration, secrets, logs,
//! metrics, an admin port, an HTTP client, time, and an orderly end.
//!
//! This crate alone knows the environment, configuration files and the metrics library. It
//! decides nothing about events, positions or releases.
#![forbid(unsafe_code)]

pub mod config;

pub mod random;
pub mod secret;

pub mod time;

pub mod telemetry;

pub mod shutdown;

pub mod admin;

pub mod http;

pub mod schema;
