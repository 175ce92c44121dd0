"""Holds a training of qft against the same command given to ms-swift, on the processor in f32.

    python tests/real/compare_swift.py QFT OUT [BASE]

QFT is the binary, OUT a directory that is not there yet, BASE a Qwen2 model with its tokenizer; without it the script
makes a tiny one with random weights, a small byte-level tokenizer and the chat template of Qwen2.5. To be run by the
Python of an environment with ms-swift 4.6.0 (and so torch, transformers and peft), whose `swift` lies beside it. Both
begin with the same factors and learn all rows in each of three steps, so that no generator has a say. It compares

  tokens, labels   of every row, from ms-swift's template and from the file that qft keeps them in
  loss, norm       of the three steps, and the learning rates that both log
  factors          after them
  their merge      of qft's checkpoint: `swift export --merge_lora true` with that of `qft export --merge-lora`
  our merge        of ms-swift's checkpoint, the same way
  their answers    `swift infer` on qft's checkpoint, with nothing but `--adapters`, with those of the merged release
"""
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILY, TEMPLATE = "qwen2", "qwen2_5"
STEPS, RANK, ALPHA = 3, 8, 32
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def message(role, content):
    return {"role": role, "content": content}


ROWS = [
    [message("user", "Where is the red fox?"), message("assistant", "In the garden.")],
    [message("system", "Answer in one word."), message("user", "What is 2 + 2?"), message("assistant", "Four")],
    [message("user", "hello"), message("assistant", "Hi!"), message("user", "And now?"), message("assistant", "Bye.")],
    [message("user", "最近总是睡不好,怎么办?"), message("assistant", "试着每天同一时间睡觉。")],
    [message("user", "Write code."), message("assistant", "```python\nprint('a  b')\n```")],
    [message("user", "Count to three."), message("assistant", "1, 2, 3")],
    [message("user", "  spaces  around  "), message("assistant", "kept 🙂")],
    [message("user", "x" * 40), message("assistant", "y " * 20 + "z")],
]


def run(*command):
    print("$", " ".join(map(str, command)), flush=True)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "MODELSCOPE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nexit code {done.returncode}")
    return done.stdout


def make_base(path):
    """A Qwen2 that is tiny, and a tokenizer that knows any text. It cuts words as Qwen2's does: transformers 5 has its
    own pre-tokenizer for this family, whatever tokenizer.json says."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([SYSTEM] + [turn["content"] for row in ROWS for turn in row], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.1,
        bos_token_id=fast.pad_token_id, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)


def make_factors(base, path):
    """Factors to begin with, none of them zero."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(path)


def encode(base):
    """Tokens and labels of every row, by ms-swift."""
    from swift.model import get_processor
    from swift.template import get_template

    template = get_template(get_processor(str(base), model_type=FAMILY), template_type=TEMPLATE)
    template.set_mode("train")
    encoded = [template.encode({"messages": row}) for row in ROWS]
    return [(list(map(int, row["input_ids"])), list(map(int, row["labels"]))) for row in encoded]


def kept(out):
    """The same, of the file that qft keeps."""
    sets = [load_file(path) for path in out.glob("tokens/*.safetensors")]
    (tensors,) = [tensors for tensors in sets if len(tensors["lengths"])]  # the other one is held out
    rows, at = [], 0
    for length in tensors["lengths"].tolist():
        ids, weights = (tensors[name][at : at + length].tolist() for name in ("ids", "weights"))
        rows.append((ids, [token if weight else -100 for token, weight in zip(ids, weights)]))
        at += length
    return rows


def logged(out):
    """The run's checkpoint, and what was logged at each step."""
    (checkpoint,) = out.glob(f"v*/checkpoint-{STEPS}")
    lines = [json.loads(line) for line in (checkpoint.parent / "logging.jsonl").read_text().splitlines()]
    return checkpoint, [line for line in lines if "loss" in line]


def weights(path):
    """Every weight of a directory, widened."""
    return {name: t.float() for file in sorted(path.glob("*.safetensors")) for name, t in load_file(file).items()}


def distance(ours, theirs):
    """Of all weights together: relative, and how many differ."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    pairs = [(ours[name].flatten(), theirs[name].flatten()) for name in ours]
    ours, theirs = (torch.cat(side) for side in zip(*pairs))
    differing = (ours != theirs).sum().item()
    return (torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs)).item(), differing, ours.numel()


def logits(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in ROWS]
        return torch.cat([model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0] for text in texts])


def answers(path, tokens):
    """The greedy continuation of every row without its last turn."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    said = []
    for row in ROWS:
        text = tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0][ids.shape[1] :]
        said.append(tokenizer.decode(made).removesuffix(tokenizer.eos_token))
    return said


