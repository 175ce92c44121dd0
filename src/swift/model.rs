//! Flags of how the base is loaded: its types, its kind, other heads, and parts that models of text don't have.

use super::flag::{Flag, also, noted, only};

pub(super) const PYTHON: &str = "drop the flag: qft runs no Python";
const UNQUANTIZED: &str =
    "drop the flag: qft trains over bf16 weights; choose a smaller base if the GPU has too little memory";
const QUANTIZED: &str = "only a quantized base uses it, and qft trains over bf16 weights";
const SCALING: &str = "drop the flag, and, for linear and llama3, set rope_type and factor in rope_scaling of the \
                       base's config.json; other types are unsupported";
const TEXT: &str = "qft trains text models";
const CLASSES: &str = "drop the flag: qft trains causal language models; train them to write the class as a word";
const VOCABULARY: &str = "drop the flag: qft trains no embeddings; write the new tokens as text, which the tokenizer \
                          splits into its own tokens";
const DECISION: &str = "only --task_type decision uses it, and qft trains causal language models";

pub(super) const MODEL: [Flag; 36] = [
    only("task_type", &["causal_lm"], "drop the flag: qft trains causal language models"),
    only("num_labels", &[], CLASSES),
    only("problem_type", &[], CLASSES),
    only("new_special_tokens", &[], VOCABULARY),
    only("rope_scaling", &[], SCALING),
    only("max_model_len", &[], "drop the flag, and give --max_length"),
    only("model_kwargs", &[], PYTHON),
    also(&["custom_register_path"], only("external_plugins", &[], PYTHON)),
    only("quant_method", &[], UNQUANTIZED),
    also(&["quantization_bit"], only("quant_bits", &[], UNQUANTIZED)),
    only("load_in_4bit", &[], UNQUANTIZED),
    only("load_in_8bit", &[], UNQUANTIZED),
    also(&["bnb_4bit_comp_dtype"], noted("bnb_4bit_compute_dtype", &[], QUANTIZED)),
    noted("bnb_4bit_quant_type", &["nf4"], QUANTIZED),
    noted("bnb_4bit_use_double_quant", &["true"], QUANTIZED),
    noted("bnb_4bit_quant_storage", &[], QUANTIZED),
    noted("hqq_axis", &[], QUANTIZED),
    also(&["use_flash_attn"], noted("attn_impl", &[], "attention is always tiled, on every device")),
    noted("experts_impl", &[], "the models that qft trains have no experts"),
    noted("init_strategy", &[], "a base that lacks weights is refused"),
    noted("local_repo_path", &[], "a model requires no code of a repository"),
    also(&["check_model_is_latest"], noted("check_model", &["true"], "an existing model is used unchanged")),
    noted("use_hf", &["false"], "qft always searches both the Hugging Face and the ModelScope cache"),
    noted("hub_token", &[], "set HF_TOKEN, or log in with `hf auth login`"),
    noted("freeze_vit", &["true"], TEXT),
    noted("freeze_aligner", &["true"], TEXT),
    noted("vit_lr", &[], TEXT),
    noted("aligner_lr", &[], TEXT),
    noted("vit_gradient_checkpointing", &[], TEXT),
    noted("max_pixels", &[], TEXT),
    noted("norm_bbox", &[], TEXT),
    noted("mrl_dims", &[], "only --task_type embedding uses it, and qft trains causal language models"),
    noted("decision_drop_instructions", &["0"], DECISION),
    noted("decision_subsample_options", &["0"], DECISION),
    noted("decision_state_as_text", &["0"], DECISION),
    noted("decision_shuffle_fields", &["false"], DECISION),
];
