//! Statistics of values, of every type that becomes numbers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use half::f16;
use safetensors::Dtype;
use serde::Serialize;

use crate::ggml::{TensorType, decode};
use crate::merge::Float;

/// Values that are widened at once: whole blocks of any type.
const CHUNK: usize = 4096;

/// Statistics of a tensor's values, in f64, which rounds integers beyond 2^53. Minimum to deviation are over the finite
/// values, and absent if there are none or f64 can't hold them. A boolean is 0 or 1.
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

/// Statistics of the values of each of `tensors`, given as its bytes and what reads them.
pub(super) fn all_stats(tensors: &[(&[u8], Option<Reader>)], jobs: usize) -> Vec<Option<Stats>> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![None; tensors.len()]);
    let work = || {
        while let Some((i, (bytes, reader))) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, tensors.get(i)?)))
        {
            let stats = reader.as_ref().map(|reader| stats_of(bytes, reader));
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

/// How the bytes of a type become numbers.
pub(super) enum Reader {
    Float(Float),
    /// Blocks of a GGUF file.
    Blocks(TensorType),
    /// Each byte by its value.
    Byte(Box<[f64; 256]>),
    /// Elements of so many bytes, and what reads some.
    Plain(usize, fn(&[u8], &mut [f64])),
}

macro_rules! plain {
    ($type:ty, $to_f64:expr) => {
        Self::Plain(size_of::<$type>(), |bytes, out| {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = $to_f64(<$type>::from_le_bytes(*b));
            }
        })
    };
}

impl Reader {
    /// What reads elements of `dtype`.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        let bytes = |value: fn(u8) -> f64| Self::Byte(Box::new(std::array::from_fn(|b| value(b as u8))));
        Some(match dtype {
            Dtype::BOOL => bytes(|b| f64::from(b != 0)),
            Dtype::U8 => bytes(f64::from),
            Dtype::I8 => bytes(|b| f64::from(b.cast_signed())),
            Dtype::F8_E5M2 => bytes(|b| f16::from_bits(u16::from(b) << 8).to_f64()),
            Dtype::F8_E4M3 => bytes(|b| if b & 0x7f == 0x7f { f64::NAN } else { float8(b, 3, 7) }),
            Dtype::F8_E5M2FNUZ => bytes(|b| if b == 0x80 { f64::NAN } else { float8(b, 2, 16) }),
            Dtype::F8_E4M3FNUZ => bytes(|b| if b == 0x80 { f64::NAN } else { float8(b, 3, 8) }),
            Dtype::F8_E8M0 => bytes(|b| if b == 0xff { f64::NAN } else { f64::from(i32::from(b) - 127).exp2() }),
            Dtype::I16 => plain!(i16, f64::from),
            Dtype::U16 => plain!(u16, f64::from),
            Dtype::I32 => plain!(i32, f64::from),
            Dtype::U32 => plain!(u32, f64::from),
            Dtype::I64 => plain!(i64, |v| v as f64),
            Dtype::U64 => plain!(u64, |v| v as f64),
            Dtype::F64 => plain!(f64, f64::from),
            other => Self::Float(Float::of(other)?),
        })
    }

    /// What reads elements of `kind`.
    pub(super) fn of_gguf(kind: TensorType) -> Option<Self> {
        Self::of(match kind {
            TensorType::F32 => Dtype::F32,
            TensorType::F16 => Dtype::F16,
            TensorType::BF16 => Dtype::BF16,
            TensorType::F64 => Dtype::F64,
            TensorType::I8 => Dtype::I8,
            TensorType::I16 => Dtype::I16,
            TensorType::I32 => Dtype::I32,
            TensorType::I64 => Dtype::I64,
            _ => return decode::can_decode(kind).then_some(Self::Blocks(kind)),
        })
    }

    /// Elements of the smallest piece that is read, and its bytes.
    fn piece(&self) -> (usize, usize) {
        match self {
            Self::Float(float) => (1, float.size()),
            Self::Blocks(kind) => (kind.block_len(), kind.block_bytes()),
            Self::Byte(_) => (1, 1),
            Self::Plain(size, _) => (1, *size),
        }
    }

    /// Reads `out.len()` elements.
    fn read(&self, bytes: &[u8], out: &mut [f64]) {
        match self {
            Self::Float(float) => {
                let mut wide = [0.0f32; CHUNK];
                float.widen(bytes, &mut wide[..out.len()]);
                out.iter_mut().zip(wide).for_each(|(out, v)| *out = f64::from(v));
            }
            Self::Blocks(kind) => {
                let mut wide = [0.0f32; CHUNK];
                decode::decode(*kind, bytes, &mut wide[..out.len()]);
                out.iter_mut().zip(wide).for_each(|(out, v)| *out = f64::from(v));
            }
            Self::Byte(values) => out.iter_mut().zip(bytes).for_each(|(out, b)| *out = values[usize::from(*b)]),
            Self::Plain(_, read) => read(bytes, out),
        }
    }
}

