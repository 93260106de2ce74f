"""Print the difference of sampler and trainer in each run of a sweep, nats per token, as JSON.

python experiments/vllm_rollouts/differences.py outputs/sweeps/vllm_rollouts
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean

COLUMN = "train/sampling_logp_difference_"


def differences(folder: Path) -> dict[str, float]:
    """Steps of a run; mean over its steps of their mean; largest 99th percentile of a step."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row[f"{COLUMN}mean"]]
    means, p99 = ([float(row[COLUMN + name]) for row in rows] for name in ("mean", "p99"))
    return {"steps": len(rows), "mean": mean(means), "largest_p99": max(p99)}


if __name__ == "__main__":
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/metrics.csv"))
    print(json.dumps({folder.name: differences(folder) for folder in folders}, indent=2))
