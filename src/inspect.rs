//! Looking at a model, an adapter or a single safetensors file: what is in it, and statistics of its values.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value;

use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::checkpoint::{Checkpoint, ConfigText, SafetensorsFile, Tensor, compare_names};
use crate::error::{Error, Result};
use crate::export::dtype_name;
use crate::merge::Float;

/// Values that are widened at once.
const CHUNK: usize = 4096;

/// What a path turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A directory with a model.
    Model,
    /// A directory with a PEFT adapter.
    Adapter,
    /// One file.
    File,
}

/// What was found at a path.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The path.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Tensors in the order in which a model runs.
    pub tensors: Vec<TensorEntry>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Elements of all tensors.
    pub parameters: u64,
    /// `config.json` or `adapter_config.json`.
    pub config: Option<Value>,
    /// What is odd.
    pub warnings: Vec<String>,
}

/// One tensor.
#[derive(Debug, Serialize)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its type, as safetensors spells it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
    /// The file that holds it.
    pub file: String,
    /// Statistics of its values, if they were asked for and it is of floats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

/// Statistics of a tensor's values. Minimum to deviation are over the finite values, and absent if there are none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Stats {
    /// Smallest value.
    pub min: Option<f64>,
    /// Largest value.
    pub max: Option<f64>,
    /// Mean.
    pub mean: Option<f64>,
    /// Standard deviation (of the population).
    pub std: Option<f64>,
    /// Zeros, of either sign.
    pub zeros: u64,
    /// Not-a-numbers.
    pub nan: u64,
    /// Infinities.
    pub inf: u64,
}

/// Looks at `path`; with `stats`, reads every value with `jobs` threads.
pub fn inspect(path: &Path, stats: bool, jobs: usize) -> Result<Inspection> {
    let (kind, mut tensors, config, warnings) = read(path)?;
    tensors.sort_by(|a, b| compare_names(a.name(), b.name()));
    let mut found = if stats { all_stats(&tensors, jobs) } else { Vec::new() }.into_iter();
    let entry = |tensor: &Tensor| TensorEntry {
        name: tensor.name().to_owned(),
        dtype: dtype_name(tensor.dtype()),
        shape: tensor.shape().to_vec(),
        bytes: tensor.bytes().len() as u64,
        file: tensor.file().name(),
        stats: found.next().flatten(),
    };
    Ok(Inspection {
        path: path.to_owned(),
        kind,
        bytes: tensors.iter().map(|t| t.bytes().len() as u64).sum(),
        parameters: tensors.iter().map(|t| t.elements() as u64).sum(),
        tensors: tensors.iter().map(entry).collect(),
        config: config.and_then(|config| config.get(&[])),
        warnings,
    })
}

type Read = (Kind, Vec<Tensor>, Option<ConfigText>, Vec<String>);

fn read(path: &Path) -> Result<Read> {
    let meta = std::fs::metadata(path).map_err(Error::io("look at", path))?;
    if !meta.is_dir() {
        let file = SafetensorsFile::open(path)?;
        return Ok((Kind::File, file.tensors().collect(), None, file.header().lint.clone()));
    }
    if path.join(ADAPTER_CONFIG).exists() {
        let file = SafetensorsFile::open(&path.join(ADAPTER_WEIGHTS))?;
        let config = ConfigText::read(&path.join(ADAPTER_CONFIG))?;
        return Ok((Kind::Adapter, file.tensors().collect(), config, file.header().lint.clone()));
    }
    let model = Checkpoint::open(path)?;
    Ok((Kind::Model, model.tensors.into_values().collect(), model.config, model.warnings))
}

fn all_stats(tensors: &[Tensor], jobs: usize) -> Vec<Option<Stats>> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![None; tensors.len()]);
    let work = || {
        while let Some((i, tensor)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, tensors.get(i)?)))
        {
            let stats = Float::of(tensor.dtype()).map(|float| stats_of(tensor.bytes(), float));
            found.lock().unwrap_or_else(PoisonError::into_inner)[i] = stats;
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.max(1) {
            scope.spawn(work);
        }
        work();
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One pass in f64, shifted by the first finite value so that the deviation of values far from zero is not lost.
fn stats_of(bytes: &[u8], float: Float) -> Stats {
    let mut stats = Stats::default();
    let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
    let (mut count, mut shift, mut sum, mut squares) = (0u64, 0.0, 0.0, 0.0);
    let mut values = vec![0.0f32; CHUNK];
    for chunk in bytes.chunks(CHUNK * float.size()) {
        let values = &mut values[..chunk.len() / float.size()];
        float.widen(chunk, values);
        for value in values.iter() {
            if value.is_nan() {
                stats.nan += 1;
                continue;
            }
            if value.is_infinite() {
                stats.inf += 1;
                continue;
            }
            let value = f64::from(*value);
            if count == 0 {
                shift = value;
            }
            count += 1;
            stats.zeros += u64::from(value == 0.0);
            min = min.min(value);
            max = max.max(value);
            sum += value - shift;
            squares += (value - shift) * (value - shift);
        }
    }
    if count > 0 {
        let n = count as f64;
        let mean = sum / n;
        stats.min = Some(min);
        stats.max = Some(max);
        stats.mean = Some(mean + shift);
        stats.std = Some((squares / n - mean * mean).max(0.0).sqrt());
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(values: &[f32]) -> Stats {
        stats_of(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(), Float::F32)
    }

    #[test]
    fn counts_and_moments() {
        let s = stats(&[1.0, -3.0, 0.0, f32::NAN, f32::NEG_INFINITY, 2.0]);
        assert_eq!((s.min, s.max, s.mean, s.nan, s.inf, s.zeros), (Some(-3.0), Some(2.0), Some(0.0), 1, 1, 1));
        assert!((s.std.unwrap() - 3.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(stats(&[]), Stats::default());
        assert_eq!(stats(&vec![1e6; 9000]).std, Some(0.0), "far from zero");
    }
}
