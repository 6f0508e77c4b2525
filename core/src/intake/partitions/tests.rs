//! F-16: a log that is cut at its end, as an unclean leader election does.

use super::*;
use crate::intake::bench::{Bench, partition};
use crate::intake::io::Input;
use crate::token::Token;

fn live() -> Token {
    Token::Live {
        epoch: 1,
        from: Position::START,
        peer: None,
    }
}

fn at(offset: i64) -> Position {
    Position::new(offset)
}

/// The leader epoch that the last commit carries.
fn committed_epoch(bench: &Bench) -> Option<i32> {
    let committed = bench.committed.as_ref().expect("a commit");
    let metadata = Metadata::decode(&committed.metadata, UnknownKeys::Refuse).expect("our own");
    metadata.leader_epoch
}

fn cut(bench: &mut Bench, log_end: i64) {
    bench.on(Input::OutOfRange {
        partition: partition(),
        log_start: Position::START,
        log_end: at(log_end),
    });
}

#[test]
fn d_g10_a_commit_carries_the_newest_leader_epoch_that_was_read() {
    let mut bench = Bench::live();
    for (epoch, until, expected) in [(Some(3), 5, 3), (Some(7), 9, 7), (None, 12, 7)] {
        bench.leader_epoch = epoch;
        bench.fetch(until - 3..until);
        bench.answer();
        bench.seconds(2, Some(until));
        assert_eq!(committed_epoch(&bench), Some(expected), "{epoch:?}");
    }
}

#[test]
fn d_g10_an_owner_that_reads_nothing_keeps_the_epoch_that_it_found() {
    let mut bench = Bench::new();
    let metadata = Metadata {
        leader_epoch: Some(7),
        ..Metadata::of_outsider(live(), None)
    };
    bench.join_with(&metadata, at(40));
    let start = StartAt {
        partition: partition(),
        position: at(40),
        leader_epoch: Some(7),
    };
    assert_eq!(
        bench.starts,
        [start],
        "the log is asked whether it holds that"
    );
    bench.fetch(40..42);
    bench.answer();
    bench.seconds(2, Some(42));
    assert_eq!(committed_epoch(&bench), Some(7));
}

#[test]
fn f_16_a_log_that_was_cut_halts_the_partition_and_counts_what_is_gone() {
    let mut bench = Bench::live();
    bench.fetch(0..10);
    cut(&mut bench, 6);
    let state = &bench.intake.state().partitions[0];
    let reason = state.reason.clone().expect("it is halted");
    assert!(
        reason.contains("the log was cut below position 10"),
        "{reason}"
    );
    assert_eq!(state.counters.data_loss, 4);
    assert_eq!(state.in_flight, 0, "it takes no room from the others");
    let (from, to) = match bench.facts.as_slice() {
        [Fact::DataLoss { from, to, .. }] => (*from, *to),
        other => panic!("{other:?}"),
    };
    assert_eq!((from, to), (at(6), at(10)));
    // What comes of the new history is not taken.
    let calls = bench.calls.len();
    bench.fetch(6..12);
    assert_eq!(bench.calls.len(), calls);
}
