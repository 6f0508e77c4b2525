//! Records: appended and read.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use millrace_core::event::{Event, TimestampKind};
use millrace_core::position::{Partition, Position};

use super::bench::{Bench, append, record};
use crate::kafka::{Reader, Start, Until};
use crate::{AppendClass, Delivery, Record, Sink, TokenStore};

type Header = (Bytes, Option<Bytes>);

fn header(name: &'static [u8], value: Option<&'static [u8]>) -> Header {
    (Bytes::from_static(name), value.map(Bytes::from_static))
}

pub(super) async fn byte_exact(bench: Bench) {
    let topic = bench.topic(1).await;
    let large = Bytes::from(vec![0xa5; 300_000]);
    type Content = (Option<Bytes>, Option<Bytes>, Vec<Header>);
    let contents: Vec<Content> = vec![
        (None, None, vec![]),
        (Some(Bytes::new()), Some(Bytes::new()), vec![]),
        (
            Some(Bytes::from_static(b"\xff\x00\xfe")),
            Some(Bytes::from_static(b"\x00\xc3\x28")),
            vec![
                header(b"a", Some(b"1")),
                header(b"a", None),
                header(b"a", Some(b"")),
                header(b"b\xff\xfe", Some(b"\xff\x00")),
                header(b"", Some(b"no name")),
                header(b"a", Some(b"1")),
            ],
        ),
        (
            None,
            Some(Bytes::from_static(b"value")),
            vec![header(b"h", None)],
        ),
        (Some(Bytes::from_static(b"key")), None, vec![]),
        (Some(Bytes::from_static(b"key")), Some(large), vec![]),
    ];
    let records: Vec<Record> = contents
        .iter()
        .enumerate()
        .map(|(index, (key, value, headers))| Record {
            topic: topic.as_str().into(),
            partition: Some(0),
            timestamp_ms: Some(1_700_000_000_000 + index as i64),
            key: key.clone(),
            value: value.clone(),
            headers: headers.clone(),
        })
        .collect();
    let stored = bench.append(records).await;
    let positions: Vec<i64> = stored
        .iter()
        .map(|(_, position)| position.offset())
        .collect();
    assert_eq!(positions, [0, 1, 2, 3, 4, 5]);

    let check = |events: &[Event]| {
        assert_eq!(events.len(), contents.len());
        for (index, (event, (key, value, headers))) in events.iter().zip(&contents).enumerate() {
            assert_eq!(event.position().offset(), index as i64);
            assert_eq!(event.key(), key.as_deref(), "key of {index}");
            assert_eq!(event.value(), value.as_deref(), "value of {index}");
            let read: Vec<(&[u8], Option<&[u8]>)> = event.headers().collect();
            let expected: Vec<(&[u8], Option<&[u8]>)> = headers
                .iter()
                .map(|(name, value)| (&name[..], value.as_deref()))
                .collect();
            assert_eq!(read, expected, "headers of {index}");
            assert_eq!(event.timestamp().ms, 1_700_000_000_000 + index as i64);
            assert_eq!(event.timestamp().kind, TimestampKind::Create);
        }
    };
    let partition = Partition::new(topic.as_str(), 0);
    check(&read_all(&bench, std::slice::from_ref(&partition)).await[&partition]);

    let mut peer = bench.member(&bench.group(&[&topic]));
    peer.until("all records are read", |peer| {
        peer.events.len() >= contents.len()
    })
    .await;
    check(
        &peer
            .events
            .iter()
            .map(|(_, event)| event.clone())
            .collect::<Vec<_>>(),
    );
}

async fn read_all(bench: &Bench, partitions: &[Partition]) -> HashMap<Partition, Vec<Event>> {
    let starts = partitions
        .iter()
        .map(|p| (p.clone(), Start::Earliest))
        .collect();
    let mut reader = Reader::open(bench.settings(), starts, Until::Ends);
    let mut found: HashMap<Partition, Vec<Event>> = HashMap::new();
    while let Some(fetched) = reader.next().await {
        for part in fetched.unwrap() {
            found.entry(part.partition).or_default().extend(part.events);
        }
    }
    found
}

