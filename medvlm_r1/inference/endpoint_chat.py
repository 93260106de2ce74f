"""Questions as messages of the chat completions API."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.perturbation import GREY, BlankImage
from medvlm_r1.data.sample import ImageHandle, Phase, VQASample
from medvlm_r1.policy.encode import load_resized
from medvlm_r1.prompts import PromptStyle


@dataclass(frozen=True)
class Chat:
    """One question as the endpoint receives it.

    Attributes:
        sample: the question itself, for reading and scoring the answer.
        messages: in the format of the chat completions API, pictures as data URLs.
        assistant_prefix: empty: the API takes no first text of the answer.
    """

    sample: VQASample
    messages: list[dict[str, Any]]
    assistant_prefix: str = ""


@dataclass(frozen=True)
class ChatEncoder:
    """Turns a question into a chat, in a DataLoader worker.

    Attributes:
        image_size, min_pixels, max_pixels: see :class:`~medvlm_r1.policy.loading.load.Recipe`. A Qwen2-VL
            server with wider limits leaves a picture of that size as it is.
    """

    image_size: int | None
    min_pixels: int
    max_pixels: int

    def encode(
        self,
        sample: VQASample,
        phase: Phase,
        prompt: PromptStyle,
        cache: ImageCache | None = None,
        assistant_prefix: str = "",
        memo: dict[str, Image.Image] | None = None,
    ) -> Chat:
        """The prompt style's messages, with the pictures in their places.

        Args:
            assistant_prefix: must be empty: the API takes no first text of the answer.
            memo: pictures of earlier calls, which these are added to.

        Raises:
            BadRowError: an image cannot be decoded, or is over 200 times as long as wide.
            ValueError: the answer is to begin with something.
        """
        if assistant_prefix:
            raise ValueError(f"a served model's answer cannot be made to begin with {assistant_prefix!r}")
        memo = {} if memo is None else memo
        pictures = iter(sample.images)
        messages = [
            {
                **message,
                "content": [
                    self._picture(next(pictures), sample, cache, memo) if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in prompt.render(sample, phase)
        ]
        return Chat(sample, messages)

    def _picture(
        self,
        image: ImageHandle,
        sample: VQASample,
        cache: ImageCache | None,
        memo: dict[str, Image.Image],
    ) -> dict[str, Any]:
        png = io.BytesIO()
        self._fitted(image, sample, cache, memo).save(png, "PNG")  # lossless: the server sees our pixels
        data = base64.b64encode(png.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    def _fitted(
        self,
        image: ImageHandle,
        sample: VQASample,
        cache: ImageCache | None,
        memo: dict[str, Image.Image],
    ) -> Image.Image:
        if image.name not in memo:
            if isinstance(image, BlankImage):
                size = self._fitted(image.of, sample, cache, memo).size
                memo[image.name] = Image.new("RGB", size, GREY)
            else:
                limits = (self.image_size, self.min_pixels, self.max_pixels)
                memo[image.name] = load_resized(image, sample, *limits, cache)
        return memo[image.name]
