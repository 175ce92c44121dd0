//! Names in a page, and figures as users read them.

use std::fmt::{self, Display};

pub(super) use crate::markup::Text;

/// A name that may break after each of its words.
pub(super) struct Name<'a>(pub(super) &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Text(self.0).to_string();
        text.split_inclusive(['_', '.']).enumerate().try_for_each(|(i, word)| {
            f.write_str(if i == 0 { "" } else { "<wbr>" })?;
            f.write_str(word)
        })
    }
}

/// A share as per cent: three digits that count.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    match value.abs() {
        0.0 => "0%".to_owned(),
        v if v >= 100.0 => format!("{value:.0}%"),
        v if v >= 10.0 => format!("{value:.1}%"),
        v if v >= 1.0 => format!("{value:.2}%"),
        v if v >= 0.001 => format!("{value:.3}%"),
        _ => format!("{value:.0e}%"),
    }
}

/// A small number: `1.234e-3`.
pub fn scientific(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}

/// A cosine, with the digits that tell it from 1.
pub fn cosine(value: f64) -> String {
    format!("{value:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_break_behind_their_words() {
        assert_eq!(Name("attn_<b>.q").to_string(), "attn_<wbr>&lt;b&gt;.<wbr>q");
    }

    #[test]
    fn figures_are_short() {
        let shares = [0.0, 1.5, 0.123_45, 0.071_23, 0.005_678, 1e-7];
        assert_eq!(shares.map(percent), ["0%", "150%", "12.3%", "7.12%", "0.568%", "1e-5%"]);
        assert_eq!([1.0, 0.999_998_6, 0.5].map(cosine), ["1.000000", "0.999999", "0.500000"]);
        assert_eq!([0.0, 0.001_234_5].map(scientific), ["0", "1.23e-3"]);
    }
}
