//! Canonical JSON (RFC 8785) and its SHA-256: equal values have equal bytes, whoever writes them.
//!
//! Invariant: a value is written or refused; no number loses digits without a word.

use std::fmt::Write as _;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Whole numbers up to here survive every JSON reader (RFC 7493).
pub const WHOLE_MAX: u64 = 1 << 53;

/// A number that canonical JSON cannot carry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the number {number} cannot be written as canonical JSON: whole numbers end at 2^53")]
pub struct Unwritable {
    /// Which.
    pub number: String,
}

/// The canonical text of a value.
pub fn text(value: &Value) -> Result<String, Unwritable> {
    let mut text = String::new();
    write_value(value, &mut text)?;
    Ok(text)
}

/// `sha256:` and the hexadecimal hash of a text.
pub fn digest(text: &str) -> String {
    let mut digest = "sha256:".to_owned();
    for byte in Sha256::digest(text.as_bytes()) {
        write!(digest, "{byte:02x}").expect("writing to a String never fails");
    }
    digest
}

fn write_value(value: &Value, into: &mut String) -> Result<(), Unwritable> {
    match value {
        Value::Null => into.push_str("null"),
        Value::Bool(flag) => into.push_str(if *flag { "true" } else { "false" }),
        Value::Number(found) => {
            let whole = found.as_u64().or(found.as_i64().map(i64::unsigned_abs));
            let float = found
                .as_f64()
                .filter(|_| whole.is_none_or(|whole| whole <= WHOLE_MAX));
            let float = float.ok_or_else(|| Unwritable {
                number: found.to_string(),
            })?;
            into.push_str(&number(float));
        }
        Value::String(text) => write_text(text, into),
        Value::Array(items) => {
            into.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    into.push(',');
                }
                write_value(item, into)?;
            }
            into.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            into.push('{');
            for (i, (name, value)) in members.into_iter().enumerate() {
                if i > 0 {
                    into.push(',');
                }
                write_text(name, into);
                into.push(':');
                write_value(value, into)?;
            }
            into.push('}');
        }
    }
    Ok(())
}

/// serde_json escapes exactly what RFC 8785 escapes, in the same spelling; a test shows it.
fn write_text(text: &str, into: &mut String) {
    write!(into, "{}", Value::from(text)).expect("writing to a String never fails");
}

/// A finite number as ECMAScript writes it: the fewest digits that read back as the same float.
pub(crate) fn number(float: f64) -> String {
    debug_assert!(float.is_finite(), "{float}");
    if float == 0.0 {
        return "0".to_owned();
    }
    // serde_json finds the fewest digits, the nearest of them, and of two equally near ones the
    // even one, as ECMAScript demands; Rust's own formatting takes the upper one.
    let shortest = Value::from(float).to_string();
    let (sign, shortest) = match shortest.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", &shortest[..]),
    };
    let (mantissa, power) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let power: i32 = power.parse().expect("the exponent of a float is small");
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let length = |text: &str| i32::try_from(text.len()).expect("a float has few digits");
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0');
    // The decimal point stands behind this many significant digits.
    let point = length(whole) + power - (length(&digits) - length(significant));
    let digits = significant.trim_end_matches('0');
    let count = length(digits);
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or(0));
    let body = if count <= point && point <= 21 {
        format!("{digits}{}", zeros(point - count))
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        format!("{whole}.{fraction}")
    } else if -6 < point && point <= 0 {
        format!("0.{}{digits}", zeros(-point))
    } else {
        let power = point - 1;
        let plus = if power < 0 { "-" } else { "+" };
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{first}{dot}{rest}e{plus}{}", power.abs())
    };
    format!("{sign}{body}")
}

#[cfg(test)]
mod tests;
