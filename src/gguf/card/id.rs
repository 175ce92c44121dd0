//! What the name of a model says: `meta-llama/Llama-3.2-1B-Instruct` has an organization, a base name, a version, a
//! size and a finetune. The rules are those of `get_model_id_components` in gguf-py's metadata.py.

use std::sync::LazyLock;

use regex::Regex;

/// The parts of a model's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NameParts {
    pub(crate) full: String,
    pub(crate) organization: Option<String>,
    pub(crate) basename: Option<String>,
    pub(crate) finetune: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) size_label: Option<String>,
}

/// What a part of a name, between two hyphens, is taken for. It can be several things.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Kind {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    encoding: bool,
}

impl Kind {
    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Patterns of parts. Digits are those of ASCII only.
struct Patterns {
    version: Regex,
    encoding: Regex,
    size: Regex,
    finetune: Regex,
}

#[expect(clippy::expect_used, reason = "the patterns are constants, and a test compiles them")]
static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let whole = |pattern: &str| Regex::new(&format!("^(?i:{pattern})$")).expect("a constant pattern compiles");
    Patterns {
        version: whole(r"(v|iter)?[0-9]+([.][0-9]+)*"),
        encoding: whole(r"i?q[0-9](_\w)*|b?fp?(16|32)"),
        size: whole(r"((A|[0-9]+x)?[0-9]+([._][0-9]+)?[KMBT][0-9]?|small|mini|medium|large|x?xl)"),
        finetune: whole(r"chat|instruct|vision|lora"),
    }
});

/// The parts of `id`, a Hub id or the name of a directory. `params` is the number of the model's parameters, 0 if it is
/// not known: a number that is far off is taken for a context length.
pub(crate) fn name_parts(id: &str, params: u64) -> NameParts {
    if id.contains(' ') {
        return NameParts { full: id.to_owned(), ..NameParts::default() };
    }
    let (organization, full) = id.split_once('/').map_or((None, id), |(organization, full)| (Some(organization), full));
    let organization = organization.filter(|o| !o.starts_with('.')).map(str::to_owned);
    let mut parts: Vec<(String, Kind)> =
        full.split('-').filter(|part| !part.is_empty()).map(|part| (part.to_owned(), Kind::default())).collect();
    for (i, (part, kind)) in parts.iter_mut().enumerate() {
        if PATTERNS.version.is_match(part) {
            kind.version = true;
        } else if PATTERNS.encoding.is_match(part) {
            kind.encoding = true;
            *part = part.to_uppercase();
        } else if i > 0 && PATTERNS.size.is_match(part) {
            size(part, kind, params);
        } else if i > 0 && PATTERNS.finetune.is_match(part) {
            kind.finetune = true;
        }
    }
    // A number beats a word such as "small".
    let digits = |part: &str| part.bytes().any(|b| b.is_ascii_digit());
    if parts.iter().any(|(part, kind)| kind.size && digits(part)) {
        let words = parts.iter_mut().filter(|(part, _)| part.chars().all(char::is_alphabetic));
        words.for_each(|(_, kind)| kind.size = false);
    }
    let mut at_start = true;
    for (part, kind) in &mut parts {
        if at_start && (kind.is_none() && part.starts_with(char::is_alphabetic) || kind.version) {
            kind.basename = true;
        } else {
            at_start = false;
            kind.finetune |= kind.is_none();
        }
    }
    // A version at the base name's end is no part of it.
    for (_, kind) in parts.iter_mut().rev() {
        if !(kind.basename && *kind != (Kind { basename: true, ..Kind::default() })) {
            break;
        }
        kind.basename = false;
    }
    let join = |wanted: fn(Kind) -> bool, unique: bool| {
        let mut texts: Vec<&str> = Vec::new();
        for (part, _) in parts.iter().filter(|(_, kind)| wanted(*kind)) {
            if !(unique && texts.contains(&part.as_str())) {
                texts.push(part);
            }
        }
        (!texts.is_empty()).then(|| texts.join("-"))
    };
    let (size_label, finetune) = (join(|k| k.size, true), join(|k| k.finetune, false));
    let version = join(|k| k.version && !k.basename, false);
    // A base name alone could be anything.
    let basename =
        join(|k| k.basename, false).filter(|_| size_label.is_some() || finetune.is_some() || version.is_some());
    NameParts { full: full.to_owned(), organization, basename, finetune, version, size_label }
}

/// What a letter after a size stands for.
const UNITS: [(char, f64); 4] = [('K', 1e3), ('M', 1e6), ('B', 1e9), ('T', 1e12)];

/// Normalizes a part that looks like a size, and decides whether it is one.
fn size(part: &mut String, kind: &mut Kind, params: u64) {
    let mut text: Vec<char> = part.replace('_', ".").chars().collect();
    // "7b1" stands for 7.1b.
    if let [.., suffix, digit] = *text
        && digit.is_ascii_digit()
    {
        let end = text.len() - 2;
        text.splice(end.., ['.', digit, suffix]);
    }
    if let [.., before, suffix] = &mut *text
        && before.is_ascii_digit()
        && "kmbt".contains(*suffix)
    {
        suffix.make_ascii_uppercase();
    }
    if let Some((suffix, number)) = text.split_last_mut()
        && params > 0
        && let Ok(number) = number.iter().collect::<String>().parse::<f64>()
    {
        let unit = UNITS.iter().find(|(letter, _)| letter == suffix).map_or(0.001, |(_, unit)| *unit);
        let limit = u128::from(params) * 7 / 8;
        if (number * unit - params as f64).abs() > limit as f64 {
            kind.finetune = true;
            suffix.make_ascii_lowercase();
        }
    }
    kind.size = kind.is_none();
    *part = text.into_iter().collect();
}

