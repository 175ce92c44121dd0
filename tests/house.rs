//! The rooms of the library: what each may import is in the table of docs/design.md, and every path in `src` is held
//! against it. No file is longer than a reader can hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a source file.
const MOST_LINES: usize = 500;
/// Most letters of a test's name.
const LONGEST_NAME: usize = 60;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below `dir`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The table: each room, from the top down, with the rooms that it may import.
fn table() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = text.lines().skip_while(|line| !line.starts_with("| room |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let imports = names(cells[2]);
        names(cells[1]).into_iter().map(move |room| (room, imports.clone()))
    })
    .collect()
}

/// Rust text with comments and the insides of strings and characters blanked; lines stay lines.
fn bare(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = 2 + hashes;
            rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len())
        } else if let Some(inside) = rest.strip_prefix('"') {
            1 + quoted(inside, b'"')
        } else if rest.starts_with("'\\") || (rest.starts_with('\'') && rest.chars().nth(2) == Some('\'')) {
            1 + quoted(&rest[1..], b'\'')
        } else {
            0
        };
        if skipped == 0 {
            let letter = rest.chars().next().unwrap();
            out.push(letter);
            at += letter.len_utf8();
        } else {
            out.extend(rest[..skipped].chars().filter(|letter| *letter == '\n'));
            out.push(' ');
            at += skipped;
        }
    }
    out
}

