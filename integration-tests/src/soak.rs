//! Kills at random, for as long as somebody wants to wait: inputs, outputs, the app and, if it is
//! ours, the broker die with signal 9 every few seconds under load. What became of every event is
//! judged twice, by `millrace audit` and by the judge of the stories.
//!
//! Invariant: a seed gives the same worlds and the same kills in the same order; only the moments
//! at which they meet the work differ.

use std::fmt;
use std::time::Duration;

use crate::broker::BrokerKind;
use crate::dice::Dice;
use crate::wait::{Deadline, let_pass};
use crate::world::Running;
use crate::{Event, World};

/// Worlds of one run, at most; each lasts equally long.
const PHASES_MAX: u32 = 6;

/// A world that lasts shorter than this shows nothing.
const PHASE_MIN: Duration = Duration::from_secs(8);

/// Events per second.
const LOAD: u32 = 300;

/// Pause between two kills, in milliseconds: at least, and this much more at random.
const BETWEEN_KILLS: (u64, u64) = (700, 3_000);

/// How long somebody stays dead, in milliseconds, at most.
const DEAD: u64 = 800;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For how long, the settling at the end not counted.
    pub length: Duration,
    /// On which broker.
    pub broker: BrokerKind,
    /// `delivery.guarantee`.
    pub guarantee: String,
    /// Of the worlds and the kills.
    pub seed: u64,
}

/// What became of the events.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Events of the input topics.
    pub events: usize,
    /// Those with results.
    pub answered: usize,
    /// Those that were dead-lettered instead.
    pub dead_lettered: usize,
    /// Those with neither.
    pub lost: usize,
    /// Results beyond the first of their id.
    pub duplicated: usize,
    /// First results behind one of a later event of their lane.
    pub out_of_order: usize,
    /// Results that no event explains, and disagreements between the two judges.
    pub unexplained: usize,
    /// Processes that were killed.
    pub kills: usize,
}

impl Tally {
    /// Whether the promise was kept.
    pub fn is_good(&self, guarantee: &str) -> bool {
        let doubled = guarantee == "ExactlyOnce" && self.duplicated > 0;
        let wrong = self.lost + self.out_of_order + self.unexplained;
        self.events > 0 && wrong == 0 && !doubled
    }

    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.answered += other.answered;
        self.dead_lettered += other.dead_lettered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.unexplained += other.unexplained;
        self.kills += other.kills;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "events={} answered={} lost={} duplicated={} out_of_order={}",
            self.events, self.answered, self.lost, self.duplicated, self.out_of_order
        )
    }
}

/// How one world of the run is set up.
#[derive(Clone, Copy, Debug)]
struct Phase {
    inputs: usize,
    ordering: &'static str,
    batch: bool,
}

impl Phase {
    /// Every ordering and every number of inputs comes up in every run that is long enough.
    fn number(number: u32, dice: &mut Dice) -> Self {
        let orderings = ["Key", "Partition", "None"];
        let index = usize::try_from(number).expect("a small number");
        Self {
            inputs: 1 + (index + 1) % 4,
            ordering: orderings[index % orderings.len()],
            batch: dice.below(2) == 1,
        }
    }
}

/// Runs, tells on standard output what it does, and returns what became of the events.
pub fn soak(plan: &Plan) -> Tally {
    println!("soak: SEED={} repeats these worlds and kills", plan.seed);
    let mut dice = Dice::of(plan.seed);
    let fitting = plan.length.as_millis() / PHASE_MIN.as_millis();
    let phases = u32::try_from(fitting)
        .unwrap_or(PHASES_MAX)
        .clamp(1, PHASES_MAX);
    let mut total = Tally::default();
    for number in 0..phases {
        let phase = Phase::number(number, &mut dice);
        let tally = one_world(plan, phase, plan.length / phases, &mut dice);
        println!(
            "soak: {} input(s), ordering {}, batch {}, {}: killed {} times, {tally} dead_lettered={}",
            phase.inputs,
            phase.ordering,
            phase.batch,
            plan.guarantee,
            tally.kills,
            tally.dead_lettered
        );
        total.add(tally);
    }
    total
}

fn one_world(plan: &Plan, phase: Phase, length: Duration, dice: &mut Dice) -> Tally {
    let mut world = World::on(plan.broker.clone())
        .partitions(4)
        .pods(phase.inputs)
        .short_sessions()
        .set("delivery.ordering", phase.ordering)
        .set("delivery.guarantee", plan.guarantee.as_str());
    if phase.batch {
        world = world.batch();
    }
    let mut world = world.start();
    let load = world.load(LOAD, 60);
    // Only what works can be disturbed.
    world.has_results(100);
    let time = Deadline::after(length);
    let mut kills = 0;
    while !time.is_over() {
        // The pace of the kills, and how long somebody is away, are the schedule.
        let_pass(Duration::from_millis(
            BETWEEN_KILLS.0 + dice.below(BETWEEN_KILLS.1),
        ));
        kill_one(&mut world, phase, dice);
        kills += 1;
    }
    load.stop();
    // Whoever was asked about last has to be there when the judges come.
    world.send([Event::keyless("the last one")]);
    world.settles();
    let mut tally = judged(&world);
    tally.kills = kills;
    tally
}

fn kill_one(world: &mut Running, phase: Phase, dice: &mut Dice) {
    let pod = usize::try_from(dice.below(phase.inputs as u64)).expect("a small number");
    let dead = Duration::from_millis(dice.below(DEAD));
    let victim = match dice.below(if world.broker.is_ours() { 7 } else { 6 }) {
        0..=2 => &mut world.pods[pod].input,
        3 | 4 => &mut world.pods[pod].output,
        5 => world.app_process(),
        _ => world.broker.process(),
    };
    victim.kill();
    let_pass(dead);
    victim.start();
}

/// Both judges; where they disagree, that alone is wrong.
fn judged(world: &Running) -> Tally {
    let verdict = world.verdict();
    let (_, report) = world.audit(&["--no-filter", "--allow-duplicates"]);
    let count = |name: &str| {
        let count = report[name].as_u64().and_then(|n| usize::try_from(n).ok());
        count.unwrap_or(usize::MAX)
    };
    let lost = count("lost").saturating_add(count("pending"));
    let pairs = [
        ("events", verdict.events, count("events")),
        ("answered", verdict.answered, count("answered")),
        (
            "dead_lettered",
            verdict.dead_lettered,
            count("dead_lettered"),
        ),
        ("lost", verdict.unanswered.len(), lost),
        ("duplicated", verdict.repeats, count("duplicated")),
        (
            "out_of_order",
            verdict.out_of_order.len(),
            count("out_of_order"),
        ),
    ];
    let mut unexplained = verdict.unexplained.len();
    for (what, judge, audit) in pairs {
        if judge != audit {
            println!("soak: {what}: the judge says {judge}, the audit says {audit}");
            unexplained += 1;
        }
    }
    let wrong = [
        &verdict.unanswered,
        &verdict.out_of_order,
        &verdict.unexplained,
    ];
    for line in wrong.into_iter().flatten().take(20) {
        println!("soak: {line}");
    }
    Tally {
        events: verdict.events,
        answered: verdict.answered,
        dead_lettered: verdict.dead_lettered,
        lost: verdict.unanswered.len(),
        duplicated: verdict.repeats,
        out_of_order: verdict.out_of_order.len(),
        unexplained,
        kills: 0,
    }
}
