"""The ways in which PEFT makes and saves a LoRA, a row each: the config, and what is done to model and file.

A config is made from the model, since names differ; a way whose config is None does not apply to that model.
"""

import json
import re
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Callable

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLAIN = dict(r=4, lora_alpha=8)
# Names of layers, two of which nearly every model has, the likeliest to be trained first.
LIKELY = (
    "q_proj v_proj c_attn query_key_value qkv_proj q v query value q_a_proj in_proj o_proj out_proj dense c_proj"
).split()
TOKENS = [7, 3, 120]
VISION = re.compile(
    r"(^|\.)(vision_tower|visual|vision_model|vision_encoder|vision_embed_tokens|vit|image_encoder|vision)(\.|$)"
)

# Met by most people: the ways of scope "main" are tried on these alone.
MAIN = (
    "llama qwen2 qwen3 mistral gemma gemma2 gemma3 gemma3_text phi3 gpt2 gpt_neox qwen3_moe mixtral qwen2_vl "
    "qwen2_5_vl qwen3_vl llava gpt_oss deepseek_v3 glm4 olmo2 falcon bloom opt t5 whisper qwen3_5 qwen3_5_moe llama4 "
    "granite bert"
).split()


@dataclass(frozen=True)
class Way:
    name: str
    what: str
    config: Callable  # of the model: arguments of LoraConfig
    scope: str = "every"  # or main
    second: Callable | None = None  # the config of another adapter that is active too
    auto: str | None = None  # the class that trains it, where that isn't the base's own
    load: dict = field(default_factory=dict)  # for from_pretrained of that class
    tied: bool | None = None  # embedding and head of the base; None leaves it to the model type
    resize: int = 0  # rows that training adds to the vocabulary
    save: dict = field(default_factory=dict)  # for save_pretrained
    adapter: str = "default"  # its name
    edit: Callable | None = None  # of the directory that PEFT saved
    weights: bool = False  # compare the weights with those that PEFT merges: no inputs of the test reach them


def leaf(name):
    return name.rsplit(".", 1)[-1]


def embedding(model):
    """The embedding that forward passes use: encoder-decoders have two that share the weight of a third."""
    module = model.get_input_embeddings()
    sharing = [n for n, m in model.named_modules() if isinstance(m, nn.Embedding) and m.weight is module.weight]
    used = [n for n in sharing if model.get_submodule(n) is not module]
    return (used or sharing or [None])[0]


def head(model):
    module = model.get_output_embeddings()
    return next((n for n, m in model.named_modules() if m is module and isinstance(m, nn.Linear)), None)


def linears(model, kinds=(nn.Linear, Conv1D)):
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and n != head(model)]


def attention(model):
    """Two kinds of linear layers, for ways where it doesn't matter which."""
    names = sorted({leaf(n) for n in linears(model) if not leaf(n).isdigit()} - mamba_out(model))
    return ([n for n in LIKELY if n in names] or names)[:2]


def experts(model):
    """The 3-D parameters of expert modules, as `target_parameters` names them."""
    found = []
    for name, p in model.named_parameters():
        if (
            p.dim() == 3
            and "expert" in name
            and leaf(name) not in ("weight", "bias")
            and not leaf(name).endswith("bias")
        ):
            suffix = re.sub(r".*\.\d+\.", "", name)
            if suffix not in found:
                found.append(suffix)
    return found


def plain(**more):
    """Attention alone, with more said about it; a value that is a function is asked with the model, and may be None."""

    def config(model):
        said = {k: v(model) if callable(v) else v for k, v in more.items()}
        if any(v is None or v == [] and k != "target_modules" for k, v in said.items()):
            return None
        return PLAIN | dict(target_modules=attention(model)) | said

    return config


def mamba_out(model):
    """What PEFT refuses to wrap, even where "all-linear" names it."""
    return {"out_proj"} if "mamba" in model.config.model_type else set()


def every_linear(model):
    return sorted({leaf(n) for n in linears(model)} - mamba_out(model)) if mamba_out(model) else "all-linear"


def all_linear(**more):
    return plain(target_modules=every_linear, **more)


def seven(model):
    there = [n for n in SEVEN if n in {leaf(m) for m in linears(model)}]
    return PLAIN | dict(target_modules=there) if there else None


def default_targets(model):
    known = model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return PLAIN | dict() if known else None


def seven_with_experts(named, model):
    """`gate_proj` and its like are no modules where experts are fused: PEFT turns them into parameters."""
    if not experts(model):
        return None
    return PLAIN | dict(target_modules=list(SEVEN)) | (dict(target_parameters=experts(model)) if named else {})


def both_embeddings(model):
    names = [leaf(n) for n in (embedding(model), head(model)) if n]
    return names if len(names) == 2 else None


def one_embedding(model):
    name = embedding(model)
    return [leaf(name)] if name else None


def just_head(model):
    return [leaf(head(model))] if head(model) else None


def embeddings_there(model):
    return both_embeddings(model) or one_embedding(model)


