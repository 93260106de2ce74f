"""The result of an audit, its JSON form and its one-line verdict."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from medvlm_r1.audit.compare_pair import NAMED, NEIGHBOUR
from medvlm_r1.audit.leaks import Leak, Pair
from medvlm_r1.audit.shortcuts import Shortcut
from medvlm_r1.data.sample import VQASample
from medvlm_r1.runs.shorten import shorten


@dataclass(frozen=True)
class Balance:
    """Composition of one set: value -> number of questions, most frequent first (letters in order)."""

    n: int  # number of questions
    images: int  # number of distinct images, by path
    letters: dict[str, int]  # gold letters
    options: dict[str, int]  # options per question
    modalities: dict[str, int]
    question_types: dict[str, int]


@dataclass(frozen=True)
class Audit:
    """The result of an audit."""

    sets: dict[str, Balance]  # by name: "train", "validation" if present, then the test sets
    tests: tuple[str, ...]  # names of the test sets
    faults: tuple[str, ...]  # one line per unusable or incomplete row, naming file and row
    images: int  # number of distinct images in all sets, by path
    images_checked: int  # number of those whose pixels were compared
    leaks: tuple[Leak, ...]  # train -> validation, train -> each test set, validation -> each test set
    repeated: dict[str, list[tuple[str, str]]]  # set -> ids (first, later) of repeated questions
    shortcuts: dict[str, dict[str, Shortcut]]  # test set -> rule -> score
    dropped: int = 0  # number of training questions dropped for their images
    data_sha256: dict[str, str] = field(default_factory=dict)  # set -> digest of its questions and images
    checked: dict[str, int] = field(
        default_factory=dict
    )  # set -> number of images whose pixels were compared
    refused: dict[str, int] = field(default_factory=dict)  # set -> number of refused rows with images
    # set -> kind -> number and first of the images that are blank or not shown in full
    notes: dict[str, dict[str, dict[str, int | str]]] = field(default_factory=dict)
    apart: str = ""  # why equal paths of two sets need not be one image

    @property
    def into_tests(self) -> list[Leak]:
        """Leaks from training to test sets, which affect results."""
        return [k for k in self.leaks if k.source == "train" and k.target in self.tests and k.questions]

    @property
    def leaking(self) -> set[str]:
        """Ids of the training questions that show an image of a test set."""
        return {name for leak in self.into_tests for name in leak.sources}

    def as_dict(self, pairs: int | None = None) -> dict:
        """JSON form, with at most ``pairs`` image pairs per leak; all by default."""
        plain = asdict(self)
        for leak, full in zip(plain["leaks"], self.leaks, strict=True):
            leak["pairs_in_all"] = len(full.pairs)
            leak["pairs"] = list(leak["pairs"][:pairs])
            if pairs is not None:
                leak["sources"] = len(full.sources)
        if pairs is not None:
            plain["repeated"] = {name: len(ids) for name, ids in self.repeated.items()}
        return plain | {"tests": list(self.tests), "faults": list(self.faults), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, plain: dict) -> "Audit":
        """Inverse of :meth:`as_dict` with all pairs."""

        def leak(fields: dict) -> Leak:
            fields = {key: value for key, value in fields.items() if key != "pairs_in_all"}
            pairs = tuple(Pair(**pair) for pair in fields["pairs"])
            more: dict[str, Any] = {"pairs": pairs, "sources": tuple(fields["sources"])}
            if fields.get("alike_group"):
                more["alike_group"] = tuple(fields["alike_group"])
            return Leak(**fields | more)

        rest = {key: value for key, value in plain.items() if key != "verdict"}
        return cls(
            **rest
            | {
                "sets": {name: Balance(**counts) for name, counts in plain["sets"].items()},
                "tests": tuple(plain["tests"]),
                "faults": tuple(plain["faults"]),
                "leaks": tuple(map(leak, plain["leaks"])),
                "repeated": {n: [tuple(pair) for pair in ids] for n, ids in plain["repeated"].items()},
                "shortcuts": {
                    name: {rule: Shortcut(**score) for rule, score in rules.items()}
                    for name, rules in plain["shortcuts"].items()
                },
            }
        )

    @property
    def verdict(self) -> str:
        """One line that summarises all problems, and what was compared."""
        return "; ".join([*self._leaks(), *self._rows(), *self._images()])

    def _leaks(self) -> Iterator[str]:
        for leak in self.into_tests:
            shown = f"{leak.questions} of {leak.n} {leak.target} questions ({100 * leak.share:.1f} %)"
            yield f"{shown} {'showed' if self.dropped else 'show'} a copy of a training image"
            if leak.of_refused:
                yield f"{leak.of_refused} of these a copy of an image of refused training rows alone"
        if self.dropped:
            yield f"{self.dropped} training questions dropped for it"
        if not self.into_tests:
            yield self._no_copy()
        for kind, words in (
            (NEIGHBOUR, "what may be a neighbouring slice of a training image"),
            (NAMED, "an image with a training image's file name"),
        ):
            counts = [(k.kinds.get(kind), k.target) for k in self.leaks if k.source == "train"]
            if questions := ", ".join(f"{n} {name}" for n, name in counts if n):
                yield f"{questions} questions show {words}"
        for leak in self.leaks:
            if leak.questions and "validation" in (leak.source, leak.target):
                n = f"{leak.questions} of {leak.n} {leak.target} questions"
                yield f"{n} show a copy of a {leak.source} image"
            if leak.refused:
                yield f"{leak.refused} refused {leak.target} rows show a copy of a {leak.source} image"
            if leak.same_group:
                n = f"{leak.same_group} of {leak.n} {leak.target} questions"
                yield f"a leak by group: {n} show a group (patient) of {leak.source} in another image"
            if leak.alike_group:
                groups = " and ".join(map(shorten, leak.alike_group))
                yield f"the groups {groups} of {leak.source} and {leak.target} may be one, spelt in two ways"

    def _no_copy(self) -> str:
        """What can be said where no copy was found: it depends on what could be compared."""
        sets = [name for name in ("train", *self.tests) if name in self.checked]
        if all(self.checked[name] == self.sets[name].images for name in sets):
            return "no test image is a copy of a training image"
        if self.checked.get("train") and any(self.checked.get(name) for name in self.tests):
            return "no copy of a training image among the test images that are there"
        if self.apart:
            return f"nothing was compared: no image is there, and {self.apart}"
        return "no test question names the path of a training image, and no pixels were compared"

    def _rows(self) -> Iterator[str]:
        if twice := {name: len(ids) for name, ids in self.repeated.items() if ids}:
            yield "repeated questions: " + ", ".join(f"{n} in {name}" for name, n in twice.items())
        for name, rules in self.shortcuts.items():
            rule, best = max(rules.items(), key=lambda item: item[1].accuracy)
            if best.stands_out:
                score = f"{rule} alone scores {100 * best.accuracy:.1f} % on {name} without looking"
                yield f"{score} (chance {100 * best.chance:.1f})"
        if self.faults:
            yield f"{len(self.faults)} faults in rows"
        if refused := ", ".join(f"{n} {name}" for name, n in self.refused.items() if n):
            yield f"rows refused, whose images were compared: {refused}"

    def _images(self) -> Iterator[str]:
        for name, kinds in self.notes.items():
            for kind, note in kinds.items():
                yield f"{note['n']} {name} images {kind} (the first: {note['first']})"
        if not self.images_checked:
            yield "no image was there, so pixels were not checked"
        elif self.images_checked < self.images:
            parts = [f"{n} of {self.sets[name].images} {name}" for name, n in self.checked.items()]
            yield f"pixels checked of {', '.join(parts)} images"
            if self.apart:
                yield self.apart
        else:
            yield f"pixels checked of all {self.images} images"


def balance(samples: Sequence[VQASample]) -> Balance:
    """Count the questions of one set."""

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
