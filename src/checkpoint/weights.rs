//! Which files of a directory hold a model's weights: one file, the shards of an index, or numbered shards whose index was
//! lost; and whether an index and its shards agree. Opening them is `Checkpoint`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::{ConfigText, TEXT_SECTIONS};
use super::instead;
use super::names::{INDEX_FILE, SINGLE_FILE};
use super::shard_index::{ShardIndex, resolve_member};
use super::tensor::Tensor;
use crate::error::{Error, Result, escaped};

/// The weight files of a model.
#[derive(Debug)]
pub struct WeightFiles {
    /// Their names, sorted.
    pub names: Vec<String>,
    /// The index that names them, if they have one.
    pub index: Option<ShardIndex>,
    /// What is odd about them, but does no harm.
    pub warnings: Vec<String>,
}

impl WeightFiles {
    /// Finds the weight files of the model in `dir`, as transformers chooses between them. Reads the index only. A file may
    /// be a link: weights are checked for what they are.
    pub fn find(dir: &Path) -> Result<Self> {
        let (single, index_path) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        let mut warnings = Vec::new();
        if single.exists() {
            if index_path.exists() {
                warnings.push(format!("{SINGLE_FILE} and {INDEX_FILE} are both there; the index is not used"));
            }
            return Ok(Self { names: vec![SINGLE_FILE.to_owned()], index: None, warnings });
        }
        if index_path.exists() {
            let index = ShardIndex::read(&resolve_member(dir, INDEX_FILE)?)?;
            let names = index.files().into_iter().map(str::to_owned).collect();
            return Ok(Self { names, index: Some(index), warnings });
        }
        match Numbered::among(safetensors_in(dir)?.iter().map(String::as_str)) {
            Numbered::Complete(names) => {
                warnings.push(format!(
                    "{INDEX_FILE} is missing; all {} numbered shards are there and are read",
                    names.len()
                ));
                Ok(Self { names, index: None, warnings })
            }
            Numbered::Lacking { name, of } => Err(Error::malformed(
                dir,
                format!("holds no {INDEX_FILE}, and of its {of} numbered shards {} is missing", escaped(&name)),
                "download the missing shard, and the index, from where the others came from",
            )),
            Numbered::None => Err(no_weights(dir)),
        }
    }
}

/// Files `STEM-00001-of-0000N.safetensors`.
pub(super) enum Numbered {
    None,
    /// All of one set.
    Complete(Vec<String>),
    /// A set with a gap.
    Lacking {
        name: String,
        of: usize,
    },
}

/// Most shards of a set that is searched for gaps.
const MAX_SHARDS: usize = 100_000;

impl Numbered {
    /// The set among the files of these names, if there is just one.
    pub(super) fn among<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut sets: BTreeMap<(&str, usize), BTreeSet<usize>> = BTreeMap::new();
        for (stem, number, of) in names.filter_map(parse_numbered) {
            sets.entry((stem, of)).or_default().insert(number);
        }
        let mut sets = sets.into_iter();
        // Two sets are two exports in one directory; which is meant can't be told.
        let (Some(((stem, of), found)), None) = (sets.next(), sets.next()) else { return Self::None };
        let name = |number: usize| format!("{stem}-{number:05}-of-{of:05}.safetensors");
        match (1..=of).find(|number| !found.contains(number)) {
            Some(missing) => Self::Lacking { name: name(missing), of },
            None => Self::Complete((1..=of).map(name).collect()),
        }
    }
}

/// Stem, number and count of a shard's name.
fn parse_numbered(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| {
        (digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse::<usize>().ok())?
    };
    let (number, of) = (parse(number)?, parse(of)?);
    (1..=of).contains(&number).then_some((stem, number, of)).filter(|_| of <= MAX_SHARDS)
}

/// Names of the `*.safetensors` files in `dir`, sorted.
fn safetensors_in(dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            names.insert(name);
        }
    }
    Ok(names)
}

/// `*.safetensors` files in `dir` that are not in `used`: some loaders read every one that they find.
pub fn stale_shards(dir: &Path, used: &[String]) -> Result<Vec<String>> {
    Ok(safetensors_in(dir)?.into_iter().filter(|name| !used.contains(name)).map(|name| escaped(&name)).collect())
}

/// Says what is there instead of safetensors, and what to do about it.
fn no_weights(dir: &Path) -> Error {
    let is_dangling = |name: &&str| dir.join(name).is_symlink();
    if let Some(name) = [SINGLE_FILE, INDEX_FILE].into_iter().find(is_dangling) {
        return Error::link_to_nothing(&dir.join(name));
    }
    let problem = format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}");
    if let Some(remedy) = instead::adapter(dir) {
        return Error::malformed(dir, problem, remedy);
    }
    let names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    if let Some(remedy) = instead::remedy_for(&names.iter().map(String::as_str)) {
        return Error::malformed(dir, problem, remedy);
    }
    let names = safetensors_in(dir).unwrap_or_default();
    match (names.first(), names.len()) {
        (Some(name), 1) => Error::malformed(dir, format!("{problem}, but {}", escaped(name)), instead::only(dir, name)),
        (Some(name), count) => Error::malformed(
            dir,
            format!("{problem}, but {count} files such as {}", escaped(name)),
            format!("restore {INDEX_FILE}, which says which of them are the model"),
        ),
        (None, _) => Error::malformed(dir, problem, "give the directory that holds the base model's weights"),
    }
}

