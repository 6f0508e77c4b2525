//! A short run of what `make soak` does for minutes.

use std::time::Duration;

use millrace_integration_tests::broker::BrokerKind;
use millrace_integration_tests::dice::Dice;
use millrace_integration_tests::soak::{Plan, soak};

#[test]
fn a_short_soak_loses_nothing_and_keeps_the_order() {
    let guarantee = "AtLeastOnce";
    let tally = soak(&Plan {
        length: Duration::from_secs(18),
        broker: BrokerKind::Files,
        guarantee: guarantee.into(),
        seed: Dice::any_seed(),
    });
    assert!(tally.is_good(guarantee), "{tally:?}");
    assert!(tally.kills > 3, "{tally:?}");
    assert_eq!(
        tally.answered + tally.dead_lettered,
        tally.events,
        "{tally:?}"
    );
}
