//! Ids and the wall clock.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// A random id of 22 letters, in the form that Apache Kafka uses for clusters and topics.
/// Unguessable it need not be; two must not be equal.
pub(crate) fn random_id() -> String {
    // Each `RandomState` has keys that were seeded by the operating system.
    let half = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u128(now_nanos());
        hasher.finish().to_be_bytes()
    };
    URL_SAFE_NO_PAD.encode([half(), half()].concat())
}

fn now_nanos() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_nanos())
}

/// Milliseconds since 1970, as records carry them.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(now_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_have_the_known_form() {
        let ids: std::collections::BTreeSet<String> = (0..1_000).map(|_| random_id()).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.len() == 22));
    }
}
