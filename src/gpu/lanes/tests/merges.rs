//! Merges of every kind on a GPU: ranks, terms, DoRA, rows that are replaced or reordered, all floats, odd ranges.

use super::*;

/// A matrix of random values, stored.
struct Matrix {
    bytes: Vec<u8>,
    float: Float,
    rows: usize,
    columns: usize,
}

impl Matrix {
    fn new(seed: u64, float: Float, rows: usize, columns: usize) -> Self {
        let bytes = narrowed(float, &Random(seed).values(rows * columns));
        Self { bytes, float, rows, columns }
    }

    fn factor(&self) -> Factor<'_> {
        let layout = Layout { offset: 0, row_stride: self.columns, column_stride: 1 };
        Factor::new(&self.bytes, self.float, layout, self.rows, self.columns).unwrap()
    }

    /// The same bytes, read by columns.
    fn transposed(&self) -> Factor<'_> {
        let layout = Layout { offset: 0, row_stride: 1, column_stride: self.columns };
        Factor::new(&self.bytes, self.float, layout, self.columns, self.rows).unwrap()
    }
}

/// The shape and types of the merges of one round.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    columns: usize,
    base: Float,
    out: Float,
    factor: Float,
}

/// Calls `each` with every kind of merge of a shape: its name, the merge, and how many heads reorder its rows.
fn each_merge(shape: Shape, each: &mut dyn FnMut(&str, &Merge<'_>, Option<usize>)) {
    let Shape { rows, columns, base, out, factor } = shape;
    let weights = Matrix::new(1, base, rows, columns);
    let cast = || Merge::cast(&weights.bytes, base, out, columns, Overflow::Refuse, Vector::detect());
    each("cast", &cast(), None);
    each("cast by heads", &cast(), Some(2));
    let magnitudes = Matrix::new(2, factor, 1, rows.max(columns));
    for rank in [1, 7, 16, 33] {
        let (left, right) = (Matrix::new(3, factor, rows, rank), Matrix::new(4, factor, rank, columns));
        let (down, across) = (Matrix::new(3, factor, rank, rows), Matrix::new(4, factor, columns, rank));
        let whole = |scale| LowRank { rows: 0..rows, left: left.factor(), right: right.factor(), rank, scale };
        let low_rank = || cast().finite().add_terms(vec![whole(0.5)]);
        each(&format!("rank {rank}"), &low_rank(), None);
        each(&format!("rank {rank} by heads"), &low_rank(), Some(2));
        let transposed =
            LowRank { rows: 0..rows, left: down.transposed(), right: across.transposed(), rank, scale: -1.7 };
        each(
            &format!("rank {rank}, transposed, twice"),
            &cast().finite().add_terms(vec![whole(0.3), transposed]),
            None,
        );
        each(&format!("rank {rank}, DoRA of rows"), &low_rank().scale_to(&magnitudes.factor(), NormAxis::Row), None);
        each(
            &format!("rank {rank}, DoRA of rows by heads"),
            &low_rank().scale_to(&magnitudes.factor(), NormAxis::Row),
            Some(2),
        );
        each(
            &format!("rank {rank}, DoRA of columns"),
            &low_rank().scale_to(&magnitudes.factor(), NormAxis::Column),
            None,
        );
    }
    let rank = 5;
    let (left, right) = (Matrix::new(5, factor, rows, rank), Matrix::new(6, factor, rank, columns));
    let part = |rows: Range<usize>, scale| LowRank { rows, left: left.factor(), right: right.factor(), rank, scale };
    let third = rows / 3;
    let experts = || vec![part(0..third, 1.0), part(third..2 * third, 2.0), part(third + 1..rows, 0.125)];
    each("terms of some rows", &cast().finite().add_terms(experts()), None);
    each(
        "terms of some rows, DoRA",
        &cast().finite().add_terms(experts()).scale_to(&magnitudes.factor(), NormAxis::Row),
        Some(4),
    );
    each("DoRA alone", &cast().finite().scale_to(&magnitudes.factor(), NormAxis::Row), None);
    each("rounded first", &cast().finite().rounded_first(Float::Bf16).add_terms(experts()), None);
    each("rounded first to f16", &cast().finite().rounded_first(Float::F16).add_terms(experts()), Some(2));
    let replaced = Matrix::new(7, base, 2, columns);
    let halves = replaced.bytes.split_at(replaced.bytes.len() / 2);
    let replace = || BTreeMap::from([(1, halves.0), (rows - 1, halves.1)]);
    each("replaced rows", &cast().overwrite(replace(), base), None);
    each("replaced rows by heads", &cast().finite().add_terms(experts()).overwrite(replace(), base), Some(2));
    let dora = cast().add_terms(experts()).overwrite(replace(), base).scale_to(&magnitudes.factor(), NormAxis::Row);
    each("replaced rows, DoRA", &dora, None);
}

/// Holds blocks of a merge against the processor: ranges and encodings that the shape allows.
fn check_merge(
    lane: &mut dyn Lane,
    case: &str,
    merge: &Merge<'_>,
    heads: Option<usize>,
    wrong: &mut Vec<String>,
) -> usize {
    let (columns, len) = (merge.columns(), merge.rows() * merge.columns());
    let factors = Resident::default();
    let source = Source::Merged { merge, factors: &factors, heads };
    let mut cases = 0;
    let mut block = |elements: Range<usize>, encoding: Option<Encoding<'_>>| {
        let name = encoding.as_ref().map_or("bytes", |encoding| encoding.kind.name());
        let case = format!("{case}, {elements:?} as {name}");
        wrong.extend(check(lane, &case, &Block { source, elements, encoding, wanted: 0..0 }).err());
        cases += 1;
    };
    for elements in [0..len, 0..1, len - 1..len, len / 3..len / 3 + columns.min(3), columns / 2 + 1..len - columns / 3]
    {
        if !elements.is_empty() && elements.end <= len {
            block(elements.clone(), None);
            block(elements, Some(plain(TensorType::F32, columns)));
        }
    }
    for kind in [TensorType::BF16, TensorType::Q8_0, TensorType::Q4_K, TensorType::Q6_K] {
        let unit = kind.block_len();
        if columns.is_multiple_of(unit) {
            let measured = Some(Measured { skipped: unit, first: 0, chunk: 8192 });
            block(0..len, Some(Encoding { measured, ..plain(kind, columns) }));
            block(unit..len - 2 * unit, Some(plain(kind, columns)));
        }
    }
    cases
}

