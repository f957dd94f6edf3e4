//! Numbers for people: counts with separators, sizes, rates, durations; and reading durations.

use std::time::Duration;

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if number < 0 { format!("-{out}") } else { out }
}

/// Bytes, in decimal units as disks and networks are sold.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if number < 1000 {
        return format!("{number} B");
    }
    let mut value = number as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A duration as in `1.2 s`, `350 us`.
pub(crate) fn elapsed(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    match us {
        _ if us < 1000.0 => format!("{us:.0} us"),
        _ if us < 1e6 => format!("{:.1} ms", us / 1e3),
        _ if us < 120e6 => format!("{:.1} s", us / 1e6),
        _ => format!("{:.0} min", us / 60e6),
    }
}

/// The longest duration that is read: the clock can tell when it is over.
const SECONDS_MAX: f64 = u32::MAX as f64;

/// Reads `500ms`, `30s`, `5m`, `2h`, `7d`; a number alone is seconds.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let seconds = match &text[end..] {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|_| seconds <= SECONDS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let counts = [0, 999, 1000, 1_234_567, -4200].map(count);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567", "-4,200"]);
        let sizes = [0, 999, 1000, 9_949, 9_999, 999_499, 1_000_000, 123_456_789_012].map(bytes);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "1.0 MB", "123 GB"]);
        let times = [15, 1500, 2_500_000, 300_000_000].map(|us| elapsed(Duration::from_micros(us)));
        assert_eq!(times, ["15 us", "1.5 ms", "2.5 s", "5 min"]);
    }

    #[test]
    fn durations_are_read() {
        let read = |text| duration(text).map(|duration| duration.as_millis());
        assert_eq!(
            ["500ms", "30", "30s", "1.5m", "2h", "7d"].map(read),
            [Some(500), Some(30_000), Some(30_000), Some(90_000), Some(7_200_000), Some(604_800_000)]
        );
        assert_eq!(read("4294967295s"), Some(4_294_967_295_000));
        let wrong =
            ["", "x", "5 s", "-1s", "1y", "4294967296s", "10000000000000000000s", "99999999999999999999d"];
        assert_eq!(wrong.map(read), [None; 8]);
    }
}
