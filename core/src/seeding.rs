//! How a block without a controller gets its first tokens (D-G12).
//!
//! Invariant: a partition is seeded only if neither the registry nor the group knew of it, or if
//! an earlier start died half-way; an expired or damaged token is never replaced from here (R9).

use crate::contract::commit::Metadata;
use crate::contract::grant::{Grant, Seeding};
use crate::intake::io::Committed;
use crate::position::Position;
use crate::token::{ReleaseId, Token};

/// What the broker says about one topic before the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The registry's grant of partition 0.
    pub registry: Option<Grant>,
    /// For each partition, whether the release's group has a commit.
    pub committed: Vec<bool>,
}

/// What the starter has to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seeds {
    /// The grant to write before.
    pub seeding: Grant,
    /// Partitions without a commit, to be made live.
    pub partitions: Vec<i32>,
    /// The grant to write afterwards.
    pub seeded: Grant,
}

/// Decides what to seed; `None`: everything is in place, or is not ours to change.
pub fn plan(found: &Found, release: &ReleaseId) -> Option<Seeds> {
    let count = |n: usize| i32::try_from(n).expect("partitions are counted in i32");
    let n = match found.registry.as_ref().map(|grant| grant.seeding) {
        None if found.committed.iter().any(|committed| *committed) => return None,
        None => count(found.committed.len()),
        Some(Some(Seeding::Seeding(n))) => i32::try_from(n).unwrap_or(i32::MAX),
        Some(Some(Seeding::Seeded(_)) | None) => return None,
    };
    let grant = |seeding| Grant {
        root: release.clone(),
        seeding: Some(seeding),
        release: None,
    };
    let unsigned = n.unsigned_abs();
    Some(Seeds {
        seeding: grant(Seeding::Seeding(unsigned)),
        partitions: (0..n.min(count(found.committed.len())))
            .filter(|p| !found.committed[usize::try_from(*p).expect("it counts from 0")])
            .collect(),
        seeded: grant(Seeding::Seeded(unsigned)),
    })
}

/// The commit that makes a partition live from this position on.
pub fn live(position: Position, topic: Option<u32>) -> Committed {
    let token = Token::Live {
        epoch: 1,
        from: position,
        peer: None,
    };
    Committed {
        position,
        metadata: Metadata::of_outsider(token, topic).encode(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        registry: Option<Seeding>,
        known: bool,
        committed: &[bool],
        expect: Option<(u32, &[i32])>,
    ) {
        let release = ReleaseId::new("r1-0000abcd").unwrap();
        let found = Found {
            registry: known.then(|| Grant {
                root: release.clone(),
                seeding: registry,
                release: None,
            }),
            committed: committed.to_vec(),
        };
        let planned = plan(&found, &release).map(|seeds| match seeds.seeded.seeding {
            Some(Seeding::Seeded(n)) => (n, seeds.partitions),
            other => panic!("{other:?}"),
        });
        let expect = expect.map(|(n, partitions)| (n, partitions.to_vec()));
        assert_eq!(planned, expect, "{found:?}");
    }

    #[test]
    fn d_g12_an_empty_registry_and_an_empty_group_are_seeded() {
        check(None, false, &[false, false, false], Some((3, &[0, 1, 2])));
    }

    #[test]
    fn d_g12_a_start_that_died_half_way_is_continued_with_its_own_count() {
        check(
            Some(Seeding::Seeding(2)),
            true,
            &[true, false, false],
            Some((2, &[1])),
        );
    }

    #[test]
    fn r9_everything_else_is_left_alone() {
        check(None, false, &[true, false], None);
        check(Some(Seeding::Seeded(2)), true, &[false, false], None);
        check(None, true, &[false], None);
    }
}
