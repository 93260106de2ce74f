"""Cost of one pass: run the policy's code on the meta device.

Language layers are identical, and so are vision blocks, or periods of them with windowed attention.
Costs are therefore linear in both depths: measuring three shallow models gives the cost of the full
one. A test compares the two, and a 72B model takes no longer than a small one.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch

from medvlm_r1.plan.passes import Cost, PassShape, decode, prefill, score, train_once
from medvlm_r1.policy.forward.decoding import CacheShape
from medvlm_r1.policy.loading.architecture import block_period, meta_model, smallest_depth, with_depth
from medvlm_r1.policy.loading.load import Recipe, load_encoder
from medvlm_r1.policy.loading.resolve import EMBEDDED
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rollout.engine import Sampling

_COSTS: dict[tuple, Cost] = {}
_encoder = functools.cache(load_encoder)


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
        (few, little), period = smallest_depth(config), block_period(config)
        shallow = layers > few + 1 and blocks > little + period and not full_depth
        shallow_depths = [(few, little), (few + 1, little), (few, little + period)]
        self._depths = shallow_depths if shallow else [(layers, blocks)]
        more_layers, more_blocks = layers - few, (blocks - little) / period
        # candidates of one plan share most of their passes
        self.key = (repr(config), recipe.dtype, repr(self.tuning), shallow, layout)
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
        return self._cost(score, shape)

    def prefill(self, shape: PassShape, shared: bool = True) -> Cost:
        """Prefill of a rollout: one pass per prompt if ``shared``, else one per completion.

        ``peak`` includes the prompts' keys and values.
        """
        size = {"group_size": 1 if shared else shape.group_size, "images": shape.images or shape.prompts}
        return self._cost(prefill, dataclasses.replace(shape, completion=1, **size), shared)

    def decode(self, shape: CacheShape, window: int, sampling: Sampling) -> Cost:
        """One decoding step of all rows; each attends to its prompt and ``window`` own tokens.

        ``peak`` excludes keys and values.
        """
        return self._cost(decode, shape, window, sampling)

    def _cost(self, measure: Callable[..., Cost], *args: Any) -> Cost:
        checkpointing = measure is train_once and self.recipe.gradient_checkpointing
        key = (*self.key, checkpointing, measure.__name__, args)
        if key not in _COSTS:
            costs = [measure(policy, *args) for policy in self._policies]
            parts = [cost * weight for cost, weight in zip(costs, self._weights, strict=True)]
            _COSTS[key] = functools.reduce(operator.add, parts)
        return _COSTS[key]

    @functools.cached_property
    def _policies(self) -> list[Policy]:
        return [self.policy(*depth) for depth in self._depths]
