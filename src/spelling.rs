//! The distance of two names, to suggest the right one for a mistyped name.

/// Insertions, deletions and substitutions between two names (Levenshtein, 1966).
pub(crate) fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let cheapest = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], cheapest);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::edits;

    #[test]
    fn counts_what_must_change() {
        let cases = [("", "ab"), ("kitten", "sitting"), ("modle", "model"), ("same", "same")];
        assert_eq!(cases.map(|(a, b)| edits(a, b)), [2, 3, 2, 0]);
    }
}
