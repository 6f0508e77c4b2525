//! `millrace-publish/1`: the frames between input and output proxy (`publish.md`).

/// Output to input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {}
