"""Sample completions of training questions: what GRPO's steps and rejection sampling share."""

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.trajectory import Trajectory
from medvlm_r1.policy.encode import EncodedPrompt
from medvlm_r1.rollout.engine import Sampling


def sample_trajectory(module: VLMModule, prompts: list[EncodedPrompt], sampling: Sampling) -> Trajectory:
    """Sample, parse and reward ``group_size`` completions of each prompt from the policy's weights."""
    with module.timed("sample"):
        rollout = module.engine(module.policy, prompts, sampling, module.noise_key)
        samples, answers = module.parse(prompts, rollout.texts)
    with module.timed("score"):
        rewards = module.rewards.score(answers, samples)
    return Trajectory(prompts, rollout, samples, answers, rewards)
