"""The JSON-lines file of answers, one line per question, appended to batch by batch."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from filelock import FileLock, Timeout

from medvlm_r1.data.sample import Question
from medvlm_r1.runs.durable import LineLog


class AnswerFileError(ValueError):
    """An answer file cannot be continued. The message names file, line and remedy."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answer; a JSON object, or a line of an answer file.

    Attributes:
        model: path or hub id.
        prompt: name of the prompt style.
        images: names of the image files.
        options: empty for an open question.
        text: the completion, without special tokens.
        reasoning: text in think tags; ``None`` without tags.
        content: text in answer tags; ``None`` without tags.
        answer: the letter by the strict reading, which evaluations report; ``None`` if there is none.
        answer_lenient: the letter by the lenient reading.
        answer_text: the option of that letter.
        confidence: probability of the letter ``confidence_of`` among all letters at the position of the
            answer, not calibrated; ``None`` for an open question.
        confidence_of: the strict letter, else the lenient one, else the most probable one.
        forced: whether the completion has no strict letter, so that the probabilities are those of an answer
            appended to it; ``None`` for an open question.
        probabilities: of each letter; they sum to one.
        well_formed: whether the text is think tags, then answer tags, nothing else.
        tokens: length of the completion, end of sequence included.
        truncated: whether the completion reached the token limit.
        gold: the correct letter, if the question file has it.
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


class AnswerFile:
    """Answers of one model in a JSON-lines file, which a killed process leaves without an incomplete line.

    Args:
        path: the file; :meth:`locked` creates it.
        model: path or hub id of the model.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self._log = LineLog(path)
        self.records: dict[str, AnswerRecord] = {}

    @contextmanager
    def locked(self) -> Iterator["AnswerFile"]:
        """Lock the file against other processes and read it.

        Raises:
            AnswerFileError: another process holds the lock, a line is not an answer of this model, or a
                question has two answers.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self.path}.lock", timeout=0):
                self._read()
                yield self
        except Timeout:
            raise AnswerFileError(f"{self.path}: another process writes to it: wait for its end") from None

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions without an answer in the file.

        Raises:
            AnswerFileError: an id in the file belongs to another question.
        """
        for question in questions:
            record = self.records.get(question.id)
            present = [question.question, list(question.options), [image.name for image in question.images]]
            if record and [record.question, record.options, record.images] != present:
                raise AnswerFileError(
                    f"{self.path}: {question.id} is another question there ({record.question!r:.60}): the "
                    "question file has changed; give a new file with --out"
                )
        return [question for question in questions if question.id not in self.records]

    def add(self, records: Sequence[AnswerRecord]) -> None:
        self._log.append(*map(asdict, records))
        self.records.update({record.id: record for record in records})

    def _read(self) -> None:
        for number, line in self._log.read():
            where = f"{self.path} line {number}"
            try:
                row = json.loads(line)
                record = AnswerRecord(**{field.name: row[field.name] for field in fields(AnswerRecord)})
            except (ValueError, KeyError, TypeError):
                raise AnswerFileError(
                    f"{where} is not an answer record ({line.decode(errors='replace')[:40]!r}): give a new "
                    "file with --out"
                ) from None
            if record.model != self.model:
                raise AnswerFileError(
                    f"{where} is an answer of the model {record.model}, not of {self.model}: give a new file "
                    "with --out"
                )
            if record.id in self.records:
                raise AnswerFileError(f"{where} is a second answer to {record.id}: remove one of the two")
            self.records[record.id] = record
