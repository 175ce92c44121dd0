//! A model of one GGUF file, or of all parts of a split one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::file::GgufFile;
use super::read::TensorInfo;
use super::value::{Metadata, Value};
use crate::error::{Error, Result, escaped};

/// The number of a part, from 0 (u16).
pub const SPLIT_NO: &str = "split.no";
/// The number of parts (u16).
pub const SPLIT_COUNT: &str = "split.count";
/// The number of tensors in all parts (i32).
pub const SPLIT_TENSORS: &str = "split.tensors.count";

const MIXED: &str = "the parts are from different splits, or some are missing: download or convert the model again";

/// A model in GGUF.
#[derive(Debug)]
pub struct GgufModel {
    /// Its files: one, or the parts in order.
    pub files: Vec<Arc<GgufFile>>,
    /// Keys and values of the first file, without what it says about the split.
    pub metadata: Metadata,
    /// All tensors, in the order of the files and of their bytes.
    pub tensors: Vec<ModelTensor>,
}

/// A cheap handle for one tensor of a mapped file.
#[derive(Debug, Clone)]
pub struct ModelTensor {
    /// The file that holds it.
    pub file: Arc<GgufFile>,
    /// Which of the file's tensors it is.
    pub index: usize,
}

impl ModelTensor {
    /// Name, type, shape and place.
    pub fn info(&self) -> &TensorInfo {
        &self.file.tensors()[self.index]
    }

    /// Its bytes; see [`GgufFile::bytes`].
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes(self.info())
    }

    /// Asks the system to map its bytes `start..start + len` at once.
    pub fn prefetch(&self, start: usize, len: usize) {
        self.file.prefetch(self.info(), start, len);
    }
}

impl GgufModel {
    /// Opens the model in `path`, which is its file or any of its parts.
    pub fn open(path: &Path) -> Result<Self> {
        let given = GgufFile::open(path)?;
        let count = split_key(&given, SPLIT_COUNT)?.unwrap_or(0);
        // Merging parts leaves a count of 0.
        let files = if count <= 1 { vec![given] } else { open_parts(&given, count)? };
        let mut metadata = files[0].metadata().clone();
        for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS] {
            metadata.remove(key);
        }
        let tensors = all_tensors(&files)?;
        if let Some(expected) = split_key(&files[0], SPLIT_TENSORS)?.filter(|_| count > 1)
            && expected != tensors.len()
        {
            let problem = format!("says that all parts have {expected} tensors, and they have {}", tensors.len());
            return Err(Error::malformed(files[0].path(), problem, MIXED));
        }
        Ok(Self { files, metadata, tensors })
    }

    /// The models whose files lie in the directory `dir`, each once, by the names of their first files.
    pub fn all_in(dir: &Path) -> Result<Vec<Self>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let path = entry.map_err(Error::io("list", dir))?.path();
            if path.extension().is_some_and(|ending| ending == "gguf") {
                paths.push(path);
            }
        }
        paths.sort();
        let mut models: Vec<Self> = Vec::new();
        for path in paths {
            if !models.iter().any(|model| model.files.iter().any(|file| file.path() == path)) {
                models.push(Self::open(&path)?);
            }
        }
        Ok(models)
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&ModelTensor> {
        self.tensors.iter().find(|tensor| tensor.info().name == name)
    }

    /// Refuses if a file was written to since it was mapped.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged())
    }
}

/// A number that `file` gives about its split.
fn split_key(file: &GgufFile, key: &str) -> Result<Option<usize>> {
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    file.metadata()
        .get(key)
        .map(|value| {
            number(value).ok_or_else(|| Error::malformed(file.path(), format!("{key} is not a valid number"), MIXED))
        })
        .transpose()
}

/// All `count` parts of the split that `given` is one of.
fn open_parts(given: &Arc<GgufFile>, count: usize) -> Result<Vec<Arc<GgufFile>>> {
    let name = PartName::parse(&given.name()).filter(|name| name.count == count).ok_or_else(|| {
        let problem = format!("is one of {count} parts, but its name has no part number");
        Error::malformed(given.path(), problem, "name the parts NAME-00001-of-00002.gguf, as they were written")
    })?;
    let mut files: Vec<Arc<GgufFile>> = Vec::new();
    for index in 0..count {
        let path = given.path().with_file_name(PartName { index, ..name.clone() }.to_string());
        let part = if index == name.index { Arc::clone(given) } else { open_part(&path)? };
        for (key, expected) in [(SPLIT_COUNT, count), (SPLIT_NO, index)] {
            match split_key(&part, key)? {
                Some(found) if found == expected => {}
                found => {
                    let found = found.map_or_else(|| "absent".to_owned(), |found| found.to_string());
                    let problem = format!("{key} is {found}, not {expected}");
                    return Err(Error::malformed(part.path(), problem, MIXED));
                }
            }
        }
        if let Some(first) = files.first()
            && split_key(&part, SPLIT_TENSORS)? != split_key(first, SPLIT_TENSORS)?
        {
            return Err(Error::malformed(part.path(), format!("{SPLIT_TENSORS} is not that of the first part"), MIXED));
        }
        files.push(part);
    }
    Ok(files)
}

