"""MedVLM-R1's run at its real size with random weights: memory, time per step, and correctness.

    python experiments/real_size/measure.py                       on a GPU: the paper's settings
    python experiments/real_size/measure.py --cases lora-grpo --override model.recipe.group_size=2 ...
    python experiments/real_size/measure.py --model tiny          the same checks in a minute, on any machine

Builds Qwen2-VL-2B with random weights and its real tokenizer. Each case takes a few optimiser steps with the
paper's settings on full-size images and evaluates one batch, in a process of its own. The losses must be
finite, a second process must resume from a checkpoint, and log-probabilities must equal plain transformers'.
Random weights hardly ever end a completion, so every completion reaches the limit: the worst case for time.
"""

import argparse
import json
import math
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))

import build_run
from processes import in_its_own_process
from timing import StepTimer

from medvlm_r1.artifacts.record import hardware
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy.encode import collate

CASES = ("full-sft", "full-grpo", "lora-sft", "lora-grpo")
PACKAGES = ("torch", "transformers", "lightning", "peft")
# One step per epoch, so that a checkpoint between epochs is also one between steps.
STEPS = 3
SMALL = ["data.validation.n=1", "data.test.mri.n=16", "data.test.ct.n=1", "data.test.xray.n=1"]


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        scratch = Path(scratch)
        checkpoint, built = arguments.checkpoint or scratch / "random", {}
        if not (arguments.checkpoint or arguments.model == "tiny"):
            built = alone("build", arguments, checkpoint, scratch)
        if "failed" in built:
            sys.exit("cannot build the random checkpoint")
        results = {
            "hardware": hardware(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "model": arguments.model,
            "overrides": arguments.override,
            "parity": alone("parity", arguments, checkpoint, scratch),
            "cases": {},
        }
        for case in arguments.cases:
            found = alone(case, arguments, checkpoint, scratch)
            if "failed" not in found:
                found |= alone(f"resume:{case}", arguments, checkpoint, scratch)
            results["cases"][case] = found
            shutil.rmtree(scratch / case, ignore_errors=True)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if not (agrees(results["parity"]) and all(map(right, results["cases"].values()))):
        sys.exit("a check failed")


def agrees(parity: dict[str, Any]) -> bool:
    return parity.get("largest_difference", math.inf) < 1e-3


def right(found: dict[str, Any]) -> bool:
    """Whether losses are finite, and a second process loads equal weights and takes nearly the same step.

    Nearly, because attention's backward pass on a GPU sums in varying order.
    """
    return (
        "failed" not in found
        and found["finite"]
        and found["loaded_exactly"]
        and found["resumed_step_differs_by"] < 0.1
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen2_vl_2b", help="a model option of conf/model")
    parser.add_argument(
        "--cases",
        nargs="*",
        default=CASES,
        help=f"{', '.join(CASES)}, or another option of conf/peft with -sft or -grpo",
    )
    parser.add_argument("--checkpoint", type=Path, help="directory of the weights (default: random ones)")
    parser.add_argument("--override", nargs="*", default=[], help="overrides of run.py")
    parser.add_argument("--scratch", type=Path, help="folder for 40 GB of weights and checkpoints")
    parser.add_argument("--json", type=Path, help="output file of the results")
    parser.add_argument("--case", nargs=3, metavar=("CASE", "CHECKPOINT", "RESULT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case, checkpoint, result = arguments.case
        if case == "build":
            found = {"parameters": build_run.random_checkpoint(checkpoint, arguments.model)}
        elif case == "parity":
            found = parity(checkpoint, arguments)
        elif case.startswith("resume:"):
            case = case.removeprefix("resume:")
            found = resume(case, checkpoint, arguments, Path(result).parent / case)
        else:
            found = steps(case, checkpoint, arguments, Path(result).parent / case)
        Path(result).write_text(json.dumps(found))
        raise SystemExit
    return arguments


def alone(case: str, arguments: argparse.Namespace, checkpoint: Path, scratch: Path) -> Any:
    """Run one case in a process of its own, to measure its peak memory."""
    result = scratch / f"{case}.json"
    command = [sys.executable, __file__, "--model", arguments.model, "--override", *arguments.override]
    print(f"{case} ...", flush=True)
    ended = in_its_own_process([*command, "--case", case, checkpoint, result])
    return {"failed": f"exit code {ended.code}"} if ended.code else json.loads(result.read_text())


def configured(case: str, checkpoint: str, arguments: argparse.Namespace, folder: Path, epochs: int) -> Any:
    """Return the configuration of one case: the paper's settings on full-size phantoms."""
    tune, _, method = case.rpartition("-")
    overrides = [f"model={arguments.model}", f"peft={tune}", f"method={method}", *build_run.PLAIN, *SMALL]
    overrides += [
        "+trainer.limit_val_batches=0",
        "+trainer.limit_test_batches=1",
        f"trainer.max_epochs={epochs}",
    ]
    if arguments.model != "tiny":
        overrides += [f"model.path={checkpoint}", "model.revision=null"]
        overrides += ["model.recipe.min_pixels=${model.recipe.max_pixels}"]  # phantoms are small
    cfg = build_run.composed([*overrides, *arguments.override])
    cfg.data.train.n = cfg.model.recipe.prompts_per_step
    cfg.run_folder, cfg.experiment = str(folder), case
    return cfg


def steps(case: str, checkpoint: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Take optimiser steps, with a checkpoint before the last, and evaluate one batch of each test set."""
    witness = Witness(folder)
    module, data, trainer = build_run.built(configured(case, checkpoint, arguments, folder, STEPS), witness)
    phases = StepTimer(module)
    trainer.fit(module, data)
    torch.save(sums(module, trainer), folder / "end.pt")
    seconds = {name: (times[0], times[-1]) for name, times in phases.seconds.items()}
    with phases.timed("evaluate"):
        trainer.test(module, data, verbose=False)
    seconds["evaluate"] = (phases.seconds["evaluate"][0],) * 2
    return {
        "losses": witness.losses,
        "finite": bool(torch.tensor(witness.losses).isfinite().all()),
        "seconds": {name: last for name, (_, last) in seconds.items()},
        "seconds_of_first_step": {name: first for name, (first, _) in seconds.items()},
        "peak_memory_gb": {name: round(value / 1e9, 3) for name, value in phases.peaks.items()},
        "tokens_per_completion": witness.tokens,
        "parameters": sum(p.numel() for p in module.policy.parameters()),
        "checkpoint_gb": round((folder / "saved.ckpt").stat().st_size / 1e9, 3),
    }


def resume(case: str, checkpoint: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Repeat the last step from the checkpoint, in a new process."""
    witness = Witness()
    module, data, trainer = build_run.built(
        configured(case, checkpoint, arguments, folder / "again", STEPS), witness
    )
    trainer.fit(module, data, ckpt_path=folder / "saved.ckpt", weights_only=True)
    saved, expected = (torch.load(folder / f"{name}.pt") for name in ("saved", "end"))
    got = sums(module, trainer)
    return {
        "loaded_exactly": torch.equal(witness.start, saved),
        "resumed_step_differs_by": float((got - expected).abs().sum() / (expected - saved).abs().sum()),
    }


def sums(module: LightningModule, trainer: Any) -> Tensor:
    """Return the sum of each trained tensor (of its fp32 copy, if any), to compare weights."""
    (optimizer,) = trainer.optimizers
    trained = getattr(optimizer, "masters", module.policy.trainable_parameters)
    return torch.stack([tensor.detach().double().sum().cpu() for tensor in trained])


class Witness(Callback):
    """Records losses and the initial weights, and saves a checkpoint before the last step."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.losses, self.tokens, self.start = folder, [], None, None

    def on_train_start(self, trainer, module) -> None:
        self.start = sums(module, trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        if "train/tokens" in trainer.callback_metrics:
            self.tokens = float(trainer.callback_metrics["train/tokens"])

    def on_train_epoch_end(self, trainer, module) -> None:
        if self.folder and trainer.current_epoch == STEPS - 2:
            trainer.save_checkpoint(self.folder / "saved.ckpt")
            torch.save(sums(module, trainer), self.folder / "saved.pt")


@torch.no_grad()
def parity(checkpoint: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Compare fp32 log-probabilities of a batch of two questions with plain transformers, one by one."""
    cfg = configured("full-sft", checkpoint, arguments, Path("unused"), 1)
    cfg.model.recipe.dtype = "float32"
    module, _, _ = build_run.built(cfg, Witness())
    policy = module.policy.to(build_run.device())
    samples = [PhantomSource(modality, 1, "test")[0] for modality in ("mri", "xray")]
    chosen = [policy.encoder.encode(sample, "train", module.prompt) for sample in samples]
    tokens = torch.randint(0, 600, (2, 32), generator=torch.Generator().manual_seed(0)).to(policy.device)
    ours = policy.logprobs(
        collate(chosen, policy.pad_id, policy.device), tokens, torch.ones_like(tokens).bool()
    )
    theirs = torch.stack([plain_logprobs(policy, p, t) for p, t in zip(chosen, tokens, strict=True)])
    return {"largest_difference": float((ours - theirs).abs().max()), "mean": float(theirs.mean())}


def plain_logprobs(policy, prompt, completion: Tensor) -> Tensor:
    """Return one completion's log-probabilities by plain transformers, without padding."""
    ids = torch.cat([prompt.ids.to(policy.device), completion])[None]
    logits = policy.model(
        input_ids=ids,
        pixel_values=policy.encoder.pixel_values(prompt.pixels.to(policy.device)),
        image_grid_thw=prompt.grid.to(policy.device),
        mm_token_type_ids=(ids == policy.image_id).int(),
        use_cache=False,
    ).logits[0, len(prompt.ids) - 1 : -1]
    logits[:, policy.banned_ids] = -torch.inf
    return logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]


def show(results: dict[str, Any]) -> None:
    table = Table("case", "step s", "sample", "reference", "train", "update", "evaluate", "peak GB", "checks")
    for case, found in results["cases"].items():
        if "seconds" not in found:
            table.add_row(case, *[""] * 7, json.dumps(found))
            continue
        names = ("step", "sample", "reference", "train", "update", "evaluate")
        times = [f"{found['seconds'][n]:.2f}" if n in found["seconds"] else "" for n in names]
        peak = f"{max(found['peak_memory_gb'].values()):.1f}"
        table.add_row(case, *times, peak, "pass" if right(found) else "FAIL")
    console = Console(width=120)
    console.print(f"{results['model']} on {results['hardware']}", table)
    console.print(f"parity with plain transformers in fp32: {results['parity']}")


if __name__ == "__main__":
    main()
