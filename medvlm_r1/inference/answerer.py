"""Answer questions with a trained or a served model and the prompt of its evaluation, with a confidence."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medvlm_r1.data.sample import BadRowError, Phase, Question, VQASample
from medvlm_r1.inference.answer_file import AnswerRecord
from medvlm_r1.inference.confidence import option_probabilities
from medvlm_r1.inference.endpoint import connect
from medvlm_r1.inference.endpoint_chat import Chat, ChatEncoder
from medvlm_r1.inference.endpoint_client import API_KEY, check_endpoint
from medvlm_r1.inference.endpoint_scores import NoScoresError, connect_scorer
from medvlm_r1.policy.encode import EncodedPrompt, Encoder
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.resolve import MissingWeightsError, check_weights, find_weights
from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.prompt_record import (
    RECORD,
    PromptRecord,
    UnknownPromptError,
    configured_revision,
    read_record,
    record_from_config,
)
from medvlm_r1.prompts import Alternatives, Answer, PromptStyle
from medvlm_r1.rollout.engine import Completions, Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine


@dataclass(frozen=True)
class Answerer:
    """A model with its prompt.

    Attributes:
        name: the model's path or hub id, as the user wrote it, or its name on a server.
        prompt_record: prompt, image sizes and token limits.
        notes: one line each; conditions under which answers differ from those of the model's evaluation.
        complete: completes encoded questions.
        score: gives the probabilities of their options' letters; ``None`` where a server does not.
        prompt_fault: (prompt, phase) -> a function that says why a question cannot be asked.
    """

    name: str
    encoder: Encoder | ChatEncoder
    prompt_record: PromptRecord
    notes: tuple[str, ...]
    complete: Callable[[Sequence[Any], Sampling], Completions]
    score: Callable[[Sequence[Any], Sequence[Alternatives]], list[list[float]]] | None
    prompt_fault: Callable[[PromptStyle, Phase], Callable[[Question], str | None]]

    @property
    def prompt(self) -> PromptStyle:
        """The prompt of questions of both kinds."""
        prompt = self.prompt_record.prompt
        # Without a template for open questions, the trained one serves, even if it asks for a letter.
        return dataclasses.replace(prompt, open=prompt.open or prompt.evaluate)

    def check(self, questions: Sequence[Question]) -> None:
        """Check the prompts of all questions, before the first is asked.

        Raises:
            BadRowError: a prompt is longer than the model's context, or holds a server's control token.
        """
        fault = self.prompt_fault(self.prompt, "evaluate")
        for question in questions:
            if reason := fault(question):
                raise BadRowError(f"{question.place or question.id}: {reason}")

    def answer(self, questions: Sequence[Question]) -> list[AnswerRecord]:
        """Answer a batch of questions greedily, with the engine and the parser of evaluation.

        Raises:
            BadRowError: an image cannot be decoded.
            EndpointError: a request to the server fails.
            ValueError: a question with its images is longer than the model's context.
        """
        prompt = self.prompt
        prompts = [self.encoder.encode(question, "evaluate", prompt) for question in questions]
        limit = self.prompt_record.max_completion_tokens
        rollout = self.complete(prompts, Sampling(group_size=1, max_tokens=limit, temperature=0.0))
        texts = [p.assistant_prefix + text for p, text in zip(prompts, rollout.texts, strict=True)]
        answers = [prompt.parse(text, q) for text, q in zip(texts, questions, strict=True)]
        closed = [row for row, question in enumerate(questions) if question.options]
        probabilities: dict[int, list[float]] = {}
        if closed and self.score:
            alternatives = [prompt.alternatives(answers[row], questions[row]) for row in closed]
            per_row = self.score([prompts[row] for row in closed], alternatives)
            probabilities = dict(zip(closed, per_row, strict=True))
        lengths, truncated = rollout.lengths.tolist(), rollout.truncated.tolist()
        return [
            self._answer_record(question, answers[row], probabilities.get(row), lengths[row], truncated[row])
            for row, question in enumerate(questions)
        ]

    def _answer_record(
        self,
        question: Question,
        answer: Answer,
        option_probs: list[float] | None,
        tokens: int,
        truncated: bool,
    ) -> AnswerRecord:
        probabilities = dict(zip(question.letters, option_probs, strict=True)) if option_probs else None
        letter = answer.letter or answer.lenient
        likeliest = max(probabilities, key=lambda option: probabilities[option]) if probabilities else None
        confidence_of = letter or likeliest
        return AnswerRecord(
            id=question.id,
            model=self.name,
            prompt=self.prompt_record.prompt.name,
            images=[image.name for image in question.images],
            question=question.question,
            options=list(question.options),
            text=answer.text,
            reasoning=answer.reasoning,
            content=answer.content,
            answer=answer.letter,
            answer_lenient=answer.lenient,
            answer_text=question.options[question.letters.index(letter)] if letter else None,
            confidence=probabilities[confidence_of] if probabilities and confidence_of else None,
            confidence_of=confidence_of,
            forced=answer.letter is None if probabilities else None,
            probabilities=probabilities,
            well_formed=answer.well_formed,
            tokens=tokens,
            truncated=truncated,
            gold=question.answer if isinstance(question, VQASample) else None,
        )


def load_answerer(path: str, prompt: str | None, recipe: str | None, device: str | None) -> Answerer:
    """Load a model with its prompt.

    Args:
        path: a run folder, a model or PEFT directory, ``embedded``, or a hub id.
        prompt, recipe: options of ``conf/prompt`` and ``conf/model``, for a checkpoint without
            ``medvlm_r1.json``. Defaults: ``medvlm_r1``, and the model option with this path or else
            ``qwen2_vl_2b``.
        device: torch device; default: the first GPU, or the CPU if there is none.

    Raises:
        MissingWeightsError, UnusableWeightsError, MissingGPUError: see
            :func:`~medvlm_r1.policy.loading.resolve.check_weights`.
        UnknownPromptError: the prompt is unknown, or ``prompt`` or ``recipe`` contradict ``medvlm_r1.json``.
        ValueError: no such device.
    """
    name, revision, torch_device = path, configured_revision(path), _device(device)
    model_folder = Path(path) / "model"
    if any((model_folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        path = str(model_folder)
    elif (Path(path) / "metrics.json").is_file():
        raise MissingWeightsError(
            f"--model {path} is a run without a model/: a zero-shot run saves no weights, so give the "
            "checkpoint that it evaluated"
        )
    check_weights(path, revision, "cpu" if device == "cpu" else "auto")
    folder = find_weights(path, revision)
    record, notes = read_record(folder), []
    if record is None:
        record, option = record_from_config(path, prompt or "medvlm_r1", recipe)
        notes.append(
            f"{name} has no {RECORD}, so its training prompt is unknown: the answers use --prompt "
            f"{record.prompt.name} and the limits of --recipe {option}"
        )
    elif recipe or prompt not in (None, record.prompt.name):
        raise UnknownPromptError(
            f"{folder}: {RECORD} sets the prompt ({record.prompt.name}) and the limits: leave out --prompt "
            "and --recipe, which are for a checkpoint without it"
        )
    if record.quantized:
        notes.append(
            "the adapter was trained over 4-bit weights and runs over 16-bit or 32-bit ones here, so answers "
            "can differ from those of its evaluation"
        )
    policy = load_policy(path, record, revision).to(torch_device).eval()
    context = policy.model.config.get_text_config().max_position_embeddings
    limit = context - record.max_completion_tokens
    policy.encoder = dataclasses.replace(policy.encoder, max_prompt_tokens=limit)
    complete = partial(_complete_locally, policy, SharedPrefixEngine())
    score = partial(option_probabilities, policy)
    return Answerer(name, policy.encoder, record, tuple(notes), complete, score, policy.prompt_fault)


def _complete_locally(
    policy: Policy, engine: SharedPrefixEngine, prompts: Sequence[EncodedPrompt], sampling: Sampling
) -> Completions:
    return engine(policy, prompts, sampling, NoiseKey(0, 0))


def connect_answerer(url: str, name: str, prompt: str | None, recipe: str | None) -> Answerer:
    """Connect to a served model, with a prompt of ``conf/prompt``.

    Args:
        url: base of an OpenAI-compatible API, mostly ending in ``/v1``.
        name: name of the model on the server.
        prompt, recipe: options of ``conf/prompt`` and ``conf/model``; defaults: ``medvlm_r1`` and
            ``endpoint``.

    Raises:
        EndpointError: no connection, a rejected API key, or the server does not serve ``name``.
        UnknownPromptError: there is no such option.
        ValueError: the package openai is not installed.
    """
    record, option = record_from_config(url, prompt or "medvlm_r1", recipe or "endpoint")
    check_endpoint(url, name, API_KEY)
    endpoint, score = connect(url, name, record), None
    notes = [
        f"the prompt that {name} was trained with is not known here: the answers use --prompt "
        f"{record.prompt.name} and the limits of --recipe {option}"
    ]
    try:
        score = connect_scorer(endpoint)
    except NoScoresError as error:
        notes.append(f"answers have no confidence: {url} gives no log-probabilities of a prompt ({error})")

    opening = score.turn.opening if score else ""

    def complete(prompts: Sequence[Chat], sampling: Sampling) -> Completions:
        rollout = endpoint.engine(endpoint, prompts, sampling, NoiseKey(0, 0))
        texts = [opening + text.removeprefix(opening.rstrip()) for text in rollout.texts]
        return dataclasses.replace(rollout, texts=texts)  # with the tag, even if nothing closes it

    return Answerer(name, endpoint.encoder, record, tuple(notes), complete, score, endpoint.prompt_fault)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name} cannot be used ({reason}): leave it out, or give cpu or cuda"
        ) from None
    return torch.device(name)
