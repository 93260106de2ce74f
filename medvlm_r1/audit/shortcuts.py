"""How far one gets without looking: rules that see no picture, fitted on training, scored on a test set.

Where a rule likes several options equally, it is scored by the chance that a fair draw among them hits, so
that no score depends on the order of anything.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medvlm_r1.data.sample import VQASample

Liking = Callable[[VQASample], list[float]]  # one number per option, the more the better


@dataclass(frozen=True)
class Shortcut:
    """One rule on one test set.

    Attributes:
        accuracy: share of questions that it answers correctly.
        chance: accuracy of guessing among each question's options.
        n: questions.
    """

    accuracy: float
    chance: float
    n: int

    @property
    def stands_out(self) -> bool:
        """Whether it is above chance by three standard errors and ten points."""
        error = (self.chance * (1 - self.chance) / self.n) ** 0.5
        return self.accuracy > self.chance + max(3 * error, 0.1)


def shortcuts(train: Sequence[VQASample], test: Sequence[VQASample]) -> dict[str, Shortcut]:
    """Every rule, by name, fitted on ``train`` (the longest option needs no fit) and scored on ``test``.

    Open questions have no options to like: a test set of them alone has no rules.
    """
    train, test = _closed(train), _closed(test)
    if not test:
        return {}
    rules: dict[str, Liking] = {
        "option text": option_text(train, _plain),
        "option text as spelt": option_text(train, str),
        "question": question_alone(train),
        "majority letter": majority_letter(train),
        "longest option": lambda sample: [float(len(option)) for option in sample.options],
    }
    chance = sum(1 / len(sample.options) for sample in test) / len(test)
    return {
        name: Shortcut(round(sum(_hit(rule, s) for s in test) / len(test), 6), round(chance, 6), len(test))
        for name, rule in rules.items()
    }


def prior_guesses(train: Sequence[VQASample], test: Sequence[VQASample]) -> list[tuple[VQASample, list[str]]]:
    """Each test question with options, and the letters that the option-text rule likes best, equally."""
    rule = option_text(_closed(train), _plain)
    return [(sample, _best(rule, sample)) for sample in _closed(test)]


def option_text(train: Sequence[VQASample], read: Callable[[str], str]) -> Liking:
    """How often an option's text was gold, of the times that it was an option; 0 if it never was one.

    ``read`` says which texts count as the same: a capital or a full stop can give a gold option away.
    """
    shown = Counter(read(option) for sample in train for option in sample.options)
    gold = Counter(read(sample.answer_text) for sample in train)
    return lambda sample: [gold[o] / shown[o] if shown[o] else 0.0 for o in map(read, sample.options)]


def question_alone(train: Sequence[VQASample]) -> Liking:
    """How often an option's text was gold where the question was worded the same."""
    gold: dict[str, Counter] = defaultdict(Counter)
    for sample in train:
        gold[_plain(sample.question)][sample.answer_text] += 1
    return lambda sample: [float(gold.get(_plain(sample.question), Counter())[o]) for o in sample.options]


def majority_letter(train: Sequence[VQASample]) -> Liking:
    """How often a letter was gold."""
    gold = Counter(sample.answer for sample in train)
    return lambda sample: [float(gold[letter]) for letter in sample.letters]


def _closed(samples: Sequence[VQASample]) -> list[VQASample]:
    return [sample for sample in samples if sample.options]


def _hit(rule: Liking, sample: VQASample) -> float:
    return hit_probability(sample, _best(rule, sample))


def hit_probability(sample: VQASample, letters: Sequence[str]) -> float:
    """Probability that a uniform draw among ``letters`` is correct."""
    return (sample.answer in letters) / len(letters)


def _best(rule: Liking, sample: VQASample) -> list[str]:
    liking = rule(sample)
    return [letter for letter, value in zip(sample.letters, liking, strict=True) if value == max(liking)]


def _plain(text: str) -> str:
    """Without capitals, doubled spaces and the full stop."""
    return " ".join(text.lower().split()).rstrip(".")
