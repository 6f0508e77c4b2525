//! Laws about what goes to the app.

use millrace_core::intake::io::{Call, CallId};
use millrace_core::limits::POD_CRASH_GROUP;
use millrace_core::outcome::{Class, FailureKind, Item, Outcome};

use super::{Law, Lawful, Laws, Sent, Tenure, index_of, require, truth};
use crate::world::Who;
use crate::world::log::Log;

impl Laws {
    /// The app is called.
    pub(crate) fn called(&mut self, who: Who, call: &Call, logs: &[Log]) -> Lawful {
        let mut sent: Vec<Sent> = Vec::new();
        let most = self.batch_records_max;
        require!(
            Memory,
            call.events.len() <= most,
            "a call has {} events, at most {most} may be",
            call.events.len()
        );
        let alone = self
            .processes
            .get(&who.pod)
            .is_none_or(|process| process.calls.is_empty());
        for called in &call.events {
            let partition = index_of(&called.partition);
            let position = called.event.position();
            let name = format!("{}/{position}", called.partition);
            let accused = self.tenures.iter().find(|((pod, other), tenure)| {
                let crash = tenure.crash.filter(|(_, c)| !c.clean && c.count >= 2);
                *pod == who.pod
                    && *other != partition
                    && tenure.started.is_some()
                    && !tenure.revoking
                    && crash.is_some_and(|(_, crash)| crash.named.is_some())
            });
            require!(
                Named,
                accused.is_none(),
                "{name} is dispatched while the ledger names {accused:?}"
            );
            let tenure = self
                .tenures
                .get_mut(&(who.pod, partition))
                .filter(|t| t.started.is_some() && !t.revoking);
            let Some(tenure) = tenure else {
                return Err(Law::Ownership.broken(format!(
                    "{name} is dispatched but its partition is not held"
                )));
            };
            let index = logs[partition].index_of(position);
            let Some(index) = index else {
                return Err(
                    Law::Identity.broken(format!("{name} is dispatched but does not exist"))
                );
            };
            require!(
                Identity,
                called.id == logs[partition].records[index].id,
                "{name} has a wrong id"
            );
            let limit = tenure.committed.plus(self.window);
            require!(
                Window,
                position < limit,
                "{name} is dispatched at or beyond {limit}"
            );
            let remembered = tenure
                .read
                .as_ref()
                .is_some_and(|(start, r)| position < *start || r.contains(&position));
            require!(
                Remembered,
                !remembered,
                "{name} is dispatched although the ledger says that it is finished"
            );
            require!(
                Repeats,
                !tenure.stored.contains(&index),
                "{name} is dispatched although it is stored"
            );
            let earlier = tenure.attempts.remove(&position).unwrap_or(0);
            require!(
                Remembered,
                called.attempt > earlier,
                "{name}: {earlier} attempts of earlier owners are forgotten"
            );
            let lane = self.truth.lane(partition, index);
            require!(
                Parked,
                !self.parks || !tenure.parked.contains(&lane),
                "{name} is dispatched although its lane is parked"
            );
            let awake = tenure.crash.is_none_or(|(_, crash)| !crash.clean);
            require!(
                Named,
                awake || tenure.sent.is_none(),
                "{name} is dispatched, the ledger says that nothing is at the app"
            );
            if let Some((at, crash)) = tenure.crash
                && crash.count >= 2
                && position < at.plus(crash.range)
            {
                let group = if crash.count == 2 { POD_CRASH_GROUP } else { 1 };
                let named = crash.named.is_some_and(|n| {
                    let first = at.plus(n.delta);
                    first <= position && position < first.plus(group)
                });
                require!(
                    Named,
                    named && call.events.len() == 1 && alone,
                    "{name} is dispatched in a suspect range, the ledger says {crash:?} at {at}"
                );
            }
            let same = sent
                .iter()
                .filter(|s| lane != 0 && s.partition == partition && s.lane == lane);
            let (count, last) = same.fold((0, None), |(n, _), s| (n + 1, Some(s.index)));
            if self.muted != Some(Law::LaneExclusion) {
                require!(
                    LaneExclusion,
                    count < self.per_lane_max,
                    "{name}: too many events of its lane in one call"
                );
                require!(
                    LaneExclusion,
                    last < Some(index),
                    "{name} stands before an earlier event of its lane"
                );
                let busy = tenure.busy.get(&lane).filter(|_| lane != 0 && count == 0);
                require!(
                    LaneExclusion,
                    busy.is_none(),
                    "{name} is dispatched while its lane is at the app"
                );
            }
            if lane != 0 {
                tenure.busy.insert(lane, call.id);
            }
            let it = Sent {
                partition,
                index,
                tenure: tenure.number,
                lane,
            };
            sent.push(it);
            if self.push {
                self.push_called(who, call, &it)?;
            }
        }
        self.processes
            .entry(who.pod)
            .or_default()
            .calls
            .insert(call.id, sent);
        Ok(())
    }

