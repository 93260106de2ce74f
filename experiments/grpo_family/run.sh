#!/usr/bin/env bash
# The GRPO family in miniature over three seeds, with two updates per rollout, so that ratios and clipping have an effect.
# Results in this folder: comparison.json, comparison.md, accuracy.png.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
here=experiments/grpo_family
sweep=outputs/sweeps/grpo_family
shared="model=tiny data=phantom data.train.n=160 controls=[image] audit=null workers=0 overwrite=true sweep=grpo_family
    data.test.mri.n=200 data.test.ct.n=200 data.test.xray.n=200"
updates="method.num_minibatches=2 method.micro_batch=4"

$python run.py -m +experiment=zero_shot $shared
$python run.py -m +experiment=grpo_600 $shared $updates seed=0,1,2 \
    method=grpo,dr_grpo,dapo,gspo,cispo,rloo,reinforce_pp,gdpo,a_grae
$python -m medvlm_r1 compare $sweep --baseline grpo
cp $sweep/{comparison.json,comparison.md,accuracy.png} $here/
