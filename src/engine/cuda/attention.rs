//! Attention on the card: which kernels serve which size of head, and what they are given.

use super::card::broken;
use super::kernels::{
    ATTEND_64, ATTEND_128, ATTEND_BACK_DOT_64, ATTEND_BACK_DOT_128, ATTEND_BACK_KEYS_64, ATTEND_BACK_KEYS_128,
    ATTEND_BACK_QUERIES_64, ATTEND_BACK_QUERIES_128,
};
use super::matrix::{CudaMatrix, CudaVector};
use super::placed::CudaBatch;
use super::{CudaEngine, bits};
use crate::arch::Heads;
use crate::error::{Error, Result};
use crate::gpu::Kernel;
use crate::size::ByteSize;

/// The kernels of one size of head.
struct Kernels {
    size: usize,
    forward: Kernel,
    dots: Kernel,
    queries: Kernel,
    keys: Kernel,
}

const KERNELS: [Kernels; 2] = [
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
            format!("the model has {query} heads of {size} values over {key}; cards have kernels for 64 and 128");
        Error::unsupported(problem, "train it with --device cpu")
    })
}

/// Whether there are kernels for such heads that run with `shared` bytes of shared memory a block.
pub(super) fn check(heads: Heads, shared: u32) -> Result<()> {
    let Kernels { forward, dots, queries, keys, .. } = kernels(heads)?;
    let needed = [forward, dots, queries, keys].into_iter().map(|kernel| kernel.shared()).max().unwrap_or(0);
    if needed <= shared {
        return Ok(());
    }
    let (size, needed, shared) = (heads.size, ByteSize(needed.into()), ByteSize(shared.into()));
    let problem = format!("heads of {size} values need {needed} of shared memory a block, and the card has {shared}");
    Err(Error::unsupported(problem, "use a data center card (A100, H100), or --device cpu"))
}

/// Whether rows are of these heads, and of this batch.
pub(super) fn check_rows(qkv: &CudaMatrix, heads: Heads, batch: &CudaBatch) -> Result<()> {
    if qkv.cols == heads.row() && qkv.rows == batch.rows {
        return Ok(());
    }
    Err(broken("queries and keys of other heads, or of another batch"))
}

impl CudaEngine {
    pub(super) fn attention(
        &self,
        qkv: &CudaMatrix,
        heads: Heads,
        batch: &CudaBatch,
        room: usize,
    ) -> Result<(CudaMatrix, CudaVector)> {
        let kernels = kernels(heads)?;
        check_rows(qkv, heads, batch)?;
        let out = self.matrix(qkv.rows, heads.query * heads.size, room)?;
        let sums = CudaVector::new(&self.card, heads.query * qkv.rows)?;
        let tiles = &batch.query_tiles;
        let arguments = [
            qkv.address(),
            qkv.stride as u64,
            out.address(),
            out.stride as u64,
            sums.address(),
            batch.starts.address(),
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
            assert!(check(bad, large).unwrap_err().to_string().contains("--device cpu"));
        }
    }
}
