//! Worlds whose outcomes are known, judged; and worlds with one seeded fault, which the judge
//! has to find.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const CLUSTER: &str = "demo";
const WINDOW: u64 = 1_000;

const STRICT: Rules = Rules {
    ordering: Ordering::Key,
    unanswered: Unanswered::Expected(0),
    repeats: Repeats::Forbidden,
    window: WINDOW,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Results(u32),
    Filtered,
    Dead,
}

#[derive(Clone, Debug)]
struct Happened {
    source: i32,
    position: i64,
    key: Option<u8>,
    outcome: Outcome,
}

/// A result as it stands in an output partition.
#[derive(Clone, PartialEq, Debug)]
struct Stored {
    source: i32,
    position: i64,
    id: String,
    release: &'static str,
}

/// Everything that a run leaves in the logs.
#[derive(Clone, Debug)]
struct World {
    events: Vec<Happened>,
    outputs: Vec<Vec<Stored>>,
    dead: Vec<Stored>,
    watermarks: [i64; 2],
}

fn event_id(source: i32, position: i64) -> EventId {
    PartitionIdentity::new(CLUSTER, "orders", source).event_id(Position::new(position))
}

fn stored(source: i32, position: i64, index: u32) -> Stored {
    let id = ResultId::of(&event_id(source, position), index);
    Stored {
        source,
        position,
        id: id.as_str().to_owned(),
        release: "r1",
    }
}

impl World {
    /// Runs the events through lanes: results of a lane in order, lanes mixed by `mix`.
    fn run(events: Vec<Happened>, mix: &[u8]) -> Self {
        let mut world = Self {
            watermarks: [0, 1].map(|source| {
                let of = events.iter().filter(|event| event.source == source);
                of.map(|event| event.position + 1).max().unwrap_or(0)
            }),
            events: events.clone(),
            outputs: vec![Vec::new(); 3],
            dead: Vec::new(),
        };
        let mut lanes: Vec<((i32, i64), VecDeque<Happened>)> = Vec::new();
        for event in events {
            // Without a key every event is a lane of its own.
            let lane = event.key.map_or(-1 - event.position, i64::from);
            match lanes.iter_mut().find(|(of, _)| *of == (event.source, lane)) {
                Some((_, queue)) => queue.push_back(event),
                None => lanes.push(((event.source, lane), VecDeque::from([event]))),
            }
        }
        let mut mix = mix.iter().cycle();
        while !lanes.is_empty() {
            let pick = usize::from(*mix.next().unwrap()) % lanes.len();
            match lanes[pick].1.pop_front() {
                Some(event) => world.store(&event),
                None => drop(lanes.swap_remove(pick)),
            }
        }
        world
    }

    fn store(&mut self, event: &Happened) {
        match event.outcome {
            Outcome::Filtered => {}
            Outcome::Dead => self.dead.push(stored(event.source, event.position, 0)),
            Outcome::Results(results) => {
                let output = usize::from(event.key.unwrap_or(0)) % self.outputs.len();
                for index in 0..results {
                    let stored = stored(event.source, event.position, index);
                    self.outputs[output].push(stored);
                }
            }
        }
    }

    fn judge(&self, rules: Rules) -> Report {
        let sources = [0, 1].map(|number| Source {
            partition: Partition::new("orders", number),
            log_start: Position::START,
            log_end: Position::new(i64::MAX),
        });
        let mut judge = Judge::new(rules, CLUSTER, sources.to_vec());
        for event in &self.events {
            let partition = Partition::new("orders", event.source);
            let key = event.key.map(|key| [key]);
            let key = key.as_ref().map(|key| &key[..]);
            judge.event(&partition, Position::new(event.position), key, None);
        }
        for (number, output) in (0..).zip(&self.outputs) {
            let place = Partition::new("scored", number);
            for (at, stored) in (0..).zip(output) {
                judge.result(&place, Position::new(at), stored.headers());
            }
        }
        let place = Partition::new("dlq", 0);
        for (at, stored) in (0..).zip(&self.dead) {
            judge.dead_letter(&place, Position::new(at), stored.dead_headers());
        }
        for (number, watermark) in (0..).zip(self.watermarks) {
            let settled = Settled {
                watermark: Position::new(watermark),
                above: Vec::new(),
            };
            judge.settled(&Partition::new("orders", number), &settled);
        }
        judge.verdict()
    }

