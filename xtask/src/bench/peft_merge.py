"""The usual way to merge: load base and adapter with PEFT, merge_and_unload, save_pretrained. Says where the time went.
Merges on the processor, or on the device that is named last."""
import sys
from time import perf_counter

base, adapter, out, *device = sys.argv[1:]
times = [perf_counter()]
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

times.append(perf_counter())
placed = {"device_map": device[0]} if device else {}
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **placed)
times.append(perf_counter())
model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
if device:
    torch.cuda.synchronize()
times.append(perf_counter())
model.save_pretrained(out, max_shard_size="2GB")
times.append(perf_counter())
stages = zip(("import", "load", "merge", "save"), times, times[1:])
print(", ".join(f"{stage} {end - start:.1f}" for stage, start, end in stages))
