"""What of a configuration a plan depends on."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from medvlm_r1.data.sample import VQASample
from medvlm_r1.evaluate.controls import PRIOR, controls_of
from medvlm_r1.plan.cards import Card, card_named
from medvlm_r1.plan.measure import Lengths
from medvlm_r1.policy.loading.architecture import load_config, text_tokens
from medvlm_r1.policy.loading.load import Recipe
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.prompts import PromptStyle

# A question of ordinary length, for the text beside the image.
_TYPICAL = VQASample(
    id="typical",
    images=(None,),
    question="What abnormality is visible in the left temporal lobe on this T2-weighted MRI image?",
    options=("Meningioma", "Ischemic stroke", "Arachnoid cyst", "No abnormality"),
    answer="C",
    modality="mri",
    question_type="Disease Diagnosis",
    source="typical",
    image_group="typical",
)
_METHODS = {"GRPO": "grpo", "SFT": "sft", "VLMModule": "zero_shot"}
# The test file of the papers: 300 questions each on MRI, CT and X-ray.
_PUBLISHED_TEST = 900


@dataclass(frozen=True)
class Workload:
    """One run, as far as memory and time depend on it.

    Attributes:
        path, revision, recipe, tuning: of the model option.
        method: grpo, sft or zero_shot.
        keeps_reference: whether GRPO compares with the starting weights (beta above 0).
        passes: passes over one rollout; ``updates`` optimiser steps in them.
        scores_before: whether the policy's log-probabilities are computed once more, before the first update.
        redraws: rounds in which groups without reward spread are replaced, at most.
        micro_batch, group_size, completion: of training; the last one in tokens, at most.
        answer: tokens of an answer in evaluation, at most.
        optimizer: full name of its constructor; ``momentum`` of SGD.
        layout: of log-probability passes.
        shares_prefix: whether rollouts read each prompt once, not once per completion.
        strategy: how devices share: single, ddp, fsdp or zero2.
        world: devices in all.
        steps: training steps; ``None`` if the number of questions is not in the configuration.
        evaluations: greedy answers over the whole run, under all controls; ``None`` likewise.
        text, exact_text: tokens of a typical prompt besides its image; whether they were counted by the
            checkpoint's tokenizer.
        image: tokens of the largest image; ``grid`` its patches down and across.
        card: what it is planned for.
    """

    path: str
    revision: str | None
    recipe: Recipe
    tuning: Tuning
    method: Literal["grpo", "sft", "zero_shot"]
    keeps_reference: bool
    passes: int
    updates: int
    scores_before: bool
    redraws: int
    micro_batch: int
    group_size: int
    completion: int
    answer: int
    optimizer: str
    momentum: float
    layout: str
    shares_prefix: bool
    strategy: Literal["single", "ddp", "fsdp", "zero2"]
    world: int
    steps: int | None
    evaluations: int | None
    text: int
    exact_text: bool
    image: int
    grid: tuple[int, int]
    card: Card

    @property
    def prompt(self) -> int:
        """Tokens of the longest planned prompt."""
        return self.image + self.text

    @property
    def prompts(self) -> int:
        """Prompts of one step on one device."""
        return self.recipe.prompts_per_step // self.world

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of one step on one device."""
        return math.ceil(self.prompts / self.micro_batch)

    @property
    def mean(self) -> int:
        """Tokens of a completion that times are estimated with: half of the limit; SFT's are known."""
        return self.completion if self.method == "sft" else max(1, self.completion // 2)

    def lengths(self, prompts: int, group_size: int, completion: int) -> Lengths:
        return Lengths(prompts, group_size, self.prompt, completion, self.grid)


def read_workload(cfg: dict[str, Any], recipe: Recipe, tuning: Tuning, prompt: PromptStyle) -> Workload:
    """Read a resolved configuration.

    Raises:
        ValueError: an unknown card, prompts that devices cannot share evenly, or a prompt that is too
            long.
        MissingWeightsError: a model whose architecture is not known here.
    """
    method, trainer, model = cfg["method"], cfg["trainer"], cfg["model"]
    kind = _METHODS.get(method["_target_"].rpartition(".")[2])
    if kind is None:
        raise ValueError(f"no plan for the method {method['_target_']}")
    strategy, world = _devices(trainer)
    if recipe.prompts_per_step % world:
        raise ValueError(f"prompts_per_step={recipe.prompts_per_step} is no multiple of the {world} devices")
    if strategy == "fsdp" and tuning.quantize:
        raise ValueError("weights held in 4 bits cannot be split over devices: take trainer=ddp")
    if strategy == "fsdp" and "8bit" in cfg["optimizer"]["_target_"]:
        raise ValueError("8-bit moments cannot be split over devices: take optimizer=adamw with trainer=fsdp")
    vision = load_config(model["path"], model["revision"]).vision_config
    grid = _grid(recipe, vision.patch_size * vision.spatial_merge_size)
    text, exact = text_tokens(model["path"], model["revision"], prompt.render(_TYPICAL, "train"))
    image = grid[0] * grid[1] // vision.spatial_merge_size**2
    if image + text > recipe.max_prompt_tokens:
        raise ValueError(
            f"a prompt has about {image + text} tokens ({image} of them image tokens), above "
            f"max_prompt_tokens={recipe.max_prompt_tokens}: raise model.recipe.max_prompt_tokens or lower "
            "model.recipe.max_pixels"
        )
    sampling, optimizer = method.get("sampling", {}), method.get("optim", {}).get("optimizer", {})
    completion = sampling.get("max_tokens", 0)
    if kind == "sft":
        # the target and the end of the turn, in tokens of some 3.8 characters
        completion = math.ceil(len(prompt.target(_TYPICAL)) / 3.8) + 1
    passes = method.get("num_iterations", 1)
    updates = passes * method.get("num_minibatches", 1)
    controls, _ = controls_of(cfg["controls"], prompt)
    steps, evaluations = _counts(cfg, recipe, kind, answers=len(set(controls) - {PRIOR}))
    return Workload(
        path=model["path"],
        revision=model["revision"],
        recipe=recipe,
        tuning=tuning,
        method=kind,
        keeps_reference=kind == "grpo" and method["beta"] > 0,
        passes=passes,
        updates=updates,
        scores_before=kind == "grpo"
        and (updates > 1 or (method["beta"] > 0 and method["kl_placement"] != "loss")),
        redraws=method.get("dynamic_sampling_rounds", 0),
        micro_batch=min(method.get("micro_batch", 1), recipe.prompts_per_step // world),
        group_size=sampling.get("group_size", 1),
        completion=completion,
        answer=method["max_completion_tokens"],
        optimizer=optimizer.get("_target_", ""),
        momentum=optimizer.get("momentum", 0.0),
        layout=model["layout"],
        shares_prefix=cfg["rollout"]["_target_"].endswith("SharedPrefixEngine"),
        strategy=strategy,
        world=world,
        steps=steps,
        evaluations=evaluations,
        text=text,
        exact_text=exact,
        image=image,
        grid=grid,
        card=card_named(cfg["card"]),
    )


def _devices(trainer: dict[str, Any]) -> tuple[str, int]:
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    world = max(1, count) * trainer["num_nodes"]
    strategy = trainer.get("strategy", "auto")
    name = strategy["_target_"] if isinstance(strategy, dict) else strategy
    for part, kind in (("ModelParallel", "fsdp"), ("fsdp", "fsdp"), ("eep", "zero2")):
        if part in name:
            return kind, world
    return ("ddp" if "ddp" in name or world > 1 else "single"), world


def _grid(recipe: Recipe, side: int) -> tuple[int, int]:
    """Patches of the largest image: a rectangle of as many image tokens as the limits allow."""
    tokens = recipe.max_pixels // side**2
    if recipe.image_size:
        tokens = min(tokens, max(1, round(recipe.image_size / side)) ** 2)
    for count in range(max(1, tokens), 0, -1):  # the nearest number with a rectangle that is not too long
        for down in range(math.isqrt(count), 0, -1):
            if count % down == 0 and count // down <= 4 * down:
                return 2 * down, 2 * count // down
    return 2, 2


def _counts(cfg: dict[str, Any], recipe: Recipe, kind: str, answers: int) -> tuple[int | None, int | None]:
    """Training steps, and answers in evaluation, where the configuration tells them.

    Args:
        answers: to each test question, over all controls.
    """
    data, trainer = cfg["data"], cfg["trainer"]

    def size(part: str) -> int | None:
        node = data.get(part)
        return node["n"] if isinstance(node, dict) and "n" in node else data.get(f"n_{part}")

    tests = data.get("test")
    test = sum(node["n"] for node in tests.values()) if _sized(tests) else None
    if test is None and data["_target_"].endswith("options.medvlm_r1"):
        test = _PUBLISHED_TEST
    test = None if test is None else test * answers
    train, validation = size("train"), size("validation")
    if data.get("n_train_per"):  # so many of each class, and the data alone know how many classes
        train = None
    if kind == "zero_shot":
        return 0, test + validation if test is not None and validation is not None else None
    if train is None:
        return None, None
    an_epoch = train // recipe.prompts_per_step
    steps = an_epoch * trainer["max_epochs"]
    if trainer["max_steps"] > 0:
        steps = min(steps, trainer["max_steps"])
    if test is None or validation is None:
        return steps, None
    every = trainer["val_check_interval"]
    validations = steps // max(1, int(an_epoch * every) if isinstance(every, float) else every)
    return steps, test + validation * (validations + 2)  # and one before and one after


def _sized(tests: Any) -> bool:
    return isinstance(tests, dict) and all(isinstance(t, dict) and "n" in t for t in tests.values())