    fn count(&self, wanted: impl Fn(Outcome) -> bool) -> u64 {
        let of = self.events.iter().filter(|event| wanted(event.outcome));
        of.count() as u64
    }
}

impl Stored {
    fn headers(&self) -> impl FnMut(&[u8]) -> Option<Vec<u8>> {
        |name| match name {
            b"millrace-src" => Some(format!("orders/{}/{}", self.source, self.position).into()),
            b"millrace-id" => Some(self.id.clone().into()),
            b"millrace-release" => Some(self.release.into()),
            _ => None,
        }
    }

    fn dead_headers(&self) -> impl FnMut(&[u8]) -> Option<Vec<u8>> {
        |name| match name {
            b"millrace-dlq-orig-topic" => Some(b"orders".to_vec()),
            b"millrace-dlq-orig-partition" => Some(self.source.to_string().into()),
            b"millrace-dlq-orig-offset" => Some(self.position.to_string().into()),
            b"millrace-dlq-id" => {
                let id = event_id(self.source, self.position);
                Some(id.as_str().to_owned().into())
            }
            b"millrace-dlq-app-release" => Some(self.release.into()),
            _ => None,
        }
    }
}

fn outcome(filters: bool) -> impl Strategy<Value = Outcome> {
    let filtered = if filters { 1 } else { 0 };
    prop_oneof![
        6 => Just(Outcome::Results(1)),
        2 => (2_u32..4).prop_map(Outcome::Results),
        1 => Just(Outcome::Dead),
        filtered => Just(Outcome::Filtered),
    ]
}

/// Events with gaps between their positions, few keys, some without.
fn events(filters: bool, least: usize) -> impl Strategy<Value = Vec<Happened>> {
    let event = (
        0_i32..2,
        1_i64..4,
        proptest::option::of(0_u8..5),
        outcome(filters),
    );
    proptest::collection::vec(event, least..80).prop_map(|drafts| {
        let mut next = [0_i64; 2];
        let mut events = Vec::new();
        for (source, gap, key, outcome) in drafts {
            let next = &mut next[usize::try_from(source).unwrap()];
            *next += gap;
            events.push(Happened {
                source,
                position: *next,
                key,
                outcome,
            });
        }
        events
    })
}

fn world(filters: bool, least: usize) -> impl Strategy<Value = World> {
    let mix = proptest::collection::vec(any::<u8>(), 1..50);
    (events(filters, least), mix).prop_map(|(events, mix)| World::run(events, &mix))
}

/// An output partition and a place in it, if there is any result at all.
fn pick(world: &World, at: &prop::sample::Index) -> Option<(usize, usize)> {
    let all: Vec<_> = (0..world.outputs.len())
        .flat_map(|output| (0..world.outputs[output].len()).map(move |at| (output, at)))
        .collect();
    (!all.is_empty()).then(|| *at.get(&all))
}

