//! Verdicts at and around each bound (J7).

use super::*;
use crate::contract::block::CompareMode;
use crate::evidence::tests::{evidence, verification as plain};

fn gate(metric: &str, on_fail: OnFail) -> Gate {
    Gate::without_bounds(GateSource::Metric(metric.to_owned()), on_fail)
}

fn agreement(min: f64) -> Gate {
    Gate {
        min: Some(min),
        ..gate("agreement", OnFail::Reject)
    }
}

fn prometheus(on_fail: OnFail) -> Gate {
    Gate {
        source: GateSource::Prometheus {
            name: "gpu".to_owned(),
            url: "http://prometheus".to_owned(),
            query: "gpu".to_owned(),
            max: 0.8,
        },
        ..gate("", on_fail)
    }
}

fn webhook() -> Gate {
    Gate {
        source: GateSource::Webhook {
            name: "risk".to_owned(),
            url: "http://risk".to_owned(),
            timeout: Duration::from_secs(1),
        },
        ..gate("", OnFail::Reject)
    }
}

fn verification(gates: Vec<Gate>) -> Verification {
    Verification {
        min_events: 300,
        min_partitions: 2,
        gates,
        ..plain(CompareMode::Json)
    }
}

/// Enough of everything, all agree.
fn summary(hits: u64, total: u64) -> Summary {
    Summary {
        agreement: Tally { total, hits },
        partitions: 2,
        ..evidence(&plain(CompareMode::Json)).summary()
    }
}

fn after(seconds: u64) -> Circumstances {
    Circumstances {
        elapsed: Duration::from_secs(seconds),
        guard_gave_up: false,
        words: BTreeMap::new(),
    }
}

fn verdict_of(gates: Vec<Gate>, summary: &Summary, circumstances: &Circumstances) -> Verdict {
    judge(&verification(gates), summary, circumstances).verdict
}

#[test]
fn j7_without_the_minimums_it_is_pending_and_then_inconclusive() {
    let good = summary(300, 300);
    let check = |summary: &Summary, seconds, expect| {
        assert_eq!(
            verdict_of(vec![], summary, &after(seconds)),
            expect,
            "{seconds}"
        );
    };
    check(&good, 60, Verdict::Pass);
    check(&good, 59, Verdict::Pending);
    check(&good, 600, Verdict::Pass);
    let few = summary(299, 299);
    check(&few, 599, Verdict::Pending);
    check(&few, 600, Verdict::Inconclusive);
    let narrow = Summary {
        partitions: 1,
        ..good
    };
    check(&narrow, 599, Verdict::Pending);
    check(&narrow, 600, Verdict::Inconclusive);
}

#[test]
fn j7_the_agreement_gate_looks_at_the_lower_bound() {
    let check = |hits, total, expect| {
        let found = verdict_of(vec![agreement(99.0)], &summary(hits, total), &after(60));
        assert_eq!(found, expect, "{hits}/{total}");
    };
    check(380, 380, Verdict::Fail);
    check(381, 381, Verdict::Pass);
    check(4_963, 5_000, Verdict::Fail);
    check(4_964, 5_000, Verdict::Pass);
}

#[test]
fn j7_a_miss_before_the_minimums_is_no_failure() {
    let bad = summary(100, 299);
    assert_eq!(
        verdict_of(vec![agreement(99.0)], &bad, &after(60)),
        Verdict::Pending
    );
    assert_eq!(
        verdict_of(vec![agreement(99.0)], &bad, &after(600)),
        Verdict::Inconclusive
    );
    assert_eq!(
        verdict_of(vec![agreement(99.0)], &summary(100, 300), &after(59)),
        Verdict::Pending
    );
    assert_eq!(
        verdict_of(vec![agreement(99.0)], &summary(100, 300), &after(60)),
        Verdict::Fail
    );
}

#[test]
fn j7_a_dry_run_is_shown_only() {
    let dry = |gate: Gate| Gate {
        dry_run: true,
        ..gate
    };
    let gates = vec![dry(agreement(99.0)), dry(prometheus(OnFail::Reject))];
    let judgement = judge(&verification(gates), &summary(100, 300), &after(60));
    assert_eq!(judgement.verdict, Verdict::Pass);
    assert!(judgement.may_promote_unasked());
    let states: Vec<_> = judgement.gates.iter().map(|gate| gate.state).collect();
    assert_eq!(states, [State::Missed, State::Unknown]);
}

#[test]
fn j7_a_gate_that_cannot_be_evaluated_holds_and_never_fails() {
    let no_latency = Gate {
        max: Some(1.3),
        ..gate("p95LatencyRatio", OnFail::Reject)
    };
    for gate in [
        no_latency,
        prometheus(OnFail::Reject),
        prometheus(OnFail::Hold),
        webhook(),
        gate("unheardOf", OnFail::Reject),
        gate("agreement", OnFail::Reject),
        Gate {
            max_delta: Some(1.0),
            ..gate("agreement", OnFail::Reject)
        },
    ] {
        let judgement = judge(
            &verification(vec![gate.clone()]),
            &summary(300, 300),
            &after(600),
        );
        assert_eq!(judgement.verdict, Verdict::Error, "{gate:?}");
        assert!(!judgement.may_promote_unasked() && judgement.over);
        assert_eq!(judgement.reasons()[0].0, "GateUnknown");
        // What is sure is sure: another gate that misses fails.
        let gates = vec![gate, agreement(99.9)];
        assert_eq!(
            verdict_of(gates, &summary(300, 300), &after(60)),
            Verdict::Fail
        );
    }
}

