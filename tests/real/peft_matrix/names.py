"""Where the values of a model's parameters lie in its checkpoint, in words of the table src/adapter/names.tsv.

Weights are random, so that equal bytes are the same weight.
"""

import re
from collections import defaultdict
from itertools import combinations, groupby
from pathlib import Path

from safetensors.torch import load_file


def digest(tensor):
    return (tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes())


def rows_of(tensor):
    """The rows along the first axis, of a stack along the first two."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() == 3 else tensor.reshape(tensor.shape[0], -1)


class File:
    """The tensors of a checkpoint, by value."""

    def __init__(self, base):
        self.whole, self.rows, self.shapes = {}, {}, {}
        for path in sorted(Path(base).glob("*.safetensors")):
            for name, value in load_file(path).items():
                if not value.is_floating_point() or value.numel() < 2:
                    continue
                self.whole.setdefault(digest(value), name)
                self.shapes[name] = tuple(value.shape)
                for at, row in enumerate(rows_of(value)):
                    self.rows.setdefault((value.dim(), digest(row)), (name, at))

    def place(self, name, p):
        """(names in the file, which part) of a parameter that lies elsewhere than under its own name, or None.

        The part is "" for one whole tensor, "1/3" for the second of three equal parts of its rows, "q", "k" or "v" for
        parts of which the last two are equal, "+" for several tensors one after another, "mixed" for any other order.
        (`spelling` adds "shared", for a tensor that is another parameter's too.)
        """
        found = self.whole.get(digest(p))
        if found:
            return None if found == name else ((found,), "")
        at = [self.rows.get((p.dim(), digest(row))) for row in rows_of(p)]
        if None in at:
            return None
        files = tuple(dict.fromkeys(file for file, _ in at))
        height = p.shape[1] if p.dim() == 3 and p.shape[1] > 1 else len(at)
        step = [(file, i - at_) for at_, (file, i) in enumerate(at)]
        runs = [(file, [i for i, _ in enumerate(run)]) for (file, _), run in groupby(step)]
        if p.dim() == 3 and p.shape[1] > 1:
            parts = [self.shapes[file][1] for file in files]
            wanted = [
                (file, expert * part + row)
                for expert in range(p.shape[0])
                for file, part in zip(files, parts, strict=True)
                for row in range(part)
            ]
            stacked = len(files) > 1 and at == wanted and sum(parts) == height
            return files, "+" if stacked else "mixed"
        if len(runs) == len(files) > 1 and all(len(run) == self.shapes[file][0] for file, run in runs):
            return files, "+"
        if len(runs) > 1:
            return files, "mixed"
        return files, (at[0][1], height, self.shapes[files[0]][0])


def named_parts(places):
    """`places` with words for the parts that are (first row, rows, rows of the whole tensor)."""
    heights = defaultdict(set)
    for files, part in places.values():
        if isinstance(part, tuple):
            heights[files].add(part[1])
    named = {}
    for name, (files, part) in places.items():
        if isinstance(part, tuple):
            first, height, total = part
            if heights[files] == {height} and first % height == 0 and total % height == 0:
                part = f"{first // height}/{total // height}"
            else:
                part = "q" if first == 0 else {total - 2 * height: "k", total - height: "v"}.get(first, "mixed")
        named[name] = (files, part)
    return named


def is_number(part):
    return part.isdigit()


def template(name, keep):
    """`name` with N for its numbers, those at `keep` excepted; the numbers that N stands for."""
    parts, numbers, at = name.split("."), [], -1
    for i, part in enumerate(parts):
        if is_number(part):
            at += 1
            if at not in keep:
                numbers.append(part)
                parts[i] = "N"
    return ".".join(parts), numbers


def filled(pattern, numbers):
    numbers = iter(numbers)
    return ".".join(next(numbers, "?") if part == "N" else part for part in pattern.split("."))


def subsets(n):
    """Sets of positions, the small ones first."""
    return [set(c) for size in range(n + 1) for c in combinations(range(n), size)]


def count(name):
    return sum(map(is_number, name.split(".")))


def patterns(places):
    """{pattern of a class's name: (patterns of the file's names, part)}, N for numbers that both count alike."""
    table, left = {}, dict(places)
    most = max(map(count, left), default=0)
    for keep in subsets(most):
        groups = defaultdict(dict)
        for name, place in left.items():
            pattern, numbers = template(name, keep)
            groups[pattern][name] = (numbers, place)
        for pattern, members in groups.items():
            numbers, (files, part) = next(iter(members.values()))
            if {p for _, (_, p) in members.values()} != {part}:
                continue
            found = []
            for at, file in enumerate(files):
                options = (template(file, kept)[0] for kept in subsets(count(file)))
                fits = (
                    o
                    for o in options
                    if all(
                        len(there) == len(files) and o.split(".").count("N") == len(n) and filled(o, n) == there[at]
                        for n, (there, _) in members.values()
                    )
                )
                found.append(next(fits, None))
            if None not in found:
                table[pattern] = (tuple(found), part)
                for name in members:
                    left.pop(name)
    return table


def spelling(model, base):
    """As `patterns`, for the parameters of `model` that go by another name in the checkpoint at `base`."""
    file, shared, places = File(base), defaultdict(list), {}
    head = model.get_output_embeddings()
    for name, p in model.named_parameters(remove_duplicate=False):
        shared[id(p)].append((name, p))
    for members in shared.values():
        # A tied head is known by its embedding.
        apart = [(n, p) for n, p in members if len(members) == 1 or model.get_submodule(n.rpartition(".")[0]) is not head]
        for name, p in apart:
            place = p.is_floating_point() and p.numel() > 1 and file.place(name, p)
            if place:
                places[name] = place if len(apart) == 1 else (place[0], "shared")
    return patterns(named_parts(places))
