//! Laws of the single machines, checked after each step against models that are too simple to be
//! wrong. The laws of the whole intake are in `millrace-sim`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use millrace_core::batcher::{self, Size};
use millrace_core::lanes::{LaneId, Lanes, Ordering};
use millrace_core::ledger::{Delivered, Ledger};
use millrace_core::position::Position;
use millrace_core::rules::Rules;
use millrace_core::time::Time;
use millrace_core::window::{Concurrency, Window};
use proptest::prelude::*;

proptest! {
    /// D-W1, D-W5: the watermark is the lowest position that is not terminal, and a ledger that
    /// starts from another one's commit knows exactly what that one had finished.
    #[test]
    fn d_w1_the_watermark_is_the_lowest_position_that_is_not_terminal(
        gaps in prop::collection::vec(0i64..4, 1..60),
        finishes in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
    ) {
        let mut ledger = Ledger::new(Position::new(3), &[], Rules::ALL);
        let mut open: BTreeMap<Position, u64> = BTreeMap::new();
        let mut delivered = BTreeSet::new();
        let mut next = 3;
        for gap in gaps {
            next += gap;
            let position = Position::new(next);
            let Delivered::New(number) = ledger.deliver(position, ()) else {
                panic!("nothing is remembered");
            };
            open.insert(position, number);
            delivered.insert(position);
            next += 1;
        }
        for finish in finishes {
            if let Some((&position, &number)) = open.iter().nth(finish.index(open.len().max(1))) {
                prop_assert!(ledger.finish(number).is_some());
                open.remove(&position);
            }
            let lowest = open.keys().next().copied().unwrap_or(Position::new(next));
            prop_assert_eq!(ledger.watermark(), lowest);
            prop_assert_eq!(ledger.in_flight(), open.len());
        }
        let mut heir = Ledger::new(ledger.watermark(), &ledger.terminal_bitmap(), Rules::ALL);
        for position in delivered.range(ledger.watermark()..) {
            let new = matches!(heir.deliver(*position, ()), Delivered::New(_));
            prop_assert_eq!(new, open.contains_key(position), "{}", position);
        }
    }

    /// D-L2: in every lane events come out in the order in which they went in, one at a time,
    /// whatever is put back in between; nothing is lost and nothing comes twice.
    #[test]
    fn d_l2_every_lane_is_a_queue_with_one_event_out_at_a_time(
        keys in prop::collection::vec(prop::option::of(0u8..4), 1..60),
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..400),
    ) {
        let mut lanes = Lanes::new();
        let mut waiting: BTreeMap<u8, VecDeque<u64>> = BTreeMap::new();
        let mut lane_of = BTreeMap::new();
        for (number, key) in (0u64..).zip(&keys) {
            let lane = LaneId::of(Ordering::Key, 7, key.as_ref().map(std::slice::from_ref));
            lanes.push(lane, number);
            lane_of.insert(number, (*key, lane));
            if let Some(key) = key {
                waiting.entry(*key).or_default().push_back(number);
            }
        }
        let mut out: BTreeSet<u64> = BTreeSet::new();
        let mut done = BTreeSet::new();
        let settle = |lanes: &mut Lanes, out: &mut BTreeSet<u64>, done: &mut BTreeSet<u64>, number: u64, again: bool| {
            out.remove(&number);
            let (_, lane) = lane_of[&number];
            if again {
                lanes.put_back(lane, number);
            } else {
                lanes.release(lane);
                done.insert(number);
            }
        };
        for (again, pick) in steps {
            while let Some((_, number)) = lanes.take() {
                if let (Some(key), _) = lane_of[&number] {
                    let front = waiting[&key].iter().find(|n| !done.contains(*n));
                    prop_assert_eq!(front, Some(&number), "the oldest of its lane goes first");
                    let busy = out.iter().any(|n| lane_of[n].0 == Some(key));
                    prop_assert!(!busy, "one event of a lane is out at a time");
                }
                prop_assert!(out.insert(number) && !done.contains(&number), "{} came twice", number);
            }
            if let Some(&number) = out.iter().nth(pick.index(out.len().max(1))) {
                settle(&mut lanes, &mut out, &mut done, number, again);
            }
        }
        loop {
            for number in out.clone() {
                settle(&mut lanes, &mut out, &mut done, number, false);
            }
            let Some((_, number)) = lanes.take() else { break };
            out.insert(number);
        }
        prop_assert_eq!(done.len(), keys.len(), "everything comes out in the end");
    }

    /// D-C3: batches stay between one event and the maximum, grow only after a round of full ones
    /// in time, by half, and shrink by half at most.
    #[test]
    fn d_c3_batches_grow_in_small_steps_and_only_while_the_app_keeps_up(
        max in 1usize..300,
        steps in prop::collection::vec((0u8..8, 1u64..200), 0..600),
    ) {
        let settings = batcher::Settings {
            records_max: max,
            target_p99: Some(Duration::from_millis(100)),
            ..batcher::Settings::SINGLE
        };
        let mut size = Size::new(&settings);
        prop_assert_eq!(size.limit(), max.min(10));
        let mut now = Time { boot: Duration::ZERO, wall_ms: 0 };
        let mut full_in_time = 0;
        for (step, ms) in steps {
            let sent = now;
            now = now.plus(Duration::from_millis(ms));
            let before = size.limit();
            if step == 0 {
                size.too_large(sent, now);
                prop_assert!(size.limit() >= (before / 2).max(1) && size.limit() <= before);
                let shrunk = size.limit();
                size.too_large(sent, now);
                prop_assert_eq!(size.limit(), shrunk, "calls that were open together shrink once");
                full_in_time = 0;
            } else {
                size.answered(before, Duration::from_millis(ms));
                full_in_time = if ms < 100 { full_in_time + 1 } else { 0 };
                if size.limit() > before {
                    prop_assert!(full_in_time >= 20, "it grew after {full_in_time}");
                    prop_assert!(size.limit() <= before + before.div_ceil(2) + 1);
                    full_in_time = 0;
                }
            }
            prop_assert!((1..=max).contains(&size.limit()), "{}", size.limit());
        }
    }

    /// D-C2: the limit stays between 1 and the maximum, and open calls never pass it.
    #[test]
    fn d_c2_open_calls_never_pass_the_limit(
        max in 1u32..40,
        steps in prop::collection::vec((0u8..4, 1u64..200), 0..500),
    ) {
        let mut window = Window::new(Concurrency::Adaptive { max });
        for (step, ms) in steps {
            match step {
                0 | 1 if window.has_room() => {
                    window.opened();
                    prop_assert!(window.open() <= window.limit());
                }
                2 if window.open() > 0 => window.succeeded(Duration::from_millis(ms)),
                3 if window.open() > 0 => window.failed(),
                _ => {}
            }
            prop_assert!((1..=max).contains(&window.limit()), "{}", window.limit());
        }
    }
}
