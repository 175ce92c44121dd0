//! Flags of the loss, the optimizer and the schedule.

use super::flag::{Flag, also, noted, only};

const ADAMW: &str = "drop the flag: qft has AdamW";
const GALORE: &str = "only --use_galore uses it, and qft has AdamW";
const LOSS: &str = "drop the flag: qft has the cross-entropy of tokens, averaged over a step's tokens";
const NOISE: &str = "drop the flag: qft adds no noise to embeddings; --lora_dropout regularizes";
const SCHEDULES: &str = "drop the flag; the schedules have no further settings";

pub(super) const OPTIMIZER: [Flag; 31] = [
    only("optim", &["adamw_torch", "adamw_torch_fused", "adamw"], ADAMW),
    noted("optim_args", &[], "qft has AdamW, whose settings have their own flags"),
    noted("optim_target_modules", &[], GALORE),
    only("optimizer", &[], ADAMW),
    only("use_galore", &[], ADAMW),
    noted("galore_target_modules", &[], GALORE),
    noted("galore_rank", &["128"], GALORE),
    noted("galore_update_proj_gap", &["50"], GALORE),
    noted("galore_scale", &["1"], GALORE),
    noted("galore_proj_type", &["std"], GALORE),
    noted("galore_optim_per_parameter", &["false"], GALORE),
    noted("galore_with_embedding", &["false"], GALORE),
    noted("galore_quantization", &["false"], GALORE),
    noted("galore_proj_quant", &["false"], GALORE),
    noted("galore_proj_bits", &["4"], GALORE),
    noted("galore_proj_group_size", &["256"], GALORE),
    noted("galore_cos_threshold", &["0.4"], GALORE),
    noted("galore_gamma_proj", &["2"], GALORE),
    noted("galore_queue_size", &["5"], GALORE),
    only("lr_scheduler_kwargs", &[], SCHEDULES),
    only("min_lr", &[], SCHEDULES),
    only("max_epochs", &[], "drop the flag, and give the epochs with --num_train_epochs"),
    also(&["loss_name"], only("loss_type", &[], LOSS)),
    only("acc_strategy", &["token"], LOSS),
    only("average_tokens_across_devices", &["true"], LOSS),
    only("enable_dft_loss", &[], LOSS),
    only("label_smoothing_factor", &[], LOSS),
    only("router_aux_loss_coef", &[], "drop the flag: the models that qft trains have no router"),
    noted("enable_channel_loss", &["false"], "the loss is recorded as one number; it is the loss of all channels"),
    noted("label_names", &[], "the assistant's turns count in the loss, as --loss_scale says"),
    also(&["neftune_alpha"], only("neftune_noise_alpha", &[], NOISE)),
];
