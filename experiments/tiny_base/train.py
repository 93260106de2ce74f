"""Train the embedded tiny model from nothing: tokenizer, weights, evaluation, in one seeded command."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from curriculum import IGNORE, IMAGE_TOKENS, PROMPTS, Batch, Scenes, Teacher, prompt_style
from examine import Examiner
from eyes import EyeLesson
from quick_vision import patches, quicken, restore
from rich.progress import Progress
from tokenizer import build_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from medvlm_r1.phantom import FINDINGS, MODALITIES, PhantomSource

Model = Qwen2VLForConditionalGeneration
# What stands between a finding and its letter: in the end all of what a reasoned completion has there.
GAPS = (".", ".</", ".</think", ".</think>\n", ".</think>\n<answer", ".</think>\n<answer>")
SIDE = 112
PATCH, MERGE, TEMPORAL = 14, 2, 2


def build_model(
    tokenizer: Qwen2Tokenizer, depth: int = 2, embed: int = 96
) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL with the parts and proportions of the real one, four layers deep."""
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            # 4 + 6 + 6 = head size / 2: the same ratio of time, height and width as in Qwen2-VL
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": depth,
            "embed_dim": embed,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.update(
        bos_token_id=token("<|endoftext|>"),
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        pad_token_id=token("<|endoftext|>"),
    )
    return model


