"""Pictures of the base model, and the split that keeps them apart from training and test questions."""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from smollm2 import MERGE, PATCH, SIDE
from torch import Tensor
from torch.nn import functional as F

from medvlm_r1.audit import audit
from medvlm_r1.audit.question_files import read_files
from medvlm_r1.data.sample import VQASample

TRAIN, OTHER = "train_mri.json", "vqa_rad_yes_no.json"
TESTS = ("test_mri.json", "test_ct.json", "test_xray.json")
RUN_ROWS = 720  # 600 training questions, 100 validation questions, and a margin for whole image groups
MODALITY = {"mri": "MRI", "ct": "CT", "xray": "X-ray"}
# Words in the questions about a picture of VQA-RAD that name its region: it has no column for it.
REGION_WORDS = {
    "Chest": "chest|lung|heart|cardi|rib|pneumo|pleural|diaphragm|hilar|trache|mediast|costophrenic",
    "Abdomen": "abdom|liver|kidney|bowel|gallbladder|spleen|colon|pancrea|renal|append",
    "Brain": "brain|ventric|midline|skull|cerebr|infarct|gyri|sulci",
}
TUMOURS = ("Glioma", "Meningioma", "Pituitary tumor", "No tumor")


@dataclass(frozen=True)
class Picture:
    """What is known of one picture.

    Attributes:
        modality, region: as options spell them; the region may be unknown.
        finding: answer to the question about its disease: one of :data:`TUMOURS`, ``Yes`` or ``No`` (is it
            abnormal?), or ``None``.
    """

    file: str
    modality: str
    region: str | None
    finding: str | None

    @property
    def facts(self) -> dict[str, str]:
        """Answers by type, for the heads that train the tower."""
        known = {"modality": self.modality, "region": self.region}
        if self.finding:
            known["abnormal"] = "No" if self.finding in ("No", "No tumor") else "Yes"
        if self.finding in TUMOURS:
            known["tumour"] = self.finding
        return {name: answer for name, answer in known.items() if answer}


def split_rows(folder: Path, out: Path, seed: int) -> dict[str, int]:
    """Split the MRI training questions by image into ``base.json`` and ``train_mri.json`` in ``out``.

    The base also gets the pictures of VQA-RAD, for CT and X-ray. A base row whose picture the audit finds to
    be a copy of one in the other files, or whose image group is there, is dropped.

    Returns:
        Rows of the base, rows of the runs, and dropped rows.
    """
    rows = json.loads((folder / TRAIN).read_text())
    groups = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    runs: list[dict] = []
    while len(runs) < RUN_ROWS:
        runs += groups.pop(order.pop())
    base = [row for row in rows if row["group"] in groups]
    base += json.loads((folder / OTHER).read_text()) if (folder / OTHER).is_file() else []
    _write(out / "train_mri.json", runs)
    _write(out / "base.json", base)

    seen = read_files([out / "base.json"], folder).samples
    unseen = {"runs": read_files([out / "train_mri.json"], folder).samples}
    unseen |= {name: read_files([folder / name]).samples for name in TESTS}
    copies = {id for leak in audit(seen, unseen).leaks for id in leak.sources}
    taken = {sample.image_group for samples in unseen.values() for sample in samples}
    kept = [
        row
        for row, sample in zip(base, seen, strict=True)
        if sample.id not in copies and sample.image_group not in taken
    ]
    _write(out / "base.json", kept)
    return {"base": len(kept), "runs": len(runs), "dropped": len(base) - len(kept)}


def _write(path: Path, rows: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def read_pictures(path: Path, images: Path) -> tuple[list[Picture], list[VQASample]]:
    """Read the pictures of ``base.json``, sorted by file, and its questions."""
    samples = read_files([path], images).samples
    by_file: dict[str, list[VQASample]] = defaultdict(list)
    for sample in samples:
        by_file[sample.images[0].name].append(sample)
    pictures = [_picture(file, asked) for file, asked in sorted(by_file.items())]
    return pictures, samples


def _picture(file: str, asked: Sequence[VQASample]) -> Picture:
    first = asked[0]
    if first.source == "VQA-RAD":
        text = " ".join(sample.question.lower() for sample in asked)
        found = Counter({name: len(re.findall(words, text)) for name, words in REGION_WORDS.items()})
        (region, most), (_, second) = found.most_common(2)
        return Picture(file, MODALITY[first.modality], region if most > second else None, None)
    region = "Breast" if first.source == "MedNIST" else "Brain"
    diseases = [sample.answer_text for sample in asked if sample.question_type == "Disease Diagnosis"]
    return Picture(file, MODALITY[first.modality], region, diseases[0] if diseases else None)


def load_grey(samples: Sequence[VQASample], pictures: Sequence[Picture]) -> Tensor:
    """Load the pictures as grey levels ``[pictures, 112, 112]``, uint8, resized as in a run."""
    handles = {sample.images[0].name: sample.images[0] for sample in samples}
    resized = (
        handles[p.file].load().resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("L") for p in pictures
    )
    return torch.stack([torch.from_numpy(np.array(image)) for image in resized])


def augment(grey: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn, mirror, stretch, shift and re-expose each picture at random: changes that leave the facts.

    Args:
        grey: ``[pictures, 112, 112]``, uint8.
    """
    n = len(grey)
    draw = rng.uniform
    angle, scale = np.radians(draw(-15, 15, n)), draw(0.85, 1.15, n)
    mirror = rng.choice([-1.0, 1.0], n)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    shift = draw(-0.12, 0.12, (2, n))
    theta = np.stack(
        [np.stack([cos * mirror, -sin, shift[0]], -1), np.stack([sin * mirror, cos, shift[1]], -1)], 1
    )
    grid = F.affine_grid(torch.from_numpy(theta).float(), (n, 1, SIDE, SIDE), align_corners=False)
    moved = F.grid_sample(grey[:, None].float(), grid, align_corners=False)[:, 0]
    gain, offset = (torch.from_numpy(draw(*limits, (n, 1, 1))).float() for limits in ((0.8, 1.2), (-20, 20)))
    return (moved * gain + offset).clamp(0, 255).round().to(torch.uint8)


def patches(grey: Tensor) -> Tensor:
    """Cut pictures into the encoder's patches ``[pictures * 64, 3 * 14 * 14]``, uint8.

    The four patches of one token are consecutive.
    """
    tokens = SIDE // (PATCH * MERGE)
    x = grey.view(-1, tokens, MERGE, PATCH, tokens, MERGE, PATCH)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, 1, PATCH * PATCH)
    return x.expand(-1, 3, -1).reshape(-1, 3 * PATCH * PATCH)
