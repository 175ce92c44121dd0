//! Tests that the vector width, the number of rows and what lies beside a row change no byte of any type.

use proptest::prelude::*;

use super::*;

/// Finite values of all magnitudes, and runs of equal ones and zeros.
fn any_values(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        4 => -2.0f32..2.0,
        1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        1 => prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 0.5]),
    ];
    (prop::collection::vec(value, count), -60i32..60, 0..count, 0..count).prop_map(|(mut values, power, a, b)| {
        let scale = 2.0f32.powi(power);
        values.iter_mut().for_each(|v| *v = if (*v * scale).is_finite() { *v * scale } else { *v });
        let same = values[a];
        values[a.min(b)..a.max(b)].fill(same);
        values
    })
}

fn encoded(kind: TensorType, vector: Vector, values: &[f32], columns: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xaa; values.len() / kind.block_len() * kind.block_bytes()];
    encode(kind, vector, values, columns, importance, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_width_gives_the_same_bytes(
        blocks in 1usize..20,
        rows in 1usize..3,
        values in any_values(2 * 20 * 256),
        importance in prop::option::of(prop::collection::vec(0.0f32..4.0, 20 * 256)),
    ) {
        for kind in TensorType::all().filter(|kind| can_encode(*kind)) {
            let columns = blocks * kind.block_len().max(32);
            let values = &values[..rows * columns];
            let importance = importance.as_ref().map(|all| &all[..columns]);
            let expected = encoded(kind, Vector::Scalar, values, columns, importance);
            for vector in Vector::available() {
                prop_assert_eq!(&encoded(kind, vector, values, columns, importance), &expected, "{} {:?}", kind, vector);
            }
            let alone = values.chunks(columns).flat_map(|row| encoded(kind, Vector::detect(), row, columns, importance));
            prop_assert_eq!(alone.collect::<Vec<_>>(), expected, "{} row by row", kind);
        }
    }
}

#[test]
fn no_values_make_no_bytes() {
    for kind in TensorType::all() {
        assert!(encoded(kind, Vector::detect(), &[], 0, Some(&[])).is_empty());
    }
}

/// What is decoded is near what was encoded: no further than a step of the coarsest type, and half a step of `Q8_0`.
#[test]
fn what_was_encoded_decodes_to_near_values() {
    let values: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    for kind in TensorType::all().filter(|kind| can_encode(*kind)) {
        for importance in [None, Some(&values.iter().map(|v| v * v + 0.1).collect::<Vec<_>>()[..])] {
            let bytes = encoded(kind, Vector::detect(), &values, 512, importance);
            let mut back = vec![0.0; 512];
            crate::ggml::decode::decode(kind, &bytes, &mut back);
            let furthest = values.iter().zip(&back).fold(0.0, |far: f32, (a, b)| far.max((a - b).abs()));
            assert!(furthest < if kind == TensorType::Q8_0 { 0.004 } else { 0.7 }, "{kind}: {furthest}");
        }
    }
}
