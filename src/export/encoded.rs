//! A GGUF file as a work: any range of it, from merged, made or stored values, encoded as they are asked for.

mod card;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::block::{MergedTensor, Parts, Ready};
use crate::adapter::TensorSource;
use crate::digest::{Hasher, Hex};
use crate::error::{Error, ErrorKind, Result, escaped};
use crate::ggml::decode::decode;
use crate::ggml::encode::encode;
use crate::ggml::{ErrorSums, Quality, TensorType, first_bad_scale};
use crate::gguf::ModelTensor;
use crate::gpu::{Assist, EncoderKind, Resident, source_row};
use crate::merge::{Float, Overflow, Vector};
use crate::stream::Work;

/// Elements that are worked on at once, unless a row that must be whole is longer: they fit the second-level cache.
const CHUNK: usize = 1 << 15;

/// A planned GGUF file.
#[derive(Debug)]
pub struct GgufPart {
    /// `model-Q8_0.gguf`; of a model in several files, with the number of the part.
    pub name: String,
    /// Everything before the tensors' bytes, padded.
    pub header: Vec<u8>,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<EncodedTensor>,
    /// Bytes of the whole file.
    pub len: u64,
}

impl GgufPart {
    /// A digest of all that decides the file's bytes, but for the values.
    pub(super) fn identity(&self) -> Hex {
        let mut hasher = Hasher::sha256();
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        hasher.update(self.name.as_bytes());
        hasher.update(&self.header);
        for tensor in &self.tensors {
            if let Values::Merged { name, dtype, heads, .. } = &tensor.values {
                hasher.update(format!("{name} {dtype:?} {heads:?}").as_bytes());
            }
            let weights = tensor.importance.iter().flatten();
            weights.for_each(|weight| hasher.update(&weight.to_le_bytes()));
        }
        hasher.finish()
    }
}

/// A tensor in its place in a GGUF file.
#[derive(Debug)]
pub struct EncodedTensor {
    /// As llama.cpp calls it: `blk.0.attn_q.weight`.
    pub name: String,
    /// Its shape, outermost axis first.
    pub shape: Vec<usize>,
    /// How its values are encoded.
    pub kind: TensorType,
    /// The type that it would have if its rows held a whole number of that type's blocks.
    pub instead_of: Option<TensorType>,
    /// Where its values come from.
    pub values: Values,
    /// A weight for each column of each matrix, from an imatrix; `None` for equal ones.
    pub importance: Option<Vec<f32>>,
    /// Its first byte, counted from the start of the file.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// Where the values of a tensor come from.
#[derive(Debug)]
pub enum Values {
    /// A tensor of the base with its changes, rounded to the type that a safetensors shard would hold.
    Merged {
        /// Its name in the Hugging Face model.
        name: String,
        /// What it is made of.
        source: Box<TensorSource>,
        /// That type.
        dtype: Dtype,
        /// Rows are reordered as that many heads, for llama.cpp's rotary embedding.
        heads: Option<usize>,
    },
    /// Values that the conversion makes.
    Made(Vec<f32>),
    /// A tensor of another GGUF file.
    Stored(ModelTensor),
}

impl EncodedTensor {
    /// Length of a row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// The encoders that `parts` need.
pub(super) fn encoders<'p>(parts: impl Iterator<Item = &'p GgufPart>) -> Vec<EncoderKind> {
    let encoder = |tensor: &EncodedTensor| EncoderKind { kind: tensor.kind, weighted: tensor.importance.is_some() };
    let mut encoders: Vec<_> = parts.flat_map(|part| &part.tensors).map(encoder).collect();
    encoders.sort();
    encoders.dedup();
    encoders
}

/// The float type that a GGUF type is, if it is one of qft's three.
pub(super) fn float_of(kind: TensorType) -> Option<Float> {
    match kind {
        TensorType::F32 => Some(Float::F32),
        TensorType::F16 => Some(Float::F16),
        TensorType::BF16 => Some(Float::Bf16),
        _ => None,
    }
}

/// The GGUF type that is a float type.
pub(super) fn float_kind(float: Float) -> TensorType {
    match float {
        Float::F32 => TensorType::F32,
        Float::F16 => TensorType::F16,
        Float::Bf16 => TensorType::BF16,
    }
}

/// A GGUF file, ready to be written.
pub(super) struct GgufWork<'a> {
    part: &'a GgufPart,
    output: usize,
    parts: Parts<'a>,
    encoders: Vec<Encoder<'a>>,
}

