"""One case: a base and an adapter are made and saved, qft merges them, and the release must say what they say."""

import copy
import gc
import re
import shutil
import signal
import subprocess
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from architectures import build, inputs_of, logits_of, seeded
from names import spelling
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from refusals import REFUSALS
from safetensors.torch import load_file
from ways import WAYS, applies

TOLERANCE = 1e-4
SECONDS = 90
PeftModel.create_or_update_model_card = lambda *_: None  # half of the time of saving


@dataclass
class Result:
    arch: str
    way: str
    outcome: str  # pass, fail, refused (by design), none (does not apply), peft (can't make it), unbuilt
    detail: str = ""
    diff: float | None = None  # release to adapter, over the tolerance's unit
    effect: float | None = None  # base to adapter
    peft: str = ""  # PEFT's own merge or reload, where it differs
    names: dict | None = None


class NotApplicable(Exception):
    pass


def one_line(problem, most=300):
    return re.sub(r"\s+", " ", str(problem)).strip()[:most]


def distance(got, wanted, columns=None):
    """max |a - b| in units of max(1, max |wanted|)."""
    if columns:
        got, wanted = got[..., :columns], wanted[..., :columns]
    if got.shape != wanted.shape:
        return float("inf")
    return ((got - wanted).abs().max() / max(1.0, wanted.abs().max().item())).item()


class Bases:
    """The bases of one model type, saved once."""

    def __init__(self, arch, work):
        self.arch, self.work, self.made = arch, work, {}

    def get(self, tied):
        return self.once(tied, partial(self.make, tied))

    def model(self, auto, directory, **more):
        """A copy of the model that `auto` loads."""
        model, info = self.once((auto, directory), partial(load, auto, directory, **more))
        return copy.deepcopy(model), info

    def once(self, key, make):
        if key not in self.made:
            try:
                self.made[key] = make()
            except Exception as problem:
                self.made[key] = problem
        if isinstance(self.made[key], Exception):
            raise self.made[key]
        return self.made[key]

    def make(self, tied):
        model = build(self.arch, tied)
        inputs = inputs_of(model)
        directory = self.work / "base" / (self.arch.name + {None: "", True: "+tied", False: "+untied"}[tied])
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory)
        before = logits_of(model, inputs)
        loaded, info = load(self.arch.auto, directory)
        after = logits_of(loaded, inputs)
        if not distance(after, before) <= TOLERANCE / 10:
            raise ValueError(f"save and load change the logits: {distance(after, before):.2e}; {one_line(info)}")
        if distance(logits_of(loaded, inputs), after) > TOLERANCE / 10:
            raise ValueError("a second forward pass gives other logits")
        return directory, inputs, info


def load(auto, directory, **more):
    """A model and the names that its loader missed."""
    cls = getattr(transformers, auto)
    model, info = cls.from_pretrained(directory, dtype=torch.float32, output_loading_info=True, **more)
    keep = ("missing_keys", "mismatched_keys", "unexpected_keys")
    return model.eval(), {k: sorted(map(str, info.get(k) or [])) for k in keep}


def fill(model, missing):
    """Values for what a class has and the base lacks: a classifier, a pooler. The same for adapter and release."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in missing:
                p.copy_(0.1 * torch.randn(p.shape, generator=seeded("head " + name)))


def uncalled(model, inputs):
    """Wrapped modules that no forward pass calls: their weight is read, or another module shares it."""
    called, hooks = set(), []
    wrapped = {n: m for n, m in model.named_modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))}
    for name, module in wrapped.items():
        hooks.append(module.register_forward_hook(lambda *_, name=name: called.add(name)))
    logits_of(model, inputs)
    for hook in hooks:
        hook.remove()
    return [name + "." for name in wrapped if name not in called]


def loses_bias(model):
    """PEFT's token adapter of a linear layer computes without the layer's bias; what it merges has it."""
    layers = (m.base_layer for m in model.modules() if isinstance(m, TrainableTokensLayer))
    return any(getattr(layer, "bias", None) is not None for layer in layers)


def randomize(model, untrained):
    """Trained values: factors and all that the adapter saves. What a pass does not see gets no gradient and stays."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and not name.startswith(tuple(untrained)):
                noise = torch.randn(p.shape, generator=seeded("trained " + name))
                if "lora_magnitude" in name:
                    p.mul_(1 + 0.1 * noise)
                elif "lora_" in name:
                    p.copy_(0.1 * noise)
                else:
                    p.add_(0.1 * noise)


