"""The settings that all published sets share; draw the questions of their splits."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvlm_r1.data.formats.question_file import (
    ParsedRows,
    concatenate,
    image_faults,
    log_skipped,
    raise_first,
    require_rows,
    skipped_rows,
)
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.sources.locate import find_set
from medvlm_r1.data.splits import Questions, draw, hold_out

logger = logging.getLogger(__name__)

LENIENT = RowPolicy(on_bad_row="skip", on_bad_image="fail")
"""Every large published set has some rows that nobody can use; a missing image is an incomplete download."""


@dataclass(frozen=True)
class PublishedSet:
    """Keys that the options of all published sets share (``conf/data/<set>.yaml``), and their errors.

    Attributes:
        root: local copy of the set. Default: the hub's cache, then a download from the hub.
        revision: commit, tag or branch on the hub; unused with ``root``.
        n_train, n_validation, n_test: numbers of questions (``n_test`` of each test set); ``None`` takes all.
        split_seed: seed of all random choices of questions; not the run's seed.
        rows: what to do with unusable rows. Default: leave them out, with a warning that counts the reasons,
            but fail for a missing or damaged image.

    Raises:
        FileNotFoundError: the set is neither local nor on the hub.
        BadRowError: a row cannot be used; an image does not decode, under ``on_bad_image=fail``.
        ValueError: a setting has an unknown value, or there are too few questions.
    """

    root: str | None = None
    revision: str = "main"
    n_train: int | None = None
    n_validation: int = 100
    n_test: int | None = None
    split_seed: int = 0
    rows: RowPolicy = LENIENT

    def find(self, hub_id: str, needed: Sequence[str]) -> Path:
        """Return the folder of the set; see :func:`~medvlm_r1.data.sources.locate.find_set`."""
        return find_set(hub_id, self.root, self.revision, needed)

    def assemble(
        self,
        parts: Mapping[str, ParsedRows],
        train: list[VQASample],
        tests: Mapping[str, list[VQASample]],
        validation: list[VQASample] | None = None,
        drop_test_images: bool = False,
    ) -> Questions:
        """Draw the questions of each split, and decode all of their images once.

        Args:
            parts: the parsed files that the questions come from, by ``train``, ``validation`` or test set; a
                set that is split here has one part, ``all``.
            train, tests: questions to draw from.
            validation: the official validation part, of which the images of training and tests are left out.
                Default: validation is held out of ``train`` by image group.
            drop_test_images: leave training questions out whose image a test shows.
        """
        _, skipped, places, _ = concatenate(parts.values())
        for name, part in parts.items():
            if part.skipped:
                log_skipped(f"data, {name}", part.skipped)
        for name, samples in {"train": train, **tests}.items():
            require_rows(name, samples, skipped)
        tested = {sample.image_group for test in tests.values() for sample in test}
        if drop_test_images:
            train = _without(train, tested)
        if validation is None:
            train, validation = hold_out(train, self.n_validation, self.split_seed, avoid=tested)
        else:
            free = _without(validation, tested | {sample.image_group for sample in train})
            validation = draw(free, self.n_validation, self.split_seed, "validation")
        train = draw(train, self.n_train, self.split_seed, "train")
        tests = {name: draw(test, self.n_test, self.split_seed, name) for name, test in tests.items()}
        chosen = [*train, *validation, *(sample for test in tests.values() for sample in test)]
        remedy = "check data.root and data.images (data.rows.on_bad_image=skip leaves such questions out)"
        faults = image_faults(chosen, places, remedy) if self.rows.check_images else {}
        if self.rows.on_bad_image == "fail":
            raise_first(faults)
        if faults:
            log_skipped(f"data, images of {len(chosen):,} questions", [*faults.values()])
        skipped += faults.values()
        drawn = {"train": train, "validation": validation, **tests}
        rest = {name: [s for s in part if s.id not in faults] for name, part in drawn.items()}
        for name, part in drawn.items():
            require_rows(name, rest[name], [faults[s.id] for s in part if s.id in faults])
        refused = tuple(row for row in skipped_rows(parts)[1] if row[0] in ("train", "validation", *tests))
        train, validation = rest.pop("train"), rest.pop("validation")
        return Questions(train, validation, rest, tuple(skipped), refused)


def closed_and_open(name: str, samples: Iterable[VQASample]) -> dict[str, list[VQASample]]:
    """The test sets ``name`` and ``<name>_open``: accuracy and exact match must not be averaged."""
    tests: dict[str, list[VQASample]] = {name: [], f"{name}_open": []}
    for sample in samples:
        tests[f"{name}_open" if sample.is_open else name].append(sample)
    return {key: test for key, test in tests.items() if test} or {name: []}


def _without(samples: list[VQASample], groups: Collection[str]) -> list[VQASample]:
    rest = [sample for sample in samples if sample.image_group not in groups]
    if len(rest) < len(samples):
        logger.info("%d questions left out: another split shows their image", len(samples) - len(rest))
    return rest
