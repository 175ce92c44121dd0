//! Attention on the GPU: which kernels serve which size of head, and what they are given.

use super::card::broken;
use super::kernels::{
    ATTEND_64, ATTEND_128, ATTEND_BACK_DOT_64, ATTEND_BACK_DOT_128, ATTEND_BACK_KEYS_64, ATTEND_BACK_KEYS_128,
    ATTEND_BACK_QUERIES_64, ATTEND_BACK_QUERIES_128, GATHER_ROWS, SCATTER_ROWS,
};
use super::matrix::{CudaMatrix, CudaVector};
use super::placed::{CudaBatch, Tiles};
use super::{CudaEngine, bits, eights};
use crate::arch::Heads;
use crate::engine::{Columns, KeysValues};
use crate::error::{Error, Result};
use crate::gpu::{DeviceMemory, Kernel};
use crate::size::ByteSize;

/// The kernels of one size of head.
struct Kernels {
    size: usize,
    forward: Kernel,
    dots: Kernel,
    queries: Kernel,
    keys: Kernel,
}

static KERNELS: [Kernels; 2] = [
    Kernels {
        size: 64,
        forward: ATTEND_64,
        dots: ATTEND_BACK_DOT_64,
        queries: ATTEND_BACK_QUERIES_64,
        keys: ATTEND_BACK_KEYS_64,
    },
    Kernels {
        size: 128,
        forward: ATTEND_128,
        dots: ATTEND_BACK_DOT_128,
        queries: ATTEND_BACK_QUERIES_128,
        keys: ATTEND_BACK_KEYS_128,
    },
];

fn kernels(heads: Heads) -> Result<&'static Kernels> {
    let whole = heads.key > 0 && heads.query.is_multiple_of(heads.key);
    KERNELS.iter().find(|kernels| kernels.size == heads.size && whole).ok_or_else(|| {
        let Heads { query, key, size } = heads;
        let problem =
            format!("the model has {query} heads of {size} values over {key}; GPUs have kernels for 64 and 128");
        Error::unsupported(problem, "train it with ⟦device cpu⟧")
    })
}

/// Whether there are kernels for such heads that run with `shared` bytes of shared memory a block.
pub(super) fn check(heads: Heads, shared: u32) -> Result<()> {
    let Kernels { forward, dots, queries, keys, .. } = kernels(heads)?;
    let needed = [forward, dots, queries, keys].into_iter().map(Kernel::shared).max().unwrap_or(0);
    if needed <= shared {
        return Ok(());
    }
    let (size, needed, shared) = (heads.size, ByteSize(needed.into()), ByteSize(shared.into()));
    let problem = format!("heads of {size} values need {needed} of shared memory a block, and the GPU has {shared}");
    Err(Error::unsupported(problem, "use a data center GPU (A100, H100), or ⟦device cpu⟧"))
}

/// Whether rows are of these heads, and of this batch.
pub(super) fn check_rows(qkv: &CudaMatrix, heads: Heads, batch: &CudaBatch) -> Result<()> {
    if qkv.cols == heads.row() && qkv.rows == batch.rows {
        return Ok(());
    }
    Err(broken("queries and keys of other heads, or of another batch"))
}

/// Sequences put together for the kernels.
struct Joined {
    qkv: CudaMatrix,
    /// Where each query lies among the rows.
    rows: DeviceMemory,
    /// Where sequences begin, and the end.
    starts: DeviceMemory,
}

impl CudaEngine {
    /// The kernels read rows `[queries | keys | values]`. Where these are apart, such rows are put together first.
    pub(super) fn attention(
        &self,
        queries: Columns<'_, CudaMatrix>,
        seen: KeysValues<'_, CudaMatrix>,
        heads: Heads,
        batch: &CudaBatch,
        padding: usize,
    ) -> Result<(CudaMatrix, CudaVector)> {
        let kernels = kernels(heads)?;
        if seen.are_of(queries, heads) && batch.segments.iter().all(|segment| segment.before == 0) {
            check_rows(queries.matrix, heads, batch)?;
            let at = (batch.starts.address(), &batch.query_tiles);
            return self.attend_rows(kernels, queries.matrix, heads, at, padding);
        }
        let joined = self.join(queries, seen, heads, batch)?;
        let tiles = Tiles::of_queries(&self.card, &batch.segments)?;
        let at = (joined.starts.address(), &tiles);
        let (all, sums) = self.attend_rows(kernels, &joined.qkv, heads, at, 0)?;
        let out = self.matrix(batch.rows, all.cols, padding)?;
        self.gather(&all, joined.rows.address(), &out)?;
        Ok((out, sums))
    }

    /// Attention of the queries of these tiles.
    fn attend_rows(
        &self,
        kernels: &Kernels,
        qkv: &CudaMatrix,
        heads: Heads,
        (starts, tiles): (u64, &Tiles),
        padding: usize,
    ) -> Result<(CudaMatrix, CudaVector)> {
        let out = self.matrix(qkv.rows, heads.query * heads.size, padding)?;
        let sums = CudaVector::new(&self.card, heads.query * qkv.rows)?;
        let arguments = [
            qkv.address(),
            qkv.stride as u64,
            out.address(),
            out.stride as u64,
            sums.address(),
            starts,
            tiles.memory.address(),
            tiles.count as u64,
            heads.query as u64,
            heads.key as u64,
            bits(heads.scale()),
            qkv.rows as u64,
        ];
        self.launch(&kernels.forward, (tiles.count * heads.query) as u64, &arguments)?;
        Ok((out, sums))
    }

