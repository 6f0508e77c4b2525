//! What the connectors make of brokers that refuse, stall or vanish.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which the lint does not take for tests"
)]

use std::time::Duration;

use millrace_broker::{ApiKey, Broker, Fault, Options, ResponseError, Target, Times};
use millrace_connectors::kafka::{
    Compression, GroupSettings, KafkaSink, KafkaSource, ProducerSettings, Settings,
};
use millrace_connectors::{AppendClass, Delivery, Happening, Record, Sink, Source};
use millrace_core::intake::io::{Commit, CommitId, CommitOutcome, Committed, Membership, StartAt};
use millrace_core::position::{Partition, Position};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(60);

fn broker() -> Broker {
    let mut options = Options::memory();
    options.initial_rebalance_delay = Duration::ZERO;
    let broker = Broker::start(options).unwrap();
    broker.create_topic("t", 1, &[]).unwrap();
    broker
}

fn settings(broker: &Broker) -> Settings {
    Settings::plain(broker.bootstrap(), "millrace-faults")
}

fn partition() -> Partition {
    Partition::new("t", 0)
}

async fn happening(source: &mut KafkaSource) -> Happening {
    tokio::time::timeout(SOON, source.next())
        .await
        .expect("something happens in time")
}

/// Waits for the assignment and starts it.
async fn owner(source: &mut KafkaSource) -> Membership {
    loop {
        if let Happening::Assigned {
            partitions,
            membership,
        } = happening(source).await
            && !partitions.is_empty()
        {
            source.assign(vec![StartAt::position(partition(), Position::START)]);
            return membership;
        }
    }
}

async fn member(broker: &Broker) -> KafkaSource {
    let group = GroupSettings {
        group: "g".to_owned(),
        registry: "r".to_owned(),
        topics: vec!["t".to_owned()],
        session_timeout: Duration::from_secs(6),
    };
    let mut source = KafkaSource::new(settings(broker), group).unwrap();
    owner(&mut source).await;
    source
}

fn start_commit(source: &mut KafkaSource, position: i64) {
    source.commit(Commit {
        id: CommitId(position.unsigned_abs()),
        offsets: vec![(
            partition(),
            Committed {
                position: Position::new(position),
                metadata: position.to_string(),
            },
        )],
    });
}

async fn end(source: &mut KafkaSource) -> CommitOutcome {
    loop {
        if let Happening::Committed { outcome, .. } = happening(source).await {
            return outcome;
        }
    }
}

fn stored(broker: &Broker) -> Option<i64> {
    broker
        .committed("g", "t", 0)
        .map(|committed| committed.offset)
}

fn commits() -> Target {
    Target::kind(ApiKey::OffsetCommit).group("g")
}

