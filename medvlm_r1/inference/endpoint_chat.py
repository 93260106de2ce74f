"""Questions as messages of the chat completions API."""

import base64
import io
import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.perturbation import GREY, BlankImage
from medvlm_r1.data.sample import BadRowError, ImageHandle, Phase, Question
from medvlm_r1.policy.resize import PATCH, load_resized
from medvlm_r1.prompts import PromptStyle

# Control tokens of the families that servers run: Qwen, Llama, Mistral, Gemma, DeepSeek, InternVL, Phi.
_CONTROL_TOKEN = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,60}[|\uff5c]>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|IMG\w*)\]"
    r"|</?(?:s|bos|eos|pad|unk|mask|think|image|video|audio|img|IMG_CONTEXT|box|ref|quad)>"
    r"|</?(?:tool|fim|tts|start_of|end_of|unused)_?\w{0,40}>|<</?SYS>>"
)


@dataclass(frozen=True)
class Chat:
    """One question as a request to the endpoint.

    Attributes:
        sample: to parse and score the answer.
        messages: in the format of the chat completions API, images as data URLs.
        assistant_prefix: always empty; the API cannot prefill an answer.
    """

    sample: Question
    messages: list[dict[str, Any]]
    assistant_prefix: str = ""


@dataclass(frozen=True)
class ChatEncoder:
    """Converts a question to a chat, in a DataLoader worker.

    Attributes:
        image_size, min_pixels, max_pixels: see :class:`~medvlm_r1.policy.loading.load.Recipe`. A Qwen2-VL
            server with wider limits does not resize such an image again.
        patch: side in pixels of the square that becomes one token of the served model.
    """

    image_size: int | None
    min_pixels: int
    max_pixels: int
    patch: int = PATCH

    def encode(
        self,
        sample: Question,
        phase: Phase,
        prompt: PromptStyle,
        cache: ImageCache | None = None,
        assistant_prefix: str = "",
        memo: dict[str, Image.Image] | None = None,
    ) -> Chat:
        """Render the prompt style's messages, with the images as PNG.

        Args:
            memo: resized images of earlier calls by name; this call adds its own.

        Raises:
            BadRowError: an image cannot be decoded, or its aspect ratio is over 200; or the question spells a
                control token.
            ValueError: ``assistant_prefix`` is not empty.
        """
        if assistant_prefix:
            raise ValueError(f"the chat completions API cannot prefill an answer with {assistant_prefix!r}")
        if fault := control_token_fault(sample):
            raise BadRowError(f"{sample.place or sample.id}: {fault}")
        memo = {} if memo is None else memo

        def resized(image: ImageHandle) -> Image.Image:
            if image.name not in memo:
                if isinstance(image, BlankImage):
                    memo[image.name] = Image.new("RGB", resized(image.of).size, GREY)
                else:
                    limits = (self.image_size, self.min_pixels, self.max_pixels)
                    memo[image.name] = load_resized(image, sample, *limits, cache, self.patch)
            return memo[image.name]

        images = iter(sample.images)
        messages = prompt.render(sample, phase)
        for message in messages:
            message["content"] = [
                _image_part(resized(next(images))) if part["type"] == "image" else part
                for part in message["content"]
            ]
        return Chat(sample, messages)


def control_token_fault(sample: Question) -> str | None:
    """Why a served model would read a question as more than its text, or ``None``.

    The server's tokenizer reads a control token wherever it stands. Which tokens it has is unknown here.
    """
    for text in (sample.question, *sample.options):
        if found := _CONTROL_TOKEN.search(text):
            return (
                f"{found[0]!r} is a control token, which a server would read as such: write it in other "
                "words, or evaluate the model locally"
            )
    return None


def _image_part(image: Image.Image) -> dict[str, Any]:
    png = io.BytesIO()
    image.save(png, "PNG")  # lossless
    data = base64.b64encode(png.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
