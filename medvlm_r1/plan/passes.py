"""One pass of the policy's code on the meta device, counted."""

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from medvlm_r1.algorithms.losses import PolicyLoss, sft_loss
from medvlm_r1.plan.meta import Ledger, gpu_kernels
from medvlm_r1.policy.encode import PromptBatch
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.policy.forward.logprobs import repeat_prompts
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.engine import Sampling


@dataclass(frozen=True)
class PassShape:
    """Tensor shapes of one pass.

    Attributes:
        prompts: number of prompts, with one image each.
        prompt, completion: tokens of each; a prompt's include the image's.
        grid: rows and columns of the image's patches.
        images: number of different ones; 0 for one per prompt.
    """

    prompts: int
    group_size: int
    prompt: int
    completion: int
    grid: tuple[int, int]
    images: int = 0

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


@dataclass(frozen=True)
class Cost:
    """Work and bytes of one pass. Memory excludes parameters, their gradients and key-value caches.

    Attributes:
        flops: floating-point operations; in training of forward and backward pass.
        traffic: bytes that kernels read and write, parameters included.
        launches: number of kernels.
        saved: bytes that the forward pass saves for the backward pass.
        logits: those of ``saved`` in tensors as wide as the vocabulary.
        peak_layers: maximum of bytes while no logits are alive.
        peak_head: maximum of bytes while logits are alive. Each of the two is linear in the depth; their
            maximum is not.
    """

    flops: float = 0.0
    traffic: float = 0.0
    launches: float = 0.0
    saved: float = 0.0
    logits: float = 0.0
    peak_layers: float = 0.0
    peak_head: float = 0.0

    @property
    def peak(self) -> float:
        return max(self.peak_layers, self.peak_head)

    @classmethod
    def of(cls, ledger: Ledger, saved: float = 0.0, logits: float = 0.0) -> "Cost":
        counts = ledger.flops, ledger.traffic, ledger.launches
        return cls(*counts, saved, logits, ledger.peak, ledger.peak_wide)

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + b for a, b in pairs))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(factor * a for a in dataclasses.astuple(self)))


def inputs(policy: Policy, shape: PassShape, device: str = "meta") -> tuple[PromptBatch, Tensor, Tensor]:
    """Return prompts, completion tokens and mask of this shape. Grids and mask stay on the CPU."""
    (down, across), vision = shape.grid, policy.model.config.vision_config
    image = down * across // vision.spatial_merge_size**2
    values = vision.in_channels * vision.patch_size**2
    ids = torch.zeros(shape.prompts, shape.prompt, dtype=torch.long, device=device)
    if device != "meta":
        ids[:, :image] = policy.image_id
    prompts = PromptBatch(
        ids=ids.flatten(),
        positions=torch.zeros(3, ids.numel(), dtype=torch.long, device=device),
        pixels=torch.zeros(shape.prompts * down * across, values, dtype=torch.uint8, device=device),
        grid=torch.tensor([[1, down, across]] * shape.prompts),
        image_digests=tuple((str(i % (shape.images or shape.prompts)),) for i in range(shape.prompts)),
        lengths=(shape.prompt,) * shape.prompts,
        pad_id=policy.pad_id,
    )
    tokens = torch.zeros(shape.rows, shape.completion, dtype=torch.long, device=device)
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    return prompts, tokens, mask


def train_once(
    policy: Policy, shape: PassShape, grpo: bool, device: str = "meta", fused: bool = True
) -> Cost:
    """Measure :meth:`Meter.training` of one policy, on any device.

    ``fused`` uses a GPU's attention kernels on meta, not torch's plain formula.
    """
    for parameter in policy.trainable_parameters:
        parameter.grad = torch.zeros_like(parameter)
    policy.clear_vision_cache()  # cached features would cost nothing in later passes
    batch = inputs(policy, shape, device)
    with _ledger(policy.train(), batch[0].pixels) as ledger, gpu_kernels() if fused else nullcontext():
        logprobs = policy.logprobs(*batch)
        saved, logits = ledger.live, ledger.live_wide
        if grpo:
            advantages = torch.zeros(shape.rows, device=device)
            loss, _ = PolicyLoss()(logprobs, logprobs.detach(), logprobs.detach(), advantages, batch[2])
        else:
            loss = sft_loss(logprobs, batch[2])
        torch.autograd.backward(loss)
    return Cost.of(ledger, saved, logits)


@torch.no_grad()
def score(policy: Policy, shape: PassShape) -> Cost:
    """Measure :meth:`Meter.scoring` of one policy on the meta device."""
    batch = inputs(policy, shape)
    policy.clear_vision_cache()
    with _ledger(policy, batch[0].pixels) as ledger, gpu_kernels():
        policy.reference_logprobs(*batch) if policy.has_adapter else policy.logprobs(*batch)
    return Cost.of(ledger)


@torch.no_grad()
def prefill(policy: Policy, shape: PassShape, shared: bool) -> Cost:
    """Measure :meth:`Meter.prefill` of one policy on the meta device."""
    prompts, _, _ = inputs(policy, shape)
    policy.clear_vision_cache()
    with policy.sampling_mode(), _ledger(policy, prompts.pixels) as ledger, gpu_kernels():
        if shared:
            prefilled = policy.prefill(prompts)  # keeps the cache alive, as the engine does
            policy.next_token_logprobs(prefilled.hidden)
        else:  # the first pass of transformers' generate
            features = policy.image_features(prompts)
            repeated = repeat_prompts(policy.model, prompts, features, shape.group_size)
            policy.model(**repeated, logits_to_keep=1, use_cache=True)
    return Cost.of(ledger)


@torch.no_grad()
def decode(policy: Policy, shape: CacheShape, window: int, sampling: Sampling) -> Cost:
    """Measure :meth:`Meter.decode` of one policy on the meta device."""
    state = DecodingState(policy, sampling, shape)
    state.window = window
    held = [value for value in vars(state).values() if isinstance(value, Tensor)]
    held += [value for value in vars(state.cache).values() if isinstance(value, Tensor)]
    with policy.sampling_mode(), _ledger(policy, *held) as ledger, gpu_kernels():
        state.advance()
    return Cost.of(ledger)


def _ledger(policy: Policy, *others: Tensor) -> Ledger:
    excluded = [*policy.parameters(), *policy.buffers(), *others]
    excluded += [p.grad for p in policy.parameters() if p.grad is not None]
    return Ledger(excluded, wide=len(policy.banned))
