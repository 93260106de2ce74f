"""What the tests of formulas share."""

import torch

from medvlm_r1.algorithms.losses import PolicyLoss


def grpo_loss(*tensors, beta=0.04, denominator=None, sampling_logprobs=None, **settings):
    """Policy loss with some settings, from log-probabilities, advantages and mask."""
    return PolicyLoss(**settings)(
        *tensors, beta=beta, denominator=denominator, sampling_logprobs=sampling_logprobs
    )


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected), rtol=0, atol=tolerance, check_dtype=False
    )


def random_rows(rows, tokens, seed=0):
    """Log-probabilities of policy, sampler and reference, advantages and mask; ratios on both sides."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    logprobs = -draw(rows, tokens, scale=1.0).abs()
    old, reference = (logprobs + draw(rows, tokens, scale=0.3) for _ in range(2))
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    mask = torch.arange(tokens) < lengths[:, None]
    return logprobs.requires_grad_(), old, reference, draw(rows, scale=1.0), mask
