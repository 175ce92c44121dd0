//! The YAML front matter of a model card, as data: what lies between the first two lines `---` of README.md. Scalars
//! are told apart as YAML 1.1 does (`PyYAML`, which converters use). The meaning of the members is in `sources`.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Most bytes of front matter; the largest cards of the Hub have some tens of thousands.
const MAX_TEXT: usize = 1 << 20;
/// Most nodes, aliases resolved: a few lines of aliases can stand for billions.
const MAX_NODES: usize = 1 << 16;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// Nothing.
    Null,
    /// A string.
    Text(String),
    /// A number, boolean or date, as written.
    Other(String),
    /// A list.
    List(Vec<Node>),
    /// Members in their order. Keys that are no strings are left out; the last of two equal keys counts.
    Map(Map),
}

/// Members of a mapping.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Map(Vec<(String, Node)>);

impl Map {
    /// The value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, node)| node)
    }
}

/// The front matter of `card`; empty if it has none. The error says what is wrong with it.
pub(crate) fn front_matter(card: &str) -> Result<Map, String> {
    let mut lines = lines(card);
    if lines.next() != Some("---") {
        return Ok(Map::default());
    }
    let mut text = String::new();
    for line in lines.take_while(|line| *line != "---") {
        // Two repairs that the converter makes (load_model_card in metadata.py): Norwegian is no boolean, tabs no error.
        match line.strip_suffix("- no") {
            Some(before) => text.extend([&before.replace('\t', "  "), "- \"no\"", "\n"]),
            None => text.extend([&line.replace('\t', "  "), "\n"]),
        }
        if text.len() > MAX_TEXT {
            return Err(format!("its front matter has more than {MAX_TEXT} bytes"));
        }
    }
    match parse(&text)? {
        Node::Map(map) => Ok(map),
        Node::Null => Ok(Map::default()),
        _ => Err("its front matter is not a mapping".to_owned()),
    }
}

/// Lines as Python's `str.splitlines` cuts them.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let breaks =
        |c| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut rest = (!text.is_empty()).then_some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(breaks) else {
            rest = None;
            return Some(text);
        };
        let width =
            if text[end..].starts_with("\r\n") { 2 } else { text[end..].chars().next().map_or(0, char::len_utf8) };
        rest = Some(&text[end + width..]).filter(|rest| !rest.is_empty());
        Some(&text[..end])
    })
}

/// A list or mapping being read.
enum Open {
    List(Vec<Node>),
    /// Members, and the key that waits for its value.
    Map(Vec<(String, Node)>, Option<Node>),
}

/// The one document of `text`.
fn parse(text: &str) -> Result<Node, String> {
    let mut anchors: HashMap<usize, (Node, usize)> = HashMap::new();
    let mut open: Vec<(Open, usize, usize)> = Vec::new();
    let (mut root, mut nodes) = (None, 0_usize);
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|e| format!("its front matter is not YAML: {e}"))?;
        let before = nodes;
        let (node, anchor, size) = match event {
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamEnd => {
                continue;
            }
            Event::Alias(id) => {
                let (node, size) = anchors.get(&id).ok_or("its front matter has an alias to nothing")?;
                nodes = nodes.saturating_add(*size);
                // Checked before the copy is made.
                (if nodes <= MAX_NODES { node.clone() } else { Node::Null }, 0, *size)
            }
            Event::Scalar(value, style, anchor, tag) => {
                nodes += 1;
                let plain = style == ScalarStyle::Plain && tag.is_none();
                (if plain { scalar(value.into_owned()) } else { Node::Text(value.into_owned()) }, anchor, 1)
            }
            Event::SequenceStart(anchor, _) => {
                open.push((Open::List(Vec::new()), anchor, before));
                nodes += 1;
                check(nodes, open.len())?;
                continue;
            }
            Event::MappingStart(anchor, _) => {
                open.push((Open::Map(Vec::new(), None), anchor, before));
                nodes += 1;
                check(nodes, open.len())?;
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some((Open::List(items), anchor, before)) => (Node::List(items), anchor, nodes - before),
                Some((Open::Map(members, _), anchor, before)) => (Node::Map(Map(members)), anchor, nodes - before),
                None => return Err("its front matter closes what it did not open".to_owned()),
            },
        };
        check(nodes, open.len())?;
        if anchor != 0 {
            // A copy an anchor, so anchors count as nodes do.
            nodes = nodes.saturating_add(size);
            check(nodes, open.len())?;
            anchors.insert(anchor, (node.clone(), size));
        }
        match open.last_mut() {
            Some((Open::List(items), ..)) => items.push(node),
            Some((Open::Map(_, key @ None), ..)) => *key = Some(node),
            Some((Open::Map(members, key), ..)) => {
                if let Some(Node::Text(key)) = key.take() {
                    members.push((key, node));
                }
            }
            None if root.is_some() => return Err("its front matter has several documents".to_owned()),
            None => root = Some(node),
        }
    }
    Ok(root.unwrap_or(Node::Null))
}

