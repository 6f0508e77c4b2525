//! JSON as apps really write it: the grammar of RFC 8259 and Python's `NaN`, `Infinity` and
//! `-Infinity`, which `json.dumps` writes and J2 must compare.
//!
//! Invariant: on a text without those three words it accepts what RFC 8259 accepts, up to
//! `EVIDENCE_JSON_DEPTH_MAX` levels, and reads the same value. Of equal names the last one counts.
//! Invariant: whole numbers keep every digit up to 128 bits, so that two long ids never look
//! alike because a float cannot tell them apart.

use std::collections::BTreeMap;
use std::fmt;

use super::path::{At, Path};
use crate::limits::EVIDENCE_JSON_DEPTH_MAX;

/// A JSON value.
#[derive(Clone, Debug)]
pub(super) enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object, by rising names.
    Map(BTreeMap<String, Json>),
}

/// A number, not a number, or infinity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    /// The nearest float.
    pub(super) float: f64,
    /// Itself, if it was written without fraction and exponent and fits.
    pub(super) whole: Option<i128>,
}

impl Json {
    /// Reads a whole text; `None` if it is no JSON, or too deep.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_blanks();
        (reader.at == text.len()).then_some(value)
    }

    /// What stands at a path without wildcards.
    pub(super) fn find(&self, path: &Path) -> Option<&Self> {
        path.steps()
            .try_fold(self, |value, step| match (value, step) {
                (Self::Map(map), At::Name(name)) => map.get(name),
                (Self::List(list), At::Index(index)) => list.get(index),
                _ => None,
            })
    }
}

