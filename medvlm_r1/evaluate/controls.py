"""The same test questions with a part changed or removed: what does an answer rest on?

=============  =====================================================  ===================================
control        what changes                                           left out
=============  =====================================================  ===================================
image          nothing: the score                                     none
blank          uniform mid-grey pictures of the same size             questions without a picture
swapped        the pictures of another question                       those without a partner, see below
permuted       the options move round by one place or more            open questions
prior          no model: the option that was gold most often in       open questions
               training (:mod:`~medvlm_r1.audit.shortcuts`)
reasoning-cut  the answer has to begin with the prompt's answer tag   none
=============  =====================================================  ===================================

1. A partner is a question of the same modality and question type with as many pictures, another gold
   answer and none of the pictures: what was asked about something else may show this question's gold
   answer all the same. No question lends its pictures twice.
2. Every option of a permuted question gets another letter, so a model that goes by letters alone never
   chooses the same text twice.
3. What is cut is all that a model writes before its answer. The prompt, which asks for reasoning, stays;
   the completion is begun for it with ``<answer>``, or as much of it as is spelt alike before every
   letter, and it goes on. So it answers at once, and never in the think format. A think tag that the
   checkpoint's chat template opens is closed first. Where the prompt asks for no reasoning, or for it
   after the answer, this would be the plain control and is not run.
4. Which picture and which order do not depend on the run's seed: all runs on a test set are asked alike.
"""

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medvlm_r1.data.perturbation import PLAIN, BlankImage, Perturbation
from medvlm_r1.data.sample import VQASample
from medvlm_r1.prompts import PromptStyle, normalize_answer

BLANK, SWAPPED, PERMUTED, PRIOR, CUT = "blank", "swapped", "permuted", "prior", "reasoning-cut"
CONTROLS = (PLAIN, BLANK, SWAPPED, PERMUTED, PRIOR, CUT)
ALL = "all"  # those that the prompt has and the model can be asked
_SEED = 0


def check_controls(chosen: str | Sequence[str], served: bool = False) -> None:
    """Refuse what cannot be run.

    Args:
        chosen: names, or ``all``.
        served: whether the model answers behind an endpoint.

    Raises:
        ValueError: there is no such control, the plain one is missing, or an endpoint cannot be asked so.
    """
    if chosen == ALL:
        return
    names = _listed(chosen)
    if unknown := [name for name in names if name not in CONTROLS]:
        raise ValueError(
            f"controls: there is no {unknown[0]!r}: take {ALL}, or some of {', '.join(CONTROLS)}"
        )
    if PLAIN not in names:
        raise ValueError(f"controls is {names}: it needs {PLAIN}, the questions as they stand")
    if served and CUT in names:
        raise ValueError(
            f"controls: {CUT} begins the model's answer for it, which the chat completions API cannot: "
            f"leave it out for an endpoint, or take controls={ALL}"
        )


