"""The check of a captured decoding step: a replay against a plain step from the same state."""

from collections.abc import Callable

import torch

from medvlm_r1.rollout.decoding_state import DecodingState
from medvlm_r1.rollout.draw import Draw
from medvlm_r1.rollout.sampling_noise import gumbel_max_scores

# Largest difference of a replay and a plain step: of keys and values as a share of the largest in their layer
# and head, of log-probabilities in nats. Rounding stays below; a wrong token or key does not.
KEYS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}


class CaptureError(RuntimeError):
    """A step cannot be captured, or its replay differs from a plain step."""


class ReplayCheck:
    """Takes a plain step and undoes it, to compare a replay with it."""

    def __init__(self, state: DecodingState) -> None:
        self.state, self.before = state, state.snapshot()
        self.steps, self.ended = (x[: state.rows].clone() for x in (state.steps, state.ended))
        state.advance()
        self.keys_and_values = state.keys_and_values(self.steps)
        self.hidden = state.hidden[: state.rows].clone()
        self.undo()

    def undo(self) -> None:
        self.state.restore(self.before)

    def run(self, replay: Callable[[], None]) -> None:
        """Advance the state by ``replay``; raises :class:`CaptureError` if it is no plain step."""
        self.state.clear_keys_and_values(self.steps)
        replay()
        # by layer, keys or values, and head: some heads have much larger keys than others
        plain, replayed = self.keys_and_values, self.state.keys_and_values(self.steps)
        largest, difference = (x.abs().amax((0, -1)) for x in (plain, replayed - plain))
        if not (difference <= KEYS[plain.dtype] * largest).all():  # nan differs
            raise CaptureError("keys and values differ")
        self._compare_samples()

    def _compare_samples(self) -> None:
        """Compare what was drawn with the distributions of the plain step's hidden states.

        Rounding may change a sample, so another token may be drawn whose score is almost the largest.
        """
        state, policy, sampling = self.state, self.state.policy, self.state.sampling
        rows, replayed = slice(state.rows), state.snapshot()
        hidden, tokens, steps = (x[rows].clone() for x in (state.hidden, state.latest, state.steps))
        column = torch.where(self.ended, state.shape.max_tokens, steps)
        found = state.records[:, state.index[rows], column]
        logprobs = policy.next_token_logprobs(self.hidden, sampling.divisor)
        scores, kept_mass, entropy = gumbel_max_scores(logprobs, sampling, state.keys[rows], steps)
        score, logprob = (x.gather(1, tokens[:, None])[:, 0] for x in (scores, logprobs))
        expected = torch.stack([logprob, kept_mass, entropy])
        differences = torch.cat([(scores.amax(1) - score)[None], found - expected])
        if not (differences[:, ~self.ended].abs() <= NATS[hidden.dtype]).all():
            raise CaptureError("the samples differ")
        self.undo()
        state.record(rows, hidden, state.next_steps(), Draw(tokens, *found))
        if not all(map(torch.equal, state.snapshot(), replayed)):
            raise CaptureError("the records of the samples differ")
