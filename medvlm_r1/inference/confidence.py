"""Confidence of an answer: the probability of its letter among the letters of all options.

The model's completion is scored by teacher forcing once per option, with that option's letter in the
place of the answer. The probabilities of the differing ends are normalised over the options:

    p(letter) = P(letter</answer> | prompt, reasoning) / sum over letters of the same

Scores cover strings, not the ids of single letters: a tokenizer may merge a letter with its neighbours
(Qwen's has ``>A`` as one token), differently for different letters. For the same reason each text is
tokenised as a whole, as SFT's targets are, even if the model generated other tokens.

The reasoning mostly fixes the answer, so the confidence is high and not calibrated: 0.9 does not mean
that nine in ten such answers are correct.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from operator import eq

import torch

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.prompts import Alternatives


@torch.no_grad()
def option_probabilities(
    policy: Policy, prompts: Sequence[EncodedPrompt], alternatives: Sequence[Alternatives]
) -> list[list[float]]:
    """Return each question's probabilities of its options' letters, in order; they sum to one.

    Args:
        prompts: encoded questions with options.
        alternatives: for each question, its answer with each letter; their number may differ. The first text
            of an answer may stand in the prompt already.
    """
    tokenizer = policy.encoder.tokenizer
    # A completion may spell out a special token: tokenise that as text.
    as_text = {"add_special_tokens": False, "split_special_tokens": True}
    extended, rows, counts = [], [], [len(each.texts) for each in alternatives]
    for prompt, each in zip(prompts, alternatives, strict=True):
        end = [tokenizer.eos_token_id] if each.ends_turn else []
        texts = [_behind(prompt.assistant_prefix, text) for text in each.texts]
        tokens = [tokenizer(text, **as_text)["input_ids"] + end for text in texts]
        # The common prefix becomes a part of the prompt: only the differing ends need logits.
        columns = takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False))
        prefix = [column[0] for column in columns]
        positions = (prompt.positions.max() + 1 + torch.arange(len(prefix))).expand(3, -1)
        ids = torch.cat([prompt.ids, torch.tensor(prefix, dtype=torch.long)])
        extended.append(replace(prompt, ids=ids, positions=torch.cat([prompt.positions, positions], dim=1)))
        ends = [row[len(prefix) :] for row in tokens]
        rows += ends + [[]] * (max(counts) - len(ends))
    length = max(map(len, rows))
    tokens = torch.tensor([row + [policy.pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[k < len(row) for k in range(length)] for row in rows])
    tokens, mask = tokens.to(policy.device), mask.to(policy.device)
    logprobs = policy.logprobs(collate(extended, policy.pad_id, policy.device), tokens, mask)
    scores = logprobs.masked_fill(~mask, 0.0).double().sum(1).view(len(prompts), max(counts))
    return [row[:count].softmax(0).tolist() for row, count in zip(scores, counts, strict=True)]


def _behind(prefix: str, text: str) -> str:
    """The text behind the characters that it shares with ``prefix``."""
    return text[sum(1 for _ in takewhile(bool, map(eq, prefix, text))) :]
