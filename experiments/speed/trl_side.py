"""TRL's side: its GRPOTrainer with its own loop, generation and loss."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import trl.generation.vllm_generation as trl_vllm
import trl.trainer.grpo_trainer as grpo_trainer
import trl.trainer.utils as trl_utils
from build_run import reward_of
from datasets import Dataset
from phases import Phases
from side import Computed, Given, Side
from sizes import STYLE, Size, adapter, encoder, twin
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, PrinterCallback, TrainerCallback
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from medvlm_r1.policy.saving.folder import save_model
from medvlm_r1.rollout.engine import completion_mask

# too small to move an fp32 weight, while the optimiser does all its work
LR = 1e-12
_CERTAIN = 1e9  # a logit of probability 1


@dataclass(frozen=True)
class TRLVariant:
    """Settings of TRL's trainer for the same work.

    Attributes:
        name: name of the row.
        gradient_checkpointing: TRL's default is true.
        micro_batch: completions per forward and backward pass; TRL's default is 8.
        head_on_completions: skip the prompt's positions in the output matrix, as TRL 1.16 does with Triton
            but not on a CPU.
        vllm: sample by TRL's vLLM in this process ("colocate"); a row only where vLLM is installed.
    """

    name: str
    gradient_checkpointing: bool = True
    micro_batch: int = 8
    head_on_completions: bool = False
    vllm: bool = False


VARIANTS = (
    TRLVariant("TRL, defaults"),
    TRLVariant("TRL, best settings", gradient_checkpointing=False, head_on_completions=True),
)
if find_spec("vllm"):
    VARIANTS += (TRLVariant("TRL, vLLM", gradient_checkpointing=False, head_on_completions=True, vllm=True),)


class Processor(Qwen2VLProcessor):
    """Qwen2-VL's processor without the video processor, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class TRLSide(Side):
    """TRL's trainer on a twin of the shared weights."""

    def __init__(self, variant: TRLVariant, size: Size, given: Given) -> None:
        self.name, self.variant, self.size, self.given = variant.name, variant, size, given
        self.phases = Phases()
        self.replayed: Tensor | None = None  # completions of the next step, instead of sampling
        self.lengths = size.row_lengths()
        self.bare = twin(given.model)
        made = encoder(size.model)
        self.image_processor = made.image_processor
        self.processor = Processor(made.image_processor, made.tokenizer, made.tokenizer.chat_template)
        self.pad_id = made.tokenizer.pad_token_id
        self.trainer = self._trainer()
        self.model = self.trainer.model
        if size.tune == "lora":
            given.same_adapter(self.model)
        self._instrument()

    def loop(self, pause: Callable[[], None]) -> None:
        self.trainer.add_callback(_Pause(pause))
        self.trainer.train()

    def replay(self, other: Side | None) -> None:
        self.replayed = None if other is None else other.computed.tokens

    def reference(self) -> nn.Module | None:
        return self.trainer.ref_model

    def _trainer(self) -> GRPOTrainer:
        size, variant = self.size, self.variant
        micro = min(variant.micro_batch, size.rows)
        if size.rows % micro:
            raise ValueError(f"{size.rows} completions are no multiple of TRL's micro-batch of {micro}")
        args = GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=size.rows // micro,
            gradient_checkpointing=variant.gradient_checkpointing,
            num_generations=size.group,
            max_completion_length=size.new_tokens,
            temperature=1.0,
            beta=size.beta,
            # our formula: GRPO's aggregation, and the KL estimate without bias correction
            loss_type="grpo",
            use_bias_correction_kl=False,
            learning_rate=LR,
            weight_decay=0.0,
            max_steps=self.given.steps + 1,
            bf16=size.dtype == "bfloat16",
            use_cpu=size.device == "cpu",
            dataloader_pin_memory=size.device != "cpu",
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **(self._vllm() if variant.vllm else {}),
        )
        plain, grpo_trainer.create_model_from_path = grpo_trainer.create_model_from_path, self._reference
        try:
            trainer = GRPOTrainer(
                model=self.bare,
                reward_funcs=arbitrary,
                args=args,
                train_dataset=self._dataset(),
                processing_class=self.processor,
                peft_config=adapter() if size.tune == "lora" else None,
                optimizers=(self.given.optimizer, None),
            )
        finally:
            grpo_trainer.create_model_from_path = plain
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _vllm(self) -> dict[str, Any]:
        """Return the settings of TRL's vLLM, which loads the weights from a folder.

        Raises:
            ValueError: lengths are drawn; TRL gives all rows one limit.
        """
        if self.size.lengths == "drawn":
            raise ValueError("TRL's vLLM cannot draw completions of given lengths: use --lengths full")
        if self.size.device == "cpu":
            # vLLM keeps packed weights instead of the modules' own, and TRL fails to write new ones there.
            import_module("vllm._custom_ops")._supports_onednn = False
            trl_vllm.LLM = partial(trl_vllm.LLM, dtype=self.size.dtype, enforce_eager=True)
        folder = tempfile.mkdtemp()
        save_model(Path(folder), self.bare, encoder(self.size.model), self.bare.generation_config)
        self.bare.name_or_path = folder
        return {
            "use_vllm": True,
            "vllm_max_model_length": self.size.prompt_tokens + self.size.new_tokens,
            "vllm_importance_sampling_correction": False,  # not in the other rows' loss
            "generation_kwargs": {"ignore_eos": True},
        }

    def _reference(self, *_: Any, **__: Any) -> Any:
        """Return the reference; TRL would load it from the model's path, which these weights lack."""
        return twin(self.given.reference)

    def _dataset(self) -> Dataset:
        chats = [STYLE.render(question, "train") for question in self.given.questions]
        return Dataset.from_dict(
            {
                "prompt": [[{"role": "user", "content": chat[0]["content"][-1]["text"]}] for chat in chats],
                "image": [question.images[0].load() for question in self.given.questions],
            }
        )

    def _instrument(self) -> None:
        """Wrap the trainer's parts: the clock inside, the recording of results around it."""
        trainer, phases, accelerator = self.trainer, self.phases, self.trainer.accelerator
        phases.wrap(trainer, "_tokenize_prompts", "encode")
        phases.wrap(self.image_processor, "preprocess", "encode")
        phases.wrap(trainer, "_generate_single_turn", "sample")
        phases.wrap(trainer, "compute_loss", "train")
        phases.wrap(accelerator, "backward", "train")
        phases.wrap(accelerator, "clip_grad_norm_", "update")
        trainer.add_callback(_Update(phases))
        self._logprobs, trainer._get_per_token_logps_and_entropies = (
            trainer._get_per_token_logps_and_entropies,
            self._recorded_logprobs,
        )
        if self.variant.vllm:
            backend = trainer.vllm_generation
            self._sample, backend.generate = backend.generate, self._generate_by_vllm
        else:
            self._sample, self.bare.generate = self.bare.generate, self._generate
        self._loss_of, trainer.compute_loss = trainer.compute_loss, self._recorded_loss
        self._clip, accelerator.clip_grad_norm_ = accelerator.clip_grad_norm_, self._recorded_norm

    def _generate(self, **inputs: Any) -> Tensor:
        prompts = inputs["input_ids"]
        if self.replayed is None:
            ends = _Ends(self.lengths, self.trainer.eos_token_ids, prompts.shape[1])
            generated = self._sample(**inputs, logits_processor=LogitsProcessorList([ends]))
        else:
            generated = torch.cat([prompts, self.replayed.to(prompts.device)], dim=1)
        self._begin(prompts[0].tolist(), generated[:, prompts.shape[1] :])
        return generated

    def _generate_by_vllm(self, prompts: list[list[int]], **others: Any) -> tuple[Any, ...]:
        if self.replayed is None:
            # TRL 1.16 hands over expanded image tokens, which vLLM expands again
            found = self._sample(prompts=[self._one_per_image(prompt) for prompt in prompts], **others)
        else:
            ends = completion_mask(self.replayed, self.trainer.eos_token_ids)
            rows = [row[end].tolist() for row, end in zip(self.replayed, ends, strict=True)]
            found = prompts, rows, [[[0.0]] * len(row) for row in rows], None
        rows = [torch.tensor(row, device=self.trainer.accelerator.device) for row in found[1]]
        self._begin(prompts[0], pad_sequence(rows, batch_first=True, padding_value=self.pad_id))
        return found

    def _one_per_image(self, prompt: list[int]) -> list[int]:
        image, before = self.processor.image_token_id, [None, *prompt]
        return [token for token, last in zip(prompt, before, strict=False) if not token == last == image]

    def _begin(self, prompt: list[int], tokens: Tensor) -> None:
        """Begin the record of a step."""
        self._prompt, self._tokens = prompt, tokens
        self._found, self._losses = {True: [], False: []}, []

    def _recorded_logprobs(self, model: Any, ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        graded = torch.is_grad_enabled()
        with self.phases.timed(self.phases.current if graded else "reference"), self._head():
            found = self._logprobs(model, ids, *args, **kwargs)
        self._found[graded] += zip(ids, found[0].detach(), strict=True)
        return found

    @contextmanager
    def _head(self) -> Iterator[None]:
        """Let TRL skip the prompt's positions in the output matrix: it decides by the presence of Triton."""
        plain = trl_utils._use_triton
        if self.variant.head_on_completions:
            trl_utils._use_triton = lambda device: True
        try:
            yield
        finally:
            trl_utils._use_triton = plain

    def _recorded_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._loss_of(*args, **kwargs)
        self._losses.append(loss.detach())
        return loss

    def _recorded_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._norm = self._clip(*args, **kwargs)
        return self._norm

    @property
    def computed(self) -> Computed:
        """Results of the last step. TRL shuffles rows before training, so this matches them by content."""
        width = self._tokens.shape[1]
        mask = completion_mask(self._tokens, self.trainer.eos_token_ids)
        found = {
            graded: {tuple(ids[-width:].tolist()): row for ids, row in rows}
            for graded, rows in self._found.items()
        }
        rows = [tuple(row) for row in self._tokens.tolist()]
        reference = torch.stack([found[False][row] for row in rows]) if found[False] else None
        return Computed(
            prompt=self._prompt,
            tokens=self._tokens,
            mask=mask,
            logprobs=torch.stack([found[True][row] for row in rows]),
            ref_logprobs=reference,
            loss=float(sum(self._losses)),
            grad_norm=float(self._norm),
        )


def arbitrary(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """An arbitrary reward: random weights earn no real one, and equal rewards give no gradient."""
    return [reward_of(completion[0]["content"]) for completion in completions]


class _Pause(TrainerCallback):
    def __init__(self, pause: Callable[[], None]) -> None:
        self.pause = pause

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.pause()


class _Update(TrainerCallback):
    """Times the optimiser's step, which runs between the two calls."""

    def __init__(self, phases: Phases) -> None:
        self.phases = phases

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.under_way = self.phases.timed("update")
        self.under_way.__enter__()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.under_way.__exit__(None, None, None)


class _Ends:
    """A logits processor that makes each row end at its given length."""

    def __init__(self, lengths: Tensor, eos_ids: list[int], prompt: int) -> None:
        self.lengths, self.eos_ids, self.prompt = lengths, torch.tensor(eos_ids), prompt
        self.end = eos_ids[0]

    def __call__(self, seen: Tensor, scores: Tensor) -> Tensor:
        self.lengths, self.eos_ids = self.lengths.to(seen.device), self.eos_ids.to(seen.device)
        ending = self.lengths == seen.shape[1] - self.prompt + 1
        scores.index_fill_(1, self.eos_ids, -torch.inf)
        scores[:, self.end] = torch.where(ending, _CERTAIN, -torch.inf)
        return scores
