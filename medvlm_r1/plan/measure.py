"""Cost of one pass: run the policy's code on the meta device.

Language layers are identical, and so are vision blocks, or periods of them with windowed attention.
Costs are therefore linear in both depths: measuring three shallow models gives the cost of the full
one. A test compares the two, and a 72B model takes no longer than a small one.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medvlm_r1.algorithms.losses import PolicyLoss, sft_loss
from medvlm_r1.plan.meta import Ledger, fused_attention
from medvlm_r1.policy.encode import PromptBatch
from medvlm_r1.policy.forward.decoding import DecodingLayout
from medvlm_r1.policy.forward.logprobs import repeat_prompts
from medvlm_r1.policy.loading.architecture import block_period, meta_model, with_depth
from medvlm_r1.policy.loading.load import Recipe, load_encoder
from medvlm_r1.policy.loading.resolve import EMBEDDED
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy

_COSTS: dict[tuple, "Cost"] = {}
_encoder = functools.cache(load_encoder)


@dataclass(frozen=True)
class PassShape:
    """Tensor shapes of one pass.

    Attributes:
        prompts: number of prompts, with one image each.
        prompt, completion: tokens of each; a prompt's include the image's.
        grid: rows and columns of the image's patches.
    """

    prompts: int
    group_size: int
    prompt: int
    completion: int
    grid: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of one pass. Bytes exclude parameters and their gradients.

    Attributes:
        flops: floating-point operations; in training of forward and backward pass.
        saved: bytes that the forward pass saves for the backward pass.
        logits: those of ``saved`` in tensors as wide as the vocabulary.
        peak_layers: maximum of bytes while no logits are alive.
        peak_head: maximum of bytes while logits are alive. Each of the two is linear in the depth; their
            maximum is not.
    """

    flops: float
    saved: float
    logits: float
    peak_layers: float
    peak_head: float

    @property
    def peak(self) -> float:
        return max(self.peak_layers, self.peak_head)

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + b for a, b in pairs))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(factor * a for a in dataclasses.astuple(self)))


class Meter:
    """Measures passes of one model with one choice of trainable parameters.

    Args:
        config: the architecture, from :func:`~medvlm_r1.policy.loading.architecture.load_config`.
        recipe: dtype and gradient checkpointing.
        tuning: the trainable parameters. 4-bit weights count as 16-bit ones: their kernels do not run on
            meta, and the activations are the same.
        full_depth: measure the full model instead of three shallow ones.
    """

    def __init__(
        self, config, recipe: Recipe, tuning: Tuning, full_depth: bool = False, layout: str = "packed"
    ) -> None:
        self.config, self.recipe, self.layout = config, recipe, layout
        self.tuning = dataclasses.replace(tuning, quantize=None)
        layers, blocks = config.text_config.num_hidden_layers, config.vision_config.depth
        period = block_period(config)
        shallow = layers > 3 and blocks > 2 * period and not full_depth
        self._depths = [(2, period), (3, period), (2, 2 * period)] if shallow else [(layers, blocks)]
        more_layers, more_blocks = layers - 2, blocks / period - 1
        # candidates of one plan share most of their passes
        self._key = (repr(config), recipe.dtype, repr(self.tuning), shallow, layout)
        self._weights = [1 - more_layers - more_blocks, more_layers, more_blocks] if shallow else [1]

    def policy(self, layers: int | None = None, blocks: int | None = None) -> Policy:
        """Return the policy on the meta device, with ``layers`` and vision ``blocks`` (default: all)."""
        config = self.config if layers is None else with_depth(self.config, layers, blocks)
        with torch.device("meta"):
            model = self.tuning.apply(meta_model(config, getattr(torch, self.recipe.dtype)))
            # any tokenizer: the plan encodes no text
            policy = Policy(model.train(), _encoder(EMBEDDED, self.recipe), self.layout).to("meta")
        for parameter in policy.trainable_parameters:  # on meta PEFT does not cast adapters
            parameter.data = parameter.data.to(getattr(torch, self.recipe.dtype))
        if self.recipe.gradient_checkpointing:
            policy.checkpoint_gradients()
        return policy

    def training(self, shape: PassShape, grpo: bool) -> Cost:
        """Forward and backward pass with GRPO's or SFT's loss, which adds to existing gradients."""
        return self._cost(train_once, shape, grpo)

    def scoring(self, shape: PassShape) -> Cost:
        """Log-probabilities without gradients: log pi_ref or log pi_old."""
        return self._cost(_score, shape)

    def prefill(self, shape: PassShape, shared: bool = True) -> Cost:
        """Prefill of a rollout: one pass per prompt if ``shared``, else one per completion.

        ``peak`` includes the prompts' keys and values.
        """
        one = dataclasses.replace(shape, prompts=1)  # linear in the prompts
        return self._cost(_prefill, one, shared) * shape.prompts

    def decode(self, shape: PassShape, position: int) -> Cost:
        """Operations of one decoding step of all rows, after ``position`` completion tokens."""
        one = dataclasses.replace(shape, prompts=1)
        return self._cost(_decode, one, position) * shape.prompts

    def _cost(self, measure: Callable[..., Cost], *args: Any) -> Cost:
        checkpointing = measure is train_once and self.recipe.gradient_checkpointing
        key = (*self._key, checkpointing, measure.__name__, args)
        if key not in _COSTS:
            costs = [measure(policy, *args) for policy in self._policies]
            parts = [cost * weight for cost, weight in zip(costs, self._weights, strict=True)]
            _COSTS[key] = functools.reduce(operator.add, parts)
        return _COSTS[key]

    @functools.cached_property
    def _policies(self) -> list[Policy]:
        return [self.policy(*depth) for depth in self._depths]


