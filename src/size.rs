//! Sizes as users write and read them: `2GB`, `1.5GiB`, `14.2 GB`.

use std::fmt;
use std::str::FromStr;

/// The units that are understood, by suffix. Decimal ones as the Hub counts them, binary ones beside.
const UNITS: [(&str, u64); 9] = [
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// A number of bytes that parses from text such as `2GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// The text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a size: write a number above zero and a unit, such as 2GB, 500MB or 1.5GiB")]
pub struct NotASize;

impl FromStr for ByteSize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let upper = text.trim().to_ascii_uppercase();
        let (number, unit) =
            UNITS.iter().find_map(|(suffix, unit)| Some((upper.strip_suffix(suffix)?, *unit))).unwrap_or((&upper, 1));
        let number = number.trim();
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(unit).ok_or(NotASize)?,
            Err(_) => fraction(number, unit)?,
        };
        if bytes == 0 { Err(NotASize) } else { Ok(Self(bytes)) }
    }
}

/// Bytes in a decimal fraction of a unit, exactly and rounded down, without floating point.
fn fraction(number: &str, unit: u64) -> Result<u64, NotASize> {
    let (whole, decimals) = number.split_once('.').ok_or(NotASize)?;
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(decimals) || whole.len() + decimals.len() == 0 || decimals.len() > 18 {
        return Err(NotASize);
    }
    let parse = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u128>().map_err(|_| NotASize) };
    let scale = 10u128.pow(decimals.len() as u32);
    let scaled = parse(whole)?.checked_mul(scale).and_then(|w| w.checked_add(parse(decimals).ok()?)).ok_or(NotASize)?;
    let bytes = scaled.checked_mul(u128::from(unit)).ok_or(NotASize)? / scale;
    u64::try_from(bytes).map_err(|_| NotASize)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} B", self.0),
            1_000..1_000_000 => write!(f, "{:.1} KB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.2} GB", bytes / 1e9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decimal_and_binary_units_in_any_case() {
        for (text, bytes) in [
            ("2GB", 2_000_000_000),
            ("2gb", 2_000_000_000),
            ("1.5GB", 1_500_000_000),
            (".5MB", 500_000),
            ("0.1 KB", 100),
            ("2GiB", 2 << 30),
            ("1.5 GiB", 3 << 29),
            ("123", 123),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in
            ["", "GB", "0", "0GB", "-1GB", "1e9", "2GX", "1.2.3GB", ".", "99999999999TB", "NaN", "2 G B", "+.5GB"]
        {
            assert_eq!(text.parse::<ByteSize>(), Err(NotASize), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whole_units_are_exact(n in 1u64..1 << 20) {
            prop_assert_eq!(format!("{n}MB").parse(), Ok(ByteSize(n * 1_000_000)));
        }

        #[test]
        fn never_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
