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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medvlm_r1.data.sample import Phase, Question
from medvlm_r1.inference.endpoint_cache import CachedResponse, CachedScores, EndpointCache
from medvlm_r1.inference.endpoint_chat import Chat, ChatEncoder, control_token_fault
from medvlm_r1.inference.endpoint_client import (
    API_KEY,
    CONNECT_SECONDS,
    EndpointError,
    api_key,
    cause_and_remedy,
    client_library,
)
from medvlm_r1.policy.counters import Counters
from medvlm_r1.policy.loading.load import Recipe
from medvlm_r1.policy.prompt_record import PromptRecord
from medvlm_r1.policy.resize import PATCH
from medvlm_r1.prompts import PromptStyle, reopen_think
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointCompletions:
    """Completions in the order of their prompts; see :class:`~medvlm_r1.rollout.engine.Completions`."""

    texts: list[str]
    lengths: Int[Tensor, " rows"]
    truncated: Bool[Tensor, " rows"]


@dataclass(frozen=True)
class Job:
    """Requests about one question whose responses give one line of the cache."""

    question: str
    requests: tuple[dict[str, Any], ...]
    read: Callable[[str, Sequence[Any]], CachedResponse | CachedScores]

    @cached_property
    def key(self) -> str:
        text = "".join(json.dumps(request, sort_keys=True) for request in self.requests)
        return hashlib.sha256(text.encode()).hexdigest()


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

    def prompt_fault(self, prompt: PromptStyle, phase: Phase) -> Callable[[Question], str | None]:
        """A function that says why a question cannot be sent to the server, or ``None``."""
        return control_token_fault

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
        jobs = [
            Job(
                prompt.sample.id,
                (
                    {
                        "model": self.name,
                        "messages": prompt.messages,
                        "max_tokens": sampling.max_tokens,
                        "temperature": sampling.temperature,
                    },
                ),
                self._read,
            )
            for prompt in prompts
        ]
        responses = self.carry_out(jobs)
        return EndpointCompletions(
            texts=[reopen_think(response.text) for response in responses],
            lengths=torch.tensor([response.tokens for response in responses]),
            truncated=torch.tensor([response.truncated for response in responses]),
        )

    def carry_out(self, jobs: Sequence[Job]) -> list[Any]:
        """Return the result of each job, from the cache or by its requests.

        Raises:
            EndpointError: as :meth:`engine`.
        """
        missing = {job.key: job for job in jobs if job.key not in self.cache.responses}  # equal ones once
        if missing:
            asyncio.run(self._request(list(missing.values())))
        return [self.cache.responses[job.key] for job in jobs]

    async def _request(self, jobs: Sequence[Job]) -> None:
        """Send the requests, and cache the result of each job on arrival.

        After a failure no further request starts, but those in progress are awaited and cached.
        """
        openai = client_library()
        slots = asyncio.Semaphore(self.concurrency)
        failures: list[Exception] = []

        async def send(request: dict[str, Any], question: str) -> Any:
            async with slots:
                if failures:
                    raise failures[0]
                try:
                    return await client.chat.completions.create(**request)
                except openai.OpenAIError as error:
                    failures.append(
                        self.failure(question, *cause_and_remedy(openai, error, self.api_key_variable))
                    )
                    raise failures[-1] from error

        async def send_all(job: Job) -> None:
            sent = (send(request, job.question) for request in job.requests)
            responses = await asyncio.gather(*sent, return_exceptions=True)
            try:
                if not any(isinstance(response, Exception) for response in responses):
                    self.cache.add(
                        job.key, job.read(job.question, responses), model=self.name, question=job.question
                    )
            except Exception as error:
                failures.append(error)

        async with self.client() as client:
            await asyncio.gather(*map(send_all, jobs))
        if failures:
            raise failures[0]

    def client(self) -> Any:
        """Return a new asynchronous client of the package openai, to be closed."""
        openai = client_library()
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=api_key(self.api_key_variable),
            max_retries=self.retries,
            timeout=openai.Timeout(self.timeout, connect=CONNECT_SECONDS),
        )

    def _read(self, question: str, responses: Sequence[Any]) -> CachedResponse:
        (completion,) = responses
        if not getattr(completion, "choices", None) or completion.usage is None:
            raise self.failure(
                question,
                "the response has no choices or no token usage, so it is no chat completion",
                "Give the base of an OpenAI-compatible API as model.url; it mostly ends in /v1",
            )
        (choice, *_), extra = completion.choices, completion.choices[0].message.model_extra or {}
        if extra.get("reasoning") or extra.get("reasoning_content"):
            raise self.failure(
                question,
                "the server removes the reasoning from the text, so its format cannot be evaluated",
                "Serve the model without a reasoning parser",
            )
        return CachedResponse(
            choice.message.content or "",  # null for an empty completion
            completion.usage.completion_tokens,
            choice.finish_reason == "length",
        )

    def failure(self, question: str, cause: str, remedy: str) -> EndpointError:
        """Return the error of a request; ``question`` is an id."""
        path = self.cache.path
        resume = f" {path} has every response so far: the same command requests the rest." if path else ""
        return EndpointError(
            f"{self.url}, model {self.name}, question {question}: {cause}. {remedy}.{resume}"
        )


def connect(
    url: str,
    name: str,
    recipe: Recipe | PromptRecord,
    api_key_variable: str = API_KEY,
    concurrency: int = 16,
    retries: int = 8,
    timeout: float = 600.0,
    cache: str | None = "outputs/replies",
    patch: int = PATCH,
) -> Endpoint:
    """Return an :class:`Endpoint` that caches responses in the folder ``cache``, one file per model.

    Args:
        recipe: image size and pixel limits.
        cache: a folder; ``None`` requests every answer again and stores nothing.
        patch: sides of resized images are multiples of this number of pixels.

    Raises:
        ValueError: a setting is out of range, or the cache file is damaged.
    """
    if concurrency < 1 or retries < 0 or timeout <= 0 or patch < 1:
        raise ValueError(
            f"model.concurrency {concurrency} and model.patch {patch} must be at least 1, model.retries "
            f"{retries} not negative and model.timeout {timeout} positive"
        )
    slug = re.sub(r"[^\w.-]+", "_", name)
    stored = EndpointCache(Path(cache) / f"{slug}.jsonl" if cache else None)
    if stored.path:
        log.info("%s: %d cached responses of %s are reused", stored.path, len(stored.responses), name)
    encoder = ChatEncoder(recipe.image_size, recipe.min_pixels, recipe.max_pixels, patch)
    return Endpoint(url, name, encoder, api_key_variable, concurrency, retries, timeout, stored)
