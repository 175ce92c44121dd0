//! Flags of `swift export` where they are given to `qft export`, beside those that it has by the same meaning.

use super::flag::{Flag, also, noted, only};
use super::model::PYTHON;

const NO_DATA: &str = "an export reads no data";
const TEXT: &str = "a release has the chat template of the adapter, or of its base";
const KNOWN: &str = "config.json and the adapter have their own types";
const COMPUTES: &str = "only the merge is computed";
const CONFIG: &str = "drop the flag, and set it in the base's config.json";
const LENGTH: &str = "drop the flag, and set max_position_embeddings in the base's config.json, or give the length \
                      to the server (`vllm serve DIR --max-model-len N`)";
const VOCABULARY: &str = "drop the flag: a release has the tokenizer of the adapter, or of its base";
const QUANTIZE: &str = "drop the flag, and write quantized files with --gguf q4_k_m (q8_0, ...); for another form, \
                        quantize the release with that form's own tool";
const QUANTIZES: &str = "only --quant_method uses it; --gguf q4_k_m writes quantized files, --imatrix weighs them";
const OLLAMA: &str = "drop the flag, write a file with --gguf q4_k_m, and give a Modelfile with the line `FROM FILE` to \
                      `ollama create`";
const MEGATRON: &str = "drop the flag: qft reads and writes Hugging Face's form; `megatron export` converts";
const MEGATRONS: &str = "qft reads and writes Hugging Face's form";
const HUB: &str = "qft uploads nothing: upload the release with `hf upload`";
const RANKS: &str = "an export is one process";
const CACHED: &str = "drop the flag: `qft train` always caches the tokens of its data";
const EXISTS: &str = "an existing destination is refused, unless --overwrite exchanges it as a whole";

