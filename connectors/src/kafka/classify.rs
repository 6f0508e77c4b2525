//! What the errors of librdkafka and of brokers mean here.
//!
//! Invariant: an error that leaves open whether something happened is never a refusal.

use millrace_core::intake::io::CommitOutcome;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::{AppendClass, StoreError};

/// What the end of a commit means (D-W3, D-G6, R4c).
pub(super) fn commit_outcome(code: Option<Code>) -> CommitOutcome {
    let Some(code) = code else {
        return CommitOutcome::Done;
    };
    let text = code.to_string();
    match code {
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::FencedMemberEpoch
        | Code::StaleMemberEpoch
        | Code::AssignmentLost
        | Code::Fatal => CommitOutcome::NotOwner(text),
        // The broker looked at it and did nothing.
        Code::CoordinatorLoadInProgress
        | Code::NotCoordinator
        | Code::RebalanceInProgress
        | Code::GroupAuthorizationFailed
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::OffsetMetadataTooLarge
        | Code::InvalidCommitOffsetSize
        | Code::InvalidGroupId
        | Code::InvalidRequest
        | Code::UnsupportedVersion
        | Code::PolicyViolation
        | Code::ThrottlingQuotaExceeded
        | Code::UnstableOffsetCommit => CommitOutcome::Retriable(text),
        // Among these CoordinatorNotAvailable: brokers answer it when the append timed out, and
        // then it may still become visible.
        _ => CommitOutcome::Unknown(text),
    }
}

/// Whether brokers end the connection because of who we are.
pub(super) fn not_let_in(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SSL
    )
}

/// Whether nothing works until somebody changes something.
pub(super) fn misconfigured(code: Code) -> bool {
    not_let_in(code)
        || matches!(
            code,
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::InvalidTopic
                | Code::PolicyViolation
                | Code::InconsistentGroupProtocol
                | Code::InvalidSessionTimeout
                | Code::GroupMaxSizeReached
                | Code::UnsupportedCompressionType
                | Code::UnsupportedForMessageFormat
                | Code::InvalidRequiredAcks
        )
}

/// Why a record was not appended (D-O4).
pub(super) fn append_class(code: Code, fatal: bool) -> AppendClass {
    if fatal {
        return AppendClass::Fatal;
    }
    match code {
        Code::Fatal => AppendClass::Fatal,
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::MessageBatchTooLarge
        // The partitioner chooses among those that exist, so the record named it itself.
        | Code::UnknownPartition => AppendClass::Rejected,
        code if misconfigured(code) => AppendClass::Misconfigured,
        _ => AppendClass::Transient,
    }
}

/// Why a question to the brokers has no answer.
pub(super) fn store_error(error: &KafkaError) -> StoreError {
    match error.rdkafka_error_code() {
        Some(code) if misconfigured(code) => StoreError::Refused(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// The same from a bare code.
pub(super) fn store_error_of(code: Code) -> StoreError {
    if misconfigured(code) {
        StoreError::Refused(code.to_string())
    } else {
        StoreError::Unavailable(code.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r4c_only_a_clear_refusal_is_retriable() {
        let class = |code| match commit_outcome(Some(code)) {
            CommitOutcome::Done => "done",
            CommitOutcome::Retriable(_) => "retriable",
            CommitOutcome::NotOwner(_) => "not owner",
            CommitOutcome::Unknown(_) => "unknown",
        };
        assert_eq!(commit_outcome(None), CommitOutcome::Done);
        for code in [
            Code::NotCoordinator,
            Code::CoordinatorLoadInProgress,
            Code::RebalanceInProgress,
        ] {
            assert_eq!(class(code), "retriable", "{code:?}");
        }
        for code in [
            Code::IllegalGeneration,
            Code::UnknownMemberId,
            Code::FencedInstanceId,
        ] {
            assert_eq!(class(code), "not owner", "{code:?}");
        }
        for code in [
            Code::BrokerTransportFailure,
            Code::RequestTimedOut,
            Code::OperationTimedOut,
            Code::CoordinatorNotAvailable,
            Code::WaitingForCoordinator,
            Code::Unknown,
        ] {
            assert_eq!(class(code), "unknown", "{code:?}");
        }
    }

    #[test]
    fn d_o4_records_are_rejected_producers_misconfigured_and_the_rest_is_tried_again() {
        let class = |code| append_class(code, false);
        assert_eq!(class(Code::MessageSizeTooLarge), AppendClass::Rejected);
        assert_eq!(class(Code::InvalidRecord), AppendClass::Rejected);
        assert_eq!(class(Code::InvalidTimestamp), AppendClass::Rejected);
        assert_eq!(
            class(Code::TopicAuthorizationFailed),
            AppendClass::Misconfigured
        );
        assert_eq!(
            class(Code::UnknownTopicOrPartition),
            AppendClass::Misconfigured
        );
        assert_eq!(class(Code::PolicyViolation), AppendClass::Misconfigured);
        assert_eq!(class(Code::NotEnoughReplicas), AppendClass::Transient);
        assert_eq!(class(Code::NotLeaderForPartition), AppendClass::Transient);
        assert_eq!(class(Code::MessageTimedOut), AppendClass::Transient);
        assert_eq!(class(Code::PurgeQueue), AppendClass::Transient);
        assert_eq!(class(Code::UnknownPartition), AppendClass::Rejected);
        assert_eq!(
            append_class(Code::MessageTimedOut, true),
            AppendClass::Fatal
        );
    }
}