#[test]
fn merges_give_the_processors_bytes() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for base in FLOATS {
        for out in FLOATS {
            for (rows, columns) in [(24, 512), (36, 37), (16, 8), (48, 1), (8, 2056)] {
                let factor = if rows == 24 { Float::F32 } else { Float::Bf16 };
                each_merge(Shape { rows, columns, base, out, factor }, &mut |name, merge, heads| {
                    let case = format!("{name}, {rows} x {columns} of {} to {}", base.name(), out.name());
                    cases += check_merge(&mut *lane, &case, merge, heads, &mut wrong);
                });
            }
        }
    }
    settle(&wrong, cases);
}

/// As large as layers are, and by several lanes that share what stays on the GPU.
#[test]
fn lanes_share_the_factors_of_a_large_merge() {
    let Some(card) = card() else { return };
    let (rows, columns, rank) = (1536, 4096, 16);
    let weights = Matrix::new(11, Float::Bf16, rows, columns);
    let (left, right) = (Matrix::new(12, Float::F32, rows, rank), Matrix::new(13, Float::F32, rank, columns));
    let magnitude = Matrix::new(14, Float::F32, 1, rows);
    let terms = || vec![LowRank { rows: 0..rows, left: left.factor(), right: right.factor(), rank, scale: 0.25 }];
    let cast = || Merge::cast(&weights.bytes, Float::Bf16, Float::Bf16, columns, Overflow::Refuse, Vector::detect());
    let merges = [
        ("LoRA", cast().finite().add_terms(terms())),
        ("DoRA", cast().finite().add_terms(terms()).scale_to(&magnitude.factor(), NormAxis::Row)),
    ];
    let weights: Vec<f32> = Random(15).values(columns).iter().map(|v| v * v).collect();
    for (name, merge) in &merges {
        let (factors, resident) = (Resident::default(), Resident::default());
        std::thread::scope(|scope| {
            for number in 0..card.lanes().min(4) {
                let (factors, resident, weights) = (&factors, &resident, &weights);
                scope.spawn(move || {
                    let mut lane = card.lane().unwrap();
                    let rows = number * rows / 4..(number + 1) * rows / 4;
                    let importance = Some(Importance { weights, rows_per_matrix: 1536, resident });
                    let kind = [TensorType::Q4_K, TensorType::Q6_K, TensorType::Q5_0, TensorType::IQ4_XS][number];
                    let encodings =
                        [None, Some(plain(kind, columns)), Some(Encoding { importance, ..plain(kind, columns) })];
                    for encoding in encodings {
                        let source = Source::Merged { merge, factors, heads: None };
                        let elements = rows.start * columns..rows.end * columns;
                        let block = Block { source, elements, encoding, wanted: 0..0 };
                        check(&mut *lane, &format!("{name}, lane {number}, {kind}"), &block).unwrap();
                    }
                    let stages = lane.stages();
                    assert!(stages.upload > 0.0 && stages.kernel > 0.0 && stages.download > 0.0, "{stages:?}");
                });
            }
        });
    }
}

/// Rows of another type than the base's are the processor's work.
#[test]
fn rows_of_another_type_are_left_to_the_processor() {
    let Some(card) = card() else { return };
    let mut lane = card.lane().unwrap();
    let (weights, row) = (Matrix::new(1, Float::Bf16, 8, 64), Matrix::new(2, Float::F32, 1, 64));
    let merge = Merge::cast(&weights.bytes, Float::Bf16, Float::Bf16, 64, Overflow::Refuse, Vector::detect())
        .overwrite(BTreeMap::from([(4, &row.bytes[..])]), Float::F32);
    let factors = Resident::default();
    let source = Source::Merged { merge: &merge, factors: &factors, heads: None };
    let block = |elements: Range<usize>| Block { source, wanted: 0..2 * elements.len(), elements, encoding: None };
    assert!(matches!(lane.run(&block(0..512), &mut [0; 1024]), Err(Trouble::Value)));
    lane.run(&block(0..256), &mut [0; 512]).unwrap();
}
