//! One function per kind of request: reads the request, calls the state, builds the answer.

pub(crate) mod admin;
pub(crate) mod cluster;
pub(crate) mod commits;
pub(crate) mod configs;
pub(crate) mod fetch;
pub(crate) mod groups;
pub(crate) mod positions;
pub(crate) mod produce;
pub(crate) mod refusal;
pub(crate) mod transactions;

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{RequestKind, ResponseKind};
use kafka_protocol::protocol::StrBytes;

use crate::state::Shared;
use crate::wire::{Head, api_versions};

/// Who asks.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) head: &'a Head,
    pub(crate) host: &'a str,
}

impl Caller<'_> {
    fn version(&self) -> i16 {
        self.head.version
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Box<ResponseKind>),
    /// The client wants no answer.
    Silent,
    /// The client wants no answer, and something failed: a closed connection tells it.
    Close,
}

impl<T: Into<ResponseKind>> From<T> for Outcome {
    fn from(answer: T) -> Outcome {
        Outcome::Answer(Box::new(answer.into()))
    }
}

pub(crate) fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_string())
}

/// The number of an outcome on the wire.
pub(crate) fn code(outcome: Result<(), ResponseError>) -> i16 {
    outcome.err().map_or(0, |error| error.code())
}

/// Carries a request out.
pub(crate) async fn carry_out(
    shared: &Arc<Shared>,
    caller: &Caller<'_>,
    request: RequestKind,
) -> Outcome {
    let version = caller.version();
    match request {
        RequestKind::ApiVersions(_) => api_versions(None).into(),
        RequestKind::Metadata(request) => cluster::metadata(shared, request, version).into(),
        RequestKind::DescribeCluster(_) => cluster::describe(shared).into(),
        RequestKind::FindCoordinator(request) => {
            cluster::find_coordinator(shared, &request, version).into()
        }
        RequestKind::Produce(request) => produce::produce(shared, request, version).await,
        RequestKind::Fetch(request) => fetch::fetch(shared, &request, version).await.into(),
        RequestKind::ListOffsets(request) => {
            positions::list(&mut shared.lock(), &request, version).into()
        }
        RequestKind::OffsetForLeaderEpoch(request) => {
            positions::for_leader_epoch(&shared.lock(), request).into()
        }
        RequestKind::JoinGroup(request) => groups::join(shared, caller, request).await.into(),
        RequestKind::SyncGroup(request) => groups::sync(shared, request, version).await.into(),
        RequestKind::Heartbeat(request) => groups::heartbeat(&mut shared.lock(), &request).into(),
        RequestKind::LeaveGroup(request) => {
            groups::leave(&mut shared.lock(), request, version).into()
        }
        RequestKind::DescribeGroups(request) => {
            groups::describe(&shared.lock(), request, version).into()
        }
        RequestKind::ListGroups(request) => groups::list(&shared.lock(), &request, version).into(),
        RequestKind::DeleteGroups(request) => {
            let answer = groups::delete(&mut shared.lock(), request);
            synced(shared, answer).await
        }
        RequestKind::OffsetCommit(request) => {
            let answer = commits::commit(&mut shared.lock(), request);
            synced(shared, answer).await
        }
        RequestKind::OffsetFetch(request) => {
            commits::fetch(&shared.lock(), request, version).into()
        }
        RequestKind::OffsetDelete(request) => {
            let answer = commits::delete(&mut shared.lock(), request);
            synced(shared, answer).await
        }
        RequestKind::InitProducerId(request) => {
            let answer = transactions::init(&mut shared.lock(), &request, version);
            // A predecessor's open transaction may have ended.
            shared.data.notify_waiters();
            synced(shared, answer).await
        }
        RequestKind::AddPartitionsToTxn(request) => {
            transactions::add_partitions(&mut shared.lock(), request, version).into()
        }
        RequestKind::AddOffsetsToTxn(request) => {
            transactions::add_offsets(&mut shared.lock(), &request, version).into()
        }
        RequestKind::TxnOffsetCommit(request) => {
            transactions::commit_offsets(&mut shared.lock(), request).into()
        }
        RequestKind::EndTxn(request) => {
            let answer = transactions::end(&mut shared.lock(), &request, version);
            shared.data.notify_waiters();
            synced(shared, answer).await
        }
        RequestKind::CreateTopics(request) => {
            let answer = admin::create_topics(&mut shared.lock(), request, version);
            synced(shared, answer).await
        }
        RequestKind::DeleteTopics(request) => {
            let answer = admin::delete_topics(&mut shared.lock(), request, version);
            shared.data.notify_waiters();
            synced(shared, answer).await
        }
        RequestKind::CreatePartitions(request) => {
            let answer = admin::create_partitions(&mut shared.lock(), request);
            synced(shared, answer).await
        }
        RequestKind::DeleteRecords(request) => {
            let answer = admin::delete_records(&mut shared.lock(), request);
            shared.data.notify_waiters();
            synced(shared, answer).await
        }
        RequestKind::DescribeConfigs(request) => {
            configs::describe(&shared.lock(), request, version).into()
        }
        RequestKind::AlterConfigs(request) => {
            let answer = configs::alter(&mut shared.lock(), request);
            synced(shared, answer).await
        }
        RequestKind::IncrementalAlterConfigs(request) => {
            let answer = configs::alter_some(&mut shared.lock(), request);
            synced(shared, answer).await
        }
        other => {
            tracing::error!(kind = ?std::mem::discriminant(&other), "a supported request has no handler");
            Outcome::Close
        }
    }
}

/// Confirms only what is safe.
async fn synced(shared: &Shared, answer: impl Into<ResponseKind>) -> Outcome {
    match shared.sync().await {
        Ok(()) => Outcome::Answer(Box::new(answer.into())),
        Err(error) => {
            tracing::error!(%error, "cannot sync to the device");
            Outcome::Close
        }
    }
}
