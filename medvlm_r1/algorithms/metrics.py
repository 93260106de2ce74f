"""The metrics of a training step, as ``metrics.csv`` and the loggers hold them under ``train/``."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medvlm_r1.algorithms.advantages import in_groups
from medvlm_r1.algorithms.trajectory import Trajectory


def step_metrics(
    sampled: Trajectory, trajectory: Trajectory, updates: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Metrics of one GRPO step; the caller averages each over its elements on all ranks.

    ======================================  ==============================================================
    reward, reward_<term>                   total and unweighted terms, per completion
    reward_<term>_right, _wrong             the same of completions with a correct or wrong answer
    reward_std                              unbiased standard deviation of the total in a group, per prompt
    accuracy, well_formed                   share of completions
    tokens, truncated                       length of a completion; share that reached the limit
    entropy                                 of the distribution before top-k and top-p, nats per token
    kept_mass                               probability that top-k and top-p kept, per token
    frac_zero_advantage                     share of prompts whose advantages are all 0
    advantage_abs                           absolute advantage, per completion or token, as the advantages are
    loss, grad_norm                         mean over the updates; the norm before clipping
    kl                                      k3 of the policy against the reference, nats per token
    clip_fraction, importance_ratio         share of clipped tokens; mean ratio of policy and old policy
    loss_tokens                             tokens with a loss, per update
    sampling_logp_difference_mean, _p99     abs log-probability difference of sampler and trainer, nats
    ======================================  ==============================================================

    Args:
        sampled: completions of the step's own questions: rewards, accuracy, lengths and entropy are theirs.
        trajectory: the completions that were trained on, after dynamic sampling: advantages are theirs.
        updates: results of :meth:`~medvlm_r1.algorithms.grpo.GRPO.update_minibatch`; sampler and trainer are
            the same policy only in the first one.
    """
    rollout, rewards, correct = sampled.rollout, sampled.rewards, sampled.correct
    difference = updates[0]["sampling_logp_difference"]
    names = updates[0].keys() - {"sampling_logp_difference"}
    sums = {name: torch.stack([update[name].float() for update in updates]).sum() for name in names}
    tokens = sums["tokens"].clamp(min=1)
    advantages = trajectory.advantages
    assert advantages is not None
    return {
        "reward": rewards.total,
        **{f"reward_{name}": values for name, values in rewards.terms.items()},
        **{f"reward_{name}_right": values[correct] for name, values in rewards.terms.items()},
        **{f"reward_{name}_wrong": values[~correct] for name, values in rewards.terms.items()},
        "reward_std": in_groups(rewards.total, sampled.group_size).std(dim=1),
        "accuracy": correct,
        "well_formed": torch.tensor([answer.well_formed for answer in sampled.answers]),
        "tokens": rollout.lengths,
        "truncated": rollout.truncated,
        "entropy": rollout.entropy[rollout.mask],
        "kept_mass": rollout.kept_mass[rollout.mask],
        "frac_zero_advantage": ~trajectory.is_active,
        "advantage_abs": (advantages if advantages.dim() == 1 else advantages[trajectory.rollout.mask]).abs(),
        "loss": sums["loss"] / len(updates),
        "grad_norm": sums["grad_norm"] / len(updates),
        "kl": sums["kl"] / tokens,
        "clip_fraction": sums["clipped"] / tokens,
        "importance_ratio": sums["importance_ratio"] / tokens,
        "loss_tokens": sums["tokens"] / len(updates),
        "sampling_logp_difference_mean": difference,
        "sampling_logp_difference_p99": difference.quantile(0.99),
    }
