"""Titles of the methods, and their order in every table."""

METHODS = {
    "zero_shot": "Zero-shot",
    "majority_vote": "Majority vote",
    "best_of_n": "Best of n",
    "sft": "SFT",
    "sft_rationale": "SFT on rationales",
    "rft": "RFT",
    "grpo": "GRPO",
    "dr_grpo": "Dr. GRPO",
    "dapo": "DAPO",
    "gspo": "GSPO",
    "cispo": "CISPO",
    "rloo": "RLOO",
    "reinforce_pp": "REINFORCE++",
    "gdpo": "GDPO",
    "a_grae": "A-GRAE",
}

VOTING = ("majority_vote", "best_of_n")
UNTRAINED = ("zero_shot", *VOTING)
SUPERVISED = ("sft", "sft_rationale", "rft")


def method_title(name: str) -> str:
    """Title of a method in tables; a method outside the package is titled by its own name."""
    return METHODS.get(name, name)


def method_order(name: str) -> int:
    """Sort key of a method in tables; methods outside the package come last."""
    return [*METHODS, name].index(name)


def is_rl_and_sft(first: str, second: str) -> bool:
    """Whether the first method is reinforcement learning and the second a supervised counterpart."""
    return second in SUPERVISED and first not in (*UNTRAINED, *SUPERVISED)


def is_rl_and_baseline(first: str, second: str) -> bool:
    """Whether the first method is reinforcement learning and the second a baseline that it must justify."""
    return is_rl_and_sft(first, second) or (second in VOTING and first not in (*UNTRAINED, *SUPERVISED))