fn check(nodes: usize, depth: usize) -> Result<(), String> {
    if nodes > MAX_NODES || depth > MAX_DEPTH {
        return Err(format!("its front matter has more than {MAX_NODES} values, or more than {MAX_DEPTH} levels"));
    }
    Ok(())
}

/// Plain words that are booleans, infinite or no number in YAML 1.1; other spellings are text.
const WORDS: [&str; 27] = [
    "yes", "Yes", "YES", "no", "No", "NO", "true", "True", "TRUE", "false", "False", "FALSE", "on", "On", "ON", "off",
    "Off", "OFF", ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "-.inf", "-.Inf", "-.INF",
];

/// Tells a plain scalar's type: the implicit resolvers of YAML 1.1 (resolver.py of `PyYAML`).
fn scalar(text: String) -> Node {
    if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") {
        return Node::Null;
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(&text);
    let other = WORDS.contains(&text.as_str()) || is_number(unsigned) || is_date(&text);
    if other { Node::Other(text) } else { Node::Text(text) }
}

/// Integers (any base, `_` between digits, sexagesimal) and decimals with a point, without their sign.
fn is_number(text: &str) -> bool {
    let all = |text: &str, extra: &str, digit: fn(char) -> bool| {
        !text.is_empty() && text.chars().all(|c| digit(c) || extra.contains(c))
    };
    let decimal: fn(char) -> bool = |c| c.is_ascii_digit();
    if let Some(binary) = text.strip_prefix("0b") {
        return all(binary, "_", |c| matches!(c, '0' | '1'));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return all(hex, "_", |c| c.is_ascii_hexdigit());
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return false;
    }
    let (head, tail) = text.split_once('.').map_or((text, None), |(head, tail)| (head, Some(tail)));
    match (head.split_once(':'), tail) {
        // Base 60, such as a time of day.
        (Some((first, rest)), tail) => {
            all(first, "_", decimal)
                && rest.split(':').all(|part| {
                    matches!(part.len(), 1 | 2) && all(part, "", decimal) && part.parse::<u8>().is_ok_and(|v| v < 60)
                })
                && tail.is_none_or(|tail| tail.is_empty() || all(tail, "_", decimal))
        }
        (None, None) if text.len() > 1 && text.starts_with('0') => all(text, "_", |c| matches!(c, '0'..='7')),
        (None, None) => all(text, "_", decimal),
        (None, Some(tail)) => {
            // An exponent must have a sign, so "1.5e3" is text.
            let (digits, exponent) =
                tail.split_once(['e', 'E']).map_or((tail, None), |(digits, exponent)| (digits, Some(exponent)));
            (head.is_empty() && all(digits, "_", decimal) && digits.starts_with(decimal)
                || all(head, "_", decimal) && (digits.is_empty() || all(digits, "_", decimal)))
                && exponent.is_none_or(|e| e.strip_prefix(['-', '+']).is_some_and(|e| all(e, "", decimal)))
        }
    }
}

