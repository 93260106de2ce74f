#!/usr/bin/env bash
# Zero-shot, SFT and GRPO on phantoms with a shortcut of five strengths, then variants at 0.95, over three seeds.
# Further arguments are overrides of every run. The same command resumes it, run by run.
#   experiments/shortcut/run.sh
#   SEEDS=0 experiments/shortcut/run.sh data.train.n=80
# Results: dose_response.png, dose_response.json and the tables in README.md of this folder; each sweep's page is
# outputs/sweeps/shortcut_*/report.html.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
here=experiments/shortcut
sweeps=outputs/sweeps
seeds=${SEEDS:-0,1,2}
shared="model=tiny data=phantom_shortcut data.train.n=160 controls=[image,blank,swapped,prior] workers=0
    data.test.mri.n=200 data.test.mri_plain.n=200 data.test.ct.n=200 data.test.xray.n=200"
run() { $python run.py -m $shared "$@"; }

for dose in 0 0.5 0.8 0.95 1; do
    sweep="data.train.shortcut=$dose sweep=shortcut_$dose"
    run +experiment=zero_shot $sweep "$@"
    run +experiment=sft_600,grpo_600 seed="$seeds" $sweep "$@"
    $python -m medvlm_r1 compare $sweeps/shortcut_$dose
done

variant="data.train.shortcut=0.95 sweep=shortcut_variants"
run +experiment=grpo_600 method.beta=0,0.4 seed="$seeds" $variant "$@"
run +experiment=sft_600,grpo_600 model.recipe.epochs=3 seed="$seeds" $variant "$@"
run +experiment=sft_600 method=sft_rationale seed="$seeds" $variant "$@"
run +experiment=zero_shot prompt=med_r1_no_think reward=med_r1_no_think $variant "$@"
run +experiment=sft_600,grpo_600 prompt=med_r1_no_think reward=med_r1_no_think seed="$seeds" $variant "$@"
$python -m medvlm_r1 compare $sweeps/shortcut_0.95 $sweeps/shortcut_variants --out $sweeps/shortcut_variants

$python $here/dose_response.py $sweeps --readme $here/README.md
