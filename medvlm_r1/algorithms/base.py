"""The base of every method: optimiser, checkpoints and greedy evaluation.

Zero-shot is this module alone; GRPO and SFT add a ``training_step``.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric

from medvlm_r1.algorithms.optim import OptimizerSettings, SkippedUpdates
from medvlm_r1.algorithms.steps import total_steps
from medvlm_r1.algorithms.trajectory import rows_of
from medvlm_r1.data.perturbation import PLAIN, Perturbation
from medvlm_r1.data.sample import Phase, VQASample
from medvlm_r1.evaluate.journal import Journal
from medvlm_r1.evaluate.predictions import Prediction, sort_predictions
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.policy.policy import Policy
from medvlm_r1.prompts import Answer, PromptStyle
from medvlm_r1.rewards import Rewards
from medvlm_r1.rollout.engine import Completions, RolloutEngine, Sampling, release_memory, sync_weights
from medvlm_r1.rollout.sampling_noise import NoiseKey

Item = TypeVar("Item")

# Validation metric -> field of a prediction, averaged over the questions.
_VALIDATION = {name: name for name in ("well_formed", "answered", "tokens", "truncated")}
_VALIDATION |= {"accuracy": "correct", "accuracy_lenient": "correct_lenient"}


class VLMModule(LightningModule):
    """A policy with its prompt, rollout engine and rewards, evaluated greedily.

    Args:
        policy, prompt, engine, rewards, seed: built from the other parts of the configuration.
        max_completion_tokens: limit of an answer in evaluation.
        optim: ``None`` evaluates only.
        name: of the method in records and tables.
    """

    validation_metrics = tuple(f"validation/{name}" for name in (*_VALIDATION, "reward"))
    updates_per_step = 1  # see :mod:`~medvlm_r1.algorithms.steps`

    def __init__(
        self,
        policy: Policy,
        prompt: PromptStyle,
        engine: RolloutEngine,
        rewards: Rewards,
        seed: int,
        max_completion_tokens: int,
        optim: OptimizerSettings | None = None,
        name: str = "zero_shot",
    ) -> None:
        super().__init__()
        self.method, self.optim = name, optim
        self.strict_loading = False  # checkpoints hold only the trained weights
        self.automatic_optimization = False  # several updates a rollout, and clipping, are loops here
        self.policy, self.prompt, self.engine, self.rewards, self.seed = policy, prompt, engine, rewards, seed
        self.greedy = Sampling(group_size=1, max_tokens=max_completion_tokens, temperature=0.0)
        self.skipped = SkippedUpdates(optim.max_skipped_updates if optim else 1)
        self.step = 0  # finished training steps: rollouts for GRPO, batches for SFT
        self.seen: Counter[str] = Counter()  # questions and tokens of training so far, of all ranks
        self._seen_in_step: Counter[str] = Counter()  # of this rank
        self.totals: Counter[str] = Counter()  # counters of this rank, see :class:`Counters`
        self.computed: Counter[str] = Counter()  # counters of all ranks, after the test
        self.predictions: list[Prediction] = []
        self.journal: Journal | None = None  # keeps test answers on disk while the test runs
        self._validation = nn.ModuleDict({name: MeanMetric() for name in (*_VALIDATION, "reward")})

    @property
    def trains(self) -> bool:
        return self.optim is not None

    @property
    def noise_key(self) -> NoiseKey:
        return NoiseKey(self.seed, self.step)

    def fault(self, phase: Phase) -> Callable[[VQASample], str | None]:
        """A function that says why this method cannot use a question in a phase, or ``None``."""
        return self.policy.prompt_fault(self.prompt, phase)

    def parse(
        self, prompts: Sequence[EncodedPrompt], texts: Sequence[str]
    ) -> tuple[list[VQASample], list[Answer]]:
        """Parse completions, prompt-major; returns the question and the answer of each."""
        rows = rows_of(prompts, len(texts) // len(prompts))
        samples = [prompt.sample for prompt in rows]
        answers = [
            self.prompt.parse(prompt.assistant_prefix + text, prompt.sample)
            for prompt, text in zip(rows, texts, strict=True)
        ]
        return samples, answers

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Add the seconds of the block to a phase of the step."""
        return self.policy.counters.timed(phase)

    def evaluate(
        self, asked: Sequence[Perturbation], prompts: Sequence[EncodedPrompt], test_set: str
    ) -> tuple[list[Prediction], Tensor]:
        """Answer greedily: returns one prediction per question, and its total reward."""
        completions: Completions = self.engine(self.policy, prompts, self.greedy, self.noise_key)
        samples, answers = self.parse(prompts, completions.texts)
        lengths, truncated = completions.lengths.tolist(), completions.truncated.tolist()
        rows = [
            Prediction.from_answer(perturbation, answer, tokens, cut, self.run_name, self.step, test_set)
            for perturbation, answer, tokens, cut in zip(asked, answers, lengths, truncated, strict=True)
        ]
        return rows, self.rewards.score(answers, samples).total

    def configure_model(self) -> None:
        """Shard the weights under a model-parallel strategy."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            self.to(self.trainer.strategy.root_device)  # else the host holds a copy of the weights
            self.policy.shard(self.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        self._first_step, self._start = self.step, time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget the last step's values: Lightning would log one again if this step logs none."""
        self.trainer._results.reset(metrics=False, fx="training_step")

    def on_validation_start(self) -> None:
        sync_weights(self.engine, self.policy)

    def validation_step(self, prompts: list[EncodedPrompt], batch_idx: int) -> None:
        asked = [Perturbation(PLAIN, prompt.sample) for prompt in prompts]
        rows, rewards = self.evaluate(asked, prompts, "validation")
        values = {name: [getattr(row, field) for row in rows] for name, field in _VALIDATION.items()}
        for name, value in (values | {"reward": rewards.tolist()}).items():
            metric = self._validation[name]
            metric.update(torch.tensor(value, dtype=torch.float32, device=self.device))
            self.log(f"validation/{name}", metric, prog_bar=name == "accuracy", batch_size=len(prompts))

    def on_validation_epoch_end(self) -> None:
        self.take_counters()  # validation must not count in the next step
        release_memory(self.engine)

    def on_test_start(self) -> None:
        sync_weights(self.engine, self.policy)
        self.policy.enable_vision_cache()  # several controls show the same ones
        self.predictions.clear()
        if self.journal:
            self.predictions += self.journal.rows
            self.totals = self.journal.totals or self.totals

    def test_step(
        self,
        questions: list[list[tuple[Perturbation, EncodedPrompt]]],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Answer a batch of questions under all controls."""
        test_set = list(self.trainer.datamodule.questions.test)[dataloader_idx]
        asked = [perturbation for question in questions for perturbation, _ in question]
        prompts = [prompt for question in questions for _, prompt in question]
        rows = self.evaluate(asked, prompts, test_set)[0] if asked else []
        self.predictions += rows
        self.take_counters()
        if self.journal:
            self.journal.add(rows, self.totals)

    def on_test_epoch_end(self) -> None:
        """Gather predictions and counters of all ranks; sort by test set, control and question."""
        self.policy.clear_vision_cache()
        self.take_counters()
        shares = self.gather_objects((self.predictions, self.totals))
        self.predictions = [row for rows, _ in shares for row in rows]
        self.computed = Counter()
        for _, totals in shares:
            self.computed.update(totals)
        tests = self.trainer.datamodule.questions.test.items()
        keys = [(name, sample.id) for name, source in tests for sample in source]
        order = {key: place for place, key in enumerate(keys)}
        self.predictions.sort(key=lambda p: order[p.test_set, p.sample_id])
        self.predictions = sort_predictions(self.predictions)

    def configure_optimizers(self) -> dict[str, Any]:
        assert self.optim is not None
        optimizer = self.optim.build(self.policy.trainable_parameters)
        self.trainer.fit_loop.setup_data()  # counts the batches of an epoch
        limits = self.trainer.max_epochs, self.trainer.max_steps, self.updates_per_step
        self.total_steps = total = total_steps(int(self.trainer.num_training_batches), *limits)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: self.optim.lr_at(s, total))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def accumulate(self, loss: Tensor, last: bool) -> None:
        """Backpropagate a micro-batch's loss; DDP reduces the gradients only in the ``last`` of an update.

        FSDP reduces them in each: without it every device would hold all gradients in fp32, unsharded.
        """
        local = not last and isinstance(self.trainer.strategy, ParallelStrategy)
        with self.trainer.strategy.block_backward_sync() if local else nullcontext():
            self.manual_backward(loss)

    def apply_gradients(self) -> Tensor:
        """Clip the gradients, step and zero them; returns their norm before clipping.

        A norm that is not finite changes no weight and no optimiser state, on any rank, and is counted.
        """
        assert self.optim is not None
        optimizer = self.optimizers()
        norm = self.optim.clip(self.policy.trainable_parameters)
        if skip := self.trainer.strategy.reduce_boolean_decision(not norm.isfinite(), all=False):
            optimizer.zero_grad()
        self.skipped.count(skip)
        optimizer.step()  # counts; without gradients it changes nothing
        optimizer.zero_grad()
        return norm

    def gather_objects(self, value: Item) -> list[Item]:
        """Collect a picklable value from every rank, in the order of the ranks."""
        values: list = [value] * self.trainer.world_size
        if len(values) > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Stack the tensors of all ranks in the order of the ranks."""
        gathered = self.all_gather(values.to(self.device))
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, *values.shape)

    def log_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        """Log the mean of each metric over its elements on all ranks under ``train/``; if none, nothing."""
        sums = [value.float().sum().to(self.device) for value in metrics.values()]  # rewards are on the host
        counts = torch.tensor([float(value.numel()) for value in metrics.values()], device=self.device)
        totals = self.gather(torch.stack([torch.stack(sums), counts])).sum(0)
        for name, total, count in zip(metrics, totals[0], totals[1].tolist(), strict=True):
            if count:
                self.log(f"train/{name}", total / count, prog_bar=name in ("reward", "kl", "accuracy"))

    def count_seen(self, prompts: Sequence[EncodedPrompt], completion_tokens: int) -> None:
        """Count questions, and tokens of their prompts and completions, as seen in this step."""
        tokens = completion_tokens + sum(len(prompt.ids) for prompt in prompts)
        self._seen_in_step.update(questions=len(prompts), tokens=tokens, completion_tokens=completion_tokens)

    def end_step(self) -> None:
        """End one training step: log its counters, advance the learning rate and the step count."""
        for name, count in self._seen_in_step.items():
            self.seen[name] += int(self.gather(torch.tensor(count)).sum())
            # Lightning would round a number to fp32, which is exact up to 2**24 only.
            self.log(f"train/{name}_seen", torch.tensor(self.seen[name], dtype=torch.float64))
        self._seen_in_step.clear()
        computed = self.take_counters()  # the same names on every rank, since logging reduces over ranks
        if "seconds_sample" in computed:
            computed["tokens_per_second"] = computed["decode_rows"] / computed["seconds_sample"]
        for name, value in computed.items():
            # A seed determines all metrics but seconds, which get a prefix of their own.
            kind, reduce = ("timing", "mean") if "second" in name else ("train", "sum")
            self.log(f"{kind}/{name}", float(value), sync_dist=True, reduce_fx=reduce)
        self.log("train/updates", float(self.trainer.global_step))
        self.log("train/skipped_updates", float(self.skipped.total))
        self.log("train/lr", self.optimizers().param_groups[0]["lr"])
        self.lr_schedulers().step()
        self.step += 1
        self.log("step", float(self.step), logger=False)  # {step} in names of checkpoints
        seconds, steps = time.monotonic() - self._start, self.step - self._first_step  # validations too
        self.log("timing/seconds_left", seconds / steps * (self.total_steps - self.step))

    def take_counters(self) -> dict[str, float]:
        """Counters since the last call; adds them to :attr:`totals`."""
        taken = self.policy.counters.take()
        self.totals.update(taken)
        return taken

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the step and only the trained weights; the others are the starting model's."""
        checkpoint["medvlm_r1_step"] = self.step
        checkpoint["medvlm_r1_totals"] = dict(self.totals)
        checkpoint["medvlm_r1_seen"] = dict(self.seen)
        checkpoint["medvlm_r1_skipped"] = (self.skipped.total, self.skipped.consecutive)
        trained = {f"policy.{name}" for name, p in self.policy.named_parameters() if p.requires_grad}
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["medvlm_r1_step"]
        self.totals = Counter(checkpoint["medvlm_r1_totals"])
        self.seen = Counter(checkpoint["medvlm_r1_seen"])
        self.skipped.total, self.skipped.consecutive = checkpoint.get("medvlm_r1_skipped", (0, 0))

    @property
    def run_name(self) -> str:
        return Path(self.trainer.default_root_dir).name

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch alone: :func:`collate` moves prompts to the device."""
        return batch