pub(super) const EXPORT: [Flag; 109] = [
    only("quant_method", &[], QUANTIZE),
    also(&["quantization_bit"], only("quant_bits", &[], QUANTIZE)),
    noted("quant_n_samples", &["256"], QUANTIZES),
    noted("quant_batch_size", &["1"], QUANTIZES),
    noted("group_size", &["128"], QUANTIZES),
    noted("hqq_axis", &[], QUANTIZES),
    also(&["bnb_4bit_comp_dtype"], noted("bnb_4bit_compute_dtype", &[], QUANTIZES)),
    noted("bnb_4bit_quant_type", &["nf4"], QUANTIZES),
    noted("bnb_4bit_use_double_quant", &["true"], QUANTIZES),
    noted("bnb_4bit_quant_storage", &[], QUANTIZES),
    only("to_ollama", &[], OLLAMA),
    only("to_cached_dataset", &[], CACHED),
    noted("template_mode", &["train"], NO_DATA),
    noted("to_peft_format", &["false"], "adapters have PEFT's form, which ms-swift's checkpoints have"),
    noted("exist_ok", &["false"], EXISTS),
    only("to_mcore", &[], MEGATRON),
    only("to_hf", &[], MEGATRON),
    only("mcore_model", &[], MEGATRON),
    also(&["mcore_adapters"], only("mcore_adapter", &[], MEGATRON)),
    noted("thread_count", &[], MEGATRONS),
    noted("test_convert_precision", &["false"], MEGATRONS),
    noted("test_convert_dtype", &["float32"], MEGATRONS),
    noted("save_missing_weights", &["false"], MEGATRONS),
    only("push_to_hub", &[], "drop the flag; upload the release with `hf upload`"),
    noted("hub_model_id", &[], HUB),
    noted("hub_private_repo", &["false"], HUB),
    noted("commit_message", &["update files"], HUB),
    noted("hub_token", &[], "set HF_TOKEN, or log in with `hf auth login`"),
    noted("use_hf", &["false"], "qft always searches both the Hugging Face and the ModelScope cache"),
    only("model_revision", &[], "drop the flag, and name the revision with the base: --base ID@REVISION"),
    noted("model_type", &[], KNOWN),
    noted("task_type", &["causal_lm"], KNOWN),
    noted("num_labels", &[], KNOWN),
    noted("problem_type", &[], KNOWN),
    also(&["train_type", "sft_type"], noted("tuner_type", &["lora"], KNOWN)),
    noted("tuner_backend", &["peft"], KNOWN),
    noted("use_swift_lora", &["false"], KNOWN),
    noted("load_args", &["true", "false"], "adapter_config.json names the base, unless --base does"),
    noted("load_data_args", &["false"], NO_DATA),
    noted("ignore_args_error", &["false"], "an unknown flag is an error"),
    only("new_special_tokens", &[], VOCABULARY),
    only("rope_scaling", &[], CONFIG),
    only("max_model_len", &[], LENGTH),
    also(&["custom_register_path"], only("external_plugins", &[], PYTHON)),
    noted("model_kwargs", &[], "qft runs no code of a model"),
    noted("local_repo_path", &[], "qft runs no code of a model"),
    noted("init_strategy", &[], "a base that lacks weights is refused"),
    noted("attn_impl", &[], COMPUTES),
    noted("experts_impl", &[], COMPUTES),
    noted("enable_npu_model_patch", &["true"], COMPUTES),
    noted("seed", &["42"], "a merge uses no random numbers"),
    also(&["merge_device_map"], noted("device_map", &["auto", "cpu"], "--device says where to merge")),
    noted("max_memory", &[], "--device-memory limits the GPU memory that is used"),
    noted("ddp_timeout", &["18000000"], RANKS),
    noted("ddp_backend", &[], RANKS),
    noted("use_ray", &["false"], RANKS),
    noted("ray_exp_name", &[], RANKS),
    noted("device_groups", &[], RANKS),
    noted("log_level", &["info"], "the report is printed; --json prints it as JSON"),
    noted("template", &[], TEXT),
    noted("system", &[], TEXT),
    noted("agent_template", &[], TEXT),
    noted("use_chat_template", &["true"], TEXT),
    noted("template_backend", &["swift"], TEXT),
    noted("response_prefix", &[], TEXT),
    noted("enable_thinking", &[], TEXT),
    noted("preserve_thinking", &[], TEXT),
    noted("add_non_thinking_prefix", &["true"], TEXT),
    noted("disable_ignore_empty_think", &["false"], NO_DATA),
    noted("max_length", &[], NO_DATA),
    noted("truncation_strategy", &["delete"], NO_DATA),
    noted("max_pixels", &[], NO_DATA),
    noted("norm_bbox", &[], NO_DATA),
    noted("padding_side", &["right"], NO_DATA),
    noted("padding_free", &["false"], NO_DATA),
    noted("loss_scale", &["default"], NO_DATA),
    noted("is_binary_loss_scale", &[], NO_DATA),
    noted("sequence_parallel_size", &["1"], NO_DATA),
    noted("packing", &["false"], NO_DATA),
    noted("packing_length", &[], NO_DATA),
    noted("packing_num_proc", &["1"], NO_DATA),
    noted("packing_strategy", &["binpack"], NO_DATA),
    noted("lazy_tokenize", &["false"], NO_DATA),
    noted("dataset", &["[]"], NO_DATA),
    noted("val_dataset", &["[]"], NO_DATA),
    noted("cached_dataset", &["[]"], NO_DATA),
    noted("cached_val_dataset", &["[]"], NO_DATA),
    noted("split_dataset_ratio", &["0"], NO_DATA),
    noted("data_seed", &["42"], NO_DATA),
    noted("dataset_num_proc", &["1"], NO_DATA),
    noted("load_from_cache_file", &["false"], NO_DATA),
    noted("dataset_shuffle", &["true"], NO_DATA),
    noted("val_dataset_shuffle", &["false"], NO_DATA),
    noted("streaming", &["false"], NO_DATA),
    noted("interleave_prob", &[], NO_DATA),
    noted("stopping_strategy", &["first_exhausted"], NO_DATA),
    noted("shuffle_buffer_size", &["1000"], NO_DATA),
    noted("download_mode", &["reuse_dataset_if_exists"], NO_DATA),
    noted("columns", &[], NO_DATA),
    noted("custom_dataset_info", &["[]"], NO_DATA),
    noted("strict", &["false"], NO_DATA),
    noted("remove_unused_columns", &["true"], NO_DATA),
    noted("disable_auto_column_mapping", &["false"], NO_DATA),
    noted("model_name", &[], NO_DATA),
    noted("model_author", &[], NO_DATA),
    noted("decision_drop_instructions", &["0"], NO_DATA),
    noted("decision_subsample_options", &["0"], NO_DATA),
    noted("decision_state_as_text", &["0"], NO_DATA),
    noted("decision_shuffle_fields", &["false"], NO_DATA),
];
