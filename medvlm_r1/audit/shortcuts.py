"""Shortcuts: accuracy of rules that see no image, fitted on training questions and scored on a test set.

If a rule ranks several options first, its score is the probability that a uniform draw among them is correct,
so that no score depends on their order.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medvlm_r1.data.sample import VQASample

Rule = Callable[[VQASample], list[float]]  # one score per option, higher is better


@dataclass(frozen=True)
class Shortcut:
    """One rule on one test set."""

    accuracy: float
    chance: float  # accuracy of guessing among each question's options
    n: int  # number of questions

    @property
    def stands_out(self) -> bool:
        """Whether accuracy exceeds chance by three standard errors and by ten points."""
        error = (self.chance * (1 - self.chance) / self.n) ** 0.5
        return self.accuracy > self.chance + max(3 * error, 0.1)


def shortcuts(train: Sequence[VQASample], test: Sequence[VQASample]) -> dict[str, Shortcut]:
    """Fit all rules on ``train`` and return their scores on ``test``, by name.

    Open questions are skipped: a test set of them alone has no scores.
    """
    train, test = _closed(train), _closed(test)
    if not test:
        return {}
    rules: dict[str, Rule] = {
        "option text": option_text(train, _plain),
        "option text as spelt": option_text(train, str),
        "question": question_alone(train),
        "majority letter": majority_letter(train),
        "longest option": lambda sample: [float(len(option)) for option in sample.options],
    }
    chance = sum(1 / len(sample.options) for sample in test) / len(test)
    scores = {}
    for name, rule in rules.items():
        accuracy = sum(hit_probability(sample, _best(rule, sample)) for sample in test) / len(test)
        scores[name] = Shortcut(round(accuracy, 6), round(chance, 6), len(test))
    return scores


def prior_guesses(train: Sequence[VQASample], test: Sequence[VQASample]) -> list[tuple[VQASample, list[str]]]:
    """Return each closed test question with the letters that the option-text rule ranks first."""
    rule = option_text(_closed(train), _plain)
    return [(sample, _best(rule, sample)) for sample in _closed(test)]


def option_text(train: Sequence[VQASample], normalize: Callable[[str], str]) -> Rule:
    """Score an option by how often its text was gold when it was an option; 0 if it never was one.

    ``normalize`` defines which texts count as equal: a capital or a full stop can reveal the gold option.
    """
    shown = Counter(normalize(option) for sample in train for option in sample.options)
    gold = Counter(normalize(sample.answer_text) for sample in train)
    return lambda sample: [gold[o] / shown[o] if shown[o] else 0.0 for o in map(normalize, sample.options)]


def question_alone(train: Sequence[VQASample]) -> Rule:
    """Score an option by how often its text was gold for the same question text."""
    gold: dict[str, Counter] = defaultdict(Counter)
    for sample in train:
        gold[_plain(sample.question)][sample.answer_text] += 1
    return lambda sample: [float(gold.get(_plain(sample.question), Counter())[o]) for o in sample.options]


def majority_letter(train: Sequence[VQASample]) -> Rule:
    """Score an option by how often its letter was gold."""
    gold = Counter(sample.answer for sample in train)
    return lambda sample: [float(gold[letter]) for letter in sample.letters]


def _closed(samples: Sequence[VQASample]) -> list[VQASample]:
    return [sample for sample in samples if sample.options]


def hit_probability(sample: VQASample, letters: Sequence[str]) -> float:
    """Probability that a uniform draw among ``letters`` is correct."""
    return (sample.answer in letters) / len(letters)


def _best(rule: Rule, sample: VQASample) -> list[str]:
    scores = rule(sample)
    return [letter for letter, score in zip(sample.letters, scores, strict=True) if score == max(scores)]


def _plain(text: str) -> str:
    """Lower-case, without repeated spaces and final full stop."""
    return " ".join(text.lower().split()).rstrip(".")
