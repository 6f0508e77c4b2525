//! The model app: answers by the nature of each event, now and then badly, and dies of poison.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use millrace_core::intake::io::{Call, CallId, Called, Input};
use millrace_core::outcome::{
    Class, Failure, FailureKind, Item, Outcome, Output, RetryAfter, RetryScope,
};

use super::log::Nature;
use super::pushing::Pushing;
use super::{Happening, Who, World};
use crate::laws::Lawful;
use crate::scenario::RECORD_BYTES_MAX;

/// One app.
#[derive(Debug, Default)]
pub(crate) struct App {
    pub(super) calls: BTreeMap<CallId, Call>,
    /// In push mode, what it works on; also what nobody waits for any more.
    pub(super) pushing: BTreeMap<CallId, Pushing>,
    /// Number of its last death.
    pub(super) death: u64,
    /// Until then the process that dies still takes calls.
    pub(super) dying_until: Duration,
    pub(super) down_until: Duration,
    pub(super) misconfigured_until: Duration,
}

pub(super) fn failure(class: Class, kind: FailureKind, code: &str, attempted: bool) -> Failure {
    Failure {
        class,
        kind,
        code: code.to_owned(),
        message: format!("the model app says {code}"),
        body: Bytes::from_static(b"no"),
        attempted,
        retry_after: None,
    }
}

pub(super) fn transient() -> Failure {
    failure(Class::Transient, FailureKind::Refused, "503", true)
}

pub(super) fn unreachable() -> Failure {
    failure(Class::Infra, FailureKind::Refused, "connect", false)
}

pub(super) fn timed_out() -> Failure {
    failure(Class::Transient, FailureKind::TimedOut, "timeout", true)
}

/// The value of a result names the event that it answers; laws read it back.
pub(crate) fn value_of(
    partition: usize,
    called: &Called,
    index: usize,
    of: usize,
    length: usize,
) -> Bytes {
    let mut text = format!("{partition}/{}/{index}/{of}/", called.event.position());
    while text.len() < length {
        text.push('.');
    }
    Bytes::from(text)
}

impl World {
    /// `Effect::Call`.
    pub(crate) fn call(&mut self, who: Who, call: Call) {
        if self.scenario.push.is_some() {
            self.push_call(who, call);
            return;
        }
        let now = self.now;
        let latency = self.app_latency();
        let local = self.local(who.pod);
        let until_deadline = call.deadline.since(local);
        let natures: Vec<_> = call
            .events
            .iter()
            .map(|called| self.nature(called))
            .collect();
        let Some(process) = self.process(who) else {
            return;
        };
        let id = call.id;
        let down = now < process.app.down_until;
        let dying = process.app.dying_until;
        let death = process.app.death;
        process.app.calls.insert(id, call);
        let quiet = self.quiet;
        if now < dying {
            self.after(dying - now, Happening::ConnectionLost(who, id, death));
        } else if down {
            self.after(Duration::from_millis(2), Happening::AppAnswer(who, id));
        } else if natures.contains(&Nature::Deadly) {
            self.after(latency.min(until_deadline), Happening::PodDies(who, id));
        } else if natures.contains(&Nature::Poison) {
            self.after(latency.min(until_deadline), Happening::AppCrash(who, id));
        } else if !quiet
            && natures.iter().any(|n| matches!(n, Nature::Silent(_)))
            && self.silent(who, id)
        {
            self.after(until_deadline, Happening::AppAnswer(who, id));
        } else {
            self.after(latency.min(until_deadline), Happening::AppAnswer(who, id));
        }
    }

    /// How long the app takes for one call.
    pub(super) fn app_latency(&mut self) -> Duration {
        let (usual, rare) = self.scenario.app_ms;
        if !self.quiet && self.random.permille(self.scenario.faults.app_slow) {
            self.random.ms(rare, 20_000)
        } else {
            self.random.latency(usual, rare)
        }
    }

    pub(super) fn nature(&self, called: &Called) -> Nature {
        let log = &self.logs[Self::index_of(&called.partition)];
        log.index_of(called.event.position())
            .map_or(Nature::Good, |index| log.records[index].nature)
    }

