"""Checkpoints on disk, complete or damaged, and in the hub client's cache."""

import json
import shutil

import pytest
from command import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from medvlm_r1.policy.loading.load import Recipe
from medvlm_r1.policy.loading.resolve import check_weights
from medvlm_r1.policy.loading.validate import UnusableWeightsError

COMMIT = "0123456789abcdef" * 2 + "01234567"
LIMITS = {"min_pixels": 56 * 56, "max_pixels": 168 * 112}


def recipe(**changes):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values = OmegaConf.to_container(compose("config").model.recipe)
    del values["_target_"]
    return Recipe(**(values | LIMITS | changes))


def in_cache(cache, folder, name="Qwen/Some-Model"):
    """Copy a directory into a hub cache as a download does: blobs, links to them, a ref."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        shutil.copy(file, home / "blobs" / file.name)
        (snapshot / file.name).symlink_to(home / "blobs" / file.name)
    return snapshot


def write(path, value):
    path.write_text(json.dumps(value))


def change(path, **values):
    write(path, json.loads(path.read_text()) | values)


def refused(folder, *parts):
    """Check that the error about a checkpoint is one line with its directory and ``parts``."""
    with pytest.raises(UnusableWeightsError) as caught:
        check_weights(str(folder), None, "cpu")
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message
