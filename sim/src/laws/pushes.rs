//! Laws of push mode: only the newest call of an event may store results, and what is counted
//! as answered was stored (A-P1, A-P2).

use std::collections::{BTreeMap, BTreeSet};

use millrace_core::contract::publish::{Announce, Answered};
use millrace_core::intake::io::{Call, CallId, Called};
use millrace_core::outcome::Outcome;
use millrace_core::store;

use super::truth::{REJECTED, Source};
use super::{Lawful, Laws, Sent, index_of, require};
use crate::world::Who;
use crate::world::log::Log;

/// What the laws know about the pushed calls of one process.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    announced: BTreeMap<CallId, [u8; 16]>,
    /// The newest call of each event, by partition and index.
    newest: BTreeMap<(usize, usize), CallId>,
    /// Calls for which the app had nothing to say.
    filters: BTreeSet<CallId>,
    /// Calls that ended well at the app while their event was held.
    ended: BTreeMap<CallId, Sent>,
    /// What the output stored for them, if nothing failed.
    stored: BTreeMap<CallId, u32>,
}

impl Laws {
    /// The output is told about a call.
    pub(super) fn announced(&mut self, who: Who, announce: &Announce) -> Lawful {
        let pushes = &mut self.processes.entry(who.pod).or_default().pushes;
        let new = pushes
            .announced
            .insert(CallId(announce.call), announce.correlation)
            .is_none();
        require!(Pushes, new, "call {} is announced twice", announce.call);
        let same = pushes
            .announced
            .values()
            .filter(|known| **known == announce.correlation)
            .count();
        require!(Pushes, same == 1, "a correlation is used twice");
        Ok(())
    }

    /// The app is called in push mode.
    pub(super) fn push_called(&mut self, who: Who, call: &Call, sent: &Sent) -> Lawful {
        let pushes = &mut self.processes.entry(who.pod).or_default().pushes;
        require!(
            Pushes,
            call.correlation.is_some()
                && pushes.announced.get(&call.id) == call.correlation.as_ref(),
            "call {:?} is made before it is announced",
            call.id
        );
        pushes.newest.insert((sent.partition, sent.index), call.id);
        Ok(())
    }

    /// The app has nothing to say to a call.
    pub(crate) fn filters(&mut self, who: Who, call: CallId) {
        let process = self.processes.entry(who.pod).or_default();
        process.pushes.filters.insert(call);
    }

    /// The app posts what no broker takes.
    pub(crate) fn unstorable(&mut self, called: &Called, logs: &[Log]) {
        let partition = index_of(&called.partition);
        if let Some(index) = logs[partition].index_of(called.event.position()) {
            self.truth.failed(partition, index, REJECTED);
        }
    }

    /// Whether the app really had nothing to say.
    pub(super) fn really_filtered(&mut self, who: Who, call: CallId) -> bool {
        let process = self.processes.entry(who.pod).or_default();
        !self.push || process.pushes.filters.remove(&call)
    }

    /// A call ended at the app while its event was held.
    pub(super) fn push_ended(&mut self, who: Who, call: CallId, event: Sent, outcome: &Outcome) {
        let good = matches!(outcome, Outcome::Items(_));
        if self.push && !good {
            self.truth.asked_again(event.partition, event.index);
        }
        let held = self
            .tenures
            .get(&(who.pod, event.partition))
            .is_some_and(|tenure| tenure.number == event.tenure && !tenure.revoking);
        if self.push && good && held {
            let process = self.processes.entry(who.pod).or_default();
            process.pushes.ended.insert(call, event);
        }
    }

    /// What the output has stored for a call.
    pub(super) fn push_counted(&mut self, who: Who, answered: &Answered) {
        if answered.failures.is_empty() {
            let process = self.processes.entry(who.pod).or_default();
            process
                .pushes
                .stored
                .insert(CallId(answered.call), answered.stored);
        }
    }

    /// The output takes no more results of these calls.
    pub(super) fn push_withdrawn(&mut self, who: Who, calls: impl Iterator<Item = u64>) {
        for call in calls {
            let process = self.processes.entry(who.pod).or_default();
            let stored = process.pushes.stored.remove(&CallId(call)).unwrap_or(0);
            let Some(event) = process.pushes.ended.remove(&CallId(call)) else {
                continue;
            };
            let held = self
                .tenures
                .get(&(who.pod, event.partition))
                .is_some_and(|tenure| tenure.number == event.tenure);
            if stored > 0 && held {
                let process = self.processes.entry(who.pod).or_default();
                *process.stored.entry(event.partition).or_default() += 1;
            }
        }
    }

    /// The link is another one.
    pub(super) fn pushes_forgotten(&mut self, who: Who) {
        let pushes = &mut self.processes.entry(who.pod).or_default().pushes;
        pushes.ended.clear();
        pushes.stored.clear();
    }

    /// The output hands a pushed record to its producer.
    pub(super) fn push_produced(
        &self,
        pod: usize,
        record: &store::Record,
        source: Source,
    ) -> Lawful {
        if !self.push || source.dead {
            return Ok(());
        }
        let value = record.value.as_deref().unwrap_or_default();
        let call = value
            .split(|b| *b == b'/')
            .nth(4)
            .and_then(|part| part.strip_prefix(b"c"))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .map(CallId);
        let newest = self
            .processes
            .get(&pod)
            .and_then(|process| process.pushes.newest.get(&(source.partition, source.index)));
        require!(
            Pushes,
            newest.is_none() || newest == call.as_ref(),
            "{source:?} is stored for {call:?}, but {newest:?} has been made since"
        );
        Ok(())
    }
}
