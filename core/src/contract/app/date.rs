//! The three spellings of an HTTP date, for `Retry-After`.

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
}
