//! The kernels of training by name: their modules, their threads and their shared memory, which must be as in
//! `kernels/*.cu`.

use crate::gpu::{Kernel, kernel_files};

kernel_files! {
    ADAPT = "adapt";
    ATTENTION = "attention";
    ATTENTION_BACK = "attention_back";
    DORA = "dora";
    DROPOUT = "dropout";
    FACTORS = "factors";
    GATE = "gate";
    LOSS = "loss";
    NORM = "norm";
    OPTIMIZER = "optimizer";
    ROTATE = "rotate";
    ROWS = "rows";
}

/// Rows of the table: file, name, threads, bytes of dynamic shared memory. Work is counted in thread blocks.
macro_rules! kernels {
    ($($id:ident = $file:ident, $name:literal, $threads:literal, $shared:literal;)*) => {
        $(pub(super) const $id: Kernel =
            Kernel::new(&files::$file, $name, $threads).with_shared($shared);)*
        /// Every kernel.
        pub(super) const ALL: &[Kernel] = &[$($id),*];
    };
}

kernels! {
    ADAPT_8 = ADAPT, "adapt_8", 256, 0;
    ADAPT_16 = ADAPT, "adapt_16", 256, 0;
    ADAPT_32 = ADAPT, "adapt_32", 256, 0;
    ADAPT_BACK = ADAPT, "adapt_back", 256, 0;
    ATTEND_64 = ATTENTION, "attend_64", 128, 49_152;
    ATTEND_128 = ATTENTION, "attend_128", 128, 98_304;
    ATTEND_BACK_DOT_64 = ATTENTION_BACK, "attend_back_dot_64", 128, 0;
    ATTEND_BACK_DOT_128 = ATTENTION_BACK, "attend_back_dot_128", 128, 0;
    ATTEND_BACK_QUERIES_64 = ATTENTION_BACK, "attend_back_queries_64", 128, 58_368;
    ATTEND_BACK_QUERIES_128 = ATTENTION_BACK, "attend_back_queries_128", 128, 115_712;
    ATTEND_BACK_KEYS_64 = ATTENTION_BACK, "attend_back_keys_64", 128, 58_368;
    ATTEND_BACK_KEYS_128 = ATTENTION_BACK, "attend_back_keys_128", 128, 107_520;
    GRAM = DORA, "gram", 256, 0;
    DORA_GAINS = DORA, "dora_gains", 256, 0;
    COLUMN_DOTS = DORA, "column_dots", 256, 0;
    DROP_ROWS = DROPOUT, "drop_rows", 256, 0;
    ADD_DROPPED = DROPOUT, "add_dropped", 256, 0;
    SCALE_BEYOND_ONE = DROPOUT, "scale_beyond_one", 256, 0;
    FACTOR_A_8 = FACTORS, "factor_a_8", 256, 0;
    FACTOR_A_16 = FACTORS, "factor_a_16", 256, 0;
    FACTOR_A_32 = FACTORS, "factor_a_32", 256, 0;
    FACTOR_B_8 = FACTORS, "factor_b_8", 256, 0;
    FACTOR_B_16 = FACTORS, "factor_b_16", 256, 0;
    FACTOR_B_32 = FACTORS, "factor_b_32", 256, 0;
    FOLD = FACTORS, "fold", 256, 0;
    PACK_A = FACTORS, "pack_a", 256, 0;
    PACK_B = FACTORS, "pack_b", 256, 0;
    GATE = GATE, "gate", 256, 0;
    GATE_BACK = GATE, "gate_back", 256, 0;
    CROSS_ENTROPY = LOSS, "cross_entropy", 512, 0;
    NORMALIZE = NORM, "normalize", 128, 0;
    NORMALIZE_BACK = NORM, "normalize_back", 128, 0;
    ROW_NORMS = NORM, "row_norms", 128, 0;
    ADAMW = OPTIMIZER, "adamw", 256, 0;
    SUM_SQUARES = OPTIMIZER, "sum_squares", 256, 0;
    SUM_PARTIALS = OPTIMIZER, "sum_partials", 256, 0;
    ROTATE = ROTATE, "rotate", 256, 0;
    GATHER_ROWS = ROWS, "gather_rows", 256, 0;
    SCATTER_ROWS = ROWS, "scatter_rows", 256, 0;
    FILL_ROWS = ROWS, "fill_rows", 256, 0;
    SCALE_COLUMNS = ROWS, "scale_columns", 256, 0;
}

/// Rows of a tile of queries, forward and backward, and of a tile of keys.
pub(super) const QUERY_ROWS: u32 = 128;
pub(super) const KEY_ROWS: u32 = 64;
/// Rows that `factors.cu` and `dora.cu` sum in one go.
pub(super) const CHUNK: usize = 1024;

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_as_the_ptx() {
        crate::gpu::check_table(super::ALL);
    }
}
