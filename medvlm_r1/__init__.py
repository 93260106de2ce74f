"""Does reinforcement learning make a small medical vision-language model reason better than SFT does?

The package is ordered by the steps of one question. ``algorithms/grpo.py`` has the training loop:
``GRPO.training_step`` calls the steps from sample to update.

===========  ==================================================  ===========================================
step         what happens                                        where
===========  ==================================================  ===========================================
launch       compose and check the configuration, lock the run   ``launch/``, ``conf/``
build        the configuration becomes objects                   ``run.py``
load         a data source reads the question                    ``data/``, ``phantom/``
audit        leaks and shortcuts among the questions             ``audit/``
render       a prompt style turns the question into a chat       ``prompts.py``: ``PromptStyle.render``
encode       the chat and its images become tensors              ``policy/encode.py``
sample       an engine samples G completions of the prompt       ``rollout/``
parse        the prompt style reads the answers                  ``prompts.py``, ``reading/``
reward       weighted sum of reward terms                        ``rewards.py``
log-probs    policy, old policy and reference, per token         ``policy/forward/logprobs.py``
advantage    each completion relative to its group               ``algorithms/advantages.py``
loss         clipped policy loss with a KL penalty               ``algorithms/losses.py``, ``kl.py``
update       backward pass, gradient clipping, optimiser step    ``algorithms/grpo.py``, ``optim.py``
evaluate     greedy answers under every control                  ``algorithms/base.py``, ``evaluate/``
save         metrics, predictions, a Hugging Face directory      ``artifacts/``, ``policy/saving/``
report       intervals, comparisons, the HTML page               ``report/``
predict      answer new questions, with a confidence             ``inference/``
===========  ==================================================  ===========================================

SFT (``algorithms/sft.py``) goes from encode to log-probs and the SFT loss; zero-shot only evaluates, and may
use a served model (``inference/endpoint.py``). ``callbacks/`` writes checkpoints, rollouts and alarms during
training; ``tracking/`` sends configuration, completions and results to W&B, TensorBoard and MLflow.
``plan/`` computes memory and time of a run beforehand. ``runs/`` reads and writes run folders. ``cli/`` has
the commands, ``tiny/`` the embedded model.
"""
