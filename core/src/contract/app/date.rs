//! The three spellings of an HTTP date, for `Retry-After`, and the one of CloudEvents.

/// Milliseconds since 1970 of an HTTP date.
///
/// The weekday is not checked; a two-digit year below 70 is in this century.
pub(super) fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let seconds = preferred(text)
        .or_else(|| rfc_850(text))
        .or_else(|| asctime(text))?;
    seconds.checked_mul(1_000)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn preferred(text: &str) -> Option<i64> {
    let mut words = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let complete = words.next().is_none() && day.len() == 2 && year.len() == 4;
    complete.then(|| seconds(number(year)?, month, number(day)?, time))?
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc_850(text: &str) -> Option<i64> {
    let (date, time) = text
        .split_once(", ")?
        .1
        .strip_suffix(" GMT")?
        .split_once(' ')?;
    let mut parts = date.split('-');
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    let complete = parts.next().is_none() && day.len() == 2 && year.len() == 2;
    let year = number(year)?;
    let year = if year < 70 { 2000 + year } else { 1900 + year };
    complete.then(|| seconds(year, month, number(day)?, time))?
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<i64> {
    let mut words = text.split_ascii_whitespace().skip(1);
    let (month, day, time, year) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let complete = words.next().is_none() && year.len() == 4;
    complete.then(|| seconds(number(year)?, month, number(day)?, time))?
}

fn number(digits: &str) -> Option<i64> {
    let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

fn seconds(year: i64, month: &str, day: i64, time: &str) -> Option<i64> {
    const MONTHS: [(&str, i64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let index = MONTHS.iter().position(|(name, _)| *name == month)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = MONTHS[index].1 + i64::from(leap && index == 1);
    let mut parts = time.split(':');
    let mut part = |max: i64| {
        let digits = parts.next()?;
        number(digits).filter(|n| digits.len() == 2 && *n <= max)
    };
    // 60 is a leap second.
    let (hour, minute, second) = (part(23)?, part(59)?, part(60)?);
    if parts.next().is_some() || !(1..=last).contains(&day) || year < 1970 {
        return None;
    }
    let leap_days = |before: i64| before / 4 - before / 100 + before / 400;
    let years = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969);
    let months: i64 = MONTHS[..index].iter().map(|(_, days)| days).sum();
    let days = years + months + i64::from(leap && index > 1) + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// `2026-01-01T00:00:00.123Z`; `None` before 1970 and after the year 9999.
pub(super) fn rfc_3339(ms: i64) -> Option<String> {
    let seconds = ms.div_euclid(1_000);
    let (days, in_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    if !(0..=2_932_896).contains(&days) {
        return None;
    }
    // Years begin in March: then the day that only leap years have is the last (Gregorian
    // calendar, eras of 400 years of 146,097 days).
    let from_march = days + 719_468;
    let (era, in_era) = (from_march / 146_097, from_march % 146_097);
    let of_era = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * of_era + of_era / 4 - of_era / 100);
    let shifted = (5 * in_year + 2) / 153;
    let day = in_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + of_era + i64::from(month <= 2);
    let (hour, minute, second) = (in_day / 3_600, in_day / 60 % 60, in_day % 60);
    let rest = match ms.rem_euclid(1_000) {
        0 => String::new(),
        rest => format!(".{rest:03}"),
    };
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{rest}Z"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates_are_read_in_all_three_spellings() {
        let check = |text: &str, expect: Option<i64>| {
            assert_eq!(parse(text), expect.map(|s| s * 1_000), "{text}")
        };
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777));
        check("Sun Nov  6 08:49:37 1994", Some(784_111_777));
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        check("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400));
        check("Sun, 31 Dec 2028 23:59:60 GMT", Some(1_861_920_000));
        check("Thu, 01 Mar 2029 00:00:00 GMT", Some(1_867_017_600));
        check("Friday, 01-Jan-27 00:00:00 GMT", Some(1_798_761_600));
        check("Mon, 29 Feb 2100 00:00:00 GMT", None);
        check("Sun, 31 Nov 1994 08:49:37 GMT", None);
        check("Sun, 06 Nov 1994 24:49:37 GMT", None);
        check("Sun, 06 Nov 1994 08:49 GMT", None);
        check("Sun, 06 Nov 1994 08:49:37 CET", None);
        check("Sun, 06 nov 1994 08:49:37 GMT", None);
        check("Sun, 6 Nov 1994 08:49:37 GMT", None);
        check("Sun, 06 Nov 1954 08:49:37 GMT", None);
        check("tomorrow", None);
        check("", None);
    }

    #[test]
    fn times_of_cloud_events_are_rfc_3339() {
        let check = |ms: i64, expect: Option<&str>| {
            assert_eq!(rfc_3339(ms).as_deref(), expect, "{ms}");
        };
        check(0, Some("1970-01-01T00:00:00Z"));
        check(1_767_225_600_000, Some("2026-01-01T00:00:00Z"));
        check(1_767_225_600_010, Some("2026-01-01T00:00:00.010Z"));
        check(951_782_400_000, Some("2000-02-29T00:00:00Z"));
        check(951_868_799_999, Some("2000-02-29T23:59:59.999Z"));
        check(4_107_542_400_000, Some("2100-03-01T00:00:00Z"));
        check(253_402_300_799_999, Some("9999-12-31T23:59:59.999Z"));
        check(253_402_300_800_000, None);
        check(-1, None);
        check(i64::MAX, None);
        check(i64::MIN, None);
    }

    #[test]
    fn both_calendars_agree() {
        for day in 0..40_000_i64 {
            let written = rfc_3339(day * 86_400_000).expect("in range");
            let number =
                |range: std::ops::Range<usize>| written[range].parse::<usize>().expect("digits");
            let months = [
                "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
            ];
            let date = format!(
                "Day, {:02} {} {:04} 00:00:00 GMT",
                number(8..10),
                months[number(5..7) - 1],
                number(0..4)
            );
            assert_eq!(parse(&date), Some(day * 86_400_000), "{written}");
        }
    }
}
