"""Any model behind an OpenAI-compatible endpoint: evaluated, not trained.

A baseline that is too big for this machine is served elsewhere (vLLM, SGLang) and answers the same
questions in the same words, with the same pixels, greedily. It stands where a policy stands and
brings its own engine. Every reply is written down as it comes, so a run that was stopped and started
again asks only what is missing.
"""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointCompletions:
    """The answers to some questions, in their order; :class:`~medvlm_r1.rollout.engine.Completions`."""

    texts: list[str]
    lengths: Int[Tensor, " rows"]
    truncated: Bool[Tensor, " rows"]


class Endpoint:
    """A served model in the place of a policy, with an engine of its own.

    Args:
        url: base of the API, mostly ending in ``/v1``.
        name: the model's name there.
        encoder: turns questions into chats.
        api_key_variable: environment variable that holds the key; servers without one ignore it.
        concurrency: requests under way at once.
        retries: further attempts after a lost connection, a time-out or HTTP 408, 409, 429 and 5xx, with
            exponential backoff from 0.5 to 8 seconds or as long as the server asks for.
        timeout: seconds that one answer may take.
        cache: the responses received so far.
    """

    def __init__(
        self,
        url: str,
        name: str,
        encoder: ChatEncoder,
        api_key_variable: str,
        concurrency: int,
        retries: int,
        timeout: float,
        cache: EndpointCache,
    ) -> None:
        self.url, self.name, self.encoder, self.api_key_variable = url, name, encoder, api_key_variable
        self.concurrency, self.retries, self.timeout, self.cache = concurrency, retries, timeout, cache
        self.counters = Counters()  # stay empty: what is computed is computed elsewhere

    def parameters(self) -> Iterator[Tensor]:
        """None: they are elsewhere."""
        return iter(())

    def prepare(self) -> None:
        """Nothing is kept here that an evaluation would have to bring up to date."""

    def enable_vision_cache(self) -> None:
        """Nor are there features to keep."""

    def clear_vision_cache(self) -> None:
        """Or to drop."""

    def engine(
        self, policy: "Endpoint", prompts: Sequence[Chat], sampling: Sampling, draws: NoiseKey
    ) -> EndpointCompletions:
        """Answer questions, all at once up to ``concurrency``; the server draws, so ``draws`` has no say.

        Raises:
            EndpointError: the server cannot be reached, refuses, or answers out of form. What was received
                until then is kept.
            ValueError: several completions of one prompt are wanted.
        """
        if sampling.group_size != 1:
            raise ValueError("an endpoint can be evaluated, not trained: it gives one answer to a question")
        requests = [
            {
                "model": self.name,
                "messages": prompt.messages,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
            }
            for prompt in prompts
        ]
        keys = [digest(request) for request in requests]
        missing = {
            key: (request, prompt.sample.id)
            for key, request, prompt in zip(keys, requests, prompts, strict=True)  # a twin is asked once
            if key not in self.cache.responses
        }
        if missing:
            asyncio.run(self._ask(missing))
        found = [self.cache.responses[key] for key in keys]
        return EndpointCompletions(
            texts=[reply.text for reply in found],
            lengths=torch.tensor([reply.tokens for reply in found]),
            truncated=torch.tensor([reply.truncated for reply in found]),
        )

    async def _ask(self, missing: dict[str, tuple[dict[str, Any], str]]) -> None:
        """Ask, and write down each reply as it comes.

        After a failure nothing more is asked, but what is under way has cost the server its work: it
        is waited for and kept.
        """
        openai = client_library()
        turn = asyncio.Semaphore(self.concurrency)
        failures: list[Exception] = []

        async def ask(key: str, request: dict[str, Any], question: str) -> None:
            try:
                completion = await client.chat.completions.create(**request)
            except openai.OpenAIError as error:
                raise self._failure(
                    question, *cause_and_remedy(openai, error, self.api_key_variable)
                ) from error
            self.cache.add(key, self._read(completion, question), model=self.name, question=question)

        async def ask_in_turn(key: str, request: dict[str, Any], question: str) -> None:
            async with turn:
                if not failures:
                    try:
                        await ask(key, request, question)
                    except Exception as error:
                        failures.append(error)

        async with openai.AsyncOpenAI(
            base_url=self.url,
            api_key=api_key(self.api_key_variable),
            max_retries=self.retries,
            timeout=openai.Timeout(self.timeout, connect=CONNECT_SECONDS),
        ) as client:
            await asyncio.gather(*(ask_in_turn(key, *asked) for key, asked in missing.items()))
        if failures:
            raise failures[0]

    def _read(self, completion: Any, question: str) -> CachedResponse:
        if not getattr(completion, "choices", None) or completion.usage is None:
            raise self._failure(
                question,
                "the answer has no choices or no token usage, so it is no chat completion",
                "Give the base of an OpenAI-compatible API as model.url; it mostly ends in /v1",
            )
        (choice, *_), extra = completion.choices, completion.choices[0].message.model_extra or {}
        if extra.get("reasoning") or extra.get("reasoning_content"):
            raise self._failure(
                question,
                "the server takes the reasoning out of the text, so its format cannot be judged",
                "Serve the model without a reasoning parser",
            )
        return CachedResponse(
            choice.message.content or "",  # null where a model says nothing
            completion.usage.completion_tokens,
            choice.finish_reason == "length",
        )

    def _failure(self, question: str, cause: str, remedy: str) -> EndpointError:
        kept = self.cache.path
        go_on = f" What was received is kept in {kept}: the same command goes on from there." if kept else ""
        return EndpointError(f"{self.url}, model {self.name}, question {question}: {cause}. {remedy}.{go_on}")


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
    """An :class:`Endpoint` whose replies are kept in the folder ``cache``, one file for each model.

    Args:
        recipe: pixel limits are taken from here.
        cache: a folder; ``None`` asks everything anew and keeps nothing.

    Raises:
        ValueError: a setting is out of range, or the kept replies cannot be read.
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


def digest(request: dict[str, Any]) -> str:
    """SHA-256 of a request: model, messages with their pictures, limit and temperature."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
