//! What goes wrong, and when: each kind comes again and again until the scenario's faults end.

use std::time::Duration;

use millrace_core::intake::io::{Input, Operator};
use millrace_core::position::Position;

use super::{Half, Happening, Who, World};
use crate::laws::Lawful;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Crash,
    Freeze,
    Drain,
    Cut,
    Shuffle,
    Link,
    OutputCrash,
    OutputAway,
    AppDown,
    AppKilled,
    AppMisconfigured,
    Operator,
    UncleanElection,
}

const EACH: [Fault; 13] = [
    Fault::Crash,
    Fault::Freeze,
    Fault::Drain,
    Fault::Cut,
    Fault::Shuffle,
    Fault::Link,
    Fault::OutputCrash,
    Fault::OutputAway,
    Fault::AppDown,
    Fault::AppKilled,
    Fault::AppMisconfigured,
    Fault::Operator,
    Fault::UncleanElection,
];

impl World {
    fn mean(&self, fault: Fault) -> Option<Duration> {
        let faults = &self.scenario.faults;
        match fault {
            Fault::Crash => faults.crash,
            Fault::Freeze => faults.freeze,
            Fault::Drain => faults.drain,
            Fault::Cut => faults.cut,
            Fault::Shuffle => faults.shuffle,
            Fault::Link => faults.link,
            Fault::OutputCrash => faults.output_crash,
            Fault::OutputAway => faults.output_away,
            Fault::AppDown => faults.app_down,
            Fault::AppKilled => faults.app_killed,
            Fault::AppMisconfigured => faults.app_misconfigured,
            Fault::Operator => faults.operator,
            Fault::UncleanElection => faults.unclean_election,
        }
    }

    pub(super) fn plan_faults(&mut self) {
        for fault in EACH {
            self.plan(fault);
        }
    }