/// How many hashes open the raw string that `text` begins with.
fn raw_string(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('r')?;
    let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Bytes up to and with the closing quote.
fn quoted(text: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The first names after each `crate::` of a file, with their lines. `crate::{a, b::c}` has two.
fn crate_paths(text: &str) -> Vec<(usize, String)> {
    let text = bare(text);
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = 1 + text[..at].matches('\n').count();
        let rest = &text[at + "crate::".len()..];
        let heads = if rest.starts_with('{') { top_level(rest) } else { vec![rest] };
        found.extend(heads.into_iter().map(|head| (line, identifier(head))));
    }
    found
}

/// The parts of `{a, b::{c, d}, e}` that commas of its own level divide.
fn top_level(braces: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 1, Vec::new());
    for (at, letter) in braces.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (letter == ',' && depth == 1) || depth == 0 {
            parts.push(&braces[start..at]);
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The room of a file: the first part of its path in `src`.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Paths of `super::` that climb to the crate's root, as what they lead to.
fn climbing_paths(path: &Path, text: &str) -> Vec<(usize, String)> {
    let inside = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    let mut depth = inside.iter().count();
    if inside.ends_with("mod") {
        depth -= 1;
    }
    let text = bare(text);
    let mut found = Vec::new();
    for (at, _) in text.match_indices("super::") {
        if text[..at].ends_with("super::") || text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        // Inline modules are one level deeper: their lines are indented.
        let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let inline = usize::from(text[line_start..].starts_with(' ') && in_inline_module(&text[..at]));
        let mut rest = &text[at..];
        let mut climbs = 0;
        while let Some(next) = rest.strip_prefix("super::") {
            (rest, climbs) = (next, climbs + 1);
        }
        if climbs >= depth + inline {
            found.push((1 + text[..at].matches('\n').count(), identifier(rest)));
        }
    }
    found
}

/// Whether a module that was opened in `before` at the beginning of a line is open at its end.
fn in_inline_module(before: &str) -> bool {
    let opened = before.match_indices("\nmod ").chain(before.match_indices("\npub(crate) mod ")).last();
    opened.is_some_and(|(at, _)| {
        let line = before[at + 1..].lines().next().unwrap_or_default();
        line.ends_with('{') && !before[at..].contains("\n}")
    })
}

/// Every arrow of `text`, a file of `room`, that the table has not: "line: room -> other".
fn forbidden(rows: &[(String, Vec<String>)], path: &Path, text: &str) -> Vec<String> {
    let room = room(path);
    let Some((_, allowed)) = rows.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{}: the room {room} has no row in docs/design.md", path.display())];
    };
    let is_room = |name: &str| rows.iter().any(|(room, _)| room == name);
    let paths = crate_paths(text).into_iter().chain(climbing_paths(path, text));
    let wrong = paths.filter(|(_, to)| is_room(to) && *to != room && !allowed.contains(to));
    wrong.map(|(line, to)| format!("{}:{line}: {room} -> {to}", path.display())).collect()
}

/// Files of the library; the binary's import it by its name, and may have all of it.
fn library() -> impl Iterator<Item = PathBuf> {
    let src = root().join("src");
    sources(&src).into_iter().filter(move |path| {
        let inside = path.strip_prefix(&src).unwrap();
        !inside.starts_with("cli") && inside != Path::new("main.rs") && inside != Path::new("lib.rs")
    })
}

#[test]
fn arrows_of_the_table_point_down() {
    let rows = table();
    assert!(rows.len() > 20, "{} rooms: is the table of docs/design.md there?", rows.len());
    let place: BTreeMap<&str, usize> = rows.iter().enumerate().map(|(at, (room, _))| (room.as_str(), at)).collect();
    assert_eq!(place.len(), rows.len(), "a room has two rows");
    for (room, imports) in &rows {
        for other in imports {
            let below = place.get(other.as_str()).unwrap_or_else(|| panic!("{room}: there is no room {other}"));
            assert!(place[room.as_str()] < *below, "{room} may not import {other}, which has a row above it");
        }
    }
}

#[test]
fn no_path_leads_where_the_table_does_not() {
    let rows = table();
    let wrong: Vec<String> =
        library().flat_map(|path| forbidden(&rows, &path, &fs::read_to_string(&path).unwrap())).collect();
    assert!(wrong.is_empty(), "arrows that docs/design.md forbids:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_has_no_arrow_that_no_path_takes() {
    let mut taken = BTreeMap::<String, Vec<String>>::new();
    for path in library() {
        let text = fs::read_to_string(&path).unwrap();
        let paths = crate_paths(&text).into_iter().chain(climbing_paths(&path, &text));
        taken.entry(room(&path)).or_default().extend(paths.map(|(_, to)| to));
    }
    let rows = table();
    let spare = rows.iter().flat_map(|(room, imports)| {
        let taken = taken.get(room);
        let spare = imports.iter().filter(move |to| !taken.is_some_and(|taken| taken.contains(to)));
        spare.map(move |to| format!("{room} -> {to}"))
    });
    assert_eq!(spare.collect::<Vec<_>>(), Vec::<String>::new(), "arrows of docs/design.md that nothing needs");
}

#[test]
fn a_planted_arrow_is_found() {
    let rows = table();
    let lines = |room: &str, text: &str| {
        let found = forbidden(&rows, &root().join("src").join(room), text);
        found.iter().map(|line| line.rsplit_once(".rs:").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lines("merge/mod.rs", "use std::fs;\nuse crate::export::Plan;\n"), ["2: merge -> export"]);
    assert_eq!(
        lines("merge/mod.rs", "use crate::{size::ByteSize, export::{self, Plan}};"),
        ["1: merge -> size", "1: merge -> export"]
    );
    assert_eq!(lines("ggml/encode/q8.rs", "fn f() {\n    crate::gguf::split(1);\n}"), ["2: ggml -> gguf"]);
    assert_eq!(lines("ggml/encode/q8.rs", "use super::super::super::gguf;"), ["1: ggml -> gguf"]);
    assert_eq!(lines("ggml/mod.rs", "use super::train::run;"), ["1: ggml -> train"]);
    assert_eq!(lines("ggml/mod.rs", "use super::merge; // crate::train\n/* crate::train */"), Vec::<String>::new());
    assert_eq!(lines("ggml/mod.rs", "const A: &str = \"crate::train \\\" crate::cli\";"), Vec::<String>::new());
    assert_eq!(lines("ggml/mod.rs", "const A: &str = r#\"\"crate::train\"#;"), Vec::<String>::new());
    let inline = "\nmod tests {\n    use super::super::gguf;\n    use super::merge;\n}\n";
    assert_eq!(lines("ggml/types.rs", inline), Vec::<String>::new());
    let without_row = forbidden(&rows, &root().join("src/attic/mod.rs"), "");
    assert!(without_row[0].ends_with("the room attic has no row in docs/design.md"), "{without_row:?}");
}

/// Every Rust file of the project, with its text.
fn everything() -> impl Iterator<Item = (PathBuf, String)> {
    let dirs = ["src", "tests", "benches", "xtask/src", "fuzz/fuzz_targets", "examples"];
    let dirs = dirs.map(|dir| root().join(dir)).into_iter().filter(|dir| dir.is_dir());
    dirs.flat_map(|dir| sources(&dir)).map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
}

#[test]
fn no_file_is_longer_than_a_reader_holds() {
    let long: Vec<_> =
        everything().filter(|(_, text)| text.lines().count() > MOST_LINES).map(|(path, _)| path).collect();
    assert!(long.is_empty(), "files of more than {MOST_LINES} lines: {long:?}");
}

#[test]
fn names_of_tests_fit_a_line() {
    let mut long = Vec::new();
    for (_, text) in everything() {
        let tests = text.split("#[test]").skip(1).filter_map(|rest| rest.split("fn ").nth(1)?.split('(').next());
        long.extend(tests.filter(|name| name.len() > LONGEST_NAME).map(str::to_owned));
    }
    assert_eq!(long, Vec::<String>::new(), "names of more than {LONGEST_NAME} letters");
}
