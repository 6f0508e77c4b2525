//! Joining: how a generation is made.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::JoinGroupResponse;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::member::Member;
use super::{Answer, FirstRebalance, Group, Phase, join_error, text};
use crate::limits::MEMBERS_MAX;

/// What a member says when it joins.
#[derive(Debug)]
pub(crate) struct Join {
    /// Empty for a new member.
    pub(crate) member_id: String,
    pub(crate) instance: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session: Duration,
    pub(crate) rebalance: Duration,
    pub(crate) protocol_type: String,
    pub(crate) protocols: Vec<(String, Bytes)>,
    /// Whether a new member must come back with the id it is given, so that a lost answer
    /// leaves no ghost in the group.
    pub(crate) needs_id: bool,
    /// Whether the client understands that a returning leader need not assign.
    pub(crate) skips_assignment: bool,
    /// The id for a new member.
    pub(crate) fresh_id: String,
}

impl Join {
    fn member(&self, joining: Option<oneshot::Sender<JoinGroupResponse>>, now: Instant) -> Member {
        Member {
            instance: self.instance.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            session: self.session,
            rebalance: self.rebalance,
            protocols: self.protocols.clone(),
            assignment: Bytes::new(),
            deadline: now + self.session,
            joining,
            syncing: None,
            sync_pending: false,
        }
    }

    fn update(&self, member: &mut Member, now: Instant) {
        member.client_id.clone_from(&self.client_id);
        member.client_host.clone_from(&self.client_host);
        member.session = self.session;
        member.rebalance = self.rebalance;
        member.protocols.clone_from(&self.protocols);
        member.deadline = now + self.session;
    }
}

impl Group {
    pub(crate) fn join(&mut self, join: Join, now: Instant) -> Answer<JoinGroupResponse> {
        let error = |error| Answer::Now(join_error(error, &join.member_id));
        if !self.can_follow(&join) {
            return error(ResponseError::InconsistentGroupProtocol);
        }
        if self.pending.remove(&join.member_id).is_some() {
            let id = join.member_id.clone();
            return self.add(id, &join, now);
        }
        if join.member_id.is_empty() {
            return self.join_new(&join, now);
        }
        if let Err(refused) = self.validate(&join.member_id, join.instance.as_deref()) {
            return error(refused);
        }
        self.rejoin(&join, now)
    }

    fn join_new(&mut self, join: &Join, now: Instant) -> Answer<JoinGroupResponse> {
        if self.members.len() + self.pending.len() >= MEMBERS_MAX {
            return Answer::Now(join_error(ResponseError::GroupMaxSizeReached, ""));
        }
        match &join.instance {
            Some(instance) => match self.instances.get(instance).cloned() {
                Some(old_id) => self.replace(&old_id, join, now),
                None => self.add(join.fresh_id.clone(), join, now),
            },
            None if join.needs_id => {
                self.pending
                    .insert(join.fresh_id.clone(), now + join.session);
                Answer::Now(join_error(ResponseError::MemberIdRequired, &join.fresh_id))
            }
            None => self.add(join.fresh_id.clone(), join, now),
        }
    }

    fn add(&mut self, id: String, join: &Join, now: Instant) -> Answer<JoinGroupResponse> {
        let (sender, receiver) = oneshot::channel();
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        if let Some(instance) = &join.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        self.leader.get_or_insert_with(|| id.clone());
        self.members.insert(id, join.member(Some(sender), now));
        if let Phase::Preparing {
            deadline,
            first: Some(first),
        } = &mut self.phase
        {
            *deadline = (now + self.initial_delay).min(first.latest);
        }
        self.rebalance(now);
        Answer::Later(receiver)
    }

    /// A member of the group joins again.
    fn rejoin(&mut self, join: &Join, now: Instant) -> Answer<JoinGroupResponse> {
        let id = join.member_id.as_str();
        let is_leader = self.leader.as_deref() == Some(id);
        let Some(member) = self.members.get_mut(id) else {
            return Answer::Now(join_error(ResponseError::UnknownMemberId, id));
        };
        let same = member.protocols == join.protocols;
        join.update(member, now);
        let answer_again = match self.phase {
            // It may have missed the answer; nothing has changed since.
            Phase::Completing => same,
            Phase::Stable => same && !is_leader,
            Phase::Preparing { .. } => false,
            Phase::Empty => return Answer::Now(join_error(ResponseError::UnknownMemberId, id)),
        };
        if answer_again {
            return Answer::Now(self.join_answer(id));
        }
        let (sender, receiver) = oneshot::channel();
        member.joining = Some(sender);
        self.rebalance(now);
        Answer::Later(receiver)
    }

