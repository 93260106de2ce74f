"""The vision-language model as GRPO, SFT and evaluation use it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig

from medvlm_r1.policy.counters import Counters
from medvlm_r1.policy.encode import VISION_TOKENS, Encoder, PromptBatch
from medvlm_r1.policy.forward import attention
from medvlm_r1.policy.forward.attention import run_layers
from medvlm_r1.policy.forward.decoding import DecodingLayout, PromptCache
from medvlm_r1.policy.forward.lm_head import next_token_logprobs
from medvlm_r1.policy.forward.logprobs import LAYOUTS, embed, inner_model, repeat_prompts
from medvlm_r1.policy.forward.packing import PromptLayout
from medvlm_r1.policy.forward.vision import FeatureCache, Model, blank_features, features_of_images
from medvlm_r1.policy.saving.folder import greedy_config, write_adapter_base, write_processor_class
from medvlm_r1.runs.durable import replace_folder

Scores = Float[Tensor, "rows vocabulary"]


class Policy(nn.Module):
    """A Qwen2-VL model with its encoder: log-probabilities, generation, reference, saving.

    Rows are prompt-major: ``group_size`` completions of the first prompt, then of the second.

    Args:
        model, encoder: of one checkpoint.
        layout: of log-probability passes: ``packed`` has each prompt once, ``repeated`` before each of its
            completions, through transformers' own forward. They give the same; the second is what the
            first is tested against.
    """

    def __init__(
        self, model: Model, encoder: Encoder, layout: Literal["packed", "repeated"] = "packed"
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}: use {' or '.join(LAYOUTS)}")
        inner_model(model).language_model.set_attn_implementation(attention.NAME)
        self.model = model
        self.encoder = encoder
        self.layout = layout
        self.counters = Counters()
        self.has_adapter = hasattr(model, "disable_adapter")
        self.tower_is_frozen = not any(p.requires_grad for p in inner_model(model).visual.parameters())
        # In lists, so that nn.Module does not register them: frozen copies must stay out of the
        # checkpoint, the optimiser and the strategy's wrapping.
        self._reference: list[Model] = []
        self._whole: list[Model] = []
        self._features, self._reference_features = FeatureCache(), FeatureCache()
        self._keeps_features = self.tower_is_frozen

        tokenizer = encoder.tokenizer
        eos = model.generation_config.eos_token_id
        self.eos_ids = sorted({tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})
        self.pad_id = tokenizer.pad_token_id
        self.image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        # An emitted image token would ask the next pass for features that do not exist.
        known = [token for token in VISION_TOKENS if token in tokenizer.get_vocab()]
        self.banned_ids = tokenizer.convert_tokens_to_ids(known)
        banned = torch.zeros(model.get_input_embeddings().num_embeddings, dtype=torch.bool)
        banned[self.banned_ids] = True
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
        return self(prompts, tokens, mask, temperature)

    def forward(self, *batch: Any) -> Float[Tensor, "rows tokens"]:
        """:meth:`logprobs`, as one pass through this module: FSDP gathers weights around it."""
        return self._logprobs(self.model, *batch).clone()  # FSDP hooks the result, which may be no view

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
            raise RuntimeError("no reference is kept: call freeze_reference() before training starts")
        if self._reference:
            return self._logprobs(self._reference[0], prompts, tokens, mask, temperature)
        with self.model.disable_adapter():
            return self(prompts, tokens, mask, temperature)

    @property
    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimiser moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def freeze_reference(self) -> None:
        """Keep the present weights as the reference; free with an adapter, a frozen copy without.

        A frozen vision tower is shared with the copy.
        """
        self._reference_features.clear()
        if self.has_adapter:
            return
        tower = inner_model(self.sampling_model).visual
        shared = {id(tower): tower} if self.tower_is_frozen else {}
        self._reference = [copy.deepcopy(self.sampling_model, shared).requires_grad_(False)]

    def drop_reference(self) -> None:
        """Free the frozen copy when training is over."""
        self._reference = []
        self.clear_vision_cache()

    def enable_vision_cache(self) -> None:
        """Run a trained tower once for each picture, until they are forgotten: while no weight moves."""
        if not self._keeps_features:
            self._features.clear()
        self._keeps_features = True

    def clear_vision_cache(self) -> None:
        """Drop the kept features: the next pass runs the tower again."""
        self._keeps_features = self.tower_is_frozen
        self._features.clear()
        self._reference_features.clear()

    def move_copies(self) -> None:
        """Move the frozen copies, which Lightning does not see, to the model's device."""
        for model in (*self._reference, *self._whole):
            model.to(self.device)

    def prepare(self) -> None:
        """Bring the frozen copies to this device and up to date, before an evaluation. A collective."""
        self.move_copies()
        self.sync_sampling_model()

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass, but never those of a frozen tower."""
        inner = inner_model(self.model)
        for part in (inner.language_model, *(() if self.tower_is_frozen else (inner.visual,))):
            # renamed in transformers 5.23
            getattr(part, "activation_checkpointing_enable", part.gradient_checkpointing_enable)()

    def shard(self, mesh: DeviceMesh) -> None:
        """Split every parameter over ``mesh`` (FSDP2), and keep one whole copy to sample from.

        Trained parameters become fp32 and are gathered in the type that they were loaded in, so the
        optimiser needs no copies of its own. Sampling from a whole copy has no collective in it, so
        ranks may decode to different lengths.

        Raises:
            ValueError: weights are held in 4 bits, which cannot be split.
        """
        if self._whole:
            return
        if any(not p.is_floating_point() for p in self.parameters()):
            raise ValueError("weights held in 4 bits cannot be split over devices: take trainer=ddp")
        dtype = self.model.dtype
        self._whole = [copy.deepcopy(self.model).requires_grad_(False).eval()]
        if self.tower_is_frozen:
            for reference in self._reference:  # it shares the tower that is about to be split
                inner_model(reference).visual = inner_model(self._whole[0]).visual
        # Inputs stay as they are: rotary cosines in bf16 would make another function of it.
        types = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        inner = inner_model(self.model)
        for part in (*inner.visual.blocks, *inner.language_model.layers, self):
            for parameter in part.parameters():  # layer by layer: no rank holds all of it in fp32
                if parameter.requires_grad and not isinstance(parameter, DTensor):
                    parameter.data = parameter.data.float()
            fully_shard(part, mesh=mesh, mp_policy=types)

    @torch.no_grad()
    def sync_sampling_model(self) -> None:
        """Bring the whole copy of a split model up to date. A collective: every rank must call it."""
        for whole in self._whole:
            copies = dict(whole.named_parameters())
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    copies[name].copy_(parameter.full_tensor())

    @property
    def sampling_model(self) -> Model:
        """The model with all its weights on this device: to sample from and to save."""
        return self._whole[0] if self._whole else self.model

    def image_features(self, prompts: PromptBatch, model: Model | None = None) -> Tensor | None:
        """Features of the prompts' pictures, from ``model`` or the policy's own; ``None`` without any."""
        model, cache = model or self.sampling_model, None
        if self.tower_is_frozen:  # and the same in all copies; in the whole one it waits for no other rank
            model, cache = self.sampling_model, self._features
        elif self._reference and model is self._reference[0]:
            cache = self._reference_features
        elif self._keeps_features and model is self.sampling_model:
            cache = self._features
        if not len(prompts.grid):
            if cache is not None or not torch.distributed.is_initialized():
                return None
            # Another rank may hold pictures, and strategies wait until all ranks used the same weights.
            return blank_features(model, self.encoder.image_processor.merge_size)[:0]
        features, encoded = features_of_images(model, prompts, cache)
        self.counters["images_encoded"] += encoded
        return features

    @contextmanager
    def sampling_mode(self) -> Iterator[None]:
        """While completions are drawn: in training mode, gradient checkpointing would keep no keys."""
        mode = self.sampling_model.training
        self.sampling_model.eval()
        try:
            yield
        finally:
            self.sampling_model.train(mode)

    @torch.no_grad()
    def prefill(self, prompts: PromptBatch, multiple: int = 1) -> PromptCache:
        """Read each prompt once.

        Args:
            multiple: keys and values are padded to so many tokens, or twice as many, and so on.
        """
        model, layout = (
            self.sampling_model,
            PromptLayout(prompts.lengths, self.device, keep=True, multiple=multiple),
        )
        embeds = embed(model, prompts, self.image_features(prompts, model))
        self.counters["prefill_tokens"] += len(embeds)
        hidden = run_layers(inner_model(model).language_model, embeds, prompts.positions, layout)
        return PromptCache(layout.kept, layout.blocks.filled, prompts.next_positions, hidden[prompts.ends])

    @torch.no_grad()
    def decode_step(
        self, tokens: Int[Tensor, " rows"], decoding: DecodingLayout
    ) -> Float[Tensor, "rows width"]:
        """Feed each row its latest token."""
        model = self.sampling_model
        embeds = model.get_input_embeddings()(tokens)
        return run_layers(inner_model(model).language_model, embeds, decoding.positions, decoding)

    @torch.no_grad()
    def next_token_logprobs(self, hidden: Float[Tensor, "rows width"], temperature: float = 1.0) -> Scores:
        """Log-probabilities of the next token, as :meth:`logprobs` has them."""
        return next_token_logprobs(
            hidden, self.sampling_model.get_output_embeddings().weight, self.banned, temperature
        )

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
        model = self.sampling_model
        embeds, mask, positions = repeat_prompts(
            model, prompts, self.image_features(prompts, model), group_size
        )
        self.counters["prefill_tokens"] += mask.numel()
        with self.sampling_mode():
            tokens = model.generate(
                inputs_embeds=embeds,
                attention_mask=mask.long(),
                # Given here, positions advance by one a token; left out, they come from stale state.
                position_ids=positions,
                generation_config=config,
                logits_processor=[choose],
            )
        self.counters["decode_rows"] += tokens[:, 1:].numel()
        return tokens

    def save(self, folder: Path, max_new_tokens: int | None = None) -> None:
        """Write an ordinary Hugging Face directory (an adapter writes a PEFT directory).

        It answers as our evaluation does: greedily, and never with a vision token. It is written
        beside ``folder`` first, so that a kill leaves no half of one; what was there is replaced.

        Args:
            max_new_tokens: limit of an answer that goes into the generation config.
        """
        model = self.sampling_model
        with replace_folder(folder) as partial:
            # Otherwise peft asks the hub for the size of the base's vocabulary.
            how = {"save_embedding_layers": False} if self.has_adapter else {}
            model.save_pretrained(partial, **how)
            self.encoder.tokenizer.save_pretrained(partial)
            self.encoder.image_processor.save_pretrained(partial)
            write_processor_class(partial, model.config.model_type)
            if self.has_adapter:
                write_adapter_base(partial, model.get_base_model().name_or_path)
            greedy_config(self.eos_ids, self.pad_id, self.banned_ids, max_new_tokens).save_pretrained(partial)

    def _logprobs(self, model, prompts, tokens, mask, temperature):
        features, lengths = self.image_features(prompts, model), mask.sum(1).tolist()
        compute, count = LAYOUTS[self.layout]
        for name, number in count(prompts, tokens, lengths).items():
            self.counters[name] += number
        return compute(model, prompts, features, tokens, lengths, self.banned, temperature)
