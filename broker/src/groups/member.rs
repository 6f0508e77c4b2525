//! One member of a group.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use tokio::sync::oneshot;
use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) instance: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session: Duration,
    pub(crate) rebalance: Duration,
    /// Assignors that the member can follow, preferred first, and what it says to each.
    pub(crate) protocols: Vec<(String, Bytes)>,
    pub(crate) assignment: Bytes,
    /// When its session ends, unless it is heard of. Waiting calls keep it alive.
    pub(crate) deadline: Instant,
    /// Its join that waits for the others.
    pub(crate) joining: Option<oneshot::Sender<JoinGroupResponse>>,
    /// Its sync that waits for the leader.
    pub(crate) syncing: Option<oneshot::Sender<SyncGroupResponse>>,
    /// Whether it has yet to ask for its assignment in this generation.
    pub(crate) sync_pending: bool,
}

impl Member {
    pub(crate) fn metadata(&self, protocol: &str) -> Option<&Bytes> {
        self.protocols
            .iter()
            .find(|(name, _)| name == protocol)
            .map(|(_, metadata)| metadata)
    }

    /// Ends its waiting calls with an error.
    pub(crate) fn answer_with(&mut self, error: ResponseError, id: &str) {
        // The callers may be gone, which is as good as an answer.
        if let Some(sender) = self.joining.take() {
            drop(sender.send(super::join_error(error, id)));
        }
        if let Some(sender) = self.syncing.take() {
            drop(sender.send(super::sync_error(error)));
        }
    }
}

/// The topics of a consumer's subscription: a version, then a list of strings. Bytes come
/// from clients, so nothing is allocated before it has been seen.
pub(crate) fn subscription(metadata: &[u8]) -> Option<Vec<String>> {
    let (_version, rest) = metadata.split_first_chunk::<2>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut topics = Vec::new();
    for _ in 0..i32::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<2>()?;
        let length = usize::try_from(i16::from_be_bytes(*length)).ok()?;
        topics.push(String::from_utf8(tail.get(..length)?.to_vec()).ok()?);
        rest = &tail[length..];
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_read_and_a_lying_one_is_not() {
        let good = [0, 1, 0, 0, 0, 2, 0, 1, b'a', 0, 2, b'b', b'c', 9, 9];
        assert_eq!(
            subscription(&good),
            Some(vec!["a".to_string(), "bc".to_string()])
        );
        assert_eq!(subscription(&good[..12]), None);
        assert_eq!(subscription(&[0, 1, 0x7f, 0xff, 0xff, 0xff]), None);
    }
}