/// A finite number of a sign bit, an exponent with `bias`, and `mantissa` bits, with gradual underflow.
fn float8(bits: u8, mantissa: u8, bias: i32) -> f64 {
    let exponent = i32::from((bits & 0x7f) >> mantissa);
    let fraction = f64::from(bits & ((1 << mantissa) - 1)) / f64::from(1 << mantissa);
    let magnitude = if exponent == 0 { fraction * 2.0 } else { 1.0 + fraction } * f64::from(exponent - bias).exp2();
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Count, mean and sum of squared deviations of some values.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = sum(values, |v| v) / count;
        Self { count, mean, squares: sum(values, |v| (v - mean) * (v - mean)) }
    }

    /// The moments of both together: Welford's update, for many values at once.
    fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        let (delta, share) = (other.mean - self.mean, other.count / count);
        Self {
            count,
            mean: self.mean + delta * share,
            squares: self.squares + other.squares + delta * delta * self.count * share,
        }
    }
}

/// The sum of `f` of `values`, in several chains, since one would wait for each addition.
fn sum(values: &[f64], f: impl Fn(f64) -> f64) -> f64 {
    let (rows, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f(*v));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f(*v)).sum::<f64>()
}

/// One pass: moments chunk by chunk, each around its own mean, so that values far from zero or from the first one lose
/// nothing.
fn stats_of(bytes: &[u8], reader: &Reader) -> Stats {
    let mut stats = Stats::default();
    let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
    let mut moments = Moments::default();
    let mut values = vec![0.0; CHUNK];
    let (len, size) = reader.piece();
    for chunk in bytes.chunks(CHUNK / len * size) {
        let values = &mut values[..chunk.len() / size * len];
        reader.read(chunk, values);
        let finite = keep_finite(values, &mut stats);
        if finite.is_empty() {
            continue;
        }
        min = finite.iter().copied().fold(min, f64::min);
        max = finite.iter().copied().fold(max, f64::max);
        moments = moments.and(Moments::of(finite));
    }
    if moments.count > 0.0 {
        let held = |value: f64| value.is_finite().then_some(value);
        (stats.min, stats.max) = (Some(min), Some(max));
        (stats.mean, stats.std) = (held(moments.mean), held((moments.squares / moments.count).sqrt()));
    }
    stats
}

