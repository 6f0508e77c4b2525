//! Tokens: offsets with their metadata, who may write them, and what topics and groups tell.

use std::time::Duration;

use millrace_core::intake::io::CommitOutcome;
use millrace_core::position::{Partition, Position};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::bench::{Bench, committed, eventually};
use crate::{Source, TokenStore};

pub(super) async fn new_group(bench: Bench) {
    let topic = bench.topic(2).await;
    bench.numbers(&topic, 1, 5).await;
    let group = bench.group(&[&topic]);
    let store = bench.store();
    let registry = Partition::new(topic.as_str(), 0);
    let seeded = vec![(registry.clone(), committed(0, "mg1;seeding"))];
    let stored = store
        .commit_if_empty(&group.registry, seeded)
        .await
        .unwrap();
    assert_eq!(stored, CommitOutcome::Done);
    let mut peer = bench.member(&group);
    peer.until("both partitions are ours", |peer| peer.owned.len() == 2)
        .await;
    for number in 0..2 {
        let tokens = &peer.tokens[&Partition::new(topic.as_str(), number)];
        assert_eq!(tokens.own, None);
        let registered = Some(committed(0, "mg1;seeding"));
        assert_eq!(tokens.registry, registered.clone().filter(|_| number == 0));
        assert_eq!(
            tokens.seeding, registered,
            "partition 0 tells how far the seeding went"
        );
        assert_eq!(tokens.log_start, Position::new(0));
        assert_eq!(
            tokens.log_end,
            Position::new(if number == 1 { 5 } else { 0 })
        );
        assert!(
            tokens.topic_identity.is_some(),
            "this broker's topics have ids"
        );
    }
}

pub(super) async fn metadata_size(bench: Bench) {
    let topic = bench.topic(1).await;
    let partition = Partition::new(topic.as_str(), 0);
    let group = bench.group(&[&topic]);
    let mut peer = bench.member(&group);
    peer.until("the partition is ours", |peer| peer.owned.len() == 1)
        .await;
    let fits: String = ('!'..='~').cycle().take(4_000).collect();
    let store = bench.store();
    for metadata in [fits.as_str(), "", "mr1;k=L;e=1"] {
        peer.commit_surely(&partition, 7, metadata).await;
        let found = store.fetch(&group.group, &partition).await.unwrap();
        assert_eq!(found, Some(committed(7, metadata)));
    }
    peer.commit_surely(&partition, 8, &fits).await;
    let refused = peer.commit(&partition, 9, &"x".repeat(5_000)).await;
    assert!(
        matches!(refused, CommitOutcome::Retriable(_)),
        "{refused:?}"
    );
    let found = store.fetch(&group.group, &partition).await.unwrap();
    assert_eq!(
        found,
        Some(committed(8, &fits)),
        "a refused commit changes nothing"
    );
    peer.commit_surely(&partition, 10, "after").await;
}

pub(super) async fn outsider(bench: Bench) {
    let topic = bench.topic(1).await;
    let partition = Partition::new(topic.as_str(), 0);
    let group = bench.group(&[&topic]);
    let store = bench.store();
    let offsets =
        |position, metadata: &str| vec![(partition.clone(), committed(position, metadata))];
    assert_eq!(store.fetch(&group.group, &partition).await.unwrap(), None);
    let first = store
        .commit_if_empty(&group.group, offsets(1, "one"))
        .await
        .unwrap();
    assert_eq!(
        first,
        CommitOutcome::Done,
        "a group that never had members is empty"
    );
    let mut peer = bench.member(&group);
    peer.until("the partition is ours", |peer| peer.owned.len() == 1)
        .await;
    let token = peer.tokens[&partition].own.clone();
    assert_eq!(
        token,
        Some(committed(1, "one")),
        "a member reads what an outsider wrote"
    );
    let refused = store
        .commit_if_empty(&group.group, offsets(2, "two"))
        .await
        .unwrap();
    assert!(matches!(refused, CommitOutcome::NotOwner(_)), "{refused:?}");
    let found = store.fetch(&group.group, &partition).await.unwrap();
    assert_eq!(found, Some(committed(1, "one")));
    peer.commit_surely(&partition, 3, "three").await;
    peer.source.close().await;
    let last = store
        .commit_if_empty(&group.group, offsets(4, "four"))
        .await
        .unwrap();
    assert_eq!(last, CommitOutcome::Done, "the group is empty again");
    let found = store.fetch(&group.group, &partition).await.unwrap();
    assert_eq!(found, Some(committed(4, "four")));
}

pub(super) async fn identity(bench: Bench) {
    let topic = bench.topic(1).await;
    let other = bench.topic(1).await;
    let admin = bench.admin();
    let first = admin.topic_identities(&[&topic, &other]).await.unwrap();
    assert_eq!(first.len(), 2);
    assert_ne!(first[&topic], first[&other]);
    assert_eq!(
        admin.topic_identities(&[&topic]).await.unwrap()[&topic],
        first[&topic]
    );
    admin.delete_topic(&topic).await.unwrap();
    eventually("the topic is gone", async || {
        admin
            .topics(&[&topic])
            .await
            .is_ok_and(|found| found.is_empty())
            .then_some(())
    })
    .await;
    eventually("the topic is made anew", async || {
        admin.create_topics(&[(&topic, 1)]).await.ok()?;
        let now = admin.topic_identities(&[&topic]).await.ok()?;
        (*now.get(&topic)? != first[&topic]).then_some(())
    })
    .await;
}

pub(super) async fn members(bench: Bench) {
    let topic = bench.topic(2).await;
    let group = bench.group(&[&topic]);
    let admin = bench.admin();
    assert_eq!(admin.members(&group.group).await.unwrap(), []);
    let mut peer = bench.member(&group);
    peer.until("the partitions are ours", |peer| peer.owned.len() == 2)
        .await;
    let ours = admin.members(&group.group).await.unwrap();
    assert_eq!(ours.len(), 1);
    assert_eq!(ours[0].client_id, "millrace-conformance");
    peer.source.close().await;

    let foreign: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bench.bootstrap())
        .set("client.id", "somebody-else")
        .set("group.id", &group.group)
        .create()
        .unwrap();
    foreign.subscribe(&[&topic]).unwrap();
    let found = eventually("the foreign member is listed", async || {
        foreign.poll(Duration::from_millis(50));
        admin.members(&group.group).await.unwrap().pop()
    })
    .await;
    assert_eq!(found.client_id, "somebody-else");
}

pub(super) async fn topics(bench: Bench) {
    let admin = bench.admin();
    let topic = bench.topic(3).await;
    admin.create_topics(&[(&topic, 9)]).await.unwrap();
    let missing = bench.unique("missing");
    let found = admin.topics(&[&topic, &missing]).await.unwrap();
    assert_eq!(found.len(), 1, "asking for a topic does not create it");
    assert_eq!(found[&topic].partitions, 3, "what exists stays as it is");
    assert!(!admin.cluster_id().await.unwrap().is_empty());
    let limits = admin.max_message_bytes(&[&topic, &missing]).await.unwrap();
    assert_eq!(limits.len(), 1);
    assert!(limits[&topic] >= 1_000_000, "{limits:?}");
    assert!(admin.topics(&[&missing]).await.unwrap().is_empty());
}
