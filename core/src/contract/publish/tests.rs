//! Golden frames, round trips, damage.

use proptest::prelude::*;

use super::*;
use crate::limits::FRAME_BYTES_MAX;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
        .collect()
}

fn orders(number: i32) -> Partition {
    Partition::new("tx", number)
}

fn single(bytes: &[u8]) -> Bytes {
    let mut buffer = BytesMut::from(bytes);
    let frame = next_frame(&mut buffer, FRAME_BYTES_MAX)
        .unwrap()
        .expect("a whole frame");
    assert!(buffer.is_empty());
    frame
}

fn failure() -> StoreFailure {
    StoreFailure {
        event: 7,
        record: Some(2),
        class: StoreClass::Rejected,
        code: "E".into(),
        message: "no".into(),
    }
}

fn requests() -> Vec<(Request, &'static str)> {
    vec![
        (
            Request::Hello(Hello {
                version: 1,
                block: "a/b".into(),
                release: "r1".into(),
                pod: "p".into(),
                session: 0x0102_0304_0506_0708,
                mode: Mode::ExactlyOnce,
            }),
            "20000000 01 01000000 03000000612f62 020000007231 0100000070 0807060504030201 01",
        ),
        (
            Request::Lease(Lease {
                generation: 41,
                until: Duration::from_nanos(258),
                partitions: vec![orders(0), orders(3)],
            }),
            "25000000 03 29000000 0201000000000000 02000000 02000000747800000000 02000000747803000000",
        ),
        (
            Request::Announce(Announce {
                call: 5,
                correlation: *b"0123456789abcdef",
                stamp: Stamp::Baseline,
                generation: 41,
                partition: orders(1),
                position: Position::new(1042),
                lane: 258,
                epoch: 23,
                id: EventId::parse(b"stiywp5rs45zgqavk6csdpztk2").unwrap(),
                timestamp_ms: None,
                key: Some(Bytes::from_static(b"k")),
                headers: vec![(Bytes::from_static(b"h"), None)],
            }),
            "78000000 07 0500000000000000 30313233343536373839616263646566 02 29000000 \
             02000000747801000000 1204000000000000 0201000000000000 1700000000000000 \
             1a000000 73746979777035727334357a67716176 6b366373 64707a746b32 \
             0000000000000080 010000006b 01000000 0100000068 ffffffff",
        ),
        (
            Request::Withdraw {
                calls: vec![5, 256],
            },
            "15000000 09 02000000 0500000000000000 0001000000000000",
        ),
        (
            Request::Transaction(Transaction {
                seq: 9,
                ending: TransactionEnding::Commit {
                    group_metadata: GroupMetadata::new(Bytes::from_static(b"\xff")).unwrap(),
                    offsets: vec![TransactionOffset {
                        partition: orders(2),
                        position: Position::new(-1),
                        metadata: "mr1".into(),
                    }],
                },
            }),
            "2b000000 0b 0900000000000000 01000000ff 01000000 02000000747802000000 ffffffffffffffff 030000006d7231",
        ),
        (
            Request::Transaction(Transaction {
                seq: 9,
                ending: TransactionEnding::Abort,
            }),
            "11000000 0b 0900000000000000 ffffffff 00000000",
        ),
        (
            Request::Revoked(Revoked {
                generation: -1,
                partitions: vec![orders(0)],
            }),
            "13000000 0d ffffffff 01000000 02000000747800000000",
        ),
        (Request::Drain, "01000000 0e"),
        (
            Request::Error(Fault {
                code: "c".into(),
                message: "ä".into(),
            }),
            "0c000000 10 0100000063 02000000c3a4",
        ),
    ]
}

