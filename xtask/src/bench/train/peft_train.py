"""The usual way to train: a LoRA with transformers and PEFT, sdpa, gradient checkpointing, bf16. Whole rows of random
tokens, and every one of them counts in the loss. A line of JSON for each step, and one at the end."""
import json
import sys
from time import perf_counter

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

base, rows, length, steps, dropout, device = sys.argv[1:]
rows, length, steps = int(rows), int(length), int(steps)
cuda = device.startswith("cuda")


def now():
    if cuda:
        torch.cuda.synchronize()
    return perf_counter()


placement = {"device_map": device} if cuda else {}
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="sdpa", **placement)
model.config.use_cache = False
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.enable_input_require_grads()
targets = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=float(dropout), target_modules=targets, task_type="CAUSAL_LM")
model = get_peft_model(model, lora).train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)
torch.manual_seed(42)
total = 0.0
for step in range(1, steps + 1):
    tokens = torch.randint(0, model.config.vocab_size, (rows, length), device=model.device)
    start = now()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds = now() - start
    total += seconds
    print(json.dumps({"step": step, "loss": loss.item(), "tokens_per_second": rows * length / seconds}), flush=True)
peak = torch.cuda.max_memory_allocated() if cuda else None
name = torch.cuda.get_device_name() if cuda else device
print(json.dumps({"seconds": total, "tokens": steps * rows * length, "peak_memory": peak, "device": name}))
