//! What the log in memory promises to tests.

use std::time::Duration;

use millrace_core::intake::io::{Commit, CommitId, CommitOutcome, Committed, StartAt};
use millrace_core::position::{Partition, Position};

use super::{AppendFault, CommitFault, MemoryLog, MemorySource};
use crate::{AppendClass, Delivery, Happening, Record, Sink, Source, TokenStore};

fn partition(number: i32) -> Partition {
    Partition::new("t", number)
}

fn log(partitions: u32) -> MemoryLog {
    let log = MemoryLog::new();
    log.create_topic("t", partitions);
    log
}

fn at(position: i64) -> Committed {
    Committed {
        position: Position::new(position),
        metadata: format!("at {position}"),
    }
}

fn commit(id: u64, number: i32, position: i64) -> Commit {
    Commit {
        id: CommitId(id),
        offsets: vec![(partition(number), at(position))],
    }
}

/// Takes the assignment and starts it at the beginning.
async fn start(source: &mut MemorySource) -> Vec<Partition> {
    match source.next().await {
        Happening::Assigned { partitions, .. } => {
            let starts = partitions
                .iter()
                .map(|p| StartAt::position(p.clone(), Position::START));
            source.assign(starts.collect());
            partitions
        }
        other => panic!("{other:?}"),
    }
}