def token_rows(which, model):
    names = {"list": one_embedding, "embedding": one_embedding, "both": both_embeddings}[which](model)
    return names and (TOKENS if which == "list" else {n: TOKENS for n in names})


def part(inside, model):
    """The linear layers of the vision tower, or those outside it."""
    names = [n for n in linears(model, nn.Linear) if bool(VISION.search(n)) == inside]
    return names if any(VISION.search(n) for n in linears(model)) and names else None


def convolutions(model):
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and m.groups == 1]
    return names or None


def first_layer(model):
    return [0] if any(re.search(r"\.(layers|h|layer|block|blocks)\.1\.", n) for n in linears(model)) else None


def patterns(key, model):
    names = attention(model)
    values = (3, 5) if key == "rank_pattern" else (12, 3)
    return {rf".*\.1\..*{names[0]}": values[0], names[-1]: values[1]}


def with_default_in_keys(directory):
    """As trainers that save the state dict themselves do: the adapter's name stays in the keys."""
    path = Path(directory) / "adapter_model.safetensors"
    named = {}
    for key, value in load_file(path).items():
        key = re.sub(r"\.(lora_[AB])\.(weight|bias)$", r".\1.default.\2", key)
        key = re.sub(r"\.(lora_embedding_[AB])$", r".\1.default", key)
        named[re.sub(r"\.(lora_magnitude_vector)$", r".\1.default.weight", key)] = value
    save_file(named, path, {"format": "pt"})


def in_bf16(directory):
    import torch

    path = Path(directory) / "adapter_model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(path).items()}, path, {"format": "pt"})


def vocabularies():
    """Vocabularies grown and cut, tied and not, in every form of save_embedding_layers and ensure_weight_tying."""
    for resize, tied in product((0, 11, -9), (False, True)):
        base = f"{'tied' if tied else 'untied'}_{ {0: 'same', 11: 'grown', -9: 'cut'}[resize] }"
        saves = ("auto", True, False) if resize else ("auto",)
        for save in saves:
            common = dict(scope="vocabulary", tied=tied, resize=resize, save=dict(save_embedding_layers=save))
            more = f"{base}_{str(save).lower()}"
            for tying in (False, True) if tied else (False,):
                ending = "_tying" if tying else ""
                saved = dict(modules_to_save=both_embeddings, ensure_weight_tying=tying)
                yield Way(
                    f"vocabulary_saved_{more}{ending}", "modules_to_save, both embeddings", plain(**saved), **common
                )
            saved = dict(modules_to_save=one_embedding, ensure_weight_tying=tied)
            yield Way(f"vocabulary_saved_embedding_{more}", "modules_to_save, embedding", plain(**saved), **common)
            if resize:
                yield Way(f"vocabulary_resized_{more}", "resized, not named", plain(), **common)
                yield Way(f"vocabulary_lora_{more}", "LoRA on both", plain(target_modules=embeddings_there), **common)
                yield Way(
                    f"vocabulary_rows_{more}",
                    "token rows",
                    plain(trainable_token_indices=partial(token_rows, "list")),
                    **common,
                )


def classifier(auto, task):
    """A head of three labels, saved whole; PEFT adds its name to modules_to_save."""
    return Way(
        task.lower(),
        f"task_type {task}: the head is saved",
        plain(task_type=task),
        auto=auto,
        load=dict(num_labels=3),
        scope="classifier",
    )


