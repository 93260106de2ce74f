"""What an audit found, its one plain-JSON form, and the line that sums it up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from medvlm_r1.audit.compare_pair import NAMED, NEIGHBOUR
from medvlm_r1.audit.leaks import Leak, Pair
from medvlm_r1.audit.shortcuts import Shortcut
from medvlm_r1.data.sample import VQASample


@dataclass(frozen=True)
class Balance:
    """How one set is made up: value -> questions, most frequent first (letters in their order).

    Attributes:
        n: questions.
        images: different pictures, by path.
        letters: gold letters.
        options: options per question.
        modalities, question_types: as the samples name them.
    """

    n: int
    images: int
    letters: dict[str, int]
    options: dict[str, int]
    modalities: dict[str, int]
    question_types: dict[str, int]


@dataclass(frozen=True)
class Audit:
    """All findings.

    Attributes:
        sets: by name: ``train``, ``validation`` where there is one, then the test sets.
        tests: names of the test sets.
        faults: one line for each row that cannot be used or lacks something, naming file and row.
        images: different pictures in all sets, by path.
        images_checked: of those, how many were there to be decoded.
        leaks: training into validation and each test set, validation into each test set.
        repeated: set -> questions asked a second time, as ids of the first and the later one.
        shortcuts: test set -> rule -> score.
        dropped: training questions that were taken out for their pictures.
    """

    sets: dict[str, Balance]
    tests: tuple[str, ...]
    faults: tuple[str, ...]
    images: int
    images_checked: int
    leaks: tuple[Leak, ...]
    repeated: dict[str, list[tuple[str, str]]]
    shortcuts: dict[str, dict[str, Shortcut]]
    dropped: int = 0

    @property
    def into_tests(self) -> list[Leak]:
        """Leaks of training questions into test sets: those that touch a result."""
        return [k for k in self.leaks if k.source == "train" and k.target in self.tests and k.questions]

    @property
    def leaking(self) -> set[str]:
        """Ids of the training questions that show a picture of a test set."""
        return {name for leak in self.into_tests for name in leak.sources}

    def as_dict(self, pairs: int | None = None) -> dict:
        """Plain types; at most ``pairs`` pictures of each leak, all by default."""
        plain = asdict(self)
        for leak, whole in zip(plain["leaks"], self.leaks, strict=True):
            leak["pairs_in_all"] = len(whole.pairs)
            leak["pairs"] = list(leak["pairs"][:pairs])
            if pairs is not None:
                leak["sources"] = len(whole.sources)
        if pairs is not None:
            plain["repeated"] = {name: len(found) for name, found in self.repeated.items()}
        return plain | {"tests": list(self.tests), "faults": list(self.faults), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, plain: dict) -> "Audit":
        """The audit that ``as_dict`` wrote whole."""

        def leak(found: dict) -> Leak:
            found = {key: value for key, value in found.items() if key != "pairs_in_all"}
            pairs = tuple(Pair(**pair) for pair in found["pairs"])
            return Leak(**found | {"pairs": pairs, "sources": tuple(found["sources"])})

        rest = {key: value for key, value in plain.items() if key != "verdict"}
        return cls(
            **rest
            | {
                "sets": {name: Balance(**found) for name, found in plain["sets"].items()},
                "tests": tuple(plain["tests"]),
                "faults": tuple(plain["faults"]),
                "leaks": tuple(map(leak, plain["leaks"])),
                "repeated": {n: [tuple(two) for two in f] for n, f in plain["repeated"].items()},
                "shortcuts": {
                    name: {rule: Shortcut(**score) for rule, score in rules.items()}
                    for name, rules in plain["shortcuts"].items()
                },
            }
        )

    def after_dropping(self, dropped: int) -> "Audit":
        """The same findings, with the note that the leaking training questions were taken out."""
        return replace(self, dropped=dropped)

    @property
    def verdict(self) -> str:
        """One line: what a reader of the results has to know."""
        parts = []
        for leak in self.into_tests:
            shown = f"{leak.questions} of {leak.n} {leak.target} questions ({100 * leak.share:.1f} %)"
            parts.append(f"{shown} {'showed' if self.dropped else 'show'} a copy of a training image")
        if self.dropped:
            parts.append(f"{self.dropped} training questions dropped for it")
        if not self.into_tests:
            parts.append("no test image is a copy of a training image")
        for kind, words in (
            (NEIGHBOUR, "what may be a neighbouring slice of a training image"),
            (NAMED, "an image with a training image's file name"),
        ):
            if counts := {
                k.target: k.kinds[kind] for k in self.leaks if k.source == "train" and kind in k.kinds
            }:
                questions = ", ".join(f"{n} {name}" for name, n in counts.items())
                parts.append(f"{questions} questions show {words}")
        for leak in self.leaks:
            if leak.questions and "validation" in (leak.source, leak.target):
                n = f"{leak.questions} of {leak.n} {leak.target} questions"
                parts.append(f"{n} show a copy of a {leak.source} image")
        if twice := {name: len(found) for name, found in self.repeated.items() if found}:
            parts.append("asked twice: " + ", ".join(f"{n} in {name}" for name, n in twice.items()))
        for name, rules in self.shortcuts.items():
            rule, best = max(rules.items(), key=lambda item: item[1].accuracy)
            if best.stands_out:
                score = (
                    f"{100 * best.accuracy:.1f} % on {name} without looking (chance {100 * best.chance:.1f})"
                )
                parts.append(f"{rule} alone scores {score}")
        if self.faults:
            parts.append(f"{len(self.faults)} faults in rows")
        if not self.images_checked:
            parts.append("no image was there, so pixels were not checked")
        elif self.images_checked < self.images:
            parts.append(f"pixels checked of {self.images_checked} of {self.images} images")
        return "; ".join(parts)


def balance(samples: Sequence[VQASample]) -> Balance:
    """Count one set."""

    def counted(values) -> dict[str, int]:
        return {str(value): n for value, n in Counter(values).most_common()}

    return Balance(
        n=len(samples),
        images=len({handle.name for sample in samples for handle in sample.images}),
        letters=dict(sorted(counted(sample.answer for sample in samples).items())),
        options=counted(len(sample.options) for sample in samples),
        modalities=counted(sample.modality for sample in samples),
        question_types=counted(sample.question_type for sample in samples),
    )
