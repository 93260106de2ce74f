"""Turn one question into tensors, once, in a DataLoader worker."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from medvlm_r1.data.images.cache import ImageCache
from medvlm_r1.data.perturbation import GREY, BlankImage
from medvlm_r1.data.sample import LETTERS, BadRowError, ImageHandle, Phase, Question
from medvlm_r1.prompts import PromptStyle

PATCH = 28  # pixels a side of what becomes one token: 14, merged two by two
VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
MAX_ASPECT_RATIO = 200  # ratio of sides above which the image processor gives up
_RESIZE_VERSION = 1  # another number for other pixels of the resized image: what is kept of them is made anew


PatchMemo = dict[tuple[str, ...], tuple[Tensor, Tensor, tuple[str, ...]]]
"""Patches, grid and digests, by the names of pictures."""


@dataclass(frozen=True)
class EncodedPrompt:
    """One question as the model receives it.

    Attributes:
        sample: the question itself, for reading and scoring the answers.
        ids: token ids, image place holders expanded.
        positions: temporal, height and width position of each token (M-RoPE).
        pixels: patches of all images of this question; no rows without an image.
        grid: patch grid (t, h, w) of each image.
        pictures: a digest of each image's patches: equal pictures have equal features.
        assistant_prefix: first text of the answer, given to the model; its tokens are the last of ``ids``.
    """

    sample: Question
    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, "3 tokens"]
    pixels: Float[Tensor, "patches features"]
    grid: Int[Tensor, "images 3"]
    image_digests: tuple[str, ...]
    assistant_prefix: str = ""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts one behind the other, without padding.

    Pixels and grid stay on the host: most pictures have been through the vision tower before.

    Attributes:
        lengths: tokens of each prompt.
        pad_id: the token that :meth:`padded` fills with.
    """

    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, "3 tokens"]
    pixels: Float[Tensor, "patches features"]
    grid: Int[Tensor, "images 3"]
    image_digests: tuple[str, ...]
    lengths: tuple[int, ...]
    pad_id: int

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def ends(self) -> Int[Tensor, " prompts"]:
        """Where each prompt's last token stands; on the host."""
        return torch.tensor(self.lengths).cumsum(0) - 1

    @property
    def next_positions(self) -> Int[Tensor, " prompts"]:
        """Position, on all three axes, of the token behind each prompt."""
        return torch.stack([p.amax() for p in self.positions.split(self.lengths, dim=1)]) + 1

    def padded(
        self,
    ) -> tuple[
        Int[Tensor, "prompts longest"], Bool[Tensor, "prompts longest"], Int[Tensor, "3 prompts longest"]
    ]:
        """Ids, mask and positions side by side, each prompt ending in the last column."""

        def beside(row: Tensor, value: int) -> Tensor:
            return pad_sequence(row.split(self.lengths), True, value, padding_side="left")

        mask = beside(torch.ones_like(self.ids, dtype=torch.bool), False)
        positions = torch.stack([beside(axis, 0) for axis in self.positions])
        return beside(self.ids, self.pad_id), mask, positions


