//! The model app of push mode: posts its results to its pod's output one after the other, then
//! answers. It goes on posting when nobody waits for its answer any more, repeats a post that
//! failed or not, and now and then answers well although its last post failed.

use std::time::Duration;

use bytes::Bytes;
use millrace_core::contract::app::Pushed;
use millrace_core::intake::io::{Call, CallId};
use millrace_core::intake::settings::Correlate;
use millrace_core::outcome::{Class, FailureKind, Item, Outcome, Output};
use millrace_core::store::PushAnswer;

use super::app::{failure, timed_out, transient, unreachable};
use super::log::Nature;
use super::{Happening, Who, World};
use crate::laws::Lawful;

/// A call that the app works on.
#[derive(Debug)]
pub(crate) struct Pushing {
    call: Call,
    outputs: Vec<Output>,
    next: usize,
    repeats: u32,
}

/// How often a post that failed is repeated.
const REPEATS_MAX: u32 = 3;

impl World {
    /// `Effect::Call` in push mode.
    pub(crate) fn push_call(&mut self, who: Who, call: Call) {
        let now = self.now;
        let latency = self.app_latency();
        let local = self.local(who.pod);
        let until_deadline = call.deadline.since(local);
        let nature = self.nature(&call.events[0]);
        let quiet = self.quiet;
        let id = call.id;
        let Some(process) = self.process(who) else {
            return;
        };
        let down = now < process.app.down_until;
        let (dying, death) = (process.app.dying_until, process.app.death);
        process.app.calls.insert(id, call.clone());
        if now < dying {
            self.after(dying - now, Happening::ConnectionLost(who, id, death));
            return;
        }
        if down {
            self.after(Duration::from_millis(2), Happening::GivenUp(who, id));
            return;
        }
        if nature == Nature::Deadly {
            self.after(latency.min(until_deadline), Happening::PodDies(who, id));
            return;
        }
        self.after(until_deadline, Happening::GivenUp(who, id));
        if nature == Nature::Poison {
            self.after(latency.min(until_deadline), Happening::AppCrash(who, id));
        } else if quiet || !matches!(nature, Nature::Silent(_)) || !self.silent(who, id) {
            let process = self.process(who).expect("it just called");
            let pushing = Pushing {
                call,
                outputs: Vec::new(),
                next: 0,
                repeats: 0,
            };
            process.app.pushing.insert(id, pushing);
            self.after(latency, Happening::AppWork(who, id));
        }
    }

    /// Nobody waits for the answer any more, or nobody was there to give one.
    pub(crate) fn given_up(&mut self, who: Who, id: CallId) -> Lawful {
        let local = self.local(who.pod);
        let serial = self.is_serial();
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let Some(call) = process.app.calls.remove(&id) else {
            return Ok(());
        };
        let outcome = if local.boot >= call.deadline.boot {
            if serial {
                // A-P4: its late posts could not be told from those of the next call.
                process.app.pushing.remove(&id);
            }
            Outcome::Failed(timed_out())
        } else {
            Outcome::Failed(unreachable())
        };
        self.answered(who, id, outcome)
    }

    fn is_serial(&self) -> bool {
        self.scenario.push == Some(Correlate::Serial)
    }

