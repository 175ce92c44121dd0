//! Flags of what surrounds the steps: evaluations, checkpoints, records, the Hub and services that watch.

use super::flag::{Flag, also, noted, only};
use super::model::PYTHON;

const HELD_OUT: &str = "drop the flag: qft measures the held-out loss; export the checkpoint to measure more";
const EVALUATED: &str = "only the loss of held-out data is measured, batch by batch";
const SWANLAB: &str = "give it to `swanlab convert`, whose command is printed at the end with --report_to swanlab";
const NOTICES: &str = "qft sends no messages: the command's end and its exit code show that it has ended";
const TRACKIO: &str = "qft uploads nothing: import logging.jsonl there";
const HUB: &str = "qft uploads nothing: upload the checkpoint or the release with `hf upload`";
const LOGGED: &str = "the report is printed; --json prints the report only";
const MODES: &str = "`qft train` trains, and evaluates on held-out data as --eval_strategy says";
const SAFE: &str = "drop the flag: qft writes safetensors only";
const FOUND: &str = "drop the flag: `qft export` finds the newest checkpoint below ./output by itself, and \
                     `qft export --adapter DIR` accepts any checkpoint";
const STOP: &str =
    "drop the flag: stop with Ctrl-C once the held-out loss rises; the checkpoint with the lowest is kept";
const ANEW: &str = "drop the flag, and give the flags of the run again; a TOML file keeps them (--config)";

pub(super) const TRAINER: [Flag; 56] = [
    only("predict_with_generate", &[], HELD_OUT),
    only("eval_use_evalscope", &[], HELD_OUT),
    only("eval_metric", &[], HELD_OUT),
    only("greater_is_better", &[], HELD_OUT),
    noted("eval_delay", &["0"], "the first evaluation is never delayed"),
    noted("eval_accumulation_steps", &[], EVALUATED),
    noted("eval_do_concat_batches", &["true"], EVALUATED),
    noted("eval_use_gather_object", &["false"], EVALUATED),
    noted("batch_eval_metrics", &["false"], EVALUATED),
    noted("include_for_metrics", &[], EVALUATED),
    noted("prediction_loss_only", &["false"], EVALUATED),
    noted("do_train", &["true", "false"], MODES),
    noted("do_eval", &["true", "false"], MODES),
    noted("do_predict", &["false"], MODES),
    only("callbacks", &[], PYTHON),
    only("early_stop_interval", &[], STOP),
    only("create_checkpoint_symlink", &[], FOUND),
    also(&["save_safetensors"], only("safe_serialization", &["true"], SAFE)),
    noted("max_shard_size", &["5GB"], "an adapter is one file; shards are `qft export`'s, by --max-shard"),
    noted("save_on_each_node", &["false"], "rank 0 writes the checkpoints"),
    noted("use_flash_ckpt", &["false"], "a checkpoint always appears by one rename"),
    noted("enable_jit_checkpoint", &["false"], "SIGTERM always writes a checkpoint"),
    noted("restore_callback_states_from_checkpoint", &["false"], "a resumed run always has all of its state"),
    only("load_args", &[], ANEW),
    noted("load_data_args", &["false"], "the data is what --dataset names"),
    noted("ignore_args_error", &["false"], "an unknown flag is an error"),
    noted("logging_strategy", &["steps"], "the loss is recorded every --logging_steps steps"),
    noted("logging_nan_inf_filter", &["true"], "a step that is not finite is always named and skipped"),
    noted("include_num_input_tokens_seen", &["no", "false"], "tokens are always counted"),
    noted("disable_tqdm", &["false"], "the bar is drawn in a terminal only"),
    noted("log_level", &["passive"], LOGGED),
    noted("log_level_replica", &["warning"], LOGGED),
    noted("log_on_each_node", &["true"], "rank 0 prints for all"),
    only("push_to_hub", &[], "drop the flag; upload the checkpoint or the release with `hf upload`"),
    noted("hub_model_id", &[], HUB),
    also(&["push_hub_strategy"], noted("hub_strategy", &["every_save"], HUB)),
    noted("hub_private_repo", &[], HUB),
    noted("hub_always_push", &["false"], HUB),
    noted("hub_revision", &[], HUB),
    noted("project", &["huggingface"], TRACKIO),
    noted("trackio_space_id", &["trackio"], TRACKIO),
    noted("trackio_bucket_id", &[], TRACKIO),
    noted("trackio_static_space_id", &[], TRACKIO),
    noted("swanlab_token", &[], "log in with `swanlab login`; qft uploads nothing"),
    noted("swanlab_project", &["ms-swift"], SWANLAB),
    noted("swanlab_exp_name", &[], "`swanlab convert` names its experiments itself: rename it there"),
    noted("swanlab_workspace", &[], SWANLAB),
    noted("swanlab_mode", &["cloud"], SWANLAB),
    noted("swanlab_notification_method", &[], NOTICES),
    noted("swanlab_webhook_url", &[], NOTICES),
    noted("swanlab_secret", &[], NOTICES),
    noted("swanlab_sender_email", &[], NOTICES),
    noted("swanlab_receiver_email", &[], NOTICES),
    noted("swanlab_smtp_server", &[], NOTICES),
    noted("swanlab_smtp_port", &[], NOTICES),
    noted("swanlab_email_language", &["zh"], NOTICES),
];
