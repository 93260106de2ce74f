"""Any model behind an OpenAI-compatible endpoint: evaluated, not trained.

A baseline that is too big for this machine is served elsewhere (vLLM, SGLang) and answers the same
questions in the same words, with the same pixels, greedily. It stands where a policy stands and
brings its own engine. Every reply is written down as it comes, so a run that was stopped and started
again asks only what is missing.
"""

import asyncio
import base64
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from medvlm_r1.data.images.cache import PictureCache
from medvlm_r1.data.perturbation import GREY, BlankImage
from medvlm_r1.data.sample import ImageHandle, Phase, VQASample
from medvlm_r1.inference.endpoint_cache import Reply, ReplyFile
from medvlm_r1.policy.counters import Counters
from medvlm_r1.policy.encode import fitted
from medvlm_r1.policy.loading.load import Recipe
from medvlm_r1.prompts import PromptStyle
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import DrawKey

CONNECT_SECONDS = 5.0  # to say that nobody is there; an answer may take model.timeout
log = logging.getLogger(__name__)


class EndpointError(RuntimeError):
    """An endpoint that cannot answer. The message names url, model, question and remedy."""


@dataclass(frozen=True)
class Chat:
    """One question as the endpoint receives it.

    Attributes:
        sample: the question itself, for reading and scoring the answer.
        messages: in the format of the chat completions API, pictures as data URLs.
        said: nothing: the API cannot begin an answer.
    """

    sample: VQASample
    messages: list[dict[str, Any]]
    said: str = ""


