//! A group as it is written down, so that members survive a restart of the broker.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::time::Instant;

use super::member::Member;
use super::{Group, Phase};
use crate::journal::{Entry, MemberEntry};

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn bytes(text: &str) -> Bytes {
    STANDARD.decode(text).map(Bytes::from).unwrap_or_default()
}

impl Group {
    /// The group as of its last rebalance. A rebalance that has not ended is not written:
    /// after a restart its members join again.
    pub(crate) fn entry(&self, name: &str) -> Entry {
        let members = if self.phase == Phase::Stable {
            self.members.iter().map(member_entry).collect()
        } else {
            Vec::new()
        };
        Entry::Group {
            group: name.to_string(),
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            leader: self.leader.clone().unwrap_or_default(),
            members,
        }
    }

    /// Takes over what an entry says. Sessions begin anew.
    pub(crate) fn restore(&mut self, entry: &Entry, now: Instant) {
        let Entry::Group {
            generation,
            protocol_type,
            protocol,
            leader,
            members,
            ..
        } = entry
        else {
            return;
        };
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        self.generation = *generation;
        self.protocol_type = some(protocol_type);
        self.instances.clear();
        self.members = members
            .iter()
            .map(|member| (member.id.clone(), restored(member, now)))
            .collect::<BTreeMap<_, _>>();
        for (id, member) in &self.members {
            if let Some(instance) = &member.instance {
                self.instances.insert(instance.clone(), id.clone());
            }
        }
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.protocol = None;
            self.leader = None;
        } else {
            self.phase = Phase::Stable;
            self.protocol = some(protocol);
            self.leader = some(leader);
        }
    }
}

fn member_entry((id, member): (&String, &Member)) -> MemberEntry {
    MemberEntry {
        id: id.clone(),
        instance: member.instance.clone(),
        client_id: member.client_id.clone(),
        client_host: member.client_host.clone(),
        session_ms: millis(member.session),
        rebalance_ms: millis(member.rebalance),
        protocols: member
            .protocols
            .iter()
            .map(|(name, metadata)| (name.clone(), STANDARD.encode(metadata)))
            .collect(),
        assignment: STANDARD.encode(&member.assignment),
    }
}

fn restored(entry: &MemberEntry, now: Instant) -> Member {
    let session = Duration::from_millis(entry.session_ms);
    Member {
        instance: entry.instance.clone(),
        client_id: entry.client_id.clone(),
        client_host: entry.client_host.clone(),
        session,
        rebalance: Duration::from_millis(entry.rebalance_ms),
        protocols: entry
            .protocols
            .iter()
            .map(|(name, metadata)| (name.clone(), bytes(metadata)))
            .collect(),
        assignment: bytes(&entry.assignment),
        deadline: now + session,
        joining: None,
        syncing: None,
        sync_pending: false,
    }
}
