#!/usr/bin/env bash
# The main job on real radiology images with the embedded model: zero-shot, SFT and GRPO trained on 600 MRI
# questions, tested on MRI, CT and X-ray. About 7 minutes on two CPU cores.
# Needs MEDVLM_R1_REAL_DATA: a folder with train_mri.json, test_mri.json, test_ct.json and test_xray.json in the
# papers' schema, and their images. Results: comparison.json, comparison.md in this folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
here=experiments/real_images_tiny
data=${MEDVLM_R1_REAL_DATA:?set it to the folder that holds train_mri.json}

$python run.py -m +experiment=zero_shot,sft_600,grpo_600 model=tiny data=mcq_json \
    data.train="$data/train_mri.json" data.n_train=600 \
    "data.test={mri:$data/test_mri.json,ct:$data/test_ct.json,xray:$data/test_xray.json}" \
    seed=0 sweep=real_images_tiny overwrite=true
$python -m medvlm_r1 compare outputs/sweeps/real_images_tiny
cp outputs/sweeps/real_images_tiny/{comparison.json,comparison.md,accuracy.png} $here/
