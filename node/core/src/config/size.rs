//! Sizes as people write them: `512MiB`, `4g`, `65536`.

use std::fmt;

/// What is wrong with a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError {
    text: String,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not a size: give bytes, or a number with KiB, MiB, GiB or TiB, as in 512MiB",
            self.text
        )
    }
}

impl std::error::Error for SizeError {}

/// Bytes. Units are powers of 1,024 whichever way they are written (`K`, `KB`, `KiB`), in any case; a
/// fraction is allowed with a unit (`1.5GiB`).
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let error = || SizeError { text: text.chars().take(40).collect() };
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = trimmed.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(error()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(error);
    }
    let fraction = number.parse::<f64>().map_err(|_| error())?;
    let bytes = fraction * (1u64 << shift) as f64;
    // 2^53 bytes is where whole numbers stop being exact in a float, and more than any machine has.
    if shift == 0 || !(0.0..9_007_199_254_740_992.0).contains(&bytes) {
        return Err(error());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("65536", 65_536),
            ("512MiB", 512 << 20),
            ("512 mb", 512 << 20),
            ("4g", 4 << 30),
            ("1.5GiB", 3 << 29),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.5",
            "1e3",
            "5 parsecs",
            "99999999999999999999",
            "999999999999T",
            "1.2.3M",
            ".",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_size("lots").expect_err("bad").to_string(),
            "'lots' is not a size: give bytes, or a number with KiB, MiB, GiB or TiB, as in 512MiB"
        );
    }
}
