//! Groups: rebalances, fences, and what a member may still do.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_core::intake::io::CommitOutcome;
use millrace_core::position::{Partition, Position};

use super::bench::{Bench, Peer, Start, committed, eventually};
use super::raw;
use crate::kafka::GroupSettings;
use crate::{Source, TokenStore};

/// Two members of one group: the first has everything and is asked for some of it.
async fn first_is_asked(
    bench: &Bench,
    topic: &str,
    partitions: usize,
) -> (GroupSettings, Peer, Peer) {
    let group = bench.group(&[topic]);
    let mut first = bench.member(&group);
    first
        .until("all partitions are ours", |peer| {
            peer.owned.len() == partitions
        })
        .await;
    let second = bench.member(&group);
    first
        .until("some are wanted back", |peer| peer.revoking.is_some())
        .await;
    (group, first, second)
}

/// Both settle with half of the partitions each.
async fn settle(first: &mut Peer, second: &mut Peer, partitions: usize) {
    let each = partitions / 2;
    let settled = |peer: &Peer| peer.owned.len() == each && peer.revoking.is_none();
    eventually("both have their half", async || {
        for peer in [&mut *first, &mut *second] {
            peer.for_a_while(Duration::from_millis(100)).await;
            if peer.revoking.is_some() {
                peer.let_go();
            }
        }
        let same =
            first.membership.map(|m| m.generation) == second.membership.map(|m| m.generation);
        (settled(first) && settled(second) && same).then_some(())
    })
    .await;
}

pub(super) async fn deferred_unassign(bench: Bench) {
    let topic = bench.topic(4).await;
    let (group, mut first, mut second) = first_is_asked(&bench, &topic, 4).await;
    let asked = first.revoking.clone().unwrap();
    assert_eq!(asked.len(), 2, "cooperative: only what moves is revoked");
    let before = first.events.len();
    for number in 0..4 {
        bench.numbers(&topic, number, 3).await;
    }
    let (_, ()) = tokio::join!(
        first.for_a_while(Duration::from_secs(2)),
        second.for_a_while(Duration::from_secs(2))
    );
    assert_eq!(
        first.events.len(),
        before,
        "nothing is fetched while a revocation waits"
    );
    assert!(
        second.owned.is_empty(),
        "the next owner has nothing before we let go"
    );
    // The still-member commits what it is about to give away.
    first.commit_surely(&asked[0], 2, "the last word").await;
    first.let_go();
    second
        .until("the next owner has both", |peer| peer.owned.len() == 2)
        .await;
    assert_eq!(second.owned, asked.iter().cloned().collect::<BTreeSet<_>>());
    assert_eq!(
        second.tokens[&asked[0]].own,
        Some(committed(2, "the last word"))
    );
    second
        .until("the next owner reads", |peer| {
            peer.positions(&asked[0]).len() == 1
        })
        .await;
    assert_eq!(second.positions(&asked[0]), [2], "from the commit on");
    let kept: Vec<Partition> = first.owned.iter().cloned().collect();
    first
        .until("the rest goes on", |peer| {
            kept.iter().all(|p| peer.positions(p).len() == 3)
        })
        .await;
    let store = bench.store();
    let found = store.fetch(&group.group, &asked[0]).await.unwrap();
    assert_eq!(found, Some(committed(2, "the last word")));
}