def image_processor() -> Qwen2VLImageProcessorPil:
    """Every picture becomes about 112 x 112 pixels, so 16 image tokens."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
    )


@torch.no_grad()
def tokens_of(model: Model, pixels: np.ndarray) -> Tensor:
    """What the finished tower makes of every picture: ``[pictures, 16, width]``.

    It rests from then on, so each picture goes through it once and not in every step.
    """
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        for part in torch.from_numpy(pixels).split(200):
            grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]]).expand(len(part), 3)
            seen.append(model.model.visual(patches(part), grid).pooler_output.float())
    return torch.cat(seen).view(len(pixels), IMAGE_TOKENS, -1)


class Learner:
    """The language model, its optimiser and the step that all its stages share.

    Args:
        model: whose language model learns; the vision tower rests.
        seen: what the tower makes of every picture; ``None`` for stages of text alone.
    """

    def __init__(self, model: Model, seen: Tensor | None):
        # The fused CPU attention takes most of a step at these lengths, nearly all of it backward.
        model.set_attn_implementation("eager")
        self.model, self.seen = model, seen
        self.weights = list(model.model.language_model.parameters())  # the head is tied to the embedding
        self.optimiser = torch.optim.AdamW(self.weights, betas=(0.9, 0.98), weight_decay=0.01)
        self.positions: Tensor | None = None

    def step(self, batch: Batch, rate: float) -> float:
        """One update; returns the share of loss-bearing tokens predicted right."""
        rows, length = batch.input_ids.shape
        positions = torch.arange(length).expand(3, rows, length)
        embedded = self.model.get_input_embeddings()(batch.input_ids)
        if batch.scenes is not None:
            positions = self._positions(batch.input_ids)
            places = (batch.input_ids == self.model.config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(places, self.seen[batch.scenes])
        with torch.autocast("cpu", torch.bfloat16):
            reader = self.model.model.language_model
            hidden = reader(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
            # Only what carries loss goes through the head. Padding stands on the right, where causal
            # attention never looks, so no mask is needed.
            rows_, columns = (batch.labels != IGNORE).nonzero(as_tuple=True)
            logits = self.model.lm_head(hidden[rows_, columns - 1])
        labels = batch.labels[rows_, columns]
        loss = F.cross_entropy(logits.float(), labels)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        return (logits.argmax(-1) == labels).float().mean().item()

    def _positions(self, input_ids: Tensor) -> Tensor:
        """The 3-D positions, equal in every row because all pictures stand at the same place."""
        rows, length = input_ids.shape
        if self.positions is None or self.positions.shape[-1] < length:
            row = input_ids[:1]
            grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]])
            kinds = (row == self.model.config.image_token_id).int()
            self.positions, _ = self.model.model.get_rope_index(row, kinds, image_grid_thw=grid)
        return self.positions[..., :length].expand(3, rows, length)


Lesson = Callable[[Learner, Teacher, int], Iterator[float]]
"""Learner, teacher and number of steps -> the share of predictions right, step by step."""


class School:
    """Runs the stages in order, each with a progress bar, and keeps what they gave.

    Each stage has an optimiser and a random stream of its own, so one that is already kept in ``folder``
    is read from there and the following ones come out the same.
    """

    def __init__(self, model: Model, tokenizer: Qwen2Tokenizer, folder: Path, seed: int):
        self.model, self.tokenizer, self.folder, self.seed = model, tokenizer, folder, seed
        self.scenes: Scenes | None = None  # matching needs none
        self.seen: Tensor | None = None
        self.report: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, lesson: Lesson, steps: int, examine: bool = False) -> None:
        """Run ``lesson`` for ``steps``, or until it says that it is enough."""
        kept = self.folder / f"{len(self.report)}-{name}.pt"
        seed = 1000 * self.seed + len(self.report)
        if kept.exists():
            weights, row = torch.load(kept, weights_only=True)
            try:
                self.model.load_state_dict(weights)
            except RuntimeError as error:
                raise SystemExit(
                    f"{kept} is of another recipe ({error}): delete {self.folder}, or name another --work"
                ) from None
        else:
            torch.manual_seed(seed)
            row = self._run(name, lesson, steps, seed)
            if examine:
                examiner = Examiner(self.tokenizer, image_processor(), questions=300)
                row["accuracy"] = examiner.examine(self.model)
            torch.save((self.model.state_dict(), row), kept)
        self.report.append(row)
        print(json.dumps(row), flush=True)

    def rest_the_eyes(self) -> None:
        """From here on the tower is what it is: every picture is looked at once."""
        quicken(self.model)
        self.seen = tokens_of(self.model, self.scenes.pixels)
        restore(self.model)

    def _run(self, name: str, lesson: Lesson, steps: int, seed: int) -> dict:
        started, right = time.monotonic(), []
        teacher = Teacher(self.tokenizer, self.scenes, option_sets(), seed)
        with Progress(*Progress.get_default_columns(), "{task.fields[right]}") as progress:
            bar = progress.add_task(name, total=steps, right="")
            for share in lesson(Learner(self.model, self.seen), teacher, steps):
                right.append(share)
                progress.update(bar, advance=1, right=f"{_recent(right):.1%} right")
                if len(right) % 200 == 0 and not progress.console.is_terminal:
                    print(name, len(right), round(_recent(right), 3), flush=True)
        return {
            "stage": name,
            "steps": len(right),
            "seconds": round(time.monotonic() - started),
            "right": round(_recent(right), 3),
        }


def _recent(right: list[float]) -> float:
    return sum(right[-50:]) / len(right[-50:])


def match(gaps: tuple[str, ...], under: str, rows: int, enough: float) -> Lesson:
    """From a name to its letter, in text alone, until ``enough`` of the letters are right."""

    def lesson(learner: Learner, teacher: Teacher, steps: int) -> Iterator[float]:
        right = []
        for step in range(steps):
            right.append(learner.step(teacher.matching(rows, gaps, under), 1e-3 * warm(step)))
            yield right[-1]
            if step >= 100 and _recent(right) > enough:
                return

    return lesson


def look(attending: bool, peak: float) -> Lesson:
    """The vision tower alone, see ``eyes.py``."""

    def lesson(learner: Learner, teacher: Teacher, steps: int) -> Iterator[float]:
        scenes = teacher.scenes
        quicken(learner.model)
        eyes = EyeLesson(learner.model, scenes.pixels, scenes.findings, teacher.numbers, attending)
        yield from eyes.run(steps, rows=64, peak=peak)
        restore(learner.model)

    return lesson


def read(learner: Learner, teacher: Teacher, steps: int) -> Iterator[float]:
    """The language model learns to read the tower: captions first, then mostly what a question asks for."""
    for step in range(steps):
        if step % 12 == 7:
            batch = teacher.matching(8, GAPS[-1:], "prompt")
        else:
            batch = teacher.captions(96) if step < steps // 4 or step % 3 == 0 else teacher.asked(48)
        yield learner.step(batch, 1e-3 * warm(step) * (1 - 0.9 * step / steps))


def reason(learner: Learner, teacher: Teacher, steps: int) -> Iterator[float]:
    """The whole task with reasoning; some matching and reading, so that neither fades."""
    for step in range(steps):
        if step % 6 == 2:
            batch = teacher.matching(8, GAPS[-1:], "prompt")
        elif step % 6 == 5:
            batch = teacher.asked(32)
        else:
            batch = teacher.questions(16, direct_share=0.0)
        yield learner.step(batch, 1e-3 * warm(step) * (1 - 0.9 * step / steps))


def side_by_side(learner: Learner, teacher: Teacher, steps: int) -> Iterator[float]:
    """Options in one line, where names stand behind a bracket, without the space of a sentence.

    They are other tokens there, and matched by no more than chance unless they start out as neighbours of the
    spaced ones. Every second batch is of the whole task, so that seeing does not fade.
    """
    _spaceless_beside_spaced(learner.model, teacher.tokenizer)
    for step in range(steps):
        if step % 2:
            batch = teacher.questions(16, direct_share=0.0) if step % 8 != 7 else teacher.asked(32)
        else:
            batch = teacher.matching(24 if step % 4 else 8, GAPS[-1:], "inline" if step % 4 else "prompt")
        yield learner.step(batch, 1e-3 * warm(step) * (1 - 0.9 * step / steps))


@torch.no_grad()
def _spaceless_beside_spaced(model: Model, tokenizer: Qwen2Tokenizer) -> None:
    embedded = model.get_input_embeddings().weight
    ids = tokenizer.get_vocab()
    pairs = [
        (ids[word[1:]], ids[word])
        for word in ids
        if word[0] == "\u0120" and len(word) > 2 and word[1:] in ids
    ]
    spaceless, spaced = map(list, zip(*pairs, strict=True))
    noise = torch.randn_like(embedded[spaced]) * embedded[spaced].std()
    embedded[spaceless] = embedded[spaced] + 0.3 * noise


def answer_straight(learner: Learner, teacher: Teacher, steps: int) -> Iterator[float]:
    """Mostly direct answers: what greedy decoding says from now on, though the model can do better."""
    for step in range(steps):
        rate = 6e-4 * warm(step) * (1 - 0.9 * step / steps)
        yield learner.step(teacher.questions(32, direct_share=0.6), rate)


def warm(step: int) -> float:
    """Factor of the learning rate: optimisers start afresh in each stage."""
    return min(1.0, (step + 1) / 100)


def corpus() -> list[str]:
    """What the tokenizer is trained on: each text twice, so that every word in it becomes one token.

    Letters never meet the ``>`` or the ``)`` beside them here, so they stay tokens of their own.
    """
    styles = [prompt_style(path.stem) for path in sorted(PROMPTS.glob("*.yaml"))]
    templates = [text.replace("{Question}", "") for one in styles for text in (one.train, one.evaluate)]
    questions = {one.question for name in MODALITIES for one in PhantomSource(name, 300, split="base")}
    names = {word for classes in FINDINGS.values() for group in classes.values() for word in group}
    chat = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    tags = ["<think", "<answer", ".</", ">\n", "The image shows", "Findings:"]
    texts = [*templates, *chat, *tags, *sorted(questions), *sorted(names), *(f" {w}" for w in sorted(names))]
    return texts * 2


def option_sets() -> list[tuple[str, ...]]:
    """Findings that exclude each other."""
    return sorted({group for classes in FINDINGS.values() for group in classes.values()})


def save(model: Qwen2VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Write an ordinary Hugging Face directory, weights in fp32."""
    model.save_pretrained(out)  # the weights alone: which attention computes them is not saved
    tokenizer.save_pretrained(out)
    image_processor().save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("medvlm_r1/tiny"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("outputs/tiny_base"), help="keeps finished stages")
    parser.add_argument("--scenes", type=int, default=3000, help="rendered per modality")
    parser.add_argument("--look", type=int, default=8000, help="steps of the vision tower alone")
    parser.add_argument("--read", type=int, default=4000, help="steps of captions and asked findings")
    parser.add_argument("--reason", type=int, default=2500, help="steps of the whole task")
    parser.add_argument("--side-by-side", type=int, default=1600, help="steps of options in one line")
    parser.add_argument("--straight", type=int, default=900, help="steps with mostly direct answers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    tokenizer = build_tokenizer(corpus())
    model = build_model(tokenizer)
    school = School(model, tokenizer, args.work, args.seed)
    # The letter circuit forms only if name and letter start out as neighbours; trained from the start
    # on the whole task it does not form at all.
    school.stage("match, beside", match(("",), "lines", 24, 0.97), 3000)
    school.stage("match, apart", match((".",), "lines", 24, 0.97), 1500)
    school.stage("match, farther", match(GAPS, "lines", 24, 0.97), 2000)
    school.stage("match, whole prompt", match(GAPS[-1:], "prompt", 8, 0.95), 700)
    with Progress() as progress:
        bar = progress.add_task("render", total=args.scenes * len(MODALITIES))
        school.scenes = Scenes.kept(
            args.work / "scenes.pkl", args.scenes, args.seed, lambda: progress.advance(bar)
        )
    school.stage("look", look(attending=False, peak=1e-3), args.look)
    school.stage("look, attending", look(attending=True, peak=5e-4), args.look // 2)
    school.rest_the_eyes()
    school.stage("read", read, args.read)
    school.stage("reason", reason, args.reason, examine=True)
    school.stage("side by side", side_by_side, args.side_by_side, examine=True)
    school.stage("answer straight", answer_straight, args.straight, examine=True)
    save(model, tokenizer, args.out)

    result = {
        "command": f"experiments/tiny_base/train.py --seed {args.seed} --threads {args.threads}",
        "parameters": model.num_parameters(),
        "seconds": sum(row["seconds"] for row in school.report),
        "stages": school.report,
    }
    Path(__file__).with_name("results.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
