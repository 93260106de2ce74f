"""Questions from an array file in MedMNIST's layout: train_images, train_labels, val_images and so on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medvlm_r1.data.sample import LETTERS, VQASample
from medvlm_r1.data.splits import Questions


@dataclass(frozen=True)
class ArrayImage:
    name: str
    pixels: np.ndarray

    def load(self) -> Image.Image:
        return Image.fromarray(self.pixels).convert("RGB")


def medmnist(path: str, question: str, options: Sequence[str], modality: str) -> Questions:
    """One question per image; label i is the i-th option."""
    arrays = np.load(path)

    def part(split: str) -> list[VQASample]:
        names = [f"{Path(path).stem}-{split}-{i}" for i in range(len(arrays[f"{split}_images"]))]
        rows = zip(names, arrays[f"{split}_images"], arrays[f"{split}_labels"].flat, strict=True)
        facts = {"modality": modality, "question_type": "classification", "source": Path(path).stem}
        return [
            VQASample(
                name,
                (ArrayImage(name, pixels),),
                question,
                tuple(options),
                answer=LETTERS[label],
                image_group=name,
                **facts,
            )
            for name, pixels, label in rows
        ]

    return Questions(part("train"), part("val"), {modality: part("test")})
