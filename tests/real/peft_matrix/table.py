"""Writes src/adapter/names.tsv: what each class calls a part of its model, and what its checkpoint does.

    python tests/real/peft_matrix/table.py OUT.tsv [MODEL_TYPE...]

Needs what the matrix needs. Each model type is built small, saved, and its parameters are looked up by their values; then
common endings are dropped, and rows that follow from a shorter one.
"""

import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import transformers
from architectures import architectures, build
from names import spelling

HEADER = (
    f"# What classes of transformers {transformers.__version__} call a part of a model, what its checkpoint does, and for which "
    "model types.\n# N is a number. Made by tests/real/peft_matrix/table.py, which finds the names by the values.\n"
)


def beginnings(table):
    """{the class's name: the file's} without their common ending, of parameters that are one whole tensor on disk."""
    pairs = {}
    for name, found in table.items():
        if len(found) != 1 or found[0][1]:
            continue
        here, there = name.split("."), found[0][0].split(".")
        if "embed" not in name and any(word in found[0][0] for word in ("embedding", "embed_tokens")):
            continue  # a head that is tied
        if there.count("N") > here.count("N"):
            continue  # a number that the class's name does not tell
        while here and there and here[-1] == there[-1]:
            here.pop(), there.pop()
        pairs[".".join(here)] = ".".join(there)
    return pairs


def shortest(pairs):
    """The pairs that no shorter one implies."""
    kept = {}
    split = lambda name: name.split(".") if name else []  # noqa: E731
    for name in sorted(pairs, key=lambda name: (name.count("."), name)):
        parts = split(name)
        fits = [k for k in kept if parts[: len(split(k))] == split(k)]
        best = max(fits, key=lambda k: len(split(k)), default=None)
        if best is None or ".".join(split(kept[best]) + parts[len(split(best)) :]) != pairs[name]:
            kept[name] = pairs[name]
    return kept


def main(out, wanted):
    warnings.simplefilter("ignore")
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
            print(f"{arch.name}: {problem}".splitlines()[0][:120], file=sys.stderr)
            continue
        for pair in pairs.items():
            rows[pair].add(arch.name)
    lines = sorted("\t".join([*pair, " ".join(sorted(types))]) for pair, types in rows.items())
    Path(out).write_text(HEADER + "".join(line + "\n" for line in lines))


main(sys.argv[1], sys.argv[2:])
