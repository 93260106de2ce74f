"""The vision-language model for GRPO, SFT and evaluation: log-probabilities, generation, saving."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import DeviceMesh

from medvlm_r1.data.sample import Phase, Question
from medvlm_r1.policy.copies import FrozenCopies, shard_parameters
from medvlm_r1.policy.counters import Counters
from medvlm_r1.policy.encode import VISION_TOKENS, Encoder, PromptBatch
from medvlm_r1.policy.forward import attention
from medvlm_r1.policy.forward.attention import run_layers
from medvlm_r1.policy.forward.decode_layers import decode_layers
from medvlm_r1.policy.forward.decoding import DecodingLayout, PromptCache
from medvlm_r1.policy.forward.lm_head import next_token_logprobs
from medvlm_r1.policy.forward.logprobs import LAYOUTS, embed, repeat_prompts
from medvlm_r1.policy.forward.model import Model, inner_model, require_full_attention
from medvlm_r1.policy.forward.packing import PromptLayout
from medvlm_r1.policy.forward.vision import Features, VisionCache, image_features
from medvlm_r1.policy.prompt_length import PromptLength
from medvlm_r1.policy.saving.folder import greedy_config, save_model
from medvlm_r1.prompts import PromptStyle

Tokens = Int[Tensor, "rows tokens"]
Mask = Bool[Tensor, "rows tokens"]
Logprobs = Float[Tensor, "rows tokens"]
Scores = Float[Tensor, "rows vocabulary"]


class Policy(nn.Module):
    """A vision-language model with its encoder.

    Rows are prompt-major: ``group_size`` completions of the first prompt, then those of the second.

    Args:
        layout: of log-probability passes. ``packed`` computes each prompt once; ``repeated`` computes it
            before each of its completions, through transformers' own forward. Both return the same; tests
            compare them.

    Raises:
        ValueError: ``layout`` is another word, or the model's layers need ``repeated``.
    """

    def __init__(
        self, model: Model, encoder: Encoder, layout: Literal["packed", "repeated"] = "packed"
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}: use {' or '.join(LAYOUTS)}")
        if layout == "packed":
            require_full_attention(model)
        inner = inner_model(model)
        for part in (inner.language_model, inner.visual):
            part.set_attn_implementation(attention.NAME)
        self.model = model
        self.encoder = encoder
        self.layout = layout
        self.counters = Counters()
        self.has_adapter = hasattr(model, "disable_adapter")
        self.tower_is_frozen = not any(p.requires_grad for p in inner.visual.parameters())
        self.copies = FrozenCopies()
        self.vision_cache = VisionCache(self.tower_is_frozen)
        self.sampling_version = 0  # of the weights to sample from: rises with every sync_sampling_model()

        tokenizer = encoder.tokenizer
        eos = model.generation_config.eos_token_id
        self.eos_ids = sorted({tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})
        self.pad_id = tokenizer.pad_token_id
        self.image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        # A sampled image token would need features that do not exist in the next pass.
        known = [token for token in VISION_TOKENS if token in tokenizer.get_vocab()]
        self.banned_ids = tokenizer.convert_tokens_to_ids(known)
        banned = torch.zeros(model.get_input_embeddings().num_embeddings, dtype=torch.bool)
        banned[self.banned_ids] = True
        self.register_buffer("banned", banned, persistent=False)

    def prompt_fault(self, prompt: PromptStyle, phase: Phase) -> Callable[[Question], str | None]:
        """A function that says why a question cannot be encoded, without decoding its images, or ``None``."""
        return PromptLength(self.encoder, prompt, phase).fault

    @property
    def device(self) -> torch.device:
        return self.banned.device

    @property
    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def logprobs(
        self, prompts: PromptBatch, tokens: Tokens, mask: Mask, temperature: float = 1.0
    ) -> Logprobs:
        """Log-probability of each completion token, with gradient.

        Logits are divided by ``temperature``, not truncated, vision tokens masked, softmax in fp32: the same
        distribution as in :class:`~medvlm_r1.rollout.engine.Rollout`. Entries outside ``mask`` have no
        meaning.
        """
        return self(prompts, tokens, mask, temperature)

    def forward(self, *batch: Any) -> Logprobs:
        """:meth:`logprobs`, as one pass through this module: FSDP gathers weights around it."""
        return self._logprobs(self.model, *batch).clone()  # FSDP hooks the result, which must not be a view

    @torch.no_grad()
    def reference_logprobs(
        self, prompts: PromptBatch, tokens: Tokens, mask: Mask, temperature: float = 1.0
    ) -> Logprobs:
        """:meth:`logprobs` under the starting weights: the adapter disabled, or the frozen copy.

        Raises:
            RuntimeError: there is neither.
        """
        if self.copies.reference is not None:
            return self._logprobs(self.copies.reference, prompts, tokens, mask, temperature)
        if not self.has_adapter:
            raise RuntimeError("there is no reference: call freeze_reference() before training starts")
        with self.model.disable_adapter():
            return self(prompts, tokens, mask, temperature)

    def freeze_reference(self) -> None:
        """Make the present weights the reference; without an adapter, copy them (but not a frozen tower).

        The copy is made, and stays, on the device of the weights.
        """
        self.vision_cache.reference.clear()
        if not self.has_adapter:
            self.copies.freeze_reference(self.sampling_model, self.tower_is_frozen)

    def drop_reference(self) -> None:
        """Free the frozen copy after training."""
        self.copies.reference = None
        self.clear_vision_cache()

    def enable_vision_cache(self) -> None:
        """Encode each image once until :meth:`clear_vision_cache`; only while no weight changes."""
        self.vision_cache.enable()

    def clear_vision_cache(self) -> None:
        """Drop cached image features, and encode each image in each pass again if the tower is trained."""
        self.vision_cache.clear()

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass, except those of a frozen tower."""
        inner = inner_model(self.model)
        for part in (inner.language_model, *(() if self.tower_is_frozen else (inner.visual,))):
            # renamed in transformers 5.23
            getattr(part, "activation_checkpointing_enable", part.gradient_checkpointing_enable)()

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard every parameter over ``mesh`` (FSDP2), and keep a full copy to sample from.

        Sampling from a full copy needs no collective, so ranks may decode to different lengths.

        Raises:
            ValueError: the model has 4-bit weights, which FSDP cannot shard.
        """
        if self.copies.sampling is not None:
            return
        if any(not p.is_floating_point() for p in self.parameters()):
            raise ValueError("weights held in 4 bits cannot be split over devices: take trainer=ddp")
        self.copies.add_sampling_model(self.model, self.tower_is_frozen)
        shard_parameters(self, self.model, mesh)

    def sync_sampling_model(self) -> None:
        """Copy the sharded weights to the sampling model. A collective: every rank must call it.

        An engine with weights of its own takes those of the latest :attr:`sampling_version`.
        """
        self.copies.sync_sampling_model(self.model)
        self.sampling_version += 1

    @property
    def sampling_model(self) -> Model:
        """The model with all its weights on this device: sampled from, and saved."""
        return self.model if self.copies.sampling is None else self.copies.sampling

    def image_features(self, prompts: PromptBatch, model: Model | None = None) -> Features:
        """Features of each prompt's images, by ``model`` or the sampling model."""
        # A frozen tower is equal in all models; that of the sampling model needs no collective.
        if model is None or self.tower_is_frozen:
            model = self.sampling_model
        store = self.vision_cache.of(model, self.sampling_model, self.copies.reference)
        features, encoded = image_features(model, prompts, self.encoder, store)
        self.counters["images_encoded"] += encoded
        return features

    @contextmanager
    def sampling_mode(self) -> Iterator[None]:
        """Evaluation mode while sampling: in training mode, gradient checkpointing disables the KV cache."""
        training = self.sampling_model.training
        self.sampling_model.eval()
        try:
            yield
        finally:
            self.sampling_model.train(training)

    @torch.no_grad()
    def prefill(self, prompts: PromptBatch) -> PromptCache:
        """Run each prompt through the layers once."""
        model = self.sampling_model
        require_full_attention(model)
        layout = PromptLayout(prompts.lengths, self.device, keep_keys=True)
        embeds, *deepstack = embed(model, prompts, self.image_features(prompts))
        self.counters["prefill_tokens"] += len(embeds)
        hidden = run_layers(inner_model(model).language_model, embeds, prompts.positions, layout, deepstack)
        return PromptCache(layout.layers, layout.padder.mask, prompts.next_positions, hidden[prompts.ends])

    @torch.no_grad()
    def decode_step(
        self, tokens: Int[Tensor, " rows"], decoding: DecodingLayout
    ) -> Float[Tensor, "rows width"]:
        """Hidden states of each row's latest token; its keys and values go into ``decoding``."""
        model = self.sampling_model
        embeds = model.get_input_embeddings()(tokens)
        return decode_layers(inner_model(model).language_model, embeds, decoding)

    @property
    def head_weight(self) -> Float[Tensor, "vocabulary width"]:
        """Weight of the sampling model's language-model head."""
        return self.sampling_model.get_output_embeddings().weight

    @torch.no_grad()
    def next_token_logprobs(self, hidden: Float[Tensor, "rows width"], temperature: float = 1.0) -> Scores:
        """Log-probabilities of the next token, from the same distribution as :meth:`logprobs`."""
        return next_token_logprobs(hidden, self.head_weight, self.banned, temperature)

    @torch.no_grad()
    def generate(
        self,
        prompts: PromptBatch,
        group_size: int,
        max_tokens: int,
        logits_processor: Callable[[Int[Tensor, "rows length"], Scores], Scores],
    ) -> Tokens:
        """Decode with transformers' ``generate``: the argmax of ``logits_processor(tokens so far, logits)``.

        Returns:
            Completions, padded with ``pad_id`` after the end of sequence.
        """
        model = self.sampling_model
        repeated = repeat_prompts(model, prompts, self.image_features(prompts), group_size)
        prompt_ids = repeated["input_ids"]
        self.counters["prefill_tokens"] += prompt_ids.numel()
        with self.sampling_mode():
            tokens = model.generate(
                **repeated,
                generation_config=greedy_config(self.eos_ids, self.pad_id, None, max_tokens),
                logits_processor=[logits_processor],
            )[:, prompt_ids.shape[1] :]
        self.counters["decode_rows"] += tokens[:, 1:].numel()
        return tokens

    def save(self, folder: Path, max_new_tokens: int | None = None) -> None:
        """Replace ``folder`` with a Hugging Face directory (a PEFT directory for an adapter).

        Its generation config is that of our evaluation: greedy, without vision tokens.
        """
        config = greedy_config(self.eos_ids, self.pad_id, self.banned_ids, max_new_tokens)
        save_model(folder, self.sampling_model, self.encoder, config)

    def _logprobs(
        self, model: Model, prompts: PromptBatch, tokens: Tokens, mask: Mask, temperature: float
    ) -> Logprobs:
        features, lengths = self.image_features(prompts, model), mask.sum(1).tolist()
        batch = (prompts, features, tokens, lengths, self.banned, temperature)
        logprobs, counts = LAYOUTS[self.layout](model, *batch)
        self.counters.update(counts)
        return logprobs
