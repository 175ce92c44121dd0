//! Reading a model: its directory, its safetensors files (mapped), their index, config.json and companion files.
//! Knows nothing of LoRA.

mod companion;
mod config;
mod download;
mod header;
mod hub;
mod mapping;
mod open;
mod order;
mod shard_index;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;

pub use companion::{Companion, CompanionSource, companions, lint_companions, tokenizer_files};
pub use config::{ConfigText, TEXT_SECTIONS};
pub use header::{BadHeader, Header, MAX_HEADER_LEN, MAX_TENSORS, TensorInfo};
pub use hub::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Located, Locator};
pub use mapping::{LOST_MAPPING_EXIT, Mapping, prepare_signals, report_lost_mappings};
pub use open::{open_regular, read_small, read_text, read_text_if_there};
pub use order::compare as compare_names;
pub use shard_index::{INDEX_FILE, SINGLE_FILE, ShardIndex, resolve_member};

use crate::error::{Error, Result, escaped};

/// One mapped safetensors file with its checked header.
#[derive(Debug)]
pub struct SafetensorsFile {
    mapping: Mapping,
    header: Header,
}

impl SafetensorsFile {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let mapping = Mapping::open(path)?;
        let header = Header::parse(mapping.bytes()).map_err(|e| {
            Error::malformed(path, escaped(&e.to_string()), "download or save the file again: it is damaged or hostile")
        })?;
        Ok(Arc::new(Self { mapping, header }))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.mapping.path()
    }

    /// The file's name without its directory.
    pub fn name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    /// See [`Mapping::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.mapping.check_unchanged()
    }

    /// Handles for all tensors, in the order of their bytes.
    pub fn tensors(self: &Arc<Self>) -> impl Iterator<Item = Tensor> {
        let file = Arc::clone(self);
        (0..self.header.tensors.len()).map(move |index| Tensor { file: Arc::clone(&file), index })
    }
}

/// Unmaps the pages of files that won't be read again, with at most `jobs` threads.
pub(crate) fn release<'f>(files: impl Iterator<Item = &'f Arc<SafetensorsFile>>, jobs: usize) {
    mapping::release(&files.map(|file| &file.mapping).collect::<Vec<_>>(), jobs);
}

/// A cheap handle for one tensor of a mapped file.
#[derive(Debug, Clone)]
pub struct Tensor {
    file: Arc<SafetensorsFile>,
    index: usize,
}

impl Tensor {
    fn info(&self) -> &TensorInfo {
        &self.file.header.tensors[self.index]
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.info().name
    }

    /// Type of an element.
    pub fn dtype(&self) -> Dtype {
        self.info().dtype
    }

    /// Lengths of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.info().shape
    }

    /// Number of elements. The header's check proved that the product does not overflow.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The bytes, little endian, in row-major order.
    pub fn bytes(&self) -> &[u8] {
        let TensorInfo { start, end, .. } = *self.info();
        &self.file.mapping.bytes()[start..end]
    }

    /// The file that holds the tensor.
    pub fn file(&self) -> &Arc<SafetensorsFile> {
        &self.file
    }

    /// Asks the system to map the tensor's bytes `start..start + len` at once.
    pub fn prefetch(&self, start: usize, len: usize) {
        self.file.mapping.prefetch(self.info().start + start, len);
    }
}

/// A model on disk: every tensor by name, and its config.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model's directory.
    pub dir: PathBuf,
    /// The mapped weight files, in the order of their names.
    pub files: Vec<Arc<SafetensorsFile>>,
    /// All tensors.
    pub tensors: BTreeMap<String, Tensor>,
    /// `config.json`, if there is one.
    pub config: Option<ConfigText>,
    /// What is odd about the directory, but does no harm.
    pub warnings: Vec<String>,
}

