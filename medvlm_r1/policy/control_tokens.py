"""Tokenise chats so that control tokens come from templates, never from the text of a question.

A tokenizer reads ``<|im_end|>`` as the end of a turn wherever it stands: in an option it would end the user's
turn and forge the model's.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from medvlm_r1.data.sample import Question, VQASample

AnyQuestion = TypeVar("AnyQuestion", bound=Question)
_MARKS = range(0xE000, 0xF900)  # private use: no text needs a certain one of them


class ControlTokens:
    """The added tokens of a tokenizer, and a tokenizer without them for the text in between.

    Text without control tokens gets the ids that the tokenizer gives it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.ids: dict[str, int] = tokenizer.get_added_vocab()
        longest_first: list[str] = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._edges = re.compile(f"[{re.escape(''.join({end for t in self.ids for end in (t[0], t[-1])}))}]")
        backend = tokenizer.backend_tokenizer
        self._plain = Tokenizer(backend.model)  # shares the vocabulary
        self._plain.normalizer, self._plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer

    def tokenize(self, sample: AnyQuestion, render: Callable[[AnyQuestion], str]) -> list[int]:
        """Token ids of ``render(sample)``; control tokens are those that ``render`` itself adds.

        In the question's own text, marks around the first and the last character of a control token break it
        up, also where a template completes it. They are removed once the control tokens are found.
        """
        text, mark = render(sample), ""
        gold = (sample.answer, sample.rationale) if isinstance(sample, VQASample) else ()
        own = (sample.question, *sample.options, *gold)
        if self._edges.search("".join(own)):
            mark = next(m for m in map(chr, _MARKS) if m not in text and not any(m in part for part in own))
            text = render(self._marked(sample, mark))
        ids = []
        for i, piece in enumerate(self._pattern.split(text)):  # odd pieces are control tokens
            if i % 2:
                ids.append(self.ids[piece])
            elif piece:
                plain = piece.replace(mark, "") if mark else piece
                ids += self._plain.encode(plain, add_special_tokens=False).ids
        return ids

    def _marked(self, sample: AnyQuestion, mark: str) -> AnyQuestion:
        def marked(text: str) -> str:
            return self._edges.sub(lambda match: f"{mark}{match[0]}{mark}", text)

        texts = {"question": marked(sample.question), "options": tuple(map(marked, sample.options))}
        if isinstance(sample, VQASample):
            texts["rationale"] = marked(sample.rationale)
            if sample.is_open:
                texts["answer"] = marked(sample.answer)
        return replace(sample, **texts)
