#!/usr/bin/env bash
# GRPO of the embedded model with rollouts from vLLM, and from the engine in the trainer's process.
# Results in this folder: comparison.json, comparison.md, differences.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
here=experiments/vllm_rollouts
sweep=outputs/sweeps/vllm_rollouts

$python run.py -m +experiment=grpo_600 model=tiny data=phantom data.train.n=160 controls=[image] \
    data.test.mri.n=200 data.test.ct.n=200 data.test.xray.n=200 \
    rollout=vllm,shared_prefix seed=0,1,2 sweep=vllm_rollouts
$python -m medvlm_r1 compare $sweep --baseline 'GRPO (rollout=SharedPrefixEngine)'
$python $here/differences.py $sweep > $here/differences.json
cp $sweep/{comparison.json,comparison.md} $here/
