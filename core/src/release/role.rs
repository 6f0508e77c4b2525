//! What the owner of one partition is, decided from tokens, grant and intent (R2, section 3).
//!
//! Every proxy, the controller, the auditor and the model check call this one function, so that
//! there is one answer to "may I dispatch live here?".
//!
//! Invariant: without a Live token of its own a release is neither Live nor Sealing: an intent
//! alone gives nobody a partition.
//! Invariant: it is total: whatever was read gives a role, and what contradicts itself halts.

use crate::contract::grant::Granted;
use crate::contract::intent::Intent;
use crate::position::{Partition, Position};
use crate::token::{ReleaseId, Token};

/// What an owner has read before it decides (R2).
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The release that asks.
    pub this: &'a ReleaseId,
    /// About this partition.
    pub partition: &'a Partition,
    /// Its own token; `None`: the offset has no metadata, or there is no offset.
    pub me: Option<&'a Token>,
    /// The tokens of the releases named by its `pr` and by the intent.
    pub others: &'a [(ReleaseId, Token)],
    /// The registry's grant for this release.
    pub grant: Option<&'a Granted>,
    /// The newest intent that it knows.
    pub intent: Option<&'a Intent>,
}

/// What an owner does with its partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// Dispatches nothing and says why (R9).
    Halt(Halt),
    /// Reads behind the holder, in silence (R7).
    Shadow,
    /// Takes over at the cut of a seal (R3).
    Adopt {
        /// The cut.
        from: Position,
        /// Of the seal, and of the token to commit.
        epoch: u64,
        /// Who sealed.
        of: ReleaseId,
    },
    /// Answers.
    Live,
    /// Answers what it has begun, then seals (R1).
    Sealing {
        /// The receiver.
        to: ReleaseId,
        /// Of the intent, and of the seal.
        epoch: u64,
    },
    /// Commits what the controller granted (R13).
    Take(Granted),
}

/// Why nothing is dispatched on a partition (R9).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Halt {
    /// No token, and no grant that gives one.
    TokenMissing,
    /// Another release has answered at a higher epoch although this one still says Live.
    Conflict,
    /// The metadata is damaged.
    TokenGarbled,
    /// Another member has written the token since it was read.
    TokenReplaced,
    /// The token belongs to another topic of the same name.
    TopicIdentityChanged,
    /// Positions are gone that nobody has answered.
    LogTruncated,
    /// Two intents with one epoch (R8).
    DigestClash,
}

impl Halt {
    /// As conditions name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokenMissing => "TokenMissing",
            Self::Conflict => "Conflict",
            Self::TokenGarbled => "TokenGarbled",
            Self::TokenReplaced => "TokenReplaced",
            Self::TopicIdentityChanged => "TopicIdentityChanged",
            Self::LogTruncated => "LogTruncated",
            Self::DigestClash => "DigestClash",
        }
    }
}

/// The role of an owner.
///
/// Reading faults ([`Halt::TokenGarbled`] and those below it) are found where tokens are read;
/// this function only ever halts with the first two.
pub fn role(view: &View<'_>) -> Role {
    let newest = view
        .others
        .iter()
        .filter_map(|(_, token)| token.tenure())
        .max();
    match view.me {
        None => match view.grant {
            Some(granted)
                if matches!(granted.token, Token::Shadow { .. })
                    || newest < Some(granted.token.epoch()) =>
            {
                Role::Take(granted.clone())
            }
            Some(_) | None => Role::Halt(Halt::TokenMissing),
        },
        Some(Token::Live { epoch, .. }) if newest > Some(*epoch) => Role::Halt(Halt::Conflict),
        Some(Token::Live { epoch, .. }) => live(view, *epoch),
        Some(token @ (Token::Shadow { .. } | Token::Sealed { .. })) => match sealed_to_this(view) {
            Some((of, from, epoch)) if Some(epoch) > token.tenure() && Some(epoch) == newest => {
                Role::Adopt { from, epoch, of }
            }
            Some(_) | None => Role::Shadow,
        },
    }
}

/// The epoch that a Live owner's next commit carries: the newest that it knows, so that tokens
/// acknowledge intents and an overtaken one can no longer seal (R8); its own while it is asked to
/// seal.
pub fn stamped(view: &View<'_>, own: u64) -> u64 {
    match view.intent {
        Some(intent) if !intent.takes_from(view.this, view.partition) => own.max(intent.epoch),
        Some(_) | None => own,
    }
}

fn live(view: &View<'_>, epoch: u64) -> Role {
    match (view.grant, view.intent) {
        (Some(granted), _) if granted.token.epoch() > epoch => Role::Take(granted.clone()),
        (_, Some(intent))
            if intent.epoch > epoch && intent.takes_from(view.this, view.partition) =>
        {
            Role::Sealing {
                to: intent.target.clone(),
                epoch: intent.epoch,
            }
        }
        (_, Some(_) | None) => Role::Live,
    }
}

/// The newest seal of another release that names this one.
fn sealed_to_this(view: &View<'_>) -> Option<(ReleaseId, Position, u64)> {
    view.others
        .iter()
        .filter_map(|(release, token)| match token {
            Token::Sealed { epoch, at, to } if to.as_ref() == Some(view.this) => {
                Some((release.clone(), *at, *epoch))
            }
            Token::Sealed { .. } | Token::Shadow { .. } | Token::Live { .. } => None,
        })
        .max_by_key(|(_, _, epoch)| *epoch)
}

#[cfg(test)]
mod tests;