/// A name as a title: hyphens are spaces, and words in lower case that are no versions are capitalized.
pub(crate) fn title(name: &str) -> String {
    let words: Vec<String> = name
        .replace('-', " ")
        .split_whitespace()
        .map(|word| {
            let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
            if lower && !is_version(word) { capitalize(word) } else { word.to_owned() }
        })
        .collect();
    words.join(" ")
}

/// `v1.2`, or whatever begins with a digit.
fn is_version(word: &str) -> bool {
    let numbers = |text: &str| text.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    word.starts_with(|c: char| c.is_ascii_digit()) || word.strip_prefix('v').is_some_and(numbers)
}

/// Capitalizes every letter that no letter precedes, as Python's `str.title`.
fn capitalize(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut inside = false;
    for c in word.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            // What becomes two letters has one of them capital: "Ss" for a sharp s.
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// A number of parameters as users say it: "494M", "7.6B" (`model_weight_count_rounded_notation` in utility.py).
pub(crate) fn size_label(params: u64) -> String {
    const UNITS: [(f64, f64, &str); 4] = [(1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1.0, 1e-3, "K")];
    let count = params as f64;
    let &(_, unit, suffix) = UNITS.iter().find(|(above, ..)| count > *above).unwrap_or(&UNITS[3]);
    let scaled = count * unit;
    let whole = scaled.round_ties_even();
    let digits = if whole == 0.0 { 0 } else { format!("{whole}").len() };
    format!("{scaled:.*}{suffix}", 2_usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(id: &str, params: u64) -> [String; 6] {
        let parts = name_parts(id, params);
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            parts.full,
            or(parts.organization),
            or(parts.basename),
            or(parts.finetune),
            or(parts.version),
            or(parts.size_label),
        ]
    }

    #[test]
    fn names_come_apart() {
        // As the function of gguf-py answers.
        let cases: [(&str, u64, [&str; 6]); 12] = [
            (
                "Mistral-7B-Instruct-v0.2",
                7_000_000_000,
                ["Mistral-7B-Instruct-v0.2", "-", "Mistral", "Instruct", "v0.2", "7B"],
            ),
            (
                "Qwen/Qwen2.5-0.5B-Instruct",
                494_000_000,
                ["Qwen2.5-0.5B-Instruct", "Qwen", "Qwen2.5", "Instruct", "-", "0.5B"],
            ),
            ("meta-llama/Llama-3.2-1B", 0, ["Llama-3.2-1B", "meta-llama", "Llama-3.2", "-", "-", "1B"]),
            ("bigscience/bloom-7b1-petals", 0, ["bloom-7b1-petals", "bigscience", "bloom", "petals", "-", "7.1B"]),
            (
                "Phi-3-mini-4k-instruct",
                3_800_000_000,
                ["Phi-3-mini-4k-instruct", "-", "Phi-3", "4k-instruct", "-", "mini"],
            ),
            ("smollm2", 0, ["smollm2", "-", "-", "-", "-", "-"]),
            ("not-a-model", 0, ["not-a-model", "-", "-", "-", "-", "-"]),
            ("a b-7B", 0, ["a b-7B", "-", "-", "-", "-", "-"]),
            ("./x-7B", 0, ["x-7B", "-", "x", "-", "-", "7B"]),
            ("Qwen3-30B-A3B-q4_K_M", 30_000_000_000, ["Qwen3-30B-A3B-q4_K_M", "-", "Qwen3", "-", "-", "30B-A3B"]),
            ("model-1_5b-small", 1_500_000_000, ["model-1_5b-small", "-", "model", "small", "-", "1.5B"]),
            ("", 0, ["", "-", "-", "-", "-", "-"]),
        ];
        for (id, params, expected) in cases {
            assert_eq!(parts(id, params), expected, "{id}");
        }
    }

    #[test]
    fn titles_and_labels() {
        assert_eq!(title("qwen2.5-a3b-v0.2-iQ4-it's-ß1"), "Qwen2.5 A3B v0.2 iQ4 It'S Ss1");
        for (params, label) in [
            (134_515_008, "135M"),
            (494_032_768, "494M"),
            (7_615_616_512, "7.6B"),
            (999, "1.0K"),
            (400, "0.40K"),
            (0, "0.00K"),
            (70_000_000_000, "70B"),
        ] {
            assert_eq!(size_label(params), label);
        }
    }

    proptest! {
        #[test]
        fn no_name_panics(id in "\\PC{0,40}", params: u64) {
            let _ = (name_parts(&id, params), title(&id), size_label(params));
        }

        #[test]
        fn odd_names_do_not_panic(id in "[a-z0-9KxvqB._/-]{0,40}", params: u64) {
            let _ = name_parts(&id, params);
        }
    }
}
