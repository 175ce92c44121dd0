//! Flags of `swift export` where they are given to `qft train`: what is released is made after the training.

use super::flag::{Flag, also, noted, only};

const MERGE: &str = "drop the flag, and run the `qft export --merge-lora` that is printed at the end";
const QUANTIZE: &str = "drop the flag, and run `qft export --merge-lora --gguf q4_k_m` after the training, with the \
                        adapter in the line that is printed at the end";
const QUANTIZES: &str = "`qft export --merge-lora --gguf q4_k_m` writes quantized files, after the training";
const MEGATRON: &str = "drop the flag: qft reads and writes Hugging Face's form";
const MEGATRONS: &str = "qft reads and writes Hugging Face's form";

pub(super) const MERGING: [Flag; 18] = [
    only("merge_lora", &[], MERGE),
    only("to_ollama", &[], QUANTIZE),
    noted("to_peft_format", &["false"], "checkpoints always have PEFT's form"),
    noted("quant_n_samples", &["256"], QUANTIZES),
    noted("quant_batch_size", &["1"], QUANTIZES),
    noted("group_size", &["128"], QUANTIZES),
    only("to_cached_dataset", &[], "drop the flag: qft always caches the tokens of its data"),
    noted("template_mode", &["train"], "qft trains on conversations"),
    only("to_mcore", &[], MEGATRON),
    only("to_hf", &[], MEGATRON),
    only("mcore_model", &[], MEGATRON),
    also(&["mcore_adapters"], only("mcore_adapter", &[], MEGATRON)),
    noted("thread_count", &[], MEGATRONS),
    noted("test_convert_precision", &["false"], MEGATRONS),
    noted("test_convert_dtype", &["float32"], MEGATRONS),
    noted("save_missing_weights", &["false"], MEGATRONS),
    noted("commit_message", &["update files"], "qft uploads nothing: upload with `hf upload`, which takes a message"),
    noted("exist_ok", &["false"], "each run has its own directory below --output_dir, unless --add_version false"),
];