async fn positions(source: &mut MemorySource) -> Vec<(i32, i64)> {
    match source.next().await {
        Happening::Fetched(fetched) => fetched
            .iter()
            .flat_map(|part| {
                let number = part.partition.number();
                part.events
                    .iter()
                    .map(move |event| (number, event.position().offset()))
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

async fn outcome(source: &mut MemorySource) -> CommitOutcome {
    match source.next().await {
        Happening::Committed { outcome, .. } => outcome,
        other => panic!("{other:?}"),
    }
}

fn record(value: &'static str) -> Record {
    Record {
        topic: "t".into(),
        partition: Some(0),
        timestamp_ms: None,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn t4_records_come_in_order_over_gaps_and_as_they_are_appended() {
    let log = log(1);
    let mut source = log.source("g", "r", &["t"]);
    start(&mut source).await;
    log.append(&partition(0), Some(b"k"), Some(b"v"));
    log.skip(&partition(0), 3);
    log.append(&partition(0), None, None);
    assert_eq!(positions(&mut source).await, [(0, 0), (0, 4)]);
    let waiting = tokio::spawn(async move { positions(&mut source).await });
    tokio::task::yield_now().await;
    log.append(&partition(0), None, None);
    assert_eq!(waiting.await.unwrap(), [(0, 5)]);
}

#[tokio::test(start_paused = true)]
async fn d_g4_a_partition_moves_only_after_its_owner_let_go() {
    let log = log(2);
    let mut first = log.source("g", "r", &["t"]);
    assert_eq!(start(&mut first).await.len(), 2);
    let mut second = log.source("g", "r", &["t"]);
    let asked = loop {
        match first.next().await {
            Happening::Revoking(partitions) => break partitions,
            Happening::Assigned { partitions, .. } => assert!(partitions.is_empty()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(asked.len(), 1);
    let number = asked[0].number();
    first.commit(commit(1, number, 7));
    loop {
        match first.next().await {
            Happening::Committed { outcome, .. } => {
                assert_eq!(outcome, CommitOutcome::Done);
                break;
            }
            Happening::Assigned { partitions, .. } => assert!(partitions.is_empty()),
            other => panic!("{other:?}"),
        }
    }
    first.unassign(asked.clone());
    let given = loop {
        match second.next().await {
            Happening::Assigned { partitions, .. } if partitions.is_empty() => {}
            Happening::Assigned { partitions, .. } => break partitions,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(given, asked);
    second.read_tokens(asked[0].clone());
    let Happening::TokensRead { read, .. } = second.next().await else {
        panic!("tokens come next");
    };
    assert_eq!(read.unwrap().own, Some(at(7)));
    first.commit(commit(2, number, 8));
    let refused = loop {
        if let Happening::Committed { outcome, .. } = first.next().await {
            break outcome;
        }
    };
    assert!(matches!(refused, CommitOutcome::NotOwner(_)));
}

#[tokio::test(start_paused = true)]
async fn r4c_a_held_commit_ends_when_it_is_released_or_when_the_client_is_destroyed() {
    let log = log(1);
    let mut source = log.source("g", "r", &["t"]);
    start(&mut source).await;
    log.fail_commits([CommitFault::Held, CommitFault::Held]);
    source.commit(commit(1, 0, 1));
    assert_eq!(log.committed("g", &partition(0)), None);
    log.release_commits("g", true);
    assert_eq!(outcome(&mut source).await, CommitOutcome::Done);
    source.commit(commit(2, 0, 2));
    source.rejoin();
    assert!(matches!(
        outcome(&mut source).await,
        CommitOutcome::Unknown(_)
    ));
    assert!(matches!(source.next().await, Happening::Rejoined));
    assert_eq!(start(&mut source).await, [partition(0)]);
    assert_eq!(log.committed("g", &partition(0)), Some(at(1)));
}

#[tokio::test(start_paused = true)]
async fn commits_meet_their_faults_one_by_one() {
    let log = log(1);
    let mut source = log.source("g", "r", &["t"]);
    start(&mut source).await;
    log.fail_commits([
        CommitFault::Retriable,
        CommitFault::NotOwner,
        CommitFault::Unknown { applied: true },
        CommitFault::Slow(Duration::from_secs(3)),
    ]);
    source.commit(commit(1, 0, 1));
    assert!(matches!(
        outcome(&mut source).await,
        CommitOutcome::Retriable(_)
    ));
    source.commit(commit(2, 0, 2));
    assert!(matches!(
        outcome(&mut source).await,
        CommitOutcome::NotOwner(_)
    ));
    assert_eq!(log.committed("g", &partition(0)), None);
    source.commit(commit(3, 0, 3));
    assert!(matches!(
        outcome(&mut source).await,
        CommitOutcome::Unknown(_)
    ));
    assert_eq!(log.committed("g", &partition(0)), Some(at(3)));
    let before = tokio::time::Instant::now();
    source.commit(commit(4, 0, 4));
    assert_eq!(outcome(&mut source).await, CommitOutcome::Done);
    assert_eq!(before.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn d_g5_an_evicted_member_loses_its_partitions_and_gets_them_again() {
    let log = log(1);
    let mut source = log.source("g", "r", &["t"]);
    start(&mut source).await;
    log.append(&partition(0), None, None);
    let before = source.member().unwrap();
    log.evict("g", before);
    assert!(matches!(source.next().await, Happening::Lost(lost) if lost == [partition(0)]));
    assert_eq!(start(&mut source).await, [partition(0)]);
    assert_ne!(source.member().unwrap(), before);
    assert_eq!(positions(&mut source).await, [(0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_ghost_takes_its_share_and_gives_it_back() {
    let log = log(2);
    let mut source = log.source("g", "r", &["t"]);
    start(&mut source).await;
    let ghost = log.join_ghost("g");
    let Happening::Revoking(asked) = source.next().await else {
        panic!("half of it is wanted");
    };
    source.unassign(asked.clone());
    log.evict("g", ghost);
    let mut back = Vec::new();
    while back.is_empty() {
        if let Happening::Assigned { partitions, .. } = source.next().await {
            back = partitions;
        }
    }
    assert_eq!(back, asked);
}

#[tokio::test(start_paused = true)]
async fn d_g10_what_was_dropped_is_out_of_range() {
    let log = log(1);
    for _ in 0..5 {
        log.append(&partition(0), None, None);
    }
    log.drop_before(&partition(0), Position::new(3));
    let mut source = log.source("g", "r", &["t"]);
    start(&mut source).await;
    match source.next().await {
        Happening::OutOfRange {
            log_start, log_end, ..
        } => assert_eq!((log_start.offset(), log_end.offset()), (3, 5)),
        other => panic!("{other:?}"),
    }
    source.seek(partition(0), Position::new(3));
    assert_eq!(positions(&mut source).await, [(0, 3), (0, 4)]);
}

#[tokio::test(start_paused = true)]
async fn d_c1_a_paused_partition_stands_still() {
    let log = log(2);
    let mut source = log.source("g", "r", &["t"]);
    start(&mut source).await;
    source.pause(partition(0));
    log.append(&partition(0), None, None);
    log.append(&partition(1), None, None);
    assert_eq!(positions(&mut source).await, [(1, 0)]);
    source.resume(partition(0));
    assert_eq!(positions(&mut source).await, [(0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn d_l3_reports_keep_their_order_behind_a_held_record_until_a_purge() {
    let log = log(1);
    let mut sink = log.sink();
    log.fail_appends([AppendFault::Held]);
    sink.append(1, record("one")).unwrap();
    sink.append(2, record("two")).unwrap();
    let mut ends = Vec::new();
    let waited = tokio::time::timeout(Duration::from_secs(60), sink.deliveries(&mut ends)).await;
    assert!(waited.is_err(), "the second waits behind the first");
    sink.purge();
    sink.flush().await;
    sink.deliveries(&mut ends).await;
    assert!(matches!(
        ends[..],
        [
            (
                1,
                Delivery::Failed {
                    class: AppendClass::Transient,
                    ..
                }
            ),
            (2, Delivery::Stored { .. })
        ]
    ));
    assert_eq!(
        log.records(&partition(0)).len(),
        1,
        "stored while the first timed out (F-27)"
    );
}

#[tokio::test(start_paused = true)]
async fn appends_meet_their_faults_one_by_one() {
    let log = log(1);
    let mut sink = log.sink();
    log.fail_appends([
        AppendFault::Full,
        AppendFault::Fail(AppendClass::Rejected),
        AppendFault::StoredButFailed(AppendClass::Transient),
        AppendFault::Slow(Duration::from_secs(2)),
        AppendFault::Held,
    ]);
    let back = sink.append(1, record("full")).unwrap_err();
    assert_eq!(back.value.as_deref(), Some(&b"full"[..]));
    for (ticket, value) in (2..).zip(["rejected", "stored", "slow", "held"]) {
        sink.append(ticket, record(value)).unwrap();
    }
    sink.append(
        6,
        Record {
            topic: "nowhere".into(),
            ..record("x")
        },
    )
    .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    sink.release();
    sink.flush().await;
    let mut ends = Vec::new();
    sink.deliveries(&mut ends).await;
    let told: Vec<Option<AppendClass>> = ends
        .iter()
        .map(|(_, end)| match end {
            Delivery::Stored { .. } => None,
            Delivery::Failed { class, .. } => Some(class.clone()),
        })
        .collect();
    assert_eq!(
        told,
        [
            Some(AppendClass::Rejected),
            Some(AppendClass::Transient),
            None,
            None,
            Some(AppendClass::Misconfigured)
        ]
    );
    let values: Vec<_> = log
        .records(&partition(0))
        .into_iter()
        .map(|stored| String::from_utf8(stored.value.unwrap().to_vec()).unwrap())
        .collect();
    assert_eq!(values, ["stored", "slow", "held"]);
}

#[tokio::test(start_paused = true)]
async fn e6_an_outsider_commits_only_while_the_group_is_empty() {
    let log = log(1);
    let store = log.token_store();
    let offsets = || vec![(partition(0), at(4))];
    let done = store.commit_if_empty("g", offsets()).await.unwrap();
    assert_eq!(done, CommitOutcome::Done);
    let mut source = log.source("g", "r", &["t"]);
    let refused = store.commit_if_empty("g", offsets()).await.unwrap();
    assert!(matches!(refused, CommitOutcome::NotOwner(_)));
    source.close().await;
    let done = store.commit_if_empty("g", offsets()).await.unwrap();
    assert_eq!(done, CommitOutcome::Done);
    assert_eq!(store.fetch("g", &partition(0)).await.unwrap(), Some(at(4)));
    log.fail_token_reads(1);
    assert!(store.fetch("g", &partition(0)).await.is_err());
    assert!(store.log_range(&partition(0)).await.is_ok());
}
