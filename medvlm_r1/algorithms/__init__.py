"""Training methods: GRPO with its family (grpo.py), SFT (sft.py), and the base that both share (base.py)."""
