"""A model behind an OpenAI-compatible endpoint (vLLM, SGLang): for evaluation, not for training.

An :class:`Endpoint` has the interface of a policy and brings its own rollout engine. The served model
receives the prompts and pixels of a local one and decodes greedily. A cache stores each response at
once, so a run that was interrupted requests only the missing ones.
"""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medvlm_r1.inference.endpoint_cache import CachedResponse, EndpointCache
from medvlm_r1.inference.endpoint_chat import Chat, ChatEncoder
from medvlm_r1.inference.endpoint_client import (
    CONNECT_SECONDS,
    EndpointError,
    api_key,
    cause_and_remedy,
    client_library,
)
from medvlm_r1.policy.counters import Counters
from medvlm_r1.policy.loading.load import Recipe
from medvlm_r1.prompts import reopen_think
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointCompletions:
    """Completions in the order of their prompts; see :class:`~medvlm_r1.rollout.engine.Completions`."""

    texts: list[str]
    lengths: Int[Tensor, " rows"]
    truncated: Bool[Tensor, " rows"]


@dataclass(eq=False)
class Endpoint:
    """A served model with the interface of a policy and a rollout engine of its own.

    Attributes:
        url: base of the API, mostly ending in ``/v1``.
        name: name of the model on the server.
        api_key_variable: environment variable with the API key; open servers ignore it.
        concurrency: maximum number of parallel requests.
        retries: retries after a lost connection, a time-out or HTTP 408, 409, 429 and 5xx, with
            exponential backoff from 0.5 to 8 seconds, or the server's Retry-After.
        timeout: limit of one request in seconds.
        counters: all zero, since this process computes nothing.
    """

    url: str
    name: str
    encoder: ChatEncoder
    api_key_variable: str
    concurrency: int
    retries: int
    timeout: float
    cache: EndpointCache
    counters: Counters = field(default_factory=Counters)

    def parameters(self) -> Iterator[Tensor]:
        """No parameters: the server has them."""
        return iter(())

    def sync_sampling_model(self) -> None:
        """No-op, as the next two: the server has the weights and encodes the images."""

    enable_vision_cache = clear_vision_cache = sync_sampling_model

    def engine(
        self, policy: "Endpoint", prompts: Sequence[Chat], sampling: Sampling, draws: NoiseKey
    ) -> EndpointCompletions:
        """Complete the prompts, from the cache or by up to ``concurrency`` parallel requests.

        ``policy`` and ``draws`` are unused: the server samples.

        Raises:
            EndpointError: no connection, a rejected request, or a malformed response. The cache has every
                response received before.
            ValueError: ``sampling.group_size`` is not 1.
        """
        if sampling.group_size != 1:
            raise ValueError("an endpoint can be evaluated, not trained: it gives one completion per prompt")
        requests = [
            {
                "model": self.name,
                "messages": prompt.messages,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
            }
            for prompt in prompts
        ]
        keys = [
            hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest() for request in requests
        ]
        missing = {
            key: (request, prompt.sample.id)
            for key, request, prompt in zip(keys, requests, prompts, strict=True)  # equal requests once
            if key not in self.cache.responses
        }
        if missing:
            asyncio.run(self._request(missing))
        responses = [self.cache.responses[key] for key in keys]
        return EndpointCompletions(
            texts=[reopen_think(response.text) for response in responses],
            lengths=torch.tensor([response.tokens for response in responses]),
            truncated=torch.tensor([response.truncated for response in responses]),
        )

    async def _request(self, missing: dict[str, tuple[dict[str, Any], str]]) -> None:
        """Send the requests, by key with the question's id, and cache each response on arrival.

        After a failure no further request starts, but those in progress are awaited and cached.
        """
        openai = client_library()
        slots = asyncio.Semaphore(self.concurrency)
        failures: list[Exception] = []

        async def send(key: str, request: dict[str, Any], question: str) -> None:
            try:
                completion = await client.chat.completions.create(**request)
            except openai.OpenAIError as error:
                raise self._failure(
                    question, *cause_and_remedy(openai, error, self.api_key_variable)
                ) from error
            self.cache.add(key, self._read(completion, question), model=self.name, question=question)

        async def send_in_slot(key: str, request: dict[str, Any], question: str) -> None:
            async with slots:
                if not failures:
                    try:
                        await send(key, request, question)
                    except Exception as error:
                        failures.append(error)

        async with openai.AsyncOpenAI(
            base_url=self.url,
            api_key=api_key(self.api_key_variable),
            max_retries=self.retries,
            timeout=openai.Timeout(self.timeout, connect=CONNECT_SECONDS),
        ) as client:
            await asyncio.gather(*(send_in_slot(key, *request) for key, request in missing.items()))
        if failures:
            raise failures[0]

    def _read(self, completion: Any, question: str) -> CachedResponse:
        if not getattr(completion, "choices", None) or completion.usage is None:
            raise self._failure(
                question,
                "the response has no choices or no token usage, so it is no chat completion",
                "Give the base of an OpenAI-compatible API as model.url; it mostly ends in /v1",
            )
        (choice, *_), extra = completion.choices, completion.choices[0].message.model_extra or {}
        if extra.get("reasoning") or extra.get("reasoning_content"):
            raise self._failure(
                question,
                "the server removes the reasoning from the text, so its format cannot be evaluated",
                "Serve the model without a reasoning parser",
            )
        return CachedResponse(
            choice.message.content or "",  # null for an empty completion
            completion.usage.completion_tokens,
            choice.finish_reason == "length",
        )

    def _failure(self, question: str, cause: str, remedy: str) -> EndpointError:
        path = self.cache.path
        resume = f" {path} has every response so far: the same command requests the rest." if path else ""
        return EndpointError(
            f"{self.url}, model {self.name}, question {question}: {cause}. {remedy}.{resume}"
        )


def connect(
    url: str,
    name: str,
    recipe: Recipe,
    api_key_variable: str = "OPENAI_API_KEY",
    concurrency: int = 16,
    retries: int = 8,
    timeout: float = 600.0,
    cache: str | None = "outputs/replies",
) -> Endpoint:
    """Return an :class:`Endpoint` that caches responses in the folder ``cache``, one file per model.

    Args:
        recipe: image size and pixel limits.
        cache: a folder; ``None`` requests every answer again and stores nothing.

    Raises:
        ValueError: a setting is out of range, or the cache file is damaged.
    """
    if concurrency < 1 or retries < 0 or timeout <= 0:
        raise ValueError(
            f"model.concurrency {concurrency} must be at least 1, model.retries {retries} not negative and "
            f"model.timeout {timeout} positive"
        )
    slug = re.sub(r"[^\w.-]+", "_", name)
    stored = EndpointCache(Path(cache) / f"{slug}.jsonl" if cache else None)
    if stored.path:
        log.info("%s: %d cached responses of %s are reused", stored.path, len(stored.responses), name)
    encoder = ChatEncoder(recipe.image_size, recipe.min_pixels, recipe.max_pixels)
    return Endpoint(url, name, encoder, api_key_variable, concurrency, retries, timeout, stored)
