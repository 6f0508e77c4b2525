//! The brokers are away, slow or silent, for the pods alone: writers and judges go round the line.

use std::time::Duration;

use crate::judge::Verdict;
use crate::wait::{Deadline, let_pass, wait_until};
use crate::world::Running;
use crate::{App, Say, World, scenario};

/// Beyond the session time-out of [`World::short_sessions`].
const BEYOND_THE_SESSION: Duration = Duration::from_secs(8);

/// Memory may move by this much while nothing can be stored.
const FLAT: usize = 8 << 20;

fn is_degraded(world: &Running) -> bool {
    let page = world.pods[0].ask_input("/readyz");
    page.is_some_and(|(code, body)| code == 200 && body.contains("degraded"))
}

/// All brokers are away for longer than the session, with requests in flight.
pub fn all_brokers_away(world: World) {
    scenario(
        "F-1",
        &["D-H1", "D-G5", "D-G6", "D-W3", "D-C4"],
        "all brokers are away beyond the session; work goes on by itself when they return",
    );
    let app = App::saying(|a| Say::value(a.text()).after(Duration::from_millis(100)));
    let mut world = world
        .partitions(4)
        .short_sessions()
        .line_to_broker()
        .app(app)
        .start();
    let load = world.load(150, 40);
    world.has_results(100);
    world.line_to_broker().cut();
    let before = world.results_count();
    wait_until("the input notices", || is_degraded(&world));
    // The length of the outage is the story.
    let_pass(BEYOND_THE_SESSION);
    assert!(is_degraded(&world), "an outage outside needs no restart");
    let (alive, _) = world.pods[0].ask_input("/livez").expect("it answers");
    assert_eq!(alive, 200);
    let (_, metrics) = world.pods[0].ask_input("/metrics").expect("it answers");
    let claims = metrics
        .lines()
        .find(|l| l.starts_with("millrace_desired_replicas"));
    assert_eq!(claims, None, "nobody knows how many are needed (D-C4)");
    let held = world.app().requests();
    world.line_to_broker().mend();
    world.goes_on_after(before);
    wait_until("it says so", || !is_degraded(&world));
    let verdict = world.assert_load_answered(load);
    assert!(world.input().runs() && world.output().runs());
    println!("{held} requests before the return: {verdict:?}");
}

/// How long the output is cut off, and how much waits for it meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// Events that wait.
    pub events: usize,
    /// Time for memory to have a chance to grow.
    pub length: Duration,
    /// `flow.maxInFlight`.
    pub in_flight_max: u32,
}

impl Outage {
    /// Long enough to see that something is held, short enough for every run of the tests.
    pub const SHORT: Self = Self {
        events: 20_000,
        length: Duration::from_secs(5),
        in_flight_max: 300,
    };
}

/// Resident memory in bytes, at a time since everything that may be in flight was.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Since the budget was full.
    pub at: Duration,
    /// Of the input.
    pub input: usize,
    /// Of the output.
    pub output: usize,
}

impl Memory {
    fn now(at: Duration, world: &mut Running) -> Self {
        Self {
            at,
            input: world.input().memory(),
            output: world.output().memory(),
        }
    }

    fn assert_flat_since(&self, first: &Self) {
        for (before, now) in [(first.input, self.input), (first.output, self.output)] {
            assert!(
                now < before + FLAT,
                "memory grew: {first:?} became {self:?}"
            );
        }
    }
}

/// Looks at memory during an outage.
const LOOKS: u32 = 40;

