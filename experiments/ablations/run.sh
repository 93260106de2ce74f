#!/usr/bin/env bash
# Run one ablation over three seeds and summarise it; further arguments are overrides of every run:
#   experiments/ablations/run.sh beta                                          Qwen2-VL-2B and the paper's questions
#   experiments/ablations/run.sh beta model=tiny data=phantom trainer.accelerator=cpu
#   experiments/ablations/run.sh all model=tiny data=phantom
# Names: reasoning questions sft_first beta rewards temperature group. The same command resumes it.
# SEEDS=0,1 sets the seeds, SWEEPS the first word of the sweeps' names, QUESTIONS the numbers of training questions,
# SMALLEST the planned smallest difference in points, ON the test set of the effects.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
seeds=${SEEDS:-0,1,2}
first=${SWEEPS:-ablate}
all="reasoning questions sft_first beta rewards temperature group"
name=${1:?which ablation? $all all}
[[ " $all all reference " == *" $name "* ]] || { echo "no ablation $name: $all all" >&2; exit 2; }
shift
train() { $python run.py -m +experiment=grpo_600 seed="$seeds" "controls=[image]" "$@"; }
sweep=${first}_$name

# the default of every factor, run once: the first level of all ablations but reasoning
[ "$name" = reasoning ] || train sweep="${first}_reference" "$@"
case $name in
    reference) ;;
    rewards) train "$@" reward=accuracy sweep="$sweep" ;;
    beta) train "$@" method.beta=0,0.01,0.1 sweep="$sweep" ;;
    group) train "$@" model.recipe.group_size=2,4,16 sweep="$sweep" ;;
    temperature) train "$@" method.sampling.temperature=0.7,1.3 sweep="$sweep" ;;
    reasoning) # each prompt with the reward for its format
        for style in med_r1 med_r1_no_think med_r1_think_after; do
            train "$@" prompt=$style reward=$style sweep="$sweep"
        done ;;
    questions)
        case "$*" in *data=phantom*) key=data.train.n ;; *) key=data.n_train ;; esac
        train "$@" $key="${QUESTIONS:-75,150,300}" sweep="$sweep" ;;
    sft_first) # RL from weights after SFT with the same seed
        for seed in ${seeds//,/ }; do
            $python run.py +experiment=sft_600 seed="$seed" "controls=[image]" resume=auto \
                hydra.run.dir=outputs/runs/"$sweep"-sft-"$seed" "$@"
        done
        train "$@" "model.path=outputs/runs/$sweep-sft-\${seed}/model" sweep="$sweep" ;;
    all)
        for one in $all; do "$0" "$one" "$@"; done ;;
esac
folders=outputs/sweeps/${first}_reference
case $name in # all of them are one family of tests
    reference) ;;
    reasoning) folders=outputs/sweeps/$sweep ;;
    all) for one in $all; do folders+=" outputs/sweeps/${first}_$one"; done ;;
    *) folders+=" outputs/sweeps/$sweep" ;;
esac
$python -m medvlm_r1 sweep $folders --out outputs/sweeps/"$sweep" --on "${ON:-mean}" --smallest "${SMALLEST:-5}"