def inputs(policy: Policy, shape: PassShape, device: str = "meta") -> tuple[PromptBatch, Tensor, Tensor]:
    """Return prompts, completion tokens and mask of this shape. Grids and mask stay on the CPU."""
    down, across = shape.grid
    features = 3 * 2 * 14**2  # colours x frames x pixels of a patch
    image = down * across // 4
    ids = torch.zeros(shape.prompts, shape.prompt, dtype=torch.long, device=device)
    if device != "meta":
        ids[:, :image] = policy.image_id
    prompts = PromptBatch(
        ids=ids.flatten(),
        positions=torch.zeros(3, ids.numel(), dtype=torch.long, device=device),
        pixels=torch.zeros(shape.prompts * down * across, features, device=device),
        grid=torch.tensor([[1, down, across]] * shape.prompts),
        image_digests=tuple(map(str, range(shape.prompts))),
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
    with _ledger(policy.train(), batch[0]) as ledger, fused_attention() if fused else nullcontext():
        logprobs = policy.logprobs(*batch)
        saved, logits = ledger.live, ledger.live_wide
        if grpo:
            advantages = torch.zeros(shape.rows, device=device)
            loss, _ = PolicyLoss()(logprobs, logprobs.detach(), logprobs.detach(), advantages, batch[2])
        else:
            loss = sft_loss(logprobs, batch[2])
        torch.autograd.backward(loss)
    return Cost(ledger.flops, saved, logits, ledger.peak, ledger.peak_wide)


@torch.no_grad()
def _score(policy: Policy, shape: PassShape) -> Cost:
    batch = inputs(policy, shape)
    policy.clear_vision_cache()
    with _ledger(policy, batch[0]) as ledger, fused_attention():
        policy.reference_logprobs(*batch) if policy.has_adapter else policy.logprobs(*batch)
    return Cost(ledger.flops, 0, 0, ledger.peak, ledger.peak_wide)


@torch.no_grad()
def _prefill(policy: Policy, shape: PassShape, shared: bool) -> Cost:
    prompts, _, _ = inputs(policy, shape)
    policy.clear_vision_cache()
    with policy.sampling_mode(), _ledger(policy, prompts) as ledger, fused_attention():
        if shared:
            prefilled = policy.prefill(prompts)  # keeps the cache alive, as the engine does
            policy.next_token_logprobs(prefilled.hidden)
        else:  # the first pass of transformers' generate
            embeds, mask, positions = repeat_prompts(
                policy.model, prompts, policy.image_features(prompts), shape.group_size
            )
            policy.model(
                inputs_embeds=embeds,
                attention_mask=mask.long(),
                position_ids=positions,
                logits_to_keep=1,
                use_cache=True,
            )
    return Cost(ledger.flops, 0, 0, ledger.peak, ledger.peak_wide)


@torch.no_grad()
def _decode(policy: Policy, shape: PassShape, position: int) -> Cost:
    prompts, _, _ = inputs(policy, shape)
    with policy.sampling_mode(), Ledger(), fused_attention():
        decoding = DecodingLayout(policy.prefill(prompts), shape.group_size, position + 1)
    with policy.sampling_mode(), _ledger(policy, prompts) as ledger, fused_attention():
        policy.next_token_logprobs(policy.decode_step(prompts.ids.new_zeros(shape.rows), decoding))
    return Cost(ledger.flops, 0, 0, 0, 0)


def _ledger(policy: Policy, prompts: PromptBatch) -> Ledger:
    excluded = [*policy.parameters(), *policy.buffers(), prompts.pixels]
    excluded += [p.grad for p in policy.parameters() if p.grad is not None]
    return Ledger(excluded, wide=len(policy.banned))