pub(super) async fn fencing(bench: Bench) {
    let topic = bench.topic(2).await;
    let (group, mut first, mut second) = first_is_asked(&bench, &topic, 2).await;
    settle(&mut first, &mut second, 2).await;
    let coordinator = raw::coordinator(bench.bootstrap(), &group.group).await;
    let generation = first.membership.unwrap().generation;
    let members = bench.admin().members(&group.group).await.unwrap();
    assert_eq!(members.len(), 2);
    let theirs = second.owned.first().unwrap().clone();
    let commit = async |generation, member: &str, offset| {
        raw::offset_commit(
            &coordinator,
            &group.group,
            generation,
            member,
            &theirs,
            offset,
        )
        .await
    };
    // One of the two does not own the partition, and its commit passes all the same: hence R4b.
    for (offset, member) in (10..).zip(&members) {
        assert_eq!(commit(generation, &member.id, offset).await, raw::NONE);
    }
    let stale = commit(generation - 1, &members[0].id, 20).await;
    assert_eq!(stale, raw::ILLEGAL_GENERATION);
    let future = commit(generation + 1, &members[0].id, 21).await;
    assert_eq!(future, raw::ILLEGAL_GENERATION);
    assert_eq!(
        commit(generation, "nobody", 22).await,
        raw::UNKNOWN_MEMBER_ID
    );
    assert_eq!(commit(-1, "", 23).await, raw::UNKNOWN_MEMBER_ID);
    let found = bench.store().fetch(&group.group, &theirs).await.unwrap();
    assert_eq!(
        found.unwrap().position,
        Position::new(11),
        "the refused ones changed nothing"
    );
}

pub(super) async fn released_is_not_committed(bench: Bench) {
    let topic = bench.topic(2).await;
    let (_, mut first, mut second) = first_is_asked(&bench, &topic, 2).await;
    let given = first.revoking.clone().unwrap().pop().unwrap();
    first.commit_surely(&given, 1, "last").await;
    first.let_go();
    let refused = first.commit(&given, 2, "too late").await;
    assert!(matches!(refused, CommitOutcome::NotOwner(_)), "{refused:?}");
    second
        .until("the next owner has it", |peer| peer.owned.len() == 1)
        .await;
    assert_eq!(second.tokens[&given].own, Some(committed(1, "last")));
    let mine = first.owned.first().unwrap().clone();
    first.commit_surely(&mine, 1, "mine").await;
}

pub(super) async fn evicted(bench: Bench) {
    let topic = bench.topic(1).await;
    let partition = Partition::new(topic.as_str(), 0);
    let group = bench.group(&[&topic]);
    let mut peer = bench.member(&group);
    peer.until("the partition is ours", |peer| peer.owned.len() == 1)
        .await;
    let before = peer.membership.unwrap();
    let coordinator = raw::coordinator(bench.bootstrap(), &group.group).await;
    let member = bench
        .admin()
        .members(&group.group)
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert_eq!(
        raw::leave_group(&coordinator, &group.group, &member.id).await,
        raw::NONE
    );
    let refused = peer.commit(&partition, 5, "too late").await;
    assert!(matches!(refused, CommitOutcome::NotOwner(_)), "{refused:?}");
    peer.until("the loss is told", |peer| peer.lost == 1).await;
    peer.until("it is ours again", |peer| peer.owned.len() == 1)
        .await;
    assert_ne!(peer.membership.unwrap(), before, "as somebody else");
    assert_eq!(
        peer.tokens[&partition].own, None,
        "the late commit changed nothing"
    );
    peer.commit_surely(&partition, 6, "again").await;
}

pub(super) async fn rejoin(bench: Bench) {
    let topic = bench.topic(2).await;
    for number in 0..2 {
        bench.numbers(&topic, number, 10).await;
    }
    let partition = Partition::new(topic.as_str(), 1);
    let mut peer = bench.member(&bench.group(&[&topic]));
    peer.until("all is read", |peer| peer.events.len() == 20)
        .await;
    let before = peer.membership.unwrap();
    peer.commit_surely(&partition, 4, "four").await;
    let open = peer.start_commit(&partition, 6, "six");
    peer.source.rejoin();
    peer.until("the client is made anew", |peer| peer.rejoined == 1)
        .await;
    let outcome = peer.outcome(open).expect("told before the rejoin");
    peer.events.clear();
    peer.until("both are ours again", |peer| peer.owned.len() == 2)
        .await;
    assert_ne!(peer.membership.unwrap().member, before.member);
    let own = peer.tokens[&partition].own.clone().unwrap();
    match outcome {
        CommitOutcome::Done => assert_eq!(own, committed(6, "six")),
        CommitOutcome::NotOwner(_) | CommitOutcome::Retriable(_) => {
            assert_eq!(own, committed(4, "four"));
        }
        CommitOutcome::Unknown(_) => {
            assert!(
                own == committed(4, "four") || own == committed(6, "six"),
                "{own:?}"
            );
        }
    }
    let from = own.position.offset();
    peer.until("it reads on", |peer| {
        peer.positions(&partition).last() == Some(&9)
    })
    .await;
    assert_eq!(peer.positions(&partition), (from..10).collect::<Vec<_>>());
}

