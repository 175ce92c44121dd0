//! Rows of JSON text, each with the line where it starts: a list, an object that holds one, or an object a line, which may
//! go on over lines as users print it. One row of it is held as values at a time.

use std::path::Path;

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value};

use super::columns;
use super::conversation::{Flaw, MOST_BYTES, refuse_much};
use crate::error::{Error, Result, escaped};

/// Takes a row: its line, and its value or why it has none.
pub(super) type Found<'f> = dyn FnMut(u64, Result<Value, Flaw>) -> Result<()> + 'f;

/// How text that isn't in UTF-8 JSON begins, what it is, and what to do.
const FOREIGN: [(&[u8], &str, &str); 4] = [
    (b"\xff\xfe", "is UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text", "save it as UTF-8"),
    (b"\x1f\x8b", "is compressed with gzip", "unpack it with gunzip"),
    (b"PAR1", "has the content of a Parquet file", "name it .parquet"),
];
/// How often all of a text may be read for nothing, in search of rows that go on over lines.
const VAIN: usize = 8;
const FIX_LIST: &str = "repair the file: after an error in its list, the following rows can't be found";
const FIX_FORM: &str = "give a list of rows, an object with one list of rows in it, or one row a line";

/// Calls `found` with each row of the text of `file`, whose name says what to expect: .jsonl and .ndjson have an object
/// a line, or one over several, and others are what their content says. A line that is no JSON is a bad row; a list that
/// is no JSON is a bad file, since what is lost of it can't be counted.
pub(super) fn each_row(file: &Path, text: &[u8], found: &mut Found<'_>) -> Result<()> {
    if let Some((_, problem, remedy)) = FOREIGN.iter().find(|(start, ..)| text.starts_with(start)) {
        return Err(Error::malformed(file, *problem, *remedy));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"));
    let mut cursor = Cursor { file, text, at: 0, line: 1 };
    if lines {
        return cursor.each_line(found);
    }
    match cursor.peek() {
        None => Ok(()),
        Some(b'[') => {
            cursor.each_element(found)?;
            cursor.expect_end()
        }
        Some(b'{') => {
            let mut end = cursor.clone();
            match end.value() {
                Ok(_) if end.peek().is_none() => cursor.object(found),
                Ok(_) => cursor.each_line(found),
                // A bad first line of many is a bad row.
                Err(_) if first_line(&text[cursor.at..]).trim_ascii_end().ends_with(b"}") => cursor.each_line(found),
                Err(error) => Err(error),
            }
        }
        Some(_) => Err(cursor.broken("is neither a list nor an object", FIX_FORM)),
    }
}

fn first_line(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// A row's text as a value.
fn parse(text: &[u8], line: u64) -> Result<Value, Flaw> {
    refuse_much(text.len())?;
    serde_json::from_slice(text)
        .map_err(|error| Flaw::new(format!("is not JSON ({})", cause(&error, line)), "repair the row, or drop it"))
}

/// What `serde_json` found, and on which line of the file: `line` is where the text starts that it read.
fn cause(error: &serde_json::Error, line: u64) -> String {
    let said = error.to_string();
    let what = said.rsplit_once(" at line ").map_or(&*said, |(what, _)| what);
    match error.line() {
        0 | 1 => format!("{}, {} bytes after its start", escaped(what), error.column()),
        down => format!("{}, line {}, column {}", escaped(what), line + down as u64 - 1, error.column()),
    }
}

/// A place in the text.
#[derive(Clone)]
struct Cursor<'t> {
    file: &'t Path,
    text: &'t [u8],
    at: usize,
    /// From 1.
    line: u64,
}

impl<'t> Cursor<'t> {
    /// The next byte that is no space, where the cursor then stands.
    fn peek(&mut self) -> Option<u8> {
        let space = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.advance(space);
        self.text.get(self.at).copied()
    }

    fn advance(&mut self, by: usize) -> &'t [u8] {
        let passed = &self.text[self.at..self.at + by];
        self.line += passed.split(|byte| *byte == b'\n').count() as u64 - 1;
        self.at += by;
        passed
    }

    /// One object a line; a line that is only the beginning of one goes on to its end. Blank lines are none.
    fn each_line(&mut self, found: &mut Found<'_>) -> Result<()> {
        // What may be read in vain, beyond lines that only begin something.
        let mut vain = self.text.len().saturating_mul(VAIN);
        while self.peek().is_some() {
            let line = first_line(&self.text[self.at..]);
            let row = parse(line.trim_ascii(), self.line);
            let begins = row.is_err() && line.len() <= MOST_BYTES;
            let whole = if begins { self.over_lines(&mut vain) } else { None };
            match whole {
                // A list over several lines holds rows, as one in a .json file does.
                Some(end) if self.text[self.at] == b'[' => {
                    self.each_element(found)?;
                    debug_assert_eq!(self.at, end.at);
                }
                Some(end) => {
                    let text = &self.text[self.at..end.at];
                    found(self.line, parse(text, self.line))?;
                    *self = end;
                }
                None => {
                    found(self.line, row)?;
                    self.advance(line.len());
                }
            }
        }
        Ok(())
    }

    /// Where the value ends that begins here, if it goes beyond this line, and nothing follows it on its last. What is
    /// read for nothing is taken from `vain`, which must not be empty.
    fn over_lines(&self, vain: &mut usize) -> Option<Self> {
        if *vain == 0 {
            return None;
        }
        let mut end = self.clone();
        let rest = &self.text[self.at..];
        let mut values = Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        if let Err(error) = values.next()? {
            let lines = rest.split_inclusive(|byte| *byte == b'\n').take(error.line());
            *vain = vain.saturating_sub(lines.map(<[u8]>::len).sum());
            return None;
        }
        let text = end.advance(values.byte_offset());
        let rest = first_line(&self.text[end.at..]);
        let whole = text.contains(&b'\n') && rest.trim_ascii().is_empty();
        if !whole {
            *vain = vain.saturating_sub(text.len());
        }
        whole.then_some(end)
    }

    /// The text of the next value, passed over without a look at what it holds.
    fn value(&mut self) -> Result<&'t [u8]> {
        let mut values = Deserializer::from_slice(&self.text[self.at..]).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => Ok(self.advance(values.byte_offset())),
            Some(Err(error)) => Err(self.broken(format!("is not JSON ({})", cause(&error, self.line)), FIX_LIST)),
            None => Err(self.broken("ends in the middle", FIX_LIST)),
        }
    }

    /// The rows of the list that starts here.
    fn each_element(&mut self, found: &mut Found<'_>) -> Result<()> {
        self.advance(1);
        if self.peek() == Some(b']') {
            self.advance(1);
            return Ok(());
        }
        loop {
            self.peek();
            let line = self.line;
            let element = self.value()?;
            found(line, parse(element, line))?;
            match self.peek() {
                Some(b',') => self.advance(1),
                Some(b']') => {
                    self.advance(1);
                    return Ok(());
                }
                _ => return Err(self.broken("has neither a comma nor an end after a row", FIX_LIST)),
            };
        }
    }

    /// The rows of the object that is the whole file: the elements of its one list, or itself.
    fn object(&mut self, found: &mut Found<'_>) -> Result<()> {
        let start = self.clone();
        let mut lists = Vec::new();
        self.advance(1);
        while self.peek() == Some(b'"') {
            let key = self.value()?;
            let key: String = serde_json::from_slice(key).unwrap_or_default();
            if columns::makes_a_row(&key) {
                let (line, mut whole) = (start.line, start);
                return found(line, parse(whole.value()?, line));
            }
            // The object was passed over before, so that a colon and a value follow, and then a comma or the end.
            self.peek();
            self.advance(1);
            if self.peek() == Some(b'[') {
                lists.push((key, self.clone()));
            }
            self.value()?;
            if self.peek() == Some(b',') {
                self.advance(1);
            }
        }
        match &mut lists[..] {
            [(_, list)] => list.each_element(found),
            [] => Err(start.broken("is an object without a list of rows", FIX_FORM)),
            many => {
                let names: Vec<String> = many.iter().take(5).map(|(key, _)| format!("`{}`", escaped(key))).collect();
                let problem = format!(
                    "is an object with {} lists ({}), and either could hold the rows",
                    many.len(),
                    names.join(", ")
                );
                Err(start.broken(problem, FIX_FORM))
            }
        }
    }

    fn expect_end(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.broken("goes on after the end of its list", FIX_FORM)),
        }
    }

    fn broken(&self, problem: impl AsRef<str>, remedy: &'static str) -> Error {
        Error::malformed(self.file, format!("line {}: {}", self.line, problem.as_ref()), remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(name: &str, text: &[u8]) -> Result<Vec<(u64, Option<Value>)>> {
        let mut rows = Vec::new();
        each_row(Path::new(name), text, &mut |line, row| {
            rows.push((line, row.ok()));
            Ok(())
        })?;
        Ok(rows)
    }

    fn lines(name: &str, text: &[u8]) -> Vec<u64> {
        rows(name, text).unwrap().into_iter().map(|(line, _)| line).collect()
    }

    fn problem(name: &str, text: &[u8]) -> String {
        rows(name, text).unwrap_err().to_string()
    }

    #[test]
    fn finds_the_line_of_every_element() {
        let text = b"\xef\xbb\xbf[\n{\"a\":\n\"[}\\\"\\n\"\n},{\"b\": 1}\r\n,\n\n[1,\n2], 3 ]\n";
        assert_eq!(lines("a.json", text), [2, 4, 7, 8]);
        assert_eq!(rows("a.json", b" [ ] ").unwrap(), []);
        assert_eq!(rows("a.json", b"\n").unwrap(), []);
    }

    #[test]
    fn finds_the_line_of_every_object() {
        let text = b"\xef\xbb\xbf\r\n{\"a\": 1}\r\n\n  \n{\"b\"\n{\"c\": \"\xff\"}\n{\"d\": 2}";
        let found = rows("a.jsonl", text).unwrap();
        assert_eq!(
            found.iter().map(|(line, row)| (*line, row.is_some())).collect::<Vec<_>>(),
            [(2, true), (5, false), (6, false), (7, true)]
        );
        assert_eq!(lines("a.json", b"{\"a\": 1}\n{\"b\": 1}\n"), [1, 2]);
        assert_eq!(lines("a.json", b"{\"a\": }\n{\"b\": 1}\n"), [1, 2]);
    }

    #[test]
    fn a_row_may_go_on_over_lines() {
        let pretty =
            "\n{\n \"messages\": [\n {\"role\": \"user\", \"content\": \"q\"},\n {\"role\": \"assistant\"}\n ]\n}\n";
        let row: Value = serde_json::from_str(pretty).unwrap();
        let text = format!("{pretty}{{\"a\": 1}}\n{pretty}{{\"b\":\n{{\"c\": 1}}\n");
        for name in ["a.jsonl", "a.json", "a.ndjson"] {
            let found = rows(name, text.as_bytes()).unwrap();
            let a = serde_json::json!({"a": 1});
            let c = serde_json::json!({"c": 1});
            // The line that is cut is a bad row, and what follows it is read.
            let expected = [(2, Some(row.clone())), (8, Some(a)), (10, Some(row.clone())), (16, None), (17, Some(c))];
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(lines("a.jsonl", b"[\n{\"a\": 1},\n{\"b\": 1}\n]\n{\"c\": 1}"), [2, 3, 5]);
        let found = rows("a.jsonl", b"{\"a\":\n1} {\"b\": 1}\n{\"c\": 1}").unwrap();
        assert_eq!(
            found.iter().map(|(line, row)| (*line, row.is_some())).collect::<Vec<_>>(),
            [(1, false), (2, false), (3, true)]
        );
    }

    #[test]
    fn lines_that_only_begin_cost_little() {
        let text = "[\n".repeat(20_000) + &"1,\n".repeat(200_000);
        let started = std::time::Instant::now();
        assert_eq!(rows("a.jsonl", text.as_bytes()).unwrap().len(), 220_000);
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }

    #[test]
    fn finds_the_list_within_an_object() {
        assert_eq!(lines("a.json", b"{\"version\": [\n1],\n\"n\": 2}"), [2]);
        assert_eq!(lines("a.json", b"{\n\"v\": \"]\",\n\"data\": [{},\n{}]\n}\n"), [3, 4]);
        assert_eq!(lines("a.json", b"\n{\"id\": [1],\n\"messages\": [{}]}"), [2]);
        assert!(problem("a.json", b"{\"a\": [], \"b\": []}").contains("2 lists (`a`, `b`)"));
        assert!(problem("a.json", b"{\"a\": 1}").contains("without a list"));
        assert!(problem("a.json", b"{}").contains("without a list"));
    }

    #[test]
    fn a_broken_list_is_a_broken_file_that_names_the_line() {
        assert!(problem("a.json", b"[{},\n{}\n").contains("line 3: has neither a comma nor an end"));
        assert!(
            problem("a.json", b"[{},\n{\"a\": }]")
                .contains("line 2: is not JSON (expected value, 7 bytes after its start)")
        );
        assert!(problem("a.json", b"[{},]").contains("line 1"));
        assert!(problem("a.json", b"[1\n,").contains("line 2: ends in the middle"));
        assert!(problem("a.json", b"[] []").contains("goes on"));
        assert!(problem("a.json", b"7").contains("neither"));
        assert!(problem("a.json", b"{\"a\": [\n").contains("is not JSON"));
        assert!(problem("a.json", b"\x1f\x8b\x08").contains("gunzip"));
        assert!(problem("a.jsonl", b"\xff\xfe[\0").contains("UTF-8"));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        let text = [b"[".as_slice(), &deep, b",{}]"].concat();
        let found = rows("a.json", &text).unwrap();
        assert_eq!(found.iter().map(|(_, row)| row.is_some()).collect::<Vec<_>>(), [false, true]);
    }
}
