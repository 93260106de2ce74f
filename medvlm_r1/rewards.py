"""Reward terms and their weighted sum.

A term is a plain function ``(Answer, VQASample) -> float``, logged under the name that it has in
the configuration. A term that fails raises: an error turned into a reward of 0 would hide for hours.
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
    """1 if the whole completion is think tags followed by answer tags (both papers)."""
    return float(answer.well_formed)


def answer_format(answer: Answer, sample: VQASample) -> float:
    """1 if the whole completion is answer tags (Med-R1 without thinking)."""
    return float(answer.answer_only)


def answer_then_think_format(answer: Answer, sample: VQASample) -> float:
    """1 if the whole completion is answer tags followed by think tags (Med-R1's Think-After)."""
    return float(answer.answer_first)


def letter_accuracy(answer: Answer, sample: VQASample) -> float:
    """MedVLM-R1's accuracy reward, with its partial credit.

    The contents of the first answer tag are upper-cased and searched for the characters A to J.
    Exactly one, equal to gold, gives 1 when nothing else stands there and 0.5 when other text does;
    everything else gives 0 (so ``A) Brain`` scores 0: the word holds an A, a B and an I).

    Raises:
        ValueError: the question is open.
    """
    _need_letter(sample)
    if answer.content is None:
        return 0.0
    content = answer.content.upper()
    if _PAPER_LETTERS.findall(content) != [sample.answer]:
        return 0.0
    return 1.0 if content == sample.answer else 0.5


def exact_accuracy(answer: Answer, sample: VQASample) -> float:
    """Med-R1's accuracy reward: the contents of the answer tag equal the gold letter, else 0.

    Raises:
        ValueError: the question is open.
    """
    _need_letter(sample)
    return float(answer.content == sample.answer)


def _need_letter(sample: VQASample) -> None:
    if sample.is_open:
        raise ValueError(
            f"question {sample.id} is open, but this reward judges a letter: take reward=open, or leave open "
            "questions out with data.questions=closed"
        )


# The terms below judge an open question's text. A closed question's letter is right or wrong in each of
# them, so that one reward serves a mixture.


def exact_match(answer: Answer, sample: VQASample) -> float:
    """1 if the answer tag holds the gold text, both normalised as SQuAD does (arXiv 1606.05250)."""
    return float(is_correct(answer, sample))


def token_f1(answer: Answer, sample: VQASample) -> float:
    """F1 of the words in the answer tag and of the gold text, normalised as SQuAD does."""
    if not sample.is_open or answer.content is None:
        return exact_match(answer, sample)
    return f1_score(answer.content, sample.answer)


def bleu(answer: Answer, sample: VQASample, n_gram: int = 1) -> float:
    """BLEU of the answer tag against the gold text, normalised alike (Papineni et al., ACL 2002).

    Args:
        n_gram: longest n-gram. Open answers are mostly one to three words, which no 4-gram fits into.
    """
    if not sample.is_open or answer.content is None:
        return exact_match(answer, sample)
    return float(
        bleu_score([normalize_answer(answer.content)], [[normalize_answer(sample.answer)]], n_gram=n_gram)
    )


def rouge_l(answer: Answer, sample: VQASample) -> float:
    """ROUGE-L's F of the answer tag against the gold text, normalised alike (Lin, 2004)."""
    if not sample.is_open or answer.content is None:
        return exact_match(answer, sample)
    scores = rouge_score(
        normalize_answer(answer.content), normalize_answer(sample.answer), rouge_keys="rougeL"
    )
    return float(scores["rougeL_fmeasure"])


@dataclass(frozen=True)
class RewardTable:
    """Rewards of all rows of one rollout, prompt-major.

    Attributes:
        terms: each term's unweighted value per row, by name.
        weights: the factor of each term.
    """

    terms: dict[str, Float[Tensor, " rows"]]
    weights: dict[str, float]

    @property
    def total(self) -> Float[Tensor, " rows"]:
        """The weighted sum per row."""
        return sum(self.weights[name] * value for name, value in self.terms.items())

    def each(self, change: Callable[[Tensor], Tensor]) -> "RewardTable":
        """The same terms with ``change`` applied to each one's rows."""
        return RewardTable({name: change(value) for name, value in self.terms.items()}, self.weights)

    def plus(self, name: str, values: Float[Tensor, " rows"], weight: float = 1.0) -> "RewardTable":
        """With one term more.

        Raises:
            ValueError: there is one of this name.
        """
        if name in self.terms:
            raise ValueError(
                f"the method adds a reward term {name!r}: give your own in reward.terms another name"
            )
        return RewardTable({**self.terms, name: values}, {**self.weights, name: weight})


@dataclass(frozen=True)
class Rewards:
    """The weighted sum of named terms.

    Attributes:
        terms: functions by name.
        weights: factor of each term; a term that is not named here weighs 1.
    """

    terms: Mapping[str, RewardTerm]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("reward.terms is empty: a run needs at least one reward term")
        unknown = sorted(set(self.weights) - set(self.terms))
        if unknown:
            raise ValueError(f"reward.weights names {unknown}, but the terms are {sorted(self.terms)}")

    def score(self, answers: Sequence[Answer], samples: Sequence[VQASample]) -> RewardTable:
        """Score answer ``i`` against sample ``i``; both are given row by row.

        Raises:
            ValueError: the two sequences differ in length.
        """
        terms = {
            name: torch.tensor([term(a, s) for a, s in zip(answers, samples, strict=True)])
            for name, term in self.terms.items()
        }
        return RewardTable(terms, {name: self.weights.get(name, 1.0) for name in terms})
