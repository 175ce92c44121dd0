//! Whether a text that a key would hold tells of a local path. PEFT, trainers and llama.cpp's tools write
//! paths where a reader expects the id of a model, and so a release would publish the maker's directories.

/// Keys that may hold a path below the model's own directory: `license_link: ./LICENSE`.
const RELATIVE: [&str; 1] = ["general.license.link"];
/// Keys that hold ids, names and addresses of other models and of data: more than one slash there is a path.
const IDS: [&str; 4] = ["general.base_model.", "general.dataset.", "general.source.", "general.tags"];
/// The address of the Hub, after which an id stands.
const HUB: &str = "huggingface.co/";

/// Whether `text`, as the value of `key` or an element of it, tells of a path on a disk.
pub(super) fn tells_of_disk(key: &str, text: &str) -> bool {
    let is_id = IDS.iter().any(|prefix| key.starts_with(prefix));
    is_absolute(text)
        || is_id && is_path_for_id(text)
        || text.split_whitespace().count() == 1 && !RELATIVE.contains(&key) && is_relative(text.trim())
}

/// Whether `text`, which should be the id or the address of a model or of data, is a path.
pub(super) fn is_path_for_id(text: &str) -> bool {
    let text = text.trim();
    if let Some((_, rest)) = text.split_once("://") {
        let behind = rest.split_once('/').map_or("", |(_, path)| path);
        let id = rest.split_once(HUB).map(|(_, id)| id);
        return is_absolute(text) || is_absolute(behind) || id.is_some_and(|id| is_absolute(id) || is_relative(id));
    }
    // Tags name what they speak of after colons: `base_model:adapter:/home/me/base`.
    let last = text.rsplit(':').next().unwrap_or(text);
    [text, last].into_iter().any(|text| is_absolute(text) || is_relative(text) || text.matches('/').count() > 1)
}

/// The last part of `path`, whichever system wrote it.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or(path)
}

/// Whether `text` or a word of it is an absolute path, or one that begins at somebody's home.
fn is_absolute(text: &str) -> bool {
    let from_root = |text: &str| text.starts_with('/') && !text.starts_with("//");
    let is = |word: &str| {
        let mut letters = word.chars();
        let drive = matches!(
            (letters.next(), letters.next(), letters.next()),
            (Some('A'..='Z' | 'a'..='z'), Some(':'), Some('/' | '\\'))
        );
        let home = word.starts_with('~') && (word.len() == 1 || word.contains('/'));
        drive && !word.contains("://") || home || word.starts_with("\\\\") || word.starts_with("file:")
    };
    let edges = |c: char| matches!(c, '(' | ')' | '"' | '\'' | '`' | ',' | ';' | '<' | '>');
    let mut words = text.split_whitespace().map(|word| word.trim_matches(edges));
    from_root(text.trim()) || words.any(|word| is(word) || from_root(word) && word.matches('/').count() > 1)
}

/// Whether `text` is a path that begins in the working directory or above it.
fn is_relative(text: &str) -> bool {
    matches!(text, "." | "..") || ["./", "../", ".\\", "..\\"].iter().any(|head| text.starts_with(head)) || {
        // No id and no name has one.
        text.contains('\\')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_ids() {
        for path in [
            "/home/me/base",
            "/model",
            " /data/x ",
            "~/models/base",
            "~",
            "./base",
            "../a/b",
            ".",
            "C:\\models\\base",
            "d:/models",
            "models\\base",
            "\\\\server\\share",
            "output/v0/checkpoint-10",
            "file:///home/me/x",
            "https://huggingface.co//home/me/base",
            "https://huggingface.co/./base",
            "https://example.com//srv/x",
            "base_model:adapter:/home/me/base",
            "base_model:adapter:C:\\base",
            "dataset:./x.jsonl",
        ] {
            assert!(is_path_for_id(path), "{path}");
        }
        for id in [
            "Qwen/Qwen2.5-7B",
            "local-model",
            "https://huggingface.co/datasets/a/b",
            "https://example.com/a/b/c",
            "ssh://huggingface.co/a/b",
            "base_model:adapter:Qwen/Qwen2.5-7B",
            "arxiv:2407.10671",
            "with: colon",
            "text-generation",
            "",
        ] {
            assert!(!is_path_for_id(id), "{id}");
        }
    }

    #[test]
    fn a_key_decides_what_is_a_path_in_it() {
        let told = |key: &str, text: &str| tells_of_disk(&format!("general.{key}"), text);
        assert!(told("name", "/home/me/x") && told("description", "trained on (/home/me/data.jsonl), twice"));
        assert!(told("author", "~/x") && told("license.link", "/home/me/LICENSE") && told("name", "./x"));
        assert!(!told("license.link", "./LICENSE") && !told("description", "text/image/audio and either/or 1/2"));
        assert!(told("base_model.0.name", "Home/Trainer/Models") && !told("name", "a/b/c"));
        assert!(!told("license.link", "https://huggingface.co/a/b/blob/main/LICENSE"));
        assert!(tells_of_disk("quantize.imatrix.file", "/tmp/imatrix.dat"));
    }

    #[test]
    fn a_file_has_a_name_on_every_system() {
        assert_eq!(["a/b.dat", "C:\\x\\b.dat", "b.dat", "/"].map(file_name), ["b.dat", "b.dat", "b.dat", "/"]);
    }
}
