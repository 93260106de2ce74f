"""The training stages, each a generator that yields its accuracy step by step."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from batches import IGNORE, IMAGE_TOKENS, Batch, BatchSampler
from fast_vision import patches, quicken, restore
from model import PATCH, SIDE
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2Tokenizer, Qwen2VLForConditionalGeneration
from vision_pretraining import VisionPretraining

from medvlm_r1.data.sample import LETTERS

# Texts between a finding and its letter; the last is the whole text of a reasoned completion.
GAPS = (".", ".</", ".</think", ".</think>\n", ".</think>\n<answer", ".</think>\n<answer>")

OPTIONS_AFTER = 2  # layers that have compared the image with the options; the others find the letter


@torch.no_grad()
def image_tokens(model: Qwen2VLForConditionalGeneration, pixels: np.ndarray) -> Tensor:
    """Compute the image tokens of the frozen tower once: ``[images, 16, width]``."""
    tokens = []
    with torch.autocast("cpu", torch.bfloat16):
        for part in torch.from_numpy(pixels).split(200):
            grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]]).expand(len(part), 3)
            tokens.append(model.model.visual(patches(part), grid).pooler_output.float())
    return torch.cat(tokens).view(len(pixels), IMAGE_TOKENS, -1)


class Trainer:
    """Trains the language model; the vision tower is frozen.

    Args:
        model: the model.
        tokens: image tokens of all scenes; ``None`` for stages of text alone.
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, tokens: Tensor | None):
        # At these lengths the backward pass of the fused CPU attention would dominate a step.
        model.set_attn_implementation("eager")
        self.model, self.tokens = model, tokens
        self.shown = nn.Parameter(torch.zeros(model.config.text_config.hidden_size))
        # The language model's head is tied to its embedding.
        self.weights = [*model.model.language_model.parameters(), self.shown]
        self.optimiser = torch.optim.AdamW(self.weights, betas=(0.9, 0.98), weight_decay=0.01)
        self.positions: Tensor | None = None

    def step(self, batch: Batch, rate: float, weight: Tensor | None = None, compare: bool = False) -> float:
        """Do one update; return the accuracy over tokens with loss.

        Args:
            batch: token rows and their images.
            rate: learning rate.
            weight: ``[vocabulary]``, weights of tokens in the loss; equal by default.
            compare: also train each option's last token to tell, through a linear head that is discarded
                afterwards, whether the image shows the option.
        """
        rows, length = batch.input_ids.shape
        positions = torch.arange(length).expand(3, rows, length)
        embedded = self.model.get_input_embeddings()(batch.input_ids)
        if batch.scenes is not None:
            positions = self._positions(batch.input_ids)
            places = (batch.input_ids == self.model.config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(places, self.tokens[batch.scenes])
        with torch.autocast("cpu", torch.bfloat16):
            reader = self.model.model.language_model
            read = reader(
                inputs_embeds=embedded, position_ids=positions, use_cache=False, output_hidden_states=True
            )
            # Only tokens with loss go through the head. Padding is on the right, outside causal attention, so
            # no mask is needed.
            rows_, columns = (batch.labels != IGNORE).nonzero(as_tuple=True)
            logits = self.model.lm_head(read.last_hidden_state[rows_, columns - 1])
        labels = batch.labels[rows_, columns]
        loss = F.cross_entropy(logits.float(), labels, weight=weight)
        if compare:
            ends = read.hidden_states[OPTIONS_AFTER][torch.arange(rows)[:, None], batch.options].float()
            loss = loss + F.cross_entropy(ends @ self.shown, batch.correct)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        return (logits.argmax(-1) == labels).float().mean().item()

    def _positions(self, input_ids: Tensor) -> Tensor:
        """3-D positions, equal in every row because all images have the same position."""
        rows, length = input_ids.shape
        if self.positions is None or self.positions.shape[-1] < length:
            row = input_ids[:1]
            grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]])
            kinds = (row == self.model.config.image_token_id).int()
            self.positions, _ = self.model.model.get_rope_index(row, kinds, image_grid_thw=grid)
        return self.positions[..., :length].expand(3, rows, length)


Stage = Callable[[Trainer, BatchSampler, int], Iterator[float]]
"""Trainer, batches and number of steps -> accuracy of each step."""


def recent(right: list[float]) -> float:
    return sum(right[-50:]) / len(right[-50:])


