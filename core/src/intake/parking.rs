//! Parked lanes (D-L5, `deadLetter.onDeadLetter: ParkKey`): after a dead letter the later events
//! of its lane are dead-lettered too, until an operator or `deadLetter.parkTtl` lets it go on.
//!
//! Invariant: a lane is parked before anything behind its dead letter is answered.
//! Invariant: as many lanes are parked as a commit can name; the event whose lane finds no room
//! waits, and its lane with it, so that nothing is forgotten over a change of owners.

use std::time::Duration;

use super::Intake;
use super::io::{Effect, Fact};
use super::tenure::{Answer, EventRef, Letter, Place, Tenure, TenureId};
use crate::contract::commit::Parked;
use crate::contract::result::{Reason, Stage};
use crate::lanes::LaneHash;
use crate::ledger::Number;
use crate::position::Partition;
use crate::rules::Rule;
use crate::time::Time;

/// A dead letter that waits for room among the parked lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    number: Number,
    /// Its lane waits with it. A refusal by the output comes when the lane has gone on: then
    /// the results of the partition wait.
    lane_waits: bool,
}

impl Intake {
    /// Parks the lane of an event that is about to be dead-lettered. False if there is no room:
    /// then the event must be held.
    fn park(&mut self, event: EventRef, now: Time) -> bool {
        let Some(parking) = self
            .settings
            .parking
            .filter(|_| self.settings.rules.hold(Rule::Parking))
        else {
            return true;
        };
        let ordering = self.settings.ordering;
        let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
            return true;
        };
        let Some(work) = tenure.ledger.get(event.number) else {
            return true;
        };
        let Some(lane) = LaneHash::of(ordering, work.event.key()) else {
            return true;
        };
        if tenure.parked.iter().any(|parked| parked.lane == lane) {
            return true;
        }
        if tenure.parked.len() >= parking.lanes_max {
            return false;
        }
        tenure.parked.push(Parked {
            lane,
            since_s: seconds(now),
        });
        tenure.since_commit += 1;
        true
    }

    /// Parks the lane of an event whose dead letter is decided. True if the event is held
    /// instead, with its letter; `lane_waits` tells whether its lane waits for it.
    pub(super) fn park_or_hold(
        &mut self,
        event: EventRef,
        letter: Option<&Letter>,
        lane_waits: bool,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if self.park(event, now) {
            return false;
        }
        let Some(tenure) = self.tenures.get_mut(&event.tenure) else {
            return false;
        };
        let Some(work) = tenure.ledger.get_mut(event.number) else {
            return false;
        };
        work.place = Place::Held;
        if let Some(letter) = letter {
            work.answer = Some(Answer::DeadLetter(Box::new(letter.clone())));
        }
        tenure.resend.remove(&event.number);
        if tenure.held.is_empty() {
            effects.push(Effect::Report(Fact::ParkingFull {
                partition: tenure.partition.clone(),
                position: work.event.position(),
            }));
        }
        tenure.held.push_back(Held {
            number: event.number,
            lane_waits,
        });
        true
    }

    /// The letter of an event whose lane is parked.
    pub(super) fn parked_letter(&self, event: EventRef) -> Option<Letter> {
        let tenure = self.tenures.get(&event.tenure)?;
        if tenure.parked.is_empty() {
            return None;
        }
        let work = tenure.ledger.get(event.number)?;
        let lane = LaneHash::of(self.settings.ordering, work.event.key())?;
        let parked = tenure.parked.iter().any(|parked| parked.lane == lane);
        parked.then(letter)
    }

    /// Events of a half that is not sent, because their lanes were parked meanwhile. Of several
    /// events of one lane the later ones wait in it for their turn.
    pub(super) fn dead_letter_parked(
        &mut self,
        events: &[EventRef],
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        let mut lanes = Vec::new();
        let (mut first, mut behind) = (Vec::new(), Vec::new());
        for event in events {
            let Some(lane) = self.work(*event).map(|work| (event.tenure, work.lane)) else {
                continue;
            };
            if lanes.contains(&lane) {
                behind.push(*event);
            } else {
                lanes.push(lane);
                first.push(*event);
            }
        }
        for event in behind.into_iter().rev() {
            self.put_behind(event);
        }
        for event in first {
            self.dead_letter_unsent(event, letter(), now, effects);
        }
    }

    /// An operator lets lanes go on.
    pub(super) fn unpark(&mut self, partition: Option<&Partition>, lane: Option<LaneHash>) {
        for tenure in self.tenures.values_mut() {
            if partition.is_none_or(|wanted| *wanted == tenure.partition) {
                tenure.unpark(|parked| lane.is_none_or(|lane| parked.lane == lane));
            }
        }
    }

    /// Lets lanes go on whose time is over, and uses the room for dead letters that are held.
    pub(super) fn advance_parking(&mut self, now: Time) {
        let Some(parking) = self.settings.parking else {
            return;
        };
        for tenure in self.tenures.values_mut().filter(|t| !t.parked.is_empty()) {
            tenure.unpark(|parked| now.wall_ms >= ends_ms(parked, parking.ttl));
        }
        let waiting: Vec<TenureId> = self
            .tenures
            .iter()
            .filter(|(_, t)| {
                t.is_live() && !t.held.is_empty() && t.parked.len() < parking.lanes_max
            })
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            while let Some(held) = self.tenures.get_mut(&id).and_then(|t| t.held.pop_front()) {
                let event = EventRef {
                    tenure: id,
                    number: held.number,
                };
                if !self.park(event, now) {
                    let tenure = self.tenures.get_mut(&id).expect("it was just there");
                    tenure.held.push_front(held);
                    break;
                }
                self.let_go(event, held.lane_waits, now);
            }
        }
    }

    /// The dead letter of a held event is published.
    fn let_go(&mut self, event: EventRef, lane_waits: bool, now: Time) {
        let tenure = self
            .tenures
            .get_mut(&event.tenure)
            .expect("its lane was just parked");
        let work = tenure
            .ledger
            .get_mut(event.number)
            .expect("held events are in flight");
        work.place = Place::Outbox;
        let lane = work.lane;
        if lane_waits {
            tenure.outbox.push_back(event.number);
            self.go_on(event.tenure, lane, now);
        } else {
            tenure.resend.insert(event.number);
        }
    }

    /// When the next lane goes on by itself.
    pub(super) fn next_unpark(&self, now: Time) -> Option<Duration> {
        let ttl = self.settings.parking?.ttl;
        let ends = self
            .tenures
            .values()
            .flat_map(|tenure| &tenure.parked)
            .map(|parked| ends_ms(parked, ttl))
            .min()?;
        let rest = u64::try_from(ends.saturating_sub(now.wall_ms)).unwrap_or(0);
        Some(now.boot + Duration::from_millis(rest))
    }
}

/// The dead letter of an event whose lane is parked.
pub(super) fn letter() -> Letter {
    let message = "an earlier event of its lane was dead-lettered, and deadLetter.onDeadLetter is \
                   ParkKey; millrace dlq unpark lets the lane go on"
        .to_owned();
    Letter::of(Reason::LaneParked, Stage::Input, "LANE_PARKED", message)
}

impl Tenure {
    /// Whether a result that the output refused finds no room: nothing behind it may be stored.
    pub(super) fn holds_output(&self) -> bool {
        self.held.iter().any(|held| !held.lane_waits)
    }

    fn unpark(&mut self, which: impl Fn(&Parked) -> bool) {
        let before = self.parked.len();
        self.parked.retain(|parked| !which(parked));
        self.since_commit += (before - self.parked.len()) as u64;
    }
}

fn ends_ms(parked: &Parked, ttl: Duration) -> i64 {
    let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2);
    (i64::from(parked.since_s) * 1000).saturating_add(ttl)
}

fn seconds(now: Time) -> u32 {
    u32::try_from(now.wall_ms / 1000).unwrap_or(0)
}
