#!/usr/bin/env bash
# Med-R1's two matrices in miniature: run.sh modality (8 x 8), run.sh task (5 x 5, under three prompts).
# Results go to modality/ and task/ in this folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
by=${1:?modality or task}
here=experiments/med_r1_matrices/$by
shared="model=tiny data=phantom_$by data.n_train=${N_TRAIN:-160} controls=[image,prior] audit=null workers=0 overwrite=true
    sweep=med_r1_$by"

case $by in
    modality)
        prompts="med_r1"
        domains="ct,mri,xray,ultrasound,dermoscopy,fundus,oct,microscopy" ;;
    task)
        prompts="med_r1 med_r1_no_think med_r1_think_after"
        domains="anatomy_identification,disease_diagnosis,lesion_grading,modality_recognition,other_biological_attributes" ;;
    *) echo "$by: modality or task" >&2; exit 2 ;;
esac

for prompt in $prompts; do
    $python run.py -m +experiment=zero_shot $shared prompt=$prompt reward=$prompt
    $python run.py -m +experiment=med_r1_$by $shared prompt=$prompt reward=$prompt data.domain=$domains
done
$python -m medvlm_r1 matrix outputs/sweeps/med_r1_$by --out $here
