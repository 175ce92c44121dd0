//! Flags of where and how it is computed: ranks, sharding, precision, memory, kernels.

use super::flag::{Flag, also, noted, only};

const DATA_PARALLEL: &str = "drop the flag: only the factors have gradients and optimizer state, so there is nothing \
                             to shard; use several GPUs with torchrun's variables (RANK, WORLD_SIZE, ...)";
const RANKS: &str = "qft finds its ranks from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT";
const SUMS: &str = "the ranks always all-reduce the factors' gradients";
const DEEPSPEED: &str = "only --deepspeed uses it, and there is nothing to shard";
const RAY: &str = "only --use_ray uses it, and qft finds its ranks from torchrun's variables";
const RECOMPUTED: &str =
    "activations that fit the GPU's memory are kept for the backward pass, the others are computed again";
const COMPILED: &str = "the kernels are already compiled";
const EVALUATED: &str = "held-out data is computed in the type of the training";

pub(super) const DEVICES: [Flag; 42] = [
    only("deepspeed", &[], DATA_PARALLEL),
    noted("deepspeed_autotp_size", &[], DEEPSPEED),
    noted("zero_hpz_partition_size", &[], DEEPSPEED),
    noted("ds3_gather_for_generation", &["true"], DEEPSPEED),
    only("fsdp", &[], DATA_PARALLEL),
    noted("fsdp_config", &[], "only --fsdp uses it, and there is nothing to shard"),
    only("parallelism_config", &[], DATA_PARALLEL),
    only("sequence_parallel_size", &["1"], DATA_PARALLEL),
    only("context_parallel_size", &["1"], DATA_PARALLEL),
    only("expert_parallel_size", &["1"], DATA_PARALLEL),
    also(
        &["device_map_config"],
        only("device_map", &["auto", "cpu", "cuda", "cuda:0"], "drop the flag, and choose with --device"),
    ),
    also(&["device_max_memory"], noted("max_memory", &[], "all of the base is on one GPU")),
    noted("ddp_backend", &["nccl"], RANKS),
    noted("ddp_timeout", &["18000000"], RANKS),
    noted("ddp_find_unused_parameters", &["false"], RANKS),
    noted("ddp_broadcast_buffers", &["false"], SUMS),
    noted("ddp_bucket_cap_mb", &[], SUMS),
    noted("ddp_static_graph", &[], SUMS),
    noted("local_rank", &["-1", "0"], RANKS),
    only("use_ray", &[], "drop the flag: start a process for each GPU with torchrun's variables"),
    noted("ray_exp_name", &[], RAY),
    noted("device_groups", &[], RAY),
    noted("accelerator_config", &[], "qft has its own training loop"),
    only(
        "fp16",
        &[],
        "drop the flag, and use --bf16 true, which has the range of f32 and requires no scaling of the loss",
    ),
    noted("tf32", &[], "GPUs multiply in bf16, with sums in f32"),
    noted("bf16_full_eval", &["false"], EVALUATED),
    noted("fp16_full_eval", &["false"], EVALUATED),
    noted("full_determinism", &["false"], "the processor gives the same bits anyway, and GPUs have no other kernels"),
    noted("gradient_checkpointing", &["true"], RECOMPUTED),
    noted("gradient_checkpointing_kwargs", &[], RECOMPUTED),
    noted("auto_find_batch_size", &["false"], RECOMPUTED),
    noted("torch_empty_cache_steps", &[], "memory is taken once, for the whole run"),
    noted("skip_memory_metrics", &["true"], "the peak memory is always recorded"),
    noted("torch_compile", &["false"], COMPILED),
    noted("torch_compile_backend", &[], COMPILED),
    noted("torch_compile_mode", &[], COMPILED),
    also(&["use_liger"], noted("use_liger_kernel", &["false"], "kernels are always fused")),
    noted("liger_kernel_config", &[], "kernels are always fused"),
    noted("use_cache", &["false"], "nothing is generated, so no cache is used"),
    noted("use_logits_to_keep", &[], "logits are computed for trainable tokens only, some at a time"),
    noted("enable_npu_model_patch", &["true"], "qft computes on the processor and on NVIDIA GPUs"),
    noted("debug", &[], "a step that is not finite is always named and skipped"),
];
