//! Half precision, one number at a time, for the scales of blocks. Branch-free, so that loops over it become vector
//! code; whole slices go through `merge::Float`.

#![expect(clippy::inline_always, reason = "only what is inlined takes on the vector features of its caller")]

/// Widens the f16 with these bits. Exact.
#[inline(always)]
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    const INFINITE: u32 = 0x7c00;
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // Exponent and mantissa in the places of f32's give a value that is too small by the difference of the biases.
    let scaled = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = (magnitude << 13) | 0x7f80_0000;
    f32::from_bits(sign | if magnitude < INFINITE { scaled } else { special })
}

/// Rounds to the nearest f16, ties to even; too large becomes infinite. A NaN becomes the one that llama.cpp writes
/// for the NaNs that x86 makes: scales that overflowed.
#[inline(always)]
pub(super) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    let normal = (magnitude + 0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // 0.5's last mantissa bit is worth the smallest f16, so that the sum rounds to a multiple of it.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 113 << 23 { small } else { normal };
    let rounded = if magnitude < 0x477f_f000 { finite } else { 0x7c00 };
    (if magnitude > 0x7f80_0000 { 0xfe00 } else { sign | rounded }) as u16
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// Every f16, and every f32 at and beside the middle of two.
    #[test]
    fn converts_as_half_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
            let middle = f64::midpoint(f64::from(ours), f64::from(f16_to_f32(bits.wrapping_add(1)))) as f32;
            for value in [ours, middle, middle.next_up(), middle.next_down(), f32::from_bits(u32::from(bits) << 16)] {
                if !value.is_nan() {
                    assert_eq!(f32_to_f16(value), f16::from_f32_const(value).to_bits(), "{value:e}");
                }
            }
        }
        assert_eq!(f32_to_f16(f32::NAN), 0xfe00);
    }
}