proptest! {
    #[test]
    fn a_faultless_run_is_counted_exactly(world in world(true, 0)) {
        let report = world.judge(Rules { unanswered: Unanswered::Filtered, ..STRICT });
        let counts = report.counts;
        prop_assert!(report.ok, "{report:#?}");
        prop_assert_eq!(counts.events, world.events.len() as u64);
        prop_assert_eq!(counts.answered, world.count(|o| matches!(o, Outcome::Results(_))));
        prop_assert_eq!(counts.filtered, world.count(|o| o == Outcome::Filtered));
        prop_assert_eq!(counts.dead_lettered, world.count(|o| o == Outcome::Dead));
        prop_assert_eq!(counts.pending + counts.lost + counts.duplicated, 0);
        prop_assert!(report.offenders.is_empty());
        let expected = counts.filtered;
        let exact = Rules { unanswered: Unanswered::Expected(expected), ..STRICT };
        prop_assert!(world.judge(exact).ok);
    }

    #[test]
    fn d_v1_every_event_is_counted_once(
        mut world in world(true, 0),
        cut in prop::array::uniform2(0_i64..200),
        dropped in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        world.watermarks = cut;
        for at in &dropped {
            if let Some((output, at)) = pick(&world, at) {
                world.outputs[output].remove(at);
            }
        }
        for unanswered in [Unanswered::Filtered, Unanswered::Expected(0), Unanswered::Expected(3)] {
            let counts = world.judge(Rules { unanswered, ..STRICT }).counts;
            prop_assert_eq!(
                counts.events,
                counts.answered + counts.filtered + counts.dead_lettered + counts.pending + counts.lost
            );
            prop_assert_eq!(counts.events, world.events.len() as u64);
        }
    }

    #[test]
    fn a_removed_result_is_lost_if_the_app_never_filters(
        mut world in world(false, 1), at in any::<prop::sample::Index>(),
    ) {
        let Some((output, at)) = pick(&world, &at) else { return Ok(()) };
        let gone = world.outputs[output][at].clone();
        let all = world.outputs[output].clone();
        world.outputs[output].retain(|s| (s.source, s.position) != (gone.source, gone.position));
        prop_assert_ne!(&all, &world.outputs[output]);
        let report = world.judge(STRICT);
        prop_assert!(!report.ok);
        prop_assert_eq!(report.counts.lost, 1);
        prop_assert_eq!(&report.offenders[0].event, &format!("orders/{}/{}", gone.source, gone.position));
        // Above the watermark nothing is lost yet.
        world.watermarks = [0, 0];
        let report = world.judge(STRICT);
        prop_assert!(report.ok);
        prop_assert_eq!(report.counts.pending, 1);
    }

    #[test]
    fn a_removed_dead_letter_is_lost(mut world in world(false, 1)) {
        let Some(gone) = world.dead.pop() else { return Ok(()) };
        let report = world.judge(STRICT);
        prop_assert!(!report.ok);
        prop_assert_eq!(report.counts.lost, 1);
        prop_assert_eq!(&report.offenders[0].event, &format!("orders/{}/{}", gone.source, gone.position));
    }

    #[test]
    fn d_l4_a_repeated_suffix_is_doubled_but_in_order(
        mut world in world(false, 1), at in any::<prop::sample::Index>(), length in 1_usize..20,
    ) {
        // A crash after `at`: the last results of that partition come once more.
        let Some((output, at)) = pick(&world, &at) else { return Ok(()) };
        let log = &mut world.outputs[output];
        let repeated = log[at.saturating_sub(length - 1)..=at].to_vec();
        log.splice(at + 1..at + 1, repeated.iter().cloned());
        let report = world.judge(STRICT);
        prop_assert!(!report.ok);
        prop_assert_eq!(report.counts.duplicated, repeated.len() as u64);
        prop_assert_eq!(report.counts.out_of_order, 0);
        prop_assert_eq!(report.counts.wrong_id, 0);
        let allowed = Rules { repeats: Repeats::Allowed, ..STRICT };
        prop_assert!(world.judge(allowed).ok);
        let narrow = Rules {
            repeats: Repeats::Allowed,
            window: report.repeat_span_max,
            ..STRICT
        };
        let narrow = world.judge(narrow);
        prop_assert!(!narrow.ok);
        prop_assert!(narrow.counts.beyond_window >= 1);
    }

    #[test]
    fn a_doubled_dead_letter_is_found(mut world in world(false, 1)) {
        let Some(first) = world.dead.first().cloned() else { return Ok(()) };
        world.dead.push(first);
        let report = world.judge(STRICT);
        prop_assert!(!report.ok);
        prop_assert_eq!(report.counts.duplicated, 1);
    }

    #[test]
    fn d_l2_two_exchanged_results_of_a_lane_are_out_of_order(
        mut world in world(false, 1), at in any::<prop::sample::Index>(),
    ) {
        let key_of = |world: &World, stored: &Stored| {
            let same = |event: &&Happened| (event.source, event.position) == (stored.source, stored.position);
            world.events.iter().find(same).and_then(|event| event.key)
        };
        let Some((output, first)) = pick(&world, &at) else { return Ok(()) };
        let a = world.outputs[output][first].clone();
        let Some(key) = key_of(&world, &a) else { return Ok(()) };
        let second = (first + 1..world.outputs[output].len()).find(|at| {
            let b = &world.outputs[output][*at];
            b.source == a.source && b.position > a.position && key_of(&world, b) == Some(key)
        });
        let Some(second) = second else { return Ok(()) };
        world.outputs[output].swap(first, second);
        let report = world.judge(STRICT);
        prop_assert!(!report.ok);
        prop_assert!(report.counts.out_of_order >= 1);
        prop_assert_eq!(report.counts.duplicated + report.counts.lost, 0);
        let free = Rules { ordering: Ordering::None, ..STRICT };
        prop_assert!(world.judge(free).ok);
    }

    #[test]
    fn d_i2_a_foreign_id_is_found(mut world in world(false, 1), at in any::<prop::sample::Index>()) {
        let Some((output, at)) = pick(&world, &at) else { return Ok(()) };
        let stored = &mut world.outputs[output][at];
        stored.id = event_id(stored.source, stored.position).as_str().to_owned();
        let report = world.judge(STRICT);
        prop_assert!(!report.ok);
        prop_assert_eq!(report.counts.wrong_id, 1);
    }

    #[test]
    fn a_result_of_no_event_is_found(mut world in world(false, 1)) {
        world.outputs[0].push(stored(0, 100_000, 0));
        let report = world.judge(STRICT);
        prop_assert!(!report.ok);
        prop_assert_eq!(report.counts.unknown_event, 1);
    }

    #[test]
    fn i2_an_event_answered_by_two_releases_is_found(
        mut world in world(false, 1), at in any::<prop::sample::Index>(),
    ) {
        let Some((output, at)) = pick(&world, &at) else { return Ok(()) };
        let mut copy = world.outputs[output][at].clone();
        copy.release = "r2";
        world.outputs[output].push(copy);
        let report = world.judge(Rules { repeats: Repeats::Allowed, ..STRICT });
        prop_assert!(!report.ok);
        prop_assert_eq!(report.counts.two_releases, 1);
    }
}

