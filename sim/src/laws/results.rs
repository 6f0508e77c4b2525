//! Laws about what goes to the output and what is stored.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_core::contract::publish::{
    FateCode, Lease, Reply, Request, ResultEvent, Results, StoreClass, next_frame,
};
use millrace_core::limits::FRAME_BYTES_MAX;
use millrace_core::position::Position;
use millrace_core::store;
use millrace_core::token::Stamp;

use super::truth::{REJECTED, Source, part_of};
use super::{Law, Lawful, Laws, Sent, index_of, require};
use crate::scenario::LEASE;
use crate::world::Who;
use crate::world::log::{Log, Nature};
use crate::world::output::{DEAD_LETTER, Place};

/// `millrace-dlq-reason` of a dead letter.
fn reason(event: &ResultEvent) -> Option<Vec<u8>> {
    let mut headers = event.records().next()?.headers;
    let (_, value) = headers.find(|(name, _)| *name == b"millrace-dlq-reason")?;
    value.map(<[u8]>::to_vec)
}

impl Laws {
    /// A process sends a frame. `ahead` is how far its boot clock runs ahead.
    pub(crate) fn published(
        &mut self,
        who: Who,
        frame: &Bytes,
        now: Duration,
        ahead: Duration,
        logs: &[Log],
    ) -> Lawful {
        let mut buffer = BytesMut::from(&frame[..]);
        let request = next_frame(&mut buffer, FRAME_BYTES_MAX)
            .and_then(|frame| Request::decode(frame.unwrap_or_default()))
            .map_err(|error| Law::Protocol.broken(format!("a frame cannot be read: {error}")))?;
        match request {
            Request::Lease(lease) => self.lease_told(who, &lease, ahead),
            Request::Transaction(transaction) => self.transaction_sent(who, &transaction, now),
            Request::Results(results) => self.results_sent(who, &results, now, logs),
            Request::Announce(announce) => self.announced(who, &announce),
            Request::Hello(_)
            | Request::Withdraw { .. }
            | Request::Revoked(_)
            | Request::Drain
            | Request::Error(_) => Ok(()),
        }
    }

    fn lease_told(&self, who: Who, lease: &Lease, ahead: Duration) -> Lawful {
        for partition in &lease.partitions {
            let tenure = self
                .tenures
                .get(&(who.pod, index_of(partition)))
                .filter(|t| !t.revoking);
            let until = tenure.and_then(|t| t.sent).map(|sent| sent + LEASE + ahead);
            require!(
                Lease,
                until >= Some(lease.until),
                "the output is told a lease on {partition} that was not obtained"
            );
        }
        Ok(())
    }

