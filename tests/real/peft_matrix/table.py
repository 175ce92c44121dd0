"""Writes src/adapter/names.tsv: what each class calls a part of its model, and where it lies in the checkpoint.

    python tests/real/peft_matrix/table.py OUT.tsv [MODEL_TYPE...]

Needs what the matrix needs. Each model type is built small, saved, and its parameters are looked up by their values; then
common endings are dropped, and rows that follow from a shorter one. A minute for all types.
"""

import os
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import transformers
from architectures import architectures, build
from names import spelling

HEADER = (
    f"# What classes of transformers {transformers.__version__} call a part of a model, where it lies in the checkpoint, and for "
    "which model\n# types. N is a number. The third column tells which rows of the tensor: all; 1/3, the second of three "
    "equal\n# parts; q, k or v, parts of which the last two are equal; +, several tensors one after another; mixed, any "
    "other\n# order; shared, all, and another part of the model is the same tensor. Made by tests/real/peft_matrix/table.py, which finds the places by the values.\n"
)


def split(name):
    return name.split(".") if name else []


def beginnings(table):
    """{the class's name: (the file's names, part)} without their common ending, where that says the same."""
    pairs = {}
    for name, (files, part) in table.items():
        here, there = split(name), [split(file) for file in files]
        leaf = ("weight", "bias")
        while here and all(there) and all(one[-1] == here[-1] for one in there) and (not part or here[-1] in leaf):
            here.pop()
            for one in there:
                one.pop()
        place = (tuple(".".join(one) for one in there), part)
        short = ".".join(here)
        if pairs.setdefault(short, place) != place:
            pairs[name] = (files, part)
    return pairs


def shortest(pairs):
    """The pairs that no shorter one implies."""
    kept = {}
    for name in sorted(pairs, key=lambda name: (name.count("."), name)):
        parts = split(name)
        fits = [k for k in kept if parts[: len(split(k))] == split(k)]
        best = max(fits, key=lambda k: len(split(k)), default=None)
        implied = None
        if best is not None:
            files, part = kept[best]
            implied = (tuple(".".join(split(file) + parts[len(split(best)) :]) for file in files), part)
        if implied != pairs[name]:
            kept[name] = pairs[name]
    return kept


def main(out, wanted):
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    rows = defaultdict(set)
    for arch in architectures():
        if wanted and arch.name not in wanted:
            continue
        try:
            model = build(arch)
            with tempfile.TemporaryDirectory() as base:
                model.save_pretrained(base)
                pairs = shortest(beginnings(spelling(model, base)))
        except Exception as problem:  # a type that can't be built small has no row
            print(f"{arch.name}: {type(problem).__name__} {problem}".splitlines()[0][:120], file=sys.stderr)
            continue
        for name, (files, part) in pairs.items():
            rows[name, " ".join(files), part].add(arch.name)
    lines = sorted("\t".join([*row, " ".join(sorted(types))]) for row, types in rows.items())
    Path(out).write_text(HEADER + "".join(line + "\n" for line in lines))


main(sys.argv[1], sys.argv[2:])
