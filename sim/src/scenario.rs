//! What one seed stands for: topics, settings, kinds of events and how often things go wrong.
//!
//! Invariant: a scenario follows from its seed alone.

use std::time::Duration;

use millrace_core::intake::Settings;
use millrace_core::intake::settings::{Correlate, Guarantee, Names, OnDataLoss, Parking, Push};
use millrace_core::lanes::Ordering;
use millrace_core::rules::Rules;
use millrace_core::token::ReleaseId;
use millrace_core::window::Concurrency;
use millrace_core::{batcher, breaker, fate};

use crate::laws::Law;
use crate::random::Random;

/// The group's session time-out: `delivery.sessionTimeout`.
pub const SESSION: Duration = Duration::from_secs(20);
/// `delivery.lease`.
pub const LEASE: Duration = Duration::from_secs(8);
/// How long a watermark may stand still with work (D-H2).
pub const STALL_AFTER: Duration = Duration::from_secs(300);
/// `delivery.messageTimeout`.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(7);
/// `delivery.transaction.timeout`.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Seeds with this bit stand for the same world under exactly-once.
pub const ONCE: u64 = 1 << 32;
/// `app.maxRequestBytes`; an event of kind `Nature::Oversized` is larger.
pub const REQUEST_BYTES_MAX: usize = 512;
/// Largest record of the output topic; results of `Nature::Unstorable` are larger.
pub const RECORD_BYTES_MAX: u64 = 2_000;

/// What a seed stands for.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where it comes from.
    pub seed: u64,
    /// `delivery.guarantee: ExactlyOnce`.
    pub once: bool,
    /// Nothing that permits repeats happens: one member, no lost answers, no failed deliveries
    /// (they purge what else is under way).
    pub calm: bool,
    /// Partitions of the input topic.
    pub partitions: usize,
    /// Pods that may own them.
    pub pods: usize,
    /// Events over all partitions.
    pub events: u64,
    /// Different keys per partition.
    pub keys: u64,
    /// Events without a key, of a thousand.
    pub keyless: u64,
    /// Gaps in the log, of a thousand events, and their length at most.
    pub gaps: (u64, u64),
    /// How long the log grows.
    pub produced_for: Duration,
    /// When faults end.
    pub busy_for: Duration,
    /// Records of one fetch at most.
    pub fetch_max: u64,
    /// Largest batch that the app takes.
    pub app_batch_max: usize,
    /// How long the app takes, usually and at most, in milliseconds.
    pub app_ms: (u64, u64),
    /// How long the last connection of an app that dies may outlive the first, in milliseconds.
    pub app_dies_ms: u64,
    /// Bytes of results that may be under way.
    pub credit: u64,
    /// Kinds of events, of a thousand; the rest is good.
    pub natures: Natures,
    /// What goes wrong.
    pub faults: Faults,
    /// Push mode; `None`: results come in the answer.
    pub push: Option<Correlate>,
    /// A law that is not watched, so that another one has to notice what it would have.
    pub muted: Option<Law>,
    ordering: Ordering,
    window: u64,
    commit_interval: Duration,
    commit_records: u64,
    drain_revoke: Duration,
    in_flight_max: usize,
    in_flight_bytes_max: usize,
    concurrency: Concurrency,
    batch: batcher::Settings,
    tolerate_reordering: bool,
    retry: fate::Settings,
    storm_records_min: u32,
    call_timeout: Duration,
    ttl: Option<Duration>,
    parking: Option<Parking>,
}

/// How many events of a thousand are of which kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Natures {
    pub filter: u64,
    pub many: u64,
    pub permanent: u64,
    pub flaky: u64,
    pub hopeless: u64,
    pub poison: u64,
    pub malformed: u64,
    pub busy: u64,
    pub silent: u64,
    pub oversized: u64,
    pub unstorable: u64,
    pub redriven: u64,
    pub deadly: u64,
}

