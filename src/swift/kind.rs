//! What a flag takes: from the command line's text, a TOML value or a JSON value to one form, checked. Knows no flag.

use serde_json::{Number, Value};

use crate::error::escaped;

/// What a flag takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Anything, of any number, and the flag alone: what is said of it depends on no form.
    Any,
    /// Any text but an empty one.
    Text,
    /// Several texts.
    Texts,
    /// Several names; commas part them too.
    Names,
    /// true or false; the flag alone is true.
    Bool,
    /// A path, or true, or the flag alone.
    PathOrTrue,
    /// A whole number that is at least this.
    Count(u64),
    /// A whole number above zero, or -1 or 0 for none.
    CountOrNone,
    /// A number of steps, or, below 1, a share of all.
    Steps,
    /// A number, what it must be, and the test of that.
    Number(&'static str, fn(f64) -> bool),
    /// One of these.
    Choice(&'static [&'static str]),
}

/// Words for true and false.
const BOOLS: [(&str, bool); 10] = [
    ("true", true),
    ("false", false),
    ("1", true),
    ("0", false),
    ("yes", true),
    ("no", false),
    ("y", true),
    ("n", false),
    ("on", true),
    ("off", false),
];

impl Kind {
    /// The value in its one form; the error says what is expected instead.
    pub fn take(self, value: &Value) -> Result<Value, String> {
        let wrong = || format!("{} is not {}", shown(value), self.expected());
        match self {
            Self::Any => Ok(typed(value)),
            Self::Text => text(value).map(Value::String).ok_or_else(wrong),
            Self::Texts => texts(value, false).ok_or_else(wrong),
            Self::Names => texts(value, true).ok_or_else(wrong),
            Self::Bool => bool_of(value).map(Value::Bool).ok_or_else(wrong),
            Self::PathOrTrue => match bool_of(value).filter(|_| !matches!(value, Value::Number(_))) {
                Some(false) => Ok(Value::Null),
                Some(true) => Ok("true".into()),
                None => text(value).map(Value::String).ok_or_else(wrong),
            },
            Self::Count(least) => whole(value).filter(|n| *n >= least).map(Value::from).ok_or_else(wrong),
            Self::CountOrNone => match number(value) {
                Some(-1.0 | 0.0) => Ok(Value::Null),
                _ => whole(value).map(Value::from).ok_or_else(wrong),
            },
            Self::Steps => {
                let share = number(value).filter(|n| *n > 0.0 && *n < 1.0).and_then(Number::from_f64);
                let steps = whole(value).filter(|n| *n > 0).map(Number::from);
                share.or(steps).map(Value::Number).ok_or_else(wrong)
            }
            Self::Number(_, test) => {
                number(value).filter(|n| test(*n)).and_then(Number::from_f64).map(Value::Number).ok_or_else(wrong)
            }
            Self::Choice(names) => {
                let given = text(value).map(|text| text.to_ascii_lowercase());
                given.filter(|given| names.contains(&given.as_str())).map(Value::String).ok_or_else(wrong)
            }
        }
    }

    /// What is expected, with its article.
    pub fn expected(self) -> String {
        match self {
            Self::Any => "anything".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Texts => "a text or several".to_owned(),
            Self::Names => "a name or several".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::PathOrTrue => "a path or true".to_owned(),
            Self::Count(least) => format!("a whole number from {least}"),
            Self::CountOrNone => "a whole number above zero (or -1 for none)".to_owned(),
            Self::Steps => "a number of steps (or, below 1, a share of all)".to_owned(),
            Self::Number(what, _) => format!("a number {what}"),
            Self::Choice(names) => format!("one of {}", names.join(", ")),
        }
    }

    /// Its name in the help.
    pub fn placeholder(self) -> String {
        match self {
            Self::Any => "VALUE".to_owned(),
            Self::Text | Self::Texts => "TEXT".to_owned(),
            Self::Names => "NAME,...".to_owned(),
            Self::Bool => "BOOL".to_owned(),
            Self::PathOrTrue => "DIR|true".to_owned(),
            Self::Count(_) | Self::CountOrNone => "N".to_owned(),
            Self::Steps => "N|SHARE".to_owned(),
            Self::Number(..) => "X".to_owned(),
            Self::Choice(names) => names.join("|"),
        }
    }

    /// Whether the flag alone, without a value, means true.
    pub fn stands_alone(self) -> bool {
        matches!(self, Self::Bool | Self::PathOrTrue)
    }

    /// Whether it takes several values.
    pub fn is_list(self) -> bool {
        matches!(self, Self::Texts | Self::Names)
    }
}

