#!/usr/bin/env bash
# Zero-shot, SFT and GRPO of SmolLM2 with a vision tower, on real MRI questions, tested on MRI, CT and X-ray.
# Needs MEDVLM_R1_REAL_DATA, a folder as of experiments/real_images_tiny, and what base.py needs. The same command
# resumes it. QUESTIONS is the number of training questions of SFT and GRPO; SEEDS a list such as 0,1,2.
# Results in this folder: comparison.json, comparison.md, accuracy.png, completions.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
here=experiments/real_language
sweep=outputs/sweeps/real_language
data=${MEDVLM_R1_REAL_DATA:?set it to the folder that holds train_mri.json}

[ -f outputs/smollm2_vl/config.json ] || $python $here/base.py --data "$data"
train() {
    $python run.py -m "$@" model=smollm2_vl data=mcq_json data.images="$data" \
        data.train=outputs/real_language/train_mri.json data.n_train="${QUESTIONS:-600}" \
        "data.test={mri:$data/test_mri.json,ct:$data/test_ct.json,xray:$data/test_xray.json}" \
        "controls=[image,blank]" seed="${SEEDS:-0}" sweep=real_language
}
for experiment in zero_shot sft_600 grpo_600; do train +experiment=$experiment; done
$python -m medvlm_r1 compare $sweep
$python $here/show.py $sweep > $here/completions.md
cp $sweep/{comparison.json,comparison.md,accuracy.png} $here/
