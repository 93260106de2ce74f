"""What one pass through the policy costs: the real code, run on the meta device.

The language model's layers are all alike, and so are the vision tower's blocks, or groups of them where
some attend in windows. Therefore three shallow models are measured, and the cost goes on in a straight
line to the real depth: exact (a test compares it with the whole model), and a 72B model is as quick as
a small one.
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

from medvlm_r1.algorithms.losses import grpo_loss, sft_loss
from medvlm_r1.plan.meta import Ledger, fused_attention
from medvlm_r1.policy.encode import Encoder, PromptBatch
from medvlm_r1.policy.forward.decoding import DecodingLayout
from medvlm_r1.policy.forward.logprobs import repeat_prompts
from medvlm_r1.policy.loading.architecture import block_period, meta_model, with_depth
from medvlm_r1.policy.loading.load import Recipe, load_encoder
from medvlm_r1.policy.loading.resolve import EMBEDDED
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy

_COSTS: dict[tuple, "Cost"] = {}


@dataclass(frozen=True)
class Lengths:
    """The tensors of one pass.

    Attributes:
        prompts: prompts side by side, one image each.
        group_size: completions per prompt.
        prompt: tokens of a prompt, image tokens included.
        completion: tokens of a completion.
        grid: patches of the image, down and across.
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
    """What one pass does and holds.

    Attributes:
        flops: floating-point operations; in training of forward and backward pass.
        held: bytes that the forward pass leaves for the backward pass, parameters excluded.
        logits: the part of ``held`` that is as wide as the vocabulary.
        peak_layers, peak_head: the most bytes alive at once, parameters and their gradients excluded,
            without and with logits among them. Apart, because only each is linear in the depth.
    """

    flops: float
    held: float
    logits: float
    peak_layers: float
    peak_head: float

    @property
    def peak(self) -> float:
        """The most bytes alive at once."""
        return max(self.peak_layers, self.peak_head)

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + b for a, b in pairs))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(factor * a for a in dataclasses.astuple(self)))


class Meter:
    """Measures passes of one model under one tuning.

    Args:
        config: the architecture, of :func:`~medvlm_r1.policy.loading.architecture.load_config`.
        recipe: its dtype and checkpointing.
        tuning: what is trained. Weights in 4 bits are measured as if they were not: the kernels do not
            run on meta, and activations are the same.
        whole: measure the model in its full depth, not shallow ones.
        layout: of log-probability passes.
    """

    def __init__(
        self, config, recipe: Recipe, tuning: Tuning, whole: bool = False, layout: str = "packed"
    ) -> None:
        self.config, self.recipe, self.layout = config, recipe, layout
        self.tuning = dataclasses.replace(tuning, quantize=None)
        layers, blocks = config.text_config.num_hidden_layers, config.vision_config.depth
        period = block_period(config)
        deep = layers > 3 and blocks > 2 * period and not whole
        self._samples = [(2, period), (3, period), (2, 2 * period)] if deep else [(layers, blocks)]
        more_layers, more_blocks = layers - 2, blocks / period - 1
        # plans of the same model often ask for the same pass
        self._key = (repr(config), recipe.dtype, repr(self.tuning), deep, layout)
        self._weights = [1 - more_layers - more_blocks, more_layers, more_blocks] if deep else [1]

    def policy(self, layers: int | None = None, blocks: int | None = None) -> Policy:
        """The real policy on the meta device, in full depth or cut down."""
        config = self.config if layers is None else with_depth(self.config, layers, blocks)
        with torch.device("meta"):
            model = self.tuning.apply(meta_model(config, getattr(torch, self.recipe.dtype)))
            # any tokenizer does: no text is encoded here
            policy = Policy(model.train(), _encoder(), self.layout).to("meta")
        for parameter in policy.trainable_parameters:  # adapters take the weights' type, but not on meta
            parameter.data = parameter.data.to(getattr(torch, self.recipe.dtype))
        if self.recipe.gradient_checkpointing:
            policy.checkpoint_gradients()
        return policy

    def training(self, lengths: Lengths, grouped: bool) -> Cost:
        """Forward and backward pass of a micro-batch; gradients are there already, and are added to.

        Args:
            grouped: GRPO's loss; otherwise SFT's.
        """
        return self._measured(train_once, lengths, grouped)

    def scoring(self, lengths: Lengths) -> Cost:
        """Log-probabilities without gradients: the reference, or the policy before several updates."""
        return self._measured(_score, lengths)

    def prefill(self, lengths: Lengths, shared: bool = True) -> Cost:
        """The prompts' pass of generation; ``peak`` holds the prompts' keys and values.

        Args:
            shared: each prompt once, as the shared-prefix engine reads it; otherwise once per completion.
        """
        one = dataclasses.replace(lengths, prompts=1)  # all of it grows with the prompts
        return self._measured(_prefill, one, shared) * lengths.prompts

    def decode(self, lengths: Lengths, seen: int) -> Cost:
        """Arithmetic of one more token for each row, after ``seen`` tokens of its own."""
        one = dataclasses.replace(lengths, prompts=1)
        return self._measured(_decode, one, seen) * lengths.prompts

    def _measured(self, measure: Callable[..., Cost], *shape: Any) -> Cost:
        again = measure is train_once and self.recipe.gradient_checkpointing
        key = (*self._key, again, measure.__name__, shape)
        if key not in _COSTS:
            costs = [measure(policy, *shape) for policy in self._shallow]
            parts = [cost * weight for cost, weight in zip(costs, self._weights, strict=True)]
            _COSTS[key] = functools.reduce(operator.add, parts)
        return _COSTS[key]

    @functools.cached_property
    def _shallow(self) -> list[Policy]:
        return [self.policy(*sample) for sample in self._samples]


