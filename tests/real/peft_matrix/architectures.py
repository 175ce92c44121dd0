"""The model types of transformers, each as a model of a few hundred kilobytes, and inputs that it takes.

Weights are random, seeded by name, so that a second run gives the same bytes. sizes.py has the configs.
"""

import zlib
from dataclasses import dataclass

import torch
import transformers
from sizes import VOCAB, small_config
from transformers.models.auto import modeling_auto as auto

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
            if p.is_floating_point() and p.requires_grad:
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


def noise(*shape):
    return torch.randn(shape, generator=seeded("noise"))


def candidates(model):
    """Inputs that a model may take; the first that it does take is used."""
    config = model.config
    text = {"input_ids": ids()}
    decoder = {"decoder_input_ids": ids(8, "decoder")}
    side = deep(config, "image_size", 32)
    side = side if isinstance(side, int) else side[0]
    picture = {"pixel_values": noise(1, 3, side, side)}
    for inputs in (
        text,
        text | decoder,
        text | {"use_cache": False},
        text | picture,
        text | picture | decoder,
        decoder | picture,
    ):
        yield inputs
    mels = deep(config, "num_mel_bins") or deep(config, "input_feat_per_channel") or 80
    frames = 2 * (deep(config, "max_source_positions") or 32)
    for audio in (
        {"input_features": noise(1, mels, frames)},
        {"input_features": noise(1, frames, mels)},
        {"input_values": noise(1, 4000)},
    ):
        yield decoder | audio
        yield text | audio
    bare = deep(config, "patch_embed_hidden_size")
    if bare:
        places = torch.arange(8).remainder(4)[None, :, None] + 1.0
        yield decoder | {"flattened_patches": torch.cat([places, places, noise(1, 8, bare)], -1)}
    marked = text["input_ids"].clone()
    slots = deep(config, "num_query_tokens", 4)
    marked = torch.cat(
        [torch.full((1, slots), deep(config, "image_token_index") or deep(config, "image_token_id") or 0), marked], 1
    )
    query = {"qformer_input_ids": ids(6, "query")}
    yield {"input_ids": marked} | picture
    yield {"input_ids": marked} | picture | query
    yield {"input_ids": marked} | query | {"pixel_values": noise(1, 1, 3, side, side)}
    yield text | {"pixel_values": noise(1, 1, 3, side, side), "image_attention_mask": torch.ones(1, 12, 1)}
    yield text | {"bbox": torch.rand(1, 12, 4, generator=seeded("boxes"))} | decoder
    yield (
        text
        | picture
        | {"image_embeds_position_mask": torch.arange(12).lt(deep(config, "latent_query_num", 1)).long()[None]}
    )


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
