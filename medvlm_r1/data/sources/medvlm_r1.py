"""MedVLM-R1's data (arXiv 2502.19634): 600 MRI training questions, and 300 test questions per modality.

Departures from the paper's released code:

1. Its exact 600 training questions are not public; its code takes the first 500 rows of the subset.
   Here: the first 600 whose image is not an image of the test file.
2. It never compares training with test images. Here a row is left out if its image has the file name of a
   test image or, if both are on disk, the same bytes.
3. It has no validation set. Here: the next 100 rows whose image is in neither of the other two parts.
"""

import functools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from medvlm_r1.data.formats.mcq_row import read_row
from medvlm_r1.data.formats.question_file import (
    image_faults,
    log_skipped,
    parse_rows,
    plain_stem,
    raise_first,
    require_rows,
)
from medvlm_r1.data.formats.row_policy import RowPolicy
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.content_key import image_digest
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.sample import ImageHandle, VQASample
from medvlm_r1.data.sources.huatuo_bundle import LAYOUT, bundle_images, bundle_rows, find_bundle
from medvlm_r1.data.sources.published_set import LENIENT
from medvlm_r1.data.splits import Questions

logger = logging.getLogger(__name__)

SUBSETS = {"mri": "MR (Mag-netic Resonance Imaging)", "ct": "CT(Computed Tomography)", "xray": "X-Ray"}
TEST_FILE = "MRI_CT_XRAY_300each_dataset.json"
AUTHORS = "https://github.com/JZPeterPan/MedVLM-R1"


def medvlm_r1(
    root: str | None = None,
    test_file: str | None = None,
    revision: str = "main",
    n_train: int = 600,
    n_validation: int = 100,
    rows: RowPolicy = LENIENT,
) -> Questions:
    """Load MedVLM-R1's MRI questions and its tests on MRI, CT and X-ray; see :class:`MedVLMR1Set`."""
    read = functools.partial(MedVLMR1Set, root=root, test_file=test_file, revision=revision, rows=rows)
    train, validation = (
        read(part, n_train=n_train, n_validation=n_validation) for part in ("train", "validation")
    )
    tests = {name: read("test", name) for name in SUBSETS}
    skipped = [line for part in (train, validation, *tests.values()) for line in part.skipped]
    refused = tuple(("train", *row) for row in train.refused_images)
    for name, part in {"bundle": train, "test file": tests["mri"]}.items():
        if part.unusable:
            log_skipped(f"data, {name}", part.unusable)
    # several parts come from one file
    return Questions(train, validation, tests, tuple(dict.fromkeys(skipped)), refused)


class Selection(NamedTuple):
    train: list[VQASample]
    validation: list[VQASample]
    left_out: dict[str, list[tuple[VQASample, str]]]  # by part, with the reason
    compared: int  # test images on disk, whose bytes were compared


def select(
    candidates: Sequence[VQASample],
    test: Sequence[VQASample],
    n_train: int,
    n_validation: int,
    shown: Sequence[ImageHandle] = (),
) -> Selection:
    """Select the first rows without a test image for training, then the next without a training image either.

    Two images are the same if their file names (without folder) or, if both files exist, their bytes match.

    Args:
        shown: further images of the test.
    """
    train, validation, left_out = [], [], {"train": [], "validation": []}
    shown = [*shown, *_handles(test)]
    test_names, test_bytes = _names(shown), _digests(shown)
    train_names, train_bytes = set(), set()
    for sample in candidates:
        part = "train" if len(train) < n_train else "validation"
        if part == "validation" and len(validation) == n_validation:
            break
        names, digests = _names(sample.images), _digests(sample.images)
        reasons = {
            "file name of a test image": names & test_names,
            "bytes of a test image": digests & test_bytes,
            "file name of a training image": names & train_names if part == "validation" else None,
            "bytes of a training image": digests & train_bytes if part == "validation" else None,
        }
        if reason := next((text for text, shared in reasons.items() if shared), None):
            left_out[part].append((sample, reason))
        elif part == "train":
            train.append(sample)
            train_names |= names
            train_bytes |= digests
        else:
            validation.append(sample)
    return Selection(train, validation, left_out, compared=len(test_bytes))


def _handles(samples: Sequence[VQASample]) -> list[ImageHandle]:
    return [handle for sample in samples for handle in sample.images]


def _names(handles: Sequence[ImageHandle]) -> set[str]:
    return {PurePath(handle.name).name for handle in handles}


def _digests(handles: Sequence[ImageHandle]) -> set[str]:
    return {image_digest(handle) for handle in handles} - {None}