    fn plan(&mut self, fault: Fault) {
        if let Some(mean) = self.mean(fault) {
            let ms = u64::try_from(mean.as_millis()).expect("short");
            let after = self.random.ms(ms / 4, ms * 7 / 4);
            self.after(after, Happening::Fault(fault));
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) -> Lawful {
        if self.quiet {
            return Ok(());
        }
        self.plan(fault);
        let pod = self.random.index(self.pods.len());
        let who = Who {
            pod,
            life: self.pods[pod].life,
        };
        self.note(|| format!("fault: {fault:?} (pod {pod})"));
        let seconds = self.random.between(1, 20);
        let long = Duration::from_secs(seconds);
        match fault {
            Fault::Crash => self.crash(pod),
            Fault::Freeze => self.freeze(pod),
            Fault::Drain => return self.drain_if_awake(who),
            Fault::Cut => {
                let long = self.random.ms(500, 40_000);
                self.cut(who, long);
            }
            Fault::Shuffle => self.shuffle(),
            Fault::Link => self.break_link(who),
            Fault::OutputCrash => self.output_crash(pod),
            Fault::OutputAway => self.output_away_until = self.now + self.random.ms(500, 12_000),
            Fault::AppDown => self.app_down(who, long),
            Fault::AppKilled => self.app_dies(who, None),
            Fault::AppMisconfigured => self.app_misconfigured(who, long),
            Fault::Operator => return self.operate(who),
            Fault::UncleanElection => self.unclean_election(),
        }
        Ok(())
    }

    /// A replica leads that lacks the end of a log; mostly also of what was committed.
    fn unclean_election(&mut self) {
        let index = self.random.index(self.logs.len());
        let committed = self.group.committed()[index].unwrap_or(Position::START);
        let below = if self.random.permille(700) {
            committed
        } else {
            self.logs[index].end(self.now)
        };
        let Ok(offsets @ 1..) = u64::try_from(below.offset()) else {
            return;
        };
        if self.logs[index].cut.is_some() {
            return;
        }
        let cut = Position::START.plus(self.random.below(offsets));
        self.note(|| format!("partition {index} is cut at {cut}"));
        self.logs[index].cut = Some(cut);
        self.laws.cut(index);
    }

    /// Whether a half of a pod is frozen.
    pub(super) fn is_frozen(&self, pod: usize, half: Half) -> bool {
        self.pods[pod]
            .frozen
            .is_some_and(|(input, output)| match half {
                Half::Input => input,
                Half::Output => output,
            })
    }

    fn drain_if_awake(&mut self, who: Who) -> Lawful {
        if self.is_frozen(who.pod, Half::Input) {
            Ok(())
        } else {
            self.drain(who)
        }
    }

    /// The input process dies; sometimes the output with it.
    pub(super) fn crash(&mut self, pod: usize) {
        let who = Who {
            pod,
            life: self.pods[pod].life,
        };
        if self.process(who).is_none() {
            return;
        }
        if !self.is_frozen(pod, Half::Input) {
            self.client_silent(who);
        }
        self.laws.gone(who);
        let session = self.pods[pod].output.session();
        self.pods[pod].process = None;
        self.thaw(pod);
        if self.random.permille(500) {
            self.output_crash(pod);
        } else if let Some(session) = session {
            let after = self.random.ms(0, 500);
            self.after(after, Happening::OutputClose(pod, session));
        }
        let after = self.random.ms(200, if self.quiet { 2_000 } else { 30_000 });
        self.after(after, Happening::Start(pod));
    }

    fn freeze(&mut self, pod: usize) {
        if self.pods[pod].frozen.is_some() || self.pods[pod].process.is_none() {
            return;
        }
        let who = Who {
            pod,
            life: self.pods[pod].life,
        };
        let halves = self
            .random
            .pick(&[(true, true), (true, true), (true, false), (false, true)]);
        if halves.0 {
            let cut = self.process(who).is_some_and(|p| p.client.has_cut());
            if !cut {
                self.client_silent(who);
            }
        }
        self.pods[pod].frozen = Some(halves);
        let after = if self.random.permille(500) {
            self.random.ms(100, 8_000)
        } else {
            self.random.ms(8_000, 50_000)
        };
        self.after(after, Happening::Thaw(pod));
    }

    /// A frozen pod goes on: everything that waited for it happens now, in order.
    pub(super) fn thaw(&mut self, pod: usize) {
        let Some((input, _)) = self.pods[pod].frozen.take() else {
            return;
        };
        self.note(|| format!("pod {pod} thaws"));
        let who = Who {
            pod,
            life: self.pods[pod].life,
        };
        let stalled = std::mem::take(&mut self.pods[pod].stalled);
        for happening in stalled {
            self.after(Duration::ZERO, happening);
        }
        if input {
            self.client_speaks(who);
            self.forgive_drain(who);
        }
    }

    fn operate(&mut self, who: Who) -> Lawful {
        if self.is_frozen(who.pod, Half::Input) || self.process(who).is_none() {
            return Ok(());
        }
        let kinds = if self.scenario.parks() { 4 } else { 3 };
        let operator = match self.random.below(kinds) {
            3 => Operator::Unpark {
                partition: None,
                lane: None,
            },
            0 => Operator::Pause,
            1 => Operator::Resume {
                storm_guard_off_until: None,
            },
            _ => {
                let index = self.random.index(self.logs.len());
                let log = &self.logs[index];
                if log.records.is_empty() {
                    return Ok(());
                }
                let chosen = self.random.index(log.records.len());
                self.laws.skipped(index, chosen);
                Operator::Skip {
                    partition: log.partition.clone(),
                    position: log.records[chosen].position,
                    reason: "an operator said so".into(),
                }
            }
        };
        self.feed(who, Input::Operator(operator))
    }

    /// Everything works again.
    pub(super) fn calm_down(&mut self) {
        for pod in 0..self.pods.len() {
            self.thaw(pod);
            let who = Who {
                pod,
                life: self.pods[pod].life,
            };
            if let Some(process) = self.process(who) {
                let client = process.client.id;
                self.mend(who, client);
                self.app_works(who);
            }
        }
        self.output_away_until = self.now;
    }
}