/// Mean time between faults of one kind (`None`: never), or how many of a thousand go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub crash: Option<Duration>,
    pub freeze: Option<Duration>,
    pub drain: Option<Duration>,
    pub cut: Option<Duration>,
    pub shuffle: Option<Duration>,
    pub link: Option<Duration>,
    pub output_crash: Option<Duration>,
    pub output_away: Option<Duration>,
    pub app_down: Option<Duration>,
    pub app_killed: Option<Duration>,
    pub app_misconfigured: Option<Duration>,
    pub operator: Option<Duration>,
    pub unclean_election: Option<Duration>,
    pub commit_slow: u64,
    pub commit_retriable: u64,
    pub commit_fenced: u64,
    pub commit_unknown: u64,
    pub token_read: u64,
    pub store_transient: u64,
    pub store_unknown: u64,
    pub store_misconfigured: u64,
    pub store_fatal: u64,
    pub queue_full: u64,
    pub app_transient: u64,
    pub app_abandoned: u64,
    pub app_slow: u64,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed & !ONCE);
        let r = &mut random;
        // What came later is drawn apart, so that older seeds keep most of their meaning.
        let mut later = Random::new(seed.rotate_left(32) ^ 1);
        let mut latest = Random::new(seed.rotate_left(16) ^ 2);
        let calm = r.permille(100);
        let partitions = r.index(4) + 1;
        let pods = if calm { 1 } else { r.pick(&[1, 2, 2, 3, 3]) };
        let batched = r.permille(500);
        let per_lane_max = r.pick(&[1, 1, 2, 5]);
        let busy_s = r.between(20, 120);
        let records_max = r.pick(&[2, 5, 20, 100]);
        let batch = batcher::Settings {
            records_max,
            bytes_max: r.pick(&[300, 2_000, 1 << 20]),
            linger: r.ms(0, 20),
            per_lane_max: per_lane_max.min(records_max),
            target_p99: later
                .permille(300)
                .then(|| Duration::from_millis(later.pick(&[20, 500, 5_000]))),
        };
        let mut scenario = Self {
            seed,
            once: seed & ONCE != 0,
            calm,
            partitions,
            pods,
            events: r.between(20, 400),
            keys: r.pick(&[1, 2, 5, 12]),
            keyless: r.pick(&[0, 0, 100, 500]),
            gaps: r.pick(&[(0, 1), (100, 3), (200, 30), (50, 400)]),
            produced_for: Duration::from_secs(r.pick(&[0, busy_s / 2, busy_s])),
            busy_for: Duration::from_secs(busy_s),
            fetch_max: r.pick(&[1, 4, 16, 100, 512]),
            app_batch_max: r.pick(&[1, 3, 1_000, 1_000]),
            app_ms: r.pick(&[(5, 50), (50, 400), (300, 3_000)]),
            credit: r.pick(&[2_000, 20_000, 8 << 20]),
            natures: Natures {
                deadly: if !calm && later.permille(150) {
                    later.between(1, 8)
                } else {
                    0
                },
                ..natures(r)
            },
            faults: Faults {
                app_killed: later
                    .permille(300)
                    .then(|| Duration::from_secs(later.between(2, 20))),
                unclean_election: (!calm && latest.permille(150))
                    .then(|| Duration::from_secs(latest.between(5, 40))),
                ..faults(r, calm)
            },
            app_dies_ms: later.pick(&[0, 20, 150]),
            push: None,
            muted: None,
            ordering: r.pick(&[
                Ordering::Key,
                Ordering::Key,
                Ordering::Partition,
                Ordering::None,
            ]),
            window: r.pick(&[4, 8, 16, 64, 500, 5_000]),
            commit_interval: r.ms(200, 2_000),
            commit_records: r.pick(&[3, 50, 2_500]),
            drain_revoke: r.ms(200, 10_000),
            in_flight_max: r.pick(&[4, 32, 1_024]),
            in_flight_bytes_max: r.pick(&[1_000, 1 << 20]),
            concurrency: match r.below(3) {
                0 => Concurrency::Fixed(u32::try_from(r.between(1, 6)).expect("small")),
                _ => Concurrency::Adaptive {
                    max: r.pick(&[1, 4, 32]),
                },
            },
            batch: if batched {
                batch
            } else {
                batcher::Settings::SINGLE
            },
            tolerate_reordering: false,
            retry: retry(r),
            storm_records_min: r.pick(&[5, 30, 100]),
            call_timeout: r.ms(1_000, 15_000),
            ttl: r.permille(50).then(|| Duration::from_secs(60)),
            parking: later.permille(200).then(|| Parking {
                ttl: Duration::from_secs(later.pick(&[2, 20, 3_600])),
                lanes_max: later.pick(&[1, 2, 32]),
            }),
        };
        // Not drawn, so that older seeds stand for what they stood for.
        if seed % 7 == 3 && !scenario.once {
            scenario.use_push(if seed % 28 == 3 {
                Correlate::Serial
            } else {
                Correlate::Echo
            });
        }
        scenario
    }

    /// Turns it into one of push mode.
    pub fn use_push(&mut self, correlate: Correlate) {
        self.push = Some(correlate);
        self.batch = batcher::Settings::SINGLE;
    }

    /// Whether lanes are parked.
    pub fn parks(&self) -> bool {
        self.parking.is_some()
    }

    /// What the intake machines are told.
    pub fn settings(&self, pod: usize, rules: Rules) -> Settings {
        Settings {
            names: Names {
                release: ReleaseId::new("r1-5d0c77e1").expect("it is a release id"),
                block: "sim/block".into(),
                pod: format!("pod-{pod}").into(),
                group: "millrace.sim.block.r1".into(),
                cluster: CLUSTER.into(),
                proxy_version: "0.1.0".into(),
            },
            guarantee: if self.once {
                Guarantee::ExactlyOnce {
                    interval: self.commit_interval / 5,
                    records: self.commit_records,
                }
            } else {
                Guarantee::AtLeastOnce
            },
            ordering: self.ordering,
            window: self.window,
            commit_interval: self.commit_interval,
            commit_records: self.commit_records,
            lease: LEASE,
            drain_revoke: self.drain_revoke,
            in_flight_max: self.in_flight_max,
            in_flight_bytes_max: self.in_flight_bytes_max,
            concurrency: self.concurrency,
            batch: self.batch,
            tolerate_reordering: self.tolerate_reordering,
            retry: self.retry.clone(),
            breaker: breaker::Settings {
                failure_ratio: 0.5,
                window: Duration::from_secs(20),
                requests_min: 20,
                open_min: Duration::from_secs(2),
                open_max: Duration::from_secs(15),
                storm_ratio: 0.1,
                storm_window: Duration::from_secs(60),
                storm_records_min: self.storm_records_min,
            },
            call_timeout: self.call_timeout,
            request_bytes_max: REQUEST_BYTES_MAX,
            ttl: self.ttl,
            on_data_loss: OnDataLoss::Stop,
            parking: self.parking,
            truncate_dead_letters: true,
            stall_after: STALL_AFTER,
            push: self.push.map(|correlate| Push {
                correlate,
                secret: *b"a secret of sims",
            }),
            rules,
        }
    }
}

