"""What a model has answered outside a run, and the file that keeps it as it comes."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from filelock import FileLock, Timeout

from medvlm_r1.data.sample import Question
from medvlm_r1.runs.durable import LineLog


class AnswerFileError(ValueError):
    """A file of answers that cannot be gone on with. The message names file, line and remedy."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answer; a JSON object, or a line of the file of answers.

    Attributes:
        id, model, prompt, images, question, options: what was asked, of which model, in which style.
        text: the completion as generated, without special tokens.
        reasoning, content: what stands in think tags, and in answer tags; ``None`` without.
        answer: the letter in the strict reading, by which runs are judged; ``None`` if there is none.
        answer_lenient: the letter that a human reader would take.
        answer_text: that letter's option.
        confidence: probability of the letter ``confidence_of`` among the options' letters at the answer's
            place; ``None`` for an open question. Not calibrated.
        confidence_of: the strict letter, or else the lenient one, or else the likeliest.
        forced: the completion holds no answer in the strict reading, so that the probabilities are of
            one that was put to its end; ``None`` for an open question.
        probabilities: by letter; they sum to one.
        well_formed: the whole text is think tags, then answer tags.
        tokens, truncated: of the completion, end of sequence included; whether it was cut at the limit.
        gold: the right letter, where the question file has it.
    """

    id: str
    model: str
    prompt: str
    images: list[str]
    question: str
    options: list[str]
    text: str
    reasoning: str | None
    content: str | None
    answer: str | None
    answer_lenient: str | None
    answer_text: str | None
    confidence: float | None
    confidence_of: str | None
    forced: bool | None
    probabilities: dict[str, float] | None
    well_formed: bool
    tokens: int
    truncated: bool
    gold: str | None

    def as_json(self, indent: int | None = None) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=indent)


class AnswerFile:
    """Answers in a JSON-lines file, one a question, written as they come.

    A line is written whole or, where the writer was killed, cut off by the next one.

    Args:
        path: the file; it need not exist.
        model: whose answers it holds.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self._log = LineLog(path)
        self.kept: dict[str, AnswerRecord] = {}

    @contextmanager
    def held(self) -> Iterator["AnswerFile"]:
        """The file, for this process alone, with what is in it known and no torn line at its end.

        Raises:
            AnswerFileError: another process holds it, a line is no answer or another model's, a question
                has two, or nothing can be written there.
        """
        lock = FileLock(f"{self.path}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with lock.acquire(timeout=0):
                self._read()
                yield self
        except Timeout:
            raise AnswerFileError(f"{self.path} is being written by another process: wait for it") from None

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """The questions without an answer here.

        Raises:
            AnswerFileError: an id has the answer to another question.
        """
        for question in questions:
            kept = self.kept.get(question.id)
            asked = [question.question, list(question.options), [image.name for image in question.images]]
            if kept and [kept.question, kept.options, kept.images] != asked:
                raise AnswerFileError(
                    f"{self.path} answers another question as {question.id} ({kept.question!r:.60}): the "
                    "question file has changed; give a new file with --out"
                )
        return [question for question in questions if question.id not in self.kept]

    def add(self, responses: Sequence[AnswerRecord]) -> None:
        """Write answers down."""
        self._log.append(*map(asdict, responses))
        self.kept.update({response.id: response for response in responses})

    def _read(self) -> None:
        for number, line in self._log.read():
            where = f"{self.path} line {number}"
            try:
                row = json.loads(line)
                response = AnswerRecord(**{field.name: row[field.name] for field in fields(AnswerRecord)})
            except (ValueError, KeyError, TypeError):
                raise AnswerFileError(
                    f"{where} is no answer of this command ({line.decode(errors='replace')[:40]!r}): give a "
                    "new file with --out"
                ) from None
            if response.model != self.model:
                raise AnswerFileError(
                    f"{where} is an answer of the model {response.model}, not of {self.model}: give a new "
                    "file with --out"
                )
            if response.id in self.kept:
                raise AnswerFileError(f"{where} answers {response.id} a second time: remove one of the two")
            self.kept[response.id] = response
