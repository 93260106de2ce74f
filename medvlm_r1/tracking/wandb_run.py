"""W&B runs: start one even without a network, end it, send files. Imports neither torch nor Lightning."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Run = TypeVar("Run")
log = logging.getLogger("medvlm_r1")


class TrackingError(ValueError):
    """W&B is not installed, or has no API key."""


def reach(start: Callable[[], Run]) -> Run:
    """Call ``start``, which starts or continues a W&B run; if the server cannot be reached, offline.

    Raises:
        TrackingError: there is no API key.
    """
    import wandb

    try:
        return start()
    except wandb.errors.UsageError as error:
        raise TrackingError(f"W&B: {error} WANDB_MODE=offline needs no account") from error
    except wandb.errors.CommError as error:
        reason = str(error).split("\n")[0]
        log.warning("W&B cannot be reached (%s): logging offline, upload later with wandb sync", reason)
        wandb.teardown()
        os.environ["WANDB_MODE"] = "offline"  # for later jobs of this process too: none waits again
        return start()


@contextmanager
def wandb_run(folder: Path) -> Iterator[None]:
    """End the W&B run at the end of the block, so that the next job of a multirun gets its own.

    Copies of files that W&B has yet to upload lie in ``folder/wandb``, not in the user's home.
    """
    own_place = os.environ.get("WANDB_DATA_DIR")
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute() / "wandb"))
    code = 1  # failed or stopped
    try:
        yield
        code = 0
    finally:
        wandb = sys.modules.get("wandb")
        if wandb and getattr(wandb, "run", None):
            wandb.finish(exit_code=code)
            wandb.teardown()  # the next job's variables count
        if own_place is None:
            del os.environ["WANDB_DATA_DIR"]


def send_artifact(run: Any, name: str, kind: str, files: Sequence[Path]) -> None:
    """Add files to a W&B run as one artifact, named ``kind-name``; W&B numbers its versions."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^a-zA-Z0-9_.-]", "_", f"{kind}-{name}")[:128], type=kind)
    for path in files:
        artifact.add_file(str(path), policy="immutable")  # no copy
    run.log_artifact(artifact)
