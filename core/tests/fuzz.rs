//! The targets of `fuzz/`, each for a moment: the kept corpus, then seeded mutations of it. What
//! coverage finds in hours with `cargo fuzz` is kept in the corpus and so is tried here for ever.
#![forbid(unsafe_code)]

#[allow(unreachable_pub, reason = "a library elsewhere")]
#[path = "../../fuzz/src/core.rs"]
mod core;
#[allow(dead_code, unreachable_pub, reason = "a library elsewhere")]
#[path = "../../fuzz/src/mutate.rs"]
mod mutate;

use std::path::Path;

/// Inputs per target; a second or less each.
const INPUTS: usize = 20_000;

fn run(target: &str, each: fn(&[u8])) {
    runs(target, each, INPUTS);
}

fn runs(target: &str, each: fn(&[u8]), inputs: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut mutator = mutate::Mutator::of_folder(1, &folder.join(target));
    for input in mutator.corpus() {
        each(&input);
    }
    for _ in 0..inputs {
        let input = mutator.next_input();
        let outcome = std::panic::catch_unwind(|| each(&input));
        assert!(
            outcome.is_ok(),
            "keep this in fuzz/corpus/{target}: {:?}",
            input.escape_ascii().to_string()
        );
    }
}

#[test]
fn e1_commit_metadata_is_what_encoding_writes_or_is_refused() {
    run("commit_metadata", core::commit_metadata);
}

#[test]
fn p_2_publish_frames_are_what_encoding_writes_or_are_refused() {
    run("publish_frames", core::publish_frames);
}

#[test]
fn a_s5_every_answer_of_the_app_means_something() {
    run("app_answer", core::app_answer);
}

#[test]
fn a_b1_every_answer_to_a_batch_means_something_for_each_event() {
    run("batch_answer", core::batch_answer);
}

#[test]
fn c_1_every_document_is_a_block_or_a_list_of_problems() {
    runs("block_document", core::block_document, INPUTS / 40);
}

#[test]
fn the_mutator_repeats_itself() {
    let inputs = |seed| {
        let mut mutator = mutate::Mutator::new(seed, vec![b"a corpus".to_vec(), vec![0; 9]]);
        (0..100).map(|_| mutator.next_input()).collect::<Vec<_>>()
    };
    assert_eq!(inputs(7), inputs(7));
    assert_ne!(inputs(7), inputs(8));
}
