"""Every way in which PEFT saves a LoRA, on every model type that transformers builds small: does a merge say the same?

    python tests/real/peft_matrix QFT WORK [--arch PATTERN] [--way PATTERN] [--jobs N] [--main] [--failed] [--list]

QFT is the binary; WORK a directory for bases, cases and the tables (matrix.json, matrix.md). Patterns are regular
expressions for whole names; --main leaves all but the most used model types out; --failed runs what failed the last
time in WORK and puts the results in their places; --list names what there is. Needs torch, transformers and peft (made
with 2.15.0, 5.23.0, 0.21.2), for a few types timm, torchvision and scipy; no network and no model. All types take six
minutes on two cores.

For each case, architectures.py builds a base of a few hundred kilobytes with random weights, ways.py says how the
adapter is made, and run.py saves both, exports, and compares the f32 logits of the release, loaded through the Auto
class, with those of the unmerged adapter: at most 1e-4 of the largest logit apart. Where logits can't tell (a vision
tower, for inputs that are text) each weight is compared with PEFT's own merge. refusals.py lists what qft refuses by
design. A failing case stays in WORK/cases. Exits with 1 if a case fails.
"""

import argparse
import json
import os
import re
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1"
)
warnings.simplefilter("ignore")

import peft
import report
import torch
import transformers
from architectures import architectures
from run import run_architecture
from ways import MAIN, WAYS


def arguments():
    parser = argparse.ArgumentParser(prog="peft_matrix")
    parser.add_argument("qft", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--arch", default=".*")
    parser.add_argument("--way", default=".*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--main", action="store_true")
    parser.add_argument("--failed", action="store_true")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def main():
    args = arguments()
    chosen = [a for a in architectures() if re.fullmatch(args.arch, a.name) and (not args.main or a.name in MAIN)]
    if args.list:
        print(*(f"{a.name} ({a.kind})" for a in chosen), "", *(f"{w.name}: {w.what}" for w in WAYS), sep="\n")
        return 0
    os.nice(5)
    transformers.utils.logging.disable_progress_bar()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results, ways = [], lambda arch: args.way
    if args.failed:
        results = json.loads((work / "matrix.json").read_text())
        failed = {a.name: [r["way"] for r in results if r["arch"] == a.name and r["outcome"] == "fail"] for a in chosen}
        chosen = [a for a in chosen if failed[a.name]]
        ways = lambda arch: "|".join(failed[arch.name])  # noqa: E731
    what = f"transformers {transformers.__version__}, PEFT {peft.__version__}, torch {torch.__version__}."
    with ProcessPoolExecutor(args.jobs, get_context("fork")) as pool:
        running = {pool.submit(run_architecture, a, ways(a), work, args.qft.resolve()): a.name for a in chosen}
        for done in as_completed(running):
            print(f"{running[done]}: {report.summary(done.result())}", flush=True)
            results = report.put(results, done.result())
            report.write(results, work, what)
    print(report.summary(results))
    return int(any(r["outcome"] == "fail" for r in results))


sys.exit(main())
