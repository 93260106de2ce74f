"""Print the learning-rate trials of a sweep as JSON: method, rate, validation accuracy.

python experiments/medvlm_r1_table/trials.py outputs/sweeps/miniature_trials
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

trials = []
for folder in sorted(p.parent for p in Path(sys.argv[1]).glob("*/metrics.json")):
    metrics = json.loads((folder / "metrics.json").read_text())
    trials.append(
        {
            "method": metrics["run"]["method"],
            "lr": OmegaConf.load(folder / "config.yaml").method.optim.lr,
            "validation_accuracy": round(metrics["validation"]["accuracy"], 4),
            "validation_questions": 100,
            "seed": metrics["run"]["seed"],
        }
    )
print(json.dumps(sorted(trials, key=lambda t: (t["method"], t["lr"])), indent=1))