    /// A connection to the app broke in its death of this number.
    pub(crate) fn died(&mut self, who: Who, call: CallId, death: u64) {
        let process = self.processes.entry(who.pod).or_default();
        let alone = process.calls.len() == 1;
        let Some(sent) = process.calls.get(&call) else {
            return;
        };
        let alone = alone && sent.len() == 1;
        for event in sent {
            let deaths = process
                .deaths
                .entry((event.partition, event.index))
                .or_default();
            deaths.any.insert(death);
            if alone {
                deaths.alone.insert(death);
            }
        }
    }

    /// Whether it is fair to say that an event crashes the app.
    pub(super) fn to_blame(&self, who: Who, partition: usize, index: usize) -> bool {
        let deaths = self
            .processes
            .get(&who.pod)
            .and_then(|process| process.deaths.get(&(partition, index)));
        let position = self.truth.position(partition, index);
        let named = self.named.get(&(partition, position));
        named.is_some_and(|commits| commits.len() >= 2)
            || deaths.is_some_and(|deaths| deaths.any.len() >= 4 && deaths.alone.len() >= 2)
    }

    /// The app has answered, and the process is about to hear of it.
    pub(super) fn answered(&mut self, who: Who, call: CallId, outcome: &Outcome) {
        let sent = self
            .processes
            .entry(who.pod)
            .or_default()
            .calls
            .remove(&call)
            .unwrap_or_default();
        let filtered = self.really_filtered(who, call);
        for (i, event) in sent.into_iter().enumerate() {
            self.push_ended(who, call, event, outcome);
            let tenure = self
                .tenures
                .get_mut(&(who.pod, event.partition))
                .filter(|t| t.number == event.tenure);
            let failure = match outcome {
                Outcome::Items(items) => match &items[i] {
                    Item::Emit(_) => None,
                    Item::EmitMany(outputs) if !outputs.is_empty() => None,
                    Item::EmitMany(_) | Item::Filter => {
                        // Only an owner who still holds the event can act on it.
                        if tenure.is_some() && filtered {
                            self.truth.filtered(event.partition, event.index);
                        }
                        continue_lane(self.tenures.get_mut(&(who.pod, event.partition)), event);
                        continue;
                    }
                    Item::Failed(failure) => Some(failure),
                },
                Outcome::Failed(failure) | Outcome::TooLarge(failure) => Some(failure),
                Outcome::Abandoned => {
                    continue_lane(tenure, event);
                    continue;
                }
            };
            match failure {
                None => {
                    if let Some(tenure) = tenure {
                        tenure.answered.insert(event.index);
                    }
                }
                Some(failure) => {
                    let cause = match (failure.class, failure.kind) {
                        (Class::Misconfigured | Class::Infra, _) => 0,
                        (_, FailureKind::ConnectionLost) => truth::LOST,
                        (Class::Transient, _) => truth::TRANSIENT,
                        (Class::Permanent, _) => truth::PERMANENT,
                    };
                    self.truth.failed(event.partition, event.index, cause);
                }
            }
            continue_lane(self.tenures.get_mut(&(who.pod, event.partition)), event);
        }
    }
}

/// The event is not at the app any more.
fn continue_lane(tenure: Option<&mut Tenure>, event: Sent) {
    if let Some(tenure) = tenure.filter(|t| t.number == event.tenure) {
        tenure.busy.remove(&event.lane);
    }
}