impl Checkpoint {
    /// Opens the model in `dir`: `model.safetensors`, or the shards of `model.safetensors.index.json`, as
    /// transformers chooses between them. Reads headers only.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut warnings = Vec::new();
        let single = dir.join(SINGLE_FILE);
        let index_path = dir.join(INDEX_FILE);
        let (names, index) = if single.exists() {
            if index_path.exists() {
                warnings.push(format!("{SINGLE_FILE} and {INDEX_FILE} are both there; the index is not used"));
            }
            (vec![SINGLE_FILE.to_owned()], None)
        } else if index_path.exists() {
            let index = ShardIndex::read(&resolve_member(dir, INDEX_FILE)?)?;
            (index.files().into_iter().map(str::to_owned).collect(), Some(index))
        } else {
            return Err(no_weights(dir));
        };
        let mut files = Vec::with_capacity(names.len());
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for name in &names {
            let file = SafetensorsFile::open(&resolve_member(dir, name)?)?;
            for tensor in file.tensors() {
                if let Some(other) = tensors.insert(tensor.name().to_owned(), tensor.clone()) {
                    let problem =
                        format!("tensor {} is in {} too", escaped(tensor.name()), escaped(&other.file.name()));
                    return Err(Error::malformed(file.path(), problem, "remove the stale shard, or download it again"));
                }
            }
            files.push(file);
        }
        if let Some(index) = &index {
            check_index(&index_path, index, &tensors)?;
        }
        for stale in stale_shards(dir, &names)? {
            warnings.push(format!("{stale} belongs to no index and is not read"));
        }
        let config = match member_if_there(dir, "config.json")? {
            Some(path) => ConfigText::read(&path)?,
            None => None,
        };
        Ok(Self { dir: dir.to_owned(), files, tensors, config, warnings })
    }

    /// How the model is quantized, by its config; `None` if it isn't.
    pub fn quantization(&self) -> Option<String> {
        let config = self.config.as_ref()?.get(&["quantization_config"]).filter(|v| !v.is_null())?;
        Some(escaped(config.get("quant_method").and_then(|m| m.as_str()).unwrap_or("unknown method")))
    }

    /// How many values all tensors have.
    pub fn weights(&self) -> u64 {
        self.tensors.values().map(|t| t.shape().iter().map(|length| *length as u64).product::<u64>()).sum()
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes().len() as u64).sum()
    }
}

/// Holds the index against the headers, both ways.
fn check_index(path: &Path, index: &ShardIndex, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    const REMEDY: &str = "the shards and the index are from different exports: download the model again";
    for (name, file) in &index.weight_map {
        match tensors.get(name) {
            Some(tensor) if tensor.file.name() == *file => {}
            Some(tensor) => {
                let (found, file) = (escaped(&tensor.file.name()), escaped(file));
                let problem = format!("tensor {} is in {found}, not in {file}", escaped(name));
                return Err(Error::malformed(path, problem, REMEDY));
            }
            None => {
                return Err(Error::malformed(
                    path,
                    format!("tensor {} is not in {}", escaped(name), escaped(file)),
                    REMEDY,
                ));
            }
        }
    }
    match tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
        Some(name) => {
            Err(Error::malformed(path, format!("lacks tensor {}, which a shard holds", escaped(name)), REMEDY))
        }
        None => Ok(()),
    }
}

/// The path of file `name` of the model in `dir`, if there is one; see [`resolve_member`].
pub fn member_if_there(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    match dir.join(name).symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => resolve_member(dir, name).map(Some),
    }
}

/// `*.safetensors` files in `dir` that are not in `used`: some loaders read every one that they find.
pub fn stale_shards(dir: &Path, used: &[String]) -> Result<Vec<String>> {
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") && !used.contains(&name) {
            stale.push(escaped(&name));
        }
    }
    stale.sort();
    Ok(stale)
}

/// Says what is there instead of safetensors, and what to do about it.
fn no_weights(dir: &Path) -> Error {
    const OTHER: [(&str, &str); 6] = [
        ("adapter_config.json", "this is a LoRA adapter, not a base: pass it as --adapter"),
        ("pytorch_model.bin", "qft runs no pickle: save the model again with safe_serialization=True"),
        ("pytorch_model.bin.index.json", "qft runs no pickle: save the model again with safe_serialization=True"),
        ("tf_model.h5", "convert the TensorFlow weights to safetensors first"),
        ("flax_model.msgpack", "convert the Flax weights to safetensors first"),
        ("consolidated.safetensors", "these are Mistral's own weight names: use the Hugging Face files of the model"),
    ];
    let found = OTHER.iter().find(|(file, _)| dir.join(file).exists());
    let remedy = found.map_or("give the directory that holds the base model's weights", |(_, remedy)| *remedy);
    Error::malformed(dir, format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}"), remedy)
}
