//! Columns of text: left-aligned names, right-aligned numbers.

/// Lines of `rows` with columns as wide as their widest cell; columns in `right` are aligned to the right.
pub(super) fn columns<const N: usize>(rows: &[[String; N]], right: [bool; N]) -> Vec<String> {
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let cell = |text: &str, c: usize| {
        let pad = " ".repeat(widths[c] - text.chars().count());
        if right[c] { format!("{pad}{text}") } else { format!("{text}{pad}") }
    };
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().enumerate().map(|(c, text)| cell(text, c)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `n` with a thin grouping: 1,234,567.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 tensor`, `2 tensors`.
pub(super) fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{} {noun}s", grouped(n as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_and_groups() {
        let rows = [["a".to_owned(), "10".to_owned()], ["层bc".to_owned(), "5".to_owned()]];
        assert_eq!(columns(&rows, [false, true]), ["a    10", "层bc   5"]);
        assert_eq!(
            (grouped(1), grouped(123_456), grouped(1_234_567)),
            ("1".into(), "123,456".into(), "1,234,567".into())
        );
        assert_eq!((count(1, "shard"), count(2, "shard")), ("1 shard".to_owned(), "2 shards".to_owned()));
    }
}
