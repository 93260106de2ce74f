"""The comparison of several runs as a W&B run, in the group of their sweep."""

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlm_r1.report.comparison import Comparison
from medvlm_r1.runs.places import pip_install
from medvlm_r1.tracking.wandb_run import TrackingError, reach, send_artifact, wandb_run


def send_comparison(c: Comparison, out: Path, files: Sequence[Path], project: str) -> None:
    """Send a table of accuracies, the figure and all files of a comparison.

    The same folder on the same machine keeps its W&B run; its artifact gets a new version.

    Raises:
        TrackingError: the package wandb is missing, or there is no API key.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise TrackingError(f"--wandb needs the package wandb: {pip_install('wandb')}") from error
    sweeps = {run.config.get("sweep") or run.experiment for run in c.runs}
    group = sweeps.pop() if len(sweeps) == 1 else None
    place = f"{platform.node()} {out.resolve()}"
    settings: dict[str, Any] = {
        "project": project,
        "name": f"comparison-{out.name}",
        "id": f"compare-{hashlib.sha256(place.encode()).hexdigest()[:8]}",
        "group": group,
        "job_type": "compare",
        "dir": str(out),
        "resume": "allow",
        "settings": {"console": "off"},
    }
    columns: list[Any] = ["run", "where", "accuracy", "low", "high", "questions"]
    data: list[Any] = [
        [label, where, interval.value, interval.low, interval.high, interval.n]
        for label, scopes in c.accuracy.items()
        for where, interval in scopes.items()
    ]
    with wandb_run(out):
        run = reach(lambda: wandb.init(**settings))
        figure = wandb.Image(str(out / "accuracy.png"))
        run.log({"accuracies": wandb.Table(columns=columns, data=data), "accuracy": figure})
        send_artifact(run, out.name, "comparison", files)