#[test]
fn two_releases_may_answer_different_events() {
    let events = [(1, 1), (2, 1)].map(|(position, results)| Happened {
        source: 0,
        position,
        key: Some(1),
        outcome: Outcome::Results(results),
    });
    let mut world = World::run(events.to_vec(), &[0]);
    world.outputs[1][1].release = "r2";
    let report = world.judge(STRICT);
    assert!(report.ok, "{report:#?}");
    let releases = vec![("r1".to_owned(), 1), ("r2".to_owned(), 1)];
    assert_eq!(report.releases, releases);
}

#[test]
fn d_w4_terminal_positions_of_the_ledger_are_settled() {
    let events = [1, 2, 3].map(|position| Happened {
        source: 0,
        position,
        key: None,
        outcome: Outcome::Filtered,
    });
    let mut judge = Judge::new(
        STRICT,
        CLUSTER,
        vec![Source {
            partition: Partition::new("orders", 0),
            log_start: Position::START,
            log_end: Position::new(4),
        }],
    );
    let partition = Partition::new("orders", 0);
    for event in events {
        judge.event(&partition, Position::new(event.position), None, None);
    }
    let settled = Settled {
        watermark: Position::new(2),
        above: vec![Position::new(3)],
    };
    judge.settled(&partition, &settled);
    let counts = judge.verdict().counts;
    assert_eq!((counts.lost, counts.pending), (2, 1));
}

