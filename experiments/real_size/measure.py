"""MedVLM-R1's run at its real size, with random weights: does it fit, how long does a step take, is it right?

    python experiments/real_size/measure.py                       on a GPU: the paper's settings
    python experiments/real_size/measure.py --cases lora-grpo --override model.recipe.group_size=2 ...
    python experiments/real_size/measure.py --model tiny          the same checks in a minute, on any machine

Builds the genuine Qwen2-VL-2B configuration with random weights and the genuine tokenizer, then, each case
in a process of its own: a few optimiser steps with the paper's settings on full-size pictures, finite losses,
a checkpoint from which a second process must go on to the same weights, one batch of evaluation; and
log-probabilities against plain transformers. Random weights hardly ever end a completion, so every one of
them runs to the limit: times are those of the worst case.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from genuine import qwen2_tokenizer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback, LightningModule, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import run  # noqa: E402  (the composition root)
from medvlm_r1.policy.geometry import geometry, unweighted  # noqa: E402

run.hush()  # before the libraries that it silences are loaded
from medvlm_r1.data.phantom import PhantomSource  # noqa: E402
from medvlm_r1.data.sample import VQASample  # noqa: E402
from medvlm_r1.dialogue import Answer  # noqa: E402
from medvlm_r1.policy.encode import collate  # noqa: E402
from medvlm_r1.record import hardware  # noqa: E402
from medvlm_r1.rewards import Rewards  # noqa: E402

CASES = ("full-sft", "full-grpo", "lora-sft", "lora-grpo")
PACKAGES = ("torch", "transformers", "lightning", "peft")
# One step an epoch, so that a checkpoint between epochs is one between steps.
STEPS = 3
# Methods of the training step, and what they are called in the table.
PARTS = {
    "training_step": "step",
    "answer": "sample",
    "reference": "reference",
    "descend": "train",
    "apply_gradients": "update",
}
SMALL = ["data.validation.n=1", "data.test.mri.n=16", "data.test.ct.n=1", "data.test.xray.n=1"]


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "random"
        if arguments.model != "tiny":
            in_its_own_process("build", arguments, checkpoint, Path(scratch))
        results = {
            "hardware": hardware(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "model": arguments.model,
            "overrides": arguments.override,
            "cases": {
                case: in_its_own_process(case, arguments, checkpoint, Path(scratch))
                for case in ("parity", *arguments.cases)
            },
        }
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen2_vl_2b", help="a model option of conf/model")
    parser.add_argument(
        "--cases", nargs="+", default=CASES, help=f"of {', '.join(CASES)}; tune options may lead"
    )
    parser.add_argument("--override", nargs="*", default=[], help="overrides as run.py takes them")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--case", nargs=3, metavar=("CASE", "CHECKPOINT", "RESULT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case, checkpoint, result = arguments.case
        ways = {"build": random_checkpoint, "parity": parity}
        found = ways[case](checkpoint, arguments) if case in ways else steps(case, checkpoint, arguments)
        Path(result).write_text(json.dumps(found))
        raise SystemExit
    return arguments


def in_its_own_process(case: str, arguments: argparse.Namespace, checkpoint: Path, scratch: Path) -> Any:
    """One case alone, so that its peak memory is its own."""
    result = scratch / f"{case}.json"
    command = [sys.executable, __file__, "--model", arguments.model, "--override", *arguments.override]
    print(f"{case} ...", flush=True)
    done = subprocess.run([*command, "--case", case, str(checkpoint), str(result)], check=False)
    if done.returncode:
        return {"failed": f"exit status {done.returncode}"}
    return json.loads(result.read_text())


def random_checkpoint(folder: str, arguments: argparse.Namespace) -> None:
    """A Hugging Face directory of genuine shape, vocabulary and processing, with random weights in bf16."""
    cfg = composed([f"model={arguments.model}"])
    config = geometry(cfg.model.path)
    config.text_config.pad_token_id = 151643
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    weights = unweighted(config, torch.bfloat16).to_empty(device=device)
    for name, parameter in weights.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    weights.generation_config.update(eos_token_id=[151645, 151643], pad_token_id=151643)
    weights.save_pretrained(folder)
    qwen2_tokenizer().save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2).save_pretrained(folder)


def composed(overrides: list[str]) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=["+experiment=grpo_600", "data=phantom", *overrides])


def configured(case: str, checkpoint: str, arguments: argparse.Namespace, folder: Path, epochs: int) -> Any:
    """The configuration of one case: the paper's settings on phantoms of full size."""
    tune, _, method = case.rpartition("-")
    overrides = [f"model={arguments.model}", f"tune={tune}", f"method={method}", "watch=null", *SMALL]
    overrides += [
        "logger=csv",
        "workers=0",
        "+trainer.limit_val_batches=0",
        "+trainer.enable_checkpointing=false",
        "+trainer.enable_progress_bar=false",
    ]
    overrides += ["+trainer.limit_test_batches=1", f"trainer.max_epochs={epochs}"]
    if arguments.model != "tiny":
        overrides += [f"model.path={checkpoint}", "model.revision=null"]
        overrides += ["model.recipe.min_pixels=${model.recipe.max_pixels}"]  # phantoms are small
    cfg = composed([*overrides, *arguments.override])
    cfg.data.train.n = cfg.model.recipe.prompts_per_step
    cfg.run_folder, cfg.experiment = str(folder), case
    return cfg