/// Compact JSON, with Python's words for what JSON cannot say.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => serde_json::Value::from(text.as_str()).fmt(f),
            Self::List(list) => {
                f.write_str("[")?;
                for (i, value) in list.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str("]")
            }
            Self::Map(map) => {
                f.write_str("{")?;
                for (i, (name, value)) in map.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(
                        f,
                        "{comma}{}:{value}",
                        serde_json::Value::from(name.as_str())
                    )?;
                }
                f.write_str("}")
            }
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whole {
            Some(whole) => whole.fmt(f),
            None if self.float.is_nan() => f.write_str("NaN"),
            None if self.float.is_infinite() => f.write_str(if self.float > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }),
            None => f.write_str(&crate::contract::canonical::number(self.float)),
        }
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &[u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn skip_blanks(&mut self) {
        let blank = |c: &&u8| matches!(c, b' ' | b'\t' | b'\n' | b'\r');
        self.at += self.rest().iter().take_while(blank).count();
    }

    fn take(&mut self, word: &str) -> Option<()> {
        self.rest()
            .starts_with(word.as_bytes())
            .then(|| self.at += word.len())
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        self.skip_blanks();
        match self.rest().first()? {
            b'n' => self.take("null").map(|()| Json::Null),
            b't' => self.take("true").map(|()| Json::Flag(true)),
            b'f' => self.take("false").map(|()| Json::Flag(false)),
            b'"' => self.string().map(Json::Text),
            b'[' if depth < EVIDENCE_JSON_DEPTH_MAX => self.list(depth),
            b'{' if depth < EVIDENCE_JSON_DEPTH_MAX => self.map(depth),
            b'-' | b'0'..=b'9' | b'N' | b'I' => self.number().map(Json::Number),
            _ => None,
        }
    }

    fn list(&mut self, depth: usize) -> Option<Json> {
        self.take("[")?;
        let mut list = Vec::new();
        self.skip_blanks();
        if self.take("]").is_some() {
            return Some(Json::List(list));
        }
        loop {
            list.push(self.value(depth + 1)?);
            self.skip_blanks();
            if self.take("]").is_some() {
                return Some(Json::List(list));
            }
            self.take(",")?;
        }
    }

    fn map(&mut self, depth: usize) -> Option<Json> {
        self.take("{")?;
        let mut map = BTreeMap::new();
        self.skip_blanks();
        if self.take("}").is_some() {
            return Some(Json::Map(map));
        }
        loop {
            self.skip_blanks();
            let name = self.string()?;
            self.skip_blanks();
            self.take(":")?;
            let value = self.value(depth + 1)?;
            map.insert(name, value);
            self.skip_blanks();
            if self.take("}").is_some() {
                return Some(Json::Map(map));
            }
            self.take(",")?;
        }
    }

    /// Finds the closing quote; serde_json knows the escapes.
    fn string(&mut self) -> Option<String> {
        let rest = self.rest();
        if rest.first() != Some(&b'"') {
            return None;
        }
        let mut end = 1;
        loop {
            match rest.get(end)? {
                b'"' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
        }
        let literal = rest.get(..=end)?;
        let text = serde_json::from_slice(literal).ok()?;
        self.at += end + 1;
        Some(text)
    }

    fn number(&mut self) -> Option<Number> {
        for (word, float) in [
            ("NaN", f64::NAN),
            ("Infinity", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
        ] {
            if self.take(word).is_some() {
                return Some(Number { float, whole: None });
            }
        }
        let part = |c: &&u8| matches!(c, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = self.rest().iter().take_while(part).count();
        let literal = &self.text[self.at..self.at + length];
        if !is_number(literal.as_bytes()) {
            return None;
        }
        self.at += length;
        // A number beyond the largest float reads as infinity, as Python and JavaScript read it.
        let float = literal.parse().ok()?;
        let whole = literal.parse().ok().filter(|_| literal != "-0");
        Some(Number { float, whole })
    }
}

/// `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`
fn is_number(literal: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_digit()).count();
    let rest = literal.strip_prefix(b"-").unwrap_or(literal);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    let mut rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let n = digits(fraction);
        if n == 0 {
            return false;
        }
        rest = &fraction[n..];
    }
    if let Some(power) = rest.strip_prefix(b"e").or(rest.strip_prefix(b"E")) {
        let power = power
            .strip_prefix(b"+")
            .or(power.strip_prefix(b"-"))
            .unwrap_or(power);
        let n = digits(power);
        return n > 0 && n == power.len();
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Compares with what serde_json reads, which knows nothing of our reader.
    fn same(ours: &Json, theirs: &Value) -> bool {
        match (ours, theirs) {
            (Json::Null, Value::Null) => true,
            (Json::Flag(a), Value::Bool(b)) => a == b,
            (Json::Text(a), Value::String(b)) => a == b,
            (Json::Number(a), Value::Number(b)) => {
                let b = b.as_f64().unwrap();
                // serde_json's fast path may be one unit in the last place off.
                (a.float - b).abs() <= f64::EPSILON * 2.0 * b.abs()
            }
            (Json::List(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Json::Map(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b)))
            }
            _ => false,
        }
    }

    #[test]
    fn j2_python_writes_words_for_what_json_cannot_say() {
        let check = |text: &str, expect: &str| {
            assert_eq!(Json::parse(text.as_bytes()).unwrap().to_string(), expect);
        };
        check("[NaN, Infinity, -Infinity]", "[NaN,Infinity,-Infinity]");
        check(
            "{\"b\": 1.50, \"a\": [null, true]}",
            "{\"a\":[null,true],\"b\":1.5}",
        );
        check("12345678901234567890123", "12345678901234567890123");
        check("{\"a\":1,\"a\":2}", "{\"a\":2}");
        check("1e999", "Infinity");
        for wrong in [
            "",
            "nan",
            "-NaN",
            "+1",
            "01",
            "1.",
            ".5",
            "[1,]",
            "{\"a\"}",
            "\"a",
            "[",
            "1 2",
            "\"\\ud800\"",
            "'a'",
        ] {
            assert!(Json::parse(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert!(Json::parse(b"\"\xff\"").is_none());
    }

    #[test]
    fn j2_depth_is_bounded() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(Json::parse(deep(EVIDENCE_JSON_DEPTH_MAX).as_bytes()).is_some());
        assert!(Json::parse(deep(EVIDENCE_JSON_DEPTH_MAX + 1).as_bytes()).is_none());
        assert!(Json::parse("[".repeat(1_000_000).as_bytes()).is_none());
    }

    #[test]
    fn j2_a_path_finds_its_value() {
        let value = Json::parse(br#"{"a":[{"b":7}],"c.d":null}"#).unwrap();
        let find = |path: &str| {
            value
                .find(&Path::parse(path).unwrap())
                .map(ToString::to_string)
        };
        assert_eq!(find("a[0].b").as_deref(), Some("7"));
        assert_eq!(find("[\"c.d\"]").as_deref(), Some("null"));
        assert_eq!(find("a[1].b"), None);
        assert_eq!(find("a.b"), None);
        assert_eq!(find("$"), Some(value.to_string()));
    }

    proptest! {
        #[test]
        fn j2_texts_that_look_like_json_are_read_as_another_reader_reads_them(
            text in r#"[\[\]{}:,"0-9eE.+\- ntfalsrue\\u]{0,24}"#
        ) {
            let theirs = serde_json::from_str::<Value>(&text);
            match (Json::parse(text.as_bytes()), theirs) {
                (Some(ours), Ok(theirs)) => prop_assert!(same(&ours, &theirs), "{text}"),
                (None, Err(_)) => {}
                // serde_json refuses numbers beyond the largest float.
                (Some(_), Err(error)) => prop_assert!(error.to_string().contains("out of range"), "{text}: {error}"),
                (None, Ok(_)) => prop_assert!(false, "refused {text}"),
            }
        }

        #[test]
        fn j2_values_read_back_as_they_are_shown(
            floats in prop::collection::vec(any::<f64>(), 0..5), text in ".{0,8}", whole in any::<i64>()
        ) {
            let list = floats.iter().map(|float| Json::Number(Number { float: *float, whole: None }));
            let value = Json::Map(BTreeMap::from([
                (text.clone(), Json::Number(Number { float: whole as f64, whole: Some(whole.into()) })),
                ("list".to_owned(), Json::List(list.collect())),
                ("text".to_owned(), Json::Text(text)),
            ]));
            let shown = value.to_string();
            prop_assert_eq!(Json::parse(shown.as_bytes()).unwrap().to_string(), shown);
        }
    }
}
