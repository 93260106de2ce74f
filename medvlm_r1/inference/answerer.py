"""A trained model that answers questions one by one, as its evaluation asked it, and says how surely."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medvlm_r1.data.sample import Question, VQASample
from medvlm_r1.inference.answer_file import AnswerRecord
from medvlm_r1.inference.confidence import option_probabilities
from medvlm_r1.policy.encode import EncodedPrompt
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
from medvlm_r1.prompts import Answer
from medvlm_r1.rollout.engine import Sampling
from medvlm_r1.rollout.sampling_noise import NoiseKey
from medvlm_r1.rollout.shared_prefix import SharedPrefixEngine


@dataclass(frozen=True)
class Answerer:
    """A model, the words that it is asked in, and what is worth saying about them.

    Attributes:
        name: the model's, as given.
        policy, asked: the weights; the prompt and limits.
        notes: what a user has to know to trust an answer, a line each.
    """

    name: str
    policy: Policy
    asked: PromptRecord
    notes: tuple[str, ...]

    def answer(self, questions: Sequence[Question]) -> list[AnswerRecord]:
        """Answer questions side by side: greedily, through evaluation's engine and parser.

        Raises:
            BadRowError: an image cannot be decoded.
            ValueError: a question with its images is longer than the model's context.
        """
        policy, prompt = self.policy, self.asked.prompt
        # An open question is asked in the trained words, even where they speak of letters.
        prompt = dataclasses.replace(prompt, open=prompt.open or prompt.evaluate)
        prompts = [policy.encoder.encode(question, "evaluate", prompt) for question in questions]
        for each in prompts:
            self._check_length(each)
        sampling = Sampling(group_size=1, max_tokens=self.asked.max_completion_tokens, temperature=0.0)
        rollout = SharedPrefixEngine()(policy, prompts, sampling, NoiseKey(0, 0))
        answers = [prompt.parse(text, q) for text, q in zip(rollout.texts, questions, strict=True)]
        weighed = [
            (row, prompt.alternatives(answer, question))
            for row, (answer, question) in enumerate(zip(answers, questions, strict=True))
            if question.options
        ]
        shares: dict[int, list[float]] = {}
        if weighed:
            rows, alternatives = zip(*weighed, strict=True)
            found = option_probabilities(policy, [prompts[row] for row in rows], alternatives)
            shares = dict(zip(rows, found, strict=True))
        lengths, truncated = rollout.lengths.tolist(), rollout.truncated.tolist()
        return [
            self._record(question, answers[row], shares.get(row), lengths[row], truncated[row])
            for row, question in enumerate(questions)
        ]

    def _check_length(self, prompt: EncodedPrompt) -> None:
        context = self.policy.model.config.get_text_config().max_position_embeddings
        if len(prompt.ids) + self.asked.max_completion_tokens > context:
            raise ValueError(
                f"{prompt.sample.id}: {len(prompt.ids)} tokens of question and images and "
                f"{self.asked.max_completion_tokens} of answer exceed the model's context of {context}: give "
                "fewer images"
            )

    def _record(
        self, question: Question, answer: Answer, shares: list[float] | None, tokens: int, cut: bool
    ) -> AnswerRecord:
        probabilities = dict(zip(question.letters, shares, strict=True)) if shares else None
        said = answer.letter or answer.lenient
        likeliest = max(probabilities, key=lambda letter: probabilities[letter]) if probabilities else None
        meant = said or likeliest
        return AnswerRecord(
            id=question.id,
            model=self.name,
            prompt=self.asked.prompt.name,
            images=[image.name for image in question.images],
            question=question.question,
            options=list(question.options),
            text=answer.text,
            reasoning=answer.reasoning,
            content=answer.content,
            answer=answer.letter,
            answer_lenient=answer.lenient,
            answer_text=question.options[question.letters.index(said)] if said else None,
            confidence=probabilities[meant] if probabilities and meant else None,
            confidence_of=meant,
            forced=answer.letter is None if probabilities else None,
            probabilities=probabilities,
            well_formed=answer.well_formed,
            tokens=tokens,
            truncated=cut,
            gold=question.answer if isinstance(question, VQASample) else None,
        )


def load_answerer(path: str, prompt: str | None, recipe: str | None, device: str | None) -> Answerer:
    """Load a model to be asked.

    Args:
        path: a run folder, a model or PEFT directory, ``embedded``, or a hub id.
        prompt, recipe: options of ``conf/prompt`` and ``conf/model`` for a checkpoint that does not say how
            it was trained; by default ``medvlm_r1`` and the model option with this path or, failing that,
            ``qwen2_vl_2b``.
        device: where to compute; by default the first GPU, or the CPU where there is none.

    Raises:
        MissingWeightsError, UnusableWeightsError, MissingGPUError: see
            :func:`~medvlm_r1.policy.loading.resolve.check_weights`.
        UnknownPromptError: how to ask cannot be told, or the record says otherwise.
        ValueError: no such device.
    """
    place = _device(device)
    given, revision = path, configured_revision(path)
    inside = Path(path) / "model"
    if any((inside / name).is_file() for name in ("config.json", "adapter_config.json")):
        path = str(inside)
    elif (Path(path) / "metrics.json").is_file():
        raise MissingWeightsError(
            f"--model {path} is a run without a model/: a zero-shot run leaves none, so give the checkpoint "
            "that it judged"
        )
    check_weights(path, revision, "cpu" if device == "cpu" else "auto")
    folder = find_weights(path, revision)
    asked, notes = read_record(folder), []
    if asked is None:
        asked, option = record_from_config(path, prompt or "medvlm_r1", recipe)
        notes.append(
            f"{given} has no {RECORD}, so how it was trained is unknown: it is asked with --prompt "
            f"{asked.prompt.name} and the limits of --recipe {option}"
        )
    elif recipe or prompt not in (None, asked.prompt.name):
        raise UnknownPromptError(
            f"{folder}: {RECORD} says how the model is asked (prompt {asked.prompt.name}); --prompt and "
            "--recipe are for a checkpoint without one: leave them out"
        )
    if asked.rounded:
        notes.append(
            "the adapter was trained over weights in 4 bits and stands on the unrounded ones here, so "
            "answers can differ from its evaluation's"
        )
    policy = load_policy(path, asked, revision).to(place).eval()
    return Answerer(given, policy, asked, tuple(notes))


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