    /// Whether a call that holds a silent event stays without an answer.
    pub(super) fn silent(&mut self, who: Who, id: CallId) -> bool {
        let events: Vec<_> = self.process(who).expect("it just called").app.calls[&id]
            .events
            .iter()
            .map(|c| (Self::index_of(&c.partition), c.event.position()))
            .collect();
        let mut stays = false;
        for (partition, position) in events {
            let Some(index) = self.logs[partition].index_of(position) else {
                continue;
            };
            if let Nature::Silent(times) = self.logs[partition].records[index].nature {
                let tries = &mut self.tries[partition][index];
                *tries += 1;
                stays |= *tries <= times;
            }
        }
        stays
    }

    /// A call ends: answered, refused, or given up at its deadline.
    pub(crate) fn app_answer(&mut self, who: Who, id: CallId) -> Lawful {
        let now = self.now;
        let local = self.local(who.pod);
        let quiet = self.quiet;
        let abandoned = !quiet && self.random.permille(self.scenario.faults.app_abandoned);
        let fails = !quiet && self.random.permille(self.scenario.faults.app_transient);
        let batch_max = self.scenario.app_batch_max;
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let Some(call) = process.app.calls.remove(&id) else {
            return Ok(());
        };
        let (down, wrong) = (
            now < process.app.down_until,
            now < process.app.misconfigured_until,
        );
        let outcome = if abandoned {
            Outcome::Abandoned
        } else if down {
            Outcome::Failed(unreachable())
        } else if local.boot >= call.deadline.boot {
            Outcome::Failed(timed_out())
        } else if wrong {
            Outcome::Failed(failure(
                Class::Misconfigured,
                FailureKind::Refused,
                "404",
                true,
            ))
        } else if call.events.len() > batch_max {
            Outcome::TooLarge(failure(
                Class::Permanent,
                FailureKind::Oversized,
                "413",
                true,
            ))
        } else if fails {
            Outcome::Failed(transient())
        } else {
            Outcome::Items(call.events.iter().map(|called| self.item(called)).collect())
        };
        self.answered(who, id, outcome)
    }

    /// Answers come one by one or several at once, as the driver happens to see them.
    pub(super) fn answered(&mut self, who: Who, id: CallId, outcome: Outcome) -> Lawful {
        let waits = self.random.permille(300);
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let first = process.answers.is_empty();
        process.answers.push((id, outcome));
        if waits && first {
            self.after(Duration::from_millis(3), Happening::FlushAnswers(who));
            Ok(())
        } else if first || !waits {
            self.flush_answers(who)
        } else {
            Ok(())
        }
    }

    pub(crate) fn flush_answers(&mut self, who: Who) -> Lawful {
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let answers = std::mem::take(&mut process.answers);
        if answers.is_empty() {
            Ok(())
        } else {
            self.feed(who, Input::Answered(answers))
        }
    }

    pub(super) fn item(&mut self, called: &Called) -> Item {
        let partition = Self::index_of(&called.partition);
        let Some(index) = self.logs[partition].index_of(called.event.position()) else {
            return Item::Failed(failure(Class::Permanent, FailureKind::Refused, "400", true));
        };
        let nature = self.logs[partition].records[index].nature;
        let tries = &mut self.tries[partition][index];
        *tries += 1;
        let tried = *tries;
        let output = |i, of, length| Output {
            value: Some(value_of(partition, called, i, of, length)),
            ..Output::default()
        };
        match nature {
            Nature::Filter if index % 2 == 0 => Item::EmitMany(Vec::new()),
            Nature::Filter => Item::Filter,
            Nature::Many(n) => Item::EmitMany(
                (0..usize::from(n))
                    .map(|i| output(i, usize::from(n), 0))
                    .collect(),
            ),
            Nature::Permanent => {
                Item::Failed(failure(Class::Permanent, FailureKind::Refused, "422", true))
            }
            Nature::Flaky(times) if tried <= times => Item::Failed(transient()),
            Nature::Hopeless if !self.quiet => Item::Failed(transient()),
            Nature::Malformed(times) if tried <= times => Item::Failed(failure(
                Class::Transient,
                FailureKind::Malformed,
                "malformed",
                true,
            )),
            Nature::Busy(times) if tried <= times => {
                let mut busy = failure(Class::Transient, FailureKind::Refused, "429", false);
                busy.retry_after = Some(RetryAfter {
                    delay: Duration::from_secs(self.random.between(1, 15)),
                    scope: self.random.pick(&[
                        RetryScope::Event,
                        RetryScope::Lane,
                        RetryScope::All,
                    ]),
                });
                Item::Failed(busy)
            }
            Nature::Unstorable => {
                // Half of them are refused by the output itself, half by its broker.
                let large = usize::try_from(RECORD_BYTES_MAX).expect("small");
                let length = if index % 2 == 0 { large } else { 0 };
                Item::Emit(output(0, 1, length))
            }
            Nature::Good
            | Nature::Flaky(_)
            | Nature::Hopeless
            | Nature::Poison
            | Nature::Deadly
            | Nature::Malformed(_)
            | Nature::Busy(_)
            | Nature::Silent(_)
            | Nature::Oversized => Item::Emit(output(0, 1, 0)),
        }
    }

