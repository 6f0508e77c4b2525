//! One consumer group under the classic protocol: who is in it, which generation it is in,
//! who owns what. Eager and cooperative assignors look the same from here.
//!
//! Invariant: each generation is made by exactly one join phase, and only members that
//! joined it (or static members within their session) are in it.
//! Invariant: a commit is taken from members of the present generation, or from anybody
//! while the group is empty.
//! Invariant: a call that cannot be answered yet holds one end of a channel in its member;
//! every way out of a phase answers or drops it.

pub(crate) mod join;
pub(crate) mod member;
pub(crate) mod offsets;
pub(crate) mod saved;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use member::Member;
use offsets::Offsets;

/// An answer that may come later.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Now(T),
    Later(oneshot::Receiver<T>),
}

/// Where a group is in its cycle. A group that does not exist is *Dead*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Empty,
    /// Members join. The first rebalance ends only at its deadline, any other one also when
    /// everybody is there.
    Preparing {
        deadline: Instant,
        first: Option<FirstRebalance>,
    },
    /// The leader assigns.
    Completing,
    Stable,
}

/// The first rebalance of an empty group, which waits a moment for more members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirstRebalance {
    latest: Instant,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) phase: Phase,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: Option<String>,
    pub(crate) members: BTreeMap<String, Member>,
    /// Instance id of each static member, to its member id.
    instances: HashMap<String, String>,
    /// Members that were told their id and have not come back with it.
    pending: HashMap<String, Instant>,
    /// Until when each member of the generation must have asked for its assignment.
    sync_deadline: Option<Instant>,
    pub(crate) offsets: Offsets,
    /// Whether there is something new to write down.
    pub(crate) changed: bool,
    initial_delay: Duration,
}

fn join_error(error: ResponseError, member_id: &str) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_generation_id(-1)
        .with_protocol_name(Some(StrBytes::new()))
        .with_member_id(text(member_id))
}

fn sync_error(error: ResponseError) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(error.code())
}

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_string())
}

impl Group {
    pub(crate) fn new(initial_delay: Duration) -> Group {
        Group {
            phase: Phase::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            instances: HashMap::new(),
            pending: HashMap::new(),
            sync_deadline: None,
            offsets: Offsets::default(),
            changed: false,
            initial_delay,
        }
    }

