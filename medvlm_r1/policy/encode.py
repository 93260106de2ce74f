"""From questions to tensors, in DataLoader workers."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.perturbation import GREY, BlankImage
from medvlm_r1.data.sample import LETTERS, ImageHandle, Phase, Question, VQASample
from medvlm_r1.policy.control_tokens import ControlTokens
from medvlm_r1.policy.positions import rope_positions
from medvlm_r1.policy.resize import load_resized
from medvlm_r1.prompts import PromptStyle

VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")

AnyQuestion = TypeVar("AnyQuestion", bound=Question)
Patches = UInt8[Tensor, "patches bytes"]
"""Colours x rows x columns of each patch; its temporal frames are equal, so one is enough."""
Grid = Int[Tensor, "images 3"]
PatchMemo = dict[tuple[str, ...], tuple[Patches, Grid, tuple[str, ...]]]
"""Names of images -> patches, grids and digests."""
# Options of the image processor: patches of one temporal frame; with 8-bit values.
_ONE_FRAME: dict[str, Any] = {"do_resize": False, "temporal_patch_size": 1}
_RAW: dict[str, Any] = {"do_rescale": False, "do_normalize": False}


@dataclass(frozen=True)
class EncodedPrompt(Generic[AnyQuestion]):
    """One question as the model receives it.

    Attributes:
        ids: token ids, with one image token per merged patch.
        positions: temporal, height and width position of each token (M-RoPE).
        pixels: patches of all images; no rows without an image. See :meth:`Encoder.pixel_values`.
        grid: patch grid (t, h, w) of each image.
        image_digests: hash of each image's patches: images with equal digests have equal features.
        assistant_prefix: first text of the answer, which the chat template opens or the caller gives: its
            tokens are the last of ``ids``, and a parser reads it before the completion.
    """

    sample: AnyQuestion
    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, "3 tokens"]
    pixels: Patches
    grid: Grid
    image_digests: tuple[str, ...]
    assistant_prefix: str = ""


@dataclass(frozen=True)
class PromptBatch:
    """Concatenated prompts, without padding.

    Pixels and grid stay on the host: the features of most images are cached. ``lengths`` counts the tokens of
    each prompt, ``image_digests`` are those of each prompt's images.
    """

    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, "3 tokens"]
    pixels: Patches
    grid: Grid
    image_digests: tuple[tuple[str, ...], ...]
    lengths: tuple[int, ...]
    pad_id: int

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def ends(self) -> Int[Tensor, " prompts"]:
        """Index of each prompt's last token, on the host."""
        return torch.tensor(self.lengths).cumsum(0) - 1

    @property
    def next_positions(self) -> Int[Tensor, " prompts"]:
        """Rotary position of the token after each prompt, on all three axes."""
        return torch.stack([p.amax() for p in self.positions.split(self.lengths, dim=1)]) + 1

    def padded(
        self,
    ) -> tuple[
        Int[Tensor, "prompts longest"], Bool[Tensor, "prompts longest"], Int[Tensor, "3 prompts longest"]
    ]:
        """Ids, mask and positions, one prompt per row, padded on the left."""

        def pad(row: Tensor, value: int) -> Tensor:
            return pad_sequence(row.split(self.lengths), True, value, padding_side="left")

        mask = pad(torch.ones_like(self.ids, dtype=torch.bool), False)
        positions = torch.stack([pad(axis, 0) for axis in self.positions])
        return pad(self.ids, self.pad_id), mask, positions