def inputs(policy: Policy, lengths: Lengths, device: str = "meta") -> tuple[PromptBatch, Tensor, Tensor]:
    """A batch of this shape: prompts, completion tokens and their mask. Grids and mask stay on the host."""
    down, across = lengths.grid
    features = 3 * 2 * 14**2  # colours x frames x pixels of a patch
    image = down * across // 4
    ids = torch.zeros(lengths.prompts, lengths.prompt, dtype=torch.long, device=device)
    if device != "meta":
        ids[:, :image] = policy.image_id
    prompts = PromptBatch(
        ids=ids.flatten(),
        positions=torch.zeros(3, ids.numel(), dtype=torch.long, device=device),
        pixels=torch.zeros(lengths.prompts * down * across, features, device=device),
        grid=torch.tensor([[1, down, across]] * lengths.prompts),
        image_digests=tuple(map(str, range(lengths.prompts))),
        lengths=(lengths.prompt,) * lengths.prompts,
        pad_id=policy.pad_id,
    )
    tokens = torch.zeros(lengths.rows, lengths.completion, dtype=torch.long, device=device)
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    return prompts, tokens, mask


def train_once(
    policy: Policy, lengths: Lengths, grouped: bool, device: str = "meta", fused: bool = True
) -> Cost:
    """:meth:`Meter.training` of one policy, on any device.

    Args:
        fused: attention on meta as a GPU computes it; otherwise by torch's plain formula.
    """
    for parameter in policy.trainable_parameters:
        parameter.grad = torch.zeros_like(parameter)
    policy.clear_vision_cache()  # kept features would be counted in the first pass alone
    batch = inputs(policy, lengths, device)
    with _ledger(policy.train(), batch[0]) as ledger, fused_attention() if fused else nullcontext():
        logprobs = policy.logprobs(*batch)
        held, wide = ledger.live, ledger.live_wide
        if grouped:
            gain = torch.zeros(lengths.rows, device=device)
            loss, _ = grpo_loss(logprobs, logprobs.detach(), logprobs.detach(), gain, batch[2])
        else:
            loss = sft_loss(logprobs, batch[2])
        torch.autograd.backward(loss)
    return Cost(ledger.flops, held, wide, ledger.peak, ledger.peak_wide)


@torch.no_grad()
def _score(policy: Policy, lengths: Lengths) -> Cost:
    batch = inputs(policy, lengths)
    policy.clear_vision_cache()
    with _ledger(policy, batch[0]) as ledger, fused_attention():
        policy.reference_logprobs(*batch) if policy.has_adapter else policy.logprobs(*batch)
    return Cost(ledger.flops, 0, 0, ledger.peak, ledger.peak_wide)


@torch.no_grad()
def _prefill(policy: Policy, lengths: Lengths, shared: bool) -> Cost:
    prompts, _, _ = inputs(policy, lengths)
    policy.clear_vision_cache()
    with policy.sampling_mode(), _ledger(policy, prompts) as ledger, fused_attention():
        if shared:
            kept = policy.prefill(prompts)
            policy.next_token_logprobs(kept.hidden)
        else:  # as transformers' generate begins
            embeds, mask, positions = repeat_prompts(
                policy.model, prompts, policy.image_features(prompts), lengths.group_size
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
def _decode(policy: Policy, lengths: Lengths, seen: int) -> Cost:
    prompts, _, _ = inputs(policy, lengths)
    with policy.sampling_mode(), Ledger(), fused_attention():
        decoding = DecodingLayout(policy.prefill(prompts), lengths.group_size, seen + 1)
    with policy.sampling_mode(), _ledger(policy, prompts) as ledger, fused_attention():
        policy.next_token_logprobs(policy.decode_step(prompts.ids.new_zeros(lengths.rows), decoding))
    return Cost(ledger.flops, 0, 0, 0, 0)


def _ledger(policy: Policy, prompts: PromptBatch) -> Ledger:
    known = [*policy.parameters(), *policy.buffers(), prompts.pixels]  # these stay on the host
    known += [p.grad for p in policy.parameters() if p.grad is not None]
    return Ledger(known, wide=len(policy.banned))


@functools.cache
def _encoder() -> Encoder:
    limits = dict.fromkeys(("grpo_lr", "sft_lr", "epochs", "max_prompt_tokens", "max_completion_tokens"), 1)
    limits |= dict.fromkeys(("min_pixels", "max_pixels", "prompts_per_step", "group_size"), 1)
    return load_encoder(EMBEDDED, Recipe(**limits, dtype="float32", micro_batch=1, evaluation_batch=1))
