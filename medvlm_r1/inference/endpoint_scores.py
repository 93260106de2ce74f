"""Probabilities of a question's options from a served model, as inference/confidence.py has them locally.

A request carries the completion as the last message, which the chat template leaves open, and asks for the
log-probabilities of the prompt. vLLM gives them; OpenAI does not. One difference to a local model: special
tokens that a completion spells out are not read as text.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from medvlm_r1.inference.endpoint import Endpoint, Job
from medvlm_r1.inference.endpoint_cache import CachedScores
from medvlm_r1.inference.endpoint_chat import Chat
from medvlm_r1.inference.endpoint_client import cause_and_remedy, client_library
from medvlm_r1.prompts import Alternatives

_PROBE = "Some <think>reasoning</think>\n<answer>A</answer>"


class NoScoresError(Exception):
    """The server cannot score a completion. The message is the reason."""


@dataclass(frozen=True)
class Token:
    """A token of a prompt, with its log-probability."""

    id: str
    text: str
    logprob: float


@dataclass(frozen=True)
class Turn:
    """What the chat template puts around a completion.

    Attributes:
        opening: text before it, such as ``<think>`` of reasoning models.
        trailing: number of tokens after the end-of-turn token.
    """

    opening: str
    trailing: int


def scoring_request(
    name: str, messages: list[dict[str, Any]], completion: str | None, ends_turn: bool = False
) -> dict[str, Any]:
    """Return the request for the log-probabilities of a conversation.

    Args:
        completion: last message; ``None`` for the prompt alone, up to the start of a completion.
        ends_turn: add the tokens that end the turn.
    """
    last = [] if completion is None else [{"role": "assistant", "content": completion}]
    return {
        "model": name,
        "messages": messages + last,
        "max_tokens": 1,
        "temperature": 0.0,
        "extra_body": {
            "prompt_logprobs": 0,  # of the prompt's own tokens alone
            "add_generation_prompt": completion is None,
            "continue_final_message": completion is not None and not ends_turn,
        },
    }


def read_tokens(response: Any) -> list[Token]:
    """Read the tokens of the prompt, except the first, from a response.

    Raises:
        NoScoresError: it has none.
    """
    rows = (response.model_extra or {}).get("prompt_logprobs")
    if not rows:
        raise NoScoresError("its responses have no prompt_logprobs")
    return [
        Token(token, value["decoded_token"], value["logprob"])
        for row in rows[1:]
        for token, value in row.items()
    ]


def option_logprobs(rows: Sequence[Sequence[Token]]) -> list[float]:
    """Return for each conversation the log-probability of its tokens after the prefix common to all."""
    columns = zip(*rows, strict=False)
    prefix = len(list(takewhile(lambda column: len({token.id for token in column}) == 1, columns)))
    return [sum(token.logprob for token in row[prefix:]) for row in rows]


async def find_turn(send: Callable[[dict[str, Any]], Awaitable[Any]], name: str) -> Turn:
    """Find how the server's chat template treats a completion, by a few requests.

    Raises:
        NoScoresError: the server gives no log-probabilities, or the template changes completions.
    """
    messages = [{"role": "user", "content": "A question"}]

    async def tokens(completion: str | None, ends_turn: bool = False) -> list[Token]:
        return read_tokens(await send(scoring_request(name, messages, completion, ends_turn)))

    prompt, opening = await tokens(None), ""
    for _ in range(2):
        continued = await tokens(opening + _PROBE)
        pairs = zip(prompt, continued, strict=False)
        common = len(list(takewhile(lambda pair: pair[0].id == pair[1].id, pairs)))
        if common == len(prompt):
            ended = await tokens(opening + _PROBE, ends_turn=True)
            return Turn(opening, len(ended) - len(continued) - 1)
        opening = "".join(token.text for token in prompt[common:])
    raise NoScoresError("its chat template changes an assistant's message")


@dataclass(frozen=True)
class OptionScorer:
    """Scores the options of questions by teacher forcing on a server, one request per option."""

    endpoint: Endpoint
    turn: Turn

    def __call__(self, prompts: Sequence[Chat], alternatives: Sequence[Alternatives]) -> list[list[float]]:
        """Return each question's probabilities of its options' letters, in order; they sum to one.

        Raises:
            EndpointError: as :meth:`~medvlm_r1.inference.endpoint.Endpoint.engine`.
        """
        jobs, opening = [], self.turn.opening
        for prompt, each in zip(prompts, alternatives, strict=True):
            # An answer starts with the tag that the template opens; a letter without tags does not.
            texts = [text if text.startswith(opening) else opening + text for text in each.texts]
            conversations = (
                scoring_request(self.endpoint.name, prompt.messages, text, each.ends_turn) for text in texts
            )
            trailing = self.turn.trailing if each.ends_turn else 0
            jobs.append(Job(prompt.sample.id, tuple(conversations), partial(self._read, trailing)))
        rows = [torch.tensor(scores.option_logprobs).double() for scores in self.endpoint.carry_out(jobs)]
        return [row.softmax(0).tolist() for row in rows]

    def _read(self, trailing: int, question: str, responses: Sequence[Any]) -> CachedScores:
        try:
            rows = [read_tokens(response) for response in responses]
        except NoScoresError as error:
            raise self.endpoint.failure(question, str(error), "Serve the model with vLLM") from None
        return CachedScores(option_logprobs([row[: len(row) - trailing] for row in rows]))


def connect_scorer(endpoint: Endpoint) -> OptionScorer:
    """Find out how, and whether, a server scores completions.

    Raises:
        NoScoresError: it gives no log-probabilities of a prompt, or its chat template changes completions.
        EndpointError: no connection, or a rejected API key.
    """
    openai = client_library()

    async def find() -> Turn:
        async with endpoint.client() as client:
            return await find_turn(lambda request: client.chat.completions.create(**request), endpoint.name)

    try:
        return OptionScorer(endpoint, asyncio.run(find()))
    except (openai.BadRequestError, openai.NotFoundError, openai.UnprocessableEntityError) as error:
        raise NoScoresError(" ".join(str(error).split())[:200]) from None
    except openai.OpenAIError as error:
        cause, remedy = cause_and_remedy(openai, error, endpoint.api_key_variable)
        raise endpoint.failure("none", cause, remedy) from error