class MedVLMR1Set(Sequence[VQASample]):
    """One part of MedVLM-R1's data.

    Args:
        part: ``train``, ``validation``, or ``test`` (300 questions of the authors' test file).
        modality: ``mri``, ``ct`` or ``xray``.
        root: local copy of the HuatuoGPT-Vision evaluation bundle. Default: the hub's cache, then the hub.
        test_file: the authors' ``MRI_CT_XRAY_300each_dataset.json``. Default: that name in ``root``.
        revision: commit of the bundle on the hub; unused with ``root``.
        n_train: number of training questions; the validation questions follow them.
        cache: folder to unpack the bundle's ``images.zip`` into.
        rows: how rows are checked; by default unusable rows are left out before the selection. A damaged
            image always raises: to skip it would select other training questions on every machine.

    Attributes:
        skipped: one line for each row left out: unusable, or with an image of another part.
        unusable: the former alone.
        refused_images: line and images of each unusable row.

    Raises:
        FileNotFoundError: bundle, images or test file are missing.
        BadRowError: a row cannot be used.
        ValueError: the bundle holds too few rows.
    """

    def __init__(
        self,
        part: Literal["train", "validation", "test"],
        modality: str = "mri",
        root: str | Path | None = None,
        test_file: str | Path | None = None,
        revision: str = "main",
        n_train: int = 600,
        n_validation: int = 100,
        cache: str | Path | None = None,
        rows: RowPolicy = LENIENT,
    ) -> None:
        if part not in ("train", "validation", "test"):
            raise ValueError(f"part is {part!r}: use 'train', 'validation' or 'test'")
        if modality not in SUBSETS:
            raise ValueError(f"modality is {modality!r}: use one of {', '.join(SUBSETS)}")
        self.part, self.modality = part, modality
        test_file = _find_test_file(test_file, root)
        if part == "test" and root is None and not rows.check_images:
            images = test_file.parent  # the questions alone do not need the bundle
        else:
            root = find_bundle(root, revision, with_images=rows.check_images)
            images = bundle_images(root, cache) if rows.check_images else root
        image_root = ImageRoot(images, rows.follow_links, "data.root")
        parse = functools.partial(read_row, source=plain_stem(test_file), root=image_root)
        test, unusable, places, refused = parse_rows(enumerate(read_json(test_file)), test_file, parse, rows)
        if part == "test":
            path, self.skipped, self.unusable, self.refused_images = test_file, unusable, unusable, refused
            require_rows(str(path), test, unusable)
            self._samples = [sample for sample in test if sample.modality == modality]
            if not self._samples:
                subset = SUBSETS[modality]
                raise ValueError(f"{path} holds no question of subset {subset!r}: give the official file")
        else:
            path, bundle = bundle_rows(root)
            subset = ((i, row) for i, row in enumerate(bundle) if isinstance(row, dict))
            subset = [(i, row) for i, row in subset if row.get("subset") == SUBSETS[modality]]
            parse = functools.partial(read_row, source=plain_stem(path), root=image_root, modality=modality)
            candidates, self.skipped, places, self.refused_images = parse_rows(subset, path, parse, rows)
            self.unusable = list(self.skipped)
            # nor may training hold the image of a test row that cannot be used
            shown = [handle for _, handles in refused for handle in handles]
            chosen = select(candidates, test, n_train, n_validation, shown)
            self._samples = getattr(chosen, part)
            self._report(path, chosen, places, n_train if part == "train" else n_validation)
        if rows.check_images:
            raise_first(image_faults(self._samples, places, "unpack the bundle's images.zip again"))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]

    def _report(self, path: Path, chosen: Selection, places: dict[str, str], wanted: int) -> None:
        left_out = chosen.left_out[self.part]
        counts = Counter(reason for _, reason in left_out)
        logger.info(
            "MedVLM-R1 %s, %s: %d of %d rows of %s, %d more unusable; left out: %s; "
            "compared the bytes of %d test images",
            self.part,
            self.modality,
            len(self._samples),
            len(places),
            path,
            len(self.skipped),
            ", ".join(f"{n} with the {reason}" for reason, n in counts.items()) or "none for their image",
            chosen.compared,
        )
        self.skipped += [f"{places[s.id]}: image {s.images[0].name} has the {why}" for s, why in left_out]
        if len(self._samples) < wanted:
            raise ValueError(
                f"{path}: {wanted} {self.part} questions requested, but {len(places)} usable rows of "
                f"subset {SUBSETS[self.modality]!r} leave {len(self._samples)} ({len(left_out)} left out "
                f"for their images): check that the bundle is complete, or request fewer"
            )


def _find_test_file(test_file: str | Path | None, root: str | Path | None) -> Path:
    """Find the test file; every part needs it, since training must not contain its images."""
    if test_file is not None:
        return Path(test_file)
    if root is not None and (path := Path(root) / TEST_FILE).is_file():
        return path
    raise FileNotFoundError(
        f"the official test questions are needed (training must not hold their images): take {TEST_FILE} "
        f"from {AUTHORS} and set data.test_file to its path, or put it into data.root=DIR, {LAYOUT};\n"
        f"or use the embedded data with data=phantom"
    )