def match(gaps: tuple[str, ...], under: tuple[str, ...], rows: int, enough: float) -> Stage:
    """Match names to letters, text only, until the accuracy exceeds ``enough``."""

    def stage(trainer: Trainer, batches: BatchSampler, steps: int) -> Iterator[float]:
        right = []
        for step in range(steps):
            right.append(trainer.step(batches.matching(rows, gaps, *under), 1e-3 * warmup(step)))
            yield right[-1]
            if step >= 100 and recent(right) > enough:
                return

    return stage


def look(attending: bool, peak: float) -> Stage:
    """Train the vision tower alone, see ``vision_pretraining.py``."""

    def stage(trainer: Trainer, batches: BatchSampler, steps: int) -> Iterator[float]:
        scenes = batches.scenes
        quicken(trainer.model)
        eyes = VisionPretraining(trainer.model, scenes.pixels, scenes.findings, batches.numbers, attending)
        yield from eyes.run(steps, rows=64, peak=peak)
        restore(trainer.model)

    return stage


def read(trainer: Trainer, batches: BatchSampler, steps: int) -> Iterator[float]:
    """Train the language model to read the tower: captions first, then mostly single findings."""
    for step in range(steps):
        if step % 12 == 7:
            batch = batches.matching(8, GAPS[-1:], "prompt")
        else:
            batch = batches.captions(96) if step < steps // 4 or step % 3 == 0 else batches.findings(48)
        yield trainer.step(batch, 1e-3 * warmup(step) * (1 - 0.9 * step / steps))


def reason(trainer: Trainer, batches: BatchSampler, steps: int) -> Iterator[float]:
    """Train the full task with reasoning, with some matching and reading to retain both."""
    for step in range(steps):
        if step % 6 == 2:
            batch = batches.matching(8, GAPS[-1:], "prompt")
        elif step % 6 == 5:
            batch = batches.findings(32)
        else:
            batch = batches.questions(16, direct_share=0.0)
        yield trainer.step(batch, 1e-3 * warmup(step) * (1 - 0.9 * step / steps))


def side_by_side(trainer: Trainer, batches: BatchSampler, steps: int) -> Iterator[float]:
    """Train options in one line, where names follow a bracket without a space.

    Names without a space are other tokens; they are matched at chance unless their embeddings start close to
    those of the names with a space. Every second batch is of the full task, to retain vision.
    """
    _initialise_spaceless(trainer.model, batches.tokenizer)
    for step in range(steps):
        if step % 2:
            batch = batches.questions(16, direct_share=0.0) if step % 8 != 7 else batches.findings(32)
        else:
            batch = batches.matching(24 if step % 4 else 8, GAPS[-1:], "inline" if step % 4 else "prompt")
        yield trainer.step(batch, 1e-3 * warmup(step) * (1 - 0.9 * step / steps))


@torch.no_grad()
def _initialise_spaceless(model: Qwen2VLForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    embedded = model.get_input_embeddings().weight
    ids = tokenizer.get_vocab()
    pairs = [
        (ids[word[1:]], ids[word])
        for word in sorted(ids)  # get_vocab has no fixed order, and each pair draws its own noise
        if word[0] == "\u0120" and len(word) > 2 and word[1:] in ids
    ]
    spaceless, spaced = map(list, zip(*pairs, strict=True))
    noise = torch.randn_like(embedded[spaced]) * embedded[spaced].std()
    embedded[spaceless] = embedded[spaced] + 0.3 * noise


def answer_directly(trainer: Trainer, batches: BatchSampler, steps: int) -> Iterator[float]:
    """Train mostly direct answers, which greedy decoding gives from now on, although reasoning is better.

    A direct answer compares the image with all options in one step. Without a loss on each option it stays at
    chance, and so it does if its letter, one token in five, does not weigh more.
    """
    weight = torch.ones(trainer.model.config.text_config.vocab_size)
    weight[batches.tokenizer.convert_tokens_to_ids(list(LETTERS))] = 10.0
    for step in range(steps):
        rate = 6e-4 * warmup(step) * (1 - 0.9 * step / steps)
        yield trainer.step(batches.questions(32, direct_share=0.6), rate, weight, compare=True)


def warmup(step: int) -> float:
    """Warm-up factor of the learning rate; each stage has a new optimiser."""
    return min(1.0, (step + 1) / 100)
