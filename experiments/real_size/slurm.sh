#!/bin/bash
# MedVLM-R1's run on two machines with two GPUs each; from the project's folder:
#   sbatch experiments/real_size/slurm.sh [overrides]
# Where compute nodes see no network, fetch weights and questions beforehand.
#SBATCH --job-name=grpo_600
#SBATCH --nodes=2
# one task a GPU; srun starts them, and Lightning reads ranks and addresses from Slurm
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%j.out
set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}" TOKENIZERS_PARALLELISM=false
# A rank that dies takes the others down instead of leaving them waiting.
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" run.py +experiment=grpo_600 \
    trainer=ddp trainer.num_nodes="$SLURM_NNODES" trainer.devices="$SLURM_NTASKS_PER_NODE" "$@"
