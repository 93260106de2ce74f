"""Merge an adapter into its base: as a directory that loads without PEFT, or weight by weight."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from medvlm_r1.policy.forward.model import Model, base_model
from medvlm_r1.policy.loading.load import load_model, merge_adapter_weights
from medvlm_r1.policy.loading.resolve import MissingWeightsError, find_weights
from medvlm_r1.policy.loading.validate import adapter_base
from medvlm_r1.policy.saving.folder import ModelFolderError, inspect_folder


def merge_adapter(folder: Path, out: Path, dtype: str | None = None, base: str | None = None) -> None:
    """Add an adapter to its base in fp32 and write the full model.

    Tokenizer, image processor and generation config are the adapter's. An adapter that was trained on 4-bit
    weights is added to the unquantized ones, so its answers can differ slightly.

    Args:
        dtype: of the saved weights, ``float32`` or ``bfloat16``; the base's own by default.
        base: hub id or directory of the base; the one named in ``folder`` by default.

    Raises:
        ModelFolderError: ``folder`` is not an adapter, or its base is missing.
        UnusableWeightsError: the adapter's tensors do not fit the base.
    """
    named = adapter_base(folder)
    if named is None:
        raise ModelFolderError(f"{folder} holds no adapter, so there is nothing to merge: use it as it is")
    path, revision = (base, None) if base else named
    try:
        base_folder = find_weights(path, revision)
    except MissingWeightsError as error:
        reason = str(error).splitlines()[0].replace("model.path=", "")
        raise ModelFolderError(
            f"the base of {folder}, {path}, is missing: {reason}\n"
            "Give it with --base: a directory or a hub id"
        ) from None
    logging.disable_progress_bar()
    model = load_model(path, base_folder, dtype=torch.float32)
    model = merge_adapter_weights(str(folder), model, base_folder, folder)
    model.to(getattr(torch, dtype or inspect_folder(base_folder).dtype)).save_pretrained(out)
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("adapter_") and file.name != "README.md":
            shutil.copyfile(file, out / file.name)


@torch.no_grad()
def merged_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight of ``model`` with its adapter added, as a model without PEFT has them.

    One layer is copied and merged at a time; ``model`` keeps its adapter and its weights bit for bit. Tied
    weights come once.

    Raises:
        ValueError: the weights are held in 4 bits.
    """
    base = base_model(model)
    modules: dict[str, Any] = dict(base.named_modules())
    tuned = {name for name, module in modules.items() if hasattr(module, "base_layer")}
    seen: set[int] = set()
    for name, module in modules.items():
        if any(name.startswith(f"{parent}.") for parent in tuned):
            continue
        layer = module
        if name in tuned:
            layer = copy.deepcopy(module)
            layer.merge(safe_merge=True)
            layer = layer.get_base_layer()
        for key, value in layer.named_parameters(name, recurse=False):
            if not value.is_floating_point():
                raise ValueError(f"{key} is held in 4 bits: another program cannot take such weights")
            if id(value) in seen:
                continue
            if layer is module:  # a copy ends, and another parameter gets its id
                seen.add(id(value))
            yield key, value.detach()