pub(super) async fn in_order_and_once(bench: Bench) {
    let topic = bench.topic(3).await;
    let count = 20_000_i64;
    let records = (0..count)
        .map(|number| {
            let mut record = record(&topic, None, number.to_string());
            record.key = Some(Bytes::from((number % 7).to_string()));
            record
        })
        .collect();
    let stored = bench.append(records).await;
    let partitions: Vec<Partition> = (0..3).map(|n| Partition::new(topic.as_str(), n)).collect();
    let read = read_all(&bench, &partitions).await;
    let total: usize = read.values().map(Vec::len).sum();
    assert_eq!(total, stored.len(), "nothing lost, nothing doubled");
    for (partition, events) in &read {
        for (expected, event) in events.iter().enumerate() {
            assert_eq!(event.position().offset(), expected as i64, "{partition}");
        }
        for pair in events.windows(2) {
            let number = |event: &Event| -> i64 {
                std::str::from_utf8(event.value().unwrap())
                    .unwrap()
                    .parse()
                    .unwrap()
            };
            assert!(
                number(&pair[0]) < number(&pair[1]),
                "{partition} keeps the order"
            );
        }
    }
    for (number, (partition, position)) in stored.into_iter().enumerate() {
        let events = &read[&Partition::new(topic.as_str(), partition)];
        let event = &events[usize::try_from(position.offset()).unwrap()];
        assert_eq!(
            event.value(),
            Some(number.to_string().as_bytes()),
            "told where it went"
        );
    }
}

/// Vectors of the Java client's own tests.
const MURMUR2: [(&[u8], i32); 6] = [
    (b"21", -973_932_308),
    (b"foobar", -790_332_482),
    (b"a-little-bit-long-string", -985_981_536),
    (b"a-little-bit-longer-string", -1_486_304_829),
    (
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
        -58_897_971,
    ),
    (b"abc", 479_470_107),
];

pub(super) async fn java_partitions(bench: Bench) {
    let topic = bench.topic(5).await;
    let records = MURMUR2
        .iter()
        .map(|(key, _)| {
            let mut record = record(&topic, None, "v");
            record.key = Some(Bytes::from_static(key));
            record
        })
        .collect();
    let stored = bench.append(records).await;
    for ((key, hash), (partition, _)) in MURMUR2.iter().zip(stored) {
        assert_eq!(
            partition,
            (hash & 0x7fff_ffff) % 5,
            "{}",
            String::from_utf8_lossy(key)
        );
    }
}

fn class(delivery: &Delivery) -> Option<AppendClass> {
    match delivery {
        Delivery::Stored { .. } => None,
        Delivery::Failed { class, .. } => Some(class.clone()),
    }
}

pub(super) async fn rejections(bench: Bench) {
    let topic = bench.topic(2).await;
    let mut sink = bench.sink();
    // The content does not compress, so the broker's limit is met, and the client sets none.
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..3_000_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect();
    let ends = append(
        &mut sink,
        vec![
            record(&topic, Some(0), "first"),
            record(&topic, Some(0), noise),
            record(&topic, Some(0), "behind"),
            record(&topic, Some(77), "nowhere"),
            record("a topic with spaces", Some(0), "nowhere"),
        ],
    )
    .await;
    let classes: Vec<Option<AppendClass>> = ends.iter().map(class).collect();
    assert_eq!(classes[0], None, "{:?}", ends[0]);
    assert_eq!(classes[1], Some(AppendClass::Rejected), "{:?}", ends[1]);
    assert_eq!(
        classes[2], None,
        "one rejection does not harm the next record: {:?}",
        ends[2]
    );
    assert_eq!(classes[3], Some(AppendClass::Rejected), "{:?}", ends[3]);
    assert_eq!(
        classes[4],
        Some(AppendClass::Misconfigured),
        "{:?}",
        ends[4]
    );
    assert!(!sink.fatal());
}

