"""What qft refuses by design. Patterns match whole names; `text` is searched in what qft says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    ways: str
    archs: str
    text: str
    why: str


# With a resized vocabulary these hold only where the adapter's file lacks the new rows.
REFUSALS = [
    Refusal(
        "vocabulary_saved_embedding_.*",
        ".*",
        r"would have \d+ rows and \S+ \d+|the head's new rows are in no file",
        "the head's new rows are not in the adapter's file",
    ),
    Refusal(
        "vocabulary_lora_.*",
        ".*",
        r"the delta is \d+ x .* the base's \S+ is|do not fit rank",
        "the base's new rows are not in the adapter's file",
    ),
    Refusal(
        ".*",
        ".*",
        r"the base has no (model\.)?(decoder|encoder)\.embed_tokens\.weight",
        "the file has one embedding for encoder and decoder, the adapter changes them apart",
    ),
    Refusal(
        "bare|seq_cls", ".*", r"the base has no (\S+\.)?pooler\.", "the base has no pooler: its weights are in no file"
    ),
    Refusal(".*", ".*", r"may be tied to a head by a rule that qft does not know", "a tie that qft has no rule for"),
]
