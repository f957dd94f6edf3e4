//! Times as people write them, in UTC, to and from milliseconds since the Unix epoch.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// `2026-01-31T12:00:00.123Z`; what cannot be a date stays a number.
pub(crate) fn print(ms: i64) -> String {
    let days = ms.div_euclid(86_400_000);
    let of_day = ms.rem_euclid(86_400_000);
    let (year, month, day) = date_of(days);
    if !(0..=9999).contains(&year) {
        return ms.to_string();
    }
    let (s, ms) = (of_day / 1000, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60)
}

/// Reads what `@` may be followed by: milliseconds (13 digits) or seconds (10) since the epoch; a date, a date with a time,
/// with `Z`, an offset, or nothing, which is UTC; or `-` and a duration, for so long ago.
pub(crate) fn parse(text: &str, now_ms: i64) -> Option<i64> {
    if let Some(ago) = text.strip_prefix('-') {
        let ago = i64::try_from(crate::amount::duration(ago)?.as_millis()).ok()?;
        return now_ms.checked_sub(ago);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number: i64 = text.parse().ok()?;
        return match text.len() {
            13 => Some(number),
            10 => Some(number * 1000),
            _ => None,
        };
    }
    let (date, rest) = text.split_at_checked(10)?;
    let date = fields::<3>(date, '-', [4, 2, 2])?;
    let days = days_of(date[0], date[1], date[2])?;
    let of_day = match rest.strip_prefix(['T', 't', ' ']) {
        Some(time) => time_of_day(time)?,
        None if rest.is_empty() => 0,
        None => return None,
    };
    Some(days * 86_400_000 + of_day)
}

/// `12:00`, `12:00:00`, `12:00:00.5`, each with a zone behind it or none.
fn time_of_day(text: &str) -> Option<i64> {
    let zone_at = text.find(['Z', 'z', '+', '-']).unwrap_or(text.len());
    let (clock, zone) = text.split_at(zone_at);
    let offset_ms = match zone {
        "" | "Z" | "z" => 0,
        _ => {
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let [hours, minutes] = fields::<2>(&zone[1..], ':', [2, 2])?;
            (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60_000)?
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let [hours, minutes, seconds] = match clock.len() {
        5 => {
            let [hours, minutes] = fields::<2>(clock, ':', [2, 2])?;
            [hours, minutes, 0]
        }
        _ => fields::<3>(clock, ':', [2, 2, 2])?,
    };
    let in_range = hours < 24 && minutes < 60 && seconds < 60;
    in_range.then_some(((hours * 60 + minutes) * 60 + seconds) * 1000 + ms - offset_ms)
}

/// Numbers of fixed widths between separators.
fn fields<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut out = [0; N];
    let mut parts = text.split(separator);
    for (value, width) in out.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width)?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *value = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

/// Days since the epoch of a date of the Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms"); none for a date that is not in it.
fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) {
        return None;
    }
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    (day >= 1 && date_of(days) == (year, month, day)).then_some(days)
}

fn date_of(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn times_are_read() {
        let cases = [
            ("1700000000000", Some(NOW)),
            ("1700000000", Some(NOW)),
            ("2023-11-14T22:13:20Z", Some(NOW)),
            ("2023-11-14T22:13:20.000", Some(NOW)),
            ("2023-11-14 22:13:20.5", Some(NOW + 500)),
            ("2023-11-14T23:13:20+01:00", Some(NOW)),
            ("2023-11-14T17:43:20-04:30", Some(NOW)),
            ("2023-11-14T22:13", Some(NOW - 20_000)),
            ("2023-11-14", Some(NOW - 80_000_000)),
            ("-1h", Some(NOW - 3_600_000)),
            ("-500ms", Some(NOW - 500)),
            ("2000-02-29", Some(951_782_400_000)),
            ("1900-02-29", None),
            ("2023-02-30", None),
            ("2023-13-01", None),
            ("2023-11-14T24:00", None),
            ("2023-11-14T22:13:20.", None),
            ("2023-11-14x", None),
            ("123", None),
            ("yesterday", None),
            ("-", None),
            ("", None),
            ("é023-11-14", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text, NOW), expected, "{text}");
        }
    }

    #[test]
    fn times_are_printed() {
        assert_eq!(print(NOW + 7), "2023-11-14T22:13:20.007Z");
        assert_eq!(print(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(print(i64::MAX), i64::MAX.to_string());
        assert_eq!(print(i64::MIN), i64::MIN.to_string());
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(ms in -62_135_596_800_000_i64..253_402_300_799_999) {
            prop_assert_eq!(parse(&print(ms), 0), Some(ms));
        }
    }
}