/// The cluster id of every scenario.
pub const CLUSTER: &str = "sim-cluster";
/// The input topic of every scenario.
pub const TOPIC: &str = "events";

fn natures(r: &mut Random) -> Natures {
    let mut some = |max: u64| {
        if r.permille(400) {
            r.between(1, max)
        } else {
            0
        }
    };
    Natures {
        filter: some(150),
        many: some(150),
        permanent: some(60),
        flaky: some(200),
        hopeless: some(30),
        poison: some(10),
        malformed: some(50),
        busy: some(20),
        silent: some(20),
        oversized: some(30),
        unstorable: some(40),
        redriven: some(50),
        deadly: 0,
    }
}

fn faults(r: &mut Random, calm: bool) -> Faults {
    let level = r.below(4);
    if level == 0 && !calm {
        return Faults::default();
    }
    let mut every = |low: u64, high: u64| {
        let span = Duration::from_secs(r.between(low, high));
        r.permille(200 * level).then_some(span)
    };
    let crash = every(15, 60);
    let freeze = every(15, 60);
    let drain = every(20, 60);
    let cut = every(15, 60);
    let shuffle = every(4, 30);
    let link = every(3, 30);
    let output_crash = every(20, 60);
    let output_away = every(10, 40);
    let app_down = every(10, 40);
    let app_misconfigured = every(20, 60);
    let operator = every(10, 40);
    let mut some = |max: u64| {
        if r.permille(200 * level) {
            r.between(1, max)
        } else {
            0
        }
    };
    let all = Faults {
        crash,
        freeze,
        drain,
        cut,
        shuffle,
        link,
        output_crash,
        output_away,
        app_down,
        app_killed: None,
        app_misconfigured,
        operator,
        unclean_election: None,
        commit_slow: some(200),
        commit_retriable: some(200),
        commit_fenced: some(50),
        commit_unknown: some(60),
        token_read: some(300),
        store_transient: some(150),
        store_unknown: some(100),
        store_misconfigured: some(30),
        store_fatal: some(20),
        queue_full: some(50),
        app_transient: some(200),
        app_abandoned: some(50),
        app_slow: some(50),
    };
    if !calm {
        return all;
    }
    Faults {
        app_down: all.app_down,
        app_misconfigured: all.app_misconfigured,
        commit_slow: all.commit_slow,
        commit_retriable: all.commit_retriable,
        token_read: all.token_read,
        queue_full: all.queue_full,
        app_transient: all.app_transient,
        app_slow: all.app_slow,
        ..Faults::default()
    }
}

fn retry(r: &mut Random) -> fate::Settings {
    fate::Settings {
        attempts_max: r.pick(&[0, 1, 3, 5]),
        age_max: Duration::from_secs(r.pick(&[20, 600])),
        backoff_initial: Duration::from_millis(200),
        backoff_multiplier: 2.0,
        backoff_max: Duration::from_secs(r.pick(&[2, 30])),
        respect_retry_after: r.permille(800),
        on_exhausted: match r.below(6) {
            0 => fate::OnExhausted::Drop {
                reason: "not worth it".into(),
            },
            1 => fate::OnExhausted::Block,
            _ => fate::OnExhausted::DeadLetter,
        },
        oversized: if r.permille(150) {
            fate::Oversized::Block
        } else {
            fate::Oversized::DeadLetter
        },
    }
}
