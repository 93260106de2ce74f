"""An adapter becomes part of its base, as a directory that loads without PEFT."""

import shutil
from pathlib import Path

import torch
from transformers.utils import logging

from medvlm_r1.policy.loading.load import load_model, merge_adapter_weights
from medvlm_r1.policy.loading.resolve import MissingWeightsError, find_weights
from medvlm_r1.policy.loading.validate import adapter_base
from medvlm_r1.policy.saving.folder import ModelFolderError, inspect_folder


def merge_adapter(folder: Path, out: Path, dtype: str | None = None, base: str | None = None) -> None:
    """Add an adapter to its base in fp32 and write the whole model.

    The tokenizer, image processor and generation config are the adapter's. An adapter that was
    trained over 4-bit weights is added to the unrounded ones, so its answers can differ slightly.

    Args:
        folder: a PEFT directory.
        out: directory to write into.
        dtype: to save in, ``float32`` or ``bfloat16``; the base's own where it is not given.
        base: hub id or directory of the base, if it is not where the adapter says.

    Raises:
        ModelFolderError: not an adapter, or its base is nowhere; says where it was looked for.
        UnusableWeightsError: the adapter's tensors do not fit its base.
    """
    named = adapter_base(folder)
    if named is None:
        raise ModelFolderError(f"{folder} holds no adapter, so there is nothing to merge: use it as it is")
    path, revision = (base, None) if base else named
    try:
        start = find_weights(path, revision)
    except MissingWeightsError as error:
        where = str(error).splitlines()[0].replace("model.path=", "")
        raise ModelFolderError(
            f"the base of {folder}, {path}, is missing: {where}\nGive it with --base: a directory or a hub id"
        ) from None
    logging.disable_progress_bar()
    model = merge_adapter_weights(str(folder), load_model(path, start, dtype=torch.float32), start, folder)
    model.to(getattr(torch, dtype or inspect_folder(start).dtype)).save_pretrained(out)
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("adapter_") and file.name != "README.md":
            shutil.copyfile(file, out / file.name)
