//! Flow control: which partitions may hand over events (D-C1).
//!
//! Invariant: what is in flight is bounded in events, bytes and span; reaching any bound pauses,
//! and only a clear distance to it resumes, so that partitions do not flutter.

use super::Intake;
use super::io::Effect;
use super::tenure::{Pause, Phase, Tenure};

/// Part of a bound below which a paused partition goes on: three quarters.
const fn low_water(bound: u64) -> u64 {
    bound - bound / 4
}

impl Intake {
    /// Pauses and resumes partitions as the bounds say.
    pub(super) fn regulate(&mut self, effects: &mut Vec<Effect>) {
        let events = self.in_flight() as u64;
        let bytes = self.in_flight_bytes as u64;
        let (events_max, bytes_max) = (
            self.settings.in_flight_max as u64,
            self.settings.in_flight_bytes_max as u64,
        );
        self.over_bounds = if self.over_bounds {
            events > low_water(events_max) || bytes > low_water(bytes_max)
        } else {
            events >= events_max || bytes >= bytes_max
        };
        let everywhere = if self.operator_paused || self.drain.is_some() {
            Some(Pause::Operator)
        } else if self.breaker.cause().is_some() {
            Some(Pause::Breaker)
        } else {
            self.over_bounds.then_some(Pause::Window)
        };
        let window = self.settings.window;
        for tenure in self.tenures.values_mut() {
            let wanted = everywhere.or_else(|| tenure.own_pause(window));
            let readable = matches!(tenure.phase, Phase::Live { .. });
            if wanted.is_some() != tenure.paused.is_some() && readable {
                effects.push(match wanted {
                    Some(_) => Effect::Pause(tenure.partition.clone()),
                    None => Effect::Resume(tenure.partition.clone()),
                });
            }
            tenure.paused = wanted;
        }
    }

    /// Events in flight over all partitions.
    pub(super) fn in_flight(&self) -> usize {
        self.tenures
            .values()
            .map(|tenure| tenure.ledger.in_flight())
            .sum()
    }
}

impl Tenure {
    fn own_pause(&self, window: u64) -> Option<Pause> {
        match self.phase {
            Phase::DataLost { .. } => return Some(Pause::DataLoss),
            Phase::Reading { .. } | Phase::Halted { .. } => return Some(Pause::Token),
            Phase::Live { .. } | Phase::Revoking { .. } => {}
        }
        let bound = if self.paused == Some(Pause::Window) {
            low_water(window)
        } else {
            window
        };
        (self.span() >= bound).then_some(Pause::Window)
    }
}