@dataclass(frozen=True)
class Encoder:
    """Everything needed to encode a question; picklable, and free of the model.

    Attributes:
        tokenizer: the checkpoint's own, with its chat template.
        image_processor: the checkpoint's own, with the pixel limits of the run.
        max_prompt_tokens: a longer prompt is an error, never cut: cutting removes image tokens.
        image_size: side of the square, in pixels, that every image is resized to first, as Med-R1
            does; ``None`` keeps its shape.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: Qwen2VLImageProcessorPil
    max_prompt_tokens: int
    image_size: int | None = None

    def encode(
        self,
        sample: Question,
        phase: Phase,
        prompt: PromptStyle,
        cache: ImageCache | None = None,
        assistant_prefix: str = "",
        memo: PatchMemo | None = None,
    ) -> EncodedPrompt:
        """Encode one question, decoding those of its images that are not in the cache.

        Args:
            assistant_prefix: first text of the answer, given to the model; see :meth:`prefix_tokens`.
            memo: pictures of earlier calls, which these are added to: the same ones are not cut again.

        Raises:
            ValueError: the prompt exceeds ``max_prompt_tokens``.
            BadRowError: an image cannot be decoded, or is over 200 times as long as wide.
        """
        text = self.tokenizer.apply_chat_template(
            prompt.render(sample, phase), tokenize=False, add_generation_prompt=True
        )
        pixels, grid, pictures = self._image_patches(
            sample.images, sample, cache, {} if memo is None else memo
        )
        merge = self.image_processor.merge_size
        # Each image of the template holds one place holder: repeat it once per merged patch.
        pieces = text.split("<|image_pad|>")
        if len(pieces) != len(grid) + 1:
            raise ValueError(f"{sample.id}: the chat template made {len(pieces) - 1} images of {len(grid)}")
        counts = [int(g.prod()) // merge**2 for g in grid]
        text = pieces[0] + "".join("<|image_pad|>" * n + p for n, p in zip(counts, pieces[1:], strict=True))
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) > self.max_prompt_tokens:
            raise ValueError(
                f"{sample.id}: the prompt has {len(ids)} tokens ({sum(counts)} of them image tokens), above "
                f"max_prompt_tokens={self.max_prompt_tokens}: raise model.recipe.max_prompt_tokens or lower "
                "model.recipe.max_pixels"
            )
        if assistant_prefix and text.endswith("<think>"):  # a template that opens the tag itself
            assistant_prefix = f"</think>\n{assistant_prefix}"
        prefix = self.prefix_tokens(assistant_prefix) if assistant_prefix else []
        ids = torch.cat([ids, torch.tensor(prefix, dtype=torch.long)])
        image_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        positions = rope_positions(ids, grid, image_id, merge)
        text = self.decode(torch.tensor(prefix)) if prefix else ""
        return EncodedPrompt(sample, ids, positions, pixels, grid, pictures, text)

    def prefix_tokens(self, assistant_prefix: str) -> list[int]:
        """Token ids of ``assistant_prefix`` that do not depend on the text after it.

        Qwen's tokenizer merges the end of ``<answer>`` with the next letter: a model that learnt the token
        ``>B`` must be free to generate it.
        """
        texts = [assistant_prefix, *(f"{assistant_prefix}{letter}</" for letter in LETTERS)]
        whole, *others = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        same = [len(set(column)) == 1 for column in zip(whole, *others, strict=False)]
        return whole[: [*same, False].index(False)] or whole

    def _image_patches(
        self, images: tuple[ImageHandle, ...], sample: Question, cache: ImageCache | None, memo: PatchMemo
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Patches, grid and digests of pictures, from ``memo`` where they are in it."""
        if not images:
            return torch.zeros(0, self._patch_features()), torch.zeros(0, 3, dtype=torch.long), ()
        key = tuple(image.name for image in images)
        if key not in memo:
            if all(isinstance(image, BlankImage) for image in images):
                _, grid, _ = self._image_patches(tuple(image.of for image in images), sample, cache, memo)
                side = self.image_processor.patch_size
                pictures = [Image.new("RGB", (w * side, h * side), GREY) for _, h, w in grid.tolist()]
            else:
                limits = self.image_processor.size
                sides = (self.image_size, limits.shortest_edge, limits.longest_edge)
                pictures = [load_resized(image, sample, *sides, cache) for image in images]
            cut = self.image_processor(pictures, do_resize=False, return_tensors="pt")
            pixels, grid = cut["pixel_values"], cut["image_grid_thw"]
            memo[key] = pixels, grid, _digests(pixels, grid)
        return memo[key]

    def encode_target(self, sample: Question, prompt: PromptStyle) -> Int[Tensor, " tokens"]:
        """Token ids of the completion that SFT learns, end of turn included."""
        text = prompt.target(sample) + self.tokenizer.eos_token
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Int[Tensor, " tokens"]) -> str:
        """The text of a completion, without special tokens and with its white space as generated."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _patch_features(self) -> int:
        processor = self.image_processor
        return 3 * processor.temporal_patch_size * processor.patch_size**2


def load_resized(
    image: ImageHandle,
    sample: Question,
    image_size: int | None,
    min_pixels: int,
    max_pixels: int,
    cache: ImageCache | None = None,
) -> Image.Image:
    """The picture at the size at which Qwen2-VL's image processor would cut it into patches.

    Args:
        image: one of ``sample``'s.
        image_size: side of the square that it is resized to first; ``None`` keeps its shape.
        min_pixels, max_pixels: what the processor keeps it between.
        cache: asked first.

    Raises:
        BadRowError: it cannot be decoded, or is over 200 times as long as wide.
    """

    def make() -> Image.Image:
        picture = load_image(image, sample, image_size)
        height, width = smart_resize(picture.height, picture.width, PATCH, min_pixels, max_pixels)
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    if cache is None:
        return make()
    return cache.get(
        image, (_RESIZE_VERSION, transformers.__version__, image_size, min_pixels, max_pixels), make
    )


def load_image(image: ImageHandle, sample: Question, side: int | None) -> Image.Image:
    """The picture, as a square of ``side`` pixels; ``None`` keeps its shape.

    Raises:
        BadRowError: it cannot be decoded, or is over 200 times as long as wide.
    """
    picture = image.load()
    if side is not None:
        return picture.resize((side, side), Image.Resampling.BICUBIC)
    if max(picture.size) > MAX_ASPECT_RATIO * min(picture.size):
        raise BadRowError(
            f"{sample.id}: image {image.name} is {picture.width} x {picture.height} pixels, more than "
            f"{MAX_ASPECT_RATIO} times as long as wide, which Qwen2-VL cannot take: crop it, or set "
            "model.recipe.image_size"
        )
    return picture


def rope_positions(
    ids: Int[Tensor, " tokens"], grid: Int[Tensor, "images 3"], image_id: int, merge: int
) -> Int[Tensor, "3 tokens"]:
    """Temporal, height and width positions of one unpadded prompt (Qwen2-VL, section 2.1, M-RoPE).

    Text advances all three by one a token. An image holds its grid offset by the position at which
    it starts; the text behind it goes on from the largest position used. The model's own
    ``get_rope_index`` gives the same, but keeps state inside the model and cannot run in a worker.
    """
    positions, start, token = [], 0, 0
    for t, h, w in (grid // torch.tensor([1, merge, merge])).tolist():
        image_at = token + int((ids[token:] == image_id).nonzero()[0])
        text = torch.arange(image_at - token) + start
        positions.append(text.expand(3, -1))
        start += image_at - token
        cells = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).view(-1, 3).T
        positions.append(cells + start)
        start += max(h, w)
        token = image_at + t * h * w
    positions.append((torch.arange(len(ids) - token) + start).expand(3, -1))
    return torch.cat(positions, dim=1)


def collate(prompts: Sequence[EncodedPrompt], pad_id: int, device: torch.device) -> PromptBatch:
    """Put prompts one behind the other on ``device``; images stay in the order of their prompts."""
    return PromptBatch(
        ids=torch.cat([p.ids for p in prompts]).to(device),
        positions=torch.cat([p.positions for p in prompts], dim=1).to(device),
        pixels=torch.cat([p.pixels for p in prompts]),
        grid=torch.cat([p.grid for p in prompts]),
        image_digests=tuple(picture for p in prompts for picture in p.image_digests),
        lengths=tuple(len(p.ids) for p in prompts),
        pad_id=pad_id,
    )


def _digests(pixels: Float[Tensor, "patches features"], grid: Int[Tensor, "images 3"]) -> tuple[str, ...]:
    images = zip(pixels.split(grid.prod(1).tolist()), grid.tolist(), strict=True)
    return tuple(
        hashlib.blake2b(image.contiguous().numpy(), digest_size=16, key=str(shape).encode()).hexdigest()
        for image, shape in images
    )
