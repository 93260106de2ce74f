r"""The papers' own reading: the rules of their released evaluation code, restated.

A published accuracy depends on the rule that read the answers. ``evaluation.reading=released`` reports the
accuracy by the rule of the prompt's paper beside the strict and the lenient one:

======================  =============================================================================
prompt                  the answer, which must equal the gold letter
======================  =============================================================================
``medvlm_r1``           the first capital letter that stands alone in answer tags:
                        ``<answer>\s*([A-Z])\s*</answer>``
``med_r1``              the first word that stands alone in answer tags: ``<answer>\s*(\w+)\s*</answer>``
``med_r1_think_after``  the same; the released code has no such prompt
``medvlm_r1_simple``    the whole completion, white space included
``med_r1_simple``       the same
``med_r1_no_think``     the same, so that the tags which the prompt asks for make an answer wrong
======================  =============================================================================

Tags count in lower case only. The other prompts have no released evaluation.
"""

import re
from collections.abc import Callable

STRICT, RELEASED = "strict", "released"
READINGS = (STRICT, RELEASED)


def tagged_capital(text: str) -> str | None:
    """The first capital letter that stands alone in answer tags."""
    match = re.search(r"<answer>\s*([A-Z])\s*</answer>", text)
    return match[1] if match else None


def tagged_word(text: str) -> str | None:
    """The first word that stands alone in answer tags."""
    match = re.search(r"<answer>\s*(\w+)\s*</answer>", text)
    return match[1] if match else None


def whole_text(text: str) -> str | None:
    """The completion as it is."""
    return text


RULES: dict[str, Callable[[str], str | None]] = {
    "medvlm_r1": tagged_capital,
    "medvlm_r1_simple": whole_text,
    "med_r1": tagged_word,
    "med_r1_think_after": tagged_word,
    "med_r1_simple": whole_text,
    "med_r1_no_think": whole_text,
}


def check_reading(reading: str, prompt: str) -> None:
    """Validate the setting ``evaluation.reading`` for the prompt of this name.

    Raises:
        ValueError: the reading is unknown, or the prompt has no released evaluation.
    """
    if reading not in READINGS:
        raise ValueError(f"evaluation.reading is {reading!r:.60}: use {STRICT} or {RELEASED}")
    if reading == RELEASED and prompt not in RULES:
        raise ValueError(
            f"evaluation.reading=released: no paper released an evaluation of prompt {prompt!r:.60}: "
            f"use evaluation.reading=strict, or one of prompt={', '.join(RULES)}"
        )
