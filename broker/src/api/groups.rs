//! Membership of consumer groups, on the wire.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, SyncGroupRequest,
    SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::{Caller, code, text};
use crate::groups::join::Join;
use crate::groups::{Answer, Group};
use crate::ids::random_id;
use crate::journal::Entry;
use crate::state::{Shared, State};

fn millis(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

fn owned(value: &Option<StrBytes>) -> Option<String> {
    value.as_ref().map(StrBytes::to_string)
}

fn refused_join(error: ResponseError, member_id: StrBytes) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_generation_id(-1)
        .with_protocol_name(Some(StrBytes::new()))
        .with_member_id(member_id)
}

pub(crate) async fn join(
    shared: &Arc<Shared>,
    caller: &Caller<'_>,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let version = caller.version();
    let member_id = request.member_id.clone();
    let waiting = {
        let mut state = shared.lock();
        begin_join(&mut state, caller, request)
    };
    let mut answer = match waiting {
        Err(error) => refused_join(error, member_id.clone()),
        Ok(Answer::Now(answer)) => answer,
        Ok(Answer::Later(receiver)) => receiver
            .await
            // A later join of the same member took the place of this one.
            .unwrap_or_else(|_| refused_join(ResponseError::RebalanceInProgress, member_id)),
    };
    if let Err(error) = written(shared).await {
        answer = refused_join(error, answer.member_id);
    }
    if version < 7 {
        answer.protocol_name.get_or_insert_default();
    }
    answer
}

fn begin_join(
    state: &mut State,
    caller: &Caller<'_>,
    request: JoinGroupRequest,
) -> Result<Answer<JoinGroupResponse>, ResponseError> {
    let version = caller.version();
    let session = millis(request.session_timeout_ms);
    let limits = state.limits;
    if request.group_id.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    if session < limits.session_timeout_min || session > limits.session_timeout_max {
        return Err(ResponseError::InvalidSessionTimeout);
    }
    let client_id = owned(&caller.head.client_id).unwrap_or_default();
    let instance = owned(&request.group_instance_id);
    let fresh_id = format!(
        "{}-{}",
        instance.as_deref().unwrap_or(&client_id),
        random_id()
    );
    let join = Join {
        member_id: request.member_id.to_string(),
        instance,
        client_id,
        client_host: format!("/{}", caller.host),
        session,
        // The first version of the protocol knew only one time.
        rebalance: if version >= 1 {
            millis(request.rebalance_timeout_ms)
        } else {
            session
        },
        protocol_type: request.protocol_type.to_string(),
        protocols: request
            .protocols
            .iter()
            .map(|protocol| {
                // A copy: the slice would keep the whole request alive.
                let metadata = Bytes::copy_from_slice(&protocol.metadata);
                (protocol.name.to_string(), metadata)
            })
            .collect(),
        needs_id: version >= 4,
        skips_assignment: version >= 9,
        fresh_id,
    };
    if !join.member_id.is_empty() && !state.groups.contains_key(request.group_id.as_str()) {
        return Err(ResponseError::UnknownMemberId);
    }
    let answer = state.group(&request.group_id)?.join(join, Instant::now());
    state.write_group(&request.group_id);
    Ok(answer)
}

/// Waits until what led to an answer is written down. The lock was held from the change to
/// its record, so having it once is enough.
async fn written(shared: &Shared) -> Result<(), ResponseError> {
    drop(shared.lock());
    shared.sync().await.map_err(|error| {
        tracing::error!(%error, "cannot sync a group to the device");
        ResponseError::CoordinatorNotAvailable
    })
}

pub(crate) async fn sync(
    shared: &Arc<Shared>,
    request: SyncGroupRequest,
    version: i16,
) -> SyncGroupResponse {
    let refused = |error: ResponseError| SyncGroupResponse::default().with_error_code(error.code());
    let says_protocol = request.protocol_type.is_some() && request.protocol_name.is_some();
    if version >= 5 && !says_protocol {
        return refused(ResponseError::InconsistentGroupProtocol);
    }
    let waiting = {
        let mut state = shared.lock();
        match state.groups.get_mut(request.group_id.as_str()) {
            None => Answer::Now(refused(ResponseError::UnknownMemberId)),
            Some(group) => {
                let assignments = request
                    .assignments
                    .into_iter()
                    .map(|one| (one.member_id.to_string(), one.assignment))
                    .collect();
                let answer = group.sync(
                    &request.member_id,
                    request.group_instance_id.as_deref(),
                    request.generation_id,
                    (
                        request.protocol_type.as_deref(),
                        request.protocol_name.as_deref(),
                    ),
                    assignments,
                    Instant::now(),
                );
                state.write_group(&request.group_id);
                answer
            }
        }
    };
    let answer = match waiting {
        Answer::Now(answer) => answer,
        Answer::Later(receiver) => receiver
            .await
            .unwrap_or_else(|_| refused(ResponseError::RebalanceInProgress)),
    };
    match written(shared).await {
        Ok(()) => answer,
        Err(error) => refused(error),
    }
}

