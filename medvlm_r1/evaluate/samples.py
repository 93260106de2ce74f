"""Several sampled answers to one question: which of them counts, and what an oracle could reach.

=====================  ====================================================================================
:func:`vote_of`        answer -> what it votes for
:func:`majority`       votes -> index of the answer that wins (self-consistency)
:func:`best_of`        format and log-probability -> index of the answer that scores best
:func:`passed`         sampled answers -> whether one of them is right (pass@n)
=====================  ====================================================================================

None of the choices reads the gold answer. ``passed`` does: it is an upper bound, and no method.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from medvlm_r1.data.sample import Question
from medvlm_r1.prompts import Answer, PromptStyle, normalize_answer


def vote_of(answer: Answer, sample: Question) -> str | None:
    """The strict letter, or for an open question the normalised text; ``None`` if there is none."""
    if not sample.is_open:
        return answer.letter
    return None if answer.content is None else normalize_answer(answer.content)


def majority(votes: Sequence[str | None]) -> int:
    """Index of the first answer with the most frequent vote (Wang et al. 2022, arXiv 2203.11171).

    Of equally frequent votes that wins which reached its number first. ``None`` is no vote; if there is no
    other, the first answer counts.
    """
    counts: Counter[str] = Counter()
    winner = None
    for vote in votes:
        if vote is not None:
            counts[vote] += 1
            winner = vote if counts[vote] > counts[winner] else winner
    return votes.index(winner)


def best_of(in_format: Sequence[bool], logprobs: Sequence[float]) -> int:
    """Index of the answer of highest mean token log-probability, among those in the format if there are any.

    Of equal ones the first.
    """
    return max(range(len(logprobs)), key=lambda i: (in_format[i], logprobs[i]))


def follows(prompt: PromptStyle, answer: Answer) -> bool:
    """Whether an answer has the format that the evaluation prompt asks for, as in the papers' format rewards.

    Without tags it is in the format if its letter can be read.
    """
    if not prompt.tags:
        return answer.letter is not None
    if "<think>" not in prompt.evaluate:
        return answer.answer_only
    return answer.well_formed if prompt.asks_reasoning else answer.answer_first


def passed(samples: Iterable[dict[str, Any]]) -> bool:
    """Whether one of the ``samples`` of a row of ``predictions.jsonl`` is right: pass@n, n of n drawn."""
    return any(sample["correct"] for sample in samples)