fn open_part(path: &Path) -> Result<Arc<GgufFile>> {
    if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        let problem = "is missing, though another part of its model is there";
        return Err(Error::malformed(path, problem, "put all parts of the model into one directory"));
    }
    GgufFile::open(path)
}

/// The tensors of all files; no two have one name.
fn all_tensors(files: &[Arc<GgufFile>]) -> Result<Vec<ModelTensor>> {
    let mut seen: HashMap<&str, &GgufFile> = HashMap::new();
    let mut tensors = Vec::new();
    for file in files {
        for (index, info) in file.tensors().iter().enumerate() {
            if let Some(other) = seen.insert(&info.name, file) {
                let problem = format!("tensor {} is in {} too", escaped(&info.name), escaped(&other.name()));
                return Err(Error::malformed(file.path(), problem, MIXED));
            }
            tensors.push(ModelTensor { file: Arc::clone(file), index });
        }
    }
    Ok(tensors)
}

/// The name of a part of a split model: `STEM-00001-of-00002.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    /// What comes before the numbers.
    pub stem: String,
    /// Which part, from 0; the name counts from 1.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

impl PartName {
    /// Takes a file's name apart; `None` if it isn't that of a part.
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let (index, count) = (number.parse::<usize>().ok()?.checked_sub(1)?, count.parse().ok()?);
        let part = Self { stem: stem.to_owned(), index, count };
        // Nothing but the numbers as they are written: no sign, five digits.
        (index < count && part.to_string() == name).then_some(part)
    }
}

impl std::fmt::Display for PartName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.stem, self.index + 1, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::TensorType;
    use crate::gguf::{TensorForm, lay_out};

    /// A file of one tensor, with numbers about a split: number, count, tensors.
    fn write(path: &Path, tensor: &str, split: Option<[u16; 3]>) {
        let mut metadata = Metadata::default();
        metadata.set("a", Value::string(tensor));
        for (key, value) in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].into_iter().zip(split.into_iter().flatten()) {
            metadata.set(key, Value::U16(value));
        }
        let made = lay_out(&metadata, &[TensorForm { name: tensor, shape: &[3], kind: TensorType::F32 }]).unwrap();
        let mut bytes = made.header;
        bytes.resize(made.total as usize, 0);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn names_of_parts() {
        let part = PartName::parse("a-b-00002-of-00010.gguf").unwrap();
        assert_eq!((part.stem.as_str(), part.index, part.count), ("a-b", 1, 10));
        for name in
            ["a.gguf", "a-00000-of-00001.gguf", "a-00002-of-00001.gguf", "a-1-of-2.gguf", "a-+0001-of-00002.gguf"]
        {
            assert_eq!(PartName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn opens_all_parts_from_any_and_refuses_what_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = |i: usize| dir.path().join(PartName { stem: "m".to_owned(), index: i, count: 2 }.to_string());
        let problem = |i: usize| GgufModel::open(&path(i)).unwrap_err().to_string();
        write(&path(0), "x", Some([0, 2, 2]));
        assert!(problem(0).contains("is missing"), "{}", problem(0));
        write(&path(1), "y", Some([1, 2, 2]));
        for i in [0, 1] {
            let model = GgufModel::open(&path(i)).unwrap();
            let names: Vec<_> = model.tensors.iter().map(|t| t.info().name.as_str()).collect();
            assert_eq!((names, model.metadata.len()), (vec!["x", "y"], 1));
            assert_eq!(model.metadata.get("a"), Some(&Value::string("x")));
        }
        for (tensor, split, expected) in [
            ("y", Some([0, 2, 2]), "split.no is 0, not 1"),
            ("y", Some([1, 3, 2]), "split.count is 3, not 2"),
            ("y", None, "split.count is absent"),
            ("y", Some([1, 2, 3]), "split.tensors.count"),
            ("x", Some([1, 2, 2]), "tensor x is in m-00001-of-00002.gguf too"),
        ] {
            write(&path(1), tensor, split);
            assert!(problem(0).contains(expected), "{} should mention {expected}", problem(0));
        }
        write(&path(0), "x", Some([0, 2, 3]));
        write(&path(1), "y", Some([1, 2, 3]));
        assert!(problem(1).contains("3 tensors, and they have 2"), "{}", problem(1));
        let alone = dir.path().join("alone.gguf");
        write(&alone, "x", Some([0, 2, 2]));
        assert!(GgufModel::open(&alone).unwrap_err().to_string().contains("its name has no part number"));
        write(&alone, "x", Some([0, 0, 9]));
        assert!(GgufModel::open(&alone).is_ok(), "merged parts keep such keys");
    }
}
