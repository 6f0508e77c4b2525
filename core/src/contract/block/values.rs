//! Scalars of the document: durations, sizes, shares, instants, secrets, ports.
//!
//! Each has one reader that takes the JSON value and answers `None` if it is none of its kind;
//! [`super::walk`] turns that into a problem that says what is allowed.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Where a secret stands; never the secret itself (C-3).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Secret {
    /// `{file: FILE}`: the file's content without its last line break; reloaded when it changes.
    File(PathBuf),
    /// `{env: NAME}`: an environment variable of the process.
    Env(String),
}

/// A part of the memory that the process may use.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Share {
    /// This many bytes.
    Bytes(u64),
    /// This fraction of the limit, 0 to 1.
    Fraction(f64),
}

impl Share {
    /// In bytes, of a process that may use `limit` bytes.
    pub fn of(self, limit: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a fraction of a memory limit: whole bytes do not matter, and it is 0 to 1"
            )]
            Self::Fraction(fraction) => (limit as f64 * fraction) as u64,
        }
    }
}

/// A port, and whether somebody chose it: `millrace dev` replaces those that nobody chose by
/// free ones, so that two blocks run beside each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    /// The number; 0: any free one.
    pub number: u16,
    /// Whether the document says so.
    pub chosen: bool,
}

/// `startAt` (D-G9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartAt {
    /// The first position of the log.
    Earliest,
    /// Its end.
    Latest,
    /// The first record that is not older than this (epoch milliseconds).
    Time {
        /// Epoch milliseconds.
        timestamp_ms: i64,
    },
}

/// `250ms`, `10s`, `5m`, `24h`, as documents and requests write it.
pub fn parse_duration(text: &str) -> Option<Duration> {
    duration(&Value::from(text))
}

/// `250ms`, `10s`, `5m`, `24h`.
pub(super) fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

/// The inverse of [`duration`], in the largest unit that is exact.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms != 0 && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    if ms == 0 {
        "0s".to_owned()
    } else {
        format!("{ms}ms")
    }
}

/// `64Ki`, `8Mi`, `2Gi`, or bytes.
pub(super) fn size(value: &Value) -> Option<u64> {
    if let Some(bytes) = value.as_u64() {
        return Some(bytes);
    }
    let text = value.as_str()?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let factor: u64 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// `25%` as 0.25; 0% to 100%.
pub(super) fn percentage(value: &Value) -> Option<f64> {
    let number = value.as_str()?.strip_suffix('%')?;
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let percent: f64 = number.parse().ok().filter(|_| plain)?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

/// `{file: FILE}` or `{env: NAME}`.
pub(super) fn secret(value: &Value) -> Option<Secret> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    let (key, content) = map.iter().next()?;
    let content = content.as_str().filter(|text| !text.is_empty())?;
    match key.as_str() {
        "file" => Some(Secret::File(content.into())),
        "env" => Some(Secret::Env(content.to_owned())),
        _ => None,
    }
}

/// An RFC 3339 time with its offset, as epoch milliseconds: `2026-01-31T12:00:00Z`.
pub(super) fn instant(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    if !text.is_ascii() || text.len() < 20 {
        return None;
    }
    let (moment, rest) = text.split_at(19);
    let shape =
        moment
            .bytes()
            .zip("dddd-dd-ddTdd:dd:dd".bytes())
            .all(|(found, wanted)| match wanted {
                b'd' => found.is_ascii_digit(),
                b'T' => matches!(found, b'T' | b't' | b' '),
                _ => found == wanted,
            });
    if !shape {
        return None;
    }
    let part = |from: usize, to: usize| moment[from..to].parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction_ms, zone) = fraction(rest)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds - zone_seconds(zone)?) * 1_000 + fraction_ms)
}

/// Splits `.25Z` into 250 and `Z`.
fn fraction(rest: &str) -> Option<(i64, &str)> {
    let Some(digits) = rest.strip_prefix('.') else {
        return Some((0, rest));
    };
    let n = digits.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, zone) = digits.split_at(n);
    let ms = format!("{digits:0<3}")[..3].parse().ok()?;
    (n > 0).then_some((ms, zone))
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.bytes().next()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u8, u8) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60)
        .then_some(sign * (i64::from(hours) * 3_600 + i64::from(minutes) * 60))
}

/// Days of the proleptic Gregorian calendar: whole 400-year eras, then days of a year that
/// starts in March, so that the leap day is its last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_and_sizes_are_exact() {
        for text in ["0s", "250ms", "10s", "5m", "24h", "1500ms", "90s"] {
            let read = duration(&json!(text)).expect(text);
            assert_eq!(duration_text(read), text);
        }
        for (text, bytes) in [
            ("64Ki", 65_536),
            ("8Mi", 8 << 20),
            ("2Gi", 2 << 30),
            ("1000000", 1_000_000),
            ("0", 0),
        ] {
            assert_eq!(size(&json!(text)), Some(bytes), "{text}");
        }
        assert_eq!(size(&json!(1_048_576)), Some(1 << 20));
        for wrong in [
            json!("10"),
            json!(10),
            json!("s"),
            json!("1.5s"),
            json!("-1s"),
            json!("1d"),
        ] {
            assert_eq!(duration(&wrong), None, "{wrong}");
        }
        for wrong in [
            json!("8MB"),
            json!(-1),
            json!("Ki"),
            json!(1.5),
            json!("99999999999Gi"),
        ] {
            assert_eq!(size(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn percentages_stay_within_0_and_100() {
        assert_eq!(percentage(&json!("25%")), Some(0.25));
        assert_eq!(percentage(&json!("0.5%")), Some(0.005));
        for wrong in [
            json!("101%"),
            json!("-1%"),
            json!(0.5),
            json!("%"),
            json!("inf%"),
        ] {
            assert_eq!(percentage(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn instants_are_rfc_3339_with_an_offset() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-01T00:00:00Z", 1_767_225_600_000),
            ("2026-01-01T01:30:00.25+01:30", 1_767_225_600_250),
            ("2024-02-29T23:59:59-00:30", 1_709_252_999_000),
            ("1969-12-31T23:59:59Z", -1_000),
        ] {
            assert_eq!(instant(&json!(text)), Some(ms), "{text}");
        }
        for wrong in [
            "2026-01-01",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1:00",
        ] {
            assert_eq!(instant(&json!(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn c3_a_secret_is_a_reference_only() {
        assert_eq!(
            secret(&json!({"file": "/s"})),
            Some(Secret::File("/s".into()))
        );
        assert_eq!(secret(&json!({"env": "S"})), Some(Secret::Env("S".into())));
        for wrong in [
            json!("hunter2"),
            json!({"file": ""}),
            json!({"file": "a", "env": "b"}),
            json!({}),
        ] {
            assert_eq!(secret(&wrong), None, "{wrong}");
        }
    }
}