/// Holds the index against the headers, both ways. Returns what loaders pass over: names without a tensor, if the model
/// that config.json describes has no use for them.
pub(super) fn check_index(
    path: &Path,
    index: &ShardIndex,
    tensors: &BTreeMap<String, Tensor>,
    config: Option<&ConfigText>,
) -> Result<Option<String>> {
    const REMEDY: &str = "the shards and the index are from different exports: download the model again";
    let mut absent = Vec::new();
    for (name, file) in &index.weight_map {
        match tensors.get(name) {
            Some(tensor) if tensor.file().name() == *file => {}
            Some(tensor) => {
                let (found, file) = (escaped(&tensor.file().name()), escaped(file));
                let problem = format!("tensor {} is in {found}, not in {file}", escaped(name));
                return Err(Error::malformed(path, problem, REMEDY));
            }
            None => absent.push((name, file)),
        }
    }
    if let Some(name) = tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
        let problem = format!("lacks tensor {}, which a shard holds", escaped(name));
        return Err(Error::malformed(path, problem, REMEDY));
    }
    let layers = config.and_then(layers);
    let known: BTreeSet<String> = tensors.keys().map(|name| pattern(name)).collect();
    if let Some((name, file)) = absent.iter().find(|(name, _)| is_needed(name, layers, &known)) {
        let problem = format!("tensor {} is not in {}", escaped(name), escaped(file));
        return Err(Error::malformed(path, problem, REMEDY));
    }
    Ok(absent.first().map(|(name, _)| {
        let count = absent.len();
        format!(
            "{INDEX_FILE} names {count} tensors that no shard holds, which loaders pass over: {} ...",
            escaped(name)
        )
    }))
}

/// `num_hidden_layers` of the text model.
fn layers(config: &ConfigText) -> Option<u64> {
    let key = "num_hidden_layers";
    let mut places = TEXT_SECTIONS.iter().map(|section| vec![*section, key]).chain([vec![key]]);
    places.find_map(|keys| config.get(&keys)?.as_u64())
}

/// Whether a model lacks something without tensor `name`: it lies outside of layers, or in one of the config's layers
/// where other layers have its like. What is left are layers for other purposes (predicting several tokens).
fn is_needed(name: &str, layers: Option<u64>, known: &BTreeSet<String>) -> bool {
    let mut parts = name.split('.').skip_while(|part| !["layers", "h", "blocks"].contains(part));
    match parts.nth(1).and_then(|number| number.parse::<u64>().ok()) {
        Some(layer) => layers.is_none_or(|layers| layer < layers) && known.contains(&pattern(name)),
        None => !name.split('.').any(|part| part == "mtp"),
    }
}

/// A name with its numbers taken out.
fn pattern(name: &str) -> String {
    let plain = |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "#".to_owned() } else { part.to_owned() };
    name.split('.').map(plain).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_shards_are_a_set_or_name_what_they_lack() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| std::fs::write(dir.path().join(name), "").unwrap();
        let find = || WeightFiles::find(dir.path());
        assert!(find().unwrap_err().to_string().contains("neither"));
        put("model-00002-of-00002.safetensors");
        let error = find().unwrap_err().to_string();
        assert!(error.contains("model-00001-of-00002.safetensors is missing"), "{error}");
        put("model-00001-of-00002.safetensors");
        let found = find().unwrap();
        assert_eq!(found.names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
        assert_eq!(found.warnings.len(), 1);
        put("model-00001-of-00003.safetensors");
        assert!(find().unwrap_err().to_string().contains("3 files such as"), "two sets are a guess");
    }

    #[test]
    fn a_shard_of_another_name_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("weights.safetensors"), "").unwrap();
        let error = WeightFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("but weights.safetensors") && error.contains("rename it"), "{error}");
        for bad in ["model-1-of-2", "model-00003-of-00002", "model-00000-of-00002", "model-0000x-of-00002"] {
            assert_eq!(parse_numbered(&format!("{bad}.safetensors")), None, "{bad}");
        }
    }

    #[test]
    fn a_link_to_nothing_is_no_weight_to_rename() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("gone", dir.path().join(SINGLE_FILE)).unwrap();
        let error = WeightFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: is a link to nothing") && !error.contains("rename"), "{error}");
    }

    #[test]
    fn a_model_needs_what_its_other_layers_have() {
        let known = ["model.layers.#.mlp.up.weight".to_owned()].into();
        let needed = |name: &str, layers| is_needed(name, layers, &known);
        assert!(needed("model.layers.1.mlp.up.weight", Some(2)) && needed("lm_head.weight", Some(2)));
        assert!(!needed("model.layers.2.mlp.up.weight", Some(2)), "a layer more than config.json has");
        assert!(!needed("model.layers.1.mtp.weight", Some(2)) && !needed("mtp.norm.weight", None));
        assert!(needed("model.layers.9.mlp.up.weight", None), "without a config, a hole is a hole");
    }
}