    /// Rows `[queries | keys | values]` of whole sequences, from queries of their last tokens and keys and values of all.
    fn join(
        &self,
        queries: Columns<'_, CudaMatrix>,
        seen: KeysValues<'_, CudaMatrix>,
        heads: Heads,
        batch: &CudaBatch,
    ) -> Result<Joined> {
        let [own, shared] = [heads.query, heads.key].map(|count| count * heads.size);
        let known = seen.starts.is_none_or(|starts| starts.len() >= batch.segments.len());
        let has = |columns: Columns<'_, CudaMatrix>, width: usize| {
            columns.first.is_multiple_of(8) && columns.first + width <= columns.matrix.cols
        };
        let wide = has(queries, own) && has(seen.keys, shared) && has(seen.values, shared);
        if !known || !wide || queries.matrix.rows != batch.rows {
            return Err(broken("queries, keys or values of other heads, or of another batch"));
        }
        let (mut rows, mut from, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for (number, segment) in batch.segments.iter().enumerate() {
            let first = seen.starts.map_or(segment.first, |starts| starts[number]);
            let ends = segment.before.checked_add(segment.rows).and_then(|count| first.checked_add(count));
            let Some(end) = ends.filter(|end| *end as usize <= seen.keys.matrix.rows.min(seen.values.matrix.rows))
            else {
                return Err(broken("a segment whose keys are beyond the last"));
            };
            from.extend(first..end);
            let count = u32::try_from(from.len()).map_err(|_| broken("more keys than kernels count"))?;
            rows.extend(count - segment.rows..count);
            starts.push(count);
        }
        let qkv = self.matrix(from.len(), heads.row(), 0)?;
        let [rows, from, starts] = [rows, from, starts].map(|numbers| self.card.upload::<u32>(&numbers));
        let joined = Joined { qkv, rows: rows?, starts: starts? };
        let from = from?;
        let to = |column: usize| [joined.qkv.column(column), joined.qkv.stride as u64];
        let (count, stride) = (joined.qkv.rows as u64, |columns: Columns<'_, CudaMatrix>| columns.matrix.stride as u64);
        for (columns, at) in [(seen.keys, own), (seen.values, own + shared)] {
            let [to, to_stride] = to(at);
            let source = columns.matrix.column(columns.first);
            let arguments = [source, stride(columns), from.address(), to, to_stride, count, shared as u64];
            self.launch(&GATHER_ROWS, eights(joined.qkv.rows, shared)?, &arguments)?;
        }
        let [to, to_stride] = to(0);
        let source = queries.matrix.column(queries.first);
        let rows = joined.rows.address();
        let arguments = [source, stride(queries), rows, to, to_stride, batch.rows as u64, own as u64];
        self.launch(&SCATTER_ROWS, eights(batch.rows, own)?, &arguments)?;
        Ok(joined)
    }

    pub(super) fn attention_back(
        &self,
        dout: &CudaMatrix,
        qkv: &CudaMatrix,
        out: &CudaMatrix,
        sums: &CudaVector,
        heads: Heads,
        batch: &CudaBatch,
    ) -> Result<CudaMatrix> {
        let kernels = kernels(heads)?;
        check_rows(qkv, heads, batch)?;
        let fits = |matrix: &CudaMatrix| matrix.rows == qkv.rows && matrix.cols == heads.query * heads.size;
        if !fits(dout) || !fits(out) || sums.len != heads.query * qkv.rows {
            return Err(broken("the gradient of another attention"));
        }
        let rows = qkv.rows as u64;
        let dqkv = self.matrix(qkv.rows, qkv.cols, 0)?;
        let dots = CudaVector::new(&self.card, heads.query * qkv.rows)?;
        let (of_dout, of_out) = ([dout.address(), dout.stride as u64], [out.address(), out.stride as u64]);
        let arguments = [of_dout[0], of_dout[1], of_out[0], of_out[1], dots.address(), rows, heads.query as u64];
        let each = (1024 / heads.size) as u64;
        self.launch(&kernels.dots, rows.div_ceil(each) * heads.query as u64, &arguments)?;
        for (kernel, tiles, across) in
            [(&kernels.queries, &batch.query_tiles, heads.query), (&kernels.keys, &batch.key_tiles, heads.key)]
        {
            let arguments = [
                qkv.address(),
                qkv.stride as u64,
                dout.address(),
                dout.stride as u64,
                sums.address(),
                dots.address(),
                dqkv.address(),
                dqkv.stride as u64,
                batch.starts.address(),
                tiles.memory.address(),
                tiles.count as u64,
                heads.query as u64,
                heads.key as u64,
                bits(heads.scale()),
                rows,
            ];
            self.launch(kernel, (tiles.count * across) as u64, &arguments)?;
        }
        Ok(dqkv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_without_kernels_are_refused() {
        let heads = |query, key, size| Heads { query, key, size };
        // An H100 and an RTX 4090.
        let [large, small] = [227 << 10, 99 << 10];
        assert!(check(heads(28, 4, 128), large).is_ok() && check(heads(9, 3, 64), small).is_ok());
        assert!(check(heads(28, 4, 128), small).unwrap_err().to_string().contains("shared memory"));
        for bad in [heads(8, 8, 96), heads(8, 3, 64), heads(8, 0, 64)] {
            assert!(check(bad, large).unwrap_err().to_string().contains("⟦device cpu⟧"));
        }
    }
}