    fn results_sent(&mut self, who: Who, results: &Results, now: Duration, logs: &[Log]) -> Lawful {
        require!(
            Protocol,
            results.stamp == Stamp::Live,
            "results carry the stamp {:?}",
            results.stamp
        );
        let mut sent = Vec::new();
        for event in results.events() {
            let partition = index_of(&results.partitions()[event.partition as usize]);
            let name = format!("{partition}/{}", event.position);
            let to_blame = logs[partition]
                .index_of(event.position)
                .is_some_and(|index| self.to_blame(who, partition, index));
            let Some(tenure) = self
                .tenures
                .get_mut(&(who.pod, partition))
                .filter(|t| t.started.is_some())
            else {
                return Err(Law::Ownership.broken(format!(
                    "results of {name} are sent but its partition is not held"
                )));
            };
            require!(
                Lease,
                !tenure.revoking || self.once,
                "results of {name} are sent after its revocation"
            );
            let until = tenure.sent.map(|sent| sent + LEASE);
            require!(
                Lease,
                until > Some(now) || self.once,
                "results of {name} are sent without a lease, it ended at {until:?}"
            );
            let Some(index) = logs[partition].index_of(event.position) else {
                return Err(Law::Identity
                    .broken(format!("results of {name} are sent, which does not exist")));
            };
            require!(
                Repeats,
                !tenure.stored.contains(&index),
                "{name} is sent again although it is stored"
            );
            require!(
                Repeats,
                tenure.at_output.insert(index),
                "{name} is sent again although it is unanswered"
            );
            let reason = (event.fate == FateCode::DeadLettered)
                .then(|| reason(&event))
                .flatten();
            let lane = self.truth.lane(partition, index);
            let by_parking = reason.as_deref() == Some(b"lane_parked");
            if reason.is_some() && !by_parking && lane != 0 {
                tenure.ever_parked.insert(lane);
                if event.position >= tenure.unparked_at {
                    tenure.parked.insert(lane);
                }
            }
            let by_crash = reason.as_deref() == Some(b"app_crash") && to_blame;
            let may_be_parked = by_parking && tenure.ever_parked.contains(&lane);
            let answered = tenure.answered.contains(&index);
            let legal = match event.fate {
                FateCode::Emitted => answered,
                FateCode::Filtered | FateCode::FailedInShadow => false,
                FateCode::DeadLettered => {
                    self.ttl
                        || may_be_parked
                        || by_crash
                        || self.truth.may_be_dead(partition, index)
                }
            };
            require!(
                Outcome,
                legal,
                "{name} is sent as {:?} without a cause",
                event.fate
            );
            let crash = reason.as_deref() == Some(b"app_crash");
            let nature = logs[partition].records[index].nature;
            let poison = nature == Nature::Poison;
            require!(
                Blame,
                !crash || poison || to_blame,
                "{name} is dead-lettered for crashing the app, which died of other things"
            );
            let tenure = self
                .tenures
                .get_mut(&(who.pod, partition))
                .expect("it was just there");
            if lane != 0 && !matches!(self.muted, Some(Law::Resend | Law::LaneExclusion)) {
                let owed = tenure.owed.entry(lane).or_default();
                let earlier = owed.first().copied().filter(|first| *first < index);
                require!(
                    Resend,
                    earlier.is_none(),
                    "{name} is sent before event {earlier:?} of its lane comes again"
                );
                if !owed.remove(&index) {
                    let last = tenure.last_sent.insert(lane, index);
                    require!(
                        Resend,
                        last < Some(index),
                        "{name} is sent after a later event of its lane"
                    );
                }
            }
            sent.push(Some(Sent {
                partition,
                index,
                tenure: tenure.number,
                lane,
            }));
        }
        let process = self.processes.entry(who.pod).or_default();
        if self.once {
            process.staged.extend(sent.iter().flatten());
        }
        process.frames.insert(results.seq, sent);
        Ok(())
    }

    /// The link changed: nothing that was sent will be answered any more.
    pub(super) fn link_changed(&mut self, who: Who) {
        self.pushes_forgotten(who);
        let frames = std::mem::take(&mut self.processes.entry(who.pod).or_default().frames);
        for event in frames.into_values().flatten().flatten() {
            self.comes_again(who, event);
        }
        if self.once {
            self.transaction_lost(who);
        }
    }

    pub(super) fn comes_again(&mut self, who: Who, event: Sent) {
        let tenure = self.tenures.get_mut(&(who.pod, event.partition));
        if let Some(tenure) = tenure.filter(|t| t.number == event.tenure) {
            tenure.at_output.remove(&event.index);
            if event.lane != 0 {
                tenure
                    .owed
                    .entry(event.lane)
                    .or_default()
                    .insert(event.index);
            }
        }
    }

    /// The process is about to hear what became of its results.
    pub(super) fn replied(&mut self, who: Who, reply: &Reply) {
        match reply {
            Reply::Ended { outcome, .. } => self.transaction_ended(who, *outcome),
            Reply::Answered(answered) => self.push_counted(who, answered),
            Reply::Withdrawn { refused, answered } => {
                self.push_withdrawn(who, refused.iter().chain(answered).copied());
            }
            _ => {}
        }
        let Reply::Stored(stored) = reply else { return };
        let process = self.processes.entry(who.pod).or_default();
        let Some(frame) = process.frames.get_mut(&stored.seq) else {
            return;
        };
        let mut take = |index: u32| frame.get_mut(index as usize).and_then(Option::take);
        let good: Vec<Sent> = stored
            .stored
            .iter()
            .cloned()
            .flatten()
            .filter_map(&mut take)
            .collect();
        let bad: Vec<_> = stored
            .failures
            .iter()
            .filter_map(|f| Some((take(f.event)?, f.class)))
            .collect();
        for event in good {
            if self.once {
                // It is stored when its transaction is committed.
                break;
            }
            let tenure = self.tenures.get_mut(&(who.pod, event.partition));
            if let Some(tenure) = tenure.filter(|t| t.number == event.tenure) {
                tenure.at_output.remove(&event.index);
                tenure.stored.insert(event.index);
                let process = self.processes.entry(who.pod).or_default();
                *process.stored.entry(event.partition).or_default() += 1;
            }
        }
        for (event, class) in bad {
            if class == StoreClass::Rejected {
                self.truth.failed(event.partition, event.index, REJECTED);
            }
            let process = self.processes.entry(who.pod).or_default();
            process.staged.retain(|staged| {
                (staged.partition, staged.index) != (event.partition, event.index)
            });
            self.comes_again(who, event);
        }
    }

