"""Data options whose sources share settings: one function per option of ``conf/data``."""

import random
from collections.abc import Collection, Mapping, Sequence

from medvlm_r1.data.mcq_json import McqJson, OnBadRow
from medvlm_r1.data.medvlm_r1_set import SUBSETS, MedVLMR1Set
from medvlm_r1.data.questions import Questions
from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.volume import Volumes


def mcq_json(
    train: str,
    test: Mapping[str, str],
    validation: str | None = None,
    images: str | None = None,
    modality: str | None = None,
    n_train: int | None = None,
    n_validation: int = 100,
    split_seed: int = 0,
    on_bad_row: OnBadRow = "fail",
    volumes: Volumes | None = None,
) -> Questions:
    """Questions in the papers' JSON schema, with images from any folder.

    Args:
        train, test: files; test sets by name.
        validation: a file; without one, questions are held out of ``train`` by image group.
        images: folder that image paths start from; by default each file's own.
        modality: of every question, for files whose rows name none; the test sets then take their names.
        n_train: take this many training questions, chosen by ``split_seed``; by default all.
        n_validation: how many questions validate.
        split_seed: of the held-out questions and of the choice; not the run's seed, so that seeds
            of one study share their data.
        on_bad_row: ``fail`` or ``skip``; see :class:`~medvlm_r1.data.mcq_json.McqJson`.
        volumes: how DICOM and NIfTI files are shown where a row does not say otherwise.

    Raises:
        BadRowError: a row cannot be used.
        ValueError: there are fewer questions than asked for.
    """
    shared = {"images": images, "on_bad_row": on_bad_row, "volumes": volumes}
    tests = {
        name: McqJson(path, name=name, modality=name if modality else None, **shared)
        for name, path in test.items()
    }
    rows = McqJson(train, name="train", modality=modality, **shared)
    if validation is None:
        tested = {sample.image_group for source in tests.values() for sample in source}
        rest, held_out = hold_out(rows, n_validation, split_seed, avoid=tested)
        skipped = rows.skipped
    else:
        held_out = McqJson(validation, name="validation", modality=modality, n=n_validation, **shared)
        rest, skipped = list(rows), rows.skipped + held_out.skipped
    if n_train is not None:
        if n_train > len(rest):
            raise ValueError(
                f"{train}: n_train={n_train}, but {len(rest)} questions remain beside validation"
            )
        rest = random.Random(split_seed).sample(rest, n_train)
    skipped = skipped + [line for source in tests.values() for line in source.skipped]
    return Questions(rest, held_out, tests, tuple(skipped))


def medvlm_r1(
    root: str | None = None,
    test_file: str | None = None,
    revision: str = "main",
    n_train: int = 600,
    n_validation: int = 100,
    on_bad_row: OnBadRow = "fail",
) -> Questions:
    """MedVLM-R1's MRI questions and its test on MRI, CT and X-ray; see :class:`MedVLMR1Set`."""
    shared = {"root": root, "test_file": test_file, "revision": revision, "on_bad_row": on_bad_row}
    sizes = {"n_train": n_train, "n_validation": n_validation}
    train, validation = (MedVLMR1Set(part, **shared, **sizes) for part in ("train", "validation"))
    tests = {name: MedVLMR1Set("test", name, **shared) for name in SUBSETS}
    return Questions(train, validation, tests, tuple(train.skipped + validation.skipped))


def hold_out(
    source: Sequence[VQASample], n: int, seed: int, avoid: Collection[str] = ()
) -> tuple[list[VQASample], list[VQASample]]:
    """Part ``source`` by image group: the rest, and ``n`` held-out questions.

    Groups are drawn whole; of the last one, the questions beyond ``n`` go to neither side. Groups in
    ``avoid`` are not held out.

    Raises:
        ValueError: nothing would remain.
    """
    groups: dict[str, list[VQASample]] = {}
    for sample in source:
        groups.setdefault(sample.image_group, []).append(sample)
    order = sorted(groups.keys() - set(avoid))
    random.Random(seed).shuffle(order)
    held_out, taken = [], set()
    for group in order:
        if len(held_out) >= n:
            break
        held_out += groups[group]
        taken.add(group)
    rest = [sample for sample in source if sample.image_group not in taken]
    if len(held_out) < n or not rest:
        raise ValueError(f"{len(source)} questions do not hold {n} for validation and some to train on")
    return rest, held_out[:n]