    /// The app dies of a call.
    pub(crate) fn app_crash(&mut self, who: Who, id: CallId) {
        let open = self
            .process(who)
            .is_some_and(|process| process.app.calls.contains_key(&id));
        if open {
            self.app_dies(who, Some(id));
        }
    }

    /// The whole pod dies of a call.
    pub(crate) fn pod_dies(&mut self, who: Who, id: CallId) {
        let open = self
            .process(who)
            .is_some_and(|process| process.app.calls.contains_key(&id));
        if open {
            self.note(|| format!("pod {} dies of a call", who.pod));
            self.crash(who.pod);
        }
    }

    /// The app dies: every open call loses its connection, the killer first, the others at once
    /// or a moment later. Until the last one is gone it still takes calls, and never answers.
    pub(crate) fn app_dies(&mut self, who: Who, killer: Option<CallId>) {
        let now = self.now;
        let last = self.random.ms(0, self.scenario.app_dies_ms);
        let down = last + self.random.ms(200, 3_000);
        let death = self.name();
        let Some(process) = self.process(who) else {
            return;
        };
        if killer.is_none() && now < process.app.down_until {
            return;
        }
        process.app.death = death;
        process.app.dying_until = now + last;
        process.app.down_until = process.app.down_until.max(now + down);
        process.app.pushing.clear();
        let open: Vec<CallId> = process.app.calls.keys().copied().collect();
        self.note(|| format!("the app of pod {} dies", who.pod));
        for call in open {
            let after = if killer == Some(call) {
                Duration::ZERO
            } else {
                last.mul_f64(self.random.below(1_000) as f64 / 1_000.0)
            };
            self.after(after, Happening::ConnectionLost(who, call, death));
        }
    }

    /// A call loses its connection.
    pub(crate) fn connection_lost(&mut self, who: Who, id: CallId, death: u64) -> Lawful {
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        if process.app.calls.remove(&id).is_none() {
            return Ok(());
        }
        self.laws.died(who, id, death);
        let lost = failure(Class::Transient, FailureKind::ConnectionLost, "reset", true);
        self.answered(who, id, Outcome::Failed(lost))
    }

    pub(crate) fn app_probed(&mut self, who: Who) -> Lawful {
        let now = self.now;
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let ready = now >= process.app.down_until;
        self.feed(who, Input::AppProbed { ready })
    }

    pub(crate) fn app_down(&mut self, who: Who, long: Duration) {
        let until = self.now + long;
        if let Some(process) = self.process(who) {
            process.app.down_until = until;
        }
    }

    pub(crate) fn app_misconfigured(&mut self, who: Who, long: Duration) {
        let until = self.now + long;
        if let Some(process) = self.process(who) {
            process.app.misconfigured_until = until;
        }
    }

    pub(crate) fn app_works(&mut self, who: Who) {
        if let Some(process) = self.process(who) {
            process.app.dying_until = Duration::ZERO;
            process.app.down_until = Duration::ZERO;
            process.app.misconfigured_until = Duration::ZERO;
        }
    }
}
