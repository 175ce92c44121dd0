//! Rotary embedding and attention.

use super::{Probe, Random, assert_close, assert_gradient, dot, wide};
use crate::arch::Heads;
use crate::engine::{Batch, Columns, KeysValues};

/// Rotates, and rotates back to where it was.
pub(crate) fn check_rotation<E: Probe>(engine: &E, heads: Heads, tolerance: f64) {
    let mut random = Random::new(4);
    let batch = random.batch(&[5, 1, 9], 8);
    let (rows, half) = (batch.tokens.len(), heads.size / 2);
    let qkv = random.values(rows * heads.row(), 1.0);
    let angles: Vec<f64> = (0..9 * half).map(|i| (i / half) as f64 * 0.7f64.powf((i % half) as f64)).collect();
    let tables = [f64::cos as fn(f64) -> f64, f64::sin];
    let tables = tables.map(|of| angles.iter().map(|angle| of(*angle) as f32).collect::<Vec<f32>>());
    let mut expected = wide(&qkv);
    for (row, values) in expected.chunks_mut(heads.row()).enumerate() {
        for head in values.chunks_mut(heads.size).take(heads.query + heads.key) {
            for i in 0..half {
                let angle = angles[batch.positions[row] as usize * half + i];
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }
    let (on, tables) = (engine.place(&batch).unwrap(), tables.map(|table| engine.vector(&table).unwrap()));
    let there = engine.rotate(engine.matrix(rows, heads.row(), 0, &qkv), heads, &tables, &on, false).unwrap();
    assert_close("rotate", &engine.values(&there), &expected, tolerance);
    let back = engine.rotate(there, heads, &tables, &on, true).unwrap();
    assert_close("rotate back", &engine.values(&back), &wide(&qkv), 2.0 * tolerance);
}

/// Short segments, and one that is longer than any block of queries.
pub(crate) fn check_attention<E: Probe>(engine: &E, heads: Heads, tolerance: f64) {
    for (lengths, padding) in [(vec![5, 1, 17, 2], 8), (vec![3, 293], 0)] {
        let mut random = Random::new(5);
        let batch = random.batch(&lengths, 8);
        let rows = batch.tokens.len();
        let cols = heads.query * heads.size;
        // Scores with some spread: the softmax must not be flat.
        let qkv = random.values(rows * heads.row(), 2.0);
        let dout = random.values(rows * cols, 1.0);
        let on_batch = engine.place(&batch).unwrap();
        let on = engine.matrix(rows, heads.row(), 0, &qkv);
        let (queries, seen) = (Columns::queries(&on), KeysValues::of(&on, heads));
        let (out, sums) = engine.attend(queries, seen, heads, &on_batch, padding).unwrap();
        let (expected, logs) = reference(&wide(&qkv), heads, &batch);
        assert_close("attend", &engine.values(&out), &expected, tolerance);
        assert_close("attend, logarithms", &sorted(engine.read(&sums).unwrap()), &sorted(logs), tolerance);
        let on_dout = engine.matrix(rows, cols, 0, &dout);
        let dqkv = engine.attend_back(&on_dout, &on, &out, &sums, heads, &on_batch).unwrap();
        let dout = wide(&dout);
        let segment = |row: usize| batch.starts.partition_point(|start| *start as usize <= row) - 1;
        // A value changes outputs of its own segment alone, which keeps the differences cheap.
        let found = engine.values(&dqkv);
        for one in 0..lengths.len() {
            let range = batch.starts[one] as usize..batch.starts[one + 1] as usize;
            assert_eq!((segment(range.start), segment(range.end - 1)), (one, one));
            let own = Batch { starts: vec![0, range.len() as u32], ..Batch::default() };
            let (values, douts) =
                (range.start * heads.row()..range.end * heads.row(), range.start * cols..range.end * cols);
            let loss = |x: &[f64]| dot(&dout[douts.clone()], &reference(x, heads, &own).0);
            let what = format!("attend_back, segment {one}");
            assert_gradient(&what, &found[values.clone()], &qkv[values], &mut random, tolerance, loss);
        }
    }
}

/// Queries that are the last of longer sequences, whose keys and values are kept in rows of their own: outputs are those of
/// the whole.
pub(crate) fn check_kept_keys<E: Probe>(engine: &E, heads: Heads, tolerance: f64) {
    let (lengths, known) = ([5usize, 300, 2], [3usize, 131, 0]);
    let mut random = Random::new(12);
    let whole = random.batch(&lengths, 8);
    let (cols, shared) = (heads.query * heads.size, heads.key * heads.size);
    let qkv = random.values(whole.tokens.len() * heads.row(), 2.0);
    let (all, _) = reference(&wide(&qkv), heads, &whole);
    let row = |row: usize, from: usize, len: usize| &qkv[row * heads.row() + from..][..len];

    // Keys after values, rows of no segment before each one's, and segments in another order than their queries.
    let (mut kept, mut starts) = (vec![0.0; 4 * 2 * shared], vec![0; lengths.len()]);
    for segment in [2, 0, 1] {
        starts[segment] = (kept.len() / (2 * shared)) as u32;
        for at in whole.starts[segment]..whole.starts[segment + 1] {
            kept.extend_from_slice(row(at as usize, cols + shared, shared));
            kept.extend_from_slice(row(at as usize, cols, shared));
        }
        kept.extend(vec![100.0; 2 * shared]);
    }
    let (mut batch, mut queries, mut expected) =
        (Batch { starts: vec![0], ..Batch::default() }, Vec::new(), Vec::new());
    for ((start, length), known) in whole.starts.iter().zip(lengths).zip(known) {
        for position in known..length {
            let at = *start as usize + position;
            batch.tokens.push(0);
            batch.positions.push(position as u32);
            queries.extend_from_slice(row(at, 0, cols));
            expected.extend_from_slice(&all[at * cols..][..cols]);
        }
        batch.starts.push(batch.tokens.len() as u32);
    }
    let on_queries = engine.matrix(batch.tokens.len(), cols, 16, &queries);
    let on_kept = engine.matrix(kept.len() / (2 * shared), 2 * shared, 0, &kept);
    let column = |first: usize| Columns { matrix: &on_kept, first };
    let seen = KeysValues { keys: column(shared), values: column(0), starts: Some(&starts) };
    let on_batch = engine.place(&batch).unwrap();
    let (out, _) = engine.attend(Columns::queries(&on_queries), seen, heads, &on_batch, 8).unwrap();
    assert_close("attend to kept keys", &engine.values(&out), &expected, tolerance);
    let far = [0, 0, (kept.len() / (2 * shared)) as u32];
    let seen = KeysValues { starts: Some(&far), ..seen };
    assert!(engine.attend(Columns::queries(&on_queries), seen, heads, &on_batch, 0).is_err(), "keys beyond the last");
}

/// The order of the sums is each engine's own.
fn sorted<T: PartialOrd>(mut values: Vec<T>) -> Vec<T> {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values
}

fn reference(qkv: &[f64], heads: Heads, batch: &Batch) -> (Vec<f64>, Vec<f64>) {
    let Heads { query, key, size } = heads;
    let part = |row: usize, n: usize| &qkv[row * heads.row() + n * size..][..size];
    let (mut out, mut logs) = (Vec::new(), Vec::new());
    for pair in batch.starts.windows(2) {
        for row in pair[0] as usize..pair[1] as usize {
            for head in 0..query {
                let own = head / (query / key);
                let seen = pair[0] as usize..=row;
                let scale = 1.0 / (size as f64).sqrt();
                let scores: Vec<f64> =
                    seen.clone().map(|other| dot(part(row, head), part(other, query + own)) * scale).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                logs.push(most + sum.ln());
                let start = out.len();
                out.resize(start + size, 0.0);
                for (other, score) in seen.zip(&scores) {
                    let share = (score - most).exp() / sum;
                    let value = part(other, query + key + own);
                    out[start..].iter_mut().zip(value).for_each(|(out, value)| *out += share * value);
                }
            }
        }
    }
    (out, logs)
}