def steps(case: str, checkpoint: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Some optimiser steps, a checkpoint, and the last step again from it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, saved = Path(scratch), Path(scratch) / "after.ckpt"
        witness = Witness(saved)
        module, data, trainer = built(configured(case, checkpoint, arguments, folder, STEPS), witness)
        phases = Phases(module)
        trainer.fit(module, data)
        seconds = {name: (times[0], times[-1]) for name, times in phases.seconds.items()}
        with phases.timed("evaluate"):
            trainer.test(module, data, verbose=False)
        seconds["evaluate"] = (phases.seconds["evaluate"][0],) * 2
        ended = fingerprint(module)
        del module, trainer, data
        module, data, trainer = built(configured(case, checkpoint, arguments, folder / "b", STEPS), Witness())
        trainer.fit(module, data, ckpt_path=saved, weights_only=True)
        return {
            "losses": witness.losses,
            "finite": bool(torch.tensor(witness.losses).isfinite().all()),
            "seconds": {name: last for name, (_, last) in seconds.items()},
            "seconds_of_first_step": {name: first for name, (first, _) in seconds.items()},
            "peak_memory_gb": {name: round(value / 1e9, 3) for name, value in phases.peaks.items()},
            "tokens_per_completion": witness.tokens,
            "checkpoint_gb": round(saved.stat().st_size / 1e9, 3),
            "resumed_to_the_same_weights": fingerprint(module) == ended,
        }


def built(cfg: Any, witness: Callback) -> tuple[Any, Any, Any]:
    seed_everything(cfg.seed, workers=True, verbose=False)
    module, data, trainer = run.build(cfg, instantiate(cfg.data))
    if cfg.model.path != "embedded":
        module.rewards = Rewards({"arbitrary": arbitrary}, {})
    trainer.callbacks.append(witness)
    return module, data, trainer


def arbitrary(answer: Answer, sample: VQASample) -> float:
    """Random weights earn no real reward, and without any there is no gradient to measure."""
    return zlib.crc32(answer.text.encode()) % 5 / 4


class Witness(Callback):
    """Keeps losses, and saves a checkpoint before the last step."""

    def __init__(self, saved: Path | None = None) -> None:
        self.saved, self.losses, self.tokens = saved, [], None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        if "train/tokens" in trainer.callback_metrics:
            self.tokens = float(trainer.callback_metrics["train/tokens"])

    def on_train_epoch_end(self, trainer, module) -> None:
        if self.saved and trainer.current_epoch == STEPS - 2:
            trainer.save_checkpoint(self.saved)


class Phases:
    """Seconds and peak memory of each part of a training step, on a synchronised clock."""

    def __init__(self, module: LightningModule) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, float] = defaultdict(float)
        self._under_way: list[str] = []
        for method, name in PARTS.items():
            if hasattr(module, method):
                setattr(module, method, self.wrapped(getattr(module, method), name))

    def wrapped(self, method, name):
        def timed(*args, **kwargs):
            with self.timed(name):
                return method(*args, **kwargs)

        return timed

    @contextmanager
    def timed(self, name: str):
        self._note_peak()
        self._under_way.append(name)
        synchronise()
        start = time.perf_counter()
        yield
        synchronise()
        self.seconds[name].append(round(time.perf_counter() - start, 3))
        self._note_peak()
        self._under_way.pop()

    def _note_peak(self) -> None:
        """Credit the peak since the last call to every part that is under way, and start anew."""
        peak = peak_memory()
        for name in self._under_way:
            self.peaks[name] = max(self.peaks[name], peak)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> float:
    """Bytes: the allocator's peak since the last call on a GPU, the process's so far on a CPU."""
    if not torch.cuda.is_available():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def fingerprint(module: LightningModule) -> list[float]:
    """Exact sums over the trained weights; equal where the weights are."""
    return [float(p.detach().double().sum()) for p in module.policy.trained]