pub(super) async fn pause_and_seek(bench: Bench) {
    let topic = bench.topic(2).await;
    let partition = |number| Partition::new(topic.as_str(), number);
    let mut peer = bench.member(&bench.group(&[&topic]));
    peer.until("both are ours", |peer| peer.owned.len() == 2)
        .await;
    peer.source.pause(partition(0));
    for number in 0..2 {
        bench.numbers(&topic, number, 2_000).await;
    }
    peer.until("the other goes on", |peer| {
        peer.positions(&partition(1)).len() == 2_000
    })
    .await;
    assert!(
        peer.positions(&partition(0)).is_empty(),
        "the paused one stands still"
    );
    peer.source.resume(partition(0));
    peer.until("it goes on", |peer| {
        !peer.positions(&partition(0)).is_empty()
    })
    .await;
    peer.source.pause(partition(0));
    let seen = peer.positions(&partition(0)).len();
    peer.for_a_while(Duration::from_millis(300)).await;
    assert_eq!(peer.positions(&partition(0)).len(), seen, "at once");
    peer.source.resume(partition(0));
    peer.until("all is read", |peer| {
        peer.positions(&partition(0)).len() >= 2_000
    })
    .await;
    assert_eq!(
        peer.positions(&partition(0)),
        (0..2_000).collect::<Vec<_>>()
    );

    peer.events.clear();
    peer.source.seek(partition(0), Position::new(1_990));
    peer.until("the seek is done", |peer| {
        peer.positions(&partition(0)).len() >= 10
    })
    .await;
    assert_eq!(
        peer.positions(&partition(0)),
        (1_990..2_000).collect::<Vec<_>>()
    );
    peer.events.clear();
    peer.source.seek(partition(0), Position::new(5));
    peer.source.seek(partition(0), Position::new(1_000));
    peer.until("the last seek counts", |peer| {
        peer.positions(&partition(0)).len() >= 1_000
    })
    .await;
    assert_eq!(
        peer.positions(&partition(0)),
        (1_000..2_000).collect::<Vec<_>>()
    );
}

pub(super) async fn long_pause(bench: Bench) {
    let topic = bench.topic(1).await;
    let partition = Partition::new(topic.as_str(), 0);
    bench.numbers(&topic, 0, 3_000).await;
    let mut peer = bench.member(&bench.group(&[&topic]));
    peer.until("some came", |peer| !peer.events.is_empty())
        .await;
    peer.source.pause(partition.clone());
    // Long enough that fetching itself stops, which drops what was fetched ahead.
    peer.for_a_while(Duration::from_secs(12)).await;
    bench.numbers(&topic, 0, 10).await;
    peer.source.resume(partition.clone());
    peer.until("all came", |peer| peer.events.len() >= 3_010)
        .await;
    assert_eq!(peer.positions(&partition), (0..3_010).collect::<Vec<_>>());
}

pub(super) async fn out_of_range(bench: Bench) {
    let topic = bench.topic(1).await;
    bench.numbers(&topic, 0, 10).await;
    let partition = Partition::new(topic.as_str(), 0);
    let mut peer = bench.member(&bench.group(&[&topic]));
    peer.start = Start::At(Position::new(1_000));
    peer.until("it is told", |peer| !peer.out_of_range.is_empty())
        .await;
    assert_eq!(peer.out_of_range, [(Position::new(0), Position::new(10))]);
    assert!(
        peer.events.is_empty(),
        "no position is reset silently (D-G9)"
    );
    peer.source.seek(partition.clone(), Position::new(3));
    peer.until("the partition goes on", |peer| {
        peer.positions(&partition).len() >= 7
    })
    .await;
    assert_eq!(peer.positions(&partition), (3..10).collect::<Vec<_>>());
    peer.commit_surely(&partition, 10, "fine").await;
    assert_eq!(peer.lost, 0);
}

