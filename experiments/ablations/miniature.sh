#!/usr/bin/env bash
# The ablations in miniature on one kind of phantoms: 160 training questions, 200 per test set, three seeds.
#   experiments/ablations/miniature.sh phantom                      all seven; effects on the mean of three test sets
#   experiments/ablations/miniature.sh shortcut beta questions      these; effects outside the training domain
# The same command resumes. It writes the summary of all that is finished into a folder here, phantom/ or shortcut/.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
kind=${1:?phantom or shortcut}
shift
case $kind in
    phantom) data="data=phantom" on=mean ;;
    shortcut) data="data=phantom_shortcut data.train.shortcut=0.95 data.test.mri_plain.n=200" on=outside ;;
    *) echo "no kind $kind: phantom or shortcut" >&2; exit 2 ;;
esac
small="model=tiny audit=null workers=0 data.train.n=160 data.test.mri.n=200 data.test.ct.n=200 data.test.xray.n=200"
sweeps=ablate_$kind

for name in ${*:-reasoning questions sft_first beta rewards temperature group}; do
    ON=$on QUESTIONS=40,80,320 SWEEPS=$sweeps experiments/ablations/run.sh "$name" $data $small
done
reference=$(find outputs/sweeps -maxdepth 1 -name "${sweeps}_reference")
others=$(find outputs/sweeps -maxdepth 1 -name "${sweeps}_*" ! -name "*_reference" | sort)
$python -m medvlm_r1 sweep $reference $others --on $on --smallest 5 --out experiments/ablations/"$kind" || [ $? = 1 ]
