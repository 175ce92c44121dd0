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
        r"is the base's \S+, which another part of the model shares",
        "the file has the weight once, and the adapter changes the parts that share it apart",
    ),
    Refusal(".*", ".*", r"is rows of the base's .*, in another order", "the file has the rows in another order"),
    Refusal(
        "dora|embeddings?|token_rows",
        ".*",
        r"is rows of the base's .*, to which only a plain delta can be added",
        "norms or values for rows of a tensor that holds other weights too",
    ),
    Refusal(".*", ".*", r"of a \S+ can't be written apart", "the class's flag does more than tie embedding and head"),
    Refusal(".*", ".*", r"an embedding that its class normalizes", "PEFT's change comes behind a normalization"),
    Refusal(
        ".*experts.*",
        "inkling_text",
        r"which is which can't be told",
        "two parameters of one shape: the file does not say which is which",
    ),
    Refusal(
        ".*experts.*",
        "ernie4_5_vl_moe",
        r"fit none of its target_parameters",
        "the file has the experts of text and pictures in one list",
    ),
    Refusal("bare", "seamless_m4t.*", r"the base has no speech_encoder\.", "the base has no encoder of speech"),
    Refusal(
        "bare|seq_cls", ".*", r"the base has no (\S+\.)?pooler\.", "the base has no pooler: its weights are in no file"
    ),
    Refusal(".*", ".*", r"may be tied to a head by a rule that qft does not know", "a tie that qft has no rule for"),
]
