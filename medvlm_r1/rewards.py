"""Reward terms and their weighted sum.

A term is a plain function ``(Answer, VQASample) -> float``, logged under its name in the configuration.
Exceptions in a term propagate: a bug that silently scores 0 would stay hidden for hours.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.text import bleu_score, rouge_score

from medvlm_r1.data.sample import VQASample
from medvlm_r1.prompts import Answer, f1_score, is_correct, normalize_answer

RewardTerm = Callable[[Answer, VQASample], float]

_PAPER_LETTERS = re.compile(r"[A-J]")


def think_format(answer: Answer, sample: VQASample) -> float:
    """1 if the completion is think tags followed by answer tags, nothing else (both papers)."""
    return float(answer.well_formed)


def answer_format(answer: Answer, sample: VQASample) -> float:
    """1 if the completion is answer tags, nothing else (Med-R1 without thinking)."""
    return float(answer.answer_only)


def answer_then_think_format(answer: Answer, sample: VQASample) -> float:
    """1 if the completion is answer tags followed by think tags, nothing else (Med-R1's Think-After)."""
    return float(answer.answer_first)


def letter_accuracy(answer: Answer, sample: VQASample) -> float:
    """MedVLM-R1's accuracy reward, with its partial credit.

    Upper-cases the contents of the first answer tag and finds the characters A to J. If there is exactly
    one and it is the gold letter: 1 without other text, 0.5 with. Otherwise 0 (so ``A) Brain`` scores 0: the
    word contains A, B and I).

    Raises:
        ValueError: the question is open.
    """
    _need_letter(sample)
    content = (answer.content or "").upper()
    if _PAPER_LETTERS.findall(content) != [sample.answer]:
        return 0.0
    return 1.0 if content == sample.answer else 0.5


def exact_accuracy(answer: Answer, sample: VQASample) -> float:
    """Med-R1's accuracy reward: 1 if the contents of the answer tag equal the gold letter, else 0.

    Raises:
        ValueError: the question is open.
    """
    _need_letter(sample)
    return float(answer.content == sample.answer)


def _need_letter(sample: VQASample) -> None:
    if sample.is_open:
        raise ValueError(
            f"question {sample.id} is open, but this reward needs a letter: take reward=open, or leave open "
            "questions out with data.questions=closed"
        )


# The terms below compare texts for open questions. For closed questions all of them return 1 or 0 for the
# letter, so that one reward fits a mixture.


def exact_match(answer: Answer, sample: VQASample) -> float:
    """1 if the answer equals the gold text, both normalised as in SQuAD (arXiv 1606.05250)."""
    return float(is_correct(answer, sample))


def token_f1(answer: Answer, sample: VQASample) -> float:
    """F1 of the words of the answer and of the gold text, normalised as in SQuAD."""
    if not sample.is_open or answer.content is None:
        return exact_match(answer, sample)
    return f1_score(answer.content, sample.answer)


def bleu(answer: Answer, sample: VQASample, n_gram: int = 1) -> float:
    """BLEU of the answer against the gold text, both normalised (Papineni et al., ACL 2002).

    Args:
        n_gram: longest n-gram. Open answers mostly have one to three words, too few for a 4-gram.
    """
    if not sample.is_open or answer.content is None:
        return exact_match(answer, sample)
    text, gold = normalize_answer(answer.content), normalize_answer(sample.answer)
    return float(bleu_score([text], [[gold]], n_gram=n_gram))


def rouge_l(answer: Answer, sample: VQASample) -> float:
    """ROUGE-L F-measure of the answer against the gold text, both normalised (Lin, 2004)."""
    if not sample.is_open or answer.content is None:
        return exact_match(answer, sample)
    text, gold = normalize_answer(answer.content), normalize_answer(sample.answer)
    return float(rouge_score(text, gold, rouge_keys="rougeL")["rougeL_fmeasure"])


@dataclass(frozen=True)
class RewardTable:
    """Rewards of all completions of one rollout, prompt-major."""

    terms: dict[str, Float[Tensor, " rows"]]  # name -> unweighted value of each row
    weights: dict[str, float]  # name -> factor

    @property
    def total(self) -> Float[Tensor, " rows"]:
        """Weighted sum per row."""
        return sum(self.weights[name] * value for name, value in self.terms.items())

    def map(self, function: Callable[[Tensor], Tensor]) -> "RewardTable":
        """Apply ``function`` to the rows of each term."""
        return RewardTable({name: function(value) for name, value in self.terms.items()}, self.weights)

    def with_term(self, name: str, values: Float[Tensor, " rows"], weight: float = 1.0) -> "RewardTable":
        """Return a table with one more term.

        Raises:
            ValueError: a term has this name already.
        """
        if name in self.terms:
            raise ValueError(f"the method adds a reward term {name!r}: rename yours in reward.terms")
        return RewardTable({**self.terms, name: values}, {**self.weights, name: weight})


@dataclass(frozen=True)
class Rewards:
    """The weighted sum of named terms."""

    terms: Mapping[str, RewardTerm]
    weights: Mapping[str, float]  # name -> factor; 1 by default

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("reward.terms is empty: a run needs at least one reward term")
        if unknown := sorted(set(self.weights) - set(self.terms)):
            raise ValueError(f"reward.weights names {unknown}, but the terms are {sorted(self.terms)}")
        metrics = {"std"} | {f"{name}_{side}" for name in self.terms for side in ("right", "wrong")}
        if taken := sorted(metrics & set(self.terms)):
            raise ValueError(f"train/reward_{taken[0]} is another metric: rename the term in reward.terms")

    def score(self, answers: Sequence[Answer], samples: Sequence[VQASample]) -> RewardTable:
        """Score answer ``i`` against sample ``i``.

        Raises:
            ValueError: the two sequences differ in length.
        """
        terms = {
            name: torch.tensor([term(a, s) for a, s in zip(answers, samples, strict=True)])
            for name, term in self.terms.items()
        }
        return RewardTable(terms, {name: self.weights.get(name, 1.0) for name in terms})