@dataclass(frozen=True)
class Encoder:
    """Tokenizer and image processor of a checkpoint, with the limits of the run; picklable.

    Attributes:
        max_prompt_tokens: a longer prompt is an error; truncation would remove image tokens.
        image_size: side in pixels of the square to which every image is resized first, as in Med-R1; ``None``
            keeps the aspect ratio.
        opened: tag that the chat template opens at the start of every answer, with its white space, such as
            ``<think>``; empty without one.
        color_table: the image processor's rescaled and normalised value of each 8-bit level of each colour.
        control: the tokenizer's control tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: Qwen2VLImageProcessorPil
    max_prompt_tokens: int
    image_size: int | None = None
    opened: str = field(init=False)
    color_table: Float[Tensor, "3 256"] = field(init=False, repr=False, compare=False)
    control: ControlTokens = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "opened", _opened(self.tokenizer))
        object.__setattr__(self, "color_table", _color_table(self.image_processor))
        object.__setattr__(self, "control", ControlTokens(self.tokenizer))

    def encode(
        self,
        sample: AnyQuestion,
        phase: Phase,
        prompt: PromptStyle,
        cache: ImageCache | None = None,
        assistant_prefix: str = "",
        memo: PatchMemo | None = None,
    ) -> EncodedPrompt[AnyQuestion]:
        """Encode one question.

        Args:
            cache: resized images of earlier runs.
            assistant_prefix: see :meth:`prefix_tokens`.
            memo: patches of earlier calls; those of this call are added.

        Raises:
            ValueError: the prompt exceeds ``max_prompt_tokens``.
            BadRowError: an image cannot be decoded, or is over 200 times as long as wide.
        """
        text = torch.tensor(self.chat_tokens(sample, phase, prompt))
        memo = {} if memo is None else memo
        pixels, grid, digests = self._image_patches(sample.images, sample, cache, memo)
        merge = self.image_processor.merge_size
        # The template holds one image token per image: repeat it once per merged patch.
        image_id, counts = self.control.ids["<|image_pad|>"], grid.prod(1) // merge**2
        is_image, repeats = text == image_id, torch.ones_like(text)
        if (made := int(is_image.sum())) != len(grid):
            raise ValueError(f"{sample.id}: the chat template made {made} images of {len(grid)}")
        repeats[is_image] = counts
        ids = text.repeat_interleave(repeats)
        if len(ids) > self.max_prompt_tokens:
            raise ValueError(f"{sample.id}: {self.too_long(len(ids), int(counts.sum()))}")
        prefix = self.prefix_tokens(self._after_opened(assistant_prefix)) if assistant_prefix else []
        ids = torch.cat([ids, torch.tensor(prefix, dtype=torch.long)])
        positions = rope_positions(ids, grid, image_id, merge)
        begun = self.opened + (self.decode(torch.tensor(prefix)) if prefix else "")
        return EncodedPrompt(sample, ids, positions, pixels, grid, digests, begun)

    def too_long(self, tokens: int, image_tokens: int) -> str:
        """The error of a prompt above ``max_prompt_tokens``."""
        return (
            f"the prompt has {tokens} tokens ({image_tokens} of them image tokens), above "
            f"max_prompt_tokens={self.max_prompt_tokens}: raise model.recipe.max_prompt_tokens or lower "
            "model.recipe.max_pixels"
        )

    def chat_tokens(self, sample: Question, phase: Phase, prompt: PromptStyle) -> list[int]:
        """Token ids of the prompt, with one image token per image."""
        render = partial(self.tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        return self.control.tokenize(sample, lambda question: str(render(prompt.render(question, phase))))

    def prefix_tokens(self, assistant_prefix: str) -> list[int]:
        """Token ids of ``assistant_prefix`` that do not depend on the text after it.

        Qwen's tokenizer merges the end of ``<answer>`` with the next letter: a model that learnt the token
        ``>B`` must be free to generate it.
        """
        texts = [assistant_prefix, *(f"{assistant_prefix}{letter}</" for letter in LETTERS)]
        prefix, *others = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        same = [len(set(column)) == 1 for column in zip(prefix, *others, strict=False)]
        return prefix[: [*same, False].index(False)] or prefix

    def _image_patches(
        self, images: tuple[ImageHandle, ...], sample: Question, cache: ImageCache | None, memo: PatchMemo
    ) -> tuple[Patches, Grid, tuple[str, ...]]:
        """Patches, grids and digests of images, from ``memo`` if they are in it."""
        processor = self.image_processor
        if not images:
            pixels = torch.zeros(0, 3 * processor.patch_size**2, dtype=torch.uint8)
            return pixels, torch.zeros(0, 3, dtype=torch.long), ()
        key = tuple(image.name for image in images)
        if key not in memo:
            if all(isinstance(image, BlankImage) for image in images):
                _, grid, _ = self._image_patches(tuple(image.of for image in images), sample, cache, memo)
                side = processor.patch_size
                resized = [Image.new("RGB", (w * side, h * side), GREY) for _, h, w in grid.tolist()]
            else:
                limits = processor.size
                sides = (self.image_size, limits.shortest_edge, limits.longest_edge)
                patch = processor.patch_size * processor.merge_size
                resized = [load_resized(image, sample, *sides, cache, patch) for image in images]
            encoded = processor(resized, return_tensors="pt", **_ONE_FRAME, **_RAW)
            pixels, grid = encoded["pixel_values"].to(torch.uint8), encoded["image_grid_thw"]
            memo[key] = pixels, grid, _digests(pixels, grid)
        return memo[key]

    def pixel_values(self, pixels: Patches) -> Float[Tensor, "patches features"]:
        """Input of the vision tower, on the device of ``pixels``: the image processor's, bit for bit."""
        table = self.color_table.to(pixels.device)
        color = torch.arange(3, device=pixels.device)[:, None]
        values = table[color, pixels.unflatten(1, (3, -1)).int()]
        return values[:, :, None].expand(-1, -1, self.image_processor.temporal_patch_size, -1).flatten(1)

    def encode_target(
        self, sample: VQASample, prompt: PromptStyle, reasoned: bool = False
    ) -> Int[Tensor, " tokens"]:
        """Token ids of the SFT target, end of turn included; ``reasoned``: with the question's rationale."""
        target, end = (prompt.reasoned_target if reasoned else prompt.target), str(self.tokenizer.eos_token)
        return torch.tensor(self.control.tokenize(sample, lambda it: self._after_opened(target(it)) + end))

    def _after_opened(self, answer: str) -> str:
        """The answer behind a tag that the template opens: without its own, or behind the closed tag."""
        if not self.opened:
            return answer
        return answer.removeprefix("<think>") if answer.startswith("<think>") else f"</think>\n{answer}"

    def decode(self, tokens: Int[Tensor, " tokens"]) -> str:
        """Text of a completion, without special tokens and with its white space as generated."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def collate(prompts: Sequence[EncodedPrompt], pad_id: int, device: torch.device) -> PromptBatch:
    """Concatenate prompts on ``device``; images are in the order of their prompts."""
    return PromptBatch(
        ids=torch.cat([p.ids for p in prompts]).to(device),
        positions=torch.cat([p.positions for p in prompts], dim=1).to(device),
        pixels=torch.cat([p.pixels for p in prompts]),
        grid=torch.cat([p.grid for p in prompts]),
        image_digests=tuple(p.image_digests for p in prompts),
        lengths=tuple(len(p.ids) for p in prompts),
        pad_id=pad_id,
    )


def _opened(tokenizer: PreTrainedTokenizerBase) -> str:
    chat = [{"role": "user", "content": ""}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tag = re.search(r"<think>\s*$", str(text))
    return tag[0] if tag else ""


def _color_table(processor: Qwen2VLImageProcessorPil) -> Float[Tensor, "3 256"]:
    """Read the table off an image of all levels."""
    side = processor.patch_size * processor.merge_size
    picture = np.resize(np.arange(256, dtype=np.uint8), side**2).reshape(side, side, 1).repeat(3, axis=2)
    levels, values = (
        processor(picture, return_tensors="np", **_ONE_FRAME, **options)["pixel_values"].reshape(
            -1, 3, processor.patch_size**2
        )
        for options in (_RAW, {})
    )
    table = np.zeros((3, 256), np.float32)
    table[np.arange(3)[:, None], levels.astype(int)] = values
    return torch.from_numpy(table)


def _digests(pixels: Patches, grid: Grid) -> tuple[str, ...]:
    images = zip(pixels.split(grid.prod(1).tolist()), grid.tolist(), strict=True)
    return tuple(
        hashlib.blake2b(image.contiguous().numpy(), digest_size=16, key=str(shape).encode()).hexdigest()
        for image, shape in images
    )
