//! Where an event stands: its partition and its position there.
//!
//! Positions are opaque and ordered. Code outside the connectors never does arithmetic on
//! them except [`Position::next`], because gaps in a log are normal (rule T4).

use std::fmt;
use std::sync::Arc;

/// One partition of one topic. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Partition {
    topic: Arc<str>,
    number: i32,
}

impl Partition {
    /// The partition `number` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, number: i32) -> Self {
        Self {
            topic: topic.into(),
            number,
        }
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The topic's name, shared.
    pub fn shared_topic(&self) -> Arc<str> {
        Arc::clone(&self.topic)
    }

    /// The number within the topic.
    pub fn number(&self) -> i32 {
        self.number
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// The next offset to read in a partition. Ordered and opaque.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Position(i64);

impl Position {
    /// The first position that any log can have.
    pub const START: Self = Self(0);

    /// A position read from the wire.
    pub const fn new(offset: i64) -> Self {
        Self(offset)
    }

    /// The offset as the broker counts it.
    pub const fn offset(self) -> i64 {
        self.0
    }

    /// The position right behind the event at this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// This position plus a number of positions; used only for windows and ledgers (R5, E1).
    #[must_use]
    pub const fn plus(self, positions: u64) -> Self {
        Self(self.0.saturating_add(positions.cast_signed()))
    }

    /// How many positions `earlier` lies before this one; 0 if it does not.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
