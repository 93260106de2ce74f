"""The vision-language model as GRPO, SFT and evaluation use it."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from medvlm_r1.policy.encode import VISION_TOKENS, Encoder, PromptBatch

Scores = Float[Tensor, "rows vocabulary"]


class Policy(nn.Module):
    """A Qwen2-VL model with its encoder: log-probabilities, generation, reference, saving.

    Rows are prompt-major: ``group_size`` completions of the first prompt, then of the second.
    Images pass through the vision tower once per prompt, not once per completion.
    """

    def __init__(self, model: PreTrainedModel, encoder: Encoder) -> None:
        super().__init__()
        self.model = model
        self.encoder = encoder
        self.has_adapter = hasattr(model, "disable_adapter")
        # A list, so that nn.Module does not register the frozen copy: it must stay out of the
        # checkpoint, the optimiser and the strategy's wrapping.
        self._reference: list[PreTrainedModel] = []

        tokenizer = encoder.tokenizer
        eos = model.generation_config.eos_token_id
        self.eos_ids = sorted({tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})
        self.pad_id = tokenizer.pad_token_id
        self.image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        # An emitted image token would ask the next pass for features that do not exist.
        banned = torch.zeros(model.get_input_embeddings().num_embeddings, dtype=torch.bool)
        banned[[tokenizer.convert_tokens_to_ids(t) for t in VISION_TOKENS if t in tokenizer.get_vocab()]] = (
            True
        )
        self.register_buffer("banned", banned, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.banned.device

    def logprobs(
        self,
        prompts: PromptBatch,
        tokens: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "rows tokens"]:
        """Log-probability of each completion token, with gradient.

        Temperature-scaled, untruncated, vision tokens banned, softmax in fp32: as the sampler
        records them. Entries outside ``mask`` are meaningless.
        """
        return self._logprobs(self.model, prompts, tokens, mask, temperature)

    @torch.no_grad()
    def reference_logprobs(
        self,
        prompts: PromptBatch,
        tokens: Int[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "rows tokens"]:
        """As :meth:`logprobs`, under the starting weights: adapter off, or the frozen copy."""
        if not self.has_adapter and not self._reference:
            raise RuntimeError("no reference is kept: call keep_reference() before training starts")
        model = self._reference[0] if self._reference else self.model
        with self.model.disable_adapter() if self.has_adapter else nullcontext():
            return self._logprobs(model, prompts, tokens, mask, temperature)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that an optimiser moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def keep_reference(self) -> None:
        """Keep the present weights as the reference; free with an adapter, a frozen copy without."""
        if not self.has_adapter:
            self._reference = [copy.deepcopy(self.model).requires_grad_(False).eval()]

    def reference_to(self, device: torch.device) -> None:
        """Move the frozen copy, which Lightning does not see."""
        self._reference = [model.to(device) for model in self._reference]

    def drop_reference(self) -> None:
        """Free the frozen copy when training is over."""
        self._reference = []

    @torch.no_grad()
    def generate(
        self,
        prompts: PromptBatch,
        group_size: int,
        max_tokens: int,
        choose: Callable[[Int[Tensor, "rows seen"], Scores], Scores],
    ) -> Int[Tensor, "rows tokens"]:
        """Decode with transformers' ``generate``, taking the argmax of what ``choose`` returns.

        Args:
            choose: a logits processor: (tokens so far, logits) -> scores.

        Returns:
            Completions, padded with ``pad_id`` behind the end of sequence.
        """
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=self.eos_ids,
            pad_token_id=self.pad_id,
        )
        return self.model.generate(
            inputs_embeds=self._embed(self.model, prompts).repeat_interleave(group_size, dim=0),
            attention_mask=prompts.mask.repeat_interleave(group_size, dim=0).long(),
            # Given here, positions advance by one a token; left out, they come from stale module state.
            position_ids=prompts.positions.repeat_interleave(group_size, dim=1),
            generation_config=config,
            logits_processor=[choose],
        )

    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face directory (an adapter writes a PEFT directory)."""
        self.model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)
        self.encoder.image_processor.save_pretrained(folder)

    def _logprobs(self, model, prompts, tokens, mask, temperature):
        group_size = len(tokens) // len(prompts.ids)
        embeds = self._embed(model, prompts).repeat_interleave(group_size, dim=0)
        seen = prompts.mask.repeat_interleave(group_size, dim=0)
        positions = prompts.positions.repeat_interleave(group_size, dim=1)
        steps = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        logits = model(
            inputs_embeds=torch.cat([embeds, model.get_input_embeddings()(tokens)], dim=1),
            attention_mask=torch.cat([seen, mask], dim=1).long(),
            position_ids=torch.cat(
                [positions, positions.amax(dim=(0, 2))[None, :, None] + steps.expand(3, len(tokens), -1)],
                dim=2,
            ),
            logits_to_keep=tokens.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
        logits = (logits.float() / temperature).masked_fill(self.banned, -torch.inf)
        return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def _embed(self, model, prompts: PromptBatch) -> Float[Tensor, "prompts tokens width"]:
        """Token embeddings with the vision tower's features in the image tokens' places."""
        embeds = model.get_input_embeddings()(prompts.ids)
        if not len(prompts.grid):
            return embeds
        inner = model.get_base_model() if self.has_adapter else model
        features = torch.cat(inner.model.get_image_features(prompts.pixels, prompts.grid).pooler_output)
        places = (prompts.ids == self.image_id).unsqueeze(-1).expand_as(embeds)
        if places.sum() != features.numel():
            raise RuntimeError(
                f"{features.shape[0]} image features for {int(places[..., 0].sum())} image tokens"
            )
        return embeds.masked_scatter(places, features.to(embeds.dtype))
