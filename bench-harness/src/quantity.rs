//! Amounts as people read them: three digits and a unit, on the terminal and on the page alike.

/// Nanoseconds: `850 ns`, `1.23 ms`, `12.0 s`.
pub(crate) fn duration(ns: f64) -> String {
    let (value, unit) = match ns {
        _ if ns < 1e3 => (ns, "ns"),
        _ if ns < 999.5e3 => (ns / 1e3, "µs"),
        _ if ns < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// In decimal units, as disks and networks are sold.
pub(crate) fn bytes(number: f64) -> String {
    scaled(number, &["B", "kB", "MB", "GB", "TB"])
}

/// A plain number: `5,000`, `1.23 M`.
pub(crate) fn number(value: f64) -> String {
    if value < 99_999.5 {
        return match value {
            _ if value < 1000.0 => three_digits(value),
            _ => grouped(value.round() as u64),
        };
    }
    scaled(value, &["", "k", "M", "G", "T"])
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A ratio: two digits behind the point where it is about one, fewer where it is large.
pub(crate) fn ratio(value: f64) -> String {
    match value {
        _ if value < 0.1 => format!("{value:.3}"),
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

pub(crate) fn three_digits(value: f64) -> String {
    match value.abs() {
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn scaled(number: f64, units: &[&str]) -> String {
    let mut value = number;
    let mut place = 0;
    while value >= 999.5 && place + 1 < units.len() {
        value /= 1000.0;
        place += 1;
    }
    let text = if place == 0 { format!("{value:.0}") } else { three_digits(value) };
    format!("{text} {}", units[place]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits_and_the_unit_that_fits() {
        let durations = [(850.0, "850 ns"), (1_234.0, "1.23 µs"), (999_700.0, "1.00 ms"), (12e9, "12.0 s")];
        for (ns, text) in durations {
            assert_eq!(duration(ns), text);
        }
        for (value, text) in [(0.0, "0 B"), (999.0, "999 B"), (1_500.0, "1.50 kB"), (2.5e9, "2.50 GB")] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in
            [(5.0, "5.00"), (5_000.4, "5,000"), (123_456.0, "123 k"), (7_654_321.0, "7.65 M")]
        {
            assert_eq!(number(value), text);
        }
        for (value, text) in [(0.0321, "0.032"), (1.004, "1.00"), (31.26, "31.3"), (1234.0, "1234")] {
            assert_eq!(ratio(value), text);
        }
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
