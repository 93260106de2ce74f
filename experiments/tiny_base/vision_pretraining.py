"""Pretraining of the vision tower alone, with a classification head per question type.

Trained through the language model, the tower learns only acquisition and count for thousands of steps. With
heads of its own, a step costs a third and trains all findings at once. The heads are first linear on all
tokens, which learns fast, then attend to the tokens as the language model will. They are discarded.
"""

from collections.abc import Iterator

import numpy as np
import torch
from fast_vision import patches
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2VLForConditionalGeneration

GRID = 8  # patches per side of 112 pixels
TOKENS = (GRID // 2) ** 2
IGNORE = -100


def shifted(pixels: Tensor, rng: np.random.Generator, most: int = 5) -> Tensor:
    """Shift all images together by up to ``most`` pixels: augmentation that changes no finding."""
    down, right = rng.integers(-most, most + 1, size=2)
    return torch.roll(pixels, (int(down), int(right)), dims=(1, 2))


class AttentionHead(nn.Module):
    """Classifier that reads tokens like one attention layer of the language model."""

    def __init__(self, width: int, classes: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(heads, width // heads) * 0.1)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.place = nn.Parameter(torch.zeros(TOKENS, heads))
        self.answer = nn.Linear(width, classes)

    def forward(self, seen: Tensor) -> Tensor:
        """``[images, tokens, width] -> [images, classes]``."""
        key, value = (part(seen).unflatten(-1, (self.heads, -1)) for part in (self.key, self.value))
        weights = (key * self.query).sum(-1) / key.shape[-1] ** 0.5 + self.place
        return self.answer((weights.softmax(1)[..., None] * value).sum(1).flatten(1))


class VisionPretraining:
    """Classification of all findings at once.

    Args:
        model: the model whose vision tower is trained, after :func:`~fast_vision.quicken`.
        pixels: ``[scenes, 112, 112, 3]``, uint8.
        findings: classes of each scene, one per question type; fewer if a type has no answer.
        rng: draws images and shifts.
        attending: use attention heads; otherwise heads that are linear on all tokens.
    """

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        pixels: np.ndarray,
        findings: list[tuple[str, ...]],
        rng: np.random.Generator,
        attending: bool,
    ):
        self.vision = model.model.visual
        self.pixels = torch.from_numpy(pixels)
        self.rng = rng
        places = range(max(map(len, findings)))
        classes = [sorted({words[k] for words in findings if k < len(words)}) for k in places]
        self.labels = torch.tensor(
            [[classes[k].index(words[k]) if k < len(words) else IGNORE for k in places] for words in findings]
        )
        width = model.config.text_config.hidden_size
        self.heads = nn.ModuleList(
            AttentionHead(width, len(names))
            if attending
            else nn.Sequential(nn.Flatten(), nn.Linear(TOKENS * width, len(names)))
            for names in classes
        )
        weights = [*self.vision.parameters(), *self.heads.parameters()]
        self.optimiser = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.05)

    def run(self, steps: int, rows: int, peak: float) -> Iterator[float]:
        """Train ``steps`` steps on ``rows`` images each; the learning rate falls from ``peak`` to a tenth.

        Yields:
            Accuracy over the findings of each step.
        """
        for step in range(steps):
            for group in self.optimiser.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / 100) * (1 - 0.9 * step / steps)
            index = self.rng.integers(len(self.pixels), size=rows)
            labels = self.labels[index]
            grid = torch.tensor([[1, GRID, GRID]]).expand(rows, 3)
            with torch.autocast("cpu", torch.bfloat16):
                seen = self.vision(patches(shifted(self.pixels[index], self.rng)), grid).pooler_output
                scores = [head(seen.view(rows, TOKENS, -1)).float() for head in self.heads]
            loss = sum(
                F.cross_entropy(score, label, ignore_index=IGNORE)
                for score, label in zip(scores, labels.T, strict=True)
            )
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.vision.parameters(), 1.0)
            self.optimiser.step()
            right = torch.stack([score.argmax(-1) for score in scores], -1) == labels
            yield right[labels != IGNORE].float().mean().item()
