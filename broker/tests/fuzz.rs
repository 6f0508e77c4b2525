//! The broker's target of `fuzz/`, for a moment: the kept corpus, then seeded mutations of it.
#![forbid(unsafe_code)]

#[allow(unreachable_pub, reason = "a library elsewhere")]
#[path = "../../fuzz/src/broker.rs"]
mod broker;
#[allow(dead_code, unreachable_pub, reason = "a library elsewhere")]
#[path = "../../fuzz/src/mutate.rs"]
mod mutate;

use std::path::Path;

/// A few seconds.
const INPUTS: usize = 10_000;

#[test]
fn b_e5_no_request_ends_the_broker_or_disturbs_others() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/broker_frames");
    let mut mutator = mutate::Mutator::of_folder(1, &folder);
    for input in mutator.corpus() {
        broker::broker_frames(&input);
    }
    broker::broker_is_well();
    for number in 0..INPUTS {
        let input = mutator.next_input();
        let outcome = std::panic::catch_unwind(|| broker::broker_frames(&input));
        assert!(
            outcome.is_ok(),
            "keep this in fuzz/corpus/broker_frames: {:?}",
            input.escape_ascii().to_string()
        );
        if number % 500 == 0 {
            broker::broker_is_well();
        }
    }
    broker::broker_is_well();
}
