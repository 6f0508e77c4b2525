//! How far this host's wall clock is behind the clocks that stamped the events (F-18).
//!
//! An event that was stamped in the future is evidence that two clocks disagree, not of which of
//! them is wrong: brokers are rarely, producers may set anything. Both count, because operators
//! want to know of both; what other replicas show tells them apart. A clock that is ahead leaves
//! no such evidence: to it, all events are merely old. Nor are jumps of the wall clock against
//! the boot clock counted: most of them put a wrong clock right.
//!
//! Invariant: it only informs. No event, lease or age is treated otherwise because of it.

use std::time::Duration;

use crate::event::{Event, TimestampKind};
use crate::time::Time;

/// Evidence is kept for one to two of these.
const SLOT: Duration = Duration::from_secs(30);

/// The largest lead that the timestamps of recent events had over this host's wall clock.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Skew {
    /// Slot of the boot clock in which an event was last ahead.
    slot: u64,
    /// The largest lead in that slot.
    lead: Duration,
    /// The largest lead in the slot before it.
    lead_before: Duration,
}

impl Skew {
    /// Takes events that were read just now.
    pub fn observe(&mut self, events: &[Event], now: Time) {
        let stamped = events
            .iter()
            .map(Event::timestamp)
            .filter(|timestamp| timestamp.kind != TimestampKind::None);
        let latest_ms = stamped.map(|timestamp| timestamp.ms).max();
        let lead_ms = latest_ms.map_or(0, |ms| ms.saturating_sub(now.wall_ms));
        let Some(lead_ms) = u64::try_from(lead_ms).ok().filter(|ms| *ms > 0) else {
            return;
        };
        let (lead, lead_before) = self.leads(now);
        *self = Self {
            slot: slot(now),
            lead: lead.max(Duration::from_millis(lead_ms)),
            lead_before,
        };
    }

    /// The largest lead of the events that were read within the last 30 s, and of none that were
    /// read more than 60 s ago; zero if all of them were stamped in the past.
    pub fn lead(&self, now: Time) -> Duration {
        let (lead, lead_before) = self.leads(now);
        lead.max(lead_before)
    }

    /// What is known of the present slot, and of the one before it.
    fn leads(&self, now: Time) -> (Duration, Duration) {
        match slot(now).saturating_sub(self.slot) {
            0 => (self.lead, self.lead_before),
            1 => (Duration::ZERO, self.lead),
            _ => (Duration::ZERO, Duration::ZERO),
        }
    }
}

fn slot(now: Time) -> u64 {
    now.boot.as_secs() / SLOT.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventsBuilder, Timestamp};
    use crate::position::Position;

    const START: Time = Time {
        boot: Duration::from_secs(3_600),
        wall_ms: 1_700_000_000_000,
    };
    const DAY_MS: i64 = 86_400_000;

    fn after(seconds: u64) -> Time {
        START.plus(Duration::from_secs(seconds))
    }

    fn events(timestamps: &[(TimestampKind, i64)]) -> Vec<Event> {
        let mut events = EventsBuilder::default();
        for (kind, ms) in timestamps {
            let timestamp = Timestamp {
                ms: *ms,
                kind: *kind,
            };
            let no_headers = std::iter::empty::<(&[u8], Option<&[u8]>)>();
            events.push(Position::START, timestamp, None, None, no_headers);
        }
        events.finish()
    }

    fn check(timestamps: &[(TimestampKind, i64)], lead_ms: u64) {
        let mut skew = Skew::default();
        skew.observe(&events(timestamps), START);
        let lead = skew.lead(START);
        assert_eq!(lead, Duration::from_millis(lead_ms), "{timestamps:?}");
    }

    #[test]
    fn the_largest_lead_counts_whoever_set_it() {
        use TimestampKind::{Append, Create, None};
        let now = START.wall_ms;
        check(&[], 0);
        check(&[(Create, now), (Append, now - DAY_MS)], 0);
        check(&[(Create, 0), (Append, i64::MIN)], 0);
        check(&[(Append, now + 1)], 1);
        check(&[(Create, now + DAY_MS)], 86_400_000);
        check(
            &[
                (Create, 0),
                (Append, now + 5),
                (Create, now + 7),
                (Append, now),
            ],
            7,
        );
        // What has no timestamp says nothing, whatever stands in its place.
        check(&[(None, now + DAY_MS), (Create, now)], 0);
        // Nothing overflows.
        check(&[(Create, i64::MAX)], (i64::MAX - now).unsigned_abs());
    }

    #[test]
    fn a_lead_is_kept_for_half_a_minute_and_forgotten_within_a_minute() {
        for read_at in [0, 1, 29] {
            let mut skew = Skew::default();
            let ahead = |lead_ms| {
                let ms = after(read_at).wall_ms + lead_ms;
                events(&[(TimestampKind::Append, ms)])
            };
            skew.observe(&ahead(5_000), after(read_at));
            skew.observe(&ahead(2_000), after(read_at));
            let lead = |skew: &Skew, seconds| skew.lead(after(read_at + seconds)).as_secs();
            assert_eq!((lead(&skew, 0), lead(&skew, 30)), (5, 5), "{read_at}");
            assert_eq!(lead(&skew, 60), 0, "{read_at}");
            // Events that are not ahead neither hide it nor keep it.
            for second in 0..60 {
                let past = events(&[(TimestampKind::Append, START.wall_ms)]);
                skew.observe(&past, after(read_at + second));
                assert_eq!(lead(&skew, second) > 0, second < 60 - read_at, "{second}");
            }
        }
    }

    #[test]
    fn a_smaller_lead_takes_over_when_the_larger_one_is_old() {
        let mut skew = Skew::default();
        for second in 0..120 {
            let lead_ms = if second == 0 { 9_000 } else { 3_000 };
            let ms = after(second).wall_ms + lead_ms;
            skew.observe(&events(&[(TimestampKind::Create, ms)]), after(second));
            let expect = if second < 60 { 9 } else { 3 };
            assert_eq!(skew.lead(after(second)).as_secs(), expect, "{second}");
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_changes_nothing_that_was_seen() {
        let mut skew = Skew::default();
        let ahead = events(&[(TimestampKind::Append, START.wall_ms + 4_000)]);
        skew.observe(&ahead, START);
        for wall_ms in [i64::MIN, 0, START.wall_ms + DAY_MS, i64::MAX] {
            let jumped = Time { wall_ms, ..START };
            assert_eq!(skew.lead(jumped), Duration::from_secs(4));
        }
        // With a clock that was put back an hour, events of now are ahead.
        let back = Time {
            wall_ms: START.wall_ms - 3_600_000,
            ..after(90)
        };
        let of_now = events(&[(TimestampKind::Append, START.wall_ms)]);
        skew.observe(&of_now, back);
        assert_eq!(skew.lead(back), Duration::from_secs(3_600));
    }
}