@dataclass(frozen=True)
class ChatEncoder:
    """Turns a question into a chat, in a DataLoader worker.

    Attributes:
        image_size, min_pixels, max_pixels: see :class:`~medvlm_r1.policy.loading.load.Recipe`. A Qwen2-VL
            server with wider limits leaves a picture of that size as it is.
    """

    image_size: int | None
    min_pixels: int
    max_pixels: int

    def encode(
        self,
        sample: VQASample,
        phase: Phase,
        prompt: PromptStyle,
        cache: PictureCache | None = None,
        opening: str = "",
        seen: dict[str, Image.Image] | None = None,
    ) -> Chat:
        """The prompt style's messages, with the pictures in their places.

        Args:
            opening: must be empty: how an answer begins is the server's.
            seen: pictures of earlier calls, which these are added to.

        Raises:
            BadRowError: an image cannot be decoded, or is over 200 times as long as wide.
            ValueError: the answer is to begin with something.
        """
        if opening:
            raise ValueError(f"a served model's answer cannot be made to begin with {opening!r}")
        seen = {} if seen is None else seen
        pictures = iter(sample.images)
        messages = [
            {
                **message,
                "content": [
                    self._picture(next(pictures), sample, cache, seen) if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in prompt.ask(sample, phase)
        ]
        return Chat(sample, messages)

    def _picture(
        self,
        image: ImageHandle,
        sample: VQASample,
        cache: PictureCache | None,
        seen: dict[str, Image.Image],
    ) -> dict[str, Any]:
        png = io.BytesIO()
        self._fitted(image, sample, cache, seen).save(png, "PNG")  # lossless: the server sees our pixels
        data = base64.b64encode(png.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    def _fitted(
        self,
        image: ImageHandle,
        sample: VQASample,
        cache: PictureCache | None,
        seen: dict[str, Image.Image],
    ) -> Image.Image:
        if image.name not in seen:
            if isinstance(image, BlankImage):
                size = self._fitted(image.of, sample, cache, seen).size
                seen[image.name] = Image.new("RGB", size, GREY)
            else:
                limits = (self.image_size, self.min_pixels, self.max_pixels)
                seen[image.name] = fitted(image, sample, *limits, cache)
        return seen[image.name]


@dataclass(frozen=True)
class Replies:
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
        replies: what was answered already.
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
        replies: ReplyFile,
    ) -> None:
        self.url, self.name, self.encoder, self.api_key_variable = url, name, encoder, api_key_variable
        self.concurrency, self.retries, self.timeout, self.replies = concurrency, retries, timeout, replies
        self.counters = Counters()  # stay empty: what is computed is computed elsewhere

    def parameters(self) -> Iterator[Tensor]:
        """None: they are elsewhere."""
        return iter(())

    def prepare(self) -> None:
        """Nothing is kept here that an evaluation would have to bring up to date."""

    def keep_pictures(self) -> None:
        """Nor are there features to keep."""

    def forget_pictures(self) -> None:
        """Or to drop."""

    def engine(
        self, policy: "Endpoint", prompts: Sequence[Chat], sampling: Sampling, draws: DrawKey
    ) -> Replies:
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
            if key not in self.replies.known
        }
        if missing:
            asyncio.run(self._ask(missing))
        found = [self.replies.known[key] for key in keys]
        return Replies(
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
                raise self._failure(question, *_cause(openai, error, self.api_key_variable)) from error
            self.replies.add(key, self._read(completion, question), model=self.name, question=question)

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

    def _read(self, completion: Any, question: str) -> Reply:
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
        return Reply(
            choice.message.content or "",  # null where a model says nothing
            completion.usage.completion_tokens,
            choice.finish_reason == "length",
        )

    def _failure(self, question: str, cause: str, remedy: str) -> EndpointError:
        kept = self.replies.path
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
    replies: str | None = "outputs/replies",
) -> Endpoint:
    """An :class:`Endpoint` whose replies are kept in the folder ``replies``, one file for each model.

    Args:
        recipe: pixel limits are taken from here.
        replies: a folder; ``None`` asks everything anew and keeps nothing.

    Raises:
        ValueError: a setting is out of range, or the kept replies cannot be read.
    """
    if concurrency < 1 or retries < 0 or timeout <= 0:
        raise ValueError(
            f"model.concurrency {concurrency} must be at least 1, model.retries {retries} not negative and "
            f"model.timeout {timeout} positive"
        )
    slug = re.sub(r"[^\w.-]+", "_", name)
    kept = ReplyFile(Path(replies) / f"{slug}.jsonl" if replies else None)
    if kept.path:
        log.info("%d replies of %s found in %s: they are not asked again", len(kept.known), name, kept.path)
    encoder = ChatEncoder(recipe.image_size, recipe.min_pixels, recipe.max_pixels)
    return Endpoint(url, name, encoder, api_key_variable, concurrency, retries, timeout, kept)


def check_endpoint(url: str, name: str, api_key_variable: str) -> None:
    """Stop within seconds where nobody answers at ``url``, or where ``name`` is not served.

    A server that lists no models is accepted: the first question will tell.

    Raises:
        EndpointError: unreachable, the key is refused, or other models are served.
        ValueError: the package openai is not installed.
    """
    openai = client_library()
    client = openai.OpenAI(
        base_url=url, api_key=api_key(api_key_variable), max_retries=1, timeout=CONNECT_SECONDS
    )
    try:
        listed = client.models.list()
    except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
        cause, remedy = _cause(openai, error, api_key_variable)
        raise EndpointError(f"{url}, model {name}: {cause}. {remedy}.") from error
    except openai.APIStatusError:
        return
    served = [model.id for model in getattr(listed, "data", None) or []]
    if served and name not in served:
        raise EndpointError(
            f"{url} does not serve {name}. Give one of these as model.name: {', '.join(served)}"
        )


def client_library() -> ModuleType:
    """The package openai, which is an extra; imported where it is needed."""
    try:
        import openai
    except ImportError:
        raise ValueError(
            "model=endpoint needs the package openai: pip install 'medvlm_r1[endpoint]'"
        ) from None
    for name in ("openai", "httpx2"):  # they report every request
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai


def api_key(variable: str) -> str:
    """The key in an environment variable; the client insists on one, open servers ignore it."""
    return os.environ.get(variable) or "none"


def digest(request: dict[str, Any]) -> str:
    """SHA-256 of a request: model, messages with their pictures, limit and temperature."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _cause(openai: ModuleType, error: Exception, api_key_variable: str) -> tuple[str, str]:
    """What a failed request means, and what helps."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time", "Look at the server, raise model.timeout or lower model.concurrency"
    if isinstance(error, openai.APIConnectionError):
        reason = error.__cause__ or error
        return f"nobody can be reached there ({reason})", "Start the server or correct model.url"
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        return (
            f"the server refuses the key (HTTP {status})",
            f"Put the right one into the environment variable {api_key_variable}",
        )
    if status == 404:
        return f"not found ({said})", "Correct model.name, or model.url: it mostly ends in /v1"
    if status == 429 or (status or 0) >= 500:
        return f"the server is not able to ({said})", "Start again later, or lower model.concurrency"
    return (
        f"the server refuses the request ({said})",
        "Where it is too long, lower model.recipe.max_pixels or model.recipe.max_completion_tokens, or "
        "serve the model with a longer context",
    )