def rounded_as_saved(model):
    """The adapter's file is in bf16: so are the values that the reference computes with."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(p.to(torch.bfloat16).float())


class Case:
    def __init__(self, way, bases, work):
        self.way, self.bases = way, bases
        self.arch = bases.arch
        self.auto = way.auto or self.arch.auto
        self.dir = work / "cases" / self.arch.name / way.name
        self.base, self.inputs, _ = bases.get(way.tied)
        self.out = self.dir / "out"

    def fresh(self):
        try:
            model, self.info = self.bases.model(self.auto, self.base, **self.way.load)
        except ValueError as problem:
            if "Unrecognized configuration class" in str(problem):
                raise NotApplicable("no such class") from problem
            raise
        if 2 * len(self.info["missing_keys"]) > len(model.state_dict()):
            raise NotApplicable("the class finds next to nothing of the base")
        fill(model, self.info["missing_keys"])
        return model

    def resize(self, model):
        if self.way.resize:
            rows = model.get_input_embeddings().weight.shape[0]
            torch.manual_seed(3)
            model.resize_token_embeddings(rows + self.way.resize, mean_resizing=False)
            self.columns = min(rows, rows + self.way.resize)

    def train(self):
        """Makes the adapter, saves it, and keeps its logits."""
        way = self.way
        model = self.fresh()
        self.columns = None
        if way.auto and not way.load and type(model).__name__ == type(self.bases_model()).__name__:
            raise NotApplicable("the same class")
        self.plain = logits_of(model, self.inputs)
        self.resize(model)
        config = way.config(model)
        if config is None or config.get("target_modules") is None and "target_modules" in config:
            raise NotApplicable("nothing to target")
        second = way.second and way.second(model)
        torch.manual_seed(4)
        peft = get_peft_model(model, LoraConfig(**config), adapter_name=way.adapter)
        active = [way.adapter]
        if second:
            peft.add_adapter("second", LoraConfig(**second))
            active.append("second")
            peft.base_model.set_adapter(active)
        peft.eval()
        randomize(peft, [] if way.weights else uncalled(peft, self.inputs))
        if way.name == "bf16_adapter":
            rounded_as_saved(peft)
        self.logits = logits_of(peft, self.inputs)
        shutil.rmtree(self.dir, ignore_errors=True)
        peft.save_pretrained(str(self.dir / "adapter"), **way.save)
        self.adapters = [self.dir / "adapter" / (name if name != "default" else "") for name in active]
        if way.edit:
            way.edit(self.adapters[0])
        self.saved = load_file(self.adapters[0] / "adapter_model.safetensors")
        self.rows = self.whole_embeddings(peft) if way.resize else None
        self.peft = peft
        self.loses_bias = loses_bias(peft)

    def whole_embeddings(self, model):
        """How many embeddings of the new size the adapter's file has: what it hasn't, no merge can give."""
        base = model.base_model.model
        sizes = {base.get_input_embeddings().weight.shape}
        names = {
            re.sub(r"\.(modules_to_save|original_module|base_layer|token_adapter)\b", "", n)
            for n, v in self.saved.items()
            if v.shape in sizes and "lora_" not in n
        }
        return len(names)

    def bases_model(self):
        with torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(self.base)
            return getattr(transformers, self.arch.auto).from_config(config)

    def export(self, qft):
        command = [qft, "export", "--merge-lora", "--base", self.base, "--out", self.out, "--overwrite"]
        for adapter in self.adapters:
            command += ["--adapter", adapter]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=SECONDS)
        self.said = done.stderr.strip() or done.stdout.strip()
        return done.returncode

    def check(self):
        """The release's distance to the adapter, and what its loader says."""
        released, info = load(self.auto, self.out)
        brought = {re.sub(r"^base_model\.model\.|\.modules_to_save\b", "", name) for name in self.saved}
        allowed = {name for name in self.info["missing_keys"] if name not in brought}
        fill(released, allowed)
        for kind, names in info.items():
            new = [n for n in names if n not in allowed and n not in self.info[kind]]
            if new and kind != "unexpected_keys":
                return float("inf"), f"{kind}: {one_line(new)}"
            if new:
                return float("inf"), f"the release has tensors that the class does not know: {one_line(new)}"
        logits = logits_of(released, self.inputs)
        columns = self.columns if self.rows == 0 else None
        diff = distance(logits, self.logits, columns)
        if diff == float("inf"):
            return diff, f"logits of shape {tuple(logits.shape)}, the adapter's {tuple(self.logits.shape)}"
        if diff <= TOLERANCE and (self.way.weights or self.effect < 10 * TOLERANCE):
            return self.weights(released)
        if diff > TOLERANCE and self.merged is not None:
            theirs = distance(logits, logits_of(self.merged, self.inputs))
            if theirs <= TOLERANCE and self.loses_bias:
                return theirs, "compared with PEFT's merge: unmerged, token rows of a tied head lose the head's bias"
            if theirs <= TOLERANCE:
                return diff, "the release is what PEFT merges, which is not what the adapter says"
        return diff, ""

    def weights(self, released):
        """Where logits can't tell: each weight, with those of PEFT's merge."""
        merged = dict(self.merged.state_dict())
        worst, where = 0.0, ""
        for name, value in released.state_dict().items():
            if name in merged and value.is_floating_point():
                off = distance(value, merged[name])
                worst, where = max((worst, where), (off, name))
        return worst, f"weights: {where}"

    def peft_merge(self):
        """PEFT's own merge, for what the weights are and to tell its faults from ours."""
        try:
            self.merged = self.peft.merge_and_unload(adapter_names=None)
            off = distance(logits_of(self.merged, self.inputs), self.logits)
            return "" if off <= TOLERANCE else f"PEFT's merge is off by {off:.1e}"
        except Exception as problem:
            self.merged = None
            return f"PEFT's merge fails: {type(problem).__name__}: {one_line(problem, 120)}"

    def peft_reload(self):
        """What PEFT makes of its own file; asked where qft fails."""
        try:
            model = self.fresh()
            self.resize(model)
            peft = PeftModel.from_pretrained(model, str(self.adapters[0])).eval()
            if self.way.second:
                return ""
            off = distance(logits_of(peft, self.inputs), self.logits)
            return "" if off <= TOLERANCE else f"PEFT's reload is off by {off:.1e}"
        except Exception as problem:
            return f"PEFT's reload fails: {type(problem).__name__}: {one_line(problem, 120)}"