pub(super) async fn start_with_epoch(bench: Bench) {
    let topic = bench.topic(1).await;
    bench.numbers(&topic, 0, 10).await;
    let partition = Partition::new(topic.as_str(), 0);
    let group = bench.group(&[&topic]);
    let mut first = bench.member(&group);
    first
        .until("all is read", |peer| peer.positions(&partition).len() == 10)
        .await;
    let epoch = first.read_epoch;
    assert!(epoch.is_some(), "records tell the epoch of their leader");
    first.commit_surely(&partition, 4, "fine").await;
    first.source.close().await;

    let mut next = bench.member(&group);
    next.start_epoch = epoch;
    next.until("the rest is read", |peer| {
        peer.positions(&partition).len() >= 6
    })
    .await;
    bench.numbers(&topic, 0, 5).await;
    next.until("what comes is read", |peer| {
        peer.positions(&partition).len() >= 11
    })
    .await;
    assert_eq!(next.positions(&partition), (4..15).collect::<Vec<_>>());
    assert!(next.out_of_range.is_empty());
    next.source.close().await;

    let mut beyond = bench.member(&group);
    beyond.start = Start::At(Position::new(1_000));
    beyond.start_epoch = epoch;
    beyond
        .until("it is told", |peer| !peer.out_of_range.is_empty())
        .await;
    assert_eq!(beyond.out_of_range, [(Position::new(0), Position::new(15))]);
    assert!(beyond.events.is_empty());
    beyond.source.seek(partition.clone(), Position::new(12));
    beyond
        .until("the partition goes on", |peer| {
            peer.positions(&partition).len() >= 3
        })
        .await;
    assert_eq!(beyond.positions(&partition), [12, 13, 14]);
}

pub(super) async fn deaf_driver(bench: Bench) {
    let topic = bench.topic(1).await;
    bench.numbers(&topic, 0, 5_000).await;
    let partition = Partition::new(topic.as_str(), 0);
    let mut group = bench.group(&[&topic]);
    group.session_timeout = Duration::from_secs(6);
    let mut peer = bench.member(&group);
    peer.until("the partition is ours", |peer| peer.owned.len() == 1)
        .await;
    let turns = peer.source.turns();
    let before = turns.load(std::sync::atomic::Ordering::Relaxed);
    // Two session time-outs in which nobody takes a happening; the fetches pile up and stop.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let after = turns.load(std::sync::atomic::Ordering::Relaxed);
    assert!(
        after - before >= 12,
        "the thread polls at least once a second"
    );
    peer.until("all is read", |peer| peer.events.len() == 5_000)
        .await;
    assert_eq!(peer.positions(&partition), (0..5_000).collect::<Vec<_>>());
    assert_eq!(peer.lost, 0);
    peer.commit_surely(&partition, 5_000, "still here").await;
    let ends = peer.source.log_ends();
    peer.until("the end is known, for lag", |_| {
        ends.get()
            .is_some_and(|ends| ends.get(&partition) == Some(&Position::new(5_000)))
    })
    .await;
}

pub(super) async fn close(bench: Bench) {
    let topic = bench.topic(2).await;
    let (group, mut first, mut second) = first_is_asked(&bench, &topic, 2).await;
    // A revocation that nobody answers must not keep the client from closing.
    let closed = tokio::time::timeout(Duration::from_secs(8), first.source.close()).await;
    assert!(closed.is_ok(), "within the session time-out");
    second
        .until("the other has everything", |peer| peer.owned.len() == 2)
        .await;
    let members = bench.admin().members(&group.group).await.unwrap();
    assert_eq!(members.len(), 1);
    second.source.close().await;
    assert_eq!(bench.admin().members(&group.group).await.unwrap(), []);
}
