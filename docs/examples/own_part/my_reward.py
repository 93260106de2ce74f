"""A reward term: the reasoning names the option that the answer chooses."""

from medvlm_r1.data.sample import VQASample
from medvlm_r1.prompts import Answer, mentioned_options


def consistent(answer: Answer, sample: VQASample) -> float:
    """1 if the reasoning names the chosen option and no other, else 0."""
    if answer.letter is None or answer.reasoning is None:
        return 0.0
    chosen = sample.letters.index(answer.letter)
    return float(mentioned_options(answer.reasoning, sample.options) == [chosen])
