//! What each rule is for: with one rule switched off, the law that stands on it breaks.

use millrace_core::intake::settings::Correlate;
use millrace_core::rules::{Rule, Rules};
use millrace_sim::event_log::Trace;
use millrace_sim::laws::Law;
use millrace_sim::scenario::{ONCE, Scenario};
use millrace_sim::search::{self, Failure};

/// Seeds that are tried before a rule counts as useless.
const SEEDS_MAX: u64 = 400;

/// The law that notices a missing rule.
fn law_of(rule: Rule) -> Law {
    match rule {
        Rule::ContiguousWatermark | Rule::StoredThenTerminal => Law::Watermark,
        Rule::LaneExclusion => Law::LaneExclusion,
        Rule::ResendInOrder => Law::Resend,
        Rule::LedgerMemory => Law::Remembered,
        Rule::Window => Law::Window,
        Rule::Lease => Law::Lease,
        Rule::RevokeExclusion => Law::RevokeExclusion,
        Rule::Doubt => Law::Doubt,
        Rule::Conservation => Law::Conservation,
        Rule::CrashIsOver => Law::Blame,
        Rule::GroupMetadata => Law::RevokeExclusion,
        Rule::TransactionLedger => Law::Once,
        Rule::AbortedAgain => Law::Conservation,
        Rule::Parking => Law::Parked,
        // The event that kills the pod kills it for ever.
        Rule::PodCrash => Law::Liveness,
        Rule::AnsweredThenTerminal => Law::Watermark,
        Rule::WithdrawBeforeRetry => Law::Pushes,
        Rule::LeaderEpoch => Law::History,
    }
}

/// The first seed in which a law breaks without a rule.
fn found(rule: Rule, law: Law, muted: Option<Law>) -> Option<Failure> {
    let world = match rule {
        Rule::GroupMetadata | Rule::TransactionLedger | Rule::AbortedAgain => ONCE,
        _ => 0,
    };
    (world..world + SEEDS_MAX).find_map(|seed| {
        let mut scenario = Scenario::of(seed);
        scenario.muted = muted;
        if matches!(rule, Rule::AnsweredThenTerminal | Rule::WithdrawBeforeRetry) {
            scenario.use_push(Correlate::Echo);
        }
        let (outcome, _) = search::play(scenario, Rules::without(rule), Trace::off());
        outcome.err().filter(|failure| failure.violation.law == law)
    })
}

#[test]
fn each_law_breaks_without_its_rule() {
    for rule in Rule::EACH {
        let law = law_of(rule);
        let Some(failure) = found(rule, law, None) else {
            panic!("without {rule:?} the law {law:?} holds for {SEEDS_MAX} seeds");
        };
        println!(
            "without {rule:?}: seed {}, {law:?}: {}",
            failure.seed, failure.violation.message
        );
    }
}

#[test]
fn d_l4_the_order_in_the_log_breaks_without_the_rule_that_keeps_it() {
    let (rule, muted) = (Rule::LaneExclusion, Law::LaneExclusion);
    let Some(failure) = found(rule, Law::Order, Some(muted)) else {
        panic!("without {rule:?} the order in the log stays for {SEEDS_MAX} seeds");
    };
    println!(
        "without {rule:?}: seed {}: {}",
        failure.seed, failure.violation.message
    );
}

#[test]
fn d_e2_readers_see_what_the_group_metadata_is_for() {
    let (rule, muted) = (Rule::GroupMetadata, Law::RevokeExclusion);
    let Some(failure) = found(rule, Law::Once, Some(muted)) else {
        panic!("without {rule:?} every result is seen once for {SEEDS_MAX} seeds");
    };
    println!(
        "without {rule:?}: seed {}: {}",
        failure.seed, failure.violation.message
    );
}

#[test]
fn r4b_and_r4c_break_under_exactly_once_too() {
    for rule in [Rule::RevokeExclusion, Rule::Doubt] {
        let broken =
            (ONCE..ONCE + SEEDS_MAX).find_map(|seed| search::run(seed, Rules::without(rule)).err());
        let Some(failure) = broken else {
            panic!("without {rule:?} all laws hold for {SEEDS_MAX} seeds");
        };
        println!(
            "without {rule:?}: seed {}, {:?}: {}",
            failure.seed, failure.violation.law, failure.violation.message
        );
    }
}