def refusal(case):
    """Why this refusal is right; None if it is none of those by design."""
    if case.rows == 2:
        return None
    for row in REFUSALS:
        names = re.fullmatch(row.ways, case.way.name) and re.fullmatch(row.archs, case.arch.name)
        if names and re.search(row.text, case.said, re.S):
            return row.why
    return None


def run_case(way, bases, work, qft):
    name, arch = way.name, bases.arch.name
    try:
        case = Case(way, bases, work)
        case.train()
    except NotApplicable as why:
        return Result(arch, name, "none", str(why))
    except Exception as problem:
        return Result(arch, name, "peft", f"{type(problem).__name__}: {one_line(problem)}")
    case.effect = distance(case.plain, case.logits, case.columns)
    code = case.export(qft)
    peft = case.peft_merge()
    if code != 0:
        why = refusal(case)
        detail = why or one_line(case.said, 1500)
        result = Result(arch, name, "refused" if why else "fail", detail, None, case.effect, peft)
    else:
        try:
            diff, what = case.check()
            result = Result(arch, name, "pass" if diff <= TOLERANCE else "fail", what, diff, case.effect, peft)
        except Exception as problem:
            detail = f"the release does not load: {type(problem).__name__}: {one_line(problem)}"
            result = Result(arch, name, "fail", detail, None, case.effect, peft)
    if result.outcome == "fail":
        again = case.peft_reload()
        result.peft = "; ".join(filter(None, (peft, again)))
        result.names = bases.once(("names", case.auto, case.base), lambda: spelling(case.fresh(), case.base))
        (case.dir / "qft.txt").write_text(case.said)
    else:
        shutil.rmtree(case.dir, ignore_errors=True)
    shutil.rmtree(case.out, ignore_errors=True)
    return result


def too_long(*_):
    raise TimeoutError(f"more than {SECONDS} seconds")


def run_architecture(arch, pattern, work, qft):
    """All ways of one model type."""
    gc.collect()
    gc.freeze()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    bases, results = Bases(arch, work), []
    try:
        signal.alarm(SECONDS)
        bases.get(None)
    except Exception as problem:
        signal.alarm(0)
        return [asdict(Result(arch.name, "", "unbuilt", f"{type(problem).__name__}: {one_line(problem)}"))]
    for way in WAYS:
        if not re.fullmatch(pattern, way.name) or not applies(way, arch):
            continue
        try:
            signal.alarm(SECONDS)
            results.append(run_case(way, bases, work, qft))
        except Exception as problem:
            last = traceback.extract_tb(problem.__traceback__)[-1]
            detail = f"{type(problem).__name__}: {one_line(problem)} ({Path(last.filename).name}:{last.lineno})"
            results.append(Result(arch.name, way.name, "fail", "the script failed: " + detail))
        finally:
            signal.alarm(0)
        if len(results) % 20 == 0:
            gc.collect()
    return [asdict(r) for r in results]
