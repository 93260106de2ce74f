"""Frozen copies of a policy's model: the reference, and the model to sample from under FSDP."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from medvlm_r1.policy.forward.model import Model, inner_model


@dataclass
class FrozenCopies:
    """Frozen copies of one model.

    ``nn.Module`` does not register the attributes of this object, so the copies stay out of checkpoints, of
    the optimiser and of the strategy's wrapping. Lightning does not move them either: they stay on the device
    on which they were made.

    Attributes:
        reference: the starting weights; ``None`` before training, and with an adapter, which can be disabled.
        sampling: all weights on this device; ``None`` unless FSDP shards the model.
    """

    reference: Model | None = None
    sampling: Model | None = None

    def freeze_reference(self, model: Model, share_tower: bool) -> None:
        """Copy the weights of ``model``; with ``share_tower`` the copy uses its vision tower."""
        tower = inner_model(model).visual
        shared = {id(tower): tower} if share_tower else {}
        self.reference = copy.deepcopy(model, shared).requires_grad_(False)

    def add_sampling_model(self, model: Model, share_tower: bool) -> None:
        """Copy ``model`` before FSDP shards it; with ``share_tower`` the reference uses the copy's tower."""
        self.sampling = copy.deepcopy(model).requires_grad_(False).eval()
        if share_tower and self.reference is not None:  # its tower so far is the one that FSDP shards
            inner_model(self.reference).visual = inner_model(self.sampling).visual

    @torch.no_grad()
    def sync_sampling_model(self, model: nn.Module) -> None:
        """Gather the trained parameters of the sharded ``model``. A collective: every rank must call it."""
        if self.sampling is None:
            return
        copies = dict(self.sampling.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                copies[name].copy_(parameter.full_tensor())


def shard_parameters(policy: nn.Module, model: Model, mesh: DeviceMesh) -> None:
    """Shard all parameters of ``model`` in ``policy`` over ``mesh`` with FSDP2.

    Trained parameters become fp32, so the optimiser needs no fp32 copies; FSDP gathers them in the dtype in
    which they were loaded, and reduces gradients in fp32.
    """
    # Inputs keep their dtype: rotary cosines in bf16 would change the function.
    types = MixedPrecisionPolicy(
        param_dtype=model.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    inner = inner_model(model)
    for part in (*inner.visual.blocks, *inner.language_model.layers, policy):
        for parameter in part.parameters():  # layer by layer: no rank holds all of the model in fp32
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()
        fully_shard(part, mesh=mesh, mp_policy=types)
