//! Membership: joins, assignments, fencing, time-outs.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, HeartbeatRequest, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, ListGroupsRequest, SyncGroupRequest,
};
use millrace_broker::{Broker, Options};

use crate::client::*;

const JOIN: i16 = 9;

/// A consumer, reduced to what the coordinator sees of it.
pub(crate) struct Member {
    pub(crate) client: Client,
    pub(crate) group: &'static str,
    pub(crate) id: String,
    pub(crate) instance: Option<&'static str>,
    pub(crate) generation: i32,
    session_ms: i32,
    rebalance_ms: i32,
    protocols: Vec<(&'static str, &'static [u8])>,
    /// What was chosen.
    protocol: String,
}

impl Member {
    pub(crate) fn new(broker: &Broker, group: &'static str) -> Member {
        Member {
            client: Client::new(broker),
            group,
            id: String::new(),
            instance: None,
            generation: -1,
            session_ms: 10_000,
            rebalance_ms: 10_000,
            protocols: vec![("cooperative-sticky", b"m")],
            protocol: String::new(),
        }
    }

    fn fixed(broker: &Broker, group: &'static str, instance: &'static str) -> Member {
        Member {
            instance: Some(instance),
            ..Member::new(broker, group)
        }
    }

    fn request(&self) -> JoinGroupRequest {
        JoinGroupRequest::default()
            .with_group_id(group(self.group))
            .with_session_timeout_ms(self.session_ms)
            .with_rebalance_timeout_ms(self.rebalance_ms)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.instance.map(text))
            .with_protocol_type(text("consumer"))
            .with_protocols(
                self.protocols
                    .iter()
                    .map(|(name, metadata)| {
                        JoinGroupRequestProtocol::default()
                            .with_name(text(name))
                            .with_metadata(Bytes::from_static(metadata))
                    })
                    .collect(),
            )
    }

    /// Sends a join that waits for the others. A new member gets its id first.
    pub(crate) fn begin_join(&mut self) {
        if self.id.is_empty() && self.instance.is_none() {
            let answer = self.client.call_at(&self.request(), JOIN);
            assert_eq!(answer.error_code, ResponseError::MemberIdRequired.code());
            self.id = answer.member_id.to_string();
        }
        let request = self.request();
        self.client.send(&request, JOIN);
    }

    pub(crate) fn end_join(&mut self) -> JoinGroupResponse {
        let answer = self.client.receive::<JoinGroupRequest>(JOIN);
        if answer.error_code == 0 {
            self.id = answer.member_id.to_string();
            self.generation = answer.generation_id;
            self.protocol = answer.protocol_name.clone().unwrap().to_string();
        }
        answer
    }

    pub(crate) fn join(&mut self) -> JoinGroupResponse {
        self.begin_join();
        self.end_join()
    }

    pub(crate) fn sync_request(&self, assignments: &[(&str, &'static [u8])]) -> SyncGroupRequest {
        SyncGroupRequest::default()
            .with_group_id(group(self.group))
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.instance.map(text))
            .with_protocol_type(Some(text("consumer")))
            .with_protocol_name(Some(text(&self.protocol)))
            .with_assignments(
                assignments
                    .iter()
                    .map(|(id, assignment)| {
                        SyncGroupRequestAssignment::default()
                            .with_member_id(text(id))
                            .with_assignment(Bytes::from_static(assignment))
                    })
                    .collect(),
            )
    }

    /// Returns the error and the assignment.
    pub(crate) fn sync(&mut self, assignments: &[(&str, &'static [u8])]) -> (i16, Bytes) {
        let request = self.sync_request(assignments);
        let answer = self.client.call(&request);
        (answer.error_code, answer.assignment)
    }

    /// Joins alone and assigns itself everything.
    pub(crate) fn settle(&mut self) {
        assert_eq!(self.join().error_code, 0);
        let id = self.id.clone();
        assert_eq!(self.sync(&[(&id, b"all")]), (0, Bytes::from_static(b"all")));
    }

    pub(crate) fn heartbeat(&mut self) -> i16 {
        let request = HeartbeatRequest::default()
            .with_group_id(group(self.group))
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.instance.map(text));
        self.client.call(&request).error_code
    }

    pub(crate) fn leave(&mut self) -> i16 {
        let request = LeaveGroupRequest::default()
            .with_group_id(group(self.group))
            .with_members(vec![
                MemberIdentity::default()
                    .with_member_id(text(&self.id))
                    .with_group_instance_id(self.instance.map(text)),
            ]);
        self.client.call(&request).members[0].error_code
    }
}

fn quick() -> Broker {
    let mut options = Options::memory();
    options.session_timeout_min = Duration::from_millis(50);
    Broker::start(options).unwrap()
}

/// Two members in one stable generation, the first of them the leader.
fn pair(broker: &Broker) -> (Member, Member) {
    let (mut first, mut second) = (Member::new(broker, "g"), Member::new(broker, "g"));
    first.settle();
    second.begin_join();
    eventually("the rebalance is announced", || {
        first.heartbeat() == ResponseError::RebalanceInProgress.code()
    });
    let leader = first.join();
    let follower = second.end_join();
    assert_eq!(leader.leader, leader.member_id);
    assert_eq!((leader.members.len(), follower.members.len()), (2, 0));
    assert_eq!(leader.generation_id, follower.generation_id);
    let ids = (first.id.clone(), second.id.clone());
    second.client.send(&second.sync_request(&[]), 5);
    assert_eq!(first.sync(&[(&ids.0, b"one"), (&ids.1, b"two")]).1, "one");
    let answer = second.client.receive::<SyncGroupRequest>(5);
    assert_eq!(
        (answer.error_code, answer.assignment),
        (0, Bytes::from_static(b"two"))
    );
    (first, second)
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

#[test]
fn b_e2_members_share_a_generation_and_get_what_the_leader_assigns() {
    let broker = memory();
    let (mut first, mut second) = pair(&broker);
    assert_eq!((first.heartbeat(), second.heartbeat()), (0, 0));
    let described = first
        .client
        .call(&DescribeGroupsRequest::default().with_groups(vec![group("g")]));
    let found = &described.groups[0];
    assert_eq!(found.group_state.as_str(), "Stable");
    assert_eq!(found.protocol_data.as_str(), "cooperative-sticky");
    assert_eq!(found.members.len(), 2);
    assert_eq!(found.members[0].client_id.as_str(), "test");
    let listed = first.client.call(&ListGroupsRequest::default());
    assert_eq!(listed.groups[0].group_state.as_str(), "Stable");
    let none = ListGroupsRequest::default().with_states_filter(vec![text("Empty")]);
    assert_eq!(first.client.call(&none).groups.len(), 0);
}

#[test]
fn b_e2_a_cooperative_rebalance_leaves_the_others_at_work_until_they_join() {
    let broker = memory();
    let (mut first, mut second) = pair(&broker);
    let before = first.generation;
    let mut third = Member::new(&broker, "g");
    third.begin_join();
    eventually("the rebalance is announced", || {
        first.heartbeat() == code(ResponseError::RebalanceInProgress)
    });
    first.begin_join();
    second.begin_join();
    for member in [&mut first, &mut second, &mut third] {
        let answer = member.end_join();
        assert_eq!((answer.error_code, answer.generation_id), (0, before + 1));
    }
    // The leader first takes a partition away; whoever lost it joins again at once.
    let ids = [first.id.clone(), second.id.clone(), third.id.clone()];
    second.client.send(&second.sync_request(&[]), 5);
    third.client.send(&third.sync_request(&[]), 5);
    first.sync(&[(&ids[0], b"less")]);
    for member in [&mut second, &mut third] {
        assert_eq!(member.client.receive::<SyncGroupRequest>(5).error_code, 0);
    }
    first.begin_join();
    eventually("the second rebalance is announced", || {
        second.heartbeat() == code(ResponseError::RebalanceInProgress)
    });
    second.begin_join();
    third.begin_join();
    for member in [&mut first, &mut second, &mut third] {
        assert_eq!(member.end_join().generation_id, before + 2);
    }
}

#[test]
fn b_e2_a_stale_generation_is_fenced_everywhere() {
    let broker = memory();
    let (mut first, _second) = pair(&broker);
    first.generation -= 1;
    assert_eq!(first.heartbeat(), code(ResponseError::IllegalGeneration));
    assert_eq!(first.sync(&[]).0, code(ResponseError::IllegalGeneration));
    first.id = "stranger".into();
    assert_eq!(first.heartbeat(), code(ResponseError::UnknownMemberId));
    assert_eq!(first.sync(&[]).0, code(ResponseError::UnknownMemberId));
    assert_eq!(first.leave(), code(ResponseError::UnknownMemberId));
    first.begin_join();
    assert_eq!(
        first.end_join().error_code,
        code(ResponseError::UnknownMemberId)
    );
}

#[test]
fn b_e2_a_silent_member_is_removed_when_its_session_ends() {
    let broker = quick();
    let mut first = Member::new(&broker, "g");
    first.session_ms = 150;
    first.settle();
    eventually("the session ends", || broker.members("g").is_empty());
    assert_eq!(first.heartbeat(), code(ResponseError::UnknownMemberId));
    let mut second = Member::new(&broker, "g");
    second.settle();
    assert!(
        second.generation > first.generation + 1,
        "each change makes a generation"
    );
}

#[test]
fn b_e2_heartbeats_keep_a_session_alive() {
    let broker = quick();
    let mut member = Member::new(&broker, "g");
    member.session_ms = 300;
    member.settle();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(700);
    while tokio::time::Instant::now() < deadline {
        assert_eq!(member.heartbeat(), 0);
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn a_member_that_misses_the_rebalance_is_left_behind() {
    let broker = quick();
    let mut first = Member::new(&broker, "g");
    first.rebalance_ms = 200;
    first.settle();
    let mut second = Member::new(&broker, "g");
    second.rebalance_ms = 200;
    let answer = second.join();
    assert_eq!((answer.error_code, answer.members.len()), (0, 1));
    assert_eq!(first.heartbeat(), code(ResponseError::UnknownMemberId));
}

#[test]
fn a_member_that_never_asks_for_its_assignment_is_removed() {
    let broker = quick();
    let mut member = Member::new(&broker, "g");
    member.rebalance_ms = 100;
    member.join();
    assert_eq!(broker.members("g").len(), 1);
    eventually("it is removed", || {
        member.heartbeat() == code(ResponseError::UnknownMemberId)
    });
}

#[test]
fn leaving_starts_a_rebalance_at_once() {
    let broker = memory();
    let (mut first, mut second) = pair(&broker);
    assert_eq!(first.leave(), 0);
    assert_eq!(second.heartbeat(), code(ResponseError::RebalanceInProgress));
    let answer = second.join();
    assert_eq!(answer.leader, answer.member_id);
    assert_eq!(answer.members.len(), 1);
}

#[test]
fn b_e2_a_static_member_comes_back_without_a_rebalance_and_fences_its_old_self() {
    let broker = memory();
    let mut leader = Member::new(&broker, "g");
    leader.settle();
    let mut old = Member::fixed(&broker, "g", "pod-1");
    old.begin_join();
    eventually("the rebalance is announced", || {
        leader.heartbeat() == code(ResponseError::RebalanceInProgress)
    });
    leader.join();
    old.end_join();
    let ids = (leader.id.clone(), old.id.clone());
    old.client.send(&old.sync_request(&[]), 5);
    leader.sync(&[(&ids.0, b"one"), (&ids.1, b"two")]);
    old.client.receive::<SyncGroupRequest>(5);

    let mut new = Member::fixed(&broker, "g", "pod-1");
    let answer = new.join();
    assert_eq!(
        (answer.error_code, answer.generation_id),
        (0, old.generation)
    );
    assert_ne!(new.id, old.id);
    assert_eq!(new.sync(&[]), (0, Bytes::from_static(b"two")));
    assert_eq!(leader.heartbeat(), 0);
    assert_eq!(old.heartbeat(), code(ResponseError::FencedInstanceId));
    assert_eq!(old.sync(&[]).0, code(ResponseError::FencedInstanceId));
    assert_eq!(old.leave(), code(ResponseError::FencedInstanceId));
    old.begin_join();
    assert_eq!(
        old.end_join().error_code,
        code(ResponseError::FencedInstanceId)
    );
}

#[test]
fn b_e2_a_returning_static_leader_does_not_assign_again() {
    let broker = memory();
    let mut old = Member::fixed(&broker, "g", "pod-1");
    old.settle();
    let mut new = Member::fixed(&broker, "g", "pod-1");
    let answer = new.join();
    assert!(answer.skip_assignment);
    assert_eq!(answer.leader, answer.member_id);
    assert_eq!(new.sync(&[]), (0, Bytes::from_static(b"all")));
    // A client that does not know the word is told that somebody else leads.
    let answer = new
        .client
        .call_at(&Member::fixed(&broker, "g", "pod-1").request(), 8);
    assert_eq!(answer.error_code, 0);
    assert_ne!(answer.leader, answer.member_id);
    assert_eq!(answer.members.len(), 0);
}

#[test]
fn an_operator_can_remove_a_static_member_by_its_instance() {
    let broker = memory();
    let mut member = Member::fixed(&broker, "g", "pod-1");
    member.settle();
    let mut operator = Member::fixed(&broker, "g", "pod-1");
    assert_eq!(operator.leave(), 0);
    assert_eq!(member.heartbeat(), code(ResponseError::UnknownMemberId));
}

#[test]
fn members_must_agree_on_a_protocol() {
    let broker = memory();
    let mut first = Member::new(&broker, "g");
    first.protocols = vec![("range", b"r"), ("roundrobin", b"rr")];
    first.settle();
    let mut other = Member::new(&broker, "g");
    let answer = other.client.call_at(&other.request(), JOIN);
    assert_eq!(
        answer.error_code,
        code(ResponseError::InconsistentGroupProtocol)
    );
    let mut second = Member::new(&broker, "g");
    second.protocols = vec![("roundrobin", b"rr2")];
    second.begin_join();
    let answer = first.join();
    assert_eq!(answer.protocol_name.unwrap().as_str(), "roundrobin");
    let metadata: Vec<&[u8]> = answer.members.iter().map(|one| &one.metadata[..]).collect();
    assert!(metadata.contains(&&b"rr"[..]) && metadata.contains(&&b"rr2"[..]));
}

#[test]
fn every_version_of_join_and_sync_works() {
    let broker = memory();
    for (version, name) in (0..=9).zip(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]) {
        let mut member = Member::new(&broker, name);
        let mut answer = member.client.call_at(&member.request(), version);
        if version >= 4 {
            assert_eq!(answer.error_code, code(ResponseError::MemberIdRequired));
            member.id = answer.member_id.to_string();
            answer = member.client.call_at(&member.request(), version);
        }
        assert_eq!(answer.error_code, 0, "join {version}");
        assert_eq!(answer.members.len(), 1);
        member.id = answer.member_id.to_string();
        member.generation = answer.generation_id;
        member.protocol = answer.protocol_name.unwrap().to_string();
        let id = member.id.clone();
        let mut request = member.sync_request(&[(&id, b"all")]);
        if version < 5 {
            request.protocol_type = None;
            request.protocol_name = None;
        }
        let answer = member.client.call_at(&request, version.min(5));
        assert_eq!(
            (answer.error_code, answer.assignment),
            (0, Bytes::from_static(b"all"))
        );
    }
}

#[test]
fn a_leader_that_joins_again_makes_a_generation_and_a_follower_does_not() {
    let broker = memory();
    let (mut first, mut second) = pair(&broker);
    let generation = second.generation;
    let answer = second.join();
    assert_eq!((answer.error_code, answer.generation_id), (0, generation));
    first.begin_join();
    eventually("the rebalance is announced", || {
        second.heartbeat() == code(ResponseError::RebalanceInProgress)
    });
    second.begin_join();
    assert_eq!(first.end_join().generation_id, generation + 1);
    assert_eq!(second.end_join().generation_id, generation + 1);
}

#[test]
fn a_sync_that_waits_is_sent_back_when_a_rebalance_begins() {
    let broker = memory();
    let (mut first, mut second) = (Member::new(&broker, "g"), Member::new(&broker, "g"));
    first.settle();
    second.begin_join();
    eventually("the rebalance is announced", || {
        first.heartbeat() == code(ResponseError::RebalanceInProgress)
    });
    first.join();
    second.end_join();
    second.client.send(&second.sync_request(&[]), 5);
    let mut third = Member::new(&broker, "g");
    third.begin_join();
    let answer = second.client.receive::<SyncGroupRequest>(5);
    assert_eq!(answer.error_code, code(ResponseError::RebalanceInProgress));
}

#[test]
fn the_first_rebalance_can_wait_for_more_members() {
    let mut options = Options::memory();
    options.initial_rebalance_delay = Duration::from_millis(300);
    let broker = Broker::start(options).unwrap();
    let (mut first, mut second) = (Member::new(&broker, "g"), Member::new(&broker, "g"));
    first.begin_join();
    second.begin_join();
    assert_eq!(
        (
            first.end_join().generation_id,
            second.end_join().generation_id
        ),
        (1, 1)
    );
}

#[test]
fn a_sync_must_name_the_protocol_of_its_generation() {
    let broker = memory();
    let mut member = Member::new(&broker, "g");
    member.settle();
    let inconsistent = code(ResponseError::InconsistentGroupProtocol);
    let good = member.sync_request(&[]);
    let wrong = good.clone().with_protocol_name(Some(text("range")));
    assert_eq!(member.client.call(&wrong).error_code, inconsistent);
    let silent = good.clone().with_protocol_name(None);
    assert_eq!(member.client.call(&silent).error_code, inconsistent);
    assert_eq!(member.client.call(&good).error_code, 0);
}

#[test]
fn sessions_outside_the_limits_and_nameless_groups_are_refused() {
    let broker = memory();
    let mut member = Member::new(&broker, "g");
    member.session_ms = 5_999;
    let answer = member.client.call_at(&member.request(), JOIN);
    assert_eq!(
        answer.error_code,
        code(ResponseError::InvalidSessionTimeout)
    );
    let mut nameless = Member::new(&broker, "");
    let answer = nameless.client.call_at(&nameless.request(), JOIN);
    assert_eq!(answer.error_code, code(ResponseError::InvalidGroupId));
}

#[test]
fn a_group_is_deleted_only_when_it_is_empty() {
    let broker = memory();
    let mut member = Member::new(&broker, "g");
    member.settle();
    let request = DeleteGroupsRequest::default().with_groups_names(vec![group("g"), group("no")]);
    let delete = |member: &mut Member| {
        let answer = member.client.call(&request);
        let codes: Vec<i16> = answer.results.iter().map(|one| one.error_code).collect();
        codes
    };
    let (busy, unknown) = (
        code(ResponseError::NonEmptyGroup),
        code(ResponseError::GroupIdNotFound),
    );
    assert_eq!(delete(&mut member), [busy, unknown]);
    member.leave();
    assert_eq!(delete(&mut member), [0, unknown]);
    let described = member
        .client
        .call(&DescribeGroupsRequest::default().with_groups(vec![group("g")]));
    assert_eq!(described.groups[0].group_state.as_str(), "Dead");
}
