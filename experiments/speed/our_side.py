"""Our side: the project's GRPO under Lightning, with any engine and layout."""

import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from build_run import reward_of
from jaxtyping import Int
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import disable_possible_user_warnings
from phases import Phases
from side import Computed, Given, Side
from sizes import STYLE, Size, adapter, encoder, twin
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.optim import OptimizerSettings
from medvlm_r1.algorithms.trajectory import MicroBatch
from medvlm_r1.data.sample import VQASample
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.rewards import Rewards
from medvlm_r1.rollout import draw, sampling_noise
from medvlm_r1.rollout.engine import Rollout, RolloutEngine, Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey

LR = 1e-12  # the same as on TRL's side
ENGINES = {
    "reference": ("medvlm_r1.rollout.reference", "ReferenceEngine"),
    "shared_prefix": ("medvlm_r1.rollout.shared_prefix", "SharedPrefixEngine"),
}
_NEVER, _ALWAYS = -1e9, 1e9


@dataclass(frozen=True)
class OurVariant:
    """One configuration of ours.

    Attributes:
        name: name of the row.
        engine: a key of :data:`ENGINES`.
        engine_options: arguments of the engine.
        policy_options: arguments of :class:`Policy` besides model and encoder.
        micro_batch: prompts in one forward and backward pass.
    """

    name: str
    engine: str = "reference"
    engine_options: dict[str, Any] = field(default_factory=dict)
    policy_options: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = 1


def variants() -> tuple[OurVariant, ...]:
    """Return the default configuration, then those with each switch off in turn."""
    fast = importlib.util.find_spec(ENGINES["shared_prefix"][0]) is not None
    packs = "layout" in inspect.signature(Policy).parameters
    engine = "shared_prefix" if fast else "reference"
    packed = {"layout": "packed"} if packs else {}
    rows = [OurVariant("ours", engine, policy_options=packed)]
    if fast:
        rows.append(OurVariant("ours, reference engine", policy_options=packed))
    if packs:
        rows.append(OurVariant("ours, repeated layout", engine, policy_options={"layout": "repeated"}))
    if fast and packs:
        rows.append(OurVariant("ours, both off", policy_options={"layout": "repeated"}))
    return tuple(rows)


def engine_of(variant: OurVariant) -> RolloutEngine:
    module, name = ENGINES[variant.engine]
    return getattr(importlib.import_module(module), name)(**variant.engine_options)


