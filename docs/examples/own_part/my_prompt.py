"""A prompt whose answer is the text of an option instead of its letter."""

from dataclasses import dataclass, replace

from medvlm_r1.data.sample import Question, VQASample
from medvlm_r1.prompts import Answer, PromptStyle, normalize_answer


@dataclass(frozen=True)
class OptionText(PromptStyle):
    """Reads an option's text in answer tags; a letter counts, too."""

    def parse(self, text: str, sample: Question) -> Answer:
        answer = super().parse(text, sample)
        letters = dict(zip(map(normalize_answer, sample.options), sample.letters, strict=True))
        letter = answer.letter or letters.get(normalize_answer(answer.content or ""))
        return replace(answer, letter=letter, lenient=letter or answer.lenient)

    def target(self, sample: VQASample) -> str:
        return f"<answer>{sample.answer_text}</answer>"
