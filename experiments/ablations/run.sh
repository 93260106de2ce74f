#!/usr/bin/env bash
# Run one ablation over three seeds and summarise it; further arguments are overrides of every run:
#   experiments/ablations/run.sh beta                                          Qwen2-VL-2B and the paper's questions
#   experiments/ablations/run.sh beta model=tiny data=phantom trainer.accelerator=cpu
#   experiments/ablations/run.sh all model=tiny data=phantom
# Names: rewards beta group temperature reasoning questions sft_first. The same command resumes it.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
seeds=${SEEDS:-0,1,2}
name=${1:?which ablation? rewards beta group temperature reasoning questions sft_first all}
shift
train() { $python run.py -m +experiment=grpo_600 seed="$seeds" "controls=[image]" "$@"; }
sweep=ablate_$name

case $name in
    rewards) train reward=medvlm_r1,accuracy sweep=$sweep "$@" ;;
    beta) train method.beta=0,0.01,0.04,0.1 sweep=$sweep "$@" ;;
    group) train model.recipe.group_size=2,4,8,16 sweep=$sweep "$@" ;;
    temperature) train method.sampling.temperature=0.7,1.0,1.3 sweep=$sweep "$@" ;;
    reasoning) # each prompt with the reward for its format
        for style in med_r1 med_r1_no_think med_r1_think_after; do
            train prompt=$style reward=$style sweep=$sweep "$@"
        done ;;
    questions)
        case "$*" in *data=phantom*) key=data.train.n ;; *) key=data.n_train ;; esac
        train $key=75,150,300,600 sweep=$sweep "$@" ;;
    sft_first) # RL from the starting weights, and from weights after SFT with the same seed
        train sweep=$sweep "$@"
        for seed in ${seeds//,/ }; do
            $python run.py +experiment=sft_600 seed="$seed" "controls=[image]" resume=auto \
                hydra.run.dir=outputs/runs/$sweep-sft-"$seed" "$@"
        done
        train sweep=$sweep "$@" "model.path=outputs/runs/$sweep-sft-\${seed}/model" ;;
    all)
        for one in rewards beta group temperature reasoning questions sft_first; do "$0" $one "$@"; done
        exit ;;
    *) echo "no ablation $name: rewards beta group temperature reasoning questions sft_first all" >&2; exit 2 ;;
esac
$python -m medvlm_r1 sweep outputs/sweeps/$sweep
