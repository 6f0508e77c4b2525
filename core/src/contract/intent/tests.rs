//! The published example, strictness, outcomes of A1.

use proptest::prelude::*;

use super::*;

fn release(name: &str) -> ReleaseId {
    ReleaseId::new(name).unwrap()
}

fn ranges(text: &str) -> Ranges {
    Ranges::read(text).unwrap()
}

fn example() -> Intent {
    Intent {
        epoch: 24,
        target: release("r12-77ab0e41"),
        from: Some(release("r11-9f3c1a2b")),
        partitions: Partitions::Some([("tx".to_owned(), ranges("0-3,7"))].into()),
        shadow: Some(ShadowSample {
            release: release("r12-77ab0e41"),
            partitions: Partitions::Some([("tx".to_owned(), ranges("0-7"))].into()),
        }),
        reason: "promote".to_owned(),
        decision: Some("fraud-score-x7k2".to_owned()),
    }
}

const EXAMPLE: &str = r#"{"decision":"fraud-score-x7k2","digest":"DIGEST","epoch":24,"from":"r11-9f3c1a2b","partitions":{"tx":"0-3,7"},"reason":"promote","shadow":{"partitions":{"tx":"0-7"},"release":"r12-77ab0e41"},"target":"r12-77ab0e41"}"#;

#[test]
fn e3_the_example_has_this_form_and_its_digest_leaves_itself_out() {
    let without = EXAMPLE.replace(r#""digest":"DIGEST","#, "");
    let digest = canonical::digest(&without);
    assert_eq!(example().encode(), EXAMPLE.replace("DIGEST", &digest));
    assert_eq!(Intent::decode(&example().encode()), Ok(example()));
}

#[test]
fn e3_a_changed_intent_is_refused() {
    let text = example().encode().replace("\"epoch\":24", "\"epoch\":25");
    assert!(matches!(Intent::decode(&text), Err(Error::Digest { .. })));
}

#[test]
fn e3_decoding_is_strict() {
    let text = example().encode();
    let check = |from: &str, to: &str, expect: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let error = Intent::decode(&changed).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    };
    check("{\"decision\"", "{ \"decision\"", "canonical form");
    check("\"reason\":\"promote\",", "", "`reason`");
    check("\"epoch\":24", "\"epoch\":\"24\"", "`epoch`");
    // No JSON number tells it from its neighbours.
    check("\"epoch\":24", "\"epoch\":9007199254740993", "`epoch`");
    check("\"epoch\":24", "\"epoch\":24,\"extra\":1", "`extra`");
    check("0-3,7", "0-3,4", "`partitions`");
    check("0-3,7", "7,0-3", "`partitions`");
    check("0-3,7", "0-3,07", "`partitions`");
    check("0-3,7", "", "`partitions`");
    check("0-3,7", "-3", "`partitions`");
    check(
        "\"target\":\"r12-77ab0e41\"",
        "\"target\":\"-\"",
        "`target`",
    );
    check("{", "[", "not JSON");
}

#[test]
fn e3_partitions_outside_stay_where_they_are() {
    let intent = example();
    let check = |topic: &str, number, expect| {
        let partition = Partition::new(topic, number);
        assert_eq!(intent.covers(&partition), expect, "{partition}");
    };
    check("tx", 0, true);
    check("tx", 3, true);
    check("tx", 4, false);
    check("tx", 7, true);
    check("other", 0, false);
    let all = Intent {
        partitions: Partitions::All,
        ..intent
    };
    assert!(all.covers(&Partition::new("other", 99)));
    assert!(!all.takes_from(&all.target, &Partition::new("tx", 0)));
    assert!(all.takes_from(&release("r11-9f3c1a2b"), &Partition::new("tx", 0)));
}

#[test]
fn r8_a_lower_epoch_is_ignored_and_a_digest_clash_is_noticed() {
    let known = example();
    let check = |epoch: u64, reason: &str, expect| {
        let intent = Intent {
            epoch,
            reason: reason.to_owned(),
            ..example()
        };
        assert_eq!(intent.received(Some(&known)), expect);
    };
    check(23, "promote", Received::Lower { epoch: 24 });
    check(24, "promote", Received::Known);
    check(24, "abort", Received::DigestClash);
    check(25, "abort", Received::Accepted);
    assert_eq!(known.received(None), Received::Accepted);
}

prop_compose! {
    fn partitions()(
        all in any::<bool>(),
        list in proptest::collection::vec(("[a-z]{1,3}", 0..40_i32), 0..30),
    ) -> Partitions {
        if all {
            return Partitions::All;
        }
        let list: Vec<_> = list.into_iter().map(|(topic, n)| Partition::new(topic, n)).collect();
        Partitions::of(&list)
    }
}

proptest! {
    #[test]
    fn v3_every_intent_survives_the_way(
        epoch in 0..=canonical::WHOLE_MAX,
        partitions in partitions(),
        sample in proptest::option::of(partitions()),
        reason in any::<String>(),
        decision in proptest::option::of(any::<String>()),
        from in proptest::option::of("[a-z0-9]{1,8}"),
    ) {
        let intent = Intent {
            epoch,
            partitions,
            shadow: sample.map(|partitions| ShadowSample { release: release("r2"), partitions }),
            reason,
            decision,
            from: from.map(|name| release(&name)),
            target: release("r1"),
        };
        prop_assert_eq!(Intent::decode(&intent.encode()), Ok(intent));
    }

    #[test]
    fn v3_garbage_is_refused_and_never_panics(text in any::<String>()) {
        prop_assert!(Intent::decode(&text).is_err());
    }

    #[test]
    fn v3_a_flipped_byte_is_noticed(at in 0..200_usize, byte in 0x20..0x7f_u8) {
        let mut bytes = example().encode().into_bytes();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        let text = String::from_utf8(bytes).unwrap();
        prop_assert!(Intent::decode(&text).is_err());
    }
}