WAYS = [
    Way("all_linear", "target_modules all-linear", all_linear()),
    Way("seven", "the seven projections by name", seven),
    Way("default_targets", "PEFT's own targets for the model type", default_targets),
    Way("embedding", "LoRA on the embedding", plain(target_modules=one_embedding)),
    Way("embeddings", "LoRA on embedding and head", plain(target_modules=both_embeddings)),
    Way("head", "LoRA on the head", plain(target_modules=just_head)),
    Way("saved", "modules_to_save: embedding and head", all_linear(modules_to_save=embeddings_there)),
    Way("token_rows", "trainable_token_indices as a list", plain(trainable_token_indices=partial(token_rows, "list"))),
    Way("dora", "DoRA on all linear layers", all_linear(use_dora=True)),
    Way("experts", "target_parameters alone", plain(target_modules=[], target_parameters=experts)),
    Way("experts_and_attention", "target_parameters with target_modules", plain(target_parameters=experts)),
    Way("seven_on_fused", "the seven names where experts are fused", partial(seven_with_experts, False)),
    Way("seven_and_experts", "the seven names and target_parameters", partial(seven_with_experts, True)),
    Way("conv", "LoRA on convolutions", plain(target_modules=convolutions), weights=True),
    Way("text_part", "a VLM's text layers", plain(target_modules=partial(part, False))),
    Way("vision_part", "a VLM's vision tower", plain(target_modules=partial(part, True)), weights=True),
    Way("text_class", "trained as the text class of a VLM", all_linear(), auto="AutoModelForCausalLM"),
    Way(
        "text_class_saved",
        "the same with saved embeddings",
        plain(modules_to_save=embeddings_there),
        auto="AutoModelForCausalLM",
    ),
    Way("bare", "trained as AutoModel, without head", all_linear(), auto="AutoModel"),
    Way("rslora", "rsLoRA", all_linear(use_rslora=True, r=3), scope="main"),
    Way(
        "dora_embeddings",
        "DoRA, with embedding and head",
        plain(target_modules=lambda m: attention(m) + embeddings_there(m), use_dora=True),
        scope="main",
    ),
    Way("rank_pattern", "rank_pattern", all_linear(rank_pattern=partial(patterns, "rank_pattern")), scope="main"),
    Way("alpha_pattern", "alpha_pattern", all_linear(alpha_pattern=partial(patterns, "alpha_pattern")), scope="main"),
    Way("bias_all", "bias all", all_linear(bias="all"), scope="main"),
    Way("bias_lora_only", "bias lora_only", all_linear(bias="lora_only"), scope="main"),
    Way(
        "lora_bias",
        "lora_bias, on layers that have one",
        plain(
            target_modules=lambda m: (
                [n for n in linears(m) if getattr(m.get_submodule(n), "bias", None) is not None] or None
            ),
            lora_bias=True,
        ),
        scope="main",
    ),
    Way("two", "two adapters, both active", all_linear(), second=plain(r=2), scope="main"),
    Way(
        "two_embeddings",
        "two adapters, on embeddings too",
        plain(target_modules=embeddings_there),
        second=plain(r=2, target_modules=embeddings_there),
        scope="main",
    ),
    Way(
        "two_experts",
        "two adapters on experts",
        plain(target_parameters=experts),
        second=plain(r=2, target_parameters=experts),
        scope="main",
    ),
    Way("named", "an adapter with a name, in a directory of that name", all_linear(), adapter="style", scope="main"),
    Way("default_keys", "keys that hold .default", all_linear(), edit=with_default_in_keys, scope="main"),
    Way("bf16_adapter", "the adapter's file in bf16", all_linear(), edit=in_bf16, scope="main"),
    Way(
        "regex_targets",
        "target_modules as a pattern",
        plain(target_modules=lambda m: rf".*({'|'.join(attention(m))})"),
        scope="main",
    ),
    Way("exclude_modules", "exclude_modules", all_linear(exclude_modules=lambda m: attention(m)[:1]), scope="main"),
    Way("layers_to_transform", "layers_to_transform", plain(layers_to_transform=first_layer), scope="main"),
    Way(
        "rows_embedding",
        "trainable_token_indices by module",
        plain(trainable_token_indices=partial(token_rows, "embedding")),
        scope="main",
    ),
    Way(
        "rows_untied",
        "token rows of both, untied",
        plain(trainable_token_indices=partial(token_rows, "both")),
        tied=False,
        scope="main",
    ),
    Way(
        "rows_tied",
        "token rows of both, tied",
        plain(trainable_token_indices=partial(token_rows, "list"), ensure_weight_tying=True),
        tied=True,
        scope="main",
    ),
    Way("embedding_tied", "LoRA on a tied embedding", plain(target_modules=one_embedding), tied=True, scope="main"),
    Way(
        "embedding_tying",
        "the same with ensure_weight_tying",
        plain(target_modules=one_embedding, ensure_weight_tying=True),
        tied=True,
        scope="main",
    ),
    Way("head_tied", "LoRA on the head of a tied pair", plain(target_modules=just_head), tied=True, scope="main"),
    Way(
        "head_saved_tied",
        "modules_to_save: the head of a tied pair",
        plain(modules_to_save=just_head),
        tied=True,
        scope="main",
    ),
    Way(
        "norms_saved",
        "modules_to_save: norms",
        plain(
            modules_to_save=lambda m: (
                sorted(
                    {
                        leaf(n)
                        for n, p in m.named_modules()
                        if "norm" in leaf(n).lower() and not leaf(n).isdigit() and list(p.parameters(recurse=False))
                    }
                )[:2]
                or None
            )
        ),
        scope="main",
    ),
    *vocabularies(),
    classifier("AutoModelForSequenceClassification", "SEQ_CLS"),
    classifier("AutoModelForTokenClassification", "TOKEN_CLS"),
]

VOCABULARY = "llama qwen2 gemma3 gpt2 qwen2_vl bloom".split()
CLASSIFIERS = (
    "llama qwen2 qwen3 mistral gemma gemma2 gemma3_text phi3 gpt2 bert roberta deberta-v2 distilbert electra modernbert"
).split()


def applies(way, arch):
    """Whether a way is tried on a model type at all; its config may still find nothing to target."""
    if way.scope == "main":
        return arch.name in MAIN
    if way.scope == "vocabulary":
        return arch.name in VOCABULARY
    if way.scope == "classifier":
        return arch.name in CLASSIFIERS
    if way.auto == "AutoModelForCausalLM":
        return arch.kind == "vlm"
    return True


def adapter_config(directory):
    return json.loads((Path(directory) / "adapter_config.json").read_text())
