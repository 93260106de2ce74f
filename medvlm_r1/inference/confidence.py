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

import torch
from jaxtyping import Int
from torch import Tensor

from medvlm_r1.policy.encode import EncodedPrompt, collate
from medvlm_r1.policy.policy import Policy
from medvlm_r1.prompts import Alternatives


@torch.no_grad()
def option_probabilities(
    policy: Policy, prompts: Sequence[EncodedPrompt], alternatives: Sequence[Alternatives]
) -> list[list[float]]:
    """Return each question's probabilities of its options' letters, in order; they sum to one.

    Args:
        policy: the model.
        prompts: encoded questions with options.
        alternatives: for each question, its completion with each letter; their number may differ.
    """
    extended, rows, counts = [], [], [len(each.texts) for each in alternatives]
    for prompt, each in zip(prompts, alternatives, strict=True):
        tokens = _tokens(policy, each)
        # The common prefix becomes a part of the prompt: only the differing ends need logits.
        prefix = _common_prefix(tokens)
        extended.append(_extended(prompt, torch.tensor(tokens[0][:prefix], dtype=torch.long)))
        ends = [row[prefix:] for row in tokens]
        rows += ends + [[]] * (max(counts) - len(ends))
    length = max(map(len, rows))
    tokens = torch.tensor([row + [policy.pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[k < len(row) for k in range(length)] for row in rows])
    tokens, mask = tokens.to(policy.device), mask.to(policy.device)
    logprobs = policy.logprobs(collate(extended, policy.pad_id, policy.device), tokens, mask)
    scores = logprobs.masked_fill(~mask, 0.0).double().sum(1).view(len(prompts), max(counts))
    return [row[:count].softmax(0).tolist() for row, count in zip(scores, counts, strict=True)]


def _tokens(policy: Policy, alternatives: Alternatives) -> list[list[int]]:
    tokenizer = policy.encoder.tokenizer
    end = [tokenizer.eos_token_id] if alternatives.ends_turn else []
    # A completion may spell out a special token: tokenise that as text.
    as_text = {"add_special_tokens": False, "split_special_tokens": True}
    return [tokenizer(text, **as_text)["input_ids"] + end for text in alternatives.texts]


def _common_prefix(rows: list[list[int]]) -> int:
    """Return the number of tokens that all rows start with."""
    equal = [len(set(column)) == 1 for column in zip(*rows, strict=False)]
    return [*equal, False].index(False)


def _extended(prompt: EncodedPrompt, tokens: Int[Tensor, " tokens"]) -> EncodedPrompt:
    """Append the first tokens of an answer to a prompt."""
    positions = prompt.positions.max() + 1 + torch.arange(len(tokens))
    return replace(
        prompt,
        ids=torch.cat([prompt.ids, tokens]),
        positions=torch.cat([prompt.positions, positions.expand(3, -1)], dim=1),
    )
