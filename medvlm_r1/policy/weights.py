"""Where a checkpoint is, and whether this machine can run it: answered before anything is built."""

from pathlib import Path

import torch
from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

# The hub client's own retries take more than 20 s offline; one short probe is enough to know.
PROBE_SECONDS = 3.0
# Weights above this size are no pastime for a CPU: 1 GB is 500 M parameters in bf16.
GPU_BYTES = 1_000_000_000
EMBEDDED = Path(__file__).parents[1] / "tiny"
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


class MissingWeightsError(FileNotFoundError):
    """No weights at the path, in the cache or on the hub."""


class MissingGPUError(RuntimeError):
    """The weights are here, but they need a GPU and none is visible."""


def find_weights(path: str, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: given directory, cache, or a download from the hub.

    Args:
        path: a local directory, a hub id such as ``Qwen/Qwen2-VL-2B-Instruct``, or ``embedded``.
        revision: commit, tag or branch on the hub.

    Raises:
        MissingWeightsError: within seconds, naming the two ways on.
    """
    if path == "embedded":
        return EMBEDDED
    if (Path(path) / "config.json").is_file():
        if not list(Path(path).glob("*.safetensors")):
            raise MissingWeightsError(f"{path} holds a config.json but no *.safetensors weights.\n{_WAYS_ON}")
        return Path(path)
    if path.count("/") != 1 or Path(path).exists():
        raise MissingWeightsError(f"model.path={path} is no directory with a config.json.\n{_WAYS_ON}")
    try:
        cached = Path(
            snapshot_download(path, revision=revision, allow_patterns=_FILES, local_files_only=True)
        )
        if list(cached.glob("*.safetensors")):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        probe = get_session().head(
            f"{constants.ENDPOINT}/{path}/resolve/{revision or 'main'}/config.json", timeout=PROBE_SECONDS
        )
        reached = probe.status_code < 400
        problem = f"the hub answered {probe.status_code}"
    except Exception as error:  # the http client raises a family of its own for each way to be offline
        reached, problem = False, f"the hub cannot be reached ({type(error).__name__})"
    if not reached:
        raise MissingWeightsError(
            f"{path} is neither a local directory nor in the hub cache ({constants.HF_HUB_CACHE}), and "
            f"{problem}.\n{_WAYS_ON}"
        )
    return Path(snapshot_download(path, revision=revision, allow_patterns=_FILES))


def check_device(weights: Path, accelerator: str) -> None:
    """Refuse to train billions of parameters on a CPU by accident.

    Raises:
        MissingGPUError: the weights exceed 1 GB, no GPU is visible, and ``trainer.accelerator=cpu``
            was not asked for.
    """
    size = sum(f.stat().st_size for f in weights.glob("*.safetensors"))
    if size > GPU_BYTES and accelerator != "cpu" and not torch.cuda.is_available():
        raise MissingGPUError(
            f"{weights} holds {size / 1e9:.1f} GB of weights, and no GPU is visible.\nThe two ways on: run "
            "it on a machine with a GPU (trainer.accelerator=cpu insists on this one, slowly), or take the "
            "embedded model: model=tiny data=phantom"
        )


_WAYS_ON = (
    "The two ways on: give a local copy with model.path=/path/to/checkpoint, or take the embedded model: "
    "model=tiny data=phantom"
)