/// The output alone cannot reach the brokers, and a lot waits. Returns the curve of memory, and
/// what became of the events.
pub fn output_away(world: World, outage: &Outage) -> (Vec<Memory>, Verdict) {
    scenario(
        "F-12",
        &["D-C1", "D-O4", "D-W1", "D-H1", "R4"],
        "the output's connection is cut: the budget fills, memory is flat, nothing is dead-lettered",
    );
    let mut world = world
        .partitions(4)
        .short_sessions()
        .line_of_output()
        .set("flow.maxInFlight", outage.in_flight_max)
        .app(App::doubler())
        .start();
    world.send_numbers(100, 20);
    world.settles();
    world.line_of_output().cut();
    world.send_numbers(outage.events, 200);
    wait_until("the budget is full", || {
        world.pods[0].metric("millrace_in_flight") >= f64::from(outage.in_flight_max)
    });
    let watermark = world.pods[0].metric("millrace_watermark_offset");
    let began = Deadline::after(Duration::ZERO);
    let mut curve = vec![Memory::now(Duration::ZERO, &mut world)];
    for _ in 0..LOOKS {
        // The outage has to last for memory to have a chance to grow.
        let_pass(outage.length / LOOKS);
        let now = Memory::now(began.elapsed(), &mut world);
        now.assert_flat_since(&curve[0]);
        curve.push(now);
    }
    let still = world.pods[0].metric("millrace_watermark_offset");
    assert!(
        (still - watermark).abs() < 0.5,
        "{watermark} became {still}"
    );
    assert!(world.dead_letters().is_empty());
    world.line_of_output().mend();
    let verdict = world.assert_nothing_lost();
    let all = outage.events + 100;
    assert_eq!((verdict.answered, verdict.dead_lettered), (all, 0));
    assert!(world.input().runs() && world.output().runs(), "no restart");
    (curve, verdict)
}

/// A load balancer between us and the broker forgets connections that were silent.
pub fn idle_connections_forgotten(world: World) {
    scenario(
        "F-23",
        &["D-C5", "D-O1"],
        "idle connections close before a load balancer forgets them; the next send works at once",
    );
    let world = world
        .partitions(1)
        .line_to_broker()
        // As in the preset for Event Hubs: 180 s there, where 240 s are allowed.
        .property("connections.max.idle.ms", 1_500)
        .app(App::echo())
        .start();
    world.send_numbers(10, 5);
    world.settles();
    world
        .line_to_broker()
        .forget_idle(Duration::from_millis(3_000));
    for round in 1..=2 {
        // Silence is the story.
        let_pass(Duration::from_millis(4_000));
        let before = world.results_count();
        world.send_numbers(10, 5);
        let time = Deadline::after(Duration::ZERO);
        world.has_results(before + 10);
        let took = time.elapsed();
        println!("round {round}: {took:?} after the silence");
        assert!(took < Duration::from_secs(2), "{took:?} after the silence");
    }
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (30, 0));
}

/// The broker throttles us.
pub fn throttled(world: World) {
    scenario(
        "F-23",
        &["D-C5", "D-O4"],
        "a broker that throttles slows the block down and breaks nothing",
    );
    let world = world
        .partitions(2)
        .line_to_broker()
        .app(App::doubler())
        .start();
    let load = world.load(100, 20);
    world.has_results(50);
    world
        .line_to_broker()
        .edits()
        .throttle(Duration::from_millis(300));
    let before = world.results_count();
    world.has_results(before + 200);
    world.line_to_broker().edits().clear();
    let verdict = world.assert_load_answered(load);
    assert_eq!(verdict.repeats, 0, "throttling is no reason to repeat");
}

/// The broker stalls for about the message time-out, in steps, again and again.
pub fn stalls_around_the_message_timeout(world: World) {
    scenario(
        "F-27",
        &["D-L3", "D-O1", "P-3", "D-L4"],
        "the broker stalls around the message time-out: purge, re-send, each lane in order",
    );
    let world = world
        .partitions(2)
        .short_sessions()
        .line_to_broker()
        .app(App::doubler())
        .start();
    let load = world.load(300, 6);
    world.has_results(100);
    // The message time-out is 500 ms.
    for stall in [300, 400, 450, 500, 550, 600, 700, 900] {
        world.line_to_broker().stall();
        // The length of the stall is the story.
        let_pass(Duration::from_millis(stall));
        let before = world.results_count();
        world.line_to_broker().mend();
        world.goes_on_after(before);
    }
    let verdict = world.assert_load_answered(load);
    println!("{verdict:?}");
}