impl<'a> GgufWork<'a> {
    /// The file `part` of the job's output number `output`; with `measured`, its record says how good the encoding is.
    pub(super) fn new(
        part: &'a GgufPart,
        output: usize,
        measured: bool,
        overflow: Overflow,
        vector: Vector,
    ) -> Result<Self> {
        let parts = Parts::new(&part.header, part.tensors.iter().map(|t| (t.offset, t.len)));
        let encoder = |(i, t)| Encoder::new(t, parts.segments(i), measured, overflow, vector);
        let encoders = part.tensors.iter().enumerate().map(encoder).collect::<Result<_>>()?;
        Ok(Self { part, output, parts, encoders })
    }
}

impl Work for GgufWork<'_> {
    fn name(&self) -> &str {
        &self.part.name
    }

    fn len(&self) -> u64 {
        self.part.len
    }

    fn fill(&self, range: Range<usize>, out: &mut [u8], assist: &mut Assist<'_>) -> Result<()> {
        self.parts.fill(range, out, |i, part, out| self.encoders[i].fill(part, out, assist))
    }

    fn output(&self) -> usize {
        self.output
    }

    fn factor_bytes(&self) -> usize {
        let factor = |t: &EncodedTensor| match &t.values {
            Values::Merged { source, .. } => MergedTensor::factor_bytes(source),
            _ => 0,
        };
        self.part.tensors.iter().map(factor).max().unwrap_or(0)
    }

    /// Quality by tensor, where it was measured.
    fn record(&self) -> Value {
        let measured = |encoder: &Encoder<'_>| Some((encoder.tensor.name.clone(), json!(encoder.quality()?)));
        Value::Object(self.encoders.iter().filter_map(measured).collect())
    }
}

