//! The three float types of weights: exact widening to f32 and one rounding back (to nearest, ties to even).

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

/// A float type that qft merges and casts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// 8 exponent bits, 7 mantissa bits.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

/// What makes a model of the three types out of one of others.
pub(crate) const TO_FLOATS: &str = "save a copy of the model in bf16 with transformers: \
                                    from_pretrained(DIR, dtype=\"bfloat16\").save_pretrained(COPY)";

/// The types with the names that they go by: safetensors, the command line, config.json.
const TYPES: [(Float, Dtype, &str, &str); 3] = [
    (Float::Bf16, Dtype::BF16, "bf16", "bfloat16"),
    (Float::F16, Dtype::F16, "f16", "float16"),
    (Float::F32, Dtype::F32, "f32", "float32"),
];

impl Float {
    /// The float type of a tensor, if it is one of the three.
    pub fn of(dtype: Dtype) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == dtype).map(|row| row.0)
    }

    fn row(self) -> &'static (Float, Dtype, &'static str, &'static str) {
        &TYPES[self as usize]
    }

    /// Its safetensors type.
    pub fn dtype(self) -> Dtype {
        self.row().1
    }

    /// Its name on the command line: "bf16".
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Its name in config.json: "bfloat16".
    pub fn config_name(self) -> &'static str {
        self.row().3
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Widens little-endian values exactly. `bytes` holds `out.len()` values.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Bf16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16_to_f32(u16::from_le_bytes(*b));
                }
            }
            Self::F16 => {
                // half converts eight at a time where the processor can.
                let mut halves = [f16::ZERO; 64];
                for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                    let halves = &mut halves[..out.len()];
                    for (h, b) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *h = f16::from_le_bytes(*b);
                    }
                    halves.convert_to_f32_slice(out);
                }
            }
            Self::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
        }
    }

    /// Rounds to little-endian values. `out` takes `values.len()` of them. A NaN stays a NaN, too large becomes
    /// infinite.
    pub fn narrow(self, values: &[f32], out: &mut [u8]) {
        match self {
            Self::Bf16 => {
                for (v, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = f32_to_bf16(*v).to_le_bytes();
                }
            }
            Self::F16 => {
                let mut halves = [f16::ZERO; 64];
                for (values, out) in values.chunks(64).zip(out.chunks_mut(128)) {
                    let halves = &mut halves[..values.len()];
                    halves.convert_from_f32_slice(values);
                    for (h, out) in halves.iter().zip(out.as_chunks_mut::<2>().0) {
                        *out = h.to_le_bytes();
                    }
                }
            }
            Self::F32 => {
                for (v, out) in values.iter().zip(out.as_chunks_mut::<4>().0) {
                    *out = v.to_le_bytes();
                }
            }
        }
    }

    /// One value, widened.
    pub fn widen_one(self, bytes: &[u8]) -> f32 {
        let mut out = [0.0];
        self.widen(bytes, &mut out);
        out[0]
    }

    /// The largest finite value.
    pub fn max(self) -> f32 {
        match self {
            Self::Bf16 => bf16::MAX.to_f32(),
            Self::F16 => f16::MAX.to_f32(),
            Self::F32 => f32::MAX,
        }
    }

    /// Whether rounding `value`, which is finite, gives infinity.
    pub fn overflows(self, value: f32) -> bool {
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..self.size()];
        self.narrow(&[value], bytes);
        value.is_finite() && !self.widen_one(bytes).is_finite()
    }
}

impl std::str::FromStr for Float {
    type Err = String;

    /// Takes the names of the command line, of config.json and of torch (`torch.bfloat16`, `half`, `fp16`).
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let name = match lower.trim_start_matches("torch.") {
            "fp16" | "half" => "f16",
            "fp32" | "float" => "f32",
            name => name,
        };
        let found = TYPES.iter().find(|row| row.2 == name || row.3 == name).map(|row| row.0);
        found.ok_or_else(|| "choose bf16, f16 or f32".to_owned())
    }
}

/// Exact.
#[inline(always)]
pub(super) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Round to nearest, ties to even; branch-free, so that loops over it become vector code.
#[inline(always)]
pub(super) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet_nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bf16 and f16 value, and the f32 neighbours of every rounding boundary, against `half`'s scalar code.
    #[test]
    fn rounds_as_half_does_at_every_boundary() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (bf16_to_f32(bits), bf16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
            let middle = (u32::from(bits) << 16) | 0x8000;
            // bf16 rounds at these, f16 at others: both kinds are among them.
            for near in
                [middle - 1, middle, middle + 1, middle ^ 0x8000, middle ^ 0x9000, middle ^ 0x9001, middle ^ 0x8fff]
            {
                let value = f32::from_bits(near);
                assert_eq!(f32_to_bf16(value), bf16::from_f32(value).to_bits(), "{near:#x}");
                let mut out = [0; 2];
                Float::F16.narrow(&[value], &mut out);
                assert_eq!(u16::from_le_bytes(out), f16::from_f32_const(value).to_bits(), "{near:#x}");
            }
        }
    }

    #[test]
    fn widens_and_narrows_any_length() {
        for float in [Float::Bf16, Float::F16, Float::F32] {
            for n in [0, 1, 7, 63, 64, 65, 200] {
                let values: Vec<f32> = (0..n).map(|i| i as f32 - 40.0).collect();
                let mut bytes = vec![0; n * float.size()];
                float.narrow(&values, &mut bytes);
                let mut back = vec![0.0; n];
                float.widen(&bytes, &mut back);
                assert_eq!(values, back);
            }
        }
    }

    #[test]
    fn overflow_is_what_rounds_to_infinity() {
        assert!(!Float::F16.overflows(65519.0) && Float::F16.overflows(65520.0));
        assert!(Float::Bf16.overflows(f32::MAX) && !Float::F32.overflows(f32::MAX));
        assert!(!Float::F16.overflows(f32::INFINITY), "it is infinite already");
    }
}
