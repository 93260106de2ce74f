"""Training batches of the tiny model: token sequences with loss on completions only.

Four kinds: captions and findings (reading the vision tower, in a fixed order or by question), matching (from
a name to its letter) and questions (the full task). All rows of a batch start with the same chat prefix, so
the image is at the same position in each, rows are padded on the right, and share one table of positions.
"""

import pickle
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import Qwen2Tokenizer

from medvlm_r1.data.sample import LETTERS, VQASample
from medvlm_r1.phantom import FINDINGS, MODALITIES, QUESTION_TYPES, PhantomSource
from medvlm_r1.prompts import PromptStyle

IMAGE_TOKENS = 16  # per image of 112 x 112: 8 x 8 patches, merged 2 x 2
IGNORE = -100
# Scenes of a modality per scene of the others: lesions of the retina are small, and harder to recognise.
SCENES = {"fundus": 2, "oct": 2}
TEMPLATES = {"medvlm_r1": 60, "med_r1": 20, "med_r1_no_think": 10, "med_r1_think_after": 10}  # per cent
PROMPTS = Path(__file__).parents[2] / "conf" / "prompt"


@lru_cache
def prompt_style(name: str) -> PromptStyle:
    """Load the prompt option ``name`` of the project's configuration."""
    option = OmegaConf.to_container(OmegaConf.load(PROMPTS / f"{name}.yaml"))
    return PromptStyle(**{key: value for key, value in option.items() if key != "_target_"})


def reasoned(finding: str, letter: str) -> str:
    """A completion that names the finding before the answer."""
    return f"<think>The image shows {finding}.</think>\n<answer>{letter}</answer>"


def answered_first(finding: str, letter: str) -> str:
    """A completion that names the finding after the answer."""
    return f"{direct(letter)}\n<think>The image shows {finding}.</think>"


def direct(letter: str) -> str:
    """A completion that is the answer alone."""
    return f"<answer>{letter}</answer>"


@dataclass(frozen=True)
class Scenes:
    """Rendered images with their findings.

    Attributes:
        pixels: ``[scenes, 112, 112, 3]``, uint8.
        findings: classes of each scene, in a fixed order of question types.
        samples: the question of each scene.
    """

    pixels: np.ndarray
    findings: list[tuple[str, ...]]
    samples: list[VQASample]

    @classmethod
    def cached(cls, file: Path, per_modality: int, seed: int, advance: Callable[[], None]) -> "Scenes":
        """Load the scenes from ``file``, or render and save them."""
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as cached:
                pickle.dump(cls.render(per_modality, seed, advance), cached, protocol=5)
        with file.open("rb") as cached:
            return pickle.load(cached)

    @classmethod
    def render(cls, per_modality: int, seed: int, advance: Callable[[], None]) -> "Scenes":
        """Render the ``base`` split; calls ``advance`` after each image."""
        # A quarter asks for the attribute, mostly the number of lesions: in the mixture of all types too few
        # scenes have more than one lesion to learn counting.
        samples = []
        for modality in MODALITIES:
            number = per_modality * SCENES.get(modality, 1)
            counting = number // 4
            samples += PhantomSource(modality, number - counting, "base", seed)
            samples += PhantomSource(modality, counting, "base", seed + 1_000_000, (QUESTION_TYPES[-1],))
        pixels = np.empty((len(samples), 112, 112, 3), np.uint8)
        with ProcessPoolExecutor() as workers:
            for i, picture in enumerate(workers.map(_picture, samples, chunksize=32)):
                pixels[i] = picture
                advance()
        # The organ is last: scenes of several lesions have none, and no other word changes position.
        types = [*QUESTION_TYPES[1:], QUESTION_TYPES[0]]
        truths = [sample.images[0].findings() for sample in samples]
        return cls(pixels, [tuple(t[name] for name in types if name in t) for t in truths], samples)


def _picture(sample: VQASample) -> np.ndarray:
    return np.asarray(sample.images[0].load())


