//! The kernels of training by name: their modules, their threads and their shared memory, which must be as in
//! `kernels/*.cu`.

/// A module: one file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    Adapt,
    Attention,
    AttentionBack,
    Dora,
    Dropout,
    Factors,
    Gate,
    Loss,
    Norm,
    Optimizer,
    Rotate,
    Rows,
}

/// Their names and PTX, in the order of the enum.
pub(super) const MODULES: [(&str, &str); 12] = [
    ("adapt", include_str!("kernels/adapt.ptx")),
    ("attention", include_str!("kernels/attention.ptx")),
    ("attention_back", include_str!("kernels/attention_back.ptx")),
    ("dora", include_str!("kernels/dora.ptx")),
    ("dropout", include_str!("kernels/dropout.ptx")),
    ("factors", include_str!("kernels/factors.ptx")),
    ("gate", include_str!("kernels/gate.ptx")),
    ("loss", include_str!("kernels/loss.ptx")),
    ("norm", include_str!("kernels/norm.ptx")),
    ("optimizer", include_str!("kernels/optimizer.ptx")),
    ("rotate", include_str!("kernels/rotate.ptx")),
    ("rows", include_str!("kernels/rows.ptx")),
];

/// A kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) module: Module,
    pub(super) name: &'static str,
    /// Threads of a block.
    pub(super) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(super) shared: u32,
}

macro_rules! kernels {
    ($($id:ident = $module:ident, $name:literal, $threads:literal, $shared:literal;)*) => {
        $(pub(super) const $id: Kernel =
            Kernel { module: Module::$module, name: $name, threads: $threads, shared: $shared };)*
        /// Every kernel.
        pub(super) const ALL: &[Kernel] = &[$($id),*];
    };
}

kernels! {
    ADAPT_8 = Adapt, "adapt_8", 256, 0;
    ADAPT_16 = Adapt, "adapt_16", 256, 0;
    ADAPT_32 = Adapt, "adapt_32", 256, 0;
    ADAPT_BACK = Adapt, "adapt_back", 256, 0;
    ATTEND_64 = Attention, "attend_64", 128, 49_152;
    ATTEND_128 = Attention, "attend_128", 128, 98_304;
    ATTEND_BACK_DOT_64 = AttentionBack, "attend_back_dot_64", 128, 0;
    ATTEND_BACK_DOT_128 = AttentionBack, "attend_back_dot_128", 128, 0;
    ATTEND_BACK_QUERIES_64 = AttentionBack, "attend_back_queries_64", 128, 58_368;
    ATTEND_BACK_QUERIES_128 = AttentionBack, "attend_back_queries_128", 128, 115_712;
    ATTEND_BACK_KEYS_64 = AttentionBack, "attend_back_keys_64", 128, 58_368;
    ATTEND_BACK_KEYS_128 = AttentionBack, "attend_back_keys_128", 128, 107_520;
    GRAM = Dora, "gram", 256, 0;
    DORA_GAINS = Dora, "dora_gains", 256, 0;
    COLUMN_DOTS = Dora, "column_dots", 256, 0;
    DROP_ROWS = Dropout, "drop_rows", 256, 0;
    ADD_DROPPED = Dropout, "add_dropped", 256, 0;
    SCALE_BEYOND_ONE = Dropout, "scale_beyond_one", 256, 0;
    FACTOR_A_8 = Factors, "factor_a_8", 256, 0;
    FACTOR_A_16 = Factors, "factor_a_16", 256, 0;
    FACTOR_A_32 = Factors, "factor_a_32", 256, 0;
    FACTOR_B_8 = Factors, "factor_b_8", 256, 0;
    FACTOR_B_16 = Factors, "factor_b_16", 256, 0;
    FACTOR_B_32 = Factors, "factor_b_32", 256, 0;
    FOLD = Factors, "fold", 256, 0;
    PACK_A = Factors, "pack_a", 256, 0;
    PACK_B = Factors, "pack_b", 256, 0;
    GATE = Gate, "gate", 256, 0;
    GATE_BACK = Gate, "gate_back", 256, 0;
    CROSS_ENTROPY = Loss, "cross_entropy", 512, 0;
    NORMALIZE = Norm, "normalize", 128, 0;
    NORMALIZE_BACK = Norm, "normalize_back", 128, 0;
    ROW_NORMS = Norm, "row_norms", 128, 0;
    ADAMW = Optimizer, "adamw", 256, 0;
    SUM_SQUARES = Optimizer, "sum_squares", 256, 0;
    SUM_PARTIALS = Optimizer, "sum_partials", 256, 0;
    ROTATE = Rotate, "rotate", 256, 0;
    GATHER_ROWS = Rows, "gather_rows", 256, 0;
    SCATTER_ROWS = Rows, "scatter_rows", 256, 0;
    FILL_ROWS = Rows, "fill_rows", 256, 0;
    SCALE_COLUMNS = Rows, "scale_columns", 256, 0;
}

/// Rows of a tile of queries, forward and backward, and of a tile of keys.
pub(super) const QUERY_ROWS: u32 = 128;
pub(super) const KEY_ROWS: u32 = 64;
/// Rows that `factors.cu` and `dora.cu` sum in one go.
pub(super) const CHUNK: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ptx_threads;

    /// What the table says of each kernel, held against the PTX that is committed.
    #[test]
    fn modules_have_the_kernels_of_the_table() {
        for kernel in ALL {
            let (name, ptx) = MODULES[kernel.module as usize];
            assert_eq!(ptx_threads(ptx, kernel.name), Some(kernel.threads), "{} of {name}.ptx", kernel.name);
        }
    }
}