/// What a tensor's values are read from.
enum Reader<'a> {
    Merged { merged: MergedTensor<'a>, float: Float, heads: Option<usize> },
    Made(&'a [f32]),
    Stored(&'a ModelTensor),
}

/// The same, for one use.
enum Source<'t, 'a> {
    Merged(Ready<'t, 'a>, Float, Option<usize>),
    Made(&'a [f32]),
    Stored(&'a ModelTensor),
}

/// One tensor, encoded as it is asked for.
pub(crate) struct Encoder<'a> {
    tensor: &'a EncodedTensor,
    reader: Reader<'a>,
    /// Elements that are encoded together: a block, or a row where an importance weighs its columns.
    unit: usize,
    overflow: Overflow,
    vector: Vector,
    /// Error sums by the first byte of the range that they were made for; absent if they are not wanted.
    sums: Option<Mutex<BTreeMap<usize, ErrorSums>>>,
    /// The importance on the GPUs.
    importance: Resident,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(
        tensor: &'a EncodedTensor,
        uses: usize,
        measured: bool,
        overflow: Overflow,
        vector: Vector,
    ) -> Result<Self> {
        let (reader, source) = match &tensor.values {
            Values::Merged { name, source, dtype, heads } => {
                let float = Float::of(*dtype).ok_or_else(|| no_floats(name, *dtype))?;
                let merged = MergedTensor::new((name, source, *dtype), uses, overflow, vector);
                (Reader::Merged { merged, float, heads: *heads }, float_kind(float))
            }
            Values::Made(values) => (Reader::Made(values), TensorType::F32),
            Values::Stored(stored) => (Reader::Stored(stored), stored.info().kind),
        };
        // Block lengths are powers of two, and rows hold whole blocks of either type.
        let block = tensor.kind.block_len().max(source.block_len());
        let unit = if tensor.importance.is_some() { tensor.columns() } else { block };
        let sums = (measured && tensor.kind != source && tensor.kind != TensorType::F32).then(Mutex::default);
        Ok(Self { tensor, reader, unit, overflow, vector, sums, importance: Resident::default() })
    }

    /// How good what was encoded so far is, if that was measured.
    pub(crate) fn quality(&self) -> Option<Quality> {
        let sums = self.sums.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        // In the order of the tensor's bytes, so that the sums don't depend on who came first.
        let all = sums.values().fold(ErrorSums::default(), |all, part| all.and(*part));
        // A tensor that was copied has no errors, and one with values that aren't finite has no figures.
        Some(all).filter(|all| !all.is_empty()).map(|all| all.quality()).filter(Quality::is_finite)
    }

    /// Writes bytes `range` of the tensor to `out`.
    pub(crate) fn fill(&self, range: Range<usize>, out: &mut [u8], assist: &mut Assist<'_>) -> Result<()> {
        match &self.reader {
            Reader::Stored(stored) if stored.info().kind == self.tensor.kind => {
                stored.prefetch(range.start, range.len());
                out.copy_from_slice(&stored.bytes()[range]);
                return Ok(());
            }
            Reader::Merged { merged, float, heads: None } if float_of(self.tensor.kind) == Some(*float) => {
                let element = float.size();
                if range.start.is_multiple_of(element) && range.end.is_multiple_of(element) {
                    return merged.fill(range, out, assist);
                }
            }
            _ => {}
        }
        let kind = self.tensor.kind;
        let unit_bytes = self.unit / kind.block_len() * kind.block_bytes();
        let units = range.start / unit_bytes..range.end.div_ceil(unit_bytes);
        let step = (CHUNK / self.unit).max(1);
        let mut scratch = Scratch::default();
        let mut sums = ErrorSums::default();
        let source = match &self.reader {
            Reader::Merged { merged, float, heads } => Source::Merged(merged.ready()?, *float, *heads),
            Reader::Made(values) => Source::Made(values),
            Reader::Stored(stored) => Source::Stored(stored),
        };
        let place = |units: Range<usize>| {
            let bytes = units.start * unit_bytes..units.end * unit_bytes;
            let wanted = range.start.max(bytes.start)..range.end.min(bytes.end);
            (bytes, wanted.clone(), wanted.start - range.start..wanted.end - range.start)
        };
        let mut next = units.start;
        // On a GPU, as many chunks at once as it takes.
        let at_once = assist.capacity().unwrap_or(0) / (step * self.unit) * step;
        while at_once > 0 && next < units.end {
            let several = next..units.end.min(next + at_once);
            let (bytes, wanted, place) = place(several.clone());
            let wanted = wanted.start - bytes.start..wanted.end - bytes.start;
            let Some(found) =
                self.encode_on_card(&source, several.clone(), wanted, step, &mut scratch, &mut out[place], assist)
            else {
                break;
            };
            sums = found.into_iter().fold(sums, ErrorSums::and);
            next = several.end;
        }
        for first in (next..units.end).step_by(step) {
            let count = step.min(units.end - first);
            let elements = first * self.unit..(first + count) * self.unit;
            let (bytes, wanted, place) = place(first..first + count);
            self.read(&source, elements.clone(), &mut scratch)?;
            if wanted == bytes {
                self.encode(elements.start, &scratch.values, &mut out[place.clone()])?;
                self.measure(&out[place], 0, &mut scratch.decoded, &scratch.values, &mut sums);
            } else {
                scratch.encoded.resize(bytes.len(), 0);
                self.encode(elements.start, &scratch.values, &mut scratch.encoded)?;
                out[place].copy_from_slice(&scratch.encoded[wanted.start - bytes.start..wanted.end - bytes.start]);
                // A unit counts where its first byte is wanted.
                let before = (wanted.start - bytes.start).div_ceil(unit_bytes);
                self.measure(&scratch.encoded, before, &mut scratch.decoded, &scratch.values, &mut sums);
            }
        }
        if let Some(all) = &self.sums {
            all.lock().unwrap_or_else(PoisonError::into_inner).insert(range.start, sums);
        }
        Ok(())
    }

    /// Rows of each matrix of a stack of experts, or of the only one.
    fn rows_per_matrix(&self) -> usize {
        self.tensor.shape.iter().rev().nth(1).copied().unwrap_or(1).max(1)
    }

    /// Reads `elements` into `scratch.values`.
    fn read(&self, source: &Source<'_, 'a>, elements: Range<usize>, scratch: &mut Scratch) -> Result<()> {
        scratch.values.resize(elements.len(), 0.0);
        let values = &mut scratch.values[..];
        match source {
            Source::Made(made) => values.copy_from_slice(&made[elements]),
            Source::Stored(stored) => {
                let kind = stored.info().kind;
                let place = |element: usize| element / kind.block_len() * kind.block_bytes();
                let bytes = place(elements.start)..place(elements.end);
                stored.prefetch(bytes.start, bytes.len());
                decode(kind, &stored.bytes()[bytes], values);
            }
            Source::Merged(ready, float, heads) => {
                let size = float.size();
                scratch.bytes.resize(elements.len() * size, 0);
                match heads {
                    None => ready.fill(elements.start * size..elements.end * size, &mut scratch.bytes)?,
                    Some(heads) => self.gather(ready, *float, *heads, elements, &mut scratch.bytes)?,
                }
                float.widen(&scratch.bytes, values);
            }
        }
        Ok(())
    }

    /// Reads `elements` of a tensor whose rows are reordered as `heads` heads into `bytes`.
    fn gather(
        &self,
        ready: &Ready<'_, 'a>,
        float: Float,
        heads: usize,
        elements: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let size = float.size();
        bytes.resize(elements.len() * size, 0);
        let (rows, columns) = self.matrix();
        let mut at = elements.start;
        while at < elements.end {
            let (row, column) = (at / columns, at % columns);
            let taken = (columns - column).min(elements.end - at);
            let from = source_row(row, rows, heads) * columns + column;
            let place = (at - elements.start) * size..(at - elements.start + taken) * size;
            ready.fill(from * size..(from + taken) * size, &mut bytes[place])?;
            at += taken;
        }
        Ok(())
    }

    /// Rows, and values of a row, of a tensor whose rows are reordered.
    fn matrix(&self) -> (usize, usize) {
        let rows = self.tensor.shape.first().copied().unwrap_or(1);
        (rows, self.tensor.shape.iter().skip(1).product::<usize>().max(1))
    }

    /// Encodes `values`, which begin at element `start` of the tensor.
    fn encode(&self, start: usize, values: &[f32], out: &mut [u8]) -> Result<()> {
        let kind = self.tensor.kind;
        let at = |i: usize| {
            let columns = self.tensor.columns().max(1);
            (((start + i) / columns) as u64, ((start + i) % columns) as u64)
        };
        if let Some(float) = float_of(kind) {
            let beyond = |v: &f32| v.abs() > float.max() && float.overflows(*v);
            match values.iter().position(beyond) {
                None => float.narrow(values, out),
                Some(i) if self.overflow == Overflow::Refuse => {
                    let ((row, column), tensor) = (at(i), self.tensor.name.clone());
                    let (value, dtype) = (values[i], kind.name());
                    return Err(Error::Overflow { tensor, row, column, value, dtype, can_clamp: true });
                }
                Some(_) => {
                    let clamp = |v: &f32| if v.is_finite() { v.clamp(-float.max(), float.max()) } else { *v };
                    float.narrow(&values.iter().map(clamp).collect::<Vec<f32>>(), out);
                }
            }
            return Ok(());
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let (row, column) = at(i);
            return Err(Error::NotFinite { tensor: self.tensor.name.clone(), row, column, value: values[i] });
        }
        let columns = if self.tensor.importance.is_some() { self.unit } else { values.len() };
        match &self.tensor.importance {
            None => encode(kind, self.vector, values, columns, None, out),
            Some(importance) => {
                let rows_of_matrix = self.rows_per_matrix();
                let row_bytes = out.len() / (values.len() / columns).max(1);
                let rows = values.chunks_exact(columns).zip(out.chunks_exact_mut(row_bytes));
                for (i, (values, out)) in rows.enumerate() {
                    // One row of weights for each matrix of a stack of experts, or one for all.
                    let matrix = (start / columns + i) / rows_of_matrix * columns % importance.len().max(1);
                    encode(kind, self.vector, values, columns, Some(&importance[matrix..matrix + columns]), out);
                }
            }
        }
        match first_bad_scale(kind, out) {
            None => Ok(()),
            Some(block) => {
                let start = block * kind.block_len();
                let magnitudes = values[start..start + kind.block_len()].iter().map(|v| v.abs()).enumerate();
                let largest = magnitudes.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(start, |(i, _)| start + i);
                let ((row, column), name, value) = (at(largest), escaped(&self.tensor.name), values[largest]);
                Err(Error::new(
                    ErrorKind::Numeric,
                    format!(
                        "tensor {name}: the value {value:e} at row {row}, column {column} is too large for a scale of \
                         {kind}"
                    ),
                    "give the tensor a type without scales, such as ⟦tensor_type NAME=bf16⟧, or correct the model",
                ))
            }
        }
    }

    /// Adds the errors of the encoded units from unit `skip` on.
    fn measure(&self, encoded: &[u8], skip: usize, decoded: &mut Vec<f32>, values: &[f32], sums: &mut ErrorSums) {
        if self.sums.is_none() {
            return;
        }
        let kind = self.tensor.kind;
        let values = &values[(skip * self.unit).min(values.len())..];
        let bytes = values.len() / kind.block_len() * kind.block_bytes();
        decoded.resize(values.len(), 0.0);
        decode(kind, &encoded[encoded.len() - bytes..], decoded);
        *sums = sums.and(ErrorSums::of(values, decoded));
    }
}

/// Memory of one call.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    values: Vec<f32>,
    encoded: Vec<u8>,
    decoded: Vec<f32>,
}

pub(super) fn no_floats(name: &str, dtype: Dtype) -> Error {
    Error::unsupported(
        format!("tensor {} is of type {dtype:?}; only BF16, F16 and F32 go into a GGUF file", escaped(name)),
        "save the model in BF16, F16 or F32; if it is quantized, give the one that it was made from",
    )
}
