//! Flags of the data: how rows are read, mapped, mixed, made into text and tokens, and put into batches.

use super::flag::{Flag, also, noted, only};

const ROWS: &str = "drop the flag, and bring the rows into ShareGPT or OpenAI form first";
const BINARY: &str = "qft holds rows in memory and reads ahead by itself";
const ORDER: &str = "drop the flag: each epoch has its own order, from --data_seed";
const UNPADDED: &str = "batches are never padded";
const TURNS: &str = "turns are written as the model's own chat template writes them";
const STREAMS: &str = "rows are read as a whole, before the first step";
const PLACEHOLDERS: &str = "only swift/self-cognition has {{NAME}} and {{AUTHOR}}, and qft reads files: write both out \
                            in yours";
const CACHED: &str = "give the rows with --dataset or --val_dataset; qft has its own cache";

pub(super) const DATA: [Flag; 43] = [
    noted("model_name", &[], PLACEHOLDERS),
    noted("model_author", &[], PLACEHOLDERS),
    only("columns", &[], ROWS),
    only("custom_dataset_info", &[], ROWS),
    only("disable_auto_column_mapping", &[], "drop the flag, and remove columns that should not be read from the rows"),
    noted("remove_unused_columns", &["true"], "unknown columns are always ignored"),
    only("cached_dataset", &[], CACHED),
    only("cached_val_dataset", &[], CACHED),
    noted("download_mode", &["reuse_dataset_if_exists"], "data is read from files"),
    only("streaming", &[], "drop the flag: rows are read before the first step; sample with `data.jsonl#N`"),
    noted("shuffle_buffer_size", &["1000"], STREAMS),
    only("interleave_prob", &[], "sample each file with `data.jsonl#N`"),
    noted("stopping_strategy", &["first_exhausted"], "only --interleave_prob uses it; sample with `data.jsonl#N`"),
    only("dataset_shuffle", &["true"], ORDER),
    only("train_dataloader_shuffle", &["true"], ORDER),
    noted("val_dataset_shuffle", &["false"], "the loss of held-out data does not depend on its order"),
    only("train_sampling_strategy", &["random", "group_by_length"], ORDER),
    noted("group_by_length", &["false"], UNPADDED),
    noted("length_column_name", &["length"], UNPADDED),
    noted("sortish_sampler", &["false"], UNPADDED),
    noted("padding_free", &["false"], UNPADDED),
    noted("padding_side", &["right"], UNPADDED),
    noted("lazy_tokenize", &["false"], "rows are tokenized once, before the first step, and cached"),
    also(&["preprocess_num_proc"], noted("dataset_num_proc", &["1"], "rows are tokenized on every core")),
    noted("dataloader_num_workers", &["0", "1"], BINARY),
    noted("dataloader_prefetch_factor", &[], BINARY),
    noted("dataloader_persistent_workers", &["true", "false"], BINARY),
    noted("dataloader_pin_memory", &["true"], BINARY),
    noted("dataloader_in_order", &["true"], BINARY),
    noted("dataloader_multiprocessing_context", &[], BINARY),
    only("dataloader_drop_last", &[], "drop the flag: the last rows of an epoch are trained on, too"),
    noted("packing_num_proc", &["1"], "packing takes little time"),
    only("packing_strategy", &["binpack"], "drop the flag: packs are filled by bin packing"),
    only("packing_length", &[], "drop the flag, and set the length of packs with --max_length"),
    only("use_chat_template", &["true"], "drop the flag: qft trains on conversations"),
    only("template_backend", &["jinja", "swift"], "drop the flag: the chat template is the model's own"),
    also(
        &["tools_prompt"],
        noted("agent_template", &[], "tools are written as the model's own chat template writes them"),
    ),
    only("response_prefix", &[], "drop the flag: turns are written as the model's own chat template writes them"),
    noted("enable_thinking", &[], "it is for inference: qft trains on the text of the rows"),
    noted("preserve_thinking", &[], TURNS),
    noted("add_non_thinking_prefix", &["true"], TURNS),
    noted("disable_ignore_empty_think", &["false"], "empty thoughts of a row count in the loss"),
    noted("is_binary_loss_scale", &[], "all trainable tokens have the same weight"),
];
