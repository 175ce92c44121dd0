"""The model types of transformers, each as a model of a few hundred kilobytes, and inputs that it takes.

A config is the type's default with every size made small by a rule on its name (SIZES); OVER has what the rules get
wrong. Weights are random, seeded by name, so that a second run gives the same bytes.
"""
import re
import zlib
from dataclasses import dataclass

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

VOCAB = 160
LAYERS = 2
MOST_PARAMETERS = 8_000_000

# Kinds of model, the Auto class that loads them, and transformers' list of their types. The first that has a type wins.
KINDS = {
    "vlm": ("AutoModelForImageTextToText", auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    "seq2seq": ("AutoModelForSeq2SeqLM", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "speech": ("AutoModelForSpeechSeq2Seq", auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
    "causal": ("AutoModelForCausalLM", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "encoder": ("AutoModelForMaskedLM", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
}
# Encoders that people put classifiers on; the other masked models are left out.
ENCODERS = ("bert", "roberta", "xlm-roberta", "deberta", "deberta-v2", "distilbert", "electra", "albert", "modernbert")
# Causal by the list, but masked models in practice, met as encoders or not at all.
AS_ENCODER = {"bert", "roberta", "xlm-roberta", "electra"}

# Whole names of integers, and the most that they may be; the first that matches. Nothing grows.
SIZES = [
    (r"(vision_)?feature_layer|max_window_layers|.*(stride|kernel.*|kernel_dim)|conv_L_cache|conv_kernel|in_channels|num_channels", None),
    (r"num_kv_shared_layers", 0),
    (r"(first_k_dense_replace|num_dense_layers|.*sparse_step|moe_layer_start_index|n_shared_experts|num_shared_experts)", 1),
    (r"(n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|mamba_ngroups)", 1),
    (r"(num_experts_per_(tok|token)|moe_topk|moe_k|top_k.*|moe_top_k|num_selected_experts)", 2),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_moe_experts)", 4),
    (r"(layers|depth|n_layers?|num_blocks|.*_(layers|depth))", LAYERS),
    (r"(mamba_(n|num)_heads)", 8),
    (r"(.*key_value_heads|num_kv_heads|linear_num_key_heads|n_head_kv|multi_query_group_num)", 2),
    (r"(n_heads?|num_heads|attention_heads|.*_(heads|n_heads|num_heads))", 4),
    (r"(.*vocab_size.*)", VOCAB),
    (r"(qk_head_dim)", 32),
    (r"(index_topk|rotary_dim)", 8),
    (r"(head_dim|d_kv|kv_channels|dim_head|mamba_(d_head|head_dim)|linear_(key|value)_head_dim|.*_head_dim)", 16),
    (r"(.*lora_rank|laurel_rank|hc_lowrank|o_lora_rank)", 16),
    (r"(moe_.*intermediate_size|shared_expert.*_intermediate_size|expert_ffn.*|.*expert.*size)", 32),
    (r"(.*intermediate.*|.*ffn.*|d_ff|n_inner|mlp_dim|.*mlp_hidden.*)", 96),
    (r"(.*embed_dim|.*hidden_size|.*hidden_dim|d_model|n_embd|embedding_size|.*embed_proj_dim|projection_dim|output_dim|.*proj_dim)", 64),
    (r"(.*d_state|.*state_size|.*dt_rank|time_step_rank)", 8),
    (r"(sliding_window.*|local_window_size|attention_window|window_size|attention_chunk_size|.*chunk_size)", 8),
    (r"(.*position.*|n_ctx|.*seq_len|.*max_length)", 64),
    (r"(image_size)", 32),
    (r"(patch_size)", 8),
    (r"(.*(size|dim|hidden|channels|width|height|length|num_embeddings|dimension|features))", 64),
]
# Values for what a default leaves to be worked out, or out.
FILL = {"head_dim": 16, "num_key_value_heads": 2, "num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 32}
TOKEN = re.compile(r".*_(token_id|token_index|token_ids|id|index)$")

# What the rules get wrong, over the small config; a dict is for a config inside.
MROPE = {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}}}
OVER = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2},
    "phi3": {"num_key_value_heads": 2},
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "qwen2_5_omni_thinker", "glm4v", "glm46v", "glm_ocr", "glmga"), MROPE),
    "glm4v_moe": {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "norm_topk_prob": True},
    "xlnet": {"d_head": 16},
    "pix2struct": {"vision_config": {"seq_len": 64}},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 8]},
    "zamba2": {"n_mamba_heads": 8, "mamba_headdim": 16, "attention_hidden_size": 128, "attention_head_dim": 32, "num_query_groups": 4, "num_key_value_heads": 4, "kv_channels": 16, "hybrid_layer_ids": [1], "layers_block_type": ["linear_attention", "hybrid"]},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4, "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "index_topk": 16}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_global_key_value_heads": 2}},
    "hunyuan_vl": MROPE,
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "qwen4_exp": {"text_config": {"token_budget": 8, "compress_ratio": 2}},
    "qwen4_exp_text": {"token_budget": 8, "compress_ratio": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 100, "<image>": 101}},
    "chameleon": {"vocabulary_map": {"<image>": 101}},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "xmod": {"default_language": "en_XX"},
}


