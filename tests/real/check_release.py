"""Holds a release against PEFT on a real model: what qft merged must say what the adapter says.

    python tests/real/check_release.py QFT BASE ADAPTER OUT

QFT is the binary, BASE and ADAPTER directories, OUT where the release goes (it must not be there yet). Needs torch,
transformers and peft. It exports, lets sha256sum and qft check the result, loads it with transformers, and compares, on
a handful of prompts in f32 arithmetic over the bf16 weights:

  logits   of the release with those of PEFT's unmerged model: they differ by the one rounding of each merged weight,
           so the yardstick is what PEFT's own merge_and_unload (which rounds the same way) is off by
  weights  of the release with those of merge_and_unload: how many differ, and by how much
  answer   of the release to a question
"""
import json
import subprocess
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "I feel anxious before exams. What can I do?",
    "List three primes.",
    "最近总是睡不好,怎么办?",
]


def run(*command):
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def logits(model, tokenizer):
    """The logits of every position of every prompt."""
    rows = []
    for prompt in PROMPTS:
        ids = encode(tokenizer, prompt)
        with torch.no_grad():
            rows.append(model(ids).logits[0])
    return torch.cat(rows)


def encode(tokenizer, prompt):
    message = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]


def load(path):
    """The weights as they are stored, widened exactly, so that arithmetic adds no rounding of its own."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    assert not [name for name, p in model.named_parameters() if p.is_meta]
    return model.to(torch.float32).eval()


def distance(a, b):
    """Relative: |a - b| / |b|."""
    return (torch.linalg.norm(a - b) / torch.linalg.norm(b)).item()


def compare_weights(ours, theirs):
    differing = total = 0
    worst = 0.0
    theirs = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        q = theirs[name]
        differing += (p != q).sum().item()
        worst = max(worst, (p - q).abs().max().item())
        total += p.numel()
    return differing, total, worst


def main():
    qft, base, adapter, out = sys.argv[1:5]
    run(qft, "export", "--base", base, "--adapter", adapter, "--merge-lora", "--max-shard", "2GB", "--out", out)
    run("sh", "-c", f"cd '{out}' && sha256sum --quiet -c SHA256SUMS && echo SHA256SUMS: clean")
    run(qft, "verify", out, "--audit", "--base", base, "--adapter", adapter)
    tokenizer = AutoTokenizer.from_pretrained(out)
    release = load(out)
    ours = logits(release, tokenizer)

    tuned = PeftModel.from_pretrained(load(base), adapter).eval()
    exact = logits(tuned, tokenizer)
    untuned = logits(load(base), tokenizer)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
    merged = merged.merge_and_unload().to(torch.float32).eval()
    peft = logits(merged, tokenizer)

    differing, total, worst = compare_weights(release, merged)
    result = {
        "positions": ours.shape[0],
        "logits: release to adapter": distance(ours, exact),
        "logits: PEFT's merge to adapter": distance(peft, exact),
        "logits: base to adapter": distance(untuned, exact),
        "same next token as the adapter": (ours.argmax(-1) == exact.argmax(-1)).float().mean().item(),
        "weights that differ from PEFT's merge": f"{differing} of {total}, by at most {worst:.3g}",
    }
    print(json.dumps(result, indent=2))
    ids = encode(tokenizer, PROMPTS[0])
    answer = release.generate(ids, max_new_tokens=24, do_sample=False)
    print(PROMPTS[0], "->", tokenizer.decode(answer[0][ids.shape[1]:], skip_special_tokens=True))
    assert result["logits: release to adapter"] < 1.05 * result["logits: PEFT's merge to adapter"] + 1e-6
    assert result["logits: release to adapter"] < 0.1 * result["logits: base to adapter"]


if __name__ == "__main__":
    main()