#[test]
fn d_d2_a_dead_letter_wins_over_results() {
    let events = vec![Happened {
        source: 1,
        position: 5,
        key: None,
        outcome: Outcome::Results(2),
    }];
    let mut world = World::run(events, &[0]);
    world.dead.push(stored(1, 5, 0));
    let counts = world.judge(STRICT).counts;
    assert_eq!((counts.answered, counts.dead_lettered), (0, 1));
    assert_eq!(counts.lost + counts.duplicated, 0);
}

#[test]
fn d_i4_a_redriven_event_keeps_the_id_of_its_original() {
    let partition = Partition::new("orders", 0);
    let source = Source {
        partition: partition.clone(),
        log_start: Position::START,
        log_end: Position::new(10),
    };
    let mut judge = Judge::new(STRICT, CLUSTER, vec![source]);
    let original = event_id(0, 2);
    judge.event(&partition, Position::new(2), None, None);
    judge.event(
        &partition,
        Position::new(9),
        None,
        Some(original.as_str().as_bytes()),
    );
    let dead = stored(0, 2, 0);
    judge.dead_letter(
        &Partition::new("dlq", 0),
        Position::START,
        dead.dead_headers(),
    );
    let mut answer = stored(0, 9, 0);
    let place = Partition::new("scored", 0);
    answer.id = ResultId::of(&original, 0).as_str().to_owned();
    judge.result(&place, Position::START, answer.headers());
    let settled = Settled {
        watermark: Position::new(10),
        above: Vec::new(),
    };
    judge.settled(&partition, &settled);
    let report = judge.verdict();
    assert!(report.ok, "{report:#?}");
    assert_eq!(
        (report.counts.answered, report.counts.dead_lettered),
        (1, 1)
    );
}

#[test]
fn records_of_others_and_of_expired_events_are_told_apart() {
    let partition = Partition::new("orders", 0);
    let source = Source {
        partition: partition.clone(),
        log_start: Position::new(5),
        log_end: Position::new(6),
    };
    let mut judge = Judge::new(STRICT, CLUSTER, vec![source]);
    judge.event(&partition, Position::new(5), None, None);
    let place = Partition::new("scored", 0);
    judge.result(&place, Position::new(0), |_| None);
    judge.result(&place, Position::new(1), |name| {
        (name == SRC).then(|| b"others/0/5".to_vec())
    });
    judge.result(&place, Position::new(2), stored(0, 4, 0).headers());
    judge.result(&place, Position::new(3), stored(0, 5, 0).headers());
    let report = judge.verdict();
    assert!(report.ok, "{report:#?}");
    assert_eq!(
        (report.unrelated, report.expired, report.results),
        (2, 1, 2)
    );
    assert_eq!(report.notes.len(), 2);
}

#[test]
fn without_a_promise_about_filtering_holes_are_filtered_and_said_to_be() {
    let events = vec![Happened {
        source: 0,
        position: 1,
        key: None,
        outcome: Outcome::Filtered,
    }];
    let world = World::run(events, &[0]);
    let rules = Rules {
        unanswered: Unanswered::Filtered,
        ..STRICT
    };
    let report = world.judge(rules);
    assert_eq!(report.counts.filtered, 1);
    assert!(report.ok && report.notes[0].contains("--no-filter"));
    assert_eq!(
        report.counts.to_string(),
        "events=1 answered=0 filtered=1 dead_lettered=0 lost=0 duplicated=0 out_of_order=0"
    );
}
