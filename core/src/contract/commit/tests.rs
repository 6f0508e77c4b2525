//! The published example, strictness, size.

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = "mr1;k=L;e=23;at=812;pr=r11-9f3c1a2b;le=7;t=5f2c90ab;g=41;m=c01d77e3;\
    d=Fg;a=0:2:t6xq1s,3:1:t6xq20;c=3a4d4c02";

fn example() -> Metadata {
    Metadata {
        token: Token::Live {
            epoch: 23,
            from: Position::new(812),
            peer: Some(ReleaseId::new("r11-9f3c1a2b").unwrap()),
        },
        leader_epoch: Some(7),
        topic: Some(0x5f2c_90ab),
        generation: 41,
        member: Some(0xc01d_77e3),
        ledger: LedgerImage {
            terminal: vec![0b0001_0110],
            attempts: vec![
                Attempted {
                    delta: 0,
                    attempts: 2,
                    first_attempt_s: 1_765_170_208,
                },
                Attempted {
                    delta: 3,
                    attempts: 1,
                    first_attempt_s: 1_765_170_216,
                },
            ],
            crash: None,
            parked: vec![],
        },
    }
}

fn parked(lane: u64, since_s: u32) -> Parked {
    Parked {
        lane: LaneHash(lane),
        since_s,
    }
}

fn resealed(fields: &str) -> String {
    let mut text = fields.to_owned();
    seal(&mut text);
    text
}

fn refused(text: &str) -> Error {
    Metadata::decode(text, UnknownKeys::Refuse).expect_err(text)
}

#[test]
fn e1_the_published_example_is_what_we_write_and_read() {
    assert_eq!(example().encode(), EXAMPLE);
    assert_eq!(
        Metadata::decode(EXAMPLE, UnknownKeys::Refuse),
        Ok(example())
    );
    assert_eq!(
        Metadata::decode(EXAMPLE, UnknownKeys::Ignore),
        Ok(example())
    );
}

#[test]
fn e1_every_token_and_every_absence_has_its_form() {
    let check = |token: Token, expect: &str| {
        let metadata = Metadata::of_outsider(token, None);
        let text = metadata.encode();
        assert_eq!(text, resealed(expect));
        assert_eq!(Metadata::decode(&text, UnknownKeys::Refuse), Ok(metadata));
    };
    let at = Position::new(5);
    let release = Some(ReleaseId::new("r2").unwrap());
    check(
        Token::Shadow {
            epoch: 1,
            at,
            peer: None,
        },
        "mr1;k=S;e=1;at=5;pr=-;le=-1;t=;g=0;m=-",
    );
    check(
        Token::Live {
            epoch: 1,
            from: at,
            peer: None,
        },
        "mr1;k=L;e=1;at=5;pr=-;le=-1;t=;g=0;m=-",
    );
    check(
        Token::Sealed {
            epoch: 2,
            at,
            to: release,
        },
        "mr1;k=X;e=2;at=5;pr=r2;le=-1;t=;g=0;m=-",
    );
    check(
        Token::Sealed {
            epoch: 2,
            at,
            to: None,
        },
        "mr1;k=X;e=2;at=5;pr=-;le=-1;t=;g=0;m=-",
    );
}

#[test]
fn e1_the_whole_ledger_has_its_form() {
    let mut metadata = example();
    metadata.ledger.crash = Some(CrashState {
        clean: false,
        count: 2,
        range: 5812,
        named: Some(Named { delta: 7, times: 1 }),
    });
    metadata.ledger.parked = vec![parked(1, 258), parked(u64::MAX, 0)];
    let text = metadata.encode();
    let fields = EXAMPLE.rsplit_once(";c=").unwrap().0;
    assert_eq!(
        text,
        resealed(&format!(
            "{fields};u=0:2:5812:7:1;l=AAAAAAAAAAEAAAEC__________8AAAAA"
        ))
    );
    assert_eq!(Metadata::decode(&text, UnknownKeys::Refuse), Ok(metadata));
}

