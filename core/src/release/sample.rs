//! Names that the tests of releases share.

use crate::contract::intent::{Intent, Partitions};
use crate::position::{Partition, Position};
use crate::token::{ReleaseId, Token};

pub(super) fn release(name: &str) -> ReleaseId {
    ReleaseId::new(name).unwrap()
}

pub(super) fn partition(number: i32) -> Partition {
    Partition::new("tx", number)
}

pub(super) fn at(offset: i64) -> Position {
    Position::new(offset)
}

pub(super) fn shadow(epoch: u64) -> Token {
    Token::Shadow {
        epoch,
        at: at(0),
        peer: None,
    }
}

pub(super) fn live(epoch: u64, from: i64) -> Token {
    Token::Live {
        epoch,
        from: at(from),
        peer: None,
    }
}

pub(super) fn sealed(epoch: u64, cut: i64, to: &str) -> Token {
    Token::Sealed {
        epoch,
        at: at(cut),
        to: ReleaseId::new(to).ok(),
    }
}

pub(super) fn intent(epoch: u64, target: &str, partitions: Partitions) -> Intent {
    Intent {
        epoch,
        target: release(target),
        from: None,
        partitions,
        shadow: None,
        reason: "test".to_owned(),
        decision: None,
    }
}
