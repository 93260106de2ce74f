"""Lengths of prompts before a run: text exactly, image tokens from the sizes of the images."""

import io
import unicodedata
from dataclasses import replace
from typing import Any

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.images.embedded import EmbeddedImage
from medvlm_r1.data.perturbation import BlankImage
from medvlm_r1.data.sample import ImageHandle, Phase, Question, VQASample
from medvlm_r1.policy.encode import Encoder
from medvlm_r1.policy.resize import MAX_ASPECT_RATIO
from medvlm_r1.prompts import PromptStyle

_BOUNDARY = 64  # bytes of a template next to the question whose tokens may depend on it


class PromptLength:
    """Finds the questions whose prompts exceed ``max_prompt_tokens``.

    A cheap bound passes most questions: a token of a byte-level tokenizer spans at least one byte, and an
    image has at most ``max_pixels``. The others are tokenised, and their images' sizes are read.
    """

    def __init__(self, encoder: Encoder, prompt: PromptStyle, phase: Phase) -> None:
        self.encoder, self.prompt, self.phase = encoder, prompt, phase
        self._merged = encoder.image_processor.patch_size * encoder.image_processor.merge_size
        self._limits: Any = encoder.image_processor.size
        self._shortest: dict[tuple[int, int], tuple[int, int]] = {}
        self._counts: dict[str, int] = {}

    def fault(self, sample: Question) -> str | None:
        """Why the prompt cannot be used, or ``None``."""
        limit, images = self.encoder.max_prompt_tokens, len(sample.images)
        if self._text_bound(sample) + images * self._most_image_tokens() <= limit:
            return None
        text = len(self.encoder.chat_tokens(sample, self.phase, self.prompt)) - images
        if text + images * self._most_image_tokens() <= limit:
            return None
        try:
            shown = sum(map(self._image_tokens, sample.images))
        except Exception as error:  # as when an image is decoded: damaged headers raise errors of many types
            return f"the size of an image is unknown ({error}): replace the image"
        return self.encoder.too_long(text + shown, shown) if text + shown > limit else None

    def _text_bound(self, sample: Question) -> int:
        """At least as many as the text tokens: those of a short question, and one for each further byte."""
        shape = len(sample.options), len(sample.images)
        if shape not in self._shortest:
            short = replace(sample, question="?", options=tuple("ABCDEFGHIJ"[: shape[0]]))
            if isinstance(short, VQASample) and short.is_open:
                short = replace(short, answer="?")
            tokens = len(self.encoder.chat_tokens(short, self.phase, self.prompt)) - shape[1]
            self._shortest[shape] = tokens + _BOUNDARY, self._bytes(short)
        tokens, size = self._shortest[shape]
        return tokens + max(0, self._bytes(sample) - size)

    def _bytes(self, sample: Question) -> int:
        text = str(self.prompt.render(sample, self.phase))
        return len(text if text.isascii() else unicodedata.normalize("NFC", text).encode())

    def _most_image_tokens(self) -> int:
        if self.encoder.image_size is not None:
            return self._tokens(self.encoder.image_size, self.encoder.image_size)
        pixels = max(self._limits.longest_edge, self._limits.shortest_edge)
        # the longest image keeps one row of tokens, however few pixels that leaves
        row = (MAX_ASPECT_RATIO * pixels) ** 0.5 / self._merged
        return int(max(pixels / self._merged**2, row)) + 1

    def _image_tokens(self, image: ImageHandle) -> int:
        side = self.encoder.image_size
        if image.name not in self._counts:
            self._counts[image.name] = self._tokens(*(image_size(image) if side is None else (side, side)))
        return self._counts[image.name]

    def _tokens(self, width: int, height: int) -> int:
        limits = self._limits.shortest_edge, self._limits.longest_edge
        height, width = smart_resize(height, width, self._merged, *limits)
        return height * width // self._merged**2


def image_size(image: ImageHandle) -> tuple[int, int]:
    """Width and height of an image, or the other way round if EXIF turns it; a plain file is not decoded."""
    if isinstance(image, BlankImage):
        return image_size(image.of)
    if isinstance(image, EmbeddedImage):
        file = io.BytesIO(image.read())
    elif isinstance(image, ImageFile) and not image.frame:
        file = image.path
    else:
        return image.load().size
    with Image.open(file) as opened:
        return opened.size  # which EXIF may turn: the tokens are as many, and a PNG would be decoded for it
