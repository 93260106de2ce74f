"""Questions about base pictures and completions to learn: reasoned, direct, and without the format."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from base_pictures import TUMOURS, Picture

from medvlm_r1.data.sample import LETTERS, ImageHandle, VQASample

STYLES = ("reasoned", "direct", "loose")
ARTICLE = {"MRI": "an MRI", "CT": "a CT", "X-ray": "an X-ray"}
SEEN = {
    "Glioma": ("There is a mass within the brain that looks like a glioma.", "The lesion fits a glioma."),
    "Meningioma": (
        "There is a mass at the surface that looks like a meningioma.",
        "The lesion fits a meningioma.",
    ),
    "Pituitary tumor": ("There is a mass near the pituitary gland.", "The lesion lies at the pituitary."),
    "No tumor": ("No mass can be seen.", "The structures look regular, without a mass."),
    "Yes": ("There is an abnormal mass.", "A lesion can be seen."),
    "No": ("No mass can be seen.", "The structures look regular."),
}


@dataclass(frozen=True)
class QuestionPool:
    """Wordings by question type, and the options that its questions have had."""

    wordings: dict[str, list[str]]
    options: dict[str, list[str]]

    @classmethod
    def of(cls, samples: Sequence[VQASample]) -> "QuestionPool":
        """Collect those of the base's MRI questions; VQA-RAD only lends pictures."""
        wordings, options = defaultdict(set), defaultdict(set)
        for sample in (one for one in samples if one.source != "VQA-RAD"):
            kind = _kind(sample.question_type, sample.answer_text)
            wordings[kind].add(sample.question)
            options[kind] |= {*sample.options}
        return cls(*({kind: sorted(texts) for kind, texts in part.items()} for part in (wordings, options)))

    def ask(self, picture: Picture, image: ImageHandle, rng: np.random.Generator) -> VQASample:
        """Ask about one known fact; about the finding twice as often as about the others."""
        asked = {"modality": picture.modality, "region": picture.region}
        asked = {kind: answer for kind, answer in asked.items() if answer}
        if picture.finding and rng.random() < 0.6:
            asked = {_kind("Disease Diagnosis", picture.finding): picture.finding}
        kind = str(rng.choice(sorted(asked)))
        answer = asked[kind]
        wrong = [option for option in self.options[kind] if option != answer]
        options = [answer, *rng.permutation(wrong)[:3].tolist()]
        options = tuple(options[i] for i in rng.permutation(len(options)))
        letter = LETTERS[options.index(answer)]
        question = str(rng.choice(self.wordings[kind]))
        return VQASample(picture.file, (image,), question, options, letter, "mri", kind, "base", picture.file)


def _kind(question_type: str, answer: str) -> str:
    if question_type == "Disease Diagnosis":
        return "tumour" if answer in TUMOURS else "abnormal"
    return "region" if question_type == "Anatomy Identification" else "modality"


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """Describe the picture in one or two sentences."""
    where = f" of the {picture.region.lower()}" if picture.region else ""
    first = ("This is {} scan{}.", "The picture is {} image{}.", "It shows {} scan{}.")
    text = str(rng.choice(first)).format(ARTICLE[picture.modality], where)
    return f"{text} {rng.choice(SEEN[picture.finding])}" if picture.finding else text


def completion(style: str, sample: VQASample, picture: Picture, rng: np.random.Generator) -> str:
    """Write a completion with the right answer, in one of :data:`STYLES`."""
    letter, answer = sample.answer, sample.answer_text
    if style == "direct":
        return f"<answer>{letter}</answer>"
    if style == "loose":
        return str(rng.choice((f"{letter}) {answer}", f"The answer is {letter}) {answer}.", f"{answer}.")))
    so = str(rng.choice(("So the answer is {}.", "The best option is {}.", "This points to {}."))).format(
        answer
    )
    return f"<think>{caption(picture, rng)} {so}</think>\n<answer>{letter}</answer>"