def main():
    qft, out = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    swift = Path(sys.executable).parent / "swift"
    out.mkdir(parents=True)
    base = Path(sys.argv[3]).absolute() if len(sys.argv) > 3 else out / "base"
    if not base.exists():
        make_base(base)
    make_factors(base, out / "factors")
    rows = out / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in ROWS))

    flags = (
        f"--model {base} --model_type {FAMILY} --template {TEMPLATE} --dataset {rows} --adapters {out / 'factors'} "
        f"--tuner_type lora --lora_rank {RANK} --lora_alpha {ALPHA} --lora_dropout 0 --target_modules {' '.join(MODULES)} "
        f"--torch_dtype float32 --fp16 false --bf16 false --use_cpu true --per_device_train_batch_size 1 "
        f"--gradient_accumulation_steps {len(ROWS)} --max_steps {STEPS} --learning_rate 1e-3 --logging_steps 1 "
        f"--save_steps {STEPS} --report_to none --gradient_checkpointing false --check_model false"
    ).split()
    run(qft, "train", *flags, "--output_dir", out / "ours")
    run(swift, "sft", *flags, "--output_dir", out / "theirs")
    (ours, our_steps), (theirs, their_steps) = logged(out / "ours"), logged(out / "theirs")

    table = {}
    swift_rows, qft_rows = encode(base), kept(out / "ours")
    count = sum(len(ids) for ids, _ in swift_rows)
    learned = sum(label != -100 for _, labels in swift_rows for label in labels)
    same = [a[0] == b[0] for a, b in zip(qft_rows, swift_rows, strict=True)]
    table["tokens that are the same"] = f"{sum(same)} of {len(ROWS)} rows ({count} tokens)"
    alike = [a[1] == b[1] for a, b in zip(qft_rows, swift_rows, strict=True)]
    table["labels that are the same"] = f"{sum(alike)} of {len(ROWS)} rows ({learned} trainable tokens)"
    for key in ["loss", "grad_norm", "learning_rate"]:
        pairs = [f"{a[key]:.7g} / {b[key]:.7g}" for a, b in zip(our_steps, their_steps, strict=True)]
        table[f"{key}, qft / ms-swift"] = ", ".join(pairs)
    factors = [load_file(checkpoint / "adapter_model.safetensors") for checkpoint in (ours, theirs)]
    start = load_file(out / "factors" / "adapter_model.safetensors")
    moved = {name: {key: value - start[key] for key, value in side.items()} for name, side in zip("ab", factors)}
    table["change of the factors"] = f"{distance(moved['a'], moved['b'])[0]:.3g} apart (relative)"

    for name, checkpoint in [("qft's checkpoint", ours), ("ms-swift's checkpoint", theirs)]:
        merged = [out / f"{'ours' if checkpoint == ours else 'theirs'}-by-{by}" for by in ("qft", "swift")]
        run(qft, "export", "--merge-lora", "--adapter", checkpoint, "--base", base, "--dtype", "f32", "--out", merged[0])
        run(swift, "export", "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", merged[1])
        apart, differing, numel = distance(*map(weights, merged))
        said = [logits(path) for path in merged]
        gap = (torch.linalg.norm(said[0] - said[1]) / torch.linalg.norm(said[1])).item()
        table[f"{name}: f32 weights in which the merges differ"] = f"{differing} of {numel}, {apart:.3g} apart (relative)"
        table[f"{name}: logits of the merges"] = f"{gap:.3g} apart (relative)"

    result = out / "answers.jsonl"
    infer = "--max_new_tokens 12 --temperature 0 --max_batch_size 1".split()
    run(swift, "infer", "--adapters", ours, "--val_dataset", rows, *infer, "--result_path", result)
    theirs_said = [json.loads(line)["response"] for line in result.read_text().splitlines()]
    ours_said = answers(out / "ours-by-qft", 12)
    agree = sum(a == b for a, b in zip(ours_said, theirs_said, strict=True))
    table["answers of `swift infer`, as those of the release"] = f"{agree} of {len(ROWS)}"
    for key, value in table.items():
        print(f"| {key} | {value} |")
    assert all(same) and all(alike) and agree == len(ROWS)
    assert all(abs(a["loss"] - b["loss"]) < 1e-5 * b["loss"] for a, b in zip(our_steps, their_steps))


if __name__ == "__main__":
    main()
