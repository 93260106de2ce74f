"""Operations of one training pass of the 2B language model, packed and repeated layout, on the meta device.

Two prompts of 800 tokens with eight completions each. The repeated layout pads to the longest completion,
512 tokens; the packed layout has no padding, so completions of 384 tokens on average cost 384.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from memory import Watch
from phases import Phases
from rich.console import Console
from rich.table import Table
from sizes import GENUINE, adapter, encoder, of_words
from transformers import PreTrainedConfig

from medvlm_r1.algorithms.losses import PolicyLoss
from medvlm_r1.plan.meta import gpu_kernels
from medvlm_r1.policy.encode import Encoder, collate
from medvlm_r1.policy.loading.architecture import load_config, meta_model
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy

PROMPTS, GROUP, PROMPT, LONGEST, MEAN = 2, 8, 800, 512, 384


def show_arithmetic(path: Path | None) -> None:
    """Print the table; also write JSON to ``path``."""
    found = {tune: arithmetic(tune, encoder("2b")) for tune in ("full", "lora")}
    table = Table("TFLOP, language model", "layout", "completions", "forward", "and backward", "ratio")
    for tune, rows in found.items():
        for row in rows:
            numbers = (row["forward"] / 1e12, row["total"] / 1e12, row["total"] / row["forward"])
            table.add_row(tune, row["layout"], row["completions"], *(f"{number:.3g}" for number in numbers))
    Console(width=110).print(table)
    for tune, (padded, *packed) in found.items():
        for row in packed:
            shares = (f"{row[part] / padded[part]:.3f} ({part})" for part in ("forward", "total"))
            print(f"{tune}: packed, {row['completions']}, of repeated:", ", ".join(shares))
    if path:
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def arithmetic(tune: str, encoder: Encoder) -> list[dict[str, Any]]:
    """Return the operations of each layout."""
    layouts = ("repeated", "packed") if "layout" in inspect.signature(Policy).parameters else ("repeated",)
    rows = []
    for layout in layouts:
        whole = torch.full((PROMPTS * GROUP,), LONGEST)
        # uniformly from 256 to 512: 384 on average
        spread = torch.linspace(2 * MEAN - LONGEST, LONGEST, PROMPTS * GROUP).round().long()
        cases = (
            {"padded to 512": whole}
            if layout == "repeated"
            else {"of 384 in the mean": spread, "of 512": whole}
        )
        for completions, lengths in cases.items():
            forward, total = one_pass(load_config(GENUINE), tune, layout, encoder, lengths)
            rows.append({"layout": layout, "completions": completions, "forward": forward, "total": total})
    return rows


def one_pass(
    config: PreTrainedConfig, tune: str, layout: str, encoder: Encoder, lengths: torch.Tensor
) -> tuple[float, float]:
    """Return the operations of the forward pass, and of both passes; prompts have no images."""
    tuning = Tuning("adapter", adapter()) if tune == "lora" else Tuning()
    has_layout = "layout" in inspect.signature(Policy).parameters
    with torch.device("meta"):
        model = tuning.apply(meta_model(config, torch.bfloat16))
        policy = Policy(model.train(), encoder, **{"layout": layout} if has_layout else {}).to("meta")
    for parameter in policy.trainable_parameters:
        parameter.data = parameter.data.to(torch.bfloat16)
    prompts = collate([of_words(PROMPT, encoder)] * PROMPTS, policy.pad_id, torch.device("cpu"))
    # The mask stays on the CPU, where the layout reads the lengths.
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    with Watch([], Phases()) as watch, gpu_kernels():
        logprobs = policy.logprobs(prompts, torch.zeros_like(mask, dtype=torch.long), mask)
        forward = watch.flops
        loss, _ = PolicyLoss()(
            logprobs,
            logprobs.detach(),
            None,
            torch.zeros(len(lengths), device="meta"),
            mask.to("meta"),
            beta=0.0,
        )
        torch.autograd.backward(loss)
    return forward, watch.flops
