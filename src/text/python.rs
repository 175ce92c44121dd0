//! What chat templates take from Python, as transformers gives it to them: `tojson`, dates and methods of strings.
//! The language itself is minijinja's.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::Offset;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest value that is written as JSON.
const MAX_DEPTH: usize = 256;

/// How `json.dumps` writes.
struct Style {
    ascii: bool,
    indent: Option<String>,
    separators: (String, String),
    sorted: bool,
}

/// The filter `tojson`: Python's `json.dumps(value, ensure_ascii=False)`, with the options that transformers passes on.
#[allow(clippy::needless_pass_by_value, reason = "the form of a filter")]
pub(crate) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
    };
    let separators = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
        Some(_) => return Err(wrong("tojson takes two separators")),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut out = String::new();
    dump(value, &Style { ascii, indent, separators, sorted }, 0, &mut out)?;
    Ok(out)
}

fn wrong(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

fn dump(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(wrong("a value is nested too deeply for tojson"));
    }
    match value.kind() {
        ValueKind::String => quote(value.as_str().unwrap_or_default(), style.ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.collect::<Vec<_>>();
            list(items.iter(), ('[', ']'), style, depth, out, |item, out| dump(item, style, depth + 1, out))?;
        }
        ValueKind::Map => {
            let mut members = Vec::new();
            for key in value.try_iter()? {
                members.push((key_text(&key)?, value.get_item(&key)?));
            }
            if style.sorted {
                members.sort_by(|a, b| a.0.cmp(&b.0));
            }
            list(members.iter(), ('{', '}'), style, depth, out, |(key, item), out| {
                quote(key, style.ascii, out);
                out.push_str(&style.separators.1);
                dump(item, style, depth + 1, out)
            })?;
        }
        _ => out.push_str(&scalar(value)?),
    }
    Ok(())
}

/// Writes `items` between brackets, each on a line of its own where the style has an indent.
fn list<T>(
    items: impl ExactSizeIterator<Item = T>,
    brackets: (char, char),
    style: &Style,
    depth: usize,
    out: &mut String,
    mut write: impl FnMut(T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let any = items.len() > 0;
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent.as_deref().filter(|_| any) {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent, depth));
        }
    };
    out.push(brackets.0);
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push_str(&style.separators.0);
        }
        line(depth + 1, out);
        write(item, out)?;
    }
    line(depth, out);
    out.push(brackets.1);
    Ok(())
}

/// The text of a key that may be no string.
fn key_text(key: &Value) -> Result<String, Error> {
    key.as_str().map_or_else(|| scalar(key), |text| Ok(text.to_owned()))
}

/// Null, a truth value or a number.
fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => Ok(float(f64::try_from(value.clone())?)),
        kind => Err(wrong(format!("tojson can't write a value that is {kind}"))),
    }
}

/// A string in quotes, as Python's `json` escapes it.
fn quote(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || ascii && !(' '..='~').contains(&c) => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A float as Python's `repr` has it: the shortest digits, and an exponent beyond 16 digits or four zeros.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if value == 0.0 || (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Methods of strings that minijinja's own set lacks, then that set.
pub(crate) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [affix]) = (value.as_str(), args)
        && let Some(affix) = affix.as_str()
    {
        match name {
            "removeprefix" => return Ok(Value::from(text.strip_prefix(affix).unwrap_or(text))),
            "removesuffix" => return Ok(Value::from(text.strip_suffix(affix).unwrap_or(text))),
            _ => {}
        }
    }
    // It pads to any width without a look at the fuel.
    if name == "format" && value.as_str().is_some_and(is_wide) {
        return Err(Error::new(ErrorKind::InvalidOperation, "a width of a format has more than 4 digits"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Whether a field of a format has a number of more than four digits after its colon.
fn is_wide(format: &str) -> bool {
    let fields = format.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let mut specs = fields.filter_map(|field| field.split_once(':'));
    specs.any(|(_, spec)| spec.as_bytes().windows(5).any(|five| five.iter().all(u8::is_ascii_digit)))
}

/// The letters of `strftime` that are known here, besides `y`.
const LETTERS: &str = "YmdeBbhAaHIMSpFT";

/// `time` in `format`, as Python's `strftime` in the C locale, in UTC. A letter that it doesn't know stays as it is.
pub(crate) fn strftime(format: &str, time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or_default().max(Timestamp::UNIX_EPOCH);
    let date = Offset::UTC.to_datetime(time);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') | None => out.push('%'),
            // jiff's own is for a hundred years only.
            Some('y') => out.push_str(&format!("{:02}", date.year() % 100)),
            Some(letter) if LETTERS.contains(letter) => {
                out.push_str(&strtime::format(format!("%{letter}"), date).unwrap_or_default());
            }
            Some(other) => out.extend(['%', other]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// Python 3.11: `[repr(x) for x in ...]`.
    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_012, "1.2e-05"),
            (123_456.789, "123456.789"),
            (-5e-324, "-5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (value, expected) in cases {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(strftime("%d %b %Y", at(0)), "01 Jan 1970");
        let leap = at(951_782_400 + 13 * 3600 + 5 * 60 + 9);
        assert_eq!(strftime("%A %F %T, %I:%M %p %%%q%", leap), "Tuesday 2000-02-29 13:05:09, 01:05 PM %%q%");
        assert_eq!(strftime("%a %e %B %y", at(1_735_689_599)), "Tue 31 December 24");
    }
}
