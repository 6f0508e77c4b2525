//! Who may answer live on a partition.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::position::Position;

/// Longest release id; keeps the commit metadata small (E2).
pub const RELEASE_ID_BYTES_MAX: usize = 64;

/// The name of a release (T1). Cheap to clone.
///
/// Invariant: 1 to 64 of `A-Z a-z 0-9 . _ -`, and not `-` alone, which stands for nobody (E1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReleaseId(Arc<str>);

/// A text that cannot name a release.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no release id: 1 to 64 letters, digits, `.`, `_` or `-`, and more than `-`")]
pub struct InvalidReleaseId {
    /// What was given.
    pub text: String,
}

impl ReleaseId {
    /// The release called `text`.
    pub fn new(text: &str) -> Result<Self, InvalidReleaseId> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        if text.is_empty()
            || text.len() > RELEASE_ID_BYTES_MAX
            || text == "-"
            || !text.bytes().all(allowed)
        {
            return Err(InvalidReleaseId {
                text: text.chars().take(100).collect(),
            });
        }
        Ok(Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for ReleaseId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ReleaseId {
    type Err = InvalidReleaseId;

    fn from_str(text: &str) -> Result<Self, InvalidReleaseId> {
        Self::new(text)
    }
}

/// The state of one partition in one release (release.md, section 3).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Token {
    /// Answers in silence, or not at all.
    Shadow {
        /// Of the intent that it follows.
        epoch: u64,
        /// Where it entered.
        at: Position,
        /// The counterpart.
        peer: Option<ReleaseId>,
    },
    /// Answers live since `from`.
    Live {
        /// Of the intent that made it live.
        epoch: u64,
        /// The first position that it answers.
        from: Position,
        /// Whom it took the partition from.
        peer: Option<ReleaseId>,
    },
    /// Has given the partition away at a cut.
    Sealed {
        /// Of the intent that asked for it.
        epoch: u64,
        /// The cut.
        at: Position,
        /// The receiver; `None`: nobody.
        to: Option<ReleaseId>,
    },
}

impl Token {
    /// The epoch that it carries.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Shadow { epoch, .. } | Self::Live { epoch, .. } | Self::Sealed { epoch, .. } => {
                *epoch
            }
        }
    }

    /// The epoch of a release that answers or has answered live; `None` sorts below every other.
    pub fn tenure(&self) -> Option<u64> {
        match self {
            Self::Shadow { .. } => None,
            Self::Live { epoch, .. } | Self::Sealed { epoch, .. } => Some(*epoch),
        }
    }
}

/// What the input puts on every result (R10).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stamp {
    /// Answers of the release that holds the token.
    Live,
    /// Answers of a candidate, in silence.
    Shadow,
    /// Green asked again, to measure noise (J4).
    Baseline,
}

impl Stamp {
    /// As metrics and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
            Self::Baseline => "baseline",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t1_only_short_plain_names_are_release_ids() {
        let check =
            |text: &str, expect: bool| assert_eq!(ReleaseId::new(text).is_ok(), expect, "{text:?}");
        check("r12-77ab0e41", true);
        check("r12-77ab0e41-2", true);
        check("Dev_1.0", true);
        check("--", true);
        check("", false);
        check("-", false);
        check("a;b", false);
        check("a,b", false);
        check("a|b", false);
        check("a b", false);
        check("ä", false);
        check(&"x".repeat(64), true);
        check(&"x".repeat(65), false);
    }

    #[test]
    fn tenure_of_shadow_is_below_every_tenure() {
        let shadow = Token::Shadow {
            epoch: 9,
            at: Position::START,
            peer: None,
        };
        let live = Token::Live {
            epoch: 0,
            from: Position::START,
            peer: None,
        };
        let sealed = Token::Sealed {
            epoch: 2,
            at: Position::START,
            to: None,
        };
        assert!(shadow.tenure() < live.tenure() && live.tenure() < sealed.tenure());
        assert_eq!((shadow.epoch(), live.epoch(), sealed.epoch()), (9, 0, 2));
    }
}