#[test]
fn e1_the_bitmap_counts_from_the_offset_and_has_no_empty_end() {
    let mut ledger = LedgerImage::default();
    assert!(ledger.is_empty());
    for delta in [1, 2, 4] {
        ledger.set_terminal(delta);
    }
    assert_eq!(
        ledger,
        LedgerImage {
            attempts: vec![],
            ..example().ledger
        }
    );
    assert_eq!(
        (0..20)
            .filter(|delta| ledger.is_terminal(*delta))
            .collect::<Vec<_>>(),
        [1, 2, 4]
    );
    assert!(!ledger.is_terminal(u64::MAX));
    ledger.terminal.extend([0, 0]);
    let metadata = Metadata {
        ledger,
        ..example()
    };
    assert!(metadata.encode().contains(";d=Fg;c="));
}

#[test]
fn r9_no_single_damaged_byte_reads_as_metadata() {
    for at in 0..EXAMPLE.len() {
        for byte in 0..=127_u8 {
            let mut bytes = EXAMPLE.as_bytes().to_vec();
            if bytes[at] == byte {
                continue;
            }
            bytes[at] = byte;
            let text = String::from_utf8(bytes).unwrap();
            for unknown_keys in [UnknownKeys::Refuse, UnknownKeys::Ignore] {
                assert!(Metadata::decode(&text, unknown_keys).is_err(), "{text}");
            }
        }
    }
    for end in 0..EXAMPLE.len() {
        assert!(Metadata::decode(&EXAMPLE[..end], UnknownKeys::Ignore).is_err());
    }
}

#[test]
fn e1_a_changed_string_with_a_right_checksum_fails_or_is_what_we_write() {
    let mut metadata = example();
    metadata.ledger.crash = Some(CrashState {
        clean: true,
        count: 0,
        range: 5812,
        named: None,
    });
    metadata.ledger.parked = vec![parked(77, 1_795_000_000)];
    let text = metadata.encode();
    let fields = text.rsplit_once(";c=").unwrap().0;
    let mut accepted = 0;
    let mut check = |fields: &[u8]| {
        let text = resealed(std::str::from_utf8(fields).unwrap());
        if let Ok(metadata) = Metadata::decode(&text, UnknownKeys::Refuse) {
            assert_eq!(metadata.encode(), text);
            accepted += 1;
        }
    };
    for at in 0..fields.len() {
        for byte in 0..=127_u8 {
            let mut changed = fields.as_bytes().to_vec();
            changed[at] = byte;
            check(&changed);
            changed.insert(at, byte);
            check(&changed);
        }
        let mut shorter = fields.as_bytes().to_vec();
        shorter.remove(at);
        check(&shorter);
    }
    assert!(
        accepted > 500,
        "most digits and letters can be others, got {accepted}"
    );
}

