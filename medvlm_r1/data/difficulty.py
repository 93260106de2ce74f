"""Pass rates of the training questions under the starting weights, and training on a band of them."""

import json
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medvlm_r1.data.sample import VQASample
from medvlm_r1.data.splits import Questions
from medvlm_r1.runs.durable import LineLog


@dataclass(frozen=True)
class PassRate:
    """How often the sampled completions of one training question were right; a row of the file.

    Attributes:
        id, question, gold: of the question; all must agree with the data that the rates are used for.
        passes: completions with the gold answer.
        samples: completions; 0 for a question that a run leaves out, such as for its image.
        tokens: of all completions.
    """

    id: str
    question: str
    gold: str
    passes: int
    samples: int
    tokens: int

    @property
    def value(self) -> float:
        return self.passes / self.samples if self.samples else float("nan")

    def fits(self, sample: VQASample) -> bool:
        """Whether this is the rate of the question."""
        return (self.id, self.question, self.gold) == (sample.id, sample.question, sample.answer)


class PassRateFile:
    """JSON lines: first what the rates depend on, then one :class:`PassRate` a line, on disk as it comes.

    Args:
        path: created if it does not exist and ``of`` is given.
        of: weights, prompt and sampling; ``None`` reads a file of any.

    Raises:
        ValueError: the file holds something else, or rates of another ``of``.
        FileNotFoundError: there is no file, and ``of`` is ``None``.
    """

    def __init__(self, path: Path, of: dict[str, Any] | None = None) -> None:
        self.path, self.rates = path, dict[str, PassRate]()
        if of is None and not path.is_file():
            raise FileNotFoundError(
                f"difficulty.pass_rates: there is no file {path}: `medvlm-r1 difficulty --out {path}`, with "
                "the overrides of this run, writes it"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = LineLog(path)
        lines = self._log.read() if of else enumerate(path.read_bytes().splitlines(), 1)
        for number, line in lines:
            try:
                row = json.loads(line)
                if number == 1:
                    self._check(dict(row["of"]), of)
                else:
                    rate = PassRate(**row)
                    self.rates[rate.id] = rate
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                remedy = "name a file that `medvlm-r1 difficulty` wrote"
                raise ValueError(f"{path}, line {number} has no pass rate ({error!r}): {remedy}") from error
        if of and not path.stat().st_size:
            self._log.append({"of": of})

    def _check(self, found: dict[str, Any], of: dict[str, Any] | None) -> None:
        for key in sorted(found.keys() | of.keys()) if of else ():
            if found.get(key) != of.get(key):
                raise ValueError(
                    f"{self.path} has pass rates of other settings ({key} was {found.get(key)!r} and is "
                    f"{of.get(key)!r}): give another file as --out"
                )

    def missing(self, samples: Iterable[VQASample]) -> list[VQASample]:
        """Questions without a rate, in their order."""
        return [s for s in samples if (rate := self.rates.get(s.id)) is None or not rate.fits(s)]

    def add(self, rates: Sequence[PassRate]) -> None:
        """Append rates to the file."""
        self._log.append(*map(asdict, rates))
        self.rates |= {rate.id: rate for rate in rates}


@dataclass(frozen=True)
class TrainingBand:
    """Keeps the training questions whose pass rate lies in a band, or as many at random.

    Attributes:
        pass_rates: file of ``medvlm-r1 difficulty``; ``None`` keeps all questions.
        keep: the least and the most pass rate, both kept.
        subset: ``random`` draws as many as ``band`` keeps from all training questions, by the run's seed.

    Raises:
        ValueError: ``keep`` is no band, or without ``pass_rates``, or the reverse.
        FileNotFoundError: there is no such file.
    """

    pass_rates: str | None = None
    keep: Sequence[float] | None = None
    subset: Literal["band", "random"] = "band"

    def __post_init__(self) -> None:
        if self.keep is not None and not (len(self.keep) == 2 and 0 <= self.keep[0] <= self.keep[1] <= 1):
            raise ValueError(
                f"difficulty.keep is {list(self.keep)}: give the least and most pass rate, as in [0.2,0.8]"
            )
        if (self.keep is None) != (self.pass_rates is None):
            has, lacks = ("keep", "pass_rates") if self.pass_rates is None else ("pass_rates", "keep")
            example = {"keep": "'difficulty.keep=[0.2,0.8]'", "pass_rates": "difficulty.pass_rates=FILE"}
            raise ValueError(f"difficulty.{has} needs difficulty.{lacks}: add {example[lacks]}")
        if self.subset not in ("band", "random"):
            raise ValueError(f"difficulty.subset is {self.subset!r}: use band or random")
        if self.subset == "random" and self.pass_rates is None:
            raise ValueError("difficulty.subset=random needs difficulty.pass_rates and difficulty.keep")
        if self.pass_rates is not None:
            PassRateFile(Path(self.pass_rates))

    def __call__(self, questions: Questions, seed: int) -> tuple[Questions, str]:
        """Return the questions with the kept training questions in their order, and a line for the log.

        Raises:
            ValueError: the file lacks training questions, or the band is empty.
        """
        if self.pass_rates is None or self.keep is None:
            return questions, ""
        file, train = PassRateFile(Path(self.pass_rates)), list(questions.train)
        if missing := file.missing(train):
            known = sum(sample.id in file.rates for sample in missing)
            changed = f", {known} of them with another question or answer" if known else ""
            raise ValueError(
                f"{file.path} has pass rates of {len(train) - len(missing)} of {len(train)} training "
                f"questions (not of {missing[0].id!r}, for example{changed}): `medvlm-r1 difficulty --out "
                f"{file.path}`, with the overrides of this run, adds the others"
            )
        low, high = self.keep
        kept = [s for s in train if low <= file.rates[s.id].value <= high]
        if not kept:
            counts = Counter(f"{file.rates[s.id].passes}/{file.rates[s.id].samples}" for s in train)
            common = ", ".join(f"{n} at {rate}" for rate, n in counts.most_common(3))
            raise ValueError(
                f"difficulty.keep is {list(self.keep)}, and no training question has such a pass rate "
                f"({common}): widen it"
            )
        band = f"{len(kept)} of {len(train)} training questions have a pass rate of {low:g} to {high:g}"
        if self.subset == "random":
            drawn = sorted(random.Random(seed).sample(range(len(train)), len(kept)))
            kept, band = [train[i] for i in drawn], f"{band}; as many are drawn at random"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Questions warns of was shown before
            return replace(questions, train=kept), band
