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
    arrays, source = dict(np.load(path)), Path(path).stem
    facts = {"modality": modality, "question_type": "classification", "source": source}

    def sample(split: str, i: int) -> VQASample:
        name = f"{source}-{split}-{i}"
        image = ArrayImage(name, arrays[f"{split}_images"][i])
        answer = LETTERS[arrays[f"{split}_labels"][i].item()]
        return VQASample(name, (image,), question, tuple(options), answer, image_group=name, **facts)

    def part(split: str) -> list[VQASample]:
        return [sample(split, i) for i in range(len(arrays[f"{split}_images"]))]

    return Questions(part("train"), part("val"), {modality: part("test")})
