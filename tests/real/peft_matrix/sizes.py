"""Small configs: a model type's default, with every size made small by a rule on its name (SIZES).

OVER has what the rules get wrong.
"""

import re

from transformers import CONFIG_MAPPING

VOCAB = 160
LAYERS = 2

# Whole names of integers, and the most that they may be; the first that matches. Nothing grows.
SIZES = [
    (r"(vision_)?feature_layer|max_window_layers", None),
    (r".*(stride|kernel.*)|conv_L_cache|in_channels|num_channels", None),
    (r"num_kv_shared_layers", 0),
    (r"first_k_dense_replace|num_dense_layers|.*sparse_step|moe_layer_start_index|n(um)?_shared_experts", 1),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|mamba_ngroups", 1),
    (r"(num_experts_per_(tok|token)|moe_topk|moe_k|top_k.*|moe_top_k|num_selected_experts)", 2),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_moe_experts", 4),
    (r"(layers|depth|n_layers?|num_blocks|.*_(layers|depth))", LAYERS),
    (r"(mamba_(n|num)_heads)", 8),
    (r".*key_value_heads|num_kv_heads|linear_num_key_heads|n_head_kv|multi_query_group_num", 2),
    (r"(n_heads?|num_heads|attention_heads|.*_(heads|n_heads|num_heads))", 4),
    (r".*vocab_size.*", VOCAB),
    (r"qk_head_dim", 32),
    (r"index_topk|rotary_dim", 8),
    (r"(head_dim|d_kv|kv_channels|dim_head|mamba_(d_head|head_dim)|linear_(key|value)_head_dim|.*_head_dim)", 16),
    (r".*lora_rank|laurel_rank|hc_lowrank|o_lora_rank", 16),
    (r"moe_.*intermediate_size|shared_expert.*_intermediate_size|expert_ffn.*|.*expert.*size", 32),
    (r".*intermediate.*|.*ffn.*|d_ff|n_inner|mlp_dim|.*mlp_hidden.*", 96),
    (r".*d_state|.*state_size|.*dt_rank|time_step_rank", 8),
    (r"sliding_window.*|local_window_size|attention_window|window_size|attention_chunk_size|.*chunk_size", 8),
    (r".*position.*|n_ctx|.*seq_len|.*max_length", 64),
    (r"image_size", 32),
    (r"patch_size", 8),
    (r"(.*(size|dim|hidden|channels|width|height|length|num_embeddings|dimension|features)|d_model|n_embd)", 64),
]
# Values for what a default leaves to be worked out, or out.
FILL = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
}
TOKEN = re.compile(r".*_(token_id|token_index|token_ids|id|index)$")

# What the rules get wrong, over the small config; a dict is for a config inside.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ROPE_BY_LAYER = {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}}
MROPE = {"text_config": {"rope_parameters": ROPE | {"mrope_section": [4, 2, 2]}}}
QSA = {
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "indexer_n_heads": 2,
    "indexer_head_dim": 16,
    "indexer_kv_heads": 1,
}
OVER = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2},
    "phi3": {"num_key_value_heads": 2},
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "qwen2_5_omni_thinker", "glm4v", "glm46v", "glm_ocr", "glmga"), MROPE
    ),
    "glm4v_moe": {
        "text_config": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}
    },
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": ROPE_BY_LAYER,
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    "xlnet": {"d_head": 16},
    "pix2struct": {"vision_config": {"seq_len": 64}},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 8]},
    "zamba2": {
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_query_groups": 4,
        "num_key_value_heads": 4,
        "kv_channels": 16,
        "hybrid_layer_ids": [1],
        "layers_block_type": ["linear_attention", "hybrid"],
    },
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "index_topk": 16}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_global_key_value_heads": 2, "num_experts": 4, "top_k_experts": 2}},
    "dots3_note_text": {"per_layer_config": {1: {"head_dim": 32}}},
    "dots3_note": {"text_config": {"per_layer_config": {1: {"head_dim": 32}}}},
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8"}},
    "gemma3n": {"vision_config": {"architecture": "test_efficientnet"}, "text_config": {"num_kv_shared_layers": 0}},
    "perception_lm": {"vision_config": {"architecture": "test_vit", "model_args": {"embed_dim": 64}}},
    "hunyuan_vl": MROPE,
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "qwen4_exp": {"text_config": QSA},
    "qwen4_exp_text": QSA,
    "mistral4": {"head_dim": 32},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), {"image_token_index": VOCAB - 10}),
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}}},
    "cohere_compass": {"text_config": ROPE_BY_LAYER},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 100, "<image>": 101}},
    "chameleon": {"vocabulary_map": {"<image>": 101}},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "xmod": {"default_language": "en_XX"},
}


def limit(name):
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return size
    return None


def shorten(values):
    """A list with a value a layer, for LAYERS layers: each value that occurs, as far as there is room."""
    distinct = [value for i, value in enumerate(values) if value not in values[:i]][:LAYERS]
    return (distinct + [distinct[-1]] * LAYERS)[:LAYERS]


def shrink(config, path="", layers=None):
    """The small one of a config's dict."""
    layers = next(
        (
            config[k]
            for k in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers")
            if isinstance(config.get(k), int)
        ),
        layers,
    )
    small, token = {}, iter(range(VOCAB - 20, VOCAB - 1))
    for key, value in config.items():
        key = str(key)
        if value is None and key in FILL:
            value = FILL[key]
        elif key == "per_layer_config" and value:
            value = {LAYERS - 1: shrink(next(iter(value.values())), f"{path}{key}.", layers)}
        elif isinstance(value, bool) or key in ("transformers_version", "label2id", "id2label", "_name_or_path"):
            pass
        elif isinstance(value, dict):
            value = shrink(value, f"{path}{key}.", layers)
        elif isinstance(value, int) and TOKEN.match(key):
            value = value if value < VOCAB - 20 else next(token)
        elif isinstance(value, int):
            most = limit(key)
            value = value if most is None else min(value, most)
        elif isinstance(value, (list, tuple)) and key == "mrope_section":
            value = [4, 2, 2]
        elif isinstance(value, (list, tuple)) and value and TOKEN.match(key):
            value = [v if v < VOCAB - 20 else next(token) for v in value]
        elif isinstance(value, (list, tuple)) and len(value) == layers:
            most = limit(key)
            value = [min(v, most) if most and isinstance(v, int) else v for v in shorten(list(value))]
        small[key] = value
    if "kv_lora_rank" in config and "num_attention_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def merged(config, over):
    """`over` laid over `config`; None takes a key away."""
    out = dict(config)
    for key, value in over.items():
        out[key] = (
            merged(out.get(key) or {}, value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
        )
    return out


def small_config(name, **changes):
    cls = CONFIG_MAPPING[name]
    over = OVER.get(name, {})
    default = cls(**over.get("start", {})).to_dict()
    over = {k: v for k, v in over.items() if k != "start"}
    small = merged(merged(shrink(default), over), changes)
    small.pop("dtype", None)
    small.pop("torch_dtype", None)
    return cls.from_dict(small)