#[test]
fn e1_nothing_but_the_canonical_form_is_read() {
    let head = "mr1;k=L;e=23;at=812;pr=-;le=7;t=5f2c90ab;g=41;m=c01d77e3";
    let check =
        |fields: &str, expect: Error| assert_eq!(refused(&resealed(fields)), expect, "{fields}");
    let field = |field| Error::Field { field };
    assert!(Metadata::decode(&resealed(head), UnknownKeys::Refuse).is_ok());
    check("mr2;k=L", Error::Version { expected: "mr1;" });
    check("mr1;e=23;k=L", field("k"));
    check("mr1;k=LL;e=23;at=812;pr=-;le=7;t=;g=1;m=-", field("k"));
    check("mr1;k=L;e=023;at=812;pr=-;le=7;t=;g=1;m=-", field("e"));
    check("mr1;k=L;e=+23;at=812;pr=-;le=7;t=;g=1;m=-", field("e"));
    check("mr1;k=L;e=23;at=-1;pr=-;le=7;t=;g=1;m=-", field("at"));
    check("mr1;k=L;e=23;at=1;pr=;le=7;t=;g=1;m=-", field("pr"));
    check("mr1;k=L;e=23;at=1;pr=-;le=-2;t=;g=1;m=-", field("le"));
    check("mr1;k=L;e=23;at=1;pr=-;le=1;t=5F2C90AB;g=1;m=-", field("t"));
    check("mr1;k=L;e=23;at=1;pr=-;le=1;t=5f;g=1;m=-", field("t"));
    check("mr1;k=L;e=23;at=1;pr=-;le=1;t=;g=-0;m=-", field("g"));
    check("mr1;k=L;e=23;at=1;pr=-;le=1;t=;g=1;m=", field("m"));
    check("mr1;k=L;e=23;at=1;pr=-;le=1;t=;g=1", field("m"));
    check(&format!("{head};d="), field("d"));
    check(&format!("{head};d=Fg=="), field("d"));
    check(&format!("{head};d=Fh"), field("d"));
    check(&format!("{head};d=FgA"), field("d"));
    check(
        &format!("{head};d={}", URL_SAFE_NO_PAD.encode([1; 2049])),
        field("d"),
    );
    check(&format!("{head};a="), field("a"));
    check(&format!("{head};a=3:1:t,0:1:t"), field("a"));
    check(&format!("{head};a=3:1:t,3:1:t"), field("a"));
    check(&format!("{head};a=16384:1:t"), field("a"));
    check(&format!("{head};a=0:1:T"), field("a"));
    check(&format!("{head};a=0:1:0t"), field("a"));
    check(&format!("{head};a=0:1:-1"), field("a"));
    check(&format!("{head};a=0:1"), field("a"));
    let seventeen: Vec<String> = (0..17).map(|delta| format!("{delta}:1:t")).collect();
    check(&format!("{head};a={}", seventeen.join(",")), field("a"));
    check(&format!("{head};u=2:0:0"), field("u"));
    check(&format!("{head};u=1:0:0:0"), field("u"));
    check(&format!("{head};u=1:0:0:16384:0"), field("u"));
    check(&format!("{head};u=1:0:0:0:0:0"), field("u"));
    check(&format!("{head};l="), field("l"));
    check(&format!("{head};l=AAAA"), field("l"));
    check(
        &format!("{head};l={}", URL_SAFE_NO_PAD.encode([1; 33 * 12])),
        field("l"),
    );
    check(&format!("{head};u=1:0:0;d=Fg"), field("after the last one"));
    check(&format!("{head};d=Fg;d=Fg"), field("after the last one"));
    check(&format!("{head};k=L"), field("after the last one"));
    check(&format!("{head};"), field("of a newer version"));
    assert_eq!(refused(&format!("{head};c=00000000")), Error::Checksum);
    assert_eq!(refused("mr1;c=00000000"), Error::Checksum);
    assert_eq!(refused(""), Error::Version { expected: "mr1;" });
    assert_eq!(
        refused(&"x".repeat(4_001)),
        Error::TooLong { length: 4_001 }
    );
}

#[test]
fn d_w7_newer_keys_are_ignored_at_least_once_and_refused_exactly_once() {
    let (fields, rest) = EXAMPLE.split_at(EXAMPLE.find(";d=").unwrap());
    let rest = rest.rsplit_once(";c=").unwrap().0;
    let text = resealed(&format!("{fields};z=9{rest};new=a,b"));
    assert_eq!(Metadata::decode(&text, UnknownKeys::Ignore), Ok(example()));
    assert_eq!(
        refused(&text),
        Error::UnknownKey {
            key: "z".to_owned()
        }
    );
    for damaged in [
        ";z=9;z=9", ";Z=9", ";=9", ";z", ";z=a b", ";z=\u{1}", ";z=ä",
    ] {
        let text = resealed(&format!("{fields}{damaged}"));
        assert!(
            Metadata::decode(&text, UnknownKeys::Ignore).is_err(),
            "{text}"
        );
    }
}

