//! Faults on demand, for tests: requests that are refused, delayed, cut off, or carried out
//! and then not confirmed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, RequestKind};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is answered with this error and changes nothing.
    Refuse(ResponseError),
    /// The request waits before it is looked at. So do later requests of its connection.
    Delay(Duration),
    /// The connection is closed and the request changes nothing.
    DropConnection,
    /// The request is carried out, and answered with `REQUEST_TIMED_OUT`.
    TimeOutAfterApplying,
    /// The request is carried out, and the connection is closed without an answer.
    LoseAnswer,
}

/// How often a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// So many times.
    Count(u64),
    /// Until it is cleared.
    UntilCleared,
}

/// Which requests a fault meets. Every word that is set must fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    kind: ApiKey,
    group: Option<String>,
    topic: Option<String>,
    partition: Option<i32>,
    client_id: Option<String>,
}

impl Target {
    /// All requests of one kind.
    pub fn kind(kind: ApiKey) -> Target {
        Target {
            kind,
            group: None,
            topic: None,
            partition: None,
            client_id: None,
        }
    }

    /// Only those for this consumer group.
    pub fn group(mut self, group: &str) -> Target {
        self.group = Some(group.to_string());
        self
    }

    /// Only those that touch this topic.
    pub fn topic(mut self, topic: &str) -> Target {
        self.topic = Some(topic.to_string());
        self
    }

    /// Only those that touch this partition of the topic.
    pub fn partition(mut self, topic: &str, partition: i32) -> Target {
        self.topic = Some(topic.to_string());
        self.partition = Some(partition);
        self
    }

    /// Only those of this client.
    pub fn client_id(mut self, client_id: &str) -> Target {
        self.client_id = Some(client_id.to_string());
        self
    }

    fn meets(&self, kind: ApiKey, client_id: Option<&str>, request: &RequestKind) -> bool {
        let touches = || touched(request);
        kind == self.kind
            && self
                .client_id
                .as_deref()
                .is_none_or(|id| client_id == Some(id))
            && self
                .group
                .as_deref()
                .is_none_or(|group| groups(request).contains(&group))
            && self.topic.as_deref().is_none_or(|topic| {
                touches().iter().any(|(name, partition)| {
                    *name == topic
                        && (self.partition.is_none()
                            || partition.is_none()
                            || *partition == self.partition)
                })
            })
    }
}

/// A fault that was set, to ask about it or to clear it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(usize);

#[derive(Debug)]
struct Armed {
    target: Target,
    fault: Fault,
    left: Times,
    hits: u64,
}

/// The faults of one broker.
#[derive(Debug, Default)]
pub struct Faults {
    list: Mutex<Vec<Armed>>,
    /// How many of the list can still happen, so that the common case takes no lock.
    live: AtomicUsize,
}

impl Faults {
    /// Sets a fault.
    pub fn add(&self, target: Target, fault: Fault, times: Times) -> FaultId {
        let mut list = self.lock();
        list.push(Armed {
            target,
            fault,
            left: times,
            hits: 0,
        });
        self.count(&list);
        FaultId(list.len() - 1)
    }

    /// Answers requests of a kind with an error.
    pub fn refuse(&self, kind: ApiKey, error: ResponseError, times: Times) -> FaultId {
        self.add(Target::kind(kind), Fault::Refuse(error), times)
    }

    /// Delays requests of a kind.
    pub fn delay(&self, kind: ApiKey, delay: Duration, times: Times) -> FaultId {
        self.add(Target::kind(kind), Fault::Delay(delay), times)
    }

    /// Closes connections at requests of a kind.
    pub fn drop_connection(&self, kind: ApiKey, times: Times) -> FaultId {
        self.add(Target::kind(kind), Fault::DropConnection, times)
    }

    /// Carries requests of a kind out, and says that they timed out.
    pub fn time_out_after_applying(&self, kind: ApiKey, times: Times) -> FaultId {
        self.add(Target::kind(kind), Fault::TimeOutAfterApplying, times)
    }

    /// Refuses the commits of a group.
    pub fn reject_commit(&self, group: &str, error: ResponseError, times: Times) -> FaultId {
        self.add(
            Target::kind(ApiKey::OffsetCommit).group(group),
            Fault::Refuse(error),
            times,
        )
    }

    /// How often a fault has happened.
    pub fn hits(&self, id: FaultId) -> u64 {
        self.lock().get(id.0).map_or(0, |armed| armed.hits)
    }

    /// Ends one fault; its hits can still be asked for.
    pub fn clear(&self, id: FaultId) {
        let mut list = self.lock();
        if let Some(armed) = list.get_mut(id.0) {
            armed.left = Times::Count(0);
        }
        self.count(&list);
    }

    /// Ends all faults.
    pub fn clear_all(&self) {
        let mut list = self.lock();
        for armed in list.iter_mut() {
            armed.left = Times::Count(0);
        }
        self.count(&list);
    }