pub(crate) fn heartbeat(state: &mut State, request: &HeartbeatRequest) -> HeartbeatResponse {
    let outcome = match state.groups.get_mut(request.group_id.as_str()) {
        None => Err(ResponseError::UnknownMemberId),
        Some(group) => group.heartbeat(
            &request.member_id,
            request.group_instance_id.as_deref(),
            request.generation_id,
            Instant::now(),
        ),
    };
    HeartbeatResponse::default().with_error_code(code(outcome))
}

pub(crate) fn leave(
    state: &mut State,
    request: LeaveGroupRequest,
    version: i16,
) -> LeaveGroupResponse {
    let mut leave_one = |member_id: &str, instance: Option<&str>| {
        let outcome = match state.groups.get_mut(request.group_id.as_str()) {
            None => Err(ResponseError::UnknownMemberId),
            Some(group) => group.leave(member_id, instance, Instant::now()),
        };
        code(outcome)
    };
    let answer = if version < 3 {
        LeaveGroupResponse::default().with_error_code(leave_one(&request.member_id, None))
    } else {
        let members = request
            .members
            .into_iter()
            .map(|member| {
                let outcome = leave_one(&member.member_id, member.group_instance_id.as_deref());
                MemberResponse::default()
                    .with_error_code(outcome)
                    .with_member_id(member.member_id)
                    .with_group_instance_id(member.group_instance_id)
            })
            .collect();
        LeaveGroupResponse::default().with_members(members)
    };
    state.write_group(&request.group_id);
    answer
}

fn described(name: GroupId, group: Option<&Group>, version: i16) -> DescribedGroup {
    let answer = DescribedGroup::default().with_group_id(name);
    let Some(group) = group else {
        return answer.with_group_state(text("Dead"));
    };
    let stable = group.phase_name() == "Stable";
    let protocol = group
        .protocol
        .as_deref()
        .filter(|_| stable)
        .unwrap_or_default();
    let members = group
        .members
        .iter()
        .map(|(id, member)| {
            let mut answer = DescribedGroupMember::default()
                .with_member_id(text(id))
                .with_client_id(text(&member.client_id))
                .with_client_host(text(&member.client_host));
            if version >= 4 {
                answer.group_instance_id = member.instance.as_deref().map(text);
            }
            if stable {
                answer.member_metadata = member.metadata(protocol).cloned().unwrap_or_default();
                answer.member_assignment = member.assignment.clone();
            }
            answer
        })
        .collect();
    answer
        .with_group_state(text(group.phase_name()))
        .with_protocol_type(text(group.protocol_type.as_deref().unwrap_or_default()))
        .with_protocol_data(text(protocol))
        .with_members(members)
}

pub(crate) fn describe(
    state: &State,
    request: DescribeGroupsRequest,
    version: i16,
) -> DescribeGroupsResponse {
    let groups = request
        .groups
        .into_iter()
        .map(|name| {
            let group = state.groups.get(name.as_str());
            described(name, group, version)
        })
        .collect();
    DescribeGroupsResponse::default().with_groups(groups)
}

pub(crate) fn list(state: &State, request: &ListGroupsRequest, version: i16) -> ListGroupsResponse {
    let wanted = |group: &Group| {
        request.states_filter.is_empty()
            || request
                .states_filter
                .iter()
                .any(|name| name.eq_ignore_ascii_case(group.phase_name()))
    };
    let groups = state
        .groups
        .iter()
        .filter(|(_, group)| wanted(group))
        .map(|(name, group)| {
            let mut listed = ListedGroup::default()
                .with_group_id(GroupId(text(name)))
                .with_protocol_type(text(group.protocol_type.as_deref().unwrap_or_default()));
            if version >= 4 {
                listed.group_state = text(group.phase_name());
            }
            listed
        })
        .collect();
    ListGroupsResponse::default().with_groups(groups)
}

pub(crate) fn delete(state: &mut State, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let results = request
        .groups_names
        .into_iter()
        .map(|name| {
            let outcome = delete_one(state, &name);
            DeletableGroupResult::default()
                .with_error_code(code(outcome))
                .with_group_id(name)
        })
        .collect();
    DeleteGroupsResponse::default().with_results(results)
}

fn delete_one(state: &mut State, name: &str) -> Result<(), ResponseError> {
    match state.groups.get(name) {
        None => return Err(ResponseError::GroupIdNotFound),
        Some(group) if !group.is_idle() => return Err(ResponseError::NonEmptyGroup),
        Some(_) => {}
    }
    let entry = Entry::GroupDeleted {
        group: name.to_string(),
    };
    state.keeper.record(&entry).map_err(|error| {
        tracing::error!(group = name, %error, "cannot write a group down");
        ResponseError::CoordinatorNotAvailable
    })?;
    state.groups.remove(name);
    Ok(())
}