#[tokio::test(flavor = "multi_thread")]
async fn d_w3_a_refusal_for_now_is_retriable_and_a_refusal_of_the_member_is_not_owner() {
    let broker = broker();
    let mut source = member(&broker).await;
    for error in [
        ResponseError::CoordinatorLoadInProgress,
        ResponseError::RebalanceInProgress,
        ResponseError::GroupAuthorizationFailed,
    ] {
        broker
            .faults()
            .add(commits(), Fault::Refuse(error), Times::Count(50));
        start_commit(&mut source, 1);
        let outcome = end(&mut source).await;
        assert!(
            matches!(outcome, CommitOutcome::Retriable(_)),
            "{error:?}: {outcome:?}"
        );
        broker.faults().clear_all();
    }
    assert_eq!(stored(&broker), None);
    start_commit(&mut source, 2);
    assert_eq!(end(&mut source).await, CommitOutcome::Done);
    let illegal = Fault::Refuse(ResponseError::IllegalGeneration);
    broker.faults().add(commits(), illegal, Times::Count(1));
    start_commit(&mut source, 3);
    let outcome = end(&mut source).await;
    assert!(matches!(outcome, CommitOutcome::NotOwner(_)), "{outcome:?}");
    assert_eq!(stored(&broker), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn r4c_a_commit_whose_answer_is_lost_is_done_or_unknown_but_never_refused() {
    for fault in [
        Fault::LoseAnswer,
        Fault::TimeOutAfterApplying,
        Fault::DropConnection,
        Fault::Refuse(ResponseError::CoordinatorNotAvailable),
    ] {
        for times in [1, 50] {
            let broker = broker();
            let mut source = member(&broker).await;
            broker.faults().add(commits(), fault, Times::Count(times));
            start_commit(&mut source, 1);
            let outcome = end(&mut source).await;
            match outcome {
                CommitOutcome::Done => assert_eq!(stored(&broker), Some(1), "{fault:?}"),
                CommitOutcome::Unknown(_) => {}
                refused => panic!("{fault:?} {times}: {refused:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r4c_a_rejoin_while_the_coordinator_is_away_ends_the_open_commit_first() {
    let broker = broker();
    let mut source = member(&broker).await;
    let hold = broker.faults().add(
        commits(),
        Fault::Delay(Duration::from_secs(30)),
        Times::UntilCleared,
    );
    start_commit(&mut source, 1);
    let waited = tokio::time::timeout(Duration::from_secs(2), async {
        loop {
            if let Happening::Committed { outcome, .. } = source.next().await {
                break outcome;
            }
        }
    });
    assert!(waited.await.is_err(), "no time-out of ours ends a commit");
    source.rejoin();
    broker.faults().clear(hold);
    let mut ended = None;
    loop {
        match happening(&mut source).await {
            Happening::Committed { outcome, .. } => ended = Some(outcome),
            Happening::Rejoined => break,
            _ => {}
        }
    }
    assert!(ended.is_some(), "the end is told before the rejoin");
    owner(&mut source).await;
    start_commit(&mut source, 2);
    assert_eq!(end(&mut source).await, CommitOutcome::Done);
    assert_eq!(stored(&broker), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_a_broker_that_vanishes_is_told_and_so_is_its_return() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let start = || {
        let mut options = Options::files(folder.path());
        options.listen = millrace_broker::Listen::Exact(address);
        options.initial_rebalance_delay = Duration::ZERO;
        Broker::start(options)
    };
    let broker = start().unwrap();
    broker.create_topic("t", 1, &[]).unwrap();
    let mut source = member(&broker).await;
    start_commit(&mut source, 1);
    assert_eq!(end(&mut source).await, CommitOutcome::Done);
    broker.shutdown().unwrap();
    loop {
        if let Happening::Brokers { reachable, .. } = happening(&mut source).await {
            assert!(!reachable);
            break;
        }
    }
    let broker = start().unwrap();
    // The member may or may not have outlived the broker's absence.
    loop {
        match happening(&mut source).await {
            Happening::Assigned { partitions, .. } if !partitions.is_empty() => {
                source.assign(vec![StartAt::position(partition(), Position::START)]);
            }
            Happening::Brokers {
                reachable: true, ..
            } => break,
            _ => {}
        }
    }
    let mut next = 2;
    loop {
        start_commit(&mut source, next);
        match happening_of_commit(&mut source).await {
            CommitOutcome::Done => break,
            CommitOutcome::Unknown(why) => panic!("{why}"),
            CommitOutcome::Retriable(_) | CommitOutcome::NotOwner(_) => next += 1,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(stored(&broker), Some(next));
}

/// The end of a commit; what is given to us meanwhile is started.
async fn happening_of_commit(source: &mut KafkaSource) -> CommitOutcome {
    loop {
        match happening(source).await {
            Happening::Committed { outcome, .. } => return outcome,
            Happening::Assigned { partitions, .. } if !partitions.is_empty() => {
                source.assign(vec![StartAt::position(partition(), Position::START)]);
            }
            _ => {}
        }
    }
}

fn sink(broker: &Broker) -> KafkaSink {
    let producer = ProducerSettings {
        compression: Compression::Lz4,
        linger: Duration::ZERO,
        message_timeout: Duration::from_secs(3),
        batch_bytes_max: None,
        transactions: None,
    };
    KafkaSink::new(&settings(broker), &producer).unwrap()
}

fn record(value: String) -> Record {
    Record {
        topic: "t".into(),
        partition: Some(0),
        timestamp_ms: None,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    }
}

async fn ends(sink: &mut KafkaSink, count: usize) -> Vec<(u64, Delivery)> {
    let mut ends = Vec::new();
    while ends.len() < count {
        let some = tokio::time::timeout(SOON, sink.deliveries(&mut ends));
        some.await.expect("records end in time");
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn d_o1_answers_that_are_lost_do_not_double_a_record() {
    let broker = broker();
    let mut sink = sink(&broker);
    let produces = Target::kind(ApiKey::Produce).topic("t");
    broker
        .faults()
        .add(produces, Fault::LoseAnswer, Times::Count(2));
    for ticket in 0..100 {
        sink.append(ticket, record(ticket.to_string())).unwrap();
    }
    let ends = ends(&mut sink, 100).await;
    for (ticket, (expected, end)) in (0..).zip(&ends) {
        assert_eq!(ticket, *expected);
        assert!(matches!(end, Delivery::Stored { .. }), "{end:?}");
    }
    assert_eq!(broker.partition("t", 0).unwrap().end, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn d_l3_a_stalled_broker_times_out_or_is_purged_and_each_record_ends_once() {
    let broker = broker();
    let mut sink = sink(&broker);
    sink.append(0, record("first".to_owned())).unwrap();
    assert!(matches!(
        ends(&mut sink, 1).await[..],
        [(0, Delivery::Stored { .. })]
    ));
    let produces = Target::kind(ApiKey::Produce).topic("t");
    let stall = broker.faults().add(
        produces,
        Fault::Delay(Duration::from_secs(6)),
        Times::UntilCleared,
    );
    for ticket in 1..=50 {
        sink.append(ticket, record(ticket.to_string())).unwrap();
    }
    let failed = ends(&mut sink, 1).await;
    let Delivery::Failed { class, code, .. } = &failed[0].1 else {
        panic!("{failed:?}");
    };
    assert_eq!(*class, AppendClass::Transient, "{code}");
    sink.purge();
    let rest = ends(&mut sink, 50 - failed.len()).await;
    let mut tickets: Vec<u64> = failed
        .iter()
        .chain(&rest)
        .map(|(ticket, _)| *ticket)
        .collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (1..=50).collect::<Vec<_>>());
    sink.flush().await;
    broker.faults().clear(stall);
    // What was purged is sent again by the same producer, in order.
    for ticket in 100..150 {
        sink.append(ticket, record(ticket.to_string())).unwrap();
    }
    let again = ends(&mut sink, 50).await;
    for (ticket, (expected, end)) in (100..).zip(&again) {
        assert_eq!(ticket, *expected);
        assert!(matches!(end, Delivery::Stored { .. }), "{end:?}");
    }
    assert!(!sink.fatal());
}

#[tokio::test(flavor = "multi_thread")]
async fn d_o1_a_producer_that_failed_for_good_says_so_of_every_record() {
    let broker = broker();
    broker.faults().refuse(
        ApiKey::InitProducerId,
        ResponseError::ClusterAuthorizationFailed,
        Times::UntilCleared,
    );
    let mut sink = sink(&broker);
    for ticket in 0..3 {
        sink.append(ticket, record(ticket.to_string())).unwrap();
    }
    for (_, end) in ends(&mut sink, 3).await {
        assert!(
            matches!(
                end,
                Delivery::Failed {
                    class: AppendClass::Fatal,
                    ..
                }
            ),
            "{end:?}"
        );
    }
    assert!(sink.fatal());
    sink.append(9, record("late".to_owned())).unwrap();
    let late = ends(&mut sink, 1).await;
    assert!(matches!(
        late[..],
        [(
            9,
            Delivery::Failed {
                class: AppendClass::Fatal,
                ..
            }
        )]
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn d_o4_refusals_of_the_broker_are_told_apart() {
    for (error, expected) in [
        (
            ResponseError::TopicAuthorizationFailed,
            AppendClass::Misconfigured,
        ),
        (ResponseError::PolicyViolation, AppendClass::Misconfigured),
        (ResponseError::InvalidTimestamp, AppendClass::Rejected),
        (ResponseError::InvalidRecord, AppendClass::Rejected),
        (ResponseError::NotEnoughReplicas, AppendClass::Transient),
        (ResponseError::NotLeaderOrFollower, AppendClass::Transient),
    ] {
        let broker = broker();
        let mut sink = sink(&broker);
        broker
            .faults()
            .refuse(ApiKey::Produce, error, Times::UntilCleared);
        sink.append(1, record("v".to_owned())).unwrap();
        let end = ends(&mut sink, 1).await.remove(0).1;
        match end {
            Delivery::Failed { class, .. } => assert_eq!(class, expected, "{error:?}"),
            Delivery::Stored { .. } => panic!("{error:?} stores nothing"),
        }
    }
}