/// Moves the finite values to the front and counts the others, and the zeros.
fn keep_finite<'a>(values: &'a mut [f64], stats: &mut Stats) -> &'a [f64] {
    stats.zeros += values.iter().filter(|v| **v == 0.0).count() as u64;
    if values.iter().all(|v| v.is_finite()) {
        return values;
    }
    stats.nan += values.iter().filter(|v| v.is_nan()).count() as u64;
    stats.inf += values.iter().filter(|v| v.is_infinite()).count() as u64;
    let mut kept = 0;
    for i in 0..values.len() {
        if values[i].is_finite() {
            values[kept] = values[i];
            kept += 1;
        }
    }
    &values[..kept]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(values: &[f32]) -> Stats {
        stats_as(Dtype::F32, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    fn stats_as(dtype: Dtype, bytes: &[u8]) -> Stats {
        stats_of(bytes, &Reader::of(dtype).unwrap())
    }

    #[test]
    fn counts_and_moments() {
        let s = stats(&[1.0, -3.0, 0.0, f32::NAN, f32::NEG_INFINITY, 2.0]);
        assert_eq!((s.min, s.max, s.mean, s.nan, s.inf, s.zeros), (Some(-3.0), Some(2.0), Some(0.0), 1, 1, 1));
        assert!((s.std.unwrap() - 3.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(stats(&[]), Stats::default());
        assert_eq!(stats(&[f32::NAN; 3]), Stats { nan: 3, ..Stats::default() });
        assert_eq!(stats(&vec![1e6; 9000]).std, Some(0.0), "far from zero");
    }

    #[test]
    fn an_outlier_and_a_drift_cost_no_digit() {
        let exact = |values: &[f32]| {
            let n = values.len() as f64;
            let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
            (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt()
        };
        let outlier_first = |i: u16| if i == 0 { 1e4 } else { f32::from(i % 7) * 1e-3 };
        let drift = |i: u16| 1e4 + f32::from(i) + f32::from(i % 3);
        for values in [outlier_first, drift].map(|f| (0..u16::MAX).map(f).collect::<Vec<f32>>()) {
            let ratio = stats(&values).std.unwrap() / exact(&values);
            assert!((ratio - 1.0).abs() < 1e-10, "{ratio}");
        }
    }

    #[test]
    fn every_type_of_whole_bytes_has_statistics() {
        type Case<'a> = (Dtype, &'a [u8], [f64; 3]);
        let cases: [Case<'_>; 16] = [
            (Dtype::BOOL, &[0, 1, 1, 0], [0.0, 1.0, 0.5]),
            (Dtype::U8, &[3, 255], [3.0, 255.0, 129.0]),
            (Dtype::I8, &[3, 255], [-1.0, 3.0, 1.0]),
            (Dtype::I16, &[0, 128, 2, 0], [-32768.0, 2.0, -16383.0]),
            (Dtype::U16, &[0, 128, 2, 0], [2.0, 32768.0, 16385.0]),
            (Dtype::I32, &[255, 255, 255, 255, 1, 0, 0, 0], [-1.0, 1.0, 0.0]),
            (Dtype::U32, &[255, 255, 255, 255], [4_294_967_295.0; 3]),
            (Dtype::I64, &[254, 255, 255, 255, 255, 255, 255, 255], [-2.0; 3]),
            (Dtype::U64, &[0, 0, 0, 0, 0, 0, 0, 128], [9_223_372_036_854_775_808.0; 3]),
            (Dtype::F64, &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f], [1.5; 3]),
            (Dtype::F16, &[0, 0x3c, 0, 0xc0], [-2.0, 1.0, -0.5]),
            // The largest and smallest numbers of each kind of FP8, as its definition gives them.
            (Dtype::F8_E4M3, &[0x7e, 0x01, 0x81], [-1.0 / 512.0, 448.0, 448.0 / 3.0]),
            (Dtype::F8_E5M2, &[0x7b, 0xfb], [-57344.0, 57344.0, 0.0]),
            (Dtype::F8_E4M3FNUZ, &[0x7f, 0xff], [-240.0, 240.0, 0.0]),
            (Dtype::F8_E5M2FNUZ, &[0x7f, 0xff], [-57344.0, 57344.0, 0.0]),
            (Dtype::F8_E8M0, &[127, 128], [1.0, 2.0, 1.5]),
        ];
        for (dtype, bytes, [min, max, mean]) in cases {
            let s = stats_as(dtype, bytes);
            assert_eq!((s.min, s.max, s.mean), (Some(min), Some(max), Some(mean)), "{dtype:?}");
        }
        for (dtype, nan) in [(Dtype::F8_E4M3, 0xff), (Dtype::F8_E5M2, 0x7e), (Dtype::F8_E4M3FNUZ, 0x80)] {
            assert_eq!(stats_as(dtype, &[nan, 0]).nan, 1, "{dtype:?}");
        }
        assert_eq!(stats_as(Dtype::F8_E5M2, &[0x7c, 0xfc]).inf, 2);
        assert!(Reader::of(Dtype::F4).is_none() && Reader::of(Dtype::C64).is_none());
    }
}
