//! Transactions: what belongs together, what is refused, and what never happened.

use millrace_core::contract::publish::GroupMetadata;
use millrace_core::position::{Partition, Position};

use super::bench::{Bench, Peer, append, committed, record};
use super::raw;
use crate::kafka::{
    Ending, GroupSettings, KafkaSink, TransactionEnd, TransactionSettings, prove_fencing,
};
use crate::{Delivery, Source, TokenStore};

/// Appends values within the open transaction and expects the broker to take them.
async fn write(sink: &mut KafkaSink, topic: &str, values: &[&str]) {
    let records = values
        .iter()
        .map(|value| record(topic, Some(0), (*value).to_owned()))
        .collect();
    for end in append(sink, records).await {
        assert!(matches!(end, Delivery::Stored { .. }), "{end:?}");
    }
}

async fn end(sink: &mut KafkaSink, ending: Ending) -> TransactionEnd {
    sink.end_transaction(ending).known().await
}

fn commit(group: GroupMetadata, partition: &Partition, at: i64, metadata: &str) -> Ending {
    Ending::Commit {
        group,
        offsets: vec![(partition.clone(), committed(at, metadata))],
    }
}

/// The only member of a new group, with the partition of a new topic.
async fn owner(bench: &Bench) -> (Partition, GroupSettings, Peer) {
    let input = bench.topic(1).await;
    let group = bench.group(&[&input]);
    let mut peer = bench.member(&group);
    peer.until("the partition is ours", |peer| peer.owned.len() == 1)
        .await;
    (Partition::new(input.as_str(), 0), group, peer)
}

pub(super) async fn together(bench: Bench) {
    let output = bench.topic(1).await;
    let (partition, group, mut peer) = owner(&bench).await;
    let mut sink = bench.transactional(&bench.unique("txn")).await;
    let store = bench.store();
    for round in 1..4 {
        let value = round.to_string();
        write(&mut sink, &output, &[&value]).await;
        assert_eq!(
            bench.read(&output, 0).await.len() + 1,
            usize::try_from(round).unwrap(),
            "nobody sees what is not committed"
        );
        let metadata = peer.metadata(&[&partition]).await.unwrap();
        let token = format!("mr1;round={round}");
        let ended = end(&mut sink, commit(metadata, &partition, round, &token)).await;
        assert_eq!(ended, TransactionEnd::Committed);
        let found = store.fetch(&group.group, &partition).await.unwrap();
        assert_eq!(found, Some(committed(round, &token)), "together");
    }
    assert_eq!(bench.read(&output, 0).await, ["1", "2", "3"]);
    // A plain commit of a later time wins over a transactional one (E6).
    peer.commit_surely(&partition, 9, "plain").await;
    let found = store.fetch(&group.group, &partition).await.unwrap();
    assert_eq!(found, Some(committed(9, "plain")));
}

pub(super) async fn forged_generation(bench: Bench) {
    let output = bench.topic(1).await;
    let (partition, group, mut peer) = owner(&bench).await;
    let stale = peer.metadata(&[&partition]).await.unwrap();
    let before = peer.membership.unwrap();
    let coordinator = raw::coordinator(bench.bootstrap(), &group.group).await;
    let members = bench.admin().members(&group.group).await.unwrap();
    let left = raw::leave_group(&coordinator, &group.group, &members[0].id).await;
    assert_eq!(left, raw::NONE);
    peer.until("the loss is told", |peer| peer.lost == 1).await;
    peer.until("it is ours again", |peer| peer.owned.len() == 1)
        .await;
    assert_ne!(peer.membership.unwrap(), before);

    let mut sink = bench.transactional(&bench.unique("txn")).await;
    write(&mut sink, &output, &["of a zombie"]).await;
    let refused = end(&mut sink, commit(stale, &partition, 7, "zombie")).await;
    assert!(matches!(refused, TransactionEnd::Aborted(_)), "{refused:?}");
    let store = bench.store();
    assert_eq!(store.fetch(&group.group, &partition).await.unwrap(), None);
    assert_eq!(bench.read(&output, 0).await, Vec::<String>::new());

    // The producer itself goes on, under the present generation.
    write(&mut sink, &output, &["of the owner"]).await;
    let metadata = peer.metadata(&[&partition]).await.unwrap();
    let ended = end(&mut sink, commit(metadata, &partition, 8, "owner")).await;
    assert_eq!(ended, TransactionEnd::Committed);
    let found = store.fetch(&group.group, &partition).await.unwrap();
    assert_eq!(found, Some(committed(8, "owner")));
    assert_eq!(bench.read(&output, 0).await, ["of the owner"]);

    let foreign = Partition::new(output.as_str(), 0);
    let refused = peer.metadata(&[&partition, &foreign]).await;
    assert!(refused.is_err(), "only for partitions of ours: {refused:?}");
    peer.source.close().await;
}

