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
    on_disk = {}
    for path in sorted(Path(base).glob("*.safetensors")):
        for name, value in load_file(path).items():
            if value.is_floating_point() and value.numel() > 1:
                on_disk.setdefault(digest(value), name)
    table = {}
    for name, p in model.named_parameters():
        if not p.is_floating_point() or p.numel() < 2:
            continue
        for what, view in views(p):
            found = on_disk.get(digest(view))
            if found:
                if found != name:
                    row = (numbers_out(found), what)
                    rows = table.setdefault(numbers_out(name), [])
                    if row not in rows:
                        rows.append(row)
                if not what:
                    break
    return table
