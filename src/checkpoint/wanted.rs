//! Which files of a repository an export, a training or an encoding reads, in the order in which they are fetched.
//! Fetching them is `store`'s.

use super::companion::{OPENED_BY_NAME, TEMPLATE_DIR, has_companion_name, module_folders};
use super::instead;
use super::names::{ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH, INDEX_FILE, SINGLE_FILE};
use super::shard_index::ShardIndex;
use super::weights::Numbered;
use crate::error::{Error, Result, escaped};
use crate::store::{Located, Remote, is_part};

/// Fetches what is wanted of a repository, and calls `on_download` with the name of each file before.
pub(super) fn fetch(from: &dyn Remote, on_download: &mut dyn FnMut(&str)) -> Result<Located> {
    Download { from, on_download }.run()?;
    from.publish()
}

/// One download.
struct Download<'a> {
    from: &'a dyn Remote,
    on_download: &'a mut dyn FnMut(&str),
}

impl Download<'_> {
    /// The small files first, so that a refusal or a bad index shows before the long wait.
    fn run(&mut self) -> Result<()> {
        let files = self.from.files();
        let listed = |name: &str| files.contains_key(name);
        // What older versions of PEFT saved, where there is nothing else.
        let adapter = if listed(ADAPTER_WEIGHTS) { ADAPTER_WEIGHTS } else { ADAPTER_WEIGHTS_TORCH };
        let numbered = match Numbered::among(files.keys().map(String::as_str)) {
            Numbered::Complete(names) if !listed(SINGLE_FILE) && !listed(INDEX_FILE) => names,
            _ => Vec::new(),
        };
        if numbered.is_empty() && ![SINGLE_FILE, INDEX_FILE, adapter].into_iter().any(listed) {
            return Err(self.no_weights());
        }
        for name in files.keys().filter(|name| travels(name)) {
            self.file(name)?;
        }
        // What modules.json names, whatever it is.
        let folders = module_folders(self.from.dir())?;
        let within = |name: &&String| {
            folders.iter().any(|folder| name.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/')))
        };
        for name in files.keys().filter(within).filter(|name| name.split('/').all(is_part)) {
            self.file(name)?;
        }
        for name in [SINGLE_FILE, adapter].into_iter().filter(|name| listed(name)) {
            self.file(name)?;
        }
        for name in &numbered {
            self.file(name)?;
        }
        if !listed(SINGLE_FILE) && listed(INDEX_FILE) {
            for shard in ShardIndex::read(&self.from.dir().join(INDEX_FILE))?.files() {
                self.file(shard)?;
            }
        }
        Ok(())
    }

    /// Says what is there instead of weights that can be downloaded.
    fn no_weights(&self) -> Error {
        let on = self.from.name();
        let names = self.from.files().keys().map(String::as_str);
        if let Numbered::Lacking { name, of } = Numbered::among(names.clone()) {
            let problem = format!("of the {of} numbered shards of {on} {} is missing", escaped(&name));
            return Error::not_found(problem, "find a whole copy of the model");
        }
        if let Some(remedy) = instead::remedy_for(&names) {
            return Error::unsupported(format!("{on} has no safetensors weights that transformers would find"), remedy);
        }
        match names.clone().find(|name| name.ends_with(".safetensors")) {
            Some(name) => Error::unsupported(
                format!("{on} has weights of another name than {SINGLE_FILE}: {}", escaped(name)),
                format!(
                    "download it, rename that file to {SINGLE_FILE} if it is the whole model, and give the directory"
                ),
            ),
            None => Error::not_found(
                format!("{on} has no weights"),
                "check the id: it may be that of another kind of model",
            ),
        }
    }

    /// Fetches file `name`, unless it is there.
    fn file(&mut self, name: &str) -> Result<()> {
        if self.from.dir().join(name).exists() {
            return Ok(());
        }
        (self.on_download)(name);
        self.from.fetch(name)
    }
}