    /// A static member comes back as a new process: it takes the place of the old one,
    /// which is fenced. Nothing moves if the group is stable.
    fn replace(&mut self, old_id: &str, join: &Join, now: Instant) -> Answer<JoinGroupResponse> {
        let id = join.fresh_id.clone();
        let Some(mut member) = self.members.remove(old_id) else {
            return Answer::Now(join_error(ResponseError::UnknownMemberId, &join.member_id));
        };
        member.answer_with(ResponseError::FencedInstanceId, old_id);
        join.update(&mut member, now);
        self.members.insert(id.clone(), member);
        if let Some(instance) = &join.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        let was_leader = self.leader.as_deref() == Some(old_id);
        if was_leader {
            self.leader = Some(id.clone());
        }
        if self.phase == Phase::Stable && self.choose_protocol() == self.protocol {
            self.changed = true;
            let mut answer = self.join_answer(&id);
            if was_leader && join.skips_assignment {
                answer.skip_assignment = true;
            } else if was_leader {
                // An older client must not take itself for the leader: it would assign
                // in a generation that is already assigned.
                answer.leader = text(old_id);
                answer.members.clear();
            }
            return Answer::Now(answer);
        }
        let (sender, receiver) = oneshot::channel();
        if let Some(member) = self.members.get_mut(&id) {
            member.joining = Some(sender);
        }
        self.rebalance(now);
        Answer::Later(receiver)
    }

    fn can_follow(&self, join: &Join) -> bool {
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return false;
        }
        if self.members.is_empty() {
            return true;
        }
        let others = || self.members.iter().filter(|(id, _)| **id != join.member_id);
        self.protocol_type.as_deref() == Some(join.protocol_type.as_str())
            && (others().next().is_none()
                || join
                    .protocols
                    .iter()
                    .any(|(name, _)| others().all(|(_, member)| member.metadata(name).is_some())))
    }

    /// The protocol that all members can follow and most prefer.
    fn choose_protocol(&self) -> Option<String> {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let choice = member.protocols.iter().find(|(name, _)| {
                self.members
                    .values()
                    .all(|other| other.metadata(name).is_some())
            })?;
            *votes.entry(choice.0.as_str()).or_default() += 1;
        }
        votes
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(name, _)| name.to_string())
    }

    /// Begins a rebalance, or goes on with the one that runs.
    fn rebalance(&mut self, now: Instant) {
        match self.phase {
            Phase::Preparing { .. } => self.complete_join_if_ready(now),
            Phase::Empty | Phase::Completing | Phase::Stable => self.prepare(now),
        }
    }

    pub(super) fn prepare(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            if let Some(sender) = member.syncing.take() {
                drop(sender.send(super::sync_error(ResponseError::RebalanceInProgress)));
            }
            member.sync_pending = false;
        }
        self.sync_deadline = None;
        let longest = self.longest_rebalance();
        self.phase = if self.phase == Phase::Empty {
            Phase::Preparing {
                deadline: now + self.initial_delay,
                first: Some(FirstRebalance {
                    latest: now + longest.max(self.initial_delay),
                }),
            }
        } else {
            Phase::Preparing {
                deadline: now + longest,
                first: None,
            }
        };
        self.complete_join_if_ready(now);
    }

    fn longest_rebalance(&self) -> Duration {
        self.members
            .values()
            .map(|member| member.rebalance)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn complete_join_if_ready(&mut self, now: Instant) {
        let Phase::Preparing { deadline, first } = self.phase else {
            return;
        };
        let all_here =
            self.pending.is_empty() && self.members.values().all(|member| member.joining.is_some());
        if now >= deadline || (first.is_none() && all_here) {
            self.complete_join(now);
        }
    }

    fn complete_join(&mut self, now: Instant) {
        let late: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_none() && member.instance.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            self.forget(&id);
        }
        let present = |group: &Group, id: &str| {
            group
                .members
                .get(id)
                .is_some_and(|member| member.joining.is_some())
        };
        if !self.members.is_empty() && !self.leader.as_deref().is_some_and(|id| present(self, id)) {
            let joined = self
                .members
                .iter()
                .find(|(_, member)| member.joining.is_some())
                .map(|(id, _)| id.clone());
            if joined.is_none() {
                // Only static members are left, and none has come back: keep their places
                // until their sessions end.
                self.phase = Phase::Preparing {
                    deadline: now + self.longest_rebalance(),
                    first: None,
                };
                return;
            }
            self.leader = joined;
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.changed = true;
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.protocol = None;
            self.leader = None;
            return;
        }
        self.protocol = self.choose_protocol();
        self.phase = Phase::Completing;
        self.sync_deadline = Some(now + self.longest_rebalance());
        self.answer_joins(now);
    }

    fn answer_joins(&mut self, now: Instant) {
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let answer = self.join_answer(&id);
            if let Some(member) = self.members.get_mut(&id) {
                member.sync_pending = true;
                if let Some(sender) = member.joining.take() {
                    member.deadline = now + member.session;
                    // The caller may be gone; its session will tell.
                    drop(sender.send(answer));
                }
            }
        }
    }

    fn join_answer(&self, id: &str) -> JoinGroupResponse {
        let is_leader = self.leader.as_deref() == Some(id);
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let members = if is_leader {
            self.members
                .iter()
                .map(|(id, member)| {
                    JoinGroupResponseMember::default()
                        .with_member_id(text(id))
                        .with_group_instance_id(member.instance.as_deref().map(text))
                        .with_metadata(member.metadata(protocol).cloned().unwrap_or_default())
                })
                .collect()
        } else {
            Vec::new()
        };
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(self.protocol_type.as_deref().map(text))
            .with_protocol_name(Some(text(protocol)))
            .with_leader(text(self.leader.as_deref().unwrap_or_default()))
            .with_member_id(text(id))
            .with_members(members)
    }
}
