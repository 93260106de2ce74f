#!/usr/bin/env bash
# The GRPO family in miniature over three seeds, with two updates per rollout, so that ratios and clipping have an effect.
#   experiments/grpo_family/run.sh phantom       the three modalities
#   experiments/grpo_family/run.sh shortcut      the option text reveals 95 % of the gold options in training
# The same command resumes. Results in phantom/ or shortcut/ here: comparison.md, sweep.md and their JSON, two PNG.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
kind=${1:?phantom or shortcut}
case $kind in
    phantom) data="data=phantom" on=mean ;;
    shortcut) data="data=phantom_shortcut data.train.shortcut=0.95 data.test.mri_plain.n=200" on=outside ;;
    *) echo "no kind $kind: phantom or shortcut" >&2; exit 2 ;;
esac
sweep=grpo_family_$kind
shared="model=tiny $data data.train.n=160 controls=[image] audit=null workers=0 sweep=$sweep
    data.test.mri.n=200 data.test.ct.n=200 data.test.xray.n=200"
updates="method.num_minibatches=2 method.micro_batch=4"

$python run.py -m +experiment=grpo_600 $shared $updates seed=0,1,2 \
    method=grpo,dr_grpo,dapo,gspo,cispo,rloo,reinforce_pp,gdpo,a_grae
$python run.py -m +experiment=zero_shot $shared
out=experiments/grpo_family/$kind
$python -m medvlm_r1 sweep outputs/sweeps/"$sweep" --on $on --smallest 5 --out "$out"
$python -m medvlm_r1 compare outputs/sweeps/"$sweep" --baseline grpo
cp outputs/sweeps/"$sweep"/{comparison.json,comparison.md,accuracy.png} "$out"