#[test]
fn e2_the_fullest_metadata_of_the_largest_window_fits() {
    let metadata = Metadata {
        token: Token::Live {
            epoch: u64::MAX,
            from: Position::new(i64::MAX),
            peer: Some(ReleaseId::new(&"r".repeat(64)).unwrap()),
        },
        leader_epoch: Some(i32::MAX),
        topic: Some(u32::MAX),
        generation: i32::MIN,
        member: Some(u32::MAX),
        ledger: LedgerImage {
            terminal: vec![0xff; 2_048],
            attempts: (0..40)
                .map(|i| Attempted {
                    delta: WINDOW_POSITIONS_MAX - 40 + i,
                    attempts: u32::MAX,
                    first_attempt_s: i64::MAX,
                })
                .collect(),
            crash: Some(CrashState {
                clean: false,
                count: u32::MAX,
                range: u64::MAX,
                named: Some(Named {
                    delta: WINDOW_POSITIONS_MAX - 1,
                    times: u32::MAX,
                }),
            }),
            parked: vec![parked(u64::MAX, u32::MAX); 40],
        },
    };
    let text = metadata.encode();
    assert!(text.len() <= 3_990, "{}", text.len());
    let decoded = Metadata::decode(&text, UnknownKeys::Refuse).unwrap();
    assert_eq!(
        decoded.ledger.attempts,
        metadata.ledger.attempts[..16],
        "the oldest are kept (D-W4)"
    );
    assert_eq!(decoded.ledger.parked.len(), 32);
    assert_eq!(decoded.encode(), text);
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let release = proptest::option::of(
        "[A-Za-z0-9._][A-Za-z0-9._-]{0,63}".prop_map(|r| ReleaseId::new(&r).unwrap()),
    );
    let at = (0..=i64::MAX).prop_map(Position::new);
    let token = (0..3, any::<u64>(), at, release).prop_map(|(kind, epoch, at, peer)| match kind {
        0 => Token::Shadow { epoch, at, peer },
        1 => Token::Live {
            epoch,
            from: at,
            peer,
        },
        _ => Token::Sealed {
            epoch,
            at,
            to: peer,
        },
    });
    let attempts = proptest::collection::btree_map(
        0..WINDOW_POSITIONS_MAX,
        (any::<u32>(), 0..=i64::MAX),
        0..=16,
    );
    let attempts = attempts.prop_map(|attempts| {
        let one = |(delta, (attempts, first_attempt_s))| Attempted {
            delta,
            attempts,
            first_attempt_s,
        };
        attempts.into_iter().map(one).collect()
    });
    let named = proptest::option::of(
        (0..WINDOW_POSITIONS_MAX, any::<u32>()).prop_map(|(delta, times)| Named { delta, times }),
    );
    let crash = proptest::option::of((any::<bool>(), any::<u32>(), any::<u64>(), named)).prop_map(
        |crash| {
            crash.map(|(clean, count, range, named)| CrashState {
                clean,
                count,
                range,
                named,
            })
        },
    );
    let parked = proptest::collection::vec(
        any::<(u64, u32)>().prop_map(|(lane, since)| parked(lane, since)),
        0..=32,
    );
    let terminal = proptest::collection::vec(any::<u8>(), 0..2_048).prop_map(|mut bits| {
        while bits.last() == Some(&0) {
            bits.pop();
        }
        bits
    });
    let ledger =
        (terminal, attempts, crash, parked).prop_map(|(terminal, attempts, crash, parked)| {
            LedgerImage {
                terminal,
                attempts,
                crash,
                parked,
            }
        });
    let leader_epoch = proptest::option::of(0..=i32::MAX);
    let hash = proptest::option::of(any::<u32>());
    (
        token,
        leader_epoch,
        hash.clone(),
        any::<i32>(),
        hash,
        ledger,
    )
        .prop_map(
            |(token, leader_epoch, topic, generation, member, ledger)| Metadata {
                token,
                leader_epoch,
                topic,
                generation,
                member,
                ledger,
            },
        )
}

proptest! {
    #[test]
    fn v3_metadata_reads_as_it_was_written(metadata in metadata()) {
        let text = metadata.encode();
        prop_assert!(text.len() <= COMMIT_METADATA_BYTES_MAX && text.is_ascii());
        prop_assert_eq!(Metadata::decode(&text, UnknownKeys::Refuse), Ok(metadata));
    }

    #[test]
    fn v3_garbage_is_refused(text in ".{0,200}") {
        prop_assert!(Metadata::decode(&text, UnknownKeys::Ignore).is_err());
        prop_assert!(Metadata::decode(&resealed(&text), UnknownKeys::Ignore).is_err());
    }

    #[test]
    fn v3_garbage_after_the_head_is_refused_or_what_we_write(text in "[;=a-z0-9:,-]{0,40}") {
        let text = resealed(&format!("mr1;k=L;e=23;at=812;pr=-;le=7;t=;g=41;m=-{text}"));
        if let Ok(metadata) = Metadata::decode(&text, UnknownKeys::Refuse) {
            prop_assert_eq!(metadata.encode(), text);
        }
    }
}