    /// The output hands a record to its producer.
    pub(crate) fn produced(
        &self,
        pod: usize,
        record: &store::Record,
        now: Duration,
        logs: &[Log],
    ) -> Lawful<Source> {
        let source = self.source(record, logs)?;
        let until = self.leased_until.get(&(pod, source.partition)).copied();
        require!(
            Lease,
            until > Some(now) || self.once,
            "pod {pod} produces {source:?} without a lease, it ended at {until:?}"
        );
        self.push_produced(pod, record, source)?;
        Ok(source)
    }

    /// Reads back which event a record answers.
    fn source(&self, record: &store::Record, logs: &[Log]) -> Lawful<Source> {
        let dead = &*record.topic == DEAD_LETTER;
        let header = |name: &[u8]| {
            let found = record.headers.iter().rev().find(|(n, _)| &n[..] == name);
            found
                .and_then(|(_, value)| value.as_deref())
                .unwrap_or_default()
        };
        let (partition, offset) = if dead {
            (
                number(header(b"millrace-dlq-orig-partition")),
                number(header(b"millrace-dlq-orig-offset")),
            )
        } else {
            let mut parts = header(b"millrace-src").split(|b| *b == b'/').skip(1);
            (parts.next().and_then(number), parts.next().and_then(number))
        };
        let unreadable =
            || Law::Identity.broken(format!("a record does not say whom it answers: {record:?}"));
        let partition = partition
            .and_then(|p| usize::try_from(p).ok())
            .filter(|p| *p < logs.len());
        let partition = partition.ok_or_else(unreadable)?;
        let position = Position::new(offset.ok_or_else(unreadable)?);
        let index = logs[partition].index_of(position).ok_or_else(unreadable)?;
        let event = &logs[partition].records[index];
        let name = format!("{partition}/{position}");
        require!(
            Identity,
            record.key.as_deref() == event.key.as_deref(),
            "{name} has the key of another event"
        );
        if dead {
            let id = header(b"millrace-dlq-id");
            require!(
                Identity,
                id == event.id.as_str().as_bytes(),
                "{name}: a wrong dead letter id"
            );
            require!(
                Identity,
                record.value.as_deref() == Some(&event.value[..]),
                "{name}: a dead letter of another value"
            );
            return Ok(Source {
                partition,
                index,
                part: 0,
                dead,
            });
        }
        let parts = self.truth.parts(partition, index);
        let Some(part) = part_of(&logs[partition], index, parts, header(b"millrace-id")) else {
            return Err(Law::Identity.broken(format!("{name}: a wrong result id")));
        };
        let begins = format!("{partition}/{position}/{part}/{parts}/");
        let value = record.value.as_deref().unwrap_or_default();
        require!(
            Identity,
            value.starts_with(begins.as_bytes()),
            "{name} has the result of another event"
        );
        Ok(Source {
            partition,
            index,
            part,
            dead,
        })
    }

    /// The broker stores a record. `owner` is who has its event's partition now.
    pub(crate) fn appended(
        &mut self,
        pod: usize,
        place: Place,
        source: Source,
        owner: Option<Who>,
    ) -> Lawful {
        let zombie = self.expired.contains(&(pod, source.partition))
            && owner.is_some_and(|who| who.pod != pod);
        require!(
            Lease,
            !zombie,
            "pod {pod} stores {source:?} although {owner:?} has its partition by now"
        );
        self.truth.appended(place, source)
    }
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