pub(super) async fn full_queue(bench: Bench) {
    let topic = bench.topic(1).await;
    let mut sink = bench.sink_with(Duration::from_secs(2), Duration::from_secs(30));
    let content = Bytes::from(vec![b'x'; 100_000]);
    let mut taken = 0;
    let back = loop {
        assert!(
            taken < 1_000,
            "100 MB were taken, but the queue is bounded to 16 MiB"
        );
        match sink.append(taken, record(&topic, Some(0), content.clone())) {
            Ok(()) => taken += 1,
            Err(back) => break back,
        }
    };
    assert_eq!(
        back.value.as_ref(),
        Some(&content),
        "the record comes back whole"
    );
    let mut ends = Vec::new();
    sink.deliveries(&mut ends).await;
    let mut back = Some(back);
    while let Some(record) = back.take() {
        if let Err(again) = sink.append(taken, record) {
            back = Some(again);
            sink.deliveries(&mut ends).await;
        }
    }
    sink.flush().await;
    while ends.len() < usize::try_from(taken).unwrap() + 1 {
        sink.deliveries(&mut ends).await;
    }
    for (ticket, (expected, delivery)) in (0_u64..).zip(&ends) {
        assert_eq!(ticket, *expected, "reports keep the order");
        assert_eq!(class(delivery), None);
    }
}

pub(super) async fn purge(bench: Bench) {
    let topic = bench.topic(1).await;
    let mut sink = bench.sink_with(Duration::from_secs(20), Duration::from_secs(60));
    // The first one makes the connection and the producer id.
    for ticket in 0..100 {
        sink.append(ticket, record(&topic, Some(0), "v")).unwrap();
    }
    sink.purge();
    sink.flush().await;
    let mut ends = Vec::new();
    while ends.len() < 100 {
        sink.deliveries(&mut ends).await;
    }
    assert!(
        ends.iter()
            .all(|(_, end)| class(end) == Some(AppendClass::Transient)),
        "{ends:?}"
    );
    drop(sink);
    // The records go again, as an output sends them after a purge.
    bench.numbers(&topic, 0, 100).await;
    let partition = Partition::new(topic.as_str(), 0);
    assert_eq!(
        read_all(&bench, std::slice::from_ref(&partition)).await[&partition].len(),
        100
    );
}

pub(super) async fn reader(bench: Bench) {
    let topic = bench.topic(3).await;
    bench.numbers(&topic, 0, 1_000).await;
    bench.numbers(&topic, 2, 10).await;
    let partition = |number| Partition::new(topic.as_str(), number);
    let read = read_all(&bench, &[partition(0), partition(1), partition(2)]).await;
    assert_eq!(read[&partition(0)].len(), 1_000);
    assert!(
        !read.contains_key(&partition(1)),
        "an empty partition has no end to wait for"
    );
    assert_eq!(read[&partition(2)].len(), 10);

    let starts = vec![(partition(0), Start::At(Position::new(990)))];
    let mut reader = Reader::open(bench.settings(), starts, Until::Forever);
    let mut seen = Vec::new();
    while seen.len() < 10 {
        for part in reader.next().await.unwrap().unwrap() {
            seen.extend(part.events.iter().map(|event| event.position().offset()));
        }
    }
    bench.numbers(&topic, 0, 1).await;
    let next = reader.next().await.unwrap().unwrap();
    seen.extend(next[0].events.iter().map(|event| event.position().offset()));
    assert_eq!(seen, (990..=1_000).collect::<Vec<i64>>());
    assert!(
        Reader::open(bench.settings(), vec![], Until::Ends)
            .next()
            .await
            .is_none()
    );
    let missing = vec![(Partition::new(topic.as_str(), 9), Start::Earliest)];
    let mut reader = Reader::open(bench.settings(), missing, Until::Ends);
    assert!(
        reader.next().await.unwrap().is_err(),
        "a missing partition is an error, not an end"
    );
}

pub(super) async fn by_time(bench: Bench) {
    let topic = bench.topic(1).await;
    let base = 1_700_000_000_000;
    let records = [1_000, 2_000, 3_000]
        .map(|ms| {
            let mut record = record(&topic, Some(0), "v");
            record.timestamp_ms = Some(base + ms);
            record
        })
        .to_vec();
    bench.append(records).await;
    let store = bench.store();
    let partition = Partition::new(topic.as_str(), 0);
    for (ms, expected) in [
        (0, 0),
        (1_000, 0),
        (1_001, 1),
        (2_500, 2),
        (3_000, 2),
        (3_001, 3),
    ] {
        let found = store.position_at(&partition, base + ms).await.unwrap();
        assert_eq!(found.offset(), expected, "at {ms} ms");
    }
    let range = store.log_range(&partition).await.unwrap();
    assert_eq!(range, (Position::new(0), Position::new(3)));
    assert!(
        store
            .log_range(&Partition::new(topic.as_str(), 5))
            .await
            .is_err()
    );
}