/// The value as a message shows it.
pub(crate) fn shown(value: &Value) -> String {
    escaped(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// A text that writes a truth value, a number or none, as that: args.json holds what ms-swift's would.
fn typed(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(typed).collect(),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" => true.into(),
            "false" => false.into(),
            "" | "none" | "null" => Value::Null,
            lower => match lower.parse::<i64>() {
                Ok(whole) => whole.into(),
                Err(_) => number(value).and_then(Number::from_f64).map_or_else(|| value.clone(), Value::Number),
            },
        },
        other => other.clone(),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn texts(value: &Value, commas: bool) -> Option<Value> {
    let given: Vec<String> = match value {
        Value::Array(list) => list.iter().map(text).collect::<Option<_>>()?,
        one => vec![text(one)?],
    };
    let parted = |text: String| -> Vec<String> {
        if commas && !is_pattern(&text) {
            text.split([',', ' ']).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        } else {
            vec![text]
        }
    };
    let parts: Vec<Value> = given.into_iter().flat_map(parted).map(Value::String).collect();
    (!parts.is_empty()).then_some(Value::Array(parts))
}

/// Whether a name can only be a regular expression: `.*\.q_proj`, `model\.layers\.\d{1,2}\..*`.
pub(crate) fn is_pattern(name: &str) -> bool {
    name.contains(['*', '\\', '(', '[', '^', '$', '|', '+', '?'])
}

pub(super) fn bool_of(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(it) => Some(*it),
        Value::String(text) => {
            let lower = text.to_ascii_lowercase();
            BOOLS.iter().find(|(word, _)| *word == lower).map(|(_, it)| *it)
        }
        _ => None,
    }
}

pub(super) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|n| n.is_finite())
}

/// Largest number that is taken for a count: every one up to here is a double too.
const MOST: f64 = 9_007_199_254_740_992.0;

fn whole(value: &Value) -> Option<u64> {
    let exact = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    // "2e3" and 2000.0 are whole numbers as well.
    #[expect(clippy::cast_sign_loss, reason = "the filter leaves none below zero")]
    let round = || number(value).filter(|n| *n >= 0.0 && *n <= MOST && n.fract() == 0.0).map(|n| n as u64);
    exact.or_else(round)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_and_typed_values_come_to_one_form() {
        let same = |kind: Kind, values: &[Value], expected: &Value| {
            for value in values {
                assert_eq!(kind.take(value).as_ref(), Ok(expected), "{kind:?} {value}");
            }
        };
        same(Kind::Bool, &[json!("True"), json!(true), json!("1"), json!("yes")], &json!(true));
        same(Kind::Count(1), &[json!("8"), json!(8), json!(8.0), json!("8e0")], &json!(8));
        same(Kind::Number("above 0", |x| x > 0.0), &[json!("2e-4"), json!(2e-4)], &json!(2e-4));
        let names = [json!("a,b"), json!(["a", "b"]), json!(["a,b"]), json!("a b")];
        same(Kind::Names, &names, &json!(["a", "b"]));
        same(Kind::Texts, &[json!("a,b"), json!(["a,b"])], &json!(["a,b"]));
        same(Kind::PathOrTrue, &[json!("true"), json!(true)], &json!("true"));
        same(Kind::PathOrTrue, &[json!("1")], &json!("true"));
        same(Kind::Any, &[json!("True"), json!(true)], &json!(true));
        same(Kind::Any, &[json!("1800"), json!(1800)], &json!(1800));
        same(Kind::Any, &[json!("1e-8")], &json!(1e-8));
        same(Kind::Any, &[json!("None"), json!("")], &json!(null));
        same(Kind::Any, &[json!(["a", "2"])], &json!(["a", 2]));
        same(Kind::Any, &[json!("flash_attn"), json!("flash_attn")], &json!("flash_attn"));
        same(Kind::CountOrNone, &[json!(-1), json!("-1"), json!(0)], &json!(null));
        same(Kind::Steps, &[json!("0.25"), json!(0.25)], &json!(0.25));
        same(Kind::Choice(&["no", "steps"]), &[json!("Steps")], &json!("steps"));
        assert_eq!(Kind::Names.take(&json!(r"model\.layers\.\d{1,2}\..*")).unwrap().as_array().unwrap().len(), 1);
    }

    #[test]
    fn other_values_are_refused_with_what_is_expected() {
        let refused = |kind: Kind, value: Value, expected: &str| {
            let error = kind.take(&value).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refused(Kind::Bool, json!("maybe"), "true or false");
        refused(Kind::Count(1), json!(0), "from 1");
        refused(Kind::Count(1), json!(-3), "from 1");
        refused(Kind::Count(1), json!("8.5"), "from 1");
        refused(Kind::Count(0), json!(1e300), "from 0");
        refused(Kind::Number("above 0", |x| x > 0.0), json!("nan"), "above 0");
        refused(Kind::Number("above 0", |x| x > 0.0), json!("inf"), "above 0");
        refused(Kind::Steps, json!(1.5), "share");
        refused(Kind::Text, json!(["a"]), "a text");
        refused(Kind::Text, json!(""), "a text");
        refused(Kind::Names, json!(","), "several");
        refused(Kind::Choice(&["no", "steps"]), json!("a\u{1b}"), "a\\u{1b} is not one of no, steps");
    }
}