    /// The app has made up its mind.
    pub(crate) fn app_work(&mut self, who: Who, id: CallId) -> Lawful {
        let now = self.now;
        let faults = self.scenario.faults;
        let abandoned = !self.quiet && self.random.permille(faults.app_abandoned);
        let fails = !self.quiet && self.random.permille(faults.app_transient);
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        let wrong = now < process.app.misconfigured_until;
        let Some(pushing) = process.app.pushing.get(&id) else {
            return Ok(());
        };
        let called = pushing.call.events[0].clone();
        let outcome = if abandoned {
            Outcome::Abandoned
        } else if wrong {
            Outcome::Failed(failure(
                Class::Misconfigured,
                FailureKind::Refused,
                "404",
                true,
            ))
        } else if fails {
            Outcome::Failed(transient())
        } else {
            let outputs = match self.item(&called) {
                Item::Emit(output) => vec![output],
                Item::EmitMany(outputs) => outputs,
                Item::Filter => Vec::new(),
                Item::Failed(failure) => {
                    return self.app_done(who, id, Outcome::Failed(failure));
                }
            };
            if outputs.is_empty() {
                self.laws.filters(who, id);
                return self.app_done(who, id, Outcome::Items(vec![Item::Filter]));
            }
            if self.nature(&called) == Nature::Unstorable {
                self.laws.unstorable(&called, &self.logs);
            }
            let process = self.process(who).expect("it was just there");
            if let Some(pushing) = process.app.pushing.get_mut(&id) {
                pushing.outputs = outputs;
            }
            return self.post_next(who, id);
        };
        self.app_done(who, id, outcome)
    }

    /// The app answers, if anybody still waits.
    fn app_done(&mut self, who: Who, id: CallId, outcome: Outcome) -> Lawful {
        let Some(process) = self.process(who) else {
            return Ok(());
        };
        process.app.pushing.remove(&id);
        if process.app.calls.remove(&id).is_some() {
            self.answered(who, id, outcome)
        } else {
            Ok(())
        }
    }

    /// The next post leaves, or the app is done.
    fn post_next(&mut self, who: Who, id: CallId) -> Lawful {
        let after = if self.is_serial() {
            Duration::ZERO
        } else {
            self.random.latency(2, 200)
        };
        let Some(pushing) = self.process(who).and_then(|p| p.app.pushing.get(&id)) else {
            return Ok(());
        };
        if pushing.next == pushing.outputs.len() {
            return self.app_done(who, id, Outcome::Items(vec![Item::Filter]));
        }
        self.after(after, Happening::AppPost(who, id));
        Ok(())
    }

    /// A post arrives at the output.
    pub(crate) fn app_post(&mut self, who: Who, id: CallId) -> Lawful {
        let local = self.local(who.pod);
        let serial = self.is_serial();
        let Some(pushing) = self.process(who).and_then(|p| p.app.pushing.get(&id)) else {
            return Ok(());
        };
        let mut output = pushing.outputs[pushing.next].clone();
        let correlation = pushing.call.correlation;
        // The law wants to know whose post it was.
        let value = output.value.unwrap_or_default();
        let mut named = format!("{}c{}/", text_until_dots(&value), id.0).into_bytes();
        named.resize(named.len().max(value.len()), b'.');
        output.value = Some(Bytes::from(named));
        let pushed = Pushed {
            correlation: correlation.filter(|_| !serial),
            output,
        };
        let it = &mut self.pods[who.pod].output;
        let post = it.store.push(local, &pushed);
        it.posts.insert(post, (who, id));
        self.pump(who.pod)
    }

    /// The output answers a post.
    pub(crate) fn post_answered(&mut self, who: Who, id: CallId, answer: PushAnswer) -> Lawful {
        let calm = self.scenario.calm;
        let mood = self.random.below(10);
        let Some(pushing) = self.process(who).and_then(|p| p.app.pushing.get_mut(&id)) else {
            return Ok(());
        };
        if answer == PushAnswer::Stored {
            pushing.next += 1;
            pushing.repeats = 0;
            return self.post_next(who, id);
        }
        let again = answer == PushAnswer::NotStored && pushing.repeats < REPEATS_MAX;
        match mood {
            0..5 if again => {
                pushing.repeats += 1;
                self.post_next(who, id)
            }
            // It does not care, and goes on as if nothing had happened.
            0..8 if !calm && pushing.next + 1 == pushing.outputs.len() => {
                self.app_done(who, id, Outcome::Items(vec![Item::Filter]))
            }
            _ => self.app_done(who, id, Outcome::Failed(transient())),
        }
    }
}

/// What a value says before its filling.
fn text_until_dots(value: &[u8]) -> &str {
    let end = value.iter().position(|b| *b == b'.').unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).expect("values are ASCII")
}