@dataclass(frozen=True)
class Architecture:
    """A model type, and the class that it is trained and served as."""

    name: str
    kind: str

    @property
    def auto(self):
        return KINDS[self.kind][0]


def architectures():
    """All of them, in order of name."""
    found = {}
    for kind, (_, types) in KINDS.items():
        for name in types:
            if kind == "encoder" and name not in ENCODERS or kind == "causal" and name in AS_ENCODER:
                continue
            found.setdefault(name, Architecture(name, kind))
    return [found[name] for name in sorted(found)]


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
    layers = next((config[k] for k in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers") if isinstance(config.get(k), int)), layers)
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
        out[key] = merged(out.get(key) or {}, value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
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


def seeded(name):
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def build(arch, tied=None):
    """The model, in f32, with weights that make a difference."""
    changes = {} if tied is None else {"tie_word_embeddings": tied}
    config = small_config(arch.name, **changes)
    if tied is not None and getattr(config, "text_config", None) is not None:
        config.text_config.tie_word_embeddings = tied
    cls = getattr(transformers, arch.auto)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(1)
    model = cls.from_config(config, dtype=torch.float32).eval()
    stir(model)
    return model


def stir(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.is_floating_point():
                noise = torch.randn(p.shape, generator=seeded(name))
                p.add_(noise * (0.1 if p.dim() > 1 else 0.05))


def ids(length=12, name="ids", least=5):
    return torch.randint(least, VOCAB - 30, (1, length), generator=seeded(name))


def deep(config, key, otherwise=None):
    """A setting of a config or of one inside it."""
    if isinstance(getattr(config, key, None), (int, list, tuple)):
        return getattr(config, key)
    inside = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    found = (deep(one, key) for one in inside if one is not None)
    return next((value for value in found if value is not None), otherwise)


def candidates(model):
    """Inputs that a model may take; the first that it does take is used."""
    config = model.config
    text = {"input_ids": ids()}
    decoder = {"decoder_input_ids": ids(8, "decoder")}
    noise = lambda *shape: torch.randn(shape, generator=seeded("noise"))
    side = deep(config, "image_size", 32)
    side = side if isinstance(side, int) else side[0]
    picture = {"pixel_values": noise(1, 3, side, side)}
    for inputs in (text, text | decoder, text | {"use_cache": False}, text | picture, text | picture | decoder, decoder | picture):
        yield inputs
    mels = deep(config, "num_mel_bins") or deep(config, "input_feat_per_channel") or 80
    frames = 2 * (deep(config, "max_source_positions") or 32)
    for audio in ({"input_features": noise(1, mels, frames)}, {"input_features": noise(1, frames, mels)}, {"input_values": noise(1, 4000)}):
        yield decoder | audio
        yield text | audio
    bare = deep(config, "patch_embed_hidden_size")
    if bare:
        yield decoder | {"flattened_patches": noise(1, 8, 2 + bare)}
    marked = text["input_ids"].clone()
    slots = deep(config, "num_query_tokens", 4)
    marked = torch.cat([torch.full((1, slots), deep(config, "image_token_index") or deep(config, "image_token_id") or 0), marked], 1)
    query = {"qformer_input_ids": ids(6, "query")}
    yield {"input_ids": marked} | picture
    yield {"input_ids": marked} | picture | query
    yield {"input_ids": marked} | query | {"pixel_values": noise(1, 1, 3, side, side)}
    yield text | {"pixel_values": noise(1, 1, 3, side, side), "image_attention_mask": torch.ones(1, 12, 1)}
    yield text | {"bbox": torch.rand(1, 12, 4, generator=seeded("boxes"))} | decoder
    yield text | picture | {"image_embeds_position_mask": torch.arange(12).lt(deep(config, "latent_query_num", 1)).long()[None]}


def inputs_of(model, why=None):
    problems = []
    for inputs in candidates(model):
        try:
            logits_of(model, inputs)
            return inputs
        except Exception as problem:
            problems.append(problem)
            if why is not None:
                why.append(f"{list(inputs)}: {type(problem).__name__} {problem}")
    raise problems[0]


@torch.no_grad()
def logits_of(model, inputs):
    torch.manual_seed(0)
    out = model(**inputs)
    logits = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
    if isinstance(logits, tuple):
        logits = logits[0]
    if not torch.isfinite(logits).all():
        raise ValueError("logits are not finite")
    return logits.detach().clone().float()
