"""Build the base model of this experiment: SmolLM2 with a vision tower trained on real pictures.

One seeded command; a finished stage is saved in --work and not repeated.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MethodType

import numpy as np
import smollm2
import torch
from base_pictures import augment, load_grey, patches, read_pictures, split_rows
from base_texts import STYLES, QuestionPool, caption, completion
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from medvlm_r1.algorithms.optim import MasterWeights
from medvlm_r1.data.sample import Question
from medvlm_r1.policy.encode import Encoder, collate
from medvlm_r1.policy.forward.logprobs import packed_logprobs
from medvlm_r1.policy.forward.vision_attention import encode_images
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.prompt_record import record_from_config
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.runs.durable import replace_file, write_whole
from medvlm_r1.runs.progress import track

HELD_OUT = 10  # every tenth picture only measures the tower
LETTER_WEIGHT = 4.0  # of a letter's loss; a direct answer has one in seven tokens
STYLE_WEIGHT = {"reasoned": 0.5, "direct": 0.25, "loose": 0.25}  # hence how often the base uses each
DESCRIBE = PromptStyle("describe", "{Question}", "{Question}", open="{Question}")


class AnyPicture:
    """A stand-in in the encoder: the pixels come from :func:`augment`."""

    name = "any"

    def load(self) -> Image.Image:
        return Image.new("RGB", (smollm2.SIDE, smollm2.SIDE))


class FactHeads(nn.Module):
    """A classifier per fact that reads the image tokens by attention, as the language model will."""

    def __init__(self, classes: dict[str, list[str]], width: int):
        super().__init__()
        self.classes = classes
        self.query = nn.Parameter(torch.randn(1, len(classes), width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 8, batch_first=True)
        self.answers = nn.ModuleList(nn.Linear(width, len(names)) for names in classes.values())

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """``[pictures, tokens, width]`` -> for each fact ``[pictures, classes]``."""
        seen = self.norm(tokens)
        read, _ = self.attention(self.query.expand(len(seen), -1, -1), seen, seen, need_weights=False)
        return [answer(read[:, i]) for i, answer in enumerate(self.answers)]


class BaseTraining:
    """The model, its pictures, and the stages: look, describe, answer."""

    def __init__(self, model: nn.Module, encoder: Encoder, rows: Path, images: Path, style: PromptStyle):
        self.policy = Policy(model.to(torch.bfloat16).train(), encoder)
        self.tower, self.reader = model.model.visual, model.model.language_model
        pictures, samples = read_pictures(rows, images)
        self.pictures, self.pool, self.style = pictures, QuestionPool.of(samples), style
        self.grey = load_grey(samples, pictures)
        held_out = np.arange(len(pictures)) % HELD_OUT == 0
        self.train, self.test = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw pictures: half with a finding, a quarter of another modality than MRI, the rest any."""
        diseased = [i for i in self.train if self.pictures[i].finding]
        others = [i for i in self.train if self.pictures[i].modality != "MRI"] or self.train
        parts = (diseased, n // 2), (others, n // 4), (self.train, n - n // 2 - n // 4)
        return np.concatenate([rng.choice(part, count) for part, count in parts])

    def tokens(self, grey: Tensor) -> Tensor:
        """Image tokens ``[pictures, tokens, width]`` of the tower."""
        side = smollm2.SIDE // smollm2.PATCH
        values = self.policy.encoder.pixel_values(patches(grey)).to(torch.bfloat16)
        grid = torch.tensor([[1, side, side]]).expand(len(grey), 3)
        return torch.stack(encode_images(self.policy.model, values, grid))

    def look(self, steps: int, rng: np.random.Generator) -> Iterator[float]:
        """Train the tower with a head for each fact; yields the share of right facts."""
        names = ("modality", "region", "abnormal", "tumour")
        classes = {n: sorted({p.facts[n] for p in self.pictures if n in p.facts}) for n in names}
        heads = self.heads = FactHeads(classes, self.reader.config.hidden_size)
        optimiser = _adamw([*self.tower.parameters(), *heads.parameters()], weight_decay=0.05)
        for step in range(steps):
            chosen = self.draw(rng, 48)
            scores = heads(self.tokens(augment(self.grey[chosen], rng)).float())
            loss, right = self._score(scores, chosen)
            _descend(optimiser, loss, 1e-3 * _schedule(step, steps))
            yield right

    def _score(self, scores: list[Tensor], chosen: np.ndarray) -> tuple[Tensor, float]:
        losses, right = [], []
        for (name, classes), score in zip(self.heads.classes.items(), scores, strict=True):
            facts = [self.pictures[i].facts.get(name) for i in chosen]
            gold = torch.tensor([classes.index(fact) if fact else -100 for fact in facts])
            losses.append(F.cross_entropy(score, gold, ignore_index=-100, reduction="sum") / len(chosen))
            right += (score.argmax(-1) == gold)[gold >= 0].tolist()
        return torch.stack(losses).sum(), float(np.mean(right))

    @torch.no_grad()
    def held_out_accuracy(self) -> dict[str, float]:
        """Accuracy of the heads on the held-out pictures, by fact."""
        scores = self.heads(self.tokens(self.grey[self.test]).float())
        result = {}
        for (name, classes), score in zip(self.heads.classes.items(), scores, strict=True):
            facts = [self.pictures[i].facts.get(name) for i in self.test]
            right = [
                classes[k] == fact for k, fact in zip(score.argmax(-1).tolist(), facts, strict=True) if fact
            ]
            result[name] = round(float(np.mean(right)), 3)
            result[f"{name}_n"] = len(right)
        return result

    def describe(self, steps: int, rng: np.random.Generator) -> Iterator[float]:
        """Train tower and merger to be described by the frozen language model."""
        self.policy.model.requires_grad_(False)
        self.tower.requires_grad_(True)
        optimiser = _adamw(self.tower.parameters(), weight_decay=0.01)
        for step in range(steps):
            chosen = self.draw(rng, 16)
            asked = [Question("q", (AnyPicture(),), "Describe the image.", ()) for _ in chosen]
            texts = [[caption(self.pictures[i], rng)] for i in chosen]
            ones = torch.ones(len(chosen))
            yield self._step(
                optimiser, chosen, asked, texts, ones, DESCRIBE, 1e-3 * _schedule(step, steps), rng
            )

    def answer(self, steps: int, rng: np.random.Generator) -> Iterator[float]:
        """Train all weights on questions, with a completion of each style per question."""
        self.policy.model.requires_grad_(True)
        optimiser = _adamw(self.policy.model.parameters(), weight_decay=0.0)
        for step in range(steps):
            chosen = self.draw(rng, 8)
            asked = [self.pool.ask(self.pictures[i], AnyPicture(), rng) for i in chosen]
            pairs = list(zip(asked, (self.pictures[i] for i in chosen), strict=True))
            texts = [[completion(style, *pair, rng) for style in STYLES] for pair in pairs]
            weights = torch.tensor([STYLE_WEIGHT[style] for style in STYLES]).repeat(len(chosen))
            yield self._step(
                optimiser, chosen, asked, texts, weights, self.style, 1e-4 * _schedule(step, steps), rng
            )

    def _step(self, optimiser, chosen, asked, texts, weights, style, rate, rng) -> float:
        """Do one update; return the mean probability of a completion's token."""
        encoder, memo = self.policy.encoder, {}
        prompts = [encoder.encode(question, "train", style, memo=memo) for question in asked]
        batch = collate(prompts, self.policy.pad_id, self.policy.device)
        rows = [self._target(text) for own in texts for text in own]
        tokens = pad_sequence([ids for ids, _ in rows], True, self.policy.pad_id)
        loss_weights = pad_sequence([each for _, each in rows], True) * weights[:, None]
        features = [[picture] for picture in self.tokens(augment(self.grey[chosen], rng))]
        lengths = [len(ids) for ids, _ in rows]
        model, banned = self.policy.model, self.policy.banned
        logprobs, _ = packed_logprobs(model, batch, features, tokens, lengths, banned, 1.0)
        mask = loss_weights > 0
        loss = -(torch.where(mask, logprobs, 0.0) * loss_weights).sum() / loss_weights.sum()
        _descend(optimiser, loss, rate)
        return logprobs.detach()[mask].exp().mean().item()

    def _target(self, text: str) -> tuple[Tensor, Tensor]:
        """Token ids of a completion with its end of turn, and the weight of each in the loss."""
        encoded = self.policy.encoder.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids = torch.tensor([*encoded["input_ids"], self.policy.encoder.tokenizer.eos_token_id])
        weights = torch.ones(len(ids))
        if "<answer>" in text:
            letter = text.index("<answer>") + len("<answer>")
            weights[[start for start, _ in encoded["offset_mapping"]].index(letter)] = LETTER_WEIGHT
        return ids, weights


def _adamw(parameters, weight_decay: float) -> MasterWeights:
    return MasterWeights(
        parameters, partial(torch.optim.AdamW, betas=(0.9, 0.98), weight_decay=weight_decay), 0.0
    )


def _schedule(step: int, steps: int) -> float:
    """Share of the peak rate: 30 steps of warm-up, then linear to a tenth."""
    return min(1.0, (step + 1) / 30) * (1 - 0.9 * step / steps)


def _descend(optimiser: MasterWeights, loss: Tensor, rate: float) -> None:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


def quicken(tower: nn.Module) -> None:
    """Embed patches by one matrix product: the strided convolution takes most of a step on a CPU."""
    embed = tower.patch_embed
    embed.forward = MethodType(lambda self, x: F.linear(x, self.proj.weight.flatten(1)), embed)


def run_stage(training: BaseTraining, name: str, steps: int, work: Path, seed: int) -> dict:
    """Run a stage, or load the weights that it left in ``work``."""
    saved = work / f"{name}-{steps}.pt"
    if saved.is_file():
        weights, row = torch.load(saved, weights_only=True)
        training.policy.model.load_state_dict(weights)
        print(json.dumps(row | {"loaded": True}), flush=True)
        return row
    rng = np.random.default_rng([seed, *name.encode()])
    torch.manual_seed(seed)
    started, recent = time.monotonic(), []
    for value in track(getattr(training, name)(steps, rng), f"stage {name}", total=steps):
        recent.append(value)
        if len(recent) % 25 == 0:
            print(name, len(recent), round(float(np.mean(recent[-25:])), 3), flush=True)
    row = {"stage": name, "steps": steps, "seconds": round(time.monotonic() - started)}
    row["recent"] = round(float(np.mean(recent[-25:])), 3)
    if name == "look":
        row["held_out"] = training.held_out_accuracy()
    with replace_file(saved) as partial_file:
        torch.save((training.policy.model.state_dict(), row), partial_file)
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("MEDVLM_R1_REAL_DATA")
    parser.add_argument("--data", type=Path, default=data, help="default: $MEDVLM_R1_REAL_DATA")
    parser.add_argument("--out", type=Path, default=Path("outputs/smollm2_vl"))
    parser.add_argument("--work", type=Path, default=Path("outputs/real_language"), help="finished stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--look", type=int, default=600, help="steps of the vision tower alone")
    parser.add_argument("--describe", type=int, default=60, help="steps with the language model frozen")
    parser.add_argument("--answer", type=int, default=80, help="steps of all weights")
    args = parser.parse_args()
    if args.data is None or not (args.data / "train_mri.json").is_file():
        parser.error("no train_mri.json: set --data or MEDVLM_R1_REAL_DATA to the folder that holds it")
    try:
        smollm2.weights_folder()
    except smollm2.MissingPackageError as error:
        parser.error(str(error))
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    split = args.work / "split.json"
    if not split.is_file():
        write_whole(split, json.dumps(split_rows(args.data, args.work, args.seed)) + "\n")
    tokenizer = smollm2.load_tokenizer()
    model = smollm2.wrap(smollm2.load_llama(), tokenizer, smollm2.VISION)
    processor = smollm2.image_processor()
    record, _ = record_from_config("outputs/smollm2_vl", "medvlm_r1")
    encoder = Encoder(tokenizer, processor, 1024, smollm2.SIDE)
    training = BaseTraining(model, encoder, args.work / "base.json", args.data, record.prompt)
    quicken(training.tower)
    rows = [
        run_stage(training, n, getattr(args, n), args.work, args.seed) for n in ("look", "describe", "answer")
    ]
    training.policy.save(args.out)
    result = {
        "command": " ".join(["experiments/real_language/base.py", *sys.argv[1:]]),
        "parameters": model.num_parameters(),
        "rows": json.loads(split.read_text()),
        "seconds": sum(row["seconds"] for row in rows),
        "stages": rows,
    }
    write_whole(Path(__file__).with_name("results.json"), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
