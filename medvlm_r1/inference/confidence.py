"""How sure a model is of its answer: the share of each option's letter at the answer's place.

The model's own completion is teacher-forced once for every option, with that option's letter in the
place of the answer, and the probabilities of what differs are normalised over the options:

    p(letter) = P(letter</answer> | prompt, reasoning) / sum over letters of the same

Whole strings are compared, never the ids of single letters: a tokenizer may join a letter with its
neighbours (Qwen's has ``>A`` as one token), and then differently for different letters. For the same
reason each text is tokenised as a whole, as SFT's targets are, even where the model spelled its own in
other tokens.

It is how firmly the model holds to its letter after its own reasoning, which mostly has decided by
then. It is not calibrated: 0.9 does not mean that nine in ten such answers are right.
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
    """For each question, the probability of each option's letter, in their order; they sum to one.

    Args:
        policy: the model.
        prompts: questions with options.
        alternatives: of each question, the completion with each letter; their number may differ.
    """
    told, rows, counts = [], [], [len(each.texts) for each in alternatives]
    for prompt, each in zip(prompts, alternatives, strict=True):
        tokens = _tokens(policy, each)
        # What all of them say is one more part of the prompt: only what differs needs logits.
        shared = _shared(tokens)
        told.append(_followed_by(prompt, torch.tensor(tokens[0][:shared], dtype=torch.long)))
        rest = [row[shared:] for row in tokens]
        rows += rest + [[]] * (max(counts) - len(rest))
    length = max(map(len, rows))
    tokens = torch.tensor([row + [policy.pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[k < len(row) for k in range(length)] for row in rows])
    tokens, mask = tokens.to(policy.device), mask.to(policy.device)
    logprobs = policy.logprobs(collate(told, policy.pad_id, policy.device), tokens, mask)
    scores = logprobs.masked_fill(~mask, 0.0).double().sum(1).view(len(prompts), max(counts))
    return [row[:count].softmax(0).tolist() for row, count in zip(scores, counts, strict=True)]


def _tokens(policy: Policy, alternatives: Alternatives) -> list[list[int]]:
    tokenizer = policy.encoder.tokenizer
    end = [tokenizer.eos_token_id] if alternatives.ends_turn else []
    # A model can spell a special token out: what it said is text.
    spelled = {"add_special_tokens": False, "split_special_tokens": True}
    return [tokenizer(text, **spelled)["input_ids"] + end for text in alternatives.texts]


def _shared(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with."""
    same = [len(set(column)) == 1 for column in zip(*rows, strict=False)]
    return [*same, False].index(False)


def _followed_by(prompt: EncodedPrompt, tokens: Int[Tensor, " tokens"]) -> EncodedPrompt:
    """The prompt with the beginning of an answer behind it."""
    positions = prompt.positions.max() + 1 + torch.arange(len(tokens))
    return replace(
        prompt,
        ids=torch.cat([prompt.ids, tokens]),
        positions=torch.cat([prompt.positions, positions.expand(3, -1)], dim=1),
    )
