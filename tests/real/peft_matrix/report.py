"""The tables: JSON with every case, and Markdown with counts by way and a line a failure."""

import json
from collections import Counter, defaultdict

COUNTED = ("pass", "refused", "fail")


def write(results, work, what):
    (work / "matrix.json").write_text(json.dumps(results, indent=1) + "\n")
    (work / "matrix.md").write_text(markdown(results, what))


def put(results, new):
    """`new` in the places of the same cases, all in order of model type; ways in the order of their table."""
    places = {(r["arch"], r["way"]): i for i, r in enumerate(results)}
    results = list(results)
    for r in new:
        at = places.get((r["arch"], r["way"]))
        if at is None:
            results.append(r)
        else:
            results[at] = r
    return sorted(results, key=lambda r: r["arch"])


def counts(results):
    return Counter(r["outcome"] for r in results)


def summary(results):
    n = counts(results)
    tried = sum(n[k] for k in COUNTED)
    return f"{n['pass']} of {tried} pass, {n['refused']} refused by design, {n['fail']} fail"


def markdown(results, what):
    lines = ["# PEFT's ways on transformers' model types", "", what, "", summary(results), ""]
    by_way = defaultdict(list)
    for r in results:
        if r["way"]:
            by_way[r["way"]].append(r)
    lines += [
        "| way | pass | refused by design | fail | PEFT can't | does not apply |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, rows in by_way.items():
        n = counts(rows)
        tried = sum(n[k] for k in COUNTED)
        lines.append(f"| {way} | {n['pass']} of {tried} | {n['refused']} | {n['fail']} | {n['peft']} | {n['none']} |")
    for outcome, title in (
        ("fail", "Failures"),
        ("refused", "Refused by design"),
        ("unbuilt", "Model types that can't be built here"),
        ("peft", "What PEFT can't do"),
    ):
        rows = [r for r in results if r["outcome"] == outcome]
        lines += ["", f"## {title}: {len(rows)}", ""]
        lines += [line(r) for r in rows]
    apart = [r for r in results if r["outcome"] == "pass" and r["peft"]]
    lines += ["", f"## Passed, where PEFT's own merge is another: {len(apart)}", ""] + [line(r) for r in apart]
    return "\n".join(lines) + "\n"


def line(r):
    off = "" if r["diff"] is None else f" off by {r['diff']:.1e};"
    peft = f" ({r['peft']})" if r["peft"] else ""
    return f"- {r['arch']} {r['way']}:{off} {r['detail']}{peft}"
