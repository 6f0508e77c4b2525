//! Vectors made by another implementation: Node.js, whose `JSON.stringify` is the number format
//! that RFC 8785 prescribes and whose `sort` compares UTF-16 units.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::*;

#[test]
fn j8_numbers_are_written_as_ecmascript_writes_them() {
    for (bits, expect) in [
        (0x0000000000000001, "5e-324"),
        (0x8000000000000001, "-5e-324"),
        (0x7fefffffffffffff, "1.7976931348623157e+308"),
        (0x4340000000000000, "9007199254740992"),
        (0xc340000000000000, "-9007199254740992"),
        (0x4430000000000000, "295147905179352830000"),
        (0x44b52d02c7e14af5, "9.999999999999997e+22"),
        (0x44b52d02c7e14af6, "1e+23"),
        (0x44b52d02c7e14af7, "1.0000000000000001e+23"),
        (0x444b1ae4d6e2ef4e, "999999999999999700000"),
        (0x444b1ae4d6e2ef4f, "999999999999999900000"),
        (0x444b1ae4d6e2ef50, "1e+21"),
        (0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"),
        (0x3eb0c6f7a0b5ed8d, "0.000001"),
        (0x41b3de4355555553, "333333333.3333332"),
        (0x41b3de4355555557, "333333333.33333343"),
        (0xbecbf647612f3696, "-0.0000033333333333333333"),
        (0x43143ff3c1cb0959, "1424953923781206.2"),
        (0x8000000000000000, "0"),
    ] {
        assert_eq!(number(f64::from_bits(bits)), expect);
    }
}

#[test]
fn j8_a_hundred_thousand_numbers_are_written_as_node_writes_them() {
    let mut bits: u64 = 88_172_645_463_325_252;
    let mut all = Sha256::new();
    let mut count = 0;
    while count < 100_000 {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        let float = f64::from_bits(bits);
        if float.is_finite() {
            all.update(number(float).as_bytes());
            all.update(b"\n");
            count += 1;
        }
    }
    assert_eq!(
        hex(all),
        "d3f9f122e2b32f425f2a4dab35a647c72b895c2cb00e2ba07f468e39ce37553e"
    );
    let mut everyday = Sha256::new();
    for power in -30..=30 {
        for k in 1..=60 {
            let float: f64 = format!("{}e{power}", k * 37).parse().unwrap();
            everyday.update(number(float).as_bytes());
            everyday.update(b"\n");
        }
    }
    assert_eq!(
        hex(everyday),
        "50d038b1910bbdecdbdba5f93982baca50b7881c78a50c8281389be683c34930"
    );
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn j8_names_are_sorted_by_utf_16_and_only_what_must_be_is_escaped() {
    let value = json!({
        "\u{20ac}": "Euro Sign",
        "\r": "Carriage Return",
        "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\u{1f600}": "Emoji: Grinning Face",
        "\u{80}": "Control",
        "\u{f6}": "Latin Small Letter O With Diaeresis",
        "text": "\u{20ac}$\u{f}\nA'B\"\\\\\"/\u{7f}\0\u{8}\u{c}",
        "numbers": [333333333.3333333, 1E30, 4.50, 2e-3, 1e-27, -0.0, 1e21, 1e20, 56, 1.0],
        "literals": [null, true, false],
        "": {"b": [], "a": {}},
    });
    let text = text(&value).unwrap();
    assert!(text.starts_with(r#"{"":{"a":{},"b":[]},"\r":"Carriage Return","1":"One","literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27,0,1e+21,100000000000000000000,56,1],"text":"#), "{text}");
    assert_eq!(
        digest(&text),
        "sha256:aae83ab11a1c5b934432569055f47d04303e8a0e1e8bef033890d2da68d32f0b"
    );
}

#[test]
fn j8_a_whole_number_that_a_float_cannot_carry_is_refused() {
    assert_eq!(text(&json!(1_u64 << 53)).unwrap(), "9007199254740992");
    assert_eq!(text(&json!(-(1_i64 << 53))).unwrap(), "-9007199254740992");
    let error = text(&json!({"n": [(1_u64 << 53) + 1]})).unwrap_err();
    assert!(error.to_string().contains("9007199254740993"), "{error}");
    assert!(text(&json!(i64::MIN)).is_err());
}