pub(super) async fn fencing_is_proved(bench: Bench) {
    let topic = bench.topic(1).await;
    let probe = bench.unique("probe");
    let partition = Partition::new(topic.as_str(), 0);
    let transactions = TransactionSettings {
        id: bench.unique("txn"),
        timeout: std::time::Duration::from_secs(30),
    };
    let settings = bench.settings();
    for _ in 0..2 {
        let transactions = transactions.clone();
        let proved = prove_fencing(&settings, transactions, &probe, partition.clone());
        proved.await.unwrap();
    }
    let found = bench.store().fetch(&probe, &partition).await.unwrap();
    assert_eq!(found, None, "it leaves nothing behind");
}

pub(super) async fn aborted(bench: Bench) {
    let output = bench.topic(1).await;
    let mut sink = bench.transactional(&bench.unique("txn")).await;
    write(&mut sink, &output, &["a", "b"]).await;
    let ended = end(&mut sink, Ending::Abort).await;
    assert!(matches!(ended, TransactionEnd::Aborted(_)), "{ended:?}");
    let ended = end(&mut sink, Ending::Abort).await;
    assert!(
        matches!(ended, TransactionEnd::Aborted(_)),
        "of nothing: {ended:?}"
    );
    let elsewhere = bench.topic(1).await;
    let mut broken = bench.transactional(&bench.unique("txn")).await;
    write(&mut broken, &elsewhere, &["c"]).await;
    let forged = GroupMetadata::new("no metadata at all".into()).unwrap();
    let partition = Partition::new(output.as_str(), 0);
    let ended = end(&mut broken, commit(forged, &partition, 1, "")).await;
    assert!(matches!(ended, TransactionEnd::Unknown(_)), "{ended:?}");
    write(&mut sink, &output, &["d"]).await;
    // Nothing is read behind an open transaction, and nothing of it.
    assert_eq!(bench.read(&output, 0).await, Vec::<String>::new());
    let nobody = GroupMetadata::new("unused".into()).unwrap();
    let nothing = Ending::Commit {
        group: nobody,
        offsets: Vec::new(),
    };
    assert_eq!(end(&mut sink, nothing).await, TransactionEnd::Committed);
    assert_eq!(bench.read(&output, 0).await, ["d"]);
}

pub(super) async fn newer_producer(bench: Bench) {
    let output = bench.topic(1).await;
    let id = bench.unique("txn");
    let mut older = bench.transactional(&id).await;
    write(&mut older, &output, &["of the older"]).await;
    let mut newer = bench.transactional(&id).await;
    let nothing = || Ending::Commit {
        group: GroupMetadata::new("unused".into()).unwrap(),
        offsets: Vec::new(),
    };
    let fenced = end(&mut older, nothing()).await;
    assert!(matches!(fenced, TransactionEnd::Unknown(_)), "{fenced:?}");
    write(&mut newer, &output, &["of the newer"]).await;
    assert_eq!(end(&mut newer, nothing()).await, TransactionEnd::Committed);
    assert_eq!(bench.read(&output, 0).await, ["of the newer"]);
}

pub(super) async fn offsets_alone(bench: Bench) {
    let input = bench.topic(1).await;
    let partition = Partition::new(input.as_str(), 0);
    let group = bench.group(&[&input]);
    let mut peer = bench.member(&group);
    peer.until("the partition is ours", |peer| peer.owned.len() == 1)
        .await;
    let mut sink = bench.transactional(&bench.unique("txn")).await;
    let metadata = peer.metadata(&[&partition]).await.unwrap();
    let ended = end(&mut sink, commit(metadata, &partition, 3, "alone")).await;
    assert_eq!(ended, TransactionEnd::Committed);
    let found = bench.store().fetch(&group.group, &partition).await.unwrap();
    assert_eq!(found.map(|found| found.position), Some(Position::new(3)));
}