@dataclass(frozen=True)
class Batch:
    """Token rows and their images.

    Attributes:
        input_ids: ``[rows, length]``, padded on the right.
        labels: ``[rows, length]``, the token if it has loss, else ``IGNORE``.
        scenes: ``[rows]``, index of each row's image; ``None`` for text alone.
        options: ``[rows, 4]``, column of each option's last token; ``None`` if nothing is asked.
        correct: ``[rows]``, index of the correct option.
    """

    input_ids: Tensor
    labels: Tensor
    scenes: Tensor | None
    options: Tensor | None = None
    correct: Tensor | None = None


class Piece(NamedTuple):
    """A part of a row."""

    text: str
    has_loss: bool = False
    ends_option: bool = False


def _format_options(lettered: list[tuple[str, str]], layout: str) -> str:
    """Format options in a prompt's layout; inline has no space before a name."""
    if layout == "inline":
        return ", ".join(f"{letter}){option}" for letter, option in lettered)
    return "\n".join(f"{letter}) {option}" for letter, option in lettered)


class BatchSampler:
    """Draws batches from ``random``; ``numbers`` is a random generator for callers that draw images."""

    def __init__(
        self, tokenizer: Qwen2Tokenizer, scenes: Scenes | None, words: list[tuple[str, ...]], seed: int
    ):
        """``words``: groups of mutually exclusive findings, the options of matching."""
        self.tokenizer, self.scenes, self.words = tokenizer, scenes, words
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.encode = lru_cache(maxsize=10_000)(lambda text: tokenizer(text)["input_ids"])
        self.all_words = sorted({word for group in words for word in group})
        self.wordings: dict[tuple[str, str], list[str]] = {}  # (modality, question type) -> wordings
        for sample in scenes.samples if scenes else []:
            known = self.wordings.setdefault((sample.modality, sample.question_type), [])
            if sample.question not in known:
                known.append(sample.question)

    # Kinds of batches ------------------------------------------------------------------------------

    def captions(self, rows: int) -> Batch:
        """Image, then all its findings in fixed order: five supervised words per image."""
        index = [self.random.randrange(len(self.scenes.findings)) for _ in range(rows)]
        completions = [" " + " ".join(self.scenes.findings[i]) for i in index]
        chat = Piece(self._chat("Findings:", True))
        return self._batch([[chat, Piece(text, has_loss=True)] for text in completions], index)

    def findings(self, rows: int) -> Batch:
        """Image, then a question for each of its findings in random order, answered in words."""
        index = [self.random.randrange(len(self.scenes.findings)) for _ in range(rows)]
        return self._batch([self._findings(self.scenes.samples[i]) for i in index], index)

    def matching(self, rows: int, gaps: tuple[str, ...], *under: str) -> Batch:
        """Text only: lettered options, then every option's name with its letter, in random order.

        Args:
            rows: sequences in the batch.
            gaps: texts between a name and its letter; each row draws one.
            under: ``lines`` or ``inline``: the options alone in that layout; ``prompt``: a full prompt;
                ``part``: some of its words before and after the options. Of several, each row draws one.
        """
        draw = self.random.choice
        return self._batch([self._match(draw(gaps), draw(under)) for _ in range(rows)], None)

    def questions(self, rows: int, direct_share: float) -> Batch:
        """The full task: image and prompt, then a reasoned or (at random) a direct completion."""
        index, pieces, correct = [], [], []
        for _ in range(rows):
            scene = self.random.randrange(len(self.scenes.findings))
            style, phase = self._template()
            sample = self.shuffled(self.scenes.samples[scene])
            short = style.name == "med_r1_no_think" or self.random.random() < direct_share
            reason = answered_first if style.name == "med_r1_think_after" else reasoned
            completion = direct(sample.answer) if short else reason(sample.answer_text, sample.answer)
            index.append(scene)
            correct.append(sample.letters.index(sample.answer))
            pieces.append([*self._prompt(sample, style, phase), Piece(completion + "<|im_end|>", True)])
        return replace(self._batch(pieces, index), correct=torch.tensor(correct))

    # Parts of batches -------------------------------------------------------------------------------

    def shuffled(self, sample: VQASample) -> VQASample:
        """Shuffle the options, so that letters must be read from the prompt."""
        options = self.random.sample(sample.options, len(sample.options))
        return replace(sample, options=tuple(options), answer=LETTERS[options.index(sample.answer_text)])

    def _prompt(self, sample: VQASample, style: PromptStyle, phase: str) -> list[Piece]:
        """Split the chat after each option; a word ends there, so the tokens stay the same."""
        chat = self.tokenizer.apply_chat_template(
            style.render(sample, phase), tokenize=False, add_generation_prompt=True
        )
        pieces, start = [], 0
        end = chat.index(sample.question) + len(sample.question)
        for letter, option in zip(sample.letters, sample.options, strict=True):
            shown = _format_options([(letter, option)], style.layout)
            end = chat.index(shown, end) + len(shown)
            pieces.append(Piece(chat[start:end], ends_option=True))
            start = end
        return [*pieces, Piece(chat[start:])]

    def _findings(self, sample: VQASample) -> list[Piece]:
        truths = sample.images[0].findings()
        pieces = [Piece(self._chat("Findings:", True))]
        for kind in self.random.sample(sorted(truths), len(truths)):
            wording = self.random.choice(self.wordings[sample.modality, kind])
            pieces += [Piece(f"{wording} The image shows"), Piece(f" {truths[kind]}", has_loss=True)]
        return pieces

    def _template(self) -> tuple[PromptStyle, str]:
        name = self.random.choices(*zip(*TEMPLATES.items(), strict=True))[0]
        return prompt_style(name), self.random.choice(("train", "evaluate"))

    def _match(self, gap: str, under: str) -> list[Piece]:
        # Half of the option sets mix all groups, so that the model learns to match, not to remember sets.
        group = self.all_words if self.random.random() < 0.5 else self.random.choice(self.words)
        options = self.random.sample(group, min(4, len(group)))
        lettered = list(zip(LETTERS, options, strict=False))
        if under in ("prompt", "part"):
            style, phase = self._template()
            template = style.train if phase == "train" else style.evaluate
            option_list = _format_options(lettered, style.layout)
            problem = "? " + option_list if style.layout == "inline" else f"?\n{option_list}"
            prompt = self._chat(template.replace("{Question}", problem), False)
            if under == "part":  # a random share of the words before and after
                before, after = (text.split(" ") for text in prompt.split(problem))
                share = self.random.random()
                before = before[len(before) - round(share * len(before)) :]
                prompt = " ".join(before) + problem + " ".join(after[: round(share * len(after))])
        else:
            # A letter in first place would be the token that all attend to when they look for nothing.
            prompt = "?\n" + _format_options(lettered, under) + "\n"
        queries = self.random.sample(lettered, len(lettered)) + self.random.sample(lettered, len(lettered))
        pieces = [Piece(prompt)]
        for letter, option in queries:
            pieces += [Piece(f" {option}{gap}"), Piece(letter, has_loss=True)]
        return pieces

    def _chat(self, text: str, image: bool) -> str:
        content = [*([{"type": "image"}] if image else []), {"type": "text", "text": text}]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    def _batch(self, rows: list[list[Piece]], index: list[int] | None) -> Batch:
        encoded, options = [], []
        for pieces in rows:
            ids, labels, ends = [], [], []
            for piece in pieces:
                new = self.encode(piece.text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS))
                ids += new
                labels += new if piece.has_loss else [IGNORE] * len(new)
                if piece.ends_option:
                    ends.append(len(ids) - 1)
            encoded.append((ids, labels))
            options.append(ends)
        length = max(len(ids) for ids, _ in encoded)
        pad = self.tokenizer.pad_token_id
        return Batch(
            torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in encoded]),
            torch.tensor([labels + [IGNORE] * (length - len(labels)) for _, labels in encoded]),
            None if index is None else torch.tensor(index),
            torch.tensor(options) if options[0] else None,
        )


def option_groups() -> list[tuple[str, ...]]:
    """Return the groups of mutually exclusive findings."""
    return sorted({group for classes in FINDINGS.values() for group in classes.values()})