#[test]
fn j7_words_of_others_decide_their_gates() {
    let with = |gate: Gate, word: Option<Word>| {
        let mut circumstances = after(60);
        circumstances.words.extend(word.map(|word| (0, word)));
        verdict_of(vec![gate], &summary(300, 300), &circumstances)
    };
    let query = |word| with(prometheus(OnFail::Reject), Some(word));
    assert_eq!(query(Word::Number(0.8)), Verdict::Pass);
    assert_eq!(query(Word::Number(0.800001)), Verdict::Fail);
    assert_eq!(query(Word::Number(f64::NAN)), Verdict::Error);
    assert_eq!(query(Word::Number(f64::NEG_INFINITY)), Verdict::Error);
    assert_eq!(query(Word::Yes), Verdict::Error);
    assert_eq!(query(Word::Unknown("refused".to_owned())), Verdict::Error);
    let hook = |word| with(webhook(), Some(word));
    assert_eq!(hook(Word::Yes), Verdict::Pass);
    assert_eq!(hook(Word::No("too risky".to_owned())), Verdict::Fail);
    assert_eq!(hook(Word::Number(1.0)), Verdict::Error);
    assert_eq!(with(webhook(), None), Verdict::Error);
}

#[test]
fn j7_a_held_gate_passes_but_never_promotes_by_itself() {
    let slow = Summary {
        latency_ratio: Some(1.31),
        ..summary(300, 300)
    };
    let gates = || {
        vec![Gate {
            max: Some(1.3),
            ..gate("p95LatencyRatio", OnFail::Hold)
        }]
    };
    let judgement = judge(&verification(gates()), &slow, &after(60));
    assert_eq!(judgement.verdict, Verdict::Pass);
    assert!(!judgement.may_promote_unasked());
    assert_eq!(
        judgement.reasons(),
        [("GateHolds", "p95LatencyRatio is 1.31 (max 1.3)".to_owned())]
    );
    let fast = Summary {
        latency_ratio: Some(1.3),
        ..slow
    };
    assert!(judge(&verification(gates()), &fast, &after(60)).may_promote_unasked());
}

#[test]
fn j7_rates_are_judged_in_points_above_the_live_ones() {
    let rates = |green, blue| Summary {
        errors: [green, blue].map(|hits| Tally { total: 1_000, hits }),
        dead_letters: [
            Tally {
                total: 1_000,
                hits: 0,
            },
            Tally {
                total: 1_000,
                hits: 7,
            },
        ],
        ..summary(300, 300)
    };
    let check = |gate: Gate, summary: &Summary, expect| {
        assert_eq!(verdict_of(vec![gate], summary, &after(60)), expect);
    };
    let delta = |metric| Gate {
        max_delta: Some(0.1),
        ..gate(metric, OnFail::Reject)
    };
    check(delta("errorRate"), &rates(50, 51), Verdict::Pass);
    check(delta("errorRate"), &rates(50, 52), Verdict::Fail);
    check(delta("errorRate"), &rates(50, 0), Verdict::Pass);
    check(delta("deadLetterRate"), &rates(0, 0), Verdict::Fail);
    let level = |max| Gate {
        max: Some(max),
        ..gate("errorRate", OnFail::Reject)
    };
    check(level(5.1), &rates(0, 51), Verdict::Pass);
    check(level(5.0), &rates(0, 51), Verdict::Fail);
    let both = Gate {
        max: Some(9.0),
        ..delta("errorRate")
    };
    check(both, &rates(50, 52), Verdict::Fail);
}

#[test]
fn j7_noise_of_the_live_release_excuses_disagreement() {
    let noisy = Summary {
        noise: Tally {
            total: 100,
            hits: 88,
        },
        ..summary(4_700, 5_000)
    };
    assert_eq!(
        verdict_of(vec![agreement(99.0)], &noisy, &after(60)),
        Verdict::Pass
    );
    assert_eq!(
        verdict_of(vec![agreement(99.0)], &summary(4_700, 5_000), &after(60)),
        Verdict::Fail
    );
}

#[test]
fn j9_when_the_guard_gave_up_it_is_inconclusive_unless_it_failed() {
    let gave_up = Circumstances {
        guard_gave_up: true,
        ..after(60)
    };
    let gates = || vec![agreement(98.0)];
    assert_eq!(
        verdict_of(gates(), &summary(300, 300), &gave_up),
        Verdict::Inconclusive
    );
    assert_eq!(
        verdict_of(gates(), &summary(100, 100), &gave_up),
        Verdict::Inconclusive
    );
    assert_eq!(
        verdict_of(gates(), &summary(100, 300), &gave_up),
        Verdict::Fail
    );
    let judgement = judge(&verification(gates()), &summary(300, 300), &gave_up);
    assert_eq!(judgement.reasons()[0].0, "GuardGaveUp");
    assert!(!judgement.may_promote_unasked());
}

#[test]
fn j7_reasons_are_for_people_and_machines() {
    let reasons = |summary: &Summary, seconds| {
        judge(
            &verification(vec![agreement(99.0)]),
            summary,
            &after(seconds),
        )
        .reasons()
    };
    let own = |word, says: &str| (word, says.to_owned());
    assert_eq!(
        reasons(&summary(380, 380), 60),
        [own("GateMissed", "agreement is 98.99917 % (min 99)")]
    );
    assert_eq!(
        reasons(&summary(299, 299), 30),
        [
            own("MinimumMissed", "minEvents: 299 of 300 so far"),
            own("MinimumMissed", "minDuration: 30000 ms of 60000 ms so far"),
        ]
    );
    assert_eq!(
        reasons(&summary(299, 299), 600),
        [own("TimeOver", "minEvents: 299 of 300 so far")]
    );
    assert_eq!(reasons(&summary(381, 381), 60), []);
}
