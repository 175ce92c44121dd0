//! The reverse conversion (to-hf): a GGUF model as a directory that transformers loads. The plan is made here, from
//! headers and metadata alone, and refuses whatever it can't carry over; writing it is in `run`.

mod run;
#[cfg(test)]
mod tests;
mod values;

use std::path::{Path, PathBuf};

pub use run::ToHfReport;
pub use values::GgufSource;

use crate::arch::back::{Back, EMBEDDINGS, Found, HEAD, ROPE_FREQS};
use crate::checkpoint::{Companion, tokenizer_files};
use crate::error::{Error, Result, escaped};
use crate::export::{self, DEFAULT_SHARD, OutputTensor, Shard};
use crate::ggml::decode;
use crate::gguf::to_hf::config::{self, Facts, Shape};
use crate::gguf::to_hf::keys::Keys;
use crate::gguf::to_hf::{rope, tokenizer};
use crate::gguf::{GgufModel, ModelTensor};
use crate::merge::Float;
use crate::size::ByteSize;
use crate::stream::{Overwrite, check_destination};

/// What the user chose.
#[derive(Debug, Clone)]
pub struct ToHfOptions {
    /// Most tensor bytes of a weight file.
    pub max_shard: ByteSize,
    /// Type of all weights.
    pub dtype: Float,
    /// Whether a model with a head of its own is written with the head's weight for both the head and the embeddings.
    pub tie: bool,
    /// Where the tokenizer's files are copied from, instead of being made from the file's metadata.
    pub tokenizer: Option<PathBuf>,
    /// Whether an existing destination is exchanged.
    pub overwrite: Overwrite,
}

impl Default for ToHfOptions {
    /// bf16 in files of 5 GB, head and embeddings as they are, a tokenizer made of the metadata; nothing is overwritten.
    fn default() -> Self {
        Self { max_shard: DEFAULT_SHARD, dtype: Float::Bf16, tie: false, tokenizer: None, overwrite: Overwrite::No }
    }
}

/// Everything that will be written.
#[derive(Debug)]
pub struct ToHfPlan {
    /// The directory to be.
    pub out: PathBuf,
    /// What is decoded.
    pub model: GgufModel,
    /// The safetensors files.
    pub shards: Vec<Shard<GgufSource>>,
    /// Every other file that is made: configs, the index, the tokenizer.
    pub texts: Vec<(String, Vec<u8>)>,
    /// Files that are copied.
    pub companions: Vec<Companion>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What the user chose.
    pub options: ToHfOptions,
}

impl ToHfPlan {
    /// Plans to write `model` to `out`. Reads headers and metadata only.
    ///
    /// # Errors
    ///
    /// Where `out` may not be written, and whatever of the model a directory could not hold.
    pub fn new(model: GgufModel, out: &Path, options: ToHfOptions) -> Result<Self> {
        let paths: Vec<&Path> =
            model.files.iter().map(|file| file.path()).chain(options.tokenizer.as_deref()).collect();
        let deletes = check_destination(out, &paths, options.overwrite)?;
        let deletes = deletes.iter().map(|name| {
            format!(
                "{name} will be deleted, once the new one is in place: it is not part of the model at the destination"
            )
        });
        let keys = Keys::of(&model);
        let family = Back::of(keys.text("general.architecture")?.unwrap_or("none"))?;
        let embeddings =
            model.tensor("token_embd.weight").map_or(0, |tensor| tensor.info().shape.first().copied().unwrap_or(0));
        let shape = Shape::read(keys, embeddings as u64)?;
        let stored: Vec<_> = model.tensors.iter().map(ModelTensor::info).collect();
        let stored: Vec<_> = stored.iter().map(|info| (info.name.as_str(), info.shape.as_slice())).collect();
        let (mut found, switches) = family.name_tensors(&stored, &shape.sizes)?;
        let tied = tie(&mut found, options.tie);
        let factors = model.tensor(ROPE_FREQS).map(readable_factors).transpose()?;
        let (scaling, mut warnings) = {
            let (scaling, warning) = rope::scaling(keys, factors.as_deref(), shape.sizes.head, shape.context)?;
            (scaling, deletes.chain(warning).collect::<Vec<_>>())
        };
        let facts = Facts {
            family,
            shape: &shape,
            tied,
            switches: &switches,
            theta: rope::theta(keys)?,
            scaling,
            dtype: options.dtype.config_name(),
        };
        let mut texts = vec![
            ("config.json".to_owned(), config::config(keys, &facts)?.into_bytes()),
            ("generation_config.json".to_owned(), config::generation_config(keys)?.into_bytes()),
        ];
        let companions = if let Some(dir) = &options.tokenizer {
            tokenizer_files(dir)?
        } else {
            warnings.extend(tokenizer::guessed(keys)?);
            texts.extend(tokenizer::files(keys, shape.sizes.vocab, shape.context)?);
            Vec::new()
        };
        warnings.extend(config::without_place(keys.metadata));
        let unused = config::unused_keys(keys.metadata);
        if !unused.is_empty() {
            warnings.push(format!("config.json can't express {}", unused.join(", ")));
        }
        warnings.extend(config::ids_without_token(keys.metadata));
        let shards = export::split(unplaced(found, &model, options.dtype)?, options.max_shard.0);
        texts.extend(export::index(&shards).map(|(name, text)| (name.to_owned(), text.into_bytes())));
        Ok(Self { out: out.to_owned(), shards, texts, companions, warnings, options, model })
    }

    /// Number of output tensors.
    pub fn tensors(&self) -> usize {
        self.shards.iter().map(|shard| shard.tensors.len()).sum()
    }

    /// Bytes of the whole output, a little rounded up.
    pub fn disk_bytes(&self) -> u64 {
        let texts: u64 = self.texts.iter().map(|(_, text)| text.len() as u64).sum();
        let copies: u64 = self.companions.iter().filter_map(|c| c.path.metadata().ok()).map(|m| m.len()).sum();
        self.shards.iter().map(Shard::len).sum::<u64>() + texts + copies + (1 << 16)
    }
}

/// Whether embeddings and head are one: where there is no head, or where the user wants its weight for both, since
/// quantizers give it more bits.
fn tie(found: &mut Vec<Found>, wanted: bool) -> bool {
    let Some(head) = found.iter().position(|tensor| tensor.name == HEAD) else {
        return true;
    };
    if wanted {
        let Found { index, .. } = found.remove(head);
        found.iter_mut().filter(|tensor| tensor.name == EMBEDDINGS).for_each(|tensor| tensor.index = index);
    }
    wanted
}

/// The factors of the rotary frequencies.
fn readable_factors(tensor: &ModelTensor) -> Result<Vec<f32>> {
    if decode::can_decode(tensor.info().kind) {
        return Ok(GgufSource::all(tensor));
    }
    Err(Error::unsupported(format!("{ROPE_FREQS} is of the type {}", tensor.info().kind), "use the original model"))
}

/// The tensors of the output. Refuses those that can't be decoded.
fn unplaced(found: Vec<Found>, model: &GgufModel, dtype: Float) -> Result<Vec<OutputTensor<GgufSource>>> {
    let tensors = found.into_iter().map(|Found { index, name, shape, heads }| {
        let source = GgufSource { tensor: model.tensors[index].clone(), heads };
        if !source.is_readable() {
            let info = source.tensor.info();
            return Err(Error::unsupported(
                format!("tensor {} of the type {} can't be decoded", escaped(&info.name), info.kind),
                "use a file of another type, or the original model",
            ));
        }
        Ok(OutputTensor { name, dtype: dtype.dtype(), shape, source })
    });
    tensors.collect()
}