/// Whether a file that is no weights is worth fetching: what the export reads or copies.
fn travels(name: &str) -> bool {
    let top = name.strip_prefix(TEMPLATE_DIR).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
    let plain = top.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+=@,()".contains(&b));
    plain && !top.starts_with('.') && (has_companion_name(top) || OPENED_BY_NAME.contains(&top))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// A repository whose files are texts.
    struct Texts {
        dir: tempfile::TempDir,
        files: BTreeMap<String, Option<u64>>,
        fetched: RefCell<Vec<String>>,
    }

    impl Texts {
        fn of(names: &[&str]) -> Self {
            let files = names.iter().map(|name| ((*name).to_owned(), None)).collect();
            Self { dir: tempfile::tempdir().unwrap(), files, fetched: RefCell::default() }
        }

        /// The names of what is fetched, in order.
        fn wanted(names: &[&str]) -> Vec<String> {
            let texts = Self::of(names);
            let mut told = Vec::new();
            fetch(&texts, &mut |name| told.push(name.to_owned())).unwrap();
            assert_eq!(told, *texts.fetched.borrow());
            told
        }
    }

    impl Remote for Texts {
        fn name(&self) -> String {
            "o/n on here".to_owned()
        }

        fn files(&self) -> &BTreeMap<String, Option<u64>> {
            &self.files
        }

        fn dir(&self) -> &Path {
            self.dir.path()
        }

        fn fetch(&self, name: &str) -> Result<()> {
            self.fetched.borrow_mut().push(name.to_owned());
            let text = match name {
                INDEX_FILE => r#"{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#,
                "modules.json" => r#"[{"path":""},{"path":"1_Dense"}]"#,
                _ => "",
            };
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).map_err(Error::io("write", self.dir()))
        }

        fn publish(&self) -> Result<Located> {
            Ok(Located { dir: self.dir.path().to_owned(), repo: None, revision: None })
        }
    }

    #[test]
    fn the_small_files_come_first_and_then_the_weights_in_use() {
        let wanted = Texts::wanted(&["a.safetensors", SINGLE_FILE, INDEX_FILE, "config.json", "README.md"]);
        assert_eq!(wanted, ["config.json", INDEX_FILE, SINGLE_FILE]);
        let wanted = Texts::wanted(&["a.safetensors", "x.safetensors", "y.safetensors", INDEX_FILE, "config.json"]);
        assert_eq!(wanted, ["config.json", INDEX_FILE, "x.safetensors", "y.safetensors"]);
        let wanted = Texts::wanted(&["adapter_config.json", ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_TORCH]);
        assert_eq!(wanted, ["adapter_config.json", ADAPTER_WEIGHTS]);
        assert_eq!(Texts::wanted(&["adapter_config.json", ADAPTER_WEIGHTS_TORCH]).len(), 2);
        let shards = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"];
        assert_eq!(Texts::wanted(&shards), shards);
    }

    #[test]
    fn the_folders_of_modules_are_fetched_whole() {
        let names = ["1_Dense/model.safetensors", "1_Dense/.x", "2_Other/config.json", "modules.json", SINGLE_FILE];
        assert_eq!(Texts::wanted(&names), ["modules.json", "1_Dense/model.safetensors", SINGLE_FILE]);
    }

    #[test]
    fn fetches_what_an_export_reads() {
        for name in [
            "config.json",
            "merges.txt",
            "tokenizer.model",
            "chat_template.jinja",
            "modeling_x.py",
            "qwen.tiktoken",
            "LICENSE",
            "LICENSE.md",
            "Notice.txt",
            "USE_POLICY.md",
            "additional_chat_templates/tool.jinja",
        ] {
            assert!(travels(name), "{name}");
        }
        for name in [
            "README.md",
            "pytorch_model.bin",
            "x.pt",
            "x.gguf",
            "consolidated.safetensors",
            "model.safetensors",
            ".gitattributes",
            ".x.json",
            "onnx/config.json",
            "../x.json",
            "/x.json",
            "a\\x.json",
            "x y.json",
            "x?.json",
            "additional_chat_templates/../x.json",
            "additional_chat_templates/a/b.jinja",
        ] {
            assert!(!travels(name), "{name}");
        }
    }
}
