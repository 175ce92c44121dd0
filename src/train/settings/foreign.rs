//! The flags of ms-swift that change nothing in qft, with the reason, and those for what qft doesn't do, with the
//! remedy.

use super::kind::Kind;
use super::table::{Fate, Flag};

const fn noted(name: &'static str, kind: Kind, unless: &'static [&'static str], why: &'static str) -> Flag {
    Flag { name, aliases: &[], kind, fate: Fate::Noted { unless, why }, help: "Accepted" }
}

const fn only(name: &'static str, values: &'static [&'static str], remedy: &'static str) -> Flag {
    Flag { name, aliases: &[], kind: Kind::Text, fate: Fate::Only { values, remedy }, help: "Refused" }
}

const fn also(aliases: &'static [&'static str], flag: Flag) -> Flag {
    Flag { aliases, ..flag }
}

/// Flags whose values are not written anywhere: they let people in.
pub(super) const SECRETS: [&str; 2] = ["hub_token", "swanlab_token"];

const LORA: &str = "qft trains LoRA: drop the flag, and raise --lora_rank where more capacity is wanted";
const PLAIN_LORA: &str = "drop the flag; qft trains LoRA, rsLoRA (--use_rslora) and DoRA (--use_dora)";
const DATA_PARALLEL: &str = "drop the flag: only the factors have gradients and optimizer state, so that there is \
                             nothing to shard; give several cards with torchrun's variables (RANK, WORLD_SIZE, ...)";
const UNQUANTIZED: &str = "drop the flag: qft trains over bf16 weights; take a smaller base if the card is too small";
const RECOMPUTED: &str = "what fits into the card's memory is kept for the backward pass, the rest computed again";
const ADAMW: &str = "drop the flag: qft has AdamW";
const ROWS: &str = "drop the flag, and bring the rows into ShareGPT or OpenAI form first";
const TEXT_LOSS: &str = "drop the flag: qft has the cross-entropy of tokens, averaged over a step's tokens";
const PYTHON: &str = "drop the flag: qft runs no Python";
const HELD_OUT: &str = "drop the flag: qft evaluates the loss of held-out data; export the checkpoint to measure more";
const BINARY: &str = "qft holds rows in memory and reads ahead by itself";
const SWANLAB: &str = "give it to `swanlab convert`, whose command is printed at the end";
const RANKS: &str = "qft finds its ranks from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT";
const HUBS: &str = "the Hugging Face and ModelScope caches are both looked into";

pub(super) const FOREIGN: [Flag; 87] = [
    also(&["tuner_type", "sft_type"], only("train_type", &["lora"], LORA)),
    only("tuner_backend", &["peft"], "drop the flag: qft trains by itself, and writes PEFT's form"),
    only("task_type", &["causal_lm"], "drop the flag: qft trains causal language models"),
    only("lora_bias", &["none"], "train without biases: drop the flag"),
    noted("lora_dtype", Kind::Text, &["float32", "fp32"], "factors are kept in f32"),
    only("init_weights", &["true"], "drop the flag: A is drawn uniformly and B is zero, PEFT's own start"),
    only("lorap_lr_ratio", &[], PLAIN_LORA),
    only("modules_to_save", &[], PLAIN_LORA),
    only("target_parameters", &[], PLAIN_LORA),
    only("freeze_parameters", &[], LORA),
    only("freeze_parameters_ratio", &[], LORA),
    only("trainable_parameters", &[], LORA),
    only("freeze_llm", &[], LORA),
    noted("freeze_vit", Kind::Bool, &["true"], "qft trains models of text"),
    noted("freeze_aligner", Kind::Bool, &["true"], "qft trains models of text"),
    only("use_galore", &[], ADAMW),
    only("lisa_activated_layers", &[], LORA),
    only("neftune_noise_alpha", &[], "drop the flag: qft adds no noise to embeddings; --lora_dropout regularizes"),
    only("deepspeed", &[], DATA_PARALLEL),
    only("fsdp", &[], DATA_PARALLEL),
    only("sequence_parallel_size", &["1"], DATA_PARALLEL),
    only("context_parallel_size", &["1"], DATA_PARALLEL),
    only("expert_parallel_size", &["1"], DATA_PARALLEL),
    only("device_map", &["auto", "cpu", "cuda", "cuda:0"], "choose with --device"),
    noted("ddp_backend", Kind::Text, &["nccl"], RANKS),
    noted("ddp_timeout", Kind::Count(0), &[], RANKS),
    noted("ddp_find_unused_parameters", Kind::Bool, &["false"], RANKS),
    noted("local_rank", Kind::Text, &["-1", "0"], RANKS),
    only("quant_method", &[], UNQUANTIZED),
    only("quant_bits", &[], UNQUANTIZED),
    only("load_in_4bit", &[], UNQUANTIZED),
    only("load_in_8bit", &[], UNQUANTIZED),
    only("fp16", &[], "use --bf16 true, which has the range of f32 and needs no scaling of the loss"),
    noted("tf32", Kind::Bool, &[], "cards multiply in bf16, with sums in f32"),
    noted("attn_impl", Kind::Text, &[], "attention is always tiled, on every device"),
    noted("gradient_checkpointing", Kind::Bool, &["true"], RECOMPUTED),
    noted("gradient_checkpointing_kwargs", Kind::Text, &[], RECOMPUTED),
    noted("vit_gradient_checkpointing", Kind::Bool, &[], "qft trains models of text"),
    noted("use_liger_kernel", Kind::Bool, &["false"], "kernels are fused anyway"),
    noted("use_logits_to_keep", Kind::Bool, &[], "logits are made for the tokens that are learned, some at a time"),
    noted("padding_free", Kind::Bool, &[], "batches are never padded"),
    noted("padding_side", Kind::Text, &[], "batches are never padded"),
    noted("group_by_length", Kind::Bool, &["false"], "batches are never padded"),
    noted("lazy_tokenize", Kind::Bool, &["false"], "rows are tokenized once, before the first step, and kept"),
    noted("dataset_num_proc", Kind::Count(1), &["1"], "rows are tokenized on every core"),
    noted("dataloader_num_workers", Kind::Count(0), &["0", "1"], BINARY),
    noted("dataloader_prefetch_factor", Kind::Count(0), &[], BINARY),
    noted("dataloader_persistent_workers", Kind::Bool, &["false"], BINARY),
    noted("dataloader_pin_memory", Kind::Bool, &["true"], BINARY),
    only("dataloader_drop_last", &[], "drop the flag: the last rows of an epoch are learned from too"),
    noted("packing_num_proc", Kind::Count(1), &["1"], "packing takes no time worth sharing"),
    only("packing_strategy", &["binpack"], "drop the flag: packs are filled by bin packing"),
    only("packing_length", &[], "drop the flag, and give the packs' length with --max_length"),
    only("streaming", &[], "drop the flag: rows are read before the first step; sample with `data.jsonl#N`"),
    only("cached_dataset", &[], "give the rows with --dataset; qft keeps a cache of its own"),
    only("columns", &[], ROWS),
    only("custom_dataset_info", &[], ROWS),
    only("interleave_prob", &[], "sample each file with `data.jsonl#N`"),
    only("dataset_shuffle", &["true"], "drop the flag: each epoch has an order of its own, from --data_seed"),
    only("train_dataloader_shuffle", &["true"], "drop the flag: each epoch has an order of its own, from --data_seed"),
    noted("val_dataset_shuffle", Kind::Bool, &["false"], "the loss of held-out data does not depend on its order"),
    only("use_chat_template", &["true"], "drop the flag: qft trains on conversations"),
    only("template_backend", &["jinja", "swift"], "drop the flag: the chat template is the model's own"),
    noted("agent_template", Kind::Text, &[], "tools are written as the model's own chat template writes them"),
    noted("add_non_thinking_prefix", Kind::Bool, &[], "turns are written as the model's own chat template writes them"),
    only("response_prefix", &[], "drop the flag: turns are written as the model's own chat template writes them"),
    only("rope_scaling", &[], "set it in the base's config.json"),
    only("max_model_len", &[], "give --max_length"),
    only("model_kwargs", &[], PYTHON),
    also(&["custom_register_path"], only("external_plugins", &[], PYTHON)),
    only("optim", &["adamw_torch", "adamw_torch_fused", "adamw"], ADAMW),
    only("optimizer", &[], ADAMW),
    only("lr_scheduler_kwargs", &[], "drop the flag; the schedules have no further settings"),
    only("loss_type", &[], TEXT_LOSS),
    only("acc_strategy", &["token"], TEXT_LOSS),
    only("predict_with_generate", &[], HELD_OUT),
    only("eval_use_evalscope", &[], HELD_OUT),
    only("greater_is_better", &[], HELD_OUT),
    only("create_checkpoint_symlink", &[], "drop the flag: `qft export` finds the newest checkpoint by itself"),
    only("save_safetensors", &["true"], "drop the flag: qft writes nothing but safetensors"),
    only("push_to_hub", &[], "upload the checkpoint or the release with `hf upload`"),
    noted("use_hf", Kind::Bool, &[], HUBS),
    noted("hub_token", Kind::Text, &[], "set HF_TOKEN, or log in with `hf auth login`"),
    noted("check_model", Kind::Bool, &[], "a model that is there is taken as it is"),
    noted("swanlab_token", Kind::Text, &[], "log in with `swanlab login`; qft uploads nothing"),
    noted("swanlab_project", Kind::Text, &[], SWANLAB),
    also(&["swanlab_workspace", "swanlab_mode"], noted("swanlab_exp_name", Kind::Text, &[], SWANLAB)),
];