/// Dates, `2024-01-31`, alone or with a time after them.
fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let digits = |part: Option<&str>, least: usize, most: usize| {
        part.is_some_and(|p| (least..=most).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()))
    };
    if !digits(parts.next(), 4, 4) || !digits(parts.next(), 1, 2) {
        return false;
    }
    let Some(rest) = parts.next() else { return false };
    let day = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    digits(rest.get(..day), 1, 2)
        && (day == rest.len() || rest[day..].starts_with(['T', 't', ' ', '\t']) && rest.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(yaml: &str) -> Map {
        front_matter(&format!("---\n{yaml}\n---\nbody")).unwrap()
    }

    fn text(text: &str) -> Node {
        Node::Text(text.to_owned())
    }

    #[test]
    fn reads_what_cards_have() {
        let card = of(
            "license: apache-2.0\ntags:\n- a\n- \"b\"\n-\tc\nlanguage:\n- en\n- no\nx: {name: y, 'z': [1]}\nd: >\n  one\n  two\nn:",
        );
        assert_eq!(card.get("license"), Some(&text("apache-2.0")));
        assert_eq!(card.get("tags"), Some(&Node::List(vec![text("a"), text("b"), text("c")])));
        assert_eq!(card.get("language"), Some(&Node::List(vec![text("en"), text("no")])));
        let Some(Node::Map(x)) = card.get("x") else { panic!() };
        assert_eq!(
            (x.get("name"), x.get("z")),
            (Some(&text("y")), Some(&Node::List(vec![Node::Other("1".to_owned())])))
        );
        assert_eq!((card.get("d"), card.get("n")), (Some(&text("one two\n")), Some(&Node::Null)));
        assert_eq!(of("a: &x [1]\nb: *x").get("b"), Some(&Node::List(vec![Node::Other("1".to_owned())])));
        assert_eq!(of("a: 1\na: b").get("a"), Some(&text("b")));
    }

    #[test]
    fn there_may_be_none() {
        for card in ["", "# Title", "---", "\n---\na: b\n---", "--- \na: b", "---\n# c\n---"] {
            assert_eq!(front_matter(card).unwrap(), Map::default(), "{card:?}");
        }
        assert_eq!(front_matter("---\r\na: b\r\n---\r\n").unwrap().get("a"), Some(&text("b")));
        assert!(front_matter("---\n- a\n---").unwrap_err().contains("not a mapping"));
        assert!(front_matter("---\na: [\n---").unwrap_err().contains("not YAML"));
    }

    #[test]
    fn scalars_have_the_types_of_yaml_1_1() {
        for other in [
            "1",
            "-1",
            "1.0",
            "0x1F",
            "1_000",
            "12:30",
            "1.",
            ".5",
            "1.5e+3",
            "no",
            "Yes",
            "OFF",
            "2024-01-31",
            ".inf",
            "-.INF",
            ".NaN",
            "2024-1-3 1:02:03",
        ] {
            assert_eq!(scalar(other.to_owned()), Node::Other(other.to_owned()));
        }
        for string in ["1.5e3", "1e5", "yEs", "v1", "1.0.0", "08", "a:b", "apache-2.0", "-no", "2024-01", "12:99", "."]
        {
            assert_eq!(scalar(string.to_owned()), text(string));
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..20 {
            let last = format!("*a{}, ", i - 1).repeat(9);
            bomb += &format!("a{i}: &a{i} [{last} x]\n");
        }
        assert!(front_matter(&format!("---\n{bomb}---")).unwrap_err().contains("more than"));
        assert!(front_matter(&format!("---\na: {}\n---", "[".repeat(100))).is_err());
        assert!(front_matter(&format!("---\n{}\n---", "a: b\n".repeat(MAX_TEXT))).unwrap_err().contains("bytes"));
    }

    proptest! {
        #[test]
        fn nothing_panics(body in "[a-c:\\-\\[\\]{}&*!|>'\"#, \n\t~0-9.]{0,200}") {
            let _ = front_matter(&format!("---\n{body}"));
        }
    }
}
