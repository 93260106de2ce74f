#!/usr/bin/env bash
# The comparison in miniature over three seeds, and learning-rate trials.
# About an hour on two CPU cores. Results: trials.json, comparison.json, comparison.md in this folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
here=experiments/medvlm_r1_table
tiny="model=tiny data=phantom workers=0 overwrite=true"

# 1. Three learning rates for each method, one seed, evaluated on the 100 validation questions alone.
$python run.py -m +experiment=grpo_600 $tiny model.recipe.grpo_lr=3e-5,1e-4,3e-4 controls=[image] sweep=miniature_trials
$python run.py -m +experiment=sft_600 $tiny model.recipe.sft_lr=3e-5,1e-4,3e-4 controls=[image] sweep=miniature_trials
$python $here/trials.py outputs/sweeps/miniature_trials > $here/trials.json

# 2. Three seeds at the rates of conf/model/tiny.yaml (1e-4 for both, fixed before the trials).
$python run.py -m +experiment=zero_shot,sft_600,grpo_600 $tiny controls=[image,blank] seed=0,1,2 \
    sweep=miniature_seeds
$python -m medvlm_r1 compare outputs/sweeps/miniature_seeds
cp outputs/sweeps/miniature_seeds/{comparison.json,comparison.md,accuracy.png} $here/
