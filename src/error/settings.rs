//! The settings that messages name. The library knows no command line: a text marks a setting, and the program that shows
//! it says what the setting is called there.

use std::borrow::Cow;

/// `text` with each setting that it marks called what `called` says; one that `called` doesn't know stays as it is.
///
/// The library's messages (errors, warnings, notes) mark a setting as `⟦name⟧`, or as `⟦name value⟧` with the value that it
/// should have. The command line makes flags of them:
///
/// ```
/// use qft::error::name_settings;
/// let remedy = "choose another ⟦out⟧, or use ⟦device cpu⟧";
/// assert_eq!(name_settings(remedy, |name| Some(format!("--{name}"))), "choose another --out, or use --device cpu");
/// ```
pub fn name_settings(text: &str, called: impl Fn(&str) -> Option<String>) -> Cow<'_, str> {
    let mut said = String::new();
    let mut rest = text;
    while let Some((before, mark, after)) = next(rest) {
        let name = mark.split(' ').next().unwrap_or(mark);
        said.push_str(before);
        match called(name) {
            Some(word) => said.extend([word.as_str(), &mark[name.len()..]]),
            None => said.extend(["⟦", mark, "⟧"]),
        }
        rest = after;
    }
    if said.is_empty() && rest.len() == text.len() {
        return text.into();
    }
    said.push_str(rest);
    said.into()
}

/// What comes before the first mark, what is in it, and what comes after it.
fn next(text: &str) -> Option<(&str, &str, &str)> {
    let (before, inside) = text.split_once('⟦')?;
    let (mark, after) = inside.split_once('⟧')?;
    Some((before, mark, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_called_what_the_program_calls_them() {
        let called = |name: &str| ["out", "lora_rank"].contains(&name).then(|| format!("--{}", name.replace('_', "-")));
        for (text, said) in [
            ("", ""),
            ("no setting", "no setting"),
            ("⟦out⟧", "--out"),
            ("a ⟦lora_rank 8⟧ and ⟦out⟧.", "a --lora-rank 8 and --out."),
            ("⟦out 'a b'⟧ at the end", "--out 'a b' at the end"),
            ("⟦other 1⟧, ⟦out⟧", "⟦other 1⟧, --out"),
            ("⟧ and ⟦out", "⟧ and ⟦out"),
        ] {
            assert_eq!(name_settings(text, called), said);
        }
    }
}
