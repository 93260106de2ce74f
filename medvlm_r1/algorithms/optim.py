"""Optimiser settings, learning-rate schedule, and fp32 master copies of bf16 weights."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class OptimizerSettings:
    """Learning rate, its schedule, and gradient clipping.

    Attributes:
        lr: peak learning rate.
        optimizer: builds the optimiser from (parameters, lr=...).
        lr_scale: factor of ``lr``; adapters need a higher rate than all weights.
        batch_scale: prompts per step over those that ``lr`` is meant for. The rate is multiplied by its
            square root: with Adam, that keeps drift and noise per epoch where noise dominates the gradient
            (arXiv 2205.10287, whose change of the betas is left to the optimiser's settings).
        schedule: decay from the peak to 0 over the run's steps, ``linear`` or ``cosine``, or ``constant``.
        warmup_steps: steps (not updates) of linear warm-up to the peak.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        max_skipped_updates: consecutive updates that may be skipped because the gradient is not finite; the
            last of them stops training.
    """

    lr: float
    optimizer: Callable[..., torch.optim.Optimizer]
    lr_scale: float = 1.0
    batch_scale: float = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    max_skipped_updates: int = 5

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"optim.schedule is {self.schedule!r}: use 'constant', 'linear' or 'cosine'")
        for name in ("lr", "lr_scale", "batch_scale", "max_skipped_updates"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"optim.{name} is {value}: it must be positive")
        for name in ("warmup_steps", "max_grad_norm"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"optim.{name} is {value}: it must not be negative")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimiser at the peak rate; parameters below fp32 get master copies.

        An optimiser with ``fused=None`` is fused on a GPU, where torch would choose ``foreach``, which needs
        scratch memory of the size of the fp32 parameters.
        """
        lr = self.lr * self.lr_scale * math.sqrt(self.batch_scale)
        parameters, build = list(parameters), self.optimizer
        if getattr(build, "keywords", {}).get("fused", False) is None and all(p.is_cuda for p in parameters):
            build = partial(build, fused=True)
        narrow = any(p.dtype != torch.float32 for p in parameters)
        return MasterWeights(parameters, build, lr) if narrow else build(parameters, lr=lr)

    def clip(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Clip the gradients to ``max_grad_norm``; returns their norm before it, over all ranks."""
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate at ``step`` of ``total``, as a share of the peak."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
        if self.schedule == "linear":
            return 1.0 - done
        return 1.0 if self.schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * done))


class NonFiniteGradientError(RuntimeError):
    """The gradient was not finite in too many consecutive updates."""


@dataclass
class SkippedUpdates:
    """Counts updates skipped because the gradient was not finite; ``limit`` of them in a row are an error."""

    limit: int
    total: int = 0
    consecutive: int = 0

    def count(self, skipped: bool) -> None:
        """Count one update; raises :class:`NonFiniteGradientError` at the limit."""
        self.total += skipped
        self.consecutive = self.consecutive + 1 if skipped else 0
        if self.consecutive >= self.limit:
            raise NonFiniteGradientError(
                f"the gradient was not finite in {self.consecutive} consecutive updates, which were skipped: "
                "lower method.optim.lr, or raise method.optim.max_skipped_updates"
            )


class MasterWeights(torch.optim.Optimizer):
    """Updates fp32 master copies of bf16 parameters, then rounds the parameters from them.

    At the papers' learning rate of 1e-6 an update is smaller than bf16 resolves: without master copies
    about one entry in a hundred would change at all.

    Args:
        parameters: those in fp32 are their own copies.
        build: builds the optimiser of the copies from (copies, lr=...).
        lr: peak learning rate.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], build: Callable[..., torch.optim.Optimizer], lr: float
    ) -> None:
        parameters = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in parameters]
        self.inner = build(self.masters, lr=lr)
        super().__init__(parameters, dict(self.inner.defaults))
        self.state = self.inner.state  # Lightning moves the moments, the plan counts them

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimiser at the rates of ``param_groups``."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        parameters = [p for group in self.param_groups for p in group["params"]]
        pairs = zip(parameters, self.masters, strict=True)
        narrow = [(p, m) for p, m in pairs if p is not m and p.grad is not None]
        for parameter, master in narrow:
            master.grad = parameter.grad.float()
        for mine, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner["lr"] = mine["lr"]
        self.inner.step()
        for parameter, master in narrow:
            parameter.copy_(master)
            master.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {
            "inner": self.inner.state_dict(),
            "masters": self.masters,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        self.state = self.inner.state
        for master, saved in zip(self.masters, state_dict["masters"], strict=True):
            master.copy_(saved)
        for group, saved in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(saved)