    pub(crate) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Empty => "Empty",
            Phase::Preparing { .. } => "PreparingRebalance",
            Phase::Completing => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }

    /// Whether nothing would be lost if the group were forgotten.
    pub(crate) fn is_idle(&self) -> bool {
        self.members.is_empty() && self.pending.is_empty()
    }

    /// Fences by identity: unknown members, and the old process of a static member.
    fn validate(&self, member_id: &str, instance: Option<&str>) -> Result<(), ResponseError> {
        if let Some(instance) = instance {
            match self.instances.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(known) if known != member_id => return Err(ResponseError::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(ResponseError::UnknownMemberId)
        }
    }

    /// Fences by identity and by generation.
    fn validate_generation(
        &self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        self.validate(member_id, instance)?;
        if generation == self.generation {
            Ok(())
        } else {
            Err(ResponseError::IllegalGeneration)
        }
    }

    fn touch(&mut self, member_id: &str, now: Instant) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.deadline = now + member.session;
        }
    }

    pub(crate) fn heartbeat(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.validate_generation(member_id, instance, generation)?;
        self.touch(member_id, now);
        match self.phase {
            Phase::Empty => Err(ResponseError::UnknownMemberId),
            Phase::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            Phase::Completing | Phase::Stable => Ok(()),
        }
    }

    /// Whether this caller may commit. `transactional` commits come through a transaction
    /// and are allowed while the leader assigns.
    pub(crate) fn check_commit(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
        transactional: bool,
        now: Instant,
    ) -> Result<(), ResponseError> {
        if generation < 0 && self.phase == Phase::Empty {
            return Ok(());
        }
        if generation >= 0 || !member_id.is_empty() || instance.is_some() {
            self.validate_generation(member_id, instance, generation)?;
            self.touch(member_id, now);
        } else if !transactional && self.phase != Phase::Empty {
            return Err(ResponseError::UnknownMemberId);
        }
        if !transactional && self.phase == Phase::Completing {
            return Err(ResponseError::RebalanceInProgress);
        }
        Ok(())
    }

    /// A member hands in or asks for its assignment.
    pub(crate) fn sync(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        generation: i32,
        protocol: (Option<&str>, Option<&str>),
        assignments: Vec<(String, Bytes)>,
        now: Instant,
    ) -> Answer<SyncGroupResponse> {
        if let Err(error) = self.validate_generation(member_id, instance, generation) {
            return Answer::Now(sync_error(error));
        }
        let differs = |said: Option<&str>, known: &Option<String>| {
            said.is_some() && known.is_some() && said != known.as_deref()
        };
        if differs(protocol.0, &self.protocol_type) || differs(protocol.1, &self.protocol) {
            return Answer::Now(sync_error(ResponseError::InconsistentGroupProtocol));
        }
        match self.phase {
            Phase::Empty => Answer::Now(sync_error(ResponseError::UnknownMemberId)),
            Phase::Preparing { .. } => Answer::Now(sync_error(ResponseError::RebalanceInProgress)),
            Phase::Stable => {
                self.touch(member_id, now);
                let answer = self.sync_answer(member_id);
                if let Some(member) = self.members.get_mut(member_id) {
                    member.sync_pending = false;
                }
                Answer::Now(answer)
            }
            Phase::Completing => {
                let (sender, receiver) = oneshot::channel();
                if let Some(member) = self.members.get_mut(member_id) {
                    member.sync_pending = false;
                    member.syncing = Some(sender);
                }
                if self.leader.as_deref() == Some(member_id) {
                    self.assign(assignments, now);
                }
                Answer::Later(receiver)
            }
        }
    }

    fn assign(&mut self, assignments: Vec<(String, Bytes)>, now: Instant) {
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
        }
        for (id, assignment) in assignments {
            if let Some(member) = self.members.get_mut(&id) {
                // A copy: the slice would keep the whole request alive.
                member.assignment = Bytes::copy_from_slice(&assignment);
            }
        }
        self.phase = Phase::Stable;
        self.changed = true;
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let answer = self.sync_answer(&id);
            if let Some(member) = self.members.get_mut(&id)
                && let Some(sender) = member.syncing.take()
            {
                member.deadline = now + member.session;
                // The caller may be gone; its session will tell.
                drop(sender.send(answer));
            }
        }
    }

    fn sync_answer(&self, member_id: &str) -> SyncGroupResponse {
        SyncGroupResponse::default()
            .with_protocol_type(self.protocol_type.as_deref().map(text))
            .with_protocol_name(self.protocol.as_deref().map(text))
            .with_assignment(
                self.members
                    .get(member_id)
                    .map(|member| member.assignment.clone())
                    .unwrap_or_default(),
            )
    }

    /// A member says goodbye, or an operator says it for a static one.
    pub(crate) fn leave(
        &mut self,
        member_id: &str,
        instance: Option<&str>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        if self.pending.remove(member_id).is_some() {
            self.complete_join_if_ready(now);
            return Ok(());
        }
        let id = match instance {
            None => member_id.to_string(),
            Some(instance) => match self.instances.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(known) if !member_id.is_empty() && known != member_id => {
                    return Err(ResponseError::FencedInstanceId);
                }
                Some(known) => known.clone(),
            },
        };
        if !self.members.contains_key(&id) {
            return Err(ResponseError::UnknownMemberId);
        }
        self.remove(&id, now);
        Ok(())
    }

    fn remove(&mut self, id: &str, now: Instant) {
        self.forget(id);
        match self.phase {
            Phase::Empty => {}
            Phase::Stable | Phase::Completing => self.prepare(now),
            Phase::Preparing { .. } => self.complete_join_if_ready(now),
        }
    }

    fn forget(&mut self, id: &str) {
        let Some(mut member) = self.members.remove(id) else {
            return;
        };
        if let Some(instance) = &member.instance {
            self.instances.remove(instance);
        }
        member.answer_with(ResponseError::UnknownMemberId, id);
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// Gives all members more time.
    pub(crate) fn postpone_sessions(&mut self, by: Duration) {
        for member in self.members.values_mut() {
            member.deadline += by;
        }
    }

    /// Looks at the clock: sessions, join and sync deadlines.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.pending.retain(|_, deadline| *deadline > now);
        let expired: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| {
                member.joining.is_none() && member.syncing.is_none() && member.deadline <= now
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            tracing::info!(member = %id, generation = self.generation, "the session of a group member ended");
            self.remove(&id, now);
        }
        if self.sync_deadline.is_some_and(|deadline| deadline <= now) {
            self.sync_deadline = None;
            if matches!(self.phase, Phase::Completing | Phase::Stable) {
                let silent: Vec<String> = self
                    .members
                    .iter()
                    .filter(|(_, member)| member.sync_pending)
                    .map(|(id, _)| id.clone())
                    .collect();
                for id in silent {
                    self.remove(&id, now);
                }
            }
        }
        self.complete_join_if_ready(now);
    }

    /// Whether some member reads this topic. Members whose subscription cannot be read
    /// count as readers.
    pub(crate) fn subscribes(&self, topic: &str) -> bool {
        self.members.values().any(|member| {
            self.protocol
                .as_deref()
                .and_then(|protocol| member.metadata(protocol))
                .is_none_or(|metadata| {
                    member::subscription(metadata)
                        .is_none_or(|topics| topics.iter().any(|one| one == topic))
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::join::Join;
    use super::*;

    const SESSION: Duration = Duration::from_secs(10);

    fn stable(now: Instant) -> Group {
        let mut group = Group::new(Duration::ZERO);
        let join = Join {
            member_id: String::new(),
            instance: None,
            client_id: "c".into(),
            client_host: "/h".into(),
            session: SESSION,
            rebalance: SESSION,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), Bytes::new())],
            needs_id: false,
            skips_assignment: true,
            fresh_id: "m".into(),
        };
        drop(group.join(join, now));
        drop(group.sync("m", None, 1, (None, None), Vec::new(), now));
        assert_eq!(group.phase, Phase::Stable);
        group
    }

    #[test]
    fn a_stall_of_the_broker_ends_no_session() {
        let now = Instant::now();
        let mut group = stable(now);
        let stalled = now + SESSION;
        group.postpone_sessions(SESSION);
        group.tick(stalled);
        assert_eq!(group.members.len(), 1);
        group.tick(stalled + SESSION);
        assert_eq!(group.members.len(), 0);
        assert_eq!(group.phase, Phase::Empty);
    }

    #[test]
    fn a_group_is_written_and_restored_with_its_members() {
        let now = Instant::now();
        let group = stable(now);
        let mut copy = Group::new(Duration::ZERO);
        copy.restore(&group.entry("g"), now);
        assert_eq!(copy.phase, Phase::Stable);
        assert_eq!(copy.entry("g"), group.entry("g"));
        assert_eq!(copy.heartbeat("m", None, 1, now), Ok(()));
    }

    #[test]
    fn a_group_in_the_middle_of_a_rebalance_is_restored_without_members() {
        let now = Instant::now();
        let mut group = stable(now);
        group.prepare(now);
        let mut copy = Group::new(Duration::ZERO);
        copy.restore(&group.entry("g"), now);
        assert_eq!((copy.phase, copy.generation), (Phase::Empty, 1));
    }
}
