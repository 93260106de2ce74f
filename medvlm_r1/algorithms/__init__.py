"""Training methods: GRPO with its family, SFT, and the base that both share.

==============  ==========================================================
grpo.py         the GRPO training step, in the order of the paper
sft.py          supervised fine-tuning on the same questions
base.py         evaluation, optimiser and checkpoints of every method
trajectory.py   completions of one step with rewards, and micro-batches
advantages.py   advantage estimators
losses.py       policy losses, KL estimate, SFT loss
optim.py        learning-rate schedule and fp32 copies of weights
==============  ==========================================================
"""