class OurSide(Side):
    """The project's trainer on a twin of the shared weights."""

    def __init__(self, variant: OurVariant, size: Size, given: Given) -> None:
        self.name, self.variant, self.size, self.given = variant.name, variant, size, given
        self.phases = Phases()
        self.bare = twin(given.model)
        tuning = Tuning("adapter", adapter()) if size.tune == "lora" else Tuning()
        made = encoder(size.model)
        self.image_processor = made.image_processor
        policy = Policy(tuning.apply(self.bare), made, **variant.policy_options)
        # TRL normalises over the full vocabulary; the sampling noise still excludes vision tokens.
        self.never = policy.banned_ids
        policy.banned.zero_()
        self.policy, self.model = policy, policy.model
        if size.tune == "lora":
            given.same_adapter(self.model)
        self.replayed: Rollout | None = None
        self.ends = forced_ends(ENGINES[variant.engine][0])
        self.module = self._module()
        for method, phase in (
            ("encode", "encode"),
            ("sample", "sample"),
            ("ref_logprobs", "reference"),
            ("update_minibatch", "train"),
            ("apply_gradients", "update"),
        ):
            self.phases.wrap(self.module, method, phase)
        self._record()

    def loop(self, pause: Callable[[], None]) -> None:
        self.module.pause = pause
        disable_possible_user_warnings()
        trainer = Trainer(
            accelerator="cpu" if self.size.device == "cpu" else "gpu",
            devices=1,
            max_steps=self.given.steps + 1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(self.module, _Questions(self.given.questions, self.size.prompts))

    def replay(self, other: "OurSide | None") -> None:
        self.replayed = None if other is None else other._rollout

    def reference(self) -> nn.Module | None:
        return self.policy.copies.reference

    @property
    def computed(self) -> Computed:
        """Results of the last step."""
        rollout, found = self._rollout, self._found
        return Computed(
            prompt=self._prompts[0].ids.tolist(),
            tokens=rollout.tokens,
            mask=rollout.mask,
            logprobs=wide(found["logprobs"], rollout.tokens.shape[1]),
            ref_logprobs=wide(found["reference"], rollout.tokens.shape[1]) if found["reference"] else None,
            loss=float(self._update["loss"]),
            grad_norm=float(self._update["grad_norm"]),
            sampled=rollout.logprobs,
        )

    def _module(self) -> "SteppedGRPO":
        optimizer = self.given.optimizer
        build = torch.optim.AdamW if optimizer is None else lambda parameters, lr: optimizer
        module = SteppedGRPO(
            policy=self.policy,
            prompt=STYLE,
            engine=engine_of(self.variant),
            rewards=Rewards({"arbitrary": lambda answer, sample: reward_of(answer.text)}, {}),
            seed=0,
            max_completion_tokens=self.size.new_tokens,
            optim=OptimizerSettings(lr=LR, optimizer=build, schedule="constant"),
            sampling=Sampling(group_size=self.size.group, max_tokens=self.size.new_tokens),
            micro_batch=self.variant.micro_batch,
            beta=self.size.beta,
        )
        module.frozen = self.given.reference
        return module

    def _record(self) -> None:
        """Record the results of each step, and set the lengths of its completions."""
        module = self.module
        sample, logprobs = module.engine, module.logprobs
        reference, update_minibatch = module.ref_logprobs, module.update_minibatch

        def roll_out(
            policy: Policy, prompts: Sequence[EncodedPrompt], sampling: Sampling, key: NoiseKey
        ) -> Rollout:
            rows = key.completion_keys([p.sample.id for p in prompts], sampling.group_size)
            self._prompts, self._found = prompts, {"logprobs": [], "reference": []}
            if self.replayed is None:
                with self.ends.set(rows, self.lengths, policy.eos_ids, self.never):
                    self._rollout = sample(policy, prompts, sampling, key)
            else:
                self._rollout = self.replayed
            return self._rollout

        def kept(name: str, plain: Callable[[MicroBatch], Tensor]) -> Callable[[MicroBatch], Tensor]:
            def call(batch: MicroBatch) -> Tensor:
                found = plain(batch)
                self._found[name].append(found.detach())
                return found

            return call

        def update(minibatch: Sequence[MicroBatch]) -> dict[str, Tensor]:
            self._update = update_minibatch(minibatch)
            return self._update

        module.engine = roll_out
        module.logprobs, module.ref_logprobs = kept("logprobs", logprobs), kept("reference", reference)
        module.update_minibatch = update
        self.lengths = self.size.row_lengths()


class SteppedGRPO(GRPO):
    """GRPO that waits for its turn before each step and encodes its prompts inside the step.

    In a training run, workers encode the next step's prompts in the background; TRL encodes in the step.
    """

    pause: Callable[[], None]
    frozen: torch.nn.Module | None

    def setup(self, stage: str) -> None:
        """Give the reference other weights than the policy: otherwise the KL term would be 0."""
        super().setup(stage)
        if (reference := self.policy.copies.reference) is not None:
            for mine, given in zip(reference.parameters(), self.frozen.parameters(), strict=True):
                mine.data = given.data.to(mine.device)

    def encode(self, samples: list[VQASample]) -> list[EncodedPrompt]:
        return [self.policy.encoder.encode(sample, "train", self.prompt) for sample in samples]

    def training_step(self, samples: list[VQASample], batch_idx: int) -> None:
        self.pause()
        super().training_step(self.encode(samples), batch_idx)


class _Questions(LightningDataModule):
    """The questions in order, ``prompts_per_step`` per batch."""

    def __init__(self, questions: list[VQASample], prompts_per_step: int) -> None:
        super().__init__()
        self.questions, self.prompts_per_step = questions, prompts_per_step

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.questions, batch_size=self.prompts_per_step, collate_fn=list)


class ForcedEnds:
    """Sampling noise that makes each row end at its given length.

    The noise is a function of the row's key, so it follows a row that an engine has moved.
    """

    def __init__(self, plain: Callable[[Tensor, int, int], Tensor]) -> None:
        self.plain = plain
        self.rows = self.lengths = torch.zeros(0, dtype=torch.long)
        self.never, self.end = self.rows, 0

    @contextmanager
    def set(self, rows: Tensor, lengths: Tensor, eos_ids: list[int], never: list[int]) -> Iterator[None]:
        """Set the lengths for one rollout.

        Args:
            rows: keys of the rollout's rows.
            lengths: tokens of each row, end of sequence included.
            eos_ids: end-of-sequence ids; rows end with the first.
            never: further ids to exclude.
        """
        self.rows, self.lengths, self.end = rows, lengths, eos_ids[0]
        self.never = torch.tensor([*eos_ids, *never])
        yield
        self.rows = rows[:0]

    def __call__(self, rows: Int[Tensor, " rows"], position: Any, vocabulary: int) -> Tensor:
        noise = self.plain(rows, position, vocabulary)
        if not len(self.rows):
            return noise
        if self.rows.device != rows.device:  # once per rollout, not per step
            self.rows, self.lengths, self.never = (
                t.to(rows.device) for t in (self.rows, self.lengths, self.never)
            )
        places = (rows[:, None] == self.rows[None, :]).int().argmax(1)
        noise.index_fill_(1, self.never, _NEVER)
        noise[:, self.end] = torch.where(self.lengths[places] == position + 1, _ALWAYS, _NEVER)
        return noise


def forced_ends(engine: str) -> ForcedEnds:
    """Replace ``gumbel_noise`` by one :class:`ForcedEnds`, in its module and in the engine's."""
    draw.HAS_TRITON = False  # its kernel computes the noise itself
    if not isinstance(sampling_noise.gumbel_noise, ForcedEnds):
        sampling_noise.gumbel_noise = ForcedEnds(sampling_noise.gumbel_noise)
    module = importlib.import_module(engine)
    if hasattr(module, "gumbel_noise"):
        module.gumbel_noise = sampling_noise.gumbel_noise
    return sampling_noise.gumbel_noise


def wide(parts: list[Tensor], width: int) -> Tensor:
    """Concatenate micro-batches, padded to the width of the rollout."""
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
