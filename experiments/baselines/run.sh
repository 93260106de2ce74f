#!/usr/bin/env bash
# GRPO beside its baselines on phantoms, over three seeds; further arguments are overrides of every run:
#   experiments/baselines/run.sh
#   SEEDS=0 experiments/baselines/run.sh data.train.n=160
# The same command resumes it. Results: comparison.json, comparison.md and accuracy.png in this folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
seeds=${SEEDS:-0,1,2}
here=experiments/baselines
sweep=baselines
folder=outputs/sweeps/$sweep
common=(model=tiny data=phantom workers=0 "controls=[image]" "$@")

# 1. The base, and methods that start from it.
$python run.py -m +experiment=zero_shot,grpo_600 seed="$seeds" sweep=$sweep "${common[@]}"
$python run.py -m +experiment=sft_600 method=sft_rationale,rft seed="$seeds" sweep=$sweep "${common[@]}"

# 2. SFT on the answers, and GRPO on the weights that it leaves, with the same seed.
for seed in ${seeds//,/ }; do
    $python run.py +experiment=sft_600 seed="$seed" resume=auto hydra.run.dir=$folder/sft_600-seed"$seed" "${common[@]}"
    $python run.py +experiment=grpo_600 seed="$seed" resume=auto hydra.run.dir=$folder/sft_then_grpo_600-seed"$seed" \
        "${common[@]}" model.path=$folder/sft_600-seed"$seed"/model
done

# differences of all rows from GRPO, that of SFT then GRPO included
$python -m medvlm_r1 compare $folder --baseline GRPO
cp $folder/{comparison.json,comparison.md,accuracy.png} $here/
