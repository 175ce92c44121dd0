"""Where the values of a model's parameters lie in its checkpoint: what a failure's right names would have been.

Weights are random, so that equal bytes are the same weight.
"""

import re
from pathlib import Path

from safetensors.torch import load_file


def digest(tensor):
    return (tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes())


def views(tensor):
    """A parameter, and the parts and transposes of it that checkpoints hold; (what, view)."""
    yield "", tensor
    if tensor.dim() == 2:
        yield "transposed", tensor.T
        for parts in (2, 3):
            if tensor.shape[0] % parts == 0:
                yield from ((f"rows {i + 1}/{parts}", t) for i, t in enumerate(tensor.chunk(parts)))
    if tensor.dim() == 3:
        yield "transposed", tensor.transpose(1, 2)
        for one in tensor:
            for end, way in (("", one), (" transposed", one.T)):
                yield "of an expert" + end, way
                if way.shape[0] % 2 == 0:
                    yield from ((f"of an expert{end}, half {i + 1}", t) for i, t in enumerate(way.chunk(2)))


def numbers_out(name):
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name)


def spelling(model, base):
    """{parameter, numbers as N: [(name in the file, which part)]} for parameters whose names differ."""
    on_disk, rows_on_disk = {}, {}
    for path in sorted(Path(base).glob("*.safetensors")):
        for name, value in load_file(path).items():
            if value.is_floating_point() and value.numel() > 1:
                on_disk.setdefault(digest(value), name)
            if value.is_floating_point() and value.dim() == 2:
                for at, row in enumerate(value):
                    rows_on_disk.setdefault(digest(row), (name, at))
    table = {}
    for name, p in model.named_parameters():
        if not p.is_floating_point() or p.numel() < 2:
            continue
        found = [(on_disk.get(digest(view)), what) for what, view in views(p)]
        found = [(file, what) for file, what in found if file]
        whole = [(file, what) for file, what in found if not what]
        if not found and p.dim() == 2 and digest(p[0]) in rows_on_disk:
            file, at = rows_on_disk[digest(p[0])]
            found = [(file, f"is rows {at}.. of it")]
        rows = [(numbers_out(file), what) for file, what in (whole or found) if file != name]
        if rows:
            table.setdefault(numbers_out(name), [])
            table[numbers_out(name)] += [row for row in dict.fromkeys(rows) if row not in table[numbers_out(name)]]
    return table