@torch.no_grad()
def parity(checkpoint: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Log-probabilities of two questions side by side, in fp32, against plain transformers one by one."""
    cfg = configured("full-sft", checkpoint, arguments, Path("unused"), 1)
    cfg.model.recipe.dtype = "float32"
    module, _, _ = built(cfg, Witness())
    policy = module.policy.to("cuda" if torch.cuda.is_available() else "cpu")
    samples = [PhantomSource(modality, 1, "test")[0] for modality in ("mri", "xray")]
    chosen = [policy.encoder.encode(sample, "train", module.prompt) for sample in samples]
    tokens = torch.randint(0, 600, (2, 32), generator=torch.Generator().manual_seed(0)).to(policy.device)
    ours = policy.logprobs(
        collate(chosen, policy.pad_id, policy.device), tokens, torch.ones_like(tokens).bool()
    )
    theirs = torch.stack([alone(policy, p, t) for p, t in zip(chosen, tokens, strict=True)])
    return {"largest_difference": float((ours - theirs).abs().max()), "mean": float(theirs.mean())}


def alone(policy, prompt, completion: Tensor) -> Tensor:
    """One completion's log-probabilities by plain transformers: no padding, positions of its own."""
    ids = torch.cat([prompt.ids.to(policy.device), completion])[None]
    logits = policy.model(
        input_ids=ids,
        pixel_values=prompt.pixels.to(policy.device),
        image_grid_thw=prompt.grid.to(policy.device),
        mm_token_type_ids=(ids == policy.image_id).int(),
        use_cache=False,
    ).logits[0, len(prompt.ids) - 1 : -1]
    logits[:, policy.banned_ids] = -torch.inf
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def show(results: dict[str, Any]) -> None:
    table = Table("case", "step s", "sample", "reference", "train", "update", "evaluate", "peak GB", "right")
    for case, found in results["cases"].items():
        if "seconds" not in found:
            table.add_row(case, *[""] * 7, json.dumps(found))
            continue
        names = ("step", "sample", "reference", "train", "update", "evaluate")
        times = [f"{found['seconds'][n]:.2f}" if n in found["seconds"] else "" for n in names]
        right = found["finite"] and found["resumed_to_the_same_weights"]
        table.add_row(case, *times, f"{max(found['peak_memory_gb'].values()):.1f}", "yes" if right else "NO")
    Console(width=120).print(f"{results['model']} on {results['hardware']}", table)


if __name__ == "__main__":
    main()