fn replies() -> Vec<(Reply, &'static str)> {
    vec![
        (
            Reply::Ready(Ready {
                version: 1,
                credit: 8 << 20,
                limits: vec![("tx".into(), 1_000_000)],
            }),
            "1f000000 02 01000000 0000800000000000 01000000 020000007478 40420f0000000000",
        ),
        (
            Reply::Stored(Stored {
                seq: 3,
                stored: vec![0..7, 8..9],
                failures: vec![failure()],
            }),
            "35000000 05 0300000000000000 02000000 0000000007000000 0800000009000000 \
             01000000 07000000 02000000 01 0100000045 020000006e6f",
        ),
        (Reply::Credit(258), "09000000 06 0201000000000000"),
        (
            Reply::Answered(Answered {
                call: 5,
                stored: 2,
                failures: vec![StoreFailure {
                    record: None,
                    ..failure()
                }],
            }),
            "25000000 08 0500000000000000 02000000 \
             01000000 07000000 ffffffff 01 0100000045 020000006e6f",
        ),
        (
            Reply::Withdrawn {
                refused: vec![5],
                answered: vec![],
            },
            "11000000 0a 01000000 0500000000000000 00000000",
        ),
        (
            Reply::Ended {
                seq: 9,
                outcome: TransactionOutcome::Unknown,
            },
            "0a000000 0c 0900000000000000 02",
        ),
        (Reply::Drained, "01000000 0f"),
        (
            Reply::Error(Fault {
                code: String::new(),
                message: String::new(),
            }),
            "09000000 10 00000000 00000000",
        ),
    ]
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

#[test]
fn p_2_frames_have_their_published_bytes() {
    for (request, golden) in requests() {
        let bytes = encoded(|into| request.encode(into));
        assert_eq!(bytes, hex(golden), "{request:?}");
        assert_eq!(Request::decode(single(&bytes)), Ok(request));
    }
    for (reply, golden) in replies() {
        let bytes = encoded(|into| reply.encode(into));
        assert_eq!(bytes, hex(golden), "{reply:?}");
        assert_eq!(Reply::decode(single(&bytes)), Ok(reply));
    }
}

fn small_results() -> ResultsFrame {
    let mut frame = ResultsFrame::new(2, Stamp::Shadow, 41);
    assert_eq!(
        frame.event(&orders(3), Position::new(1042), 0x0a0b, FateCode::Emitted),
        0
    );
    frame.record(Destination::Output, None, Some(5), Some(b"k"), Some(b""));
    frame.header(b"h", None);
    frame.header_of(b"i", &[b"a", b"", b"bc"]);
    frame.record(Destination::Topic("alt"), Some(1), None, None, None);
    assert_eq!(
        frame.event(&orders(4), Position::new(7), 0, FateCode::Filtered),
        1
    );
    assert_eq!(
        frame.event(&orders(3), Position::new(1044), 0, FateCode::DeadLettered),
        2
    );
    frame.record(Destination::DeadLetter, None, None, None, Some(b"\xff"));
    frame
}

#[test]
fn p_2_a_results_frame_has_its_published_bytes() {
    let golden = hex("
        ee000000 04 0200000000000000 01 29000000 03000000 c0000000
        00000000 1204000000000000 0b0a000000000000 00 02000000 4f000000
        00 ffffffff 0500000000000000 010000006b 00000000 02000000 0100000068ffffffff 010000006903000000616263
        03 03000000616c74 01000000 0000000000000080 ffffffff ffffffff 00000000
        01000000 0700000000000000 0000000000000000 01 00000000 00000000
        00000000 1404000000000000 0000000000000000 02 01000000 1a000000
        01 ffffffff 0000000000000080 ffffffff 01000000ff 00000000
        02000000 02000000747803000000 02000000747804000000");
    let frame = small_results();
    assert_eq!((frame.events(), frame.is_empty()), (3, false));
    let length = frame.len();
    let bytes = frame.finish();
    assert_eq!(bytes.len(), length, "credit counts what is sent");
    assert_eq!(bytes, golden);
    let Ok(Request::Results(results)) = Request::decode(single(&bytes)) else {
        panic!("no results")
    };
    assert_eq!(
        (results.seq, results.stamp, results.generation),
        (2, Stamp::Shadow, 41)
    );
    assert_eq!(results.partitions(), [orders(3), orders(4)]);
    assert_eq!((results.len(), results.frame_bytes()), (3, length));
    assert_eq!(
        encoded(|into| Request::Results(results.clone()).encode(into)),
        golden
    );

    let events: Vec<_> = results.events().collect();
    assert_eq!(
        events
            .iter()
            .map(|e| (e.index, e.partition, e.position.offset(), e.lane, e.fate))
            .collect::<Vec<_>>(),
        [
            (0, 0, 1042, 0x0a0b, FateCode::Emitted),
            (1, 1, 7, 0, FateCode::Filtered),
            (2, 0, 1044, 0, FateCode::DeadLettered),
        ]
    );
    assert_eq!(
        events
            .iter()
            .map(ResultEvent::record_count)
            .collect::<Vec<_>>(),
        [2, 0, 1]
    );
    let records: Vec<_> = events[0].records().collect();
    assert_eq!(records[0].destination, Destination::Output);
    assert_eq!(
        (records[0].partition, records[0].timestamp_ms),
        (None, Some(5))
    );
    assert_eq!(
        (records[0].key, records[0].value),
        (Some(&b"k"[..]), Some(&b""[..]))
    );
    let headers: [(&[u8], Option<&[u8]>); 2] = [(b"h", None), (b"i", Some(b"abc"))];
    assert_eq!(records[0].headers.clone().collect::<Vec<_>>(), headers);
    assert_eq!(records[0].headers.len(), 2);
    assert_eq!(records[1].destination, Destination::Topic("alt"));
    assert_eq!(
        (records[1].partition, records[1].timestamp_ms),
        (Some(1), None)
    );
    assert_eq!((records[1].key, records[1].value), (None, None));
    assert_eq!(records[1].headers.len(), 0);
    let dead = events[2].records().next().unwrap();
    assert_eq!(
        (dead.destination, dead.value),
        (Destination::DeadLetter, Some(&b"\xff"[..]))
    );
}

#[test]
fn records_are_parts_of_the_received_frame() {
    let frame = single(&small_results().finish());
    let memory = frame.as_ptr_range();
    let Ok(Request::Results(results)) = Request::decode(frame.clone()) else {
        panic!("no results")
    };
    for event in results.events() {
        for record in event.records() {
            for part in [record.key, record.value]
                .into_iter()
                .flatten()
                .filter(|part| !part.is_empty())
            {
                assert!(memory.contains(&part.as_ptr()));
                assert_eq!(event.share(part).as_ptr(), part.as_ptr());
            }
        }
    }
}

#[test]
fn p_2_a_damaged_frame_is_refused_or_says_something_else() {
    let mut frames: Vec<Vec<u8>> = vec![small_results().finish().to_vec()];
    frames.extend(
        requests()
            .iter()
            .map(|(request, _)| encoded(|into| request.encode(into))),
    );
    for whole in frames {
        let body = &whole[4..];
        for end in 0..body.len() {
            let cut = Bytes::copy_from_slice(&body[..end]);
            assert!(Request::decode(cut).is_err(), "{end} of {whole:?}");
        }
        let longer = [body, b"\0"].concat();
        assert!(Request::decode(longer.into()).is_err());
        for at in 0..body.len() {
            for bit in 0..8 {
                let mut other = body.to_vec();
                other[at] ^= 1 << bit;
                let Ok(request) = Request::decode(other.clone().into()) else {
                    continue;
                };
                if let Request::Results(results) = &request {
                    let seen: usize = results
                        .events()
                        .map(|event| event.records().map(|r| r.headers.count()).sum::<usize>())
                        .sum();
                    assert!(seen < 100);
                }
                assert_eq!(
                    encoded(|into| request.encode(into))[4..],
                    other,
                    "decoding accepts only what is written"
                );
            }
        }
    }
}

#[test]
fn p_2_frames_come_out_of_a_stream_in_any_pieces() {
    let mut stream = Vec::new();
    for (request, _) in requests() {
        request.encode(&mut stream);
    }
    for piece in [1, 2, 3, 7, 1000] {
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for bytes in stream.chunks(piece) {
            buffer.extend_from_slice(bytes);
            while let Some(frame) = next_frame(&mut buffer, 1 << 10).unwrap() {
                got.push(Request::decode(frame).unwrap());
            }
        }
        assert!(buffer.is_empty());
        assert_eq!(
            got,
            requests()
                .into_iter()
                .map(|(request, _)| request)
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn p_2_lengths_and_kinds_are_checked() {
    let next = |bytes: &[u8]| next_frame(&mut BytesMut::from(bytes), 16);
    assert_eq!(
        next(&hex("11000000")),
        Err(Error::TooLarge {
            length: 17,
            max: 16
        })
    );
    assert_eq!(next(&hex("10000000 01")), Ok(None));
    assert_eq!(next(&hex("000000")), Ok(None));
    assert!(matches!(
        next(&hex("00000000")),
        Err(Error::Malformed { .. })
    ));
    for kind in [0, 2, 5, 6, 8, 10, 12, 15, 17, 255] {
        let frame = Bytes::copy_from_slice(&[kind]);
        assert_eq!(Request::decode(frame), Err(Error::UnknownKind { kind }));
    }
    for kind in [0, 1, 3, 4, 7, 9, 11, 13, 14, 17, 255] {
        let frame = Bytes::copy_from_slice(&[kind]);
        assert_eq!(Reply::decode(frame), Err(Error::UnknownKind { kind }));
    }
    assert!(Request::decode(Bytes::new()).is_err());
}

#[test]
fn d_e2_a_transaction_without_group_metadata_is_refused() {
    for frame in [
        "11000000 0b 0900000000000000 00000000 00000000",
        "2a000000 0b 0900000000000000 ffffffff 01000000 02000000747802000000 ffffffffffffffff 030000006d7231",
    ] {
        let bytes = hex(frame);
        assert!(matches!(
            Request::decode(single(&bytes)),
            Err(Error::Malformed {
                frame: "Transaction",
                ..
            })
        ));
    }
    assert_eq!(GroupMetadata::new(Bytes::new()), Err(EmptyGroupMetadata));
}

#[test]
fn an_event_that_does_not_fit_can_be_taken_back() {
    let big = vec![0; FRAME_BYTES_MAX / 2];
    let mut frame = small_results();
    let before = frame.len();
    let index = frame.event(&orders(4), Position::new(8), 0, FateCode::Emitted);
    frame.record(Destination::Output, None, None, None, Some(&big));
    assert!(!frame.overflowed());
    frame.record(Destination::Output, None, None, None, Some(&big));
    frame.header(b"name", Some(b"written nowhere"));
    assert!(frame.overflowed() && frame.len() <= FRAME_BYTES_MAX);
    frame.discard_event();
    assert!(!frame.overflowed());
    assert_eq!((frame.len(), frame.events()), (before, index));
    assert_eq!(frame.finish(), small_results().finish());
}

type Model = Vec<(u8, i64, u64, u8, Vec<ModelRecord>)>;
type ModelRecord = (
    u8,
    Option<i32>,
    Option<i64>,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..20)
}

fn model() -> impl Strategy<Value = Model> {
    let header = (bytes(), proptest::option::of(bytes()));
    let record = (
        0_u8..4,
        proptest::option::of(0..i32::MAX),
        proptest::option::of(0..i64::MAX),
        proptest::option::of(bytes()),
        proptest::option::of(bytes()),
        proptest::collection::vec(header, 0..4),
    );
    let event = (
        0_u8..5,
        any::<i64>(),
        any::<u64>(),
        0_u8..4,
        proptest::collection::vec(record, 0..4),
    );
    proptest::collection::vec(event, 0..12)
}

fn destination(code: u8) -> Destination<'static> {
    [
        Destination::Output,
        Destination::DeadLetter,
        Destination::Verification,
        Destination::Topic("ä.b"),
    ][usize::from(code)]
}

fn fate(code: u8) -> FateCode {
    [
        FateCode::Emitted,
        FateCode::Filtered,
        FateCode::DeadLettered,
        FateCode::FailedInShadow,
    ][usize::from(code)]
}

proptest! {
    #[test]
    fn p_2_results_read_as_they_were_written(model in model()) {
        let mut frame = ResultsFrame::new(1, Stamp::Live, 1);
        for (partition, position, lane, code, records) in &model {
            frame.event(&orders(i32::from(*partition)), Position::new(*position), *lane, fate(*code));
            for (code, partition, timestamp, key, value, headers) in records {
                frame.record(destination(*code), *partition, *timestamp, key.as_deref(), value.as_deref());
                for (name, value) in headers {
                    frame.header(name, value.as_deref());
                }
            }
        }
        let Ok(Request::Results(results)) = Request::decode(single(&frame.finish())) else { panic!("no results") };
        let mut events = results.events();
        for (index, (partition, position, lane, code, records)) in model.iter().enumerate() {
            let event = events.next().unwrap();
            prop_assert_eq!(event.index as usize, index);
            prop_assert_eq!(&results.partitions()[event.partition as usize], &orders(i32::from(*partition)));
            prop_assert_eq!((event.position.offset(), event.lane, event.fate), (*position, *lane, fate(*code)));
            let mut got = event.records();
            for (code, partition, timestamp, key, value, headers) in records {
                let record = got.next().unwrap();
                prop_assert_eq!(record.destination, destination(*code));
                prop_assert_eq!((record.partition, record.timestamp_ms), (*partition, *timestamp));
                prop_assert_eq!((record.key, record.value), (key.as_deref(), value.as_deref()));
                let expected: Vec<_> = headers.iter().map(|(n, v)| (&n[..], v.as_deref())).collect();
                prop_assert_eq!(record.headers.collect::<Vec<_>>(), expected);
            }
            prop_assert!(got.next().is_none());
        }
        prop_assert!(events.next().is_none());
    }

    #[test]
    fn p_2_stored_reads_as_it_was_written(
        seq: u64,
        stored in proptest::collection::vec((0_u32..1000, 1_u32..1000), 0..5),
        failures in proptest::collection::vec((any::<u32>(), proptest::option::of(0..u32::MAX), 0_usize..6, ".{0,9}", ".{0,9}"), 0..5),
    ) {
        let classes = [
            StoreClass::Transient, StoreClass::Rejected, StoreClass::Misconfigured,
            StoreClass::Lease, StoreClass::Revoked, StoreClass::Unknown,
        ];
        let reply = Reply::Stored(Stored {
            seq,
            stored: stored.into_iter().map(|(start, more)| start..start + more).collect(),
            failures: failures.into_iter().map(|(event, record, class, code, message)| {
                StoreFailure { event, record, class: classes[class], code, message }
            }).collect(),
        });
        prop_assert_eq!(Reply::decode(single(&encoded(|into| reply.encode(into)))), Ok(reply));
    }

    #[test]
    fn p_2_any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let frame = Bytes::from(bytes);
        if let Ok(request) = Request::decode(frame.clone()) {
            prop_assert_eq!(&encoded(|into| request.encode(into))[4..], &frame[..]);
        }
        if let Ok(reply) = Reply::decode(frame.clone()) {
            prop_assert_eq!(&encoded(|into| reply.encode(into))[4..], &frame[..]);
        }
    }
}