    /// The faults that this request meets, each of them used up by one.
    pub(crate) fn take(
        &self,
        kind: ApiKey,
        client_id: Option<&str>,
        request: &RequestKind,
    ) -> Vec<Fault> {
        if self.live.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut list = self.lock();
        let mut met = Vec::new();
        for armed in list.iter_mut() {
            if armed.left == Times::Count(0) || !armed.target.meets(kind, client_id, request) {
                continue;
            }
            if let Times::Count(left) = &mut armed.left {
                *left -= 1;
            }
            armed.hits += 1;
            met.push(armed.fault);
        }
        self.count(&list);
        met
    }

    fn count(&self, list: &[Armed]) {
        let live = list
            .iter()
            .filter(|armed| armed.left != Times::Count(0))
            .count();
        self.live.store(live, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Armed>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The groups that a request names.
fn groups(request: &RequestKind) -> Vec<&str> {
    match request {
        RequestKind::OffsetCommit(request) => vec![&request.group_id],
        RequestKind::OffsetFetch(request) => std::iter::once(&request.group_id)
            .chain(request.groups.iter().map(|group| &group.group_id))
            .map(|group| group.as_str())
            .collect(),
        RequestKind::OffsetDelete(request) => vec![&request.group_id],
        RequestKind::TxnOffsetCommit(request) => vec![&request.group_id],
        RequestKind::AddOffsetsToTxn(request) => vec![&request.group_id],
        RequestKind::JoinGroup(request) => vec![&request.group_id],
        RequestKind::SyncGroup(request) => vec![&request.group_id],
        RequestKind::Heartbeat(request) => vec![&request.group_id],
        RequestKind::LeaveGroup(request) => vec![&request.group_id],
        RequestKind::DescribeGroups(request) => {
            request.groups.iter().map(|group| group.as_str()).collect()
        }
        _ => Vec::new(),
    }
}

/// The topics that a request touches, with the partition where it names one.
fn touched(request: &RequestKind) -> Vec<(&str, Option<i32>)> {
    let mut found = Vec::new();
    match request {
        RequestKind::Produce(request) => {
            for topic in &request.topic_data {
                for partition in &topic.partition_data {
                    found.push((topic.name.as_str(), Some(partition.index)));
                }
            }
        }
        RequestKind::Fetch(request) => {
            for topic in &request.topics {
                for partition in &topic.partitions {
                    found.push((topic.topic.as_str(), Some(partition.partition)));
                }
            }
        }
        RequestKind::ListOffsets(request) => {
            for topic in &request.topics {
                for partition in &topic.partitions {
                    found.push((topic.name.as_str(), Some(partition.partition_index)));
                }
            }
        }
        RequestKind::OffsetCommit(request) => {
            for topic in &request.topics {
                for partition in &topic.partitions {
                    found.push((topic.name.as_str(), Some(partition.partition_index)));
                }
            }
        }
        RequestKind::TxnOffsetCommit(request) => {
            for topic in &request.topics {
                for partition in &topic.partitions {
                    found.push((topic.name.as_str(), Some(partition.partition_index)));
                }
            }
        }
        RequestKind::AddPartitionsToTxn(request) => {
            for topic in &request.v3_and_below_topics {
                for partition in &topic.partitions {
                    found.push((topic.name.as_str(), Some(*partition)));
                }
            }
        }
        RequestKind::Metadata(request) => {
            for topic in request.topics.iter().flatten() {
                found.extend(topic.name.as_ref().map(|name| (name.as_str(), None)));
            }
        }
        _ => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::{GroupId, HeartbeatRequest};
    use kafka_protocol::protocol::StrBytes;

    fn heartbeat(group: &'static str) -> RequestKind {
        HeartbeatRequest::default()
            .with_group_id(GroupId(StrBytes::from_static_str(group)))
            .into()
    }

    #[test]
    fn b_e7_a_fault_happens_as_often_as_it_was_set() {
        let faults = Faults::default();
        let id = faults.add(
            Target::kind(ApiKey::Heartbeat).group("g"),
            Fault::DropConnection,
            Times::Count(2),
        );
        let take = |group| faults.take(ApiKey::Heartbeat, None, &heartbeat(group));
        assert_eq!(take("other"), vec![]);
        assert_eq!(take("g"), vec![Fault::DropConnection]);
        assert_eq!(take("g"), vec![Fault::DropConnection]);
        assert_eq!(take("g"), vec![]);
        assert_eq!(faults.hits(id), 2);
    }

    #[test]
    fn b_e7_a_standing_fault_lasts_until_it_is_cleared() {
        let faults = Faults::default();
        let id = faults.refuse(
            ApiKey::Heartbeat,
            ResponseError::NotCoordinator,
            Times::UntilCleared,
        );
        let take = || faults.take(ApiKey::Heartbeat, None, &heartbeat("g"));
        assert_eq!(take().len(), 1);
        assert_eq!(take().len(), 1);
        faults.clear(id);
        assert_eq!(take(), vec![]);
    }
}