def controls_of(
    chosen: str | Sequence[str], prompt: PromptStyle, served: bool = False
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The controls of a run in their order, and why others that were chosen are not run.

    Args:
        chosen, served: see :func:`check_controls`.
        prompt: of the run.
    """
    names = [name for name in CONTROLS if chosen == ALL or name in _listed(chosen)]
    left = {}
    if CUT in names and served:
        left[CUT] = "a served model's answer cannot be begun for it"
    elif CUT in names and not prompt.asks_reasoning:
        left[CUT] = f"the prompt {prompt.name} asks for no reasoning before the answer"
    return tuple(name for name in names if name not in left), left


def _listed(chosen: str | Sequence[str]) -> list[str]:
    return [chosen] if isinstance(chosen, str) else list(chosen or ())


class PerturbedQuestions:
    """The questions of a test set, each as every control puts it.

    Args:
        source: the test set.
        controls: names, in the order in which a question is asked.
        assistant_prefix: what an answer without reasoning begins with.
    """

    def __init__(self, source: Sequence[VQASample], controls: Sequence[str], assistant_prefix: str) -> None:
        self.source, self.assistant_prefix = source, assistant_prefix
        self.controls = [name for name in controls if name != PRIOR]
        self.partners = partners(list(source)) if SWAPPED in self.controls else {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Perturbation]:
        """The question under each control that it can be put under."""
        sample = self.source[index]
        asked = [self._under(control, sample, index) for control in self.controls]
        return [perturbation for perturbation in asked if perturbation is not None]

    def _under(self, control: str, sample: VQASample, index: int) -> Perturbation | None:
        if control == BLANK:
            return blank(sample)
        if control == SWAPPED:
            partner = self.partners.get(index)
            return None if partner is None else swapped(sample, self.source[partner])
        if control == PERMUTED:
            return permuted(sample)
        return Perturbation(control, sample, assistant_prefix=self.assistant_prefix if control == CUT else "")


def blank(sample: VQASample) -> Perturbation | None:
    """The question with grey in the place of its pictures; ``None`` without any."""
    if not sample.images:
        return None
    return Perturbation(BLANK, replace(sample, images=tuple(BlankImage(image) for image in sample.images)))


def swapped(sample: VQASample, partner: VQASample) -> Perturbation:
    """The question with the pictures of another one."""
    return Perturbation(SWAPPED, replace(sample, images=partner.images), picture_of=partner.id)


def permuted(sample: VQASample, seed: int = _SEED) -> Perturbation | None:
    """The question with its options moved round, by a number of places drawn for it; ``None`` if open."""
    if sample.is_open:
        return None
    count = len(sample.options)
    places = int(np.random.default_rng([seed, zlib.crc32(sample.id.encode())]).integers(1, count))
    order = tuple((place + places) % count for place in range(count))
    letter = sample.letters[order.index(sample.letters.index(sample.answer))]
    options = tuple(sample.options[old] for old in order)
    return Perturbation(PERMUTED, replace(sample, options=options, answer=letter), order=order)


def partners(samples: Sequence[VQASample], seed: int = _SEED) -> dict[int, int]:
    """Question -> question whose pictures it is shown, by their places, no question twice on either side.

    One without a partner is not in it; where no two questions share a picture, as many as possible are.
    """
    alike = defaultdict(list)
    for place, sample in enumerate(samples):
        if sample.images:
            alike[sample.modality, sample.question_type, len(sample.images)].append(place)
    found = {}
    for number, places in enumerate(alike.values()):
        drawn = np.random.default_rng([seed, number]).permutation(places)
        found |= _deranged([samples[place] for place in drawn], drawn.tolist())
    return dict(sorted(found.items()))


def _deranged(samples: Sequence[VQASample], places: Sequence[int]) -> dict[int, int]:
    """Partners among questions that are alike.

    Sorted by gold answer and moved on by the size of the largest answer's block, no question meets its own
    answer while no block is larger than all others together. What meets its own picture changes partners with
    the first question with which both come out right.
    """
    gold = _numbered([normalize_answer(sample.answer_text) for sample in samples])
    sizes = np.bincount(gold)
    order = np.lexsort((np.arange(len(gold)), gold, -sizes[gold]))
    shown = np.empty_like(order)
    shown[order] = np.roll(order, -sizes.max())
    pictures = _numbered([sample.image_group for sample in samples])

    def fits(question: np.ndarray | int, partner: np.ndarray | int) -> np.ndarray:
        return (gold[question] != gold[partner]) & (pictures[question] != pictures[partner])

    every = np.arange(len(gold))
    for question in every[~fits(every, shown)]:
        others = every[fits(question, shown) & fits(every, shown[question])]
        if len(others):  # first one that has no partner either
            other = others[np.argmax(~fits(others, shown[others]))]
            shown[[question, other]] = shown[[other, question]]
    return {places[q]: places[shown[q]] for q in every[fits(every, shown)]}


def _numbered(values: Sequence[str]) -> np.ndarray:
    """Equal values have equal numbers, in the order in which they occur first."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=int)
