//! The end of a run: faults stop, everything has to settle, then every process drains.

use std::time::Duration;

use millrace_core::intake::io::{Input, Operator};

use super::happening::{Happening, Who};
use super::{DRAINED_WITHIN, LATE, Phase, World, log};
use crate::laws::{Law, Lawful};

/// After the last fault something moves on at least this often, until everything is settled.
const MOVES_WITHIN: Duration = Duration::from_secs(300);

impl World {
    /// A process that was frozen beyond the deadline of its drain stops when it can.
    pub(super) fn forgive_drain(&mut self, who: Who) {
        let now = self.now;
        if let Some(by) = self
            .process(who)
            .and_then(|process| process.stop_by.as_mut())
        {
            *by = (*by).max(now + LATE);
        }
    }

    pub(super) fn quiesce(&mut self) -> Lawful {
        self.note(|| "faults end here".to_owned());
        self.quiet = true;
        self.phase = Phase::Settling {
            since: self.now,
            moved: self.now,
            open: u64::MAX,
        };
        self.calm_down();
        for pod in 0..self.pods.len() {
            self.after(Duration::ZERO, Happening::Start(pod));
        }
        self.after(Duration::from_secs(1), Happening::Check);
        Ok(())
    }

    /// Once a second after the faults: is everything settled?
    pub(super) fn check(&mut self) -> Lawful {
        match self.phase {
            Phase::Busy | Phase::Done => return Ok(()),
            Phase::Settling { since, moved, open } => self.check_settled(since, moved, open)?,
            Phase::Draining { since } => {
                if self.pods.iter().all(|pod| pod.process.is_none()) {
                    self.phase = Phase::Done;
                } else if self.now > since + DRAINED_WITHIN + Duration::from_secs(5) {
                    return Err(Law::Liveness.broken("a drain does not end"));
                }
            }
        }
        self.after(Duration::from_secs(1), Happening::Check);
        Ok(())
    }

    pub(super) fn check_settled(
        &mut self,
        since: Duration,
        mut moved: Duration,
        open: u64,
    ) -> Lawful {
        let committed: Vec<_> = self.group.committed();
        if self.laws.settled(&committed) {
            self.note(|| "everything is settled; draining".to_owned());
            self.phase = Phase::Draining { since: self.now };
            for pod in 0..self.pods.len() {
                self.drain(Who {
                    pod,
                    life: self.pods[pod].life,
                })?;
            }
            return Ok(());
        }
        let waited = self.now - since;
        let still_open = self.laws.open(&committed);
        if still_open < open {
            moved = self.now;
        }
        self.phase = Phase::Settling {
            since,
            moved,
            open: open.min(still_open),
        };
        if self.now > moved + MOVES_WITHIN {
            let open = self.laws.unsettled(&committed) + &self.whereabouts();
            return Err(Law::Liveness.broken(format!(
                "nothing moves for {} s: {open}",
                MOVES_WITHIN.as_secs()
            )));
        }
        // An operator looks after what only an operator can decide: blocked events, storms.
        if waited.as_secs() % 20 == 19 {
            for pod in 0..self.pods.len() {
                let until = self.local(pod).plus(Duration::from_secs(600));
                let resume = Operator::Resume {
                    storm_guard_off_until: Some(until),
                };
                let who = Who {
                    pod,
                    life: self.pods[pod].life,
                };
                self.feed(who, Input::Operator(resume))?;
                let unpark = Operator::Unpark {
                    partition: None,
                    lane: None,
                };
                self.feed(who, Input::Operator(unpark))?;
                self.give_up_blocked(who)?;
            }
        }
        Ok(())
    }

    /// An operator gives up on events that are blocked because the app can never take them.
    pub(super) fn give_up_blocked(&mut self, who: Who) -> Lawful {
        let mut blocked = Vec::new();
        if let Some(process) = self.process(who) {
            let state = process.intake.state();
            let partitions: Vec<_> = state.partitions.into_iter().map(|p| p.partition).collect();
            let process = self.pods[who.pod]
                .process
                .as_ref()
                .expect("it was just there");
            for partition in partitions {
                for (index, record) in self.logs[Self::index_of(&partition)]
                    .records
                    .iter()
                    .enumerate()
                {
                    let it = process.intake.record(&partition, record.position);
                    if it.is_some_and(|it| it.place == "blocked")
                        && record.nature == log::Nature::Oversized
                    {
                        blocked.push((partition.clone(), index, record.position));
                    }
                }
            }
        }
        for (partition, index, position) in blocked {
            self.laws.skipped(Self::index_of(&partition), index);
            let reason = "too large for the app".to_owned();
            let skip = Operator::Skip {
                partition,
                position,
                reason,
            };
            self.feed(who, Input::Operator(skip))?;
        }
        Ok(())
    }

    /// What the machines say about themselves when nothing goes on, for people.
    pub(super) fn whereabouts(&self) -> String {
        let mut text = String::new();
        for (number, pod) in self.pods.iter().enumerate() {
            let Some(process) = &pod.process else {
                continue;
            };
            let state = process.intake.state();
            text += &format!(
                "pod {number}: {} calls of {} open, breaker {:?}, app {}, output {}; ",
                state.calls_open,
                state.concurrency_limit,
                state.breaker,
                state.app_reachable,
                state.output_connected
            );
            for partition in state.partitions.iter().filter(|p| p.phase != "former") {
                let log = &self.logs[Self::index_of(&partition.partition)];
                let in_flight = log.records.iter().filter_map(|record| {
                    let state = process
                        .intake
                        .record(&partition.partition, record.position)?;
                    Some(format!(
                        "{} {} {:?}",
                        record.position, state.place, record.nature
                    ))
                });
                let places: Vec<_> = in_flight.take(6).collect();
                text += &format!(
                    "{} {} paused {:?}, {} in flight {places:?}; ",
                    partition.partition, partition.phase, partition.paused, partition.in_flight
                );
            }
        }
        text
    }
}
