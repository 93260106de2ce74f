"""Read a run's memory and time factors from its configuration."""

import math
from dataclasses import dataclass
from pathlib import Path
from pydoc import locate
from typing import Any, Literal

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.rft import RFT
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.data.images.decode import ImageFile
from medvlm_r1.data.sample import VQASample
from medvlm_r1.evaluate.controls import PRIOR, controls_of
from medvlm_r1.plan.cards import CARDS, Card
from medvlm_r1.plan.passes import PassShape
from medvlm_r1.plan.questions import Questions, count_questions
from medvlm_r1.policy.loading.architecture import load_config, text_tokens
from medvlm_r1.policy.loading.load import Recipe
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.rollout.engine import RolloutEngine, Sampling
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine

# A question of typical length, for the number of text tokens.
_TYPICAL = VQASample(
    id="typical",
    images=(ImageFile(Path("typical.png")),),  # never opened
    question="What abnormality is visible in the left temporal lobe on this T2-weighted MRI image?",
    options=("Meningioma", "Ischemic stroke", "Arachnoid cyst", "No abnormality"),
    answer="C",
    modality="mri",
    question_type="Disease Diagnosis",
    source="typical",
    image_group="typical",
)


@dataclass(frozen=True)
class Workload:
    """The factors of one run's memory and time.

    Attributes:
        path, revision, recipe, tuning: of the model option.
        has_reference: whether GRPO has a KL penalty (beta above 0).
        num_iterations: passes over one rollout.
        updates: per step, see :mod:`~medvlm_r1.algorithms.steps`.
        scores_old: whether GRPO computes log pi_old before the first update.
        dynamic_sampling_rounds: maximum number of further rounds that replace zero-advantage groups.
        micro_batch: prompts per forward and backward pass, at most.
        sampling, answering: of completions in training (SFT: its target as the limit) and in evaluation.
        optimizer: import path of its class.
        fused: whether one kernel updates all parameters, on a GPU.
        momentum: of SGD.
        layout: of log-probability passes.
        engine: of rollouts.
        checkpoint_every: steps between two checkpoints; 0 writes none.
        text_tokens: tokens of a typical prompt without its image.
        text_is_exact: whether the checkpoint's own tokenizer counted them.
        image_tokens: tokens of the largest image.
        grid: rows and columns of its patches.
    """

    path: str
    revision: str | None
    recipe: Recipe
    tuning: Tuning
    method: Literal["grpo", "sft", "zero_shot"]
    has_reference: bool
    num_iterations: int
    updates: int
    scores_old: bool
    dynamic_sampling_rounds: int
    micro_batch: int
    sampling: Sampling
    answering: Sampling
    optimizer: str
    fused: bool
    momentum: float
    layout: str
    engine: Any  # a RolloutEngine
    strategy: Literal["single", "ddp", "fsdp"]
    world_size: int
    questions: Questions
    checkpoint_every: int
    text_tokens: int
    text_is_exact: bool
    image_tokens: int
    grid: tuple[int, int]
    card: Card

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a typical prompt with the largest image."""
        return self.image_tokens + self.text_tokens

    @property
    def prompts(self) -> int:
        """Prompts per step and device."""
        return self.recipe.prompts_per_step // self.world_size

    @property
    def pass_prompts(self) -> int:
        """Prompts per forward and backward pass on one device."""
        return min(self.micro_batch, self.prompts)

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes per step and device, in one pass over the rollout."""
        return math.ceil(self.prompts / self.pass_prompts)

    @property
    def reference_passes(self) -> int:
        """Passes over the rollout without gradients: log pi_ref, log pi_old."""
        return int(self.has_reference) + int(self.scores_old)

    @property
    def shards(self) -> int:
        """Devices that share weights, gradients and optimiser state."""
        return self.world_size if self.strategy == "fsdp" else 1

    @property
    def shares_prefix(self) -> bool:
        """Whether rollouts read each prompt once instead of once per completion."""
        return isinstance(self.engine, SharedPrefixEngine)

    @property
    def records(self) -> bool:
        """Whether decoding steps are replayed as CUDA graphs."""
        return self.shares_prefix and self.engine.record != "off"

    @property
    def checkpoints(self) -> int:
        """Number of checkpoints that the run writes: every so many steps, and one at the end."""
        steps = self.questions.steps
        return math.ceil(steps / self.checkpoint_every) if steps and self.checkpoint_every else 0

    @property
    def mean_completion(self) -> int:
        """Assumed mean tokens of a completion: half of the limit; SFT's targets are known."""
        limit = self.sampling.max_tokens
        return limit if self.method == "sft" else max(1, limit // 2)

    def shape(self, prompts: int, group_size: int, completion: int, images: int = 0) -> PassShape:
        return PassShape(prompts, group_size, self.prompt_tokens, completion, self.grid, images)


def read_workload(
    cfg: dict[str, Any], recipe: Recipe, tuning: Tuning, prompt: PromptStyle, engine: RolloutEngine
) -> Workload:
    """Read a resolved configuration.

    Raises:
        ValueError: an unknown method or card, prompts that the devices cannot share evenly, or a prompt
            above the limit.
        MissingWeightsError: a model of unknown architecture.
    """
    method, trainer, model = cfg["method"], cfg["trainer"], cfg["model"]
    kind = _method_kind(method["_target_"])
    if cfg["card"] not in CARDS:
        raise ValueError(f"card is {cfg['card']!r}: the cards are {', '.join(CARDS)}")
    strategy, world_size = _devices(trainer)
    if kind != "zero_shot" and recipe.prompts_per_step % world_size:
        raise ValueError(
            f"prompts_per_step={recipe.prompts_per_step} is no multiple of the {world_size} devices"
        )
    if strategy == "fsdp" and tuning.quantize:
        raise ValueError("FSDP cannot split 4-bit weights: take trainer=ddp")
    if strategy == "fsdp" and "8bit" in cfg["optimizer"]["_target_"]:
        raise ValueError("FSDP cannot split 8-bit moments: take optimizer=adamw")
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
    optimizer = method.get("optim", {}).get("optimizer", {})
    # SFT: the target and the end of the turn, at 3.8 characters per token; a rationale may reach the limit
    target = math.ceil(len(prompt.target(_TYPICAL)) / 3.8) + 1
    target = recipe.max_completion_tokens if method["_target_"].endswith(".RationaleSFT") else target
    sampling = {name: value for name, value in method.get("sampling", {}).items() if name != "_target_"}
    num_iterations = method.get("num_iterations", 1)
    updates = num_iterations * method.get("num_minibatches", 1)
    has_reference = kind == "grpo" and method["beta"] > 0
    controls, _ = controls_of(cfg["controls"], prompt)
    return Workload(
        path=model["path"],
        revision=model["revision"],
        recipe=recipe,
        tuning=tuning,
        method=kind,
        has_reference=has_reference,
        num_iterations=num_iterations,
        updates=updates,
        scores_old=kind == "grpo" and (updates > 1 or (has_reference and method["kl_placement"] != "loss")),
        dynamic_sampling_rounds=method.get("dynamic_sampling_rounds", 0),
        micro_batch=method.get("micro_batch", 1),
        sampling=Sampling(max_tokens=target) if kind == "sft" else Sampling(**sampling),
        answering=Sampling(max_tokens=method["max_completion_tokens"], temperature=0.0),
        optimizer=optimizer.get("_target_", ""),
        fused=optimizer.get("fused", False) is not False,  # None is true on a GPU
        momentum=optimizer.get("momentum", 0.0),
        layout=model["layout"],
        engine=engine,
        strategy=strategy,
        world_size=world_size,
        questions=count_questions(cfg, recipe, kind != "zero_shot", len(set(controls) - {PRIOR})),
        checkpoint_every=((cfg.get("callbacks") or {}).get("last") or {}).get("every", 0),
        text_tokens=text,
        text_is_exact=exact,
        image_tokens=image,
        grid=grid,
        card=CARDS[cfg["card"]],
    )


def _method_kind(target: str) -> Literal["grpo", "sft", "zero_shot"]:
    method = locate(target)
    if method is RFT:
        raise ValueError(
            "plan=true cannot plan method=rft: plan its sampling as that of method=grpo, and its training as "
            "method=sft_rationale"
        )
    for base, kind in ((GRPO, "grpo"), (SFT, "sft")):
        if isinstance(method, type) and issubclass(method, base):
            return kind
    if method is VLMModule:
        return "zero_shot"
    raise ValueError(f"plan=true cannot plan the method {target}: it knows GRPO, SFT and their subclasses")


def _devices(trainer: dict[str, Any]) -> tuple[str, int]:
    """Return the strategy and the number of devices on all nodes."""
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    world_size = max(1, count) * trainer["num_nodes"]
    strategy = trainer.get("strategy", "auto")
    name = strategy["_target_"] if isinstance(strategy, dict) else strategy
    if "ModelParallel" in name or "fsdp" in name:
        return "fsdp", world_size
    return ("ddp" if "ddp" in name or world_size > 1 else "single"), world_size


def _grid(recipe: Recipe, side: int) -> tuple[int, int]:
    """Return rows and columns of patches of the largest image: a rectangle with the maximum of image tokens.

    An image token has ``side`` pixels per side.
    """
    tokens = recipe.max_pixels // side**2
    if recipe.image_size:
        tokens = min(tokens, max(1, round(recipe.image_size / side)) ** 2)
    for count in range(max(1, tokens), 0, -1):  # a prime count has no rectangle of an image's shape
        for rows in range(math.isqrt(count), 0, -1):
            if count % rows == 0 and count // rows <= 4 * rows:
                return 2 * rows, 2 * count // rows
    return 2, 2
