"""Controls: the same test questions with one part changed or removed, to test what the answers depend on.

=============  =====================================================  ====================================
control        change                                                 questions left out
=============  =====================================================  ====================================
image          none: the reported accuracy                            none
blank          uniform mid-grey images of the same size               questions without an image
swapped        the images of another question                         questions without a partner (note 1)
permuted       options rotated by one or more positions               open questions
prior          no model: the option most often gold in training       open questions
               (:mod:`~medvlm_r1.audit.shortcuts`)
reasoning-cut  the answer must start with the prompt's answer tag     none
=============  =====================================================  ====================================

1. A partner has the same modality, question type and number of images, another gold answer, and none of the
   images. Its images may still show this question's gold answer: they belong to a question about something
   else. No question lends its images twice.
2. Every option of a permuted question gets another letter, so a model that follows letters alone never
   chooses the same text twice.
3. ``reasoning-cut`` removes all text before the answer. The prompt still asks for reasoning; the completion
   starts with ``<answer>``, or with as many of its tokens as do not depend on the next letter. So the model
   answers at once, never in the think format. If the checkpoint's chat template opens a think tag, it is
   closed first. If the prompt asks for no reasoning, or for reasoning after the answer, this control equals
   ``image`` and is not run.
4. Partners and option orders do not depend on the run's seed: all runs share one set of perturbations.
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
ALL = "all"  # every control that fits the prompt and the model
_SEED = 0


def check_controls(chosen: str | Sequence[str], served: bool = False) -> None:
    """Validate the setting ``controls``.

    Args:
        chosen: names, or ``all``.
        served: whether an endpoint serves the model.

    Raises:
        ValueError: a control is unknown, ``image`` is missing, or an endpoint cannot run a control.
    """
    if chosen == ALL:
        return
    names = _as_list(chosen)
    if unknown := [name for name in names if name not in CONTROLS]:
        known = ", ".join(CONTROLS)
        raise ValueError(f"controls: unknown control {unknown[0]!r}: use {ALL}, or some of {known}")
    if PLAIN not in names:
        raise ValueError(f"controls is {names}: add {PLAIN}, the unchanged questions")
    if served and CUT in names:
        raise ValueError(
            f"controls: {CUT} needs an assistant prefix, which the chat completions API does not take: "
            f"remove it for an endpoint, or use controls={ALL}"
        )


def controls_of(
    chosen: str | Sequence[str], prompt: PromptStyle, served: bool = False
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the controls of a run in order, and the skipped ones with the reason."""
    names = [name for name in CONTROLS if chosen == ALL or name in _as_list(chosen)]
    skipped = {}
    if CUT in names and served:
        skipped[CUT] = "the chat completions API takes no assistant prefix"
    elif CUT in names and not prompt.asks_reasoning:
        skipped[CUT] = f"the prompt {prompt.name} asks for no reasoning before the answer"
    return tuple(name for name in names if name not in skipped), skipped


def _as_list(chosen: str | Sequence[str]) -> list[str]:
    return [chosen] if isinstance(chosen, str) else list(chosen or ())


class PerturbedQuestions(Sequence[list[Perturbation]]):
    """A test set under all controls: per question, one :class:`Perturbation` for each control.

    ``assistant_prefix`` is the first text of an answer without reasoning.
    """

    def __init__(self, source: Sequence[VQASample], controls: Sequence[str], assistant_prefix: str) -> None:
        self.source, self.assistant_prefix = source, assistant_prefix
        self.controls = [name for name in controls if name != PRIOR]
        self.partners = partners(list(source)) if SWAPPED in self.controls else {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Perturbation]:
        """Perturb one question; controls that do not apply to it are left out."""
        sample = self.source[index]
        perturbed = [self._perturb(control, sample, index) for control in self.controls]
        return [perturbation for perturbation in perturbed if perturbation is not None]

    def _perturb(self, control: str, sample: VQASample, index: int) -> Perturbation | None:
        if control == BLANK:
            return blank(sample)
        if control == SWAPPED:
            partner = self.partners.get(index)
            return None if partner is None else swapped(sample, self.source[partner])
        if control == PERMUTED:
            return permuted(sample)
        return Perturbation(control, sample, assistant_prefix=self.assistant_prefix if control == CUT else "")


def blank(sample: VQASample) -> Perturbation | None:
    """Replace the images by grey; ``None`` without images."""
    if not sample.images:
        return None
    return Perturbation(BLANK, replace(sample, images=tuple(BlankImage(image) for image in sample.images)))


def swapped(sample: VQASample, partner: VQASample) -> Perturbation:
    """Replace the images by those of ``partner``."""
    return Perturbation(SWAPPED, replace(sample, images=partner.images), picture_of=partner.id)


def permuted(sample: VQASample, seed: int = _SEED) -> Perturbation | None:
    """Rotate the options by a random number of positions that follows from the id; ``None`` if open."""
    if sample.is_open:
        return None
    count = len(sample.options)
    shift = int(np.random.default_rng([seed, zlib.crc32(sample.id.encode())]).integers(1, count))
    order = tuple((position + shift) % count for position in range(count))
    letter = sample.letters[order.index(sample.letters.index(sample.answer))]
    options = tuple(sample.options[old] for old in order)
    return Perturbation(PERMUTED, replace(sample, options=options, answer=letter), order=order)


def partners(samples: Sequence[VQASample], seed: int = _SEED) -> dict[int, int]:
    """Match questions for image swaps: index -> index of the partner whose images it shows.

    No question appears twice on either side. Questions without a partner are missing; if no two questions
    share an image, the matching is as large as possible.
    """
    alike = defaultdict(list)
    for index, sample in enumerate(samples):
        if sample.images:
            alike[sample.modality, sample.question_type, len(sample.images)].append(index)
    matched = {}
    for number, indices in enumerate(alike.values()):
        shuffled = np.random.default_rng([seed, number]).permutation(indices)
        matched |= _derange([samples[index] for index in shuffled], shuffled.tolist())
    return dict(sorted(matched.items()))


def _derange(samples: Sequence[VQASample], indices: Sequence[int]) -> dict[int, int]:
    """Match questions of one modality, type and number of images.

    Sorts by gold answer and rotates by the size of the largest answer's block: no question then meets its own
    answer unless one block is larger than all others together. A question that meets its own image swaps
    partners with the first question for which both then fit.
    """
    gold = _codes([normalize_answer(sample.answer_text) for sample in samples])
    sizes = np.bincount(gold)
    order = np.lexsort((np.arange(len(gold)), gold, -sizes[gold]))
    shown = np.empty_like(order)
    shown[order] = np.roll(order, -sizes.max())
    images = _codes([sample.image_group for sample in samples])

    def fits(question: np.ndarray | np.integer, partner: np.ndarray | np.integer) -> np.ndarray:
        return (gold[question] != gold[partner]) & (images[question] != images[partner])

    every = np.arange(len(gold))
    for question in every[~fits(every, shown)]:
        others = every[fits(question, shown) & fits(every, shown[question])]
        if len(others):  # prefer a question that has no partner either
            other = others[np.argmax(~fits(others, shown[others]))]
            shown[[question, other]] = shown[[other, question]]
    return {indices[q]: indices[shown[q]] for q in every[fits(every, shown)]}


def _codes(values: Sequence[str]) -> np.ndarray:
    """Integer codes of the values, numbered by first occurrence."""
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values], dtype=int)
