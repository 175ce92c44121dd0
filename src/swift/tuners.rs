//! Flags of what is trained: other tuners than LoRA, other starts of LoRA, and whole weights.

use super::flag::{Flag, also, noted, only};

pub(super) const LORA: &str = "qft trains LoRA: drop the flag, and raise --lora_rank for more capacity";
const PLAIN_LORA: &str = "drop the flag; qft trains LoRA, rsLoRA (--use_rslora) and DoRA (--use_dora)";
const START: &str = "drop the flag: A is uniformly random and B is zero, as in PEFT";
const ADALORA: &str = "only --train_type adalora uses it, and qft trains LoRA";
const ADAPTER: &str = "only --train_type adapter uses it, and qft trains LoRA";
const BOFT: &str = "only --train_type boft uses it, and qft trains LoRA";
const FOURIER: &str = "only --train_type fourierft uses it, and qft trains LoRA";
const LLAMAPRO: &str = "only --train_type llamapro uses it, and qft trains LoRA";
const LORA_GA: &str = "only --init_weights lora-ga uses it, and qft initializes as PEFT does";
const REFT: &str = "only --train_type reft uses it, and qft trains LoRA";
const VERA: &str = "only --train_type vera uses it, and qft trains LoRA";

pub(super) const TUNERS: [Flag; 50] = [
    also(&["tuner_type", "sft_type"], only("train_type", &["lora"], LORA)),
    only("tuner_backend", &["peft"], "drop the flag: qft has its own trainer, and writes PEFT's form"),
    noted("use_swift_lora", &["false"], "qft has its own trainer, and writes PEFT's form"),
    only("lora_bias", &["none"], "drop the flag: qft trains without biases"),
    noted("lora_dtype", &["float32", "fp32"], "factors are kept in f32"),
    also(&["init_lora_weights"], only("init_weights", &["true"], START)),
    also(&["lora_lr_ratio"], only("lorap_lr_ratio", &[], PLAIN_LORA)),
    also(&["lora_modules_to_save"], only("modules_to_save", &[], PLAIN_LORA)),
    only("target_parameters", &[], PLAIN_LORA),
    only("freeze_parameters", &[], LORA),
    only("freeze_parameters_regex", &[], LORA),
    only("freeze_parameters_ratio", &[], LORA),
    also(&["additional_trainable_parameters"], only("trainable_parameters", &[], LORA)),
    only("trainable_parameters_regex", &[], LORA),
    only("freeze_llm", &[], LORA),
    only("lisa_activated_layers", &[], LORA),
    noted("lisa_step_interval", &["20"], "only --lisa_activated_layers uses it"),
    noted("adalora_target_r", &["8"], ADALORA),
    noted("adalora_init_r", &["12"], ADALORA),
    noted("adalora_tinit", &["0"], ADALORA),
    noted("adalora_tfinal", &["0"], ADALORA),
    noted("adalora_deltaT", &["1"], ADALORA),
    noted("adalora_beta1", &["0.85"], ADALORA),
    noted("adalora_beta2", &["0.85"], ADALORA),
    noted("adalora_orth_reg_weight", &["0.5"], ADALORA),
    noted("adapter_act", &["gelu"], ADAPTER),
    noted("adapter_length", &["128"], ADAPTER),
    noted("boft_block_size", &["4"], BOFT),
    noted("boft_block_num", &["0"], BOFT),
    noted("boft_n_butterfly_factor", &["1"], BOFT),
    noted("boft_dropout", &["0"], BOFT),
    noted("fourier_n_frequency", &["2000"], FOURIER),
    noted("fourier_scaling", &["300"], FOURIER),
    noted("llamapro_num_new_blocks", &["4"], LLAMAPRO),
    noted("llamapro_num_groups", &[], LLAMAPRO),
    noted("lora_ga_batch_size", &["2"], LORA_GA),
    noted("lora_ga_iters", &["2"], LORA_GA),
    noted("lora_ga_max_length", &["1024"], LORA_GA),
    noted("lora_ga_direction", &["ArB2r"], LORA_GA),
    noted("lora_ga_scale", &["stable"], LORA_GA),
    noted("lora_ga_stable_gamma", &["16"], LORA_GA),
    noted("reft_layer_key", &[], REFT),
    noted("reft_layers", &[], REFT),
    noted("reft_rank", &["4"], REFT),
    noted("reft_intervention_type", &["LoreftIntervention"], REFT),
    noted("reft_args", &[], REFT),
    noted("vera_rank", &["256"], VERA),
    noted("vera_projection_prng_key", &["0"], VERA),
    noted("vera_dropout", &["0"], VERA),
    noted("vera_d_initial", &["0.1"], VERA),
];
